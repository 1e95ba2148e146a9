"""DecentNeRF (Sandhu et al., arXiv 2403.13199): its table and its three analyses, on a place with people in front.

    python benchmarks/decent.py table|learned|users|overlap [--data DIR] [--size N] [--rounds N] [--steps N] [--seeds N]
                                                            [--join N] [--weight W] [--out DIR] [--quick] [--json]

    table    in one place, FedNeRF, DecentNeRF(-L), DecentNeRF on the same photographs (table 1, figure 7a)
    learned  learned weights against FedAvg, eight owners with many and few people in front in turn (figure 4)
    users    1 to 20 owners, each of whom shares half of a view with the next (figure 7c)
    overlap  two owners whose views have nothing, something or all in common (figure 7c)

The place is the built-in monument, or a capture in Blender's layout with the same people in front (--data; its
photographs are shared out, so there is no overlap to choose). FedNeRF is DecentNeRF without the owners' fields, learned
weights and secure sums; a client that has all photographs takes the steps of all owners. PSNR and SSIM are of the
shared field on photographs without people that nobody trained on. The leak fraction and the PSNR where people are (the
paper's measure) are of what the server can render: single uploads of FedNeRF, else the mean of a round; in users and
overlap that mean is taken in the open, because secure sums refuse fewer than three owners. Every finished run is a file
in --out, so that a benchmark can be interrupted; means are over seeds.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedfields.config import Experiment, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import start_server
from fedfields.report.figures import DECIBELS, Line, over_rounds, save_chart
from fedfields.report.text import operations
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.cost import flops
from fedfields.runtime.inprocess import Round, run_rounds
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import clean, set_up
from fedfields.runtime.seen import given_away
from fedfields.scenes.scene import Scene
from fedfields.store import write_json
from fedfields.types import Report

EVALUATIONS = 8
"""Of a run of the table, about; the first and the last round are always among them."""

USERS = (1, 2, 4, 8, 16, 20)
OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALONE = "one owner alone"
METHODS = {
    ALONE: "nerf-alone",
    "all in one field": "nerf-pooled",
    "NeRF-W": "nerf-w",
    "own parts, all photographs": "nerf-owners",
    "FedNeRF": "fednerf-ngp",
    "DecentNeRF(-L)": "decentnerf-l",
    "DecentNeRF": "decentnerf",
}
"""Rows of the table, and their presets; the first four are without a federation."""

QUICK = {"size": 16, "rounds": 3, "steps": 4}


class Case(NamedTuple):
    """One training run.

    Attributes:
        name: of its method, or the number that is varied.
        experiment: what is run.
        summed: the server has the mean of a round's uploads, whether or not there are enough owners for a secure sum.
    """

    name: str
    experiment: Experiment
    summed: bool = False


def sized(experiment: Experiment, options: argparse.Namespace, usual: int = 0, **data: Any) -> Experiment:
    """The experiment with other data, and at the size that the command line asks for; else of so many rounds."""
    asked = {name: getattr(options, name) or (QUICK[name] if options.quick else 0) for name in QUICK}
    if asked["size"]:
        data["size"] = asked["size"]
    if options.quick:
        data = {"views": 2, "tests": 2} | data
    given = dataclasses.replace(experiment.data, **data)
    if "users" in data:
        experiment = dataclasses.replace(experiment, cohort=data["users"])
    if options.data is not None:
        common = {one.name: getattr(given, one.name) for one in dataclasses.fields(Scene) if hasattr(given, one.name)}
        given = Scene(**common | {"path": options.data, "clients": given.users, "partition": "separate"})  # pyright: ignore
    whole, rounds = preset("decentnerf"), asked["rounds"] or usual or experiment.rounds
    share = asked["steps"] / whole.local.steps if asked["steps"] else 1.0
    local = dataclasses.replace(experiment.local, steps=round(experiment.local.steps * share))
    changes: dict[str, Any] = {"data": given, "local": local, "rounds": rounds, "evaluate_every": rounds, "workers": 1}
    if experiment.personal is not None and experiment.personal.after:
        # An own part joins after as many steps, however long the run is.
        join = options.join or experiment.personal.after * experiment.rounds * whole.local.steps
        after = min(0.5, join / (rounds * share * whole.local.steps))
        weight = options.weight or experiment.personal.weight
        changes["personal"] = dataclasses.replace(experiment.personal, after=after, weight=weight)
    return dataclasses.replace(experiment, **changes)


def table_cases(options: argparse.Namespace) -> list[Case]:
    """The same photographs for everybody."""
    users = {"users": 4} if options.quick else {}
    found = {name: sized(preset(one), options, **users) for name, one in METHODS.items()}
    return [
        Case(name, dataclasses.replace(one, evaluate_every=max(1, one.rounds // EVALUATIONS)))
        for name, one in found.items()
    ]


def learned_cases(options: argparse.Namespace) -> list[Case]:
    """Eight owners, each of whom sees half of what both neighbours see; the even ones have many people in front."""
    cases = []
    for name in ("FedNeRF", "DecentNeRF(-L)", "DecentNeRF"):
        one = sized(preset(METHODS[name]), options, 30, users=8, overlap=0.5, visitors="mixed")
        cases.append(Case(name, dataclasses.replace(one, evaluate_every=5)))
    return cases


def users_cases(options: argparse.Namespace) -> list[Case]:
    """Sectors of 36 degrees, half of which the next owner sees, too: twenty owners go around the place."""
    return [
        averaged_case(f"{users}", options, users=users, sector=36.0, overlap=0.5)
        for users in (USERS[:3] if options.quick else USERS)
    ]


def overlap_cases(options: argparse.Namespace) -> list[Case]:
    """Two sectors of 90 degrees, from side by side to the same one; test photographs are from where owners are."""
    if options.data is not None:
        sys.exit("overlap moves the owners' cameras, which a capture does not allow: leave out --data")
    photographs = {} if options.quick else {"views": 10}
    return [
        averaged_case(f"{overlap:g}", options, users=2, sector=90.0, overlap=min(overlap, 1 - 1e-9), **photographs)
        for overlap in (OVERLAPS[::4] if options.quick else OVERLAPS)
    ]


def averaged_case(name: str, options: argparse.Namespace, **data: Any) -> Case:
    """DecentNeRF with this data; as secure sums take three owners, the mean is taken in the open."""
    bare = dataclasses.replace(preset("decentnerf"), privacy=())
    return Case(name, sized(bare, options, **data), summed=True)


CASES: dict[str, Callable[[argparse.Namespace], list[Case]]] = {
    "table": table_cases,
    "learned": learned_cases,
    "users": users_cases,
    "overlap": overlap_cases,
}


def measure(case: Case) -> dict:
    """The figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(case.experiment).begin(Path(folder), lambda what, done, total: None)
    uploads, records, evaluated = Uploads({}, {}), list[dict](), list[dict]()
    start = start_server(case.experiment.strategy, setup.params)
    with Pool(setup.context, 1) as pool:
        for step in run_rounds(setup.context, setup.settings, start, {}, pool):
            sent = given_away(case.experiment.strategy, as_summed(step) if case.summed else step)
            uploads = Uploads(uploads.last | sent, {})
            records.append(step.record)
            number = step.state.round
            if number in (1, case.experiment.rounds) or number % case.experiment.evaluate_every == 0:
                judged = setup.judge(Checkpoint(step.state, step.memories, uploads), pool, final=True)
                quality = {name: judged[name]["held_out"]["0"] for name in ("psnr", "ssim")}
                evaluated.append({"round": number, **quality, "content": judged["content"], "alpha": alphas(step)})
    sums = {name: sum(record[name] for record in records) for name in ("bytes_up", "bytes_down", "seconds")}
    return {"name": case.name, "evaluated": evaluated, "flops": flops(setup, records)} | sums


def as_summed(step: Round) -> Round:
    """The round as if its reports had been summed in secret."""
    if step.total is not None:
        return step
    reports = [reply.report for reply in step.replies.values()]
    total: Report = {
        name: {key: torch.stack([one[name][key].double() for one in reports]).sum(0) for key in part}
        for name, part in reports[0].items()
    }
    return step._replace(total=total)


def alphas(step: Round) -> dict[str, float]:
    """The learned weight of each owner over their mean, by number: private, but a simulation can look."""
    known = {i: float(memory["learned"]["alpha"]) for i, memory in step.memories.items() if "learned" in memory}
    return {f"{i}": alpha / statistics.fmean(known.values()) for i, alpha in sorted(known.items())}


def finished(command: str, cases: Sequence[Case], seeds: int, out: Path) -> list[dict]:
    """The figures of all runs; those whose file lies in ``out`` are not run again."""
    rows = []
    for seed in range(seeds):
        for case in cases:
            case = case._replace(experiment=dataclasses.replace(case.experiment, seed=seed))
            digest = hashlib.sha256(json.dumps(to_json(case.experiment)).encode()).hexdigest()[:10]
            path = out / f"{command}-{digest}{'-summed' if case.summed else ''}.json"
            if not path.exists():
                write_json(path, clean(measure(case)))
            rows.append(json.loads(path.read_text()) | {"seed": seed})
            last = rows[-1]["evaluated"][-1]
            print(f"{command}, {case.name}, seed {seed}: {last['psnr']:.2f} dB", file=sys.stderr, flush=True)
    return rows


FIGURES: dict[str, tuple[str, str, Callable[[dict], float]]] = {
    "psnr": ("PSNR of the shared field", DECIBELS, lambda one: one["psnr"]),
    "ssim": ("SSIM of the shared field", "", lambda one: one["ssim"]),
    "masked": ("PSNR of what the server can render, where people are", DECIBELS, lambda one: one["content"]["psnr"]),
    "floor": ("PSNR of the place alone, where people are", DECIBELS, lambda one: one["content"]["floor"]),
    "leak": ("People in what the server can render", "leak fraction", lambda one: one["content"]["leak"]),
    "worst": ("The same of the worst owner", "leak fraction", lambda one: one["content"]["leak_worst"]),
}
"""Of one evaluation: title, unit, and where it is."""


def averaged(rows: Sequence[dict], of: Callable[[dict], float]) -> dict[str, list[tuple[int, float]]]:
    """A figure of the evaluations, by run and round: means over seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for one in row["evaluated"]:
            found.setdefault(row["name"], {}).setdefault(one["round"], []).append(of(one))
    return {name: [(n, statistics.fmean(each)) for n, each in curve.items()] for name, curve in found.items()}


def share(which: int) -> Callable[[dict], float]:
    """The mean weight of the owners with many (0) or few (1) people in front."""
    return lambda one: statistics.fmean(alpha for i, alpha in one["alpha"].items() if int(i) % 2 == which)


def draw(command: str, rows: Sequence[dict], out: Path) -> list[Path]:
    """The pictures of a benchmark."""
    if command in ("table", "learned"):
        names = ("psnr", "masked", "leak")
        charts = {name: list(averaged(rows, FIGURES[name][2]).items()) for name in names}
        below, titles = "round", {name: FIGURES[name][:2] for name in names}
    else:
        charts = {"psnr": _by_number(rows, "psnr", last="shared field"), "leak": _by_number(rows, "leak")}
        charts["masked"] = [*_by_number(rows, "masked"), *_by_number(rows, "floor", last="without people")]
        below = "owners" if command == "users" else "share of a view that both have"
        titles = {name: FIGURES[name][:2] for name in charts}
    if command == "learned":
        weighed = [row for row in rows if row["name"] == "DecentNeRF"]
        charts["alpha"] = [(who, *averaged(weighed, share(i)).values()) for i, who in enumerate(("many", "few"))]
        titles["alpha"] = "Mean weight of owners with many and few people in front", "weight, 1 on average"
    paths = []
    for name, curves in charts.items():
        lines = [Line(points, look, label) for look, (label, points) in enumerate(curves, 1)]
        title, unit = titles[name]
        paths.append(out / f"decent-{command}-{name}.svg")
        save_chart(over_rounds(title, lines, unit, below=below), paths[-1])
    return paths


def _by_number(rows: Sequence[dict], name: str, last: str = "") -> list[tuple[str, list[tuple[float, float]]]]:
    """A figure over the number that is varied: in the first and the last round, or in the last, called ``last``."""
    curves = averaged(rows, FIGURES[name][2])
    when = {last: -1} if last else {"first round": 0, "last round": -1}
    return [(label, [(float(x), points[at][1]) for x, points in curves.items()]) for label, at in when.items()]


def show(rows: Sequence[dict]) -> None:
    """The table as Markdown: means over seeds."""
    head = ["PSNR", "SSIM", "masked PSNR, first", "last", "floor", "leak, first", "last", "worst owner"]
    print(f"| | {' | '.join(head)} | server | clients | MB up | MB down | s |\n|---|{'--:|' * (len(head) + 5)}")
    curves = {name: averaged(rows, of) for name, (_, _, of) in FIGURES.items()}
    for name in dict.fromkeys(row["name"] for row in rows):
        first, last = ({figure: curve[name][at][1] for figure, curve in curves.items()} for at in (0, -1))
        mine = [row for row in rows if row["name"] == name]
        cells = [f"{last['psnr']:.2f}", f"{last['ssim']:.3f}"]
        cells += [f"{value:.1f}" for value in (first["masked"], last["masked"], last["floor"])]
        cells += [f"{value:.2f}" for value in (first["leak"], last["leak"], last["worst"])]
        cells += costs(mine[0])
        cells.append(f"{statistics.fmean(row['seconds'] for row in mine):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


def costs(row: dict) -> list[str]:
    """Operations of server and owners, megabytes up and down. Whoever has all photographs is the server and trains."""
    server, clients = (operations(row["flops"][who]) for who in ("server", "clients"))
    if row["name"] == ALONE:
        return ["–", clients, "–", "–"]
    if row["name"] in list(METHODS)[:3]:
        return [clients, "–", "–", "–"]
    return [server, clients, *(f"{row[way] / 1e6:.1f}" for way in ("bytes_up", "bytes_down"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=tuple(CASES))
    parser.add_argument("--data", type=Path, help="a capture in Blender's layout; the built-in monument by default")
    for name, about in {
        "size": "pixels along an edge",
        "rounds": "of every run",
        "steps": "of an owner in a round",
        "join": "steps of an owner before its own part joins",
    }.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=f"{about}; those of the presets by default")
    parser.add_argument(
        "--weight", type=float, default=0.0, help="of the density of own parts; the preset's by default"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of everything, each with a seed of its own")
    parser.add_argument("--out", type=Path, help="folder of runs and pictures; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if options.seeds < 1:
        sys.exit(f"--seeds is {options.seeds}; it must be at least 1")
    torch.set_num_threads(1)
    out = options.out or Path(tempfile.mkdtemp(prefix="decent-"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        rows = finished(options.command, CASES[options.command](options), options.seeds, out)
    except (UserError, ValueError) as error:
        sys.exit(str(error))
    pictures = draw(options.command, rows, out)
    if options.json:
        print(json.dumps({"rows": rows, "pictures": [str(path) for path in pictures]}))
        return
    show(rows)
    for path in pictures:
        print(path)


if __name__ == "__main__":
    main()
