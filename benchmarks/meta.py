"""Federated meta-learning on samples: what clients that never took part get after k steps on their own rows.

    python benchmarks/meta.py [omniglot | sinusoids | digits] [--seeds N] [--quick] [--json]

Seven methods with the same model and clients; inner and adaptation steps are the same size for all. "omniglot" needs
`omniglot_8alphabets.npz` below FEDFIELDS_DATA: 160 clients, each an alphabet as one person draws it, 5-way 1-shot
episodes within a client; support and query are different copies of the one drawing that there is of a character,
turned, moved and sized a little. "sinusoids" is MAML's regression. Training ends when validation clients no longer
gain; test clients are looked at once. One thread.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fedfields.config import preset
from fedfields.datasets import Samples, Sinusoids
from fedfields.models import ConvNet, Mlp
from fedfields.runtime.run import run

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


def omniglot(quick: bool) -> dict[str, Any]:
    """Experiment settings of the episodes on handwritten characters."""
    folder = Path(os.environ.get("FEDFIELDS_DATA", "../shared/data"))
    file = folder / "omniglot" / "omniglot_8alphabets.npz"
    if not file.exists():
        raise SystemExit(f"{file} does not exist; FEDFIELDS_DATA names the folder above omniglot/")
    data = Samples(file, inputs="image", target="label", client="alphabet,drawer", ways=5, shots=1, queries=3, copies=4)
    field = ConvNet(filters=8 if quick else 16)
    return {"data": data, "field": field}


def sinusoids(quick: bool) -> dict[str, Any]:
    """Experiment settings of MAML's regression."""
    return {"data": Sinusoids(clients=100 if quick else 1000), "field": Mlp(width=40, depth=2)}


def digits(quick: bool) -> dict[str, Any]:
    """Experiment settings of the digits split by class."""
    return {"data": Samples(), "field": Mlp(width=64, depth=2)}


TASKS = {"omniglot": omniglot, "sinusoids": sinusoids, "digits": digits}


def measured(method: str, task: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: the figure of test clients by step, and what it took."""
    experiment = preset(METHODS[method])
    changes = TASKS[task](quick) | {"seed": seed, "workers": 1}
    if quick:
        changes |= {"rounds": 10, "evaluate_every": 5}
    experiment = dataclasses.replace(experiment, **changes)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        summary = run(experiment, Path(folder) / "run")
    name, groups = next(iter(summary["scores"].items()))
    return {
        "method": method,
        "task": task,
        "figure": name,
        "seed": seed,
        "by_step": groups["unseen"],
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
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for task in options.tasks or TASKS:
        rows = [measured(m, task, seed, options.quick) for m in options.methods for seed in range(options.seeds)]
        table = {m: averaged([row for row in rows if row["method"] == m]) for m in options.methods}
        found[task] = {"rows": rows, "table": table}
        if not options.json:
            show(task, rows[0]["figure"], table, rows)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
