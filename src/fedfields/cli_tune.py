"""``fedfields tune``: a search for settings on validation clients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfields.cli import Output, experiment_of, words_and_flags
from fedfields.errors import UserError
from fedfields.flags import parse_some, spelled_out

if TYPE_CHECKING:
    from fedfields.runtime.tune import Search

ABOUT = """Search for settings with which validation clients do best after adaptation (by Optuna). Test clients are left
out of the data; afterwards fedfields run DIR/best.toml judges the best settings by them, once.
--search "inner.lr=0.01..1 inner.steps=1,3,5" says what is tried: ranges (logarithmic where they are above 0) or lists;
without it inner rate, number of inner steps and outer rate, around those of the experiment. --trials N (20) says how
often, --no-prune that every trial runs to its end, --out DIR and --no-report where the result goes.
--resume --out DIR goes on after Ctrl-C or a crash as if nothing had been. The settings are those of fedfields run:"""


@dataclass(frozen=True)
class TuneFlags(Output):
    """How long is searched, and where the result goes."""

    trials: int | None = None
    """Trials in all: 20, or with --resume as many as were asked for."""

    search: str = ""
    """What is tried; may be said more than once."""

    prune: bool = True
    """Stop trials that are worse than the median of those before."""


def main(arguments: list[str]) -> int:
    """Runs or resumes a search; returns the exit status."""
    arguments = _one_search(arguments)
    flags, experiment, name = experiment_of(arguments, TuneFlags(), "tune", ABOUT)

    from fedfields.runtime.run import Interrupted, default_folder
    from fedfields.runtime.tune import start, tune
    from fedfields.terminal import console, errors, show_search, steps_progress, trial_line

    folder = flags.out or default_folder(f"{name}-tuned")
    search = _resumed(flags, folder, experiment) if flags.resume else _described(arguments, flags, experiment, name)
    if not flags.resume:
        start(search, folder)
    try:
        with steps_progress(f"tune {name}") as advance:
            trials = tune(search, folder, lambda trial: errors.print(trial_line(trial), soft_wrap=True), advance)
    except Interrupted as stop:
        errors.print(f"fedfields: {stop}", soft_wrap=True, markup=False)
        return 130
    show_search(trials, folder)
    if flags.report:
        from fedfields.report import write_report

        console.print(f"report: {write_report([folder], folder / 'report.html')}", soft_wrap=True)
    return 0


def _one_search(arguments: list[str]) -> list[str]:
    """The arguments with one --search for all that were given: of a flag that is said twice, the last one counts."""
    rest, specs, waiting = [], [], False
    for argument in arguments:
        if waiting or argument.startswith("--search="):
            specs.append(argument.removeprefix("--search="))
            waiting = False
        elif argument == "--search":
            waiting = True
        else:
            rest.append(argument)
    if waiting:
        raise UserError("--search needs a value, such as --search inner.lr=0.01..1")
    return [*rest, f"--search={' '.join(specs)}"] if specs else rest


def _resumed(flags: TuneFlags, folder: Path, experiment: Any) -> Search:
    from fedfields.runtime.tune import load_search

    search = load_search(folder)
    if flags.search or experiment != search.experiment:
        raise UserError(f"{folder} was started with other settings; resume it without any but --trials")
    return dataclasses.replace(search, trials=search.trials if flags.trials is None else flags.trials)


def _described(arguments: list[str], flags: TuneFlags, experiment: Any, name: str) -> Search:
    from fedfields.runtime.space import default_space, read_space
    from fedfields.runtime.tune import Search

    words, said, _ = words_and_flags(arguments)
    _, said = parse_some(TuneFlags, TuneFlags(), said)
    return Search(
        experiment,
        read_space([flags.search] if flags.search else default_space(experiment), experiment),
        name,
        tuple(word for word in words if ":" in word),
        spelled_out(experiment, said),
        flags.prune,
        20 if flags.trials is None else flags.trials,
    )
