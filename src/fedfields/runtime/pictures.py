"""A run on pictures or clips: its parts, and how quality after adaptation and privacy are judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.audit import AuditResult, Observation, audit, save_observations
from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.federation import prepare
from fedfields.fields import FourierMlp, Siren
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr, ssim
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.evaluation import evaluate, mean, render
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.pool import Pool, one_thread
from fedfields.scenes.data import Data, Federation
from fedfields.scenes.grid import GridSignal
from fedfields.seeds import generator
from fedfields.types import Advance, Client, Params

SHOWN = 6
"""Rows of a contact sheet."""

EARLY_STEPS = 8
"""Adaptation steps of the evaluations before the last one."""


class PictureSetup(NamedTuple):
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

    def begin(self, folder: Path, advance: Advance) -> PictureSetup:
        """Nothing has to be published or made."""
        return self

    @property
    def shared(self) -> Params:
        """Nothing travels but weights."""
        return {}

    def whole(self, params: Params) -> Params:
        """The weights travel as they are."""
        return params

    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
        """Quality after adaptation and, once somebody has uploaded, privacy."""
        return _evaluate(self, current, pool, final=final)

    def remember(self, uploads: Uploads, step: Round) -> Uploads:
        """The uploads after a round."""
        return _remember(self, uploads, step)

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Keeps what the server saw in this round, for a full audit afterwards."""
        _observe(self, folder, current)

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """Contact sheets of what owners and server reconstruct."""
        _owner_sheet(self, folder, current.state.params)
        if current.uploads.last:
            _server_sheet(self, folder, current)


def set_up_pictures(experiment: Experiment) -> PictureSetup:
    """Reads the data and draws the initial weights."""
    assert isinstance(experiment.data, Data)
    if not isinstance(experiment.field, Siren | FourierMlp):
        name = type(experiment.field).__name__
        raise UserError(f"{name} is a field of places, not of pictures; choose field:siren or field:fourier-mlp")
    if experiment.compression is not None:
        raise UserError("low-rank weights are for fields of places, not of pictures; leave out compression:low-rank")
    federation = experiment.data.load(experiment.seed)
    clients = federation.clients
    try:
        prepared = tuple(prepare(experiment.privacy, client, seed=experiment.seed) for client in clients)
    except ValueError as error:
        raise UserError(str(error)) from error
    signal = _signal(clients[0])
    params = experiment.field.init(len(signal.shape), signal.values.shape[-1], generator(experiment.seed, "init"))
    sizes = [float(len(client.train)) for client in clients] if experiment.weighting == "size" else None
    settings = Settings(experiment.rounds, experiment.cohort, experiment.seed, sizes, experiment.seconds)
    context = Context(experiment.method, prepared, FieldLoss(experiment.field))
    return PictureSetup(experiment, federation, context, params, settings)


def _evaluate(setup: PictureSetup, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
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


def _privacy(setup: PictureSetup, current: Checkpoint) -> dict:
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


def cheap_audit(setup: PictureSetup, current: Checkpoint) -> AuditResult:
    """The render family of attacks on every client's last upload."""
    clients = setup.federation.clients
    return audit(
        _observations(setup, current),
        {clients[i].name: _signal(clients[i]) for i in current.uploads.last},
        setup.loss,
        setup.experiment.method,
    )


def _remember(setup: PictureSetup, uploads: Uploads, step: Round) -> Uploads:
    """The uploads after a round: its own in place of older ones of the same clients."""
    number, start = step.state.round, step.received["params"]
    uploaded = setup.experiment.strategy.uploaded
    last = uploads.last | {i: (number, uploaded(start, reply.report, reply.steps)) for i, reply in step.replies.items()}
    needed = {number for number, _ in last.values()}
    broadcasts = uploads.broadcasts | {number: step.received["params"]}
    return Uploads(last, {number: broadcasts[number] for number in sorted(needed)})


def _observe(setup: PictureSetup, folder: Path, current: Checkpoint) -> None:
    """Keeps what the server saw in this round, for a full audit afterwards."""
    number = current.state.round
    seen = [one for one in _observations(setup, current) if one.round == number]
    if seen:
        save_observations(folder / "observations" / f"round-{number:06d}.safetensors", seen)


def _observations(setup: PictureSetup, current: Checkpoint) -> list[Observation]:
    """What the server last saw of every client."""
    clients, uploads = setup.federation.clients, current.uploads
    return [
        Observation(clients[i].name, number, uploads.broadcasts[number], weights)
        for i, (number, weights) in sorted(uploads.last.items())
    ]


def _owner_sheet(setup: PictureSetup, folder: Path, params: Params) -> None:
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


def _server_sheet(setup: PictureSetup, folder: Path, current: Checkpoint) -> None:
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
