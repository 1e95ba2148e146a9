"""Robust strategies under attack: what k hostile owners of twelve do to a picture that all of them share.

    python benchmarks/robust.py [--layout dealt|overlap] [--seeds N] [--jobs N] [--out DIR] [--quick] [--json]

Twelve owners hold a part each of the pixels of one photograph, and one SIREN of all is trained on them. Pixels are
dealt out at random, or half of them at random and half in tiles, so that owners differ (--layout overlap). Every fifth
pixel belongs to nobody: PSNR is measured there. k owners are hostile from the first round to the last; those of the
backdoor train on a checkerboard in one corner of the picture and are judged by the PSNR of that pattern, there. The
server tolerates f = 4 and does not know k. Every seed has a photograph of its own. The last table is the time that one
aggregation takes. The picture, robust.svg, shows the worst attack on each defence. Finished runs are kept in --out, so
that the benchmark can be interrupted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from attacks import ATTACKS

from fedfields import tree
from fedfields.federation import (
    Local,
    Method,
    Rejected,
    broadcast,
    close_round,
    expected,
    start_server,
    validate,
    visit,
)
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr
from fedfields.objectives import Fit
from fedfields.optim import Sgd
from fedfields.report.figures import DECIBELS, Line, over_rounds, save_chart
from fedfields.scenes.arrays import ArraySignal
from fedfields.scenes.data import Data
from fedfields.seeds import generator
from fedfields.strategies import FedAvg, Robust, Strategy
from fedfields.types import Batch, Client, Report, Task

OWNERS, TOLERATE, SIZE, ROUNDS = 12, 4, 64, 16
BOUNDS = {"dealt": 0.35, "overlap": 0.5}
"""Layouts, and the norm that the server allows an update: over the largest honest one of a run without attack."""

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")
FIELD = Siren(width=64, depth=3)
LOSS = FieldLoss(FIELD)
LOCAL = Local(steps=8, lr=0.03, clip=0.0, optimizer=Sgd(momentum=0.9))
STRATEGIES: dict[str, Strategy] = {
    "mean": FedAvg(),
    "mean, norm bound": FedAvg(),
    "clipped mean": Robust("clipped-mean", TOLERATE),
    "median": Robust("median", TOLERATE),
    "trimmed mean": Robust("trimmed-mean", TOLERATE),
    "geometric median": Robust("geometric-median", TOLERATE),
    "Krum": Robust("krum", TOLERATE),
    "multi-Krum": Robust("multi-krum", TOLERATE),
}
"""Defences; those named after a norm bound also drop every update beyond it."""


class Case(NamedTuple):
    """One training run; without hostile owners its attack is none."""

    layout: str
    defence: str
    attack: str
    hostile: int
    seed: int
    rounds: int


class Place(NamedTuple):
    """A photograph and what everybody has of it.

    Attributes:
        owners: honest owners, each with a part of the pixels.
        planted: the same owners as they train for the backdoor.
        test: pixels that belong to nobody.
        pattern: the corner as the backdoor wants it.
    """

    owners: list[Client]
    planted: list[Client]
    test: Batch
    pattern: Batch


def place_of(seed: int, layout: str) -> Place:
    """The photograph of this seed, shared out."""
    wanted = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
    federation = Data(size=SIZE).load(0)
    (signal,) = (c for c in federation.clients + federation.unseen if c.name == wanted)
    pixels = (signal.train or signal.held_out)[0].support.everything()
    order = torch.randperm(len(pixels.inputs), generator=generator(seed, "pixels"))
    test, rest = order[: len(order) // 5], order[len(order) // 5 :]
    corner = (pixels.inputs > 0.5).all(dim=1)
    board = ((pixels.inputs[:, 0] > 0.75) ^ (pixels.inputs[:, 1] > 0.75)).to(pixels.targets)
    targets = torch.where(corner[:, None], board[:, None], pixels.targets)
    inside, parts = corner.nonzero().flatten(), shares(rest, layout)
    mixed = [torch.cat([part[~corner[part]], inside]) for part in parts]
    return Place(
        [owner(i, pixels.inputs[part], pixels.targets[part]) for i, part in enumerate(parts)],
        [owner(i, pixels.inputs[part], targets[part]) for i, part in enumerate(mixed)],
        Batch(pixels.inputs[test], pixels.targets[test]),
        Batch(pixels.inputs[inside], targets[inside]),
    )


def shares(pixels: torch.Tensor, layout: str) -> Sequence[torch.Tensor]:
    """The pixels of each owner: as they come, or those in each of 3 x 4 tiles."""
    if layout == "dealt":
        return pixels.chunk(OWNERS)
    half = len(pixels) // 2
    anywhere, local = pixels[:half].chunk(OWNERS), pixels[half:]
    tile = local // SIZE * 3 // SIZE * 4 + local % SIZE * 4 // SIZE
    return [torch.cat([part, local[tile == i]]) for i, part in enumerate(anywhere)]


def owner(number: int, inputs: torch.Tensor, targets: torch.Tensor) -> Client:
    signal = ArraySignal(inputs, targets)
    return Client(f"owner-{number}", (Task(signal, signal),))


def train(case: Case) -> dict:
    """The figures of one run: PSNR on nobody's pixels, that of the pattern, honest and hostile reports dropped."""
    torch.set_num_threads(1)
    place, bound = place_of(case.seed, case.layout), BOUNDS[case.layout]
    method = Method(Fit(batch=256), LOCAL, STRATEGIES[case.defence])
    state = start_server(method.strategy, FIELD.init(2, 3, generator(case.seed, "init")))
    hostile = torch.randperm(OWNERS, generator=generator(case.seed, "hostile"))[: case.hostile].tolist()
    form, dropped, largest = expected(method, state.params), [0, 0], 0.0
    for number in range(1, case.rounds + 1):
        received, reports, accepted = broadcast(method, state), {}, []
        for i in range(OWNERS):
            clients = place.planted if case.attack == "backdoor" and i in hostile else place.owners
            reports[i] = visit(method, clients[i], LOSS, received, {}, seed=case.seed, round=number).report
        honest = [report for i, report in reports.items() if i not in hostile]
        largest = max(largest, *(float(tree.norm(report["delta"])) for report in honest))
        if hostile:
            sent = ATTACKS[case.attack]([reports[i] for i in hostile], honest, bound)
            reports |= dict(zip(hostile, sent, strict=True))
        for i, report in reports.items():
            try:
                validate(report, form, 1.0, bound if "norm bound" in case.defence else 0.0)
                accepted.append(report)
            except Rejected:
                dropped[i in hostile] += 1
        state, _ = close_round(method, state, accepted, OWNERS)
    found = {
        name: psnr(LOSS.show(state.params, part.inputs).nan_to_num(), part.targets)
        for name, part in (("psnr", place.test), ("pattern", place.pattern))
    }
    return case._asdict() | found | {"honest_dropped": dropped[0], "hostile_dropped": dropped[1], "largest": largest}


def cases(layout: str, seeds: int, quick: bool) -> list[Case]:
    """Every run of the benchmark."""
    chosen = {
        "defence": ("mean", "clipped mean", "multi-Krum") if quick else tuple(STRATEGIES),
        "attack": ("NaN and Inf", "against the mean") if quick else tuple(ATTACKS),
        "hostile": (4,) if quick else (1, 2, 3, TOLERATE),
    }
    found = []
    for seed in range(1 if quick else seeds):
        for defence in chosen["defence"]:
            attacks = [("none", 0), *((attack, k) for attack in chosen["attack"] for k in chosen["hostile"])]
            found += [Case(layout, defence, attack, k, seed, 2 if quick else ROUNDS) for attack, k in attacks]
    return found


def run_all(chosen: Sequence[Case], log: Path, jobs: int) -> list[dict]:
    """The figures of every run; those that the log has are not run again."""
    lines = log.read_text().splitlines() if log.exists() else []
    done = {Case(*(row[name] for name in Case._fields)): row for row in map(json.loads, lines)}
    left = [case for case in chosen if case not in done]
    with ProcessPoolExecutor(jobs) as pool, log.open("a") as file:
        for number, (case, row) in enumerate(zip(left, pool.map(train, left), strict=True), 1):
            done[case] = row
            print(json.dumps(row), file=file, flush=True)
            print(f"{number} of {len(left)} runs", end="\r", file=sys.stderr, flush=True)
    return [done[case] for case in chosen]


def averaged(rows: Sequence[dict], figure: str) -> dict[tuple[str, str, int], float]:
    """Means over seeds by defence, attack and number of hostile owners."""
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row["defence"], row["attack"], row["hostile"]), []).append(row[figure])
    return {key: statistics.fmean(values) for key, values in groups.items()}


def cost(defence: str, weights: int, calls: int) -> float:
    """Milliseconds of processor time for one round's checks and aggregation of twelve reports, one thread (median)."""
    torch.set_num_threads(1)
    random = generator(0, "cost")
    params = {"w": torch.zeros(weights)}
    method, times = Method(strategy=STRATEGIES[defence]), []
    one = {"weight": torch.tensor(1.0, dtype=torch.float64)}
    reports: list[Report] = [
        {"delta": {"w": torch.randn(weights, generator=random)}, "stats": one} for _ in range(OWNERS)
    ]
    form = expected(method, params)
    for _ in range(calls):
        begun = time.process_time()
        for report in reports:
            validate(report, form, 1.0, 1e9 if "norm bound" in defence else 0.0)
        close_round(method, start_server(method.strategy, params), reports, OWNERS)
        times.append(time.process_time() - begun)
    return 1000 * statistics.median(times)


def worst(psnrs: dict[tuple[str, str, int], float], defence: str, hostile: int) -> float:
    """The lowest PSNR of a defence against so many hostile owners over all attacks."""
    return min(value for (name, _, k), value in psnrs.items() if (name, k) == (defence, hostile))


def draw(psnrs: dict[tuple[str, str, int], float], path: Path) -> None:
    """The worst attack on each defence by the number of hostile owners."""
    ks = sorted({k for _, _, k in psnrs})
    names = dict.fromkeys(name for name, _, _ in psnrs)
    lines = [Line([(k, worst(psnrs, name, k)) for k in ks], look, name) for look, name in enumerate(names, 1)]
    title = f"PSNR under the worst attack by hostile owners of {OWNERS}"
    save_chart(over_rounds(title, lines, DECIBELS, below=f"hostile owners of {OWNERS}"), path)


def show(title: str, figures: dict[tuple[str, str, int], float], attacks: Sequence[str], ks: Sequence[int]) -> None:
    """A table as Markdown: a row for each defence, a column for each attack with a figure for each k."""
    print(f"\n| {title} | none | " + " | ".join(attacks) + " |")
    print("|---|" + "--:|" * (1 + len(attacks)))
    for name in dict.fromkeys(name for name, _, _ in figures):
        cells = [" / ".join(f"{figures[name, attack, k]:.1f}" for k in ks) for attack in attacks]
        print(f"| {name} | {figures[name, 'none', 0]:.1f} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=tuple(BOUNDS), default="dealt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, help="folder of runs and picture; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="three defences, two attacks, two rounds: seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="robust-"))
    out.mkdir(parents=True, exist_ok=True)
    chosen = cases(options.layout, options.seeds, options.quick)
    rows = run_all(chosen, out / "rows.jsonl", options.jobs)
    names = list(dict.fromkeys(case.defence for case in chosen))
    sizes = (8707, 1 << 20)
    costs = {name: [cost(name, size, 3 if options.quick else 15) for size in sizes] for name in names}
    psnrs = averaged(rows, "psnr")
    draw(psnrs, out / "robust.svg")
    found = {"rows": rows, "milliseconds": costs, "weights": sizes, "picture": str(out / "robust.svg")}
    if options.json:
        print(json.dumps(found))
        return
    attacks = list(dict.fromkeys(case.attack for case in chosen if case.hostile))
    ks = sorted({case.hostile for case in chosen if case.hostile})
    show(f"PSNR, k = {' / '.join(map(str, ks))}", psnrs, attacks, ks)
    if "backdoor" in attacks:
        show("PSNR of the pattern", averaged(rows, "pattern"), ["backdoor"], ks)
    print("\n| milliseconds | " + " | ".join(f"{size:,} weights" for size in sizes) + " |\n|---|--:|--:|")
    for name, (small, large) in costs.items():
        print(f"| {name} | {small:.1f} | {large:.0f} |")
    print(out / "robust.svg")


if __name__ == "__main__":
    main()
