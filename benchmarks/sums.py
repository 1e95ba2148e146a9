"""What a sum reveals: every attack on secure sums of 1, 2, 4, 8 and 16 owners' uploads (second-order methods: to 4).

    python benchmarks/sums.py --data DIR --out DIR [--quick] [--json]

The owners' first uploads (one outer step on the whole picture, from the same random weights) are summed, from four
owners on by the protocol of secure sums itself, which refuses two. The audit then gets the sum and nothing else:
read-outs look for each picture in the mean, and the inversions look for all pictures at once and are granted the best
assignment to owners. Nothing is drawn at random in a visit, so that the attacker can simulate it exactly, which is the
worst case. The same four owners are attacked at n = 1, 2 and 4.

"strangers" scores what the real attacks found against as many pictures that were not in the sum, which is how much
pictures resemble each other anyway; "masked" is what the quick attacks get from a single masked upload. Finished parts
are kept under --out, with a picture in sums.svg.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from fedfields.audit import AuditResult, AuditSettings, Observation, audit
from fedfields.config import preset
from fedfields.federation import Local, Method, expected, prepare, visit
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr
from fedfields.objectives import Fit, Inner
from fedfields.privacy import SecAgg
from fedfields.report.figures import DECIBELS, Line, over_rounds, save_chart
from fedfields.runtime.secure import encoding, settings_of, sum_reports
from fedfields.scenes.data import Data
from fedfields.seeds import generator
from fedfields.store import write_json
from fedfields.types import Client, Report

COUNTS = (1, 2, 4, 8, 16)
METHODS = ("fedavg", "fomaml", "reptile", "maml", "fedmenf", "surrogate")
EFFORT = AuditSettings(clients=1, matching_steps=80, newton_products=120, polish_steps=80, known_draws=False)
QUICK = AuditSettings(clients=1, matching_steps=2, newton_products=3, polish_steps=2, known_draws=False)
INNER_STEPS = 3
SAME = 4
"""So many owners are attacked at every n up to this."""

DEAR = ("maml", "fedmenf")
"""Methods with second derivatives, whose visits take three times as long to simulate: no larger sums of these."""

FIELD = Siren(width=64, depth=3)
LOSS = FieldLoss(FIELD)


def whole(part: Any) -> Any:
    """The part with whole pictures for batches, and few inner steps."""
    changes = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in ("batch", "outer_batch"):
            changes[field.name] = 0
        elif dataclasses.is_dataclass(value):
            changes[field.name] = whole(value)
    steps = {"steps": INNER_STEPS} if isinstance(part, Inner) else {}
    return dataclasses.replace(part, **changes, **steps)


def method_of(name: str) -> Method:
    """One step of gradient descent for fedavg; the preset with one outer step for the others."""
    if name == "fedavg":
        return Method(Fit(), Local(lr=0.1))
    ready = preset(name)
    return Method(whole(ready.objective), dataclasses.replace(ready.local, steps=1), privacy=ready.privacy)


def summed(method: Method, reports: list[Report], form: Report) -> tuple[Report, list[Report]]:
    """The sum of the reports, and what the server saw of single ones (nothing where the protocol refuses so few)."""
    if len(reports) < SecAgg().minimum:
        total = {
            name: {key: torch.stack([one[name][key].double() for one in reports]).sum(0) for key in part}
            for name, part in form.items()
        }
        return total, []
    plan = encoding(SecAgg(), form, len(reports))
    rules = settings_of(SecAgg(), plan, 0, 1, 0)
    found = sum_reports(plan, rules, range(len(reports)), lambda: reports, 0)
    return found.total, list(found.seen.values())


def attack(name: str, owners: list[Client], everybody: list[Client], effort: AuditSettings) -> dict:
    """The figures of one sum."""
    started, method = time.perf_counter(), method_of(name)
    start = FIELD.init(2, 3, generator(0, "init"))
    visits = [(one, prepare(method.privacy, one, seed=0)) for one in owners]
    reports = [visit(method, own, LOSS, {"params": start}, {}, seed=0, round=1).report for _, own in visits]
    total, masked = summed(method, reports, expected(method, start))
    tasks, names = {one.name: one.train[0] for one in everybody}, tuple(one.name for one in owners)
    seen = Observation(names, 1, start, method.strategy.uploaded(start, total, 1))
    result = audit([seen], tasks, LOSS, method, level="full", settings=effort)
    real = AuditResult({key: row for key, row in result.figures.items() if not result.helped(key)})
    single = [
        Observation((client,), 1, start, method.strategy.uploaded(start, report, 1))
        for client, report in zip(names, masked, strict=False)
    ]
    return {
        "method": name,
        "n": len(owners),
        "owners": names,
        "attacks": result.leak,
        "worst": result.worst,
        "real": real.worst,
        "floor": result.floors,
        "strangers": strangers(result, real, [one.train[0].query.values for one in everybody if one not in owners]),
        "masked": audit(single, tasks, LOSS, method).leak["worst"] if single else None,
        "seconds": time.perf_counter() - started,
    }


def strangers(result: AuditResult, real: AuditResult, others: list[torch.Tensor]) -> float:
    """What the real attacks would have recovered of as many people who were not in the sum, scored in the same way."""
    found: dict[int, float] = {}
    for name in real.figures:
        pictures = list(result.pictures[name].values())
        gains = [[psnr(picture, other) for other in others[: len(pictures)]] for picture in pictures]
        for row, column in zip(*linear_sum_assignment(gains, maximize=True), strict=True):
            found[int(column)] = max(found.get(int(column), 0.0), gains[row][column])
    return statistics.fmean(found.values())


def parts(name: str, clients: list[Client], quick: bool) -> list[list[Client]]:
    """The cohorts of one method: the same owners alone, in pairs and together, then the larger ones."""
    if quick or name == "surrogate":
        return [clients[:1], clients[:4]]
    small = [clients[i : i + n] for n in COUNTS if n <= SAME for i in range(0, SAME, n)]
    return small if name in DEAR else small + [clients[:n] for n in COUNTS if n > SAME]


def measure(clients: list[Client], out: Path, quick: bool) -> list[dict]:
    """All figures, one file for each sum."""
    rows = []
    for name in ("fedavg", "maml") if quick else METHODS:
        for owners in parts(name, clients, quick):
            path = out / f"{name}-{len(owners)}-{clients.index(owners[0])}.json"
            if not path.exists():
                write_json(path, attack(name, owners, clients, QUICK if quick else EFFORT))
                print(path.stem, file=sys.stderr, flush=True)
            rows.append(json.loads(path.read_text()))
    return rows


def means(rows: list[dict]) -> list[dict]:
    """One row for each method and n: over owners the mean and the most, by real attacks and by all."""
    found = []
    for name, n in dict.fromkeys((row["method"], row["n"]) for row in rows):
        own = [row for row in rows if (row["method"], row["n"]) == (name, n)]
        one = {"method": name, "n": n}
        for key in ("real", "worst"):
            values = [value for row in own for value in row[key].values()]
            one |= {key: statistics.fmean(values), f"{key}_most": max(values)}
        for floor in ("constant", "mean_of_others"):
            one[floor] = statistics.fmean(value for row in own for value in row["floor"][floor].values())
        one["strangers"] = statistics.fmean(row["strangers"] for row in own)
        masked = [row["masked"] for row in own if row["masked"] is not None]
        found.append(one | {"masked": statistics.fmean(masked) if masked else None})
    return found


def draw(averages: list[dict], path: Path) -> None:
    """The worst attack over n."""
    lines, names = [], list(dict.fromkeys(one["method"] for one in averages))
    for name in names:
        points = [(math.log2(one["n"]), one["worst"]) for one in averages if one["method"] == name]
        lines.append(Line(points, len(lines) + 1, name))
    floors = [one["constant"] for one in averages]
    title = "What a sum of n uploads reveals: the worst attack, mean over owners"
    save_chart(over_rounds(title, lines, DECIBELS, floors, "log2 n"), path)


def show(averages: list[dict]) -> None:
    """The table as Markdown."""
    print("| method | n | real attacks | most | all attacks | most | constant | mean of others | strangers | masked |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    columns = ("real", "real_most", "worst", "worst_most", "constant", "mean_of_others", "strangers", "masked")
    for one in averages:
        cells = ["–" if one[key] is None else f"{one[key]:.1f}" for key in columns]
        print(f"| {one['method']} | {one['n']} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures; the photographs of scikit-image by default")
    parser.add_argument("--out", type=Path, help="folder of the parts; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="two methods, two sums, 12 px: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out or Path(tempfile.mkdtemp(prefix="sums-"))
    out.mkdir(parents=True, exist_ok=True)
    size = 12 if options.quick else 32
    clients = list(Data(path=options.data, clients="file", size=size, held_out=0.0, unseen=0.0).load(0).clients)
    rows = measure(clients, out, options.quick)
    averages = means(rows)
    draw(averages, out / "sums.svg")
    if options.json:
        print(json.dumps({"rows": rows, "means": averages, "picture": str(out / "sums.svg")}))
        return
    show(averages)
    print(out / "sums.svg")


if __name__ == "__main__":
    main()
