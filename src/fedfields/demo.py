"""A few minutes that show the whole thing: real photographs, four methods, a table and a report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from fedfields.config import Experiment, preset
from fedfields.scenes.data import Data

METHODS = ("local", "maml", "fedmenf", "surrogate")


def experiment_of(name: str, seed: int) -> Experiment:
    """A preset at the size of the demonstration."""
    base = preset(name)
    return dataclasses.replace(
        base,
        data=Data(size=48),
        rounds=60 if base.rounds else 0,
        evaluate_every=30,
        adaptation=dataclasses.replace(base.adaptation, steps=64),
        seed=seed,
    )


def demo(out: Path, seed: int) -> int:
    """Runs the methods one after another, prints the table, writes one report over all of them."""
    from fedfields.report import write_report
    from fedfields.runtime.run import Interrupted, run
    from fedfields.terminal import console, progress, show_summary, warn

    console.print("Every photograph that scikit-image ships is one client; some clients are never seen in training.")
    summaries = {}
    for name in METHODS:
        experiment, folder = experiment_of(name, seed), out / name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with progress(name, experiment.rounds) as (on_round, _):
                summaries[name] = run(experiment, folder, name=name, on_round=on_round, warn=warn)
        except Interrupted as stop:
            console.print(str(stop))
            return 130
    show_summary(summaries)
    page = write_report([out / name for name in METHODS], out / "report.html")
    console.print(f"open this page: {page}", soft_wrap=True)
    return 0
