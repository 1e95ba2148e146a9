"""A search for settings: every trial is a run that validation clients judge, and from which test clients are left out.

What a trial tries is a pure function of the seed, its number and the trials before it (`_proposed`): a search that goes
on after a crash tries what an unbroken one would have tried, to the bit, and nothing of Optuna's is kept on disk. Its
record is ``trials.jsonl``, a line for each trial that is over.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedfields.config import Experiment, to_json
from fedfields.errors import UserError
from fedfields.flags import setting
from fedfields.runtime.inprocess import AllFailed
from fedfields.runtime.run import STOPPED, Interrupted, load_experiment, rounds_of, run
from fedfields.runtime.samples import deciding
from fedfields.runtime.space import Searched, applied, read_space, with_following
from fedfields.runtime.trials import RECORD, Trial, best_of, line_of, read_trial
from fedfields.seeds import seed_of
from fedfields.store import MAX_LINES, append_line, discard, read_file, read_json, write_json, write_text

STARTUP = 5
"""Completed trials before any is pruned."""


@dataclass(frozen=True)
class Search:
    """What is searched: the same from its first trial to its last."""

    experiment: Experiment
    """The settings as they stand; trial 0 has them, where they lie within the ranges."""

    space: tuple[Searched, ...]
    """What is tried."""

    name: str
    """Of the preset."""

    parts: tuple[str, ...] = ()
    """Chosen beside it, as axis:name."""

    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What was said of single settings, by whole names."""

    prune: bool = True
    """Stop trials whose best figure so far is worse than the median of the others at that round."""

    trials: int = 20
    """In all."""

    def __post_init__(self) -> None:
        if not hasattr(self.experiment.data, "sealed"):
            raise UserError("tuning needs validation clients, which runs on samples have; choose such a preset or data")
        if not self.experiment.rounds:
            raise UserError("rounds is 0: without training there is nothing to tune")
        if self.trials < 1:
            raise UserError(f"trials is {self.trials}; a search has at least one")

    def sealed(self, values: Mapping[str, str]) -> Experiment:
        """The experiment of a trial: without test clients."""
        found = applied(self.experiment, with_following(self.experiment, values))
        return dataclasses.replace(found, data=dataclasses.replace(found.data, sealed=True))


def start(search: Search, folder: Path) -> None:
    """Writes what is searched to a new folder.

    Raises:
        UserError: the folder is taken or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another --out, or go on with its search with --resume")
    record = {
        "preset": search.name,
        "name": folder.name,
        "version": version("fedfields"),
        "seed": search.experiment.seed,
        "experiment": to_json(search.experiment),
        "search": {
            "space": {one.name: one.text for one in search.space},
            "parts": list(search.parts),
            "settings": dict(search.settings),
            "prune": search.prune,
            "trials": search.trials,
        },
    }
    write_json(folder / "experiment.json", record)


def load_search(folder: Path) -> Search:
    """What is searched in a folder.

    Raises:
        UserError: it is no search, or a damaged one.
    """
    record = read_json(folder / "experiment.json")
    found = record.get("search") if isinstance(record, dict) else None
    if found is None:
        raise UserError(f"{folder} is no search that could be resumed; fedfields tune starts one")
    experiment = load_experiment(folder)
    try:
        space = read_space((f"{name}={text}" for name, text in found["space"].items()), experiment)
        parts, settings = tuple(map(str, found["parts"])), {str(k): str(v) for k, v in found["settings"].items()}
        return Search(
            experiment, space, str(record["preset"]), parts, settings, bool(found["prune"]), int(found["trials"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'experiment.json'} does not hold a search; the file is damaged") from error


def tune(
    search: Search,
    folder: Path,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Trial]:
    """Goes on with the search in ``folder`` until it has all its trials; the best so far is in ``best.toml``.

    Args:
        search: what is searched, as `start` wrote it.
        folder: of the search; trials are runs in ``trials/0000`` and so on.
        on_trial: called with each trial that is over.
        advance: told how far the present trial is.

    Returns:
        All trials.

    Raises:
        UserError: Optuna is not there, or no trial can be run.
        Interrupted: Ctrl-C; the search can be resumed.
    """
    done = _read(folder / RECORD, search.space)
    for number in range(len(done), search.trials):
        proposed = _proposed(search, done, number)
        values = {one.name: one.spelled(proposed.params[one.name]) for one in search.space}
        try:
            trial = _try(search, folder, number, values, proposed, advance)
        except Interrupted as stop:
            where = f"trial {number} of {search.trials}"
            raise Interrupted(f"interrupted in {where}; go on with: fedfields tune --resume --out {folder}") from stop
        done.append(trial)
        if best_of(done) is trial:  # Before the line about it: a search that is killed in between comes here again.
            write_text(folder / "best.toml", _as_toml(search, trial))
        append_line(folder / RECORD, line_of(trial))
        on_trial(trial)
    return done


def _as_toml(search: Search, trial: Trial) -> str:
    """An experiment's file for ``fedfields run``, test clients included."""
    settings = {**search.settings, **with_following(search.experiment, trial.values)}
    return "\n".join(
        [
            f"# Trial {trial.number} of a search on validation clients, where it came to {trial.value:.6g}.",
            "# Test clients were left out of it: fedfields run judges by them once.",
            f"preset = {json.dumps(search.name)}",
            f"parts = {json.dumps(search.parts)}",
            *(f"{name} = {_toml(value)}" for name, value in settings.items()),
            "",
        ]
    )


def _toml(text: str) -> str:
    """A setting's text as a TOML value: numbers and switches as such, else a string."""
    number = re.fullmatch(r"[+-]?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?", text)
    return text if number or text in ("true", "false") else json.dumps(text)


# A trial.


class _Behind(Exception):
    """The trial is worse than the median of the others; the text says when."""


class _Follower:
    """Follows a trial's run: what its validation clients say, and whether it should go on."""

    def __init__(self, proposed: Any, rounds: int, advance: Callable[[int], None]) -> None:
        self.curve: dict[int, float] = {}
        self._proposed, self._rounds, self._advance = proposed, rounds, advance

    def look(self, record: dict, _: int = 0) -> None:
        """Told of each round, also of those that a killed search had run before."""
        number = record["round"]
        self._advance(number)
        if "scores" not in record or number in self.curve:
            return
        if not any("validation" in groups for groups in record["scores"].values()):
            raise UserError("tuning needs validation clients; keep some back with --data.validation")
        value = deciding(record)
        if value is None or not math.isfinite(value):
            self.curve[number] = math.inf
            return
        self.curve[number] = value
        self._proposed.report(value, number)
        if number < self._rounds and self._proposed.should_prune():
            raise _Behind(f"after {number} rounds worse than the median of the trials before")

    @property
    def best(self) -> float | None:
        """The best figure so far."""
        value = min(self.curve.values(), default=math.inf)
        return value if math.isfinite(value) else None


def _try(search: Search, folder: Path, number: int, values: dict[str, str], proposed: Any, advance: Any) -> Trial:
    """Runs a trial, or goes on with the run of a search that was killed in it."""
    experiment, where = search.sealed(values), folder / "trials" / f"{number:04d}"
    resume = (where / "experiment.json").exists() and load_experiment(where) == experiment
    if not resume:
        discard(where)
    follower = _Follower(proposed, experiment.rounds, lambda at: advance(f"trial {number}", at, experiment.rounds))
    state, reason = "complete", ""
    try:
        for record in rounds_of(where) if resume else ():
            follower.look(record)
        summary = run(experiment, where, name=search.name, resume=resume, on_round=follower.look)
        reason = next((line for line in summary["warnings"] if line.startswith(STOPPED)), "")
        if follower.best is None:
            reason = reason or "no figure of the validation clients was a number"
        state = "failed" if reason else "complete"
    except _Behind as stop:
        state, reason = "pruned", str(stop)
    except AllFailed as failure:
        if not failure.diverged:
            raise
        state, reason = "failed", str(failure)
    rounds = rounds_of(where)
    seconds, value = sum(record["seconds"] for record in rounds), None if state == "failed" else follower.best
    return Trial(number, state, value, values, follower.curve, len(rounds), seconds, reason)


# Optuna.


def _proposed(search: Search, done: Sequence[Trial], number: int) -> Any:
    """Optuna's proposal for a trial: a sampler of its own, seeded by its number, that sees those before it."""
    try:
        import optuna
    except ImportError as error:
        raise UserError('fedfields tune needs Optuna: pip install "fedfields[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = seed_of(search.experiment.seed, "trial", number) % 2**32
    warm_up = search.experiment.rounds // 4
    pruner = optuna.pruners.MedianPruner(STARTUP, warm_up) if search.prune else optuna.pruners.NopPruner()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    ranges = {one.name: _distribution(one) for one in search.space}
    for trial in done:
        study.add_trial(_as_optuna(trial, search.space, ranges))
    standing = {one.name: _standing(search.experiment, one) for one in search.space}
    if number == 0 and all(one.holds(standing[one.name]) for one in search.space):
        study.enqueue_trial({one.name: _value(one, standing[one.name]) for one in search.space})
    return study.ask(ranges)


def _distribution(one: Searched) -> Any:
    """Where Optuna looks for values of a setting."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.logarithmic)
    return FloatDistribution(one.low, one.high, log=one.logarithmic)


def _value(one: Searched, text: str) -> float | int | str:
    """A value as Optuna has it."""
    return text if one.choices else int(text) if one.whole else float(text)


def _standing(experiment: Experiment, one: Searched) -> str:
    """The value that a setting has without a search."""
    value, _ = setting(experiment, one.name)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_optuna(trial: Trial, space: Sequence[Searched], ranges: Mapping[str, Any]) -> Any:
    """A trial for Optuna, which passes over failed ones: to its sampler these are pruned before they said anything."""
    import optuna

    complete = trial.state == "complete"
    return optuna.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=trial.value if complete else None,
        params={one.name: _value(one, trial.values[one.name]) for one in space},
        distributions=dict(ranges),
        intermediate_values={} if trial.state == "failed" else trial.curve,
    )


# The record.


def _read(path: Path, space: Sequence[Searched]) -> list[Trial]:
    """The trials on disk, up to the first that is not there whole; what comes after it is taken away.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = read_file(path, MAX_LINES).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); start the search anew") from error
    trials: list[Trial] = []
    for text in lines:
        trial = read_trial(text)
        if trial is None or trial.number != len(trials) or not _of(trial, space):
            break
        trials.append(trial)
    write_text(path, "".join(f"{text}\n" for text in lines[: len(trials)]))
    return trials


def _of(trial: Trial, space: Sequence[Searched]) -> bool:
    """Whether a trial belongs to this search."""
    names = {one.name for one in space}
    return trial.values.keys() == names and all(one.holds(trial.values[one.name]) for one in space)
