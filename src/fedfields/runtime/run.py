"""A run on disk: from an experiment to weights, figures and pictures; interruptible and resumable."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fedfields import tree
from fedfields.config import Experiment, from_json, to_json
from fedfields.datasets import SampleData, SampleFederation
from fedfields.errors import UserError
from fedfields.federation import expected, start_server
from fedfields.privacy.accounting import Accountant
from fedfields.privacy.dp import private_size
from fedfields.runtime.checkpoint import Checkpoint, Uploads, load, load_weights, save, save_weights
from fedfields.runtime.cost import Configured, flops
from fedfields.runtime.inprocess import AllFailed, Carrier, Here, Round, run_rounds
from fedfields.runtime.places import PlaceSetup, set_up_place
from fedfields.runtime.pool import Pool, one_thread
from fedfields.runtime.samples import SampleSetup, deciding, set_up_samples
from fedfields.runtime.tasks import TaskSetup, set_up_tasks
from fedfields.scenes.data import Federation
from fedfields.scenes.monument import PlaceData
from fedfields.scenes.scene import Place
from fedfields.store import (
    MAX_LINES,
    append_line,
    cannot_write,
    is_unfinished,
    parse_json,
    read_file,
    read_json,
    sweep,
    write_json,
    write_text,
)
from fedfields.types import Advance, Params

BLOW_UP = 4.0
"""How many times the first loss before adaptation counts as divergence."""

STOPPED = "stopped early"
"""How the warning of a run begins that diverged for all of its clients."""

WRITTEN = ("", "checkpoints", "images", "observations")
"""Where in its folder a run writes."""


class Interrupted(Exception):
    """Ctrl-C: everything up to the last whole round is on disk. The text says how to go on."""


class Setup(Configured, Protocol):
    """What a run is made of, rebuilt from its experiment alone."""

    @property
    def federation(self) -> Federation | Place | SampleFederation: ...
    @property
    def shared(self) -> Params: ...
    def begin(self, folder: Path, advance: Advance) -> Setup: ...
    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict: ...
    def remember(self, uploads: Uploads, step: Round) -> Uploads: ...
    def observe(self, folder: Path, current: Checkpoint) -> None: ...
    def draw(self, folder: Path, current: Checkpoint) -> None: ...


class Elsewhere(Protocol):
    """A run whose clients are on other machines."""

    def set_up(self, experiment: Experiment) -> Setup: ...
    def carrier(self, setup: Any, folder: Path) -> AbstractContextManager[Carrier]: ...


def set_up(experiment: Experiment) -> TaskSetup | PlaceSetup | SampleSetup:
    """Reads the data and draws the initial weights."""
    if isinstance(experiment.data, SampleData):
        return set_up_samples(experiment)
    if experiment.patience:
        raise UserError("patience needs validation clients, which runs on samples have; leave it out")
    if isinstance(experiment.data, PlaceData):
        return set_up_place(experiment)
    return set_up_tasks(experiment)


def set_up_run(folder: Path) -> TaskSetup:
    """The parts of a run on tasks, for what needs tasks.

    Raises:
        UserError: no such run, or it is one on a place.
    """
    experiment = load_experiment(folder)
    if isinstance(experiment.data, PlaceData | SampleData):
        what = "samples" if isinstance(experiment.data, SampleData) else "a place"
        raise UserError(f"{folder} is a run on {what}; this command is for runs on pictures, clips or objects")
    return set_up_tasks(experiment)


def load_experiment(folder: Path) -> Experiment:
    """The experiment of a run on disk."""
    record = read_json(folder / "experiment.json")
    found = from_json(record.get("experiment") if isinstance(record, dict) else None)
    if not isinstance(found, Experiment):
        raise UserError(f"{folder / 'experiment.json'} does not hold an experiment; the file is damaged")
    return found


def rounds_of(folder: Path) -> list[dict]:
    """The records of a run's rounds so far, up to the first that is not there whole."""
    log = _Log(folder / "metrics.jsonl")
    log.read(lambda line: None)
    return log.records


def run(
    experiment: Experiment,
    folder: Path,
    *,
    name: str = "",
    resume: bool = False,
    on_round: Callable[[dict, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
    advance: Advance = lambda what, done, total: None,
    elsewhere: Elsewhere | None = None,
) -> dict:
    """Trains, evaluates and writes the run's folder (all but the report).

    Args:
        experiment: what to run.
        folder: where; must be empty or absent unless ``resume``.
        name: of the preset, for the records.
        resume: go on from the newest checkpoint; the result equals that of an unbroken run to the bit.
        on_round: called with each round's record and the number of rounds.
        warn: called with lines that the user should read.
        advance: called with (what, done, total) before the first round, while the weights to start from are made.
        elsewhere: the owners of a real run; without any this is a simulation.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: the data, the folder or the experiment is no good.
        Interrupted: Ctrl-C.
    """
    warn = warn or (lambda line: None)
    _check_folder(folder, resume)
    for place in WRITTEN:
        sweep(folder / place)
    if resume:
        _check_same_start(experiment, folder)
    setup = set_up(experiment) if elsewhere is None else elsewhere.set_up(experiment)
    _write_record(experiment, folder, name, served=elsewhere is not None)
    for note in setup.federation.notes:
        warn(note)
    try:
        setup = setup.begin(folder, advance)
    except KeyboardInterrupt:
        raise _interrupted("before the first round", folder) from None
    start = Checkpoint(start_server(experiment.method.strategy, setup.params), {}, Uploads({}, {}))
    log = _Log(folder / "metrics.jsonl")
    if resume:
        start = load(folder / "checkpoints", log.read(warn), warn) or start
        _check_same_model(start, setup, folder)
        log.rewind(start.state.round)
    visits = (experiment.rounds - start.state.round) * min(experiment.cohort, len(setup.context.clients))
    with Pool(setup.context, experiment.workers, ahead=visits) as pool:
        with _carrier(setup, folder, pool, elsewhere) as carrier:
            current = _train(setup, folder, start, log, pool, carrier, on_round, warn)
            carrier.finish(setup.whole(current.state.params), name)
        return _finish(setup, folder, name, current, log, pool)


def _train(
    setup: Setup,
    folder: Path,
    current: Checkpoint,
    log: _Log,
    pool: Pool,
    carrier: Carrier,
    on_round: Callable[[dict, int], None] | None,
    warn: Callable[[str], None],
) -> Checkpoint:
    """All rounds, with evaluations and checkpoints on the way."""
    experiment, accountant = setup.experiment, _accountant(setup)
    watch, best = _Watch(warn, log.records), _Best(experiment.patience, folder, log.records)
    if best.exhausted:
        return current
    try:
        spent = sum(record["seconds"] for record in log.records)
        rounds = run_rounds(setup.context, setup.settings, current.state, current.memories, carrier, spent)
        for step in rounds:
            current = Checkpoint(step.state, step.memories, setup.remember(current.uploads, step))
            number, record = step.state.round, step.record
            spent += record["seconds"]
            if number == 1:  # What is shared for good is sent to everybody, not only to the first cohort.
                record["bytes_down"] += tree.nbytes([setup.shared]) * len(setup.context.clients)
            progress = setup.settings.progress(number, spent)
            last = progress >= 1
            if number == 1 or last or number % experiment.evaluate_every == 0:
                record |= setup.judge(current, pool, final=last and not experiment.patience)
                best.look(record, current.state.params)
                last = last or best.exhausted
                setup.observe(folder, current)
            if accountant:
                record["epsilon"] = accountant.epsilon([*log.cohorts, record["cohort"]])
            watch.look(record)
            log.append(record)
            if last or number % experiment.checkpoint_every == 0:
                save(folder / "checkpoints", current)
            if on_round:
                on_round(record, max(number, round(number / progress)))
            if best.exhausted:
                break
    except AllFailed as failure:
        if not failure.diverged or not log.records:
            raise
        log.records[-1]["warning"] = f"{STOPPED}, {failure}; lower local.lr or gamma"
        warn(log.records[-1]["warning"])
        save(folder / "checkpoints", current)
    except KeyboardInterrupt:
        if current.state.round:
            save(folder / "checkpoints", current)
        raise _interrupted(f"after round {current.state.round} of {experiment.rounds}", folder) from None
    return current


@contextmanager
def _carrier(setup: Any, folder: Path, pool: Pool, elsewhere: Elsewhere | None) -> Iterator[Carrier]:
    """How the clients are reached: here, by Flower's engine, or elsewhere."""
    experiment = setup.experiment
    if elsewhere is not None:
        with elsewhere.carrier(setup, folder) as carrier:
            yield carrier
        return
    if experiment.runtime == "inprocess":
        yield Here(pool, experiment.seed)
        return
    try:
        from fedfields.runtime.simulate import simulated
    except ImportError as error:
        raise UserError(f'--runtime flower needs Flower ({error}): pip install "fedfields[flower,ray]"') from error
    with simulated(experiment, folder, len(setup.context.clients)) as carrier:
        yield carrier


def _accountant(setup: Setup) -> Accountant | None:
    """Who keeps count of what the noise is worth, if there is any."""
    experiment, context = setup.experiment, setup.context
    if not any(part.uniform_weights for part in experiment.privacy):
        return None
    with one_thread():
        weights = private_size(expected(context.method, setup.params))
    return Accountant.of(
        experiment.privacy,
        weights=weights,
        cohort=experiment.cohort,
        clients=len(context.clients),
        poisson=experiment.sampling == "poisson",
        delta=experiment.delta,
    )


def _interrupted(when: str, folder: Path) -> Interrupted:
    return Interrupted(f"interrupted {when}; go on with: fedfields run --resume --out {folder}")


def _finish(setup: Setup, folder: Path, name: str, current: Checkpoint, log: _Log, pool: Pool) -> dict:
    """Weights, pictures and the summary."""
    best = _Best(setup.experiment.patience, folder, log.records)
    if best.round:
        current = current._replace(state=current.state._replace(params=best.params()))
    save_weights(folder / "model.safetensors", setup.whole(current.state.params))
    final = log.records[-1] if log.records else {}
    if setup.experiment.patience or not final.keys() & {"psnr", "scores"}:
        final = final | setup.judge(current, pool, final=True)
    with one_thread():
        setup.draw(folder, current)
    summary = _summary(setup, name, log, final) | ({"best_round": best.round} if best.round else {})
    write_json(folder / "summary.json", clean(summary))
    return summary


def _summary(setup: Setup, name: str, log: _Log, final: dict) -> dict:
    experiment, records, accountant = setup.experiment, log.records, _accountant(setup)
    return {
        "preset": name,
        "version": version("fedfields"),
        "seed": experiment.seed,
        "rounds": len(records),
        "seconds": sum(record["seconds"] for record in records),
        "clients": {
            "train": len(setup.federation.clients),
            "unseen": len(setup.federation.unseen),
            "per_round": min(experiment.cohort, len(setup.federation.clients)),
        },
        "parameters": sum(leaf.numel() for leaf in setup.params.values()),
        "dropped": sum(len(record["dropped"]) for record in records),
        "bytes_up": sum(record["bytes_up"] for record in records),
        "bytes_down": sum(record["bytes_down"] for record in records),
        "flops": flops(setup, records),
        "psnr": final.get("psnr"),
        "ssim": final.get("ssim"),
        "scores": final.get("scores"),
        "views": final.get("views"),
        "content": final.get("content"),
        "psnr_p": final.get("psnr_p"),
        "ssim_p": final.get("ssim_p"),
        "leak": final.get("leak"),
        "floor": final.get("floor"),
        "privacy": accountant and accountant.statement(log.cohorts, experiment.noise == "seed"),
        "warnings": list(dict.fromkeys(record["warning"] for record in records if "warning" in record)),
    }


def _check_folder(folder: Path, resume: bool) -> None:
    if resume:
        if not (folder / "experiment.json").exists():
            raise UserError(f"{folder} is not a run that could be resumed; leave out --resume to start one there")
    else:
        try:
            if folder.exists() and not all(is_unfinished(path) for path in folder.iterdir()):
                raise UserError(f"{folder} is not empty; choose another --out, or go on with its run with --resume")
        except OSError as error:
            raise cannot_write(folder, error) from error


def _write_record(experiment: Experiment, folder: Path, name: str, *, served: bool) -> None:
    """What is needed to run the same again, or to go on."""
    record = {
        "preset": name,
        "name": folder.name,
        "version": version("fedfields"),
        "seed": experiment.seed,
        "served": served,
        "experiment": to_json(experiment),
    }
    write_json(folder / "experiment.json", record)


def _check_same_model(start: Checkpoint, setup: Setup, folder: Path) -> None:
    found = {key: leaf.shape for key, leaf in start.state.params.items()}
    if found != {key: leaf.shape for key, leaf in setup.params.items()}:
        raise UserError(f"the checkpoints in {folder} belong to another field; use the run's own settings")


def _check_same_start(experiment: Experiment, folder: Path) -> None:
    """What decides the weights to start from cannot change any more, nor what earlier noise was worth."""
    before, fixed = load_experiment(folder), ["warm_up", "compression"]
    if any(part.uniform_weights for part in (*before.privacy, *experiment.privacy)):
        fixed += ["privacy", "sampling", "noise", "cohort", "strategy", "data"]
    for name in fixed:
        if getattr(before, name) != getattr(experiment, name):
            flag = name.replace("_", "-")
            raise UserError(f"{folder} started with another {flag}; resume it without saying any, or start a new run")


class _Log:
    """``metrics.jsonl``: one line for each round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict] = []

    @property
    def cohorts(self) -> list[list[str]]:
        """Who took part in each round."""
        return [record["cohort"] for record in self.records]

    def append(self, record: dict) -> None:
        self.records.append(record)
        append_line(self.path, json.dumps(clean(record)))

    def read(self, warn: Callable[[str], None]) -> int:
        """Takes over the rounds on disk up to the first that is not there whole; returns how many there are."""
        try:
            lines = read_file(self.path, MAX_LINES).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            lines = [""]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); start the run anew") from error
        self.records = []
        for number, line in enumerate(lines[:-1], 1):
            record = _record(line, number)
            if record is None:
                warn(f"{self.path}, line {number}, is damaged; the rounds from {number} on are run again")
                break
            self.records.append(record)
        return len(self.records)

    def rewind(self, rounds: int) -> None:
        """Forgets what came after ``rounds``: those rounds will be run again."""
        self.records = self.records[:rounds]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))


_FIGURES = {"cohort": list, "dropped": list, "bytes_up": int, "bytes_down": int, "seconds": float}
"""What the record of every round has, and of what kind."""


def _record(line: str, number: int) -> dict | None:
    """The record of a round, None if the line is not that."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("round") != number:
        return None
    return found if all(isinstance(found.get(name), kind) for name, kind in _FIGURES.items()) else None


class _Best:
    """Early stopping: the weights that were best for the validation clients, in a file beside the checkpoints.

    What it knows it reads from the run's log, so that a resumed run stops where an unbroken one does. The file is
    written before the line that speaks of it.
    """

    def __init__(self, patience: int, folder: Path, records: list[dict]) -> None:
        self._patience, self._file = patience, folder / "best.safetensors"
        self.round, self._value, self._since = 0, math.inf, 0
        for record in records if patience else ():
            self._count(record)

    @property
    def exhausted(self) -> bool:
        """Whether so many evaluations in a row have not been better that training ends."""
        return 0 < self._patience <= self._since

    def look(self, record: dict, params: Params) -> None:
        """Keeps the weights of a round that is better for the validation clients than all before."""
        if self._patience and self._count(record):
            save_weights(self._file, params)

    def params(self) -> Params:
        """The best weights so far."""
        return load_weights(self._file)

    def _count(self, record: dict) -> bool:
        """Whether this record is the best so far."""
        value = deciding(record)
        if value is None:
            return False
        better = value < self._value
        self._since = 0 if better else self._since + 1
        if better:
            self.round, self._value = record["round"], value
        return better


class _Watch:
    """Warns once when training diverges."""

    def __init__(self, warn: Callable[[str], None], before: list[dict]) -> None:
        self._warn, self._first = warn, _early_loss(before[0]) if before else None
        self._warned = any("warning" in record for record in before)

    def look(self, record: dict) -> None:
        """Compares the round's loss before adaptation (or, failing that, its loss) with the first round's."""
        found = _early_loss(record)
        if found is None or self._warned:
            return
        self._first = found if self._first is None else self._first
        if not math.isfinite(found) or found > BLOW_UP * self._first:
            self._warned = True
            record["warning"] = (
                f"round {record['round']}: the loss before adaptation is {found:.3g}, {found / self._first:.0f} times "
                "the first round's: training diverges (FedMeNF's loss has no lower bound): lower local.lr or gamma"
            )
            self._warn(record["warning"])


def _early_loss(record: dict) -> float | None:
    """The loss of the received weights if the objective looks at it, else the loss after adaptation."""
    return record.get("loss_before", record.get("loss"))


def clean(value: Any) -> Any:
    """The value with NaN and infinities as null, as JSON wants it."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def default_folder(name: str) -> Path:
    """``runs/NAME``, or ``runs/NAME-2`` and so on if it is taken."""
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not os.path.lexists(folder):
            return folder
    raise UserError(f"runs/{name} and 9,999 more are taken; choose a place with --out")
