"""A run on disk: from an experiment to weights, figures and pictures; interruptible and resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.audit import AuditResult, Observation, audit, save_observations
from fedfields.config import Experiment, from_json, to_json
from fedfields.errors import UserError
from fedfields.federation import prepare, start_server
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr, ssim
from fedfields.runtime.checkpoint import Checkpoint, Uploads, load, save, save_weights
from fedfields.runtime.evaluation import evaluate, mean, render
from fedfields.runtime.inprocess import AllFailed, Context, Round, Settings, run_rounds
from fedfields.runtime.pool import Pool, one_thread
from fedfields.scenes.data import Federation
from fedfields.scenes.grid import GridSignal
from fedfields.seeds import generator
from fedfields.store import cannot_write, read_json, write_json
from fedfields.types import Client, Params

SHOWN = 6
"""Rows of a contact sheet."""

BLOW_UP = 4.0
"""How many times the first loss before adaptation counts as divergence."""

EARLY_STEPS = 8
"""Adaptation steps of the evaluations before the last one."""


class Interrupted(Exception):
    """Ctrl-C: everything up to the last whole round is on disk. The text says how to go on."""


class Setup(NamedTuple):
    """What a run is made of, rebuilt from its experiment alone.

    Attributes:
        experiment: the whole configuration.
        federation: the owners, with the signals that they really have.
        context: method, clients as the transforms prepared them, loss.
        params: the initial weights.
        settings: rounds, cohort, seed, weights.
    """

    experiment: Experiment
    federation: Federation
    context: Context
    params: Params
    settings: Settings

    @property
    def loss(self) -> FieldLoss:
        """The field's loss."""
        assert isinstance(self.context.loss, FieldLoss)
        return self.context.loss


def set_up(experiment: Experiment) -> Setup:
    """Reads the data and draws the initial weights."""
    federation = experiment.data.load(experiment.seed)
    clients = federation.clients
    try:
        prepared = tuple(prepare(experiment.privacy, client, seed=experiment.seed) for client in clients)
    except ValueError as error:
        raise UserError(str(error)) from error
    signal = _signal(clients[0])
    params = experiment.field.init(len(signal.shape), signal.values.shape[-1], generator(experiment.seed, "init"))
    sizes = [float(len(client.train)) for client in clients] if experiment.weighting == "size" else None
    settings = Settings(experiment.rounds, experiment.cohort, experiment.seed, sizes)
    context = Context(experiment.method, prepared, FieldLoss(experiment.field))
    return Setup(experiment, federation, context, params, settings)


def load_experiment(folder: Path) -> Experiment:
    """The experiment of a run on disk."""
    found = from_json(read_json(folder / "experiment.json")["experiment"])
    if not isinstance(found, Experiment):
        raise UserError(f"{folder / 'experiment.json'} does not hold an experiment; the file is damaged")
    return found


def run(
    experiment: Experiment,
    folder: Path,
    *,
    name: str = "",
    resume: bool = False,
    on_round: Callable[[dict, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict:
    """Trains, evaluates and writes the run's folder (all but the report).

    Args:
        experiment: what to run.
        folder: where; must be empty or absent unless ``resume``.
        name: of the preset, for the records.
        resume: go on from the newest checkpoint; the result equals that of an unbroken run to the bit.
        on_round: called with each round's record and the number of rounds.
        warn: called with lines that the user should read.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: the data, the folder or the experiment is no good.
        Interrupted: Ctrl-C.
    """
    warn = warn or (lambda line: None)
    _open_folder(experiment, folder, name, resume)
    setup = set_up(experiment)
    for note in setup.federation.notes:
        warn(note)
    start = Checkpoint(start_server(experiment.strategy, setup.params), {}, Uploads({}, {}))
    log = _Log(folder / "metrics.jsonl")
    if resume:
        start = load(folder / "checkpoints") or start
        _check_same_model(start, setup, folder)
        log.rewind(start.state.round)
    visits = (experiment.rounds - start.state.round) * min(experiment.cohort, len(setup.context.clients))
    with Pool(setup.context, experiment.workers, ahead=visits) as pool:
        current = _train(setup, folder, start, log, pool, on_round, warn)
        return _finish(setup, folder, name, current, log, pool)


def _train(
    setup: Setup,
    folder: Path,
    current: Checkpoint,
    log: _Log,
    pool: Pool,
    on_round: Callable[[dict, int], None] | None,
    warn: Callable[[str], None],
) -> Checkpoint:
    """All rounds, with evaluations and checkpoints on the way."""
    experiment = setup.experiment
    watch = _Watch(warn, log.records)
    try:
        rounds = run_rounds(setup.context, setup.settings, current.state, current.memories, pool)
        for step in rounds:
            current = Checkpoint(step.state, step.memories, _remember(setup, current.uploads, step))
            number, record = step.state.round, step.record
            last = number == experiment.rounds
            if number == 1 or last or number % experiment.evaluate_every == 0:
                record |= _evaluate(setup, current, pool, final=last)
                _observe(setup, folder, current)
            watch.look(record)
            log.append(record)
            if last or number % experiment.checkpoint_every == 0:
                save(folder / "checkpoints", current)
            if on_round:
                on_round(record, experiment.rounds)
    except AllFailed as failure:
        if not failure.diverged or not log.records:
            raise
        log.records[-1]["warning"] = f"stopped early, {failure}; lower local.lr or gamma"
        warn(log.records[-1]["warning"])
        save(folder / "checkpoints", current)
    except KeyboardInterrupt:
        if current.state.round:
            save(folder / "checkpoints", current)
        raise Interrupted(
            f"interrupted after round {current.state.round} of {experiment.rounds}; "
            f"go on with: fedfields run --resume --out {folder}"
        ) from None
    return current


def _finish(setup: Setup, folder: Path, name: str, current: Checkpoint, log: _Log, pool: Pool) -> dict:
    """Weights, pictures and the summary."""
    params = current.state.params
    save_weights(folder / "model.safetensors", params)
    final = log.records[-1] if log.records else {}
    if "psnr" not in final:
        final = final | _evaluate(setup, current, pool, final=True)
    with one_thread():
        _owner_sheet(setup, folder, params)
        if current.uploads.last:
            _server_sheet(setup, folder, current)
    summary = _summary(setup, name, log, final)
    write_json(folder / "summary.json", clean(summary))
    return summary


def _summary(setup: Setup, name: str, log: _Log, final: dict) -> dict:
    experiment, records = setup.experiment, log.records
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
        "psnr": final.get("psnr"),
        "ssim": final.get("ssim"),
        "psnr_p": final.get("psnr_p"),
        "ssim_p": final.get("ssim_p"),
        "leak": final.get("leak"),
        "floor": final.get("floor"),
        "warnings": list(dict.fromkeys(record["warning"] for record in records if "warning" in record)),
    }


# --- evaluation ---------------------------------------------------------------------------------------------


def _evaluate(setup: Setup, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
    """Quality after adaptation and, once somebody has uploaded, privacy."""
    settings, federation = setup.experiment.adaptation, setup.federation
    if not final:
        settings = dataclasses.replace(settings, steps=min(EARLY_STEPS, settings.steps))
    groups = {"held_out": federation.clients, "unseen": federation.unseen}
    quality = evaluate(pool, current.state.params, groups, settings, setup.experiment.seed)
    figures: dict[str, Any] = {"psnr": quality.psnr, "ssim": quality.ssim}
    if current.uploads.last:
        with one_thread():
            figures |= _privacy(setup, current)
    return figures


def _privacy(setup: Setup, current: Checkpoint) -> dict:
    """PSNR_p and SSIM_p as the official code computes them, and the cheap level of the audit.

    Both look at the last upload of every training client. PSNR_p counts a client that never had its turn with the
    initial weights; the audit leaves it out, for it has sent nothing.
    """
    clients, last = setup.federation.clients, current.uploads.last
    pairs = []
    for i, client in enumerate(clients):
        weights = last[i][1] if i in last else setup.params
        for task in client.train:
            signal = grid_of(task.query)
            shown = render(setup.loss, weights, signal)
            pairs.append((psnr(shown, signal.values), ssim(shown, signal.values)))
    result = cheap_audit(setup, current)
    return {
        "psnr_p": mean(pair[0] for pair in pairs),
        "ssim_p": mean(pair[1] for pair in pairs),
        "leak": result.leak,
        "floor": result.floor,
    }


def cheap_audit(setup: Setup, current: Checkpoint) -> AuditResult:
    """The render family of attacks on every client's last upload."""
    clients = setup.federation.clients
    return audit(
        _observations(setup, current),
        {clients[i].name: _signal(clients[i]) for i in current.uploads.last},
        setup.loss,
        setup.experiment.method,
    )


def _remember(setup: Setup, uploads: Uploads, step: Round) -> Uploads:
    """The uploads after a round: its own in place of older ones of the same clients."""
    number, start = step.state.round, step.received["params"]
    uploaded = setup.experiment.strategy.uploaded
    last = uploads.last | {i: (number, uploaded(start, reply.report, reply.steps)) for i, reply in step.replies.items()}
    needed = {number for number, _ in last.values()}
    broadcasts = uploads.broadcasts | {number: step.received["params"]}
    return Uploads(last, {number: broadcasts[number] for number in sorted(needed)})


def _observe(setup: Setup, folder: Path, current: Checkpoint) -> None:
    """Keeps what the server saw in this round, for a full audit afterwards."""
    number = current.state.round
    seen = [one for one in _observations(setup, current) if one.round == number]
    if seen:
        save_observations(folder / "observations" / f"round-{number:06d}.safetensors", seen)


def _observations(setup: Setup, current: Checkpoint) -> list[Observation]:
    """What the server last saw of every client."""
    clients, uploads = setup.federation.clients, current.uploads
    return [
        Observation(clients[i].name, number, uploads.broadcasts[number], weights)
        for i, (number, weights) in sorted(uploads.last.items())
    ]


# --- pictures -----------------------------------------------------------------------------------------------


def _owner_sheet(setup: Setup, folder: Path, params: Params) -> None:
    """Truth and reconstruction after some steps, for clients never seen (or held-out signals)."""
    from fedfields.adaptation import adapting

    federation, settings = setup.federation, setup.experiment.adaptation
    owners = federation.unseen or federation.clients
    tasks = [task for client in owners for task in client.held_out][:SHOWN]
    steps = [step for step in settings.checkpoints() if step in (0, 1, 2, 8, 32, settings.steps)]
    rows: dict[str, list[Cell | None]] = {}
    for task in tasks:
        truth = grid_of(task.query)
        row: list[Cell | None] = [Cell(truth.values)]
        random = generator(setup.experiment.seed, "adapt", task.name)
        for step, adapted in adapting(params, task.support, setup.loss, settings, random):
            if step in steps:
                shown = render(setup.loss, adapted, truth)
                row.append(Cell(shown, f"{psnr(shown, truth.values):.1f} dB"))
        rows[task.name] = row
    if rows:
        columns = ["truth"] + [f"{step} step{'s' * (step != 1)}" for step in steps]
        save_sheet(folder / "images", "owner", "What the owner reconstructs", columns, rows)


def _server_sheet(setup: Setup, folder: Path, current: Checkpoint) -> None:
    """Truth and what the render family recovers from the last upload."""
    result = cheap_audit(setup, current)
    columns, rows = result.sheet(SHOWN)
    save_sheet(folder / "images", "server", "What the server reconstructs from one upload", columns, rows)


def _signal(client: Client) -> GridSignal:
    """A training client's first private signal."""
    return grid_of(client.train[0].query)


def grid_of(signal: object) -> GridSignal:
    """The signal, which in a run is always sampled on a grid."""
    assert isinstance(signal, GridSignal)
    return signal


# --- folder and records -------------------------------------------------------------------------------------


def _open_folder(experiment: Experiment, folder: Path, name: str, resume: bool) -> None:
    if resume:
        if not (folder / "experiment.json").exists():
            raise UserError(f"{folder} is not a run that could be resumed; leave out --resume to start one there")
    else:
        try:
            if folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} is not empty; choose another --out, or go on with its run with --resume")
        except OSError as error:
            raise cannot_write(folder, error) from error
    record = {
        "preset": name,
        "name": folder.name,
        "version": version("fedfields"),
        "seed": experiment.seed,
        "experiment": to_json(experiment),
    }
    write_json(folder / "experiment.json", record)


def _check_same_model(start: Checkpoint, setup: Setup, folder: Path) -> None:
    found = {key: leaf.shape for key, leaf in start.state.params.items()}
    if found != {key: leaf.shape for key, leaf in setup.params.items()}:
        raise UserError(f"the checkpoints in {folder} belong to another field; use the run's own settings")


class _Log:
    """``metrics.jsonl``: one line for each round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict] = []

    def append(self, record: dict) -> None:
        self.records.append(record)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean(record)) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def rewind(self, rounds: int) -> None:
        """Forgets what came after ``rounds``: those rounds will be run again."""
        kept = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    break
                if record["round"] <= rounds:
                    kept.append(record)
        self.records = kept
        from fedfields.store import write_text

        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


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
