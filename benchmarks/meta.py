"""Federated meta-learning on samples: what clients that never took part get after k steps on their own rows.

    python benchmarks/meta.py [omniglot | sinusoids | digits] [--seeds N] [--quick] [--json]

Seven methods with the same model, clients and inner steps. "omniglot" needs
`omniglot_8alphabets.npz` below FEDFIELDS_DATA: 160 clients, each an alphabet as one person draws it, 5-way 1-shot
episodes within a client; support and query are different copies of the one drawing that there is of a character,
turned, moved and sized a little. "sinusoids" is MAML's regression. Training ends when validation clients no longer
gain; they also choose the size of each method's adaptation steps, by the loss after one (Meta-SGD has learned its own).
Test clients are looked at once. One thread.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedfields.config import Experiment, preset
from fedfields.datasets import Samples, Sinusoids
from fedfields.models import ConvNet, Mlp
from fedfields.objectives import HessianFree, Maml
from fedfields.runtime.checkpoint import load_weights
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import run
from fedfields.runtime.samples import scored, set_up_samples
from fedfields.strategies import FedOpt

METHODS = {
    "FedAvg + fine-tuning": "fedavg-tuned",
    "FedReptile": "fedreptile",
    "FedMeta FOMAML": "fedmeta-fomaml",
    "FedMeta MAML": "fedmeta-maml",
    "FedMeta Meta-SGD": "fedmeta-sgd",
    "Per-FedAvg FO": "per-fedavg",
    "Per-FedAvg HF": "per-fedavg-hf",
}
"""Rows of the table, and their presets. FedAvg without fine-tuning is the first row before adaptation (k=0)."""


class Problem(NamedTuple):
    """Data and model, and the sizes of steps that suit them.

    Attributes:
        data: whose rows.
        field: the model.
        inner: steps of the inner loop, and their size.
        local: size of a local step, where models travel.
        server: size of the server's Adam step, where meta-gradients travel.
        steps: rounds times outer steps in a visit, at most; so all methods take as many.
        adapted: steps of adaptation.
        rates: sizes of adaptation steps from which validation clients choose for each method.
    """

    data: Samples | Sinusoids
    field: Mlp | ConvNet
    inner: tuple[int, float]
    local: float
    server: float
    steps: int
    adapted: int
    rates: tuple[float, ...]


def omniglot(quick: bool) -> Problem:
    """Episodes on handwritten characters; normalised over the batch, as in MAML."""
    file = Path(os.environ.get("FEDFIELDS_DATA", "../shared/data")) / "omniglot" / "omniglot_8alphabets.npz"
    if not file.exists():
        raise SystemExit(f"{file} does not exist; FEDFIELDS_DATA names the folder above omniglot/")
    data = Samples(file, inputs="image", target="label", client="alphabet,drawer", ways=5, shots=1, queries=3, copies=4)
    if quick:
        data = dataclasses.replace(data, limit=20, episodes=1)
    field = ConvNet(filters=4 if quick else 16, norm="batch", groups=4)
    return Problem(data, field, (1, 0.4), 0.1, 1e-2, 400, 5, (0.05, 0.1, 0.2, 0.4, 0.8))


def sinusoids(quick: bool) -> Problem:
    """MAML's regression."""
    data = Sinusoids(clients=60 if quick else 1000)
    return Problem(data, Mlp(width=40, depth=2), (1, 0.01), 0.01, 1e-2, 1500, 10, (0.005, 0.01, 0.02, 0.05))


def digits(quick: bool) -> Problem:
    """Handwritten digits split by class."""
    return Problem(Samples(), Mlp(width=64, depth=2), (1, 0.1), 0.05, 3e-3, 300, 5, (0.02, 0.05, 0.1, 0.2, 0.4))


TASKS = {"omniglot": omniglot, "sinusoids": sinusoids, "digits": digits}


def experiment_of(method: str, problem: Problem, seed: int, quick: bool) -> Experiment:
    """The preset with the problem's data, model and sizes of steps."""
    base = preset(METHODS[method])
    steps, lr = problem.inner
    objective, local, strategy = base.objective, base.local, base.strategy
    if isinstance(objective, Maml | HessianFree):
        objective = dataclasses.replace(objective, inner=dataclasses.replace(objective.inner, steps=steps, lr=lr))
    if isinstance(strategy, FedOpt):
        strategy = dataclasses.replace(strategy, lr=problem.server)
    else:
        local = dataclasses.replace(local, lr=problem.local, steps=local.steps // 2)
    rounds = (8 if quick else problem.steps) // local.steps
    changes: dict[str, Any] = {
        "data": problem.data,
        "field": problem.field,
        "objective": objective,
        "local": local,
        "strategy": strategy,
        "adaptation": dataclasses.replace(base.adaptation, steps=1, lr=lr),
        "rounds": rounds,
        "cohort": 4 if quick else 16,
        "evaluate_every": max(1, rounds // 20),
        "seed": seed,
        "workers": 1,
    }
    return dataclasses.replace(base, **changes)


def measured(method: str, task: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: the figure of test clients by step, at the size of step that suits validation clients, and its cost."""
    problem, started = TASKS[task](options.quick), time.process_time()
    problem = problem._replace(steps=options.steps or problem.steps)
    experiment = experiment_of(method, problem, seed, options.quick)
    # Test clients are left out of the run, which would judge them at the run's own size of step.
    sealed = dataclasses.replace(experiment, data=dataclasses.replace(problem.data, sealed=True))
    with tempfile.TemporaryDirectory() as folder:
        summary = run(sealed, Path(folder) / "run")
        params = load_weights(Path(folder) / "run" / "model.safetensors")
    setup = set_up_samples(experiment)
    with Pool(setup.context, 1) as pool:
        tried = {}
        for lr in problem.rates:
            few = dataclasses.replace(experiment.adaptation, lr=lr)
            scores = scored(pool, params, {"validation": setup.federation.validation}, few, seed)
            tried[lr] = (scores.get("loss") or scores["error"])["validation"]["1"]
        best = min(tried, key=lambda lr: tried[lr] if math.isfinite(tried[lr]) else math.inf)
        settings = dataclasses.replace(experiment.adaptation, steps=problem.adapted, lr=best)
        name, groups = next(iter(scored(pool, params, {"unseen": setup.federation.unseen}, settings, seed).items()))
    return {
        "method": method,
        "task": task,
        "figure": name,
        "seed": seed,
        "by_step": groups["unseen"],
        "rate": best,
        "rounds": summary["rounds"],
        "kept": summary["best_round"],
        "bytes_up": summary["bytes_up"],
        "seconds": time.process_time() - started,
    }


def averaged(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Means over seeds by adaptation step, and half of the range."""
    steps = rows[0]["by_step"]
    values = {step: [row["by_step"][step] for row in rows] for step in steps}
    return {step: [statistics.fmean(found), (max(found) - min(found)) / 2] for step, found in values.items()}


def show(task: str, figure: str, table: dict[str, dict[str, list[float]]], rows: list[dict[str, Any]]) -> None:
    steps = list(next(iter(table.values())))
    print(f"\n{task}: {figure} of test clients after k steps")
    print(f"{'':22}" + "".join(f"{'k=' + step:>16}" for step in steps) + f"{'rounds':>9}{'MB up':>8}{'s':>7}")
    for method, curve in table.items():
        mine = [row for row in rows if row["method"] == method]
        cells = "".join(f"{mean:10.3f} ±{half:.3f}" for mean, half in curve.values())
        cost = (statistics.fmean(row[name] for row in mine) for name in ("kept", "bytes_up", "seconds"))
        kept, sent, seconds = cost
        print(f"{method:22}{cells}{kept:9.0f}{sent / 1e6:8.1f}{seconds:7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="all by default")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, each with a seed of its own")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), help="some rows only")
    parser.add_argument("--steps", type=int, default=0, help="outer steps; those of the problem by default")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for task in options.tasks or TASKS:
        rows = [measured(m, task, seed, options) for m in options.methods for seed in range(options.seeds)]
        table = {m: averaged([row for row in rows if row["method"] == m]) for m in options.methods}
        found[task] = {"rows": rows, "table": table}
        if not options.json:
            show(task, rows[0]["figure"], table, rows)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
