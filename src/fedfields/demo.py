"""A few minutes that show the whole thing: a place with people in front of it, or photographs and four methods."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from fedfields.config import Experiment, preset
from fedfields.scenes.data import Data

METHODS = ("local", "maml", "fedmenf", "surrogate")


def place(seed: int) -> dict[str, Experiment]:
    """Visitors of the monument: DecentNeRF, and FedNeRF with as many steps on the same photographs.

    What FedNeRF has not: secure sums, learned weights, and a field of each owner's own.
    """
    found = {"decentnerf": preset("decentnerf"), "fednerf": preset("fednerf-ngp")}
    return {name: _short(one, seed) for name, one in found.items()}


def _short(base: Experiment, seed: int) -> Experiment:
    """A preset of places with eight owners of ten photographs each: as many photographs in half of the time."""
    data = dataclasses.replace(base.data, users=8, views=10)  # pyright: ignore[reportCallIssue]
    return dataclasses.replace(base, data=data, cohort=8, evaluate_every=20, seed=seed)


def images(seed: int) -> dict[str, Experiment]:
    """Every photograph that scikit-image ships is one client; some clients are never seen in training."""
    return {name: _small(preset(name), seed) for name in METHODS}


def _small(base: Experiment, seed: int) -> Experiment:
    """A preset of pictures at the size of the demonstration."""
    return dataclasses.replace(
        base,
        data=Data(size=48),
        rounds=60 if base.rounds else 0,
        evaluate_every=30,
        adaptation=dataclasses.replace(base.adaptation, steps=64),
        seed=seed,
    )


def demo(experiments: Mapping[str, Experiment], out: Path) -> int:
    """Runs experiments one after another, prints the table, writes one report over all of them."""
    from fedfields.report import write_report
    from fedfields.runtime.run import Interrupted, run
    from fedfields.terminal import console, progress, show_summary, warn

    summaries = {}
    for name, experiment in experiments.items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with progress(name, experiment.rounds) as (on_round, _):
                summaries[name] = run(experiment, folder, name=name, on_round=on_round, warn=warn)
        except Interrupted as stop:
            console.print(str(stop))
            return 130
    show_summary(summaries)
    page = write_report([out / name for name in experiments], out / "report.html")
    console.print(f"open this page: {page}", soft_wrap=True)
    return 0
