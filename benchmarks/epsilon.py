"""Differential privacy against reconstruction: does a smaller epsilon go with worse pictures in the attacker's hands?

    python benchmarks/epsilon.py --data DIR --out DIR [--seeds N] [--quick] [--json]

The correlation experiment of FedMeNF. Every client adds Gaussian noise to its report, which is clipped to the median
norm of an update without noise; the noise is as wide as epsilon asks for the owner who takes part most often. Two
methods, meta-NSGD and FedMeNF, each at epsilons from 1 to infinity, are judged by PSNR_p and by the worst quick attack
on their last uploads, and by what unseen owners get. Spearman's rho says how well the order of epsilon is kept. Runs
lie under --out (a finished one is kept), with a picture in epsilon.svg.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

from dp_accounting import get_sigma_gaussian
from scipy.stats import spearmanr

from fedfields.config import Experiment, preset
from fedfields.federation import sample_cohort
from fedfields.privacy import Noise
from fedfields.report.figures import DECIBELS, Line, over_rounds, save_chart
from fedfields.runtime.run import clean, run
from fedfields.scenes.data import Data
from fedfields.seeds import generator

EPSILONS = (1.0, 4.0, 16.0, 64.0, 256.0, math.inf)
METHODS = ("meta-nsgd", "fedmenf")
FIGURES = {"psnr_p": "PSNR_p", "worst": "worst attack", "psnr": "unseen owners"}
NO_NOISE = 10
"""Where infinity lies on the axis of log2 epsilon."""


def base(name: str, data: Data, quick: bool, seed: int) -> Experiment:
    """The preset at the size of this benchmark, without protection."""
    ready = preset(name)
    rounds = 4 if quick else 30
    adaptation = dataclasses.replace(ready.adaptation, steps=8)
    return dataclasses.replace(
        ready,
        data=data,
        privacy=(),
        rounds=rounds,
        cohort=8,
        evaluate_every=rounds,
        checkpoint_every=rounds,
        adaptation=adaptation,
        seed=seed,
        workers=1,
    )


def finished(experiment: Experiment, name: str, folder: Path) -> dict:
    """The summary of the run in the folder, which is run first, or to its end, if need be."""
    if not (folder / "summary.json").exists():
        run(experiment, folder, name=name, resume=(folder / "experiment.json").exists())
    print(f"{folder.name}: done", file=sys.stderr, flush=True)
    return json.loads((folder / "summary.json").read_text())


def median_norm(folder: Path) -> float:
    """Of the updates of a run, over its rounds."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return statistics.median(record["update_norm"] for record in records)


def multiplier(epsilon: float, experiment: Experiment, clients: int) -> float:
    """Noise multiplier that gives this epsilon to the owner who takes part most often (data exchanged: 2 C)."""
    if math.isinf(epsilon):
        return 0.0
    taken = [0] * clients
    for number in range(1, experiment.rounds + 1):
        for i in sample_cohort(clients, experiment.cohort, source=generator(experiment.seed, "cohort", number)):
            taken[i] += 1
    return 2 * max(taken) ** 0.5 * get_sigma_gaussian(epsilon, min(0.1, clients**-1.1))


def row(name: str, epsilon: float, chosen: Experiment, summary: dict) -> dict:
    """The figures of one run."""
    (noise,) = chosen.privacy
    return {
        "method": name,
        "epsilon": epsilon,
        "seed": chosen.seed,
        "multiplier": noise.multiplier,
        "clip": noise.clip,
        "accounted": (summary["privacy"] or {}).get("epsilon"),
        "psnr_p": summary["psnr_p"],
        "worst": summary["leak"]["worst"],
        "floor": summary["floor"]["constant"],
        "psnr": summary["psnr"]["unseen"]["8"],
    }


def rows_of(name: str, seed: int, data: Data, out: Path, quick: bool) -> list[dict]:
    """All epsilons of one method with one seed."""
    plain, found = base(name, data, quick, seed), []
    clients = finished(plain, name, out / f"{name}-plain-{seed}")["clients"]["train"]
    clip = median_norm(out / f"{name}-plain-{seed}")
    for epsilon in EPSILONS[::3] + EPSILONS[-1:] if quick else EPSILONS:
        noise = Noise(clip, multiplier=multiplier(epsilon, plain, clients))
        chosen = dataclasses.replace(plain, privacy=(noise,))
        summary = finished(chosen, name, out / f"{name}-{epsilon:g}-{seed}")
        found.append(row(name, epsilon, chosen, summary))
    return found


def correlations(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Spearman's rho of epsilon with each figure, by method, over all runs."""
    found = {}
    for name in METHODS:
        own = [one for one in rows if one["method"] == name]
        order = [one["epsilon"] for one in own]
        found[name] = {figure: float(spearmanr(order, [one[figure] for one in own])[0]) for figure in FIGURES}
    return found


def means(rows: list[dict]) -> list[dict]:
    """Each method at each epsilon, over seeds."""
    found = []
    for name in METHODS:
        for epsilon in sorted({one["epsilon"] for one in rows}):
            own = [one for one in rows if (one["method"], one["epsilon"]) == (name, epsilon)]
            figures = {key: statistics.fmean(one[key] for one in own) for key in (*FIGURES, "floor", "multiplier")}
            found.append({"method": name, "epsilon": epsilon} | figures)
    return found


def draw(averages: list[dict], path: Path) -> None:
    """PSNR_p and the worst attack over log2 epsilon."""
    lines, floors = [], [one["floor"] for one in averages]
    for name in METHODS:
        for figure, short in (("psnr_p", "PSNR_p"), ("worst", "attack")):
            own = [one for one in averages if one["method"] == name]
            points = [(min(NO_NOISE, math.log2(one["epsilon"])), one[figure]) for one in own]
            lines.append(Line(points, len(lines) + 1, f"{name} {short}"))
    below = f"log2 epsilon ({NO_NOISE}: no noise)"
    save_chart(over_rounds("What one upload reveals by epsilon", lines, DECIBELS, floors, below), path)


def show(averages: list[dict], rhos: dict) -> None:
    """The table as Markdown."""
    print("| method | epsilon | z | PSNR_p | worst quick attack | floor | unseen, 8 steps |")
    print("|---|---|---|---|---|---|---|")
    for one in averages:
        cells = [f"{one[key]:.1f}" for key in ("psnr_p", "worst", "floor", "psnr")]
        print(f"| {one['method']} | {one['epsilon']:g} | {one['multiplier']:.2f} | {' | '.join(cells)} |")
    for name, found in rhos.items():
        print(f"{name}: Spearman's rho " + ", ".join(f"{FIGURES[key]} {value:+.2f}" for key, value in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures; the photographs of scikit-image by default")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="three epsilons, four rounds, one seed: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="epsilon-"))
    data = Data(path=options.data, clients="file", size=12 if options.quick else 24, unseen=0.2)
    seeds = range(1 if options.quick else options.seeds)
    rows = [one for seed in seeds for name in METHODS for one in rows_of(name, seed, data, out, options.quick)]
    averages, rhos = means(rows), correlations(rows)
    draw(averages, out / "epsilon.svg")
    if options.json:
        found = {"rows": rows, "means": averages, "spearman": rhos, "picture": str(out / "epsilon.svg")}
        print(json.dumps(clean(found)))
        return
    show(averages, rhos)
    print(out / "epsilon.svg")


if __name__ == "__main__":
    main()
