"""What a server sees when it simply renders what it has: PSNR_p by round and protection, and faces.

    python benchmarks/renders.py --data DIR [--quick] [--json]

First table: federated runs on pictures, one owner each. After some rounds, the PSNR on the owners' own pictures of what
the server has of them (PSNR_p): each upload, or with sec-agg the mean of the round's uploads; beside it that of the
public model, which anybody can render, and what unseen owners get after 8 steps of adaptation.

Second table: one owner trains a field on a portrait (twelve views of scikit-image's astronaut, one after another) and
uploads it; the others of the round train on photographs without people, or on other views of the portrait. How many
faces a detector finds in a hundred renders by the server, of uploads and of sums; needs fedfields[people].
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from skimage import data as photographs
from skimage.transform import resize

from fedfields import tree
from fedfields.adaptation import Adaptation
from fedfields.audit import people
from fedfields.config import preset
from fedfields.federation import Local, Method, visit
from fedfields.fields import Siren
from fedfields.losses import FieldLoss, render
from fedfields.metrics import psnr
from fedfields.objectives import Fit, MeNF
from fedfields.optim import Adam
from fedfields.privacy import Noise, SecAgg
from fedfields.runtime.evaluation import quality_of
from fedfields.runtime.inprocess import Round, train
from fedfields.scenes.data import Data, Federation
from fedfields.scenes.grid import GridSignal
from fedfields.seeds import generator
from fedfields.types import Client, Params, Task

FIELD = Siren(width=64, depth=3)
LOSS = FieldLoss(FIELD)
COHORT = 5
GAMMAS = (0.25, 0.5, 0.75, 1.0)
WITHOUT_PEOPLE = ("coffee", "rocket", "coins", "page", "moon", "brick", "gravel")
SIDE = 96
STEPS = (30, 100, 300)
COUNTS = (2, 4, 8)


def methods() -> dict[str, Method]:
    """The rows of the first table."""
    found = {}
    for name in ("maml", "reptile"):
        plain = preset(name).method
        found[name] = plain
        found[f"{name}, sec-agg"] = dataclasses.replace(plain, privacy=(SecAgg(),))
        for ratio in (1.0, 10.0):
            words = f"{name}, noise of {ratio:g} clip norm{'s' * (ratio > 1)}"
            found[words] = dataclasses.replace(plain, privacy=(Noise(preset("noised").privacy[0].clip, ratio),))
    menf = preset("fedmenf").method
    for gamma in GAMMAS:
        found[f"fedmenf, gamma {gamma:g}"] = dataclasses.replace(menf, objective=MeNF(menf.objective.base, gamma))
    return found


def by_round(method: Method, federation: Federation, rounds: int) -> list[dict]:
    """PSNR_p, the public model's PSNR on the same pictures, and unseen owners' PSNR, in the first, a middle and the
    last round."""
    found: list[dict] = []

    def seen(step: Round) -> None:
        number = step.state.round
        if number not in (1, rounds // 4, rounds):
            return
        start, own, public = step.received["params"], [], []
        for i, reply in step.replies.items():
            signal = federation.clients[i].train[0].query
            weights = method.strategy.uploaded(start, step.total or reply.report, reply.steps)
            own.append(psnr(render(LOSS, weights, signal), signal.values))
            public.append(psnr(render(LOSS, start, signal), signal.values))
        adapted = quality_of(FIELD, step.state.params, federation.unseen, Adaptation(steps=8, lr=0.1))
        figures = {"psnr_p": statistics.fmean(own), "public": statistics.fmean(public), "unseen": adapted["8"]}
        found.append({"round": number} | figures)

    start = FIELD.init(2, 3, generator(0, "init"))
    train(method, federation.clients, LOSS, start, rounds=rounds, cohort=COHORT, on_round=seen)
    return found


def views(count: int) -> list[torch.Tensor]:
    """Square views of the astronaut with the face somewhere inside, every other one mirrored."""
    found, whole = [], photographs.astronaut() / 255.0
    for i in range(count):
        side = (220, 280, 340, 400)[i % 4]
        left, top = max(0, 224 - side // 2 + (-30, 0, 30)[i % 3]), max(0, 110 - side // 3)
        values = resize(whole[top : top + side, left : left + side], (SIDE, SIDE), anti_aliasing=True)
        found.append(torch.from_numpy(values[:, :: -1 if i % 2 else 1].copy()).float())
    return found


def others() -> list[torch.Tensor]:
    """Photographs without people, in colour or not."""
    found = []
    for name in WITHOUT_PEOPLE:
        values = resize(getattr(photographs, name)(), (SIDE, SIDE), anti_aliasing=True)
        found.append(torch.from_numpy(values if values.ndim == 3 else values[..., None].repeat(3, axis=2)).float())
    return found


def uploads(pictures: Sequence[torch.Tensor], steps: int) -> list[Params]:
    """What one visit to each owner sends, all from the same random weights."""
    method, start = Method(Fit(batch=1024), Local(steps, lr=1e-3, optimizer=Adam())), FIELD.init(2, 3, generator(0))
    found = []
    for i, values in enumerate(pictures):
        signal = GridSignal(values)
        client = Client(f"owner-{i}", (Task(signal, signal),))
        reply = visit(method, client, LOSS, {"params": start}, {}, seed=0, round=1)
        found.append(method.strategy.uploaded(start, reply.report, reply.steps))
    return found


def rendered(weights: Sequence[Params]) -> torch.Tensor:
    """The picture that the mean of these weights shows."""
    mean = tree.tree_map(lambda *leaves: torch.stack(leaves).mean(0), *weights)
    with torch.no_grad():
        return render(LOSS, mean, GridSignal(torch.zeros(SIDE, SIDE, 3)))


def faces_seen(quick: bool) -> list[dict]:
    """Detections in the photographs, in renders of uploads, and in renders of sums."""
    portraits, plain = views(2 if quick else 12), others()
    rows = [{"what": "the photographs", "n": 1, "steps": None} | people.faces(portraits)._asdict()]
    rows.append({"what": "photographs without people", "n": 1, "steps": None} | people.faces(plain)._asdict())
    for steps in STEPS[:1] if quick else STEPS:
        own, rest = uploads(portraits, steps), uploads(plain, steps)
        cases = {("uploads", 1): [rendered([one]) for one in own]}
        for n in COUNTS:
            cases["sum with others' photographs", n] = [rendered([one, *rest[: n - 1]]) for one in own]
            turns = [[own[(i + j) % len(own)] for j in range(n)] for i in range(len(own))]
            cases["sum of portraits", n] = [rendered(turn) for turn in turns]
        for (what, n), pictures in cases.items():
            rows.append({"what": what, "n": n, "steps": steps} | people.faces(pictures)._asdict())
    return rows


def show(runs: dict[str, list[dict]], found: list[dict]) -> None:
    """Both tables as Markdown."""
    numbers = [one["round"] for one in next(iter(runs.values()))]
    print("| method | " + " | ".join(f"round {number}" for number in numbers) + " | unseen owners |")
    print("|---|" + "--:|" * (len(numbers) + 1))
    for name, rows in runs.items():
        cells = [f"{one['psnr_p']:.1f} ({one['public']:.1f})" for one in rows]
        print(f"| {name} | {' | '.join(cells)} | {rows[-1]['unseen']:.1f} |")
    print("\n| what is rendered | n | local steps | faces in 100 renders | mean best score |\n|---|--:|--:|--:|--:|")
    for one in found:
        print(f"| {one['what']} | {one['n']} | {one['steps'] or '–'} | {one['per_hundred']:.0f} | {one['score']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures; the photographs of scikit-image by default")
    parser.add_argument("--quick", action="store_true", help="a few rounds, two views: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    size, rounds = (12, 4) if options.quick else (24, 60)
    federation = Data(path=options.data, clients="file", size=size, unseen=0.2).load(0)
    found = faces_seen(options.quick) if people.available() else []
    runs = {}
    for name, method in methods().items():
        runs[name] = by_round(method, federation, rounds)
        print(f"{name}: done", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"rounds": runs, "faces": found}))
        return
    show(runs, found)


if __name__ == "__main__":
    main()
