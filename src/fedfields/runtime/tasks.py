"""A run on tasks (pictures, clips or objects): one field adapted to each; how quality and privacy are judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.audit import AuditResult, Observation, audit
from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.federation import prepare
from fedfields.fields import FourierMlp, HashGrid, Siren
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import FieldLoss, RadianceLoss, render
from fedfields.metrics import psnr, ssim
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.rendering.marching import Marching
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.evaluation import evaluate, mean, seen, visible
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.pool import Pool, one_thread
from fedfields.runtime.seen import keep, observations, remembered
from fedfields.runtime.start import settings_of, with_leaves
from fedfields.scenes.data import Data, Federation
from fedfields.scenes.objects import Objects
from fedfields.scenes.tour import publish
from fedfields.scenes.views import photos_of
from fedfields.seeds import generator
from fedfields.types import Advance, Params, VisibleLoss

SHOWN = 6
"""Rows of a contact sheet."""

EARLY_STEPS = 8
"""Adaptation steps of the evaluations before the last one."""


class TaskSetup(NamedTuple):
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
    def loss(self) -> VisibleLoss:
        """The field's loss."""
        return visible(self.context.loss)

    def begin(self, folder: Path, advance: Advance) -> TaskSetup:
        """Publishes the frame of a set of objects, and a way around them, in the run's folder."""
        if isinstance(self.experiment.data, Objects):
            publish(folder, self.experiment.data.frame, photos_of(self.federation.clients))
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
        return remembered(uploads, self.experiment.strategy, step)

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Keeps what the server saw in this round, for a full audit afterwards."""
        keep(folder, _observations(self, current), current.state.round)

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """Contact sheets of what owners and server reconstruct."""
        _owner_sheet(self, folder, current.state.params)
        if current.uploads.last:
            _server_sheet(self, folder, current)


def set_up_tasks(experiment: Experiment) -> TaskSetup:
    """Reads the data and draws the initial weights.

    Raises:
        UserError: the data is no good, or the parts do not go together.
    """
    random, loss = generator(experiment.seed, "init"), task_loss(experiment)
    if isinstance(experiment.data, Objects):
        assert isinstance(loss, RadianceLoss)
        federation = experiment.data.load(experiment.seed, loss.settings.jitters)
        params = experiment.field.init(random)  # pyright: ignore[reportCallIssue]
    else:
        assert isinstance(experiment.data, Data) and isinstance(experiment.field, Siren | FourierMlp)
        federation = experiment.data.load(experiment.seed)
        values = seen(federation.clients[0].train[0].query).values
        params = experiment.field.init(values.dim() - 1, values.shape[-1], random)
    params, clients = with_leaves(experiment, params, loss), federation.clients
    try:
        prepared = tuple(prepare(experiment.privacy, client, seed=experiment.seed) for client in clients)
    except ValueError as error:
        raise UserError(str(error)) from error
    sizes = [float(len(client.train)) for client in clients] if experiment.weighting == "size" else None
    settings = settings_of(experiment, sizes)
    return TaskSetup(experiment, federation, Context(experiment.method, prepared, loss), params, settings)


def task_loss(experiment: Experiment) -> FieldLoss | RadianceLoss:
    """The loss of pictures, clips or objects.

    Raises:
        UserError: parts that do not go together, or not with such data.
    """
    if experiment.compression is not None:
        raise UserError("low-rank weights are for fields of places; for other data leave out compression:low-rank")
    if experiment.personal is not None:
        raise UserError("a personal field is for photographs of one place; for other data leave out personal:own-field")
    if isinstance(experiment.data, Objects):
        return radiance_loss(experiment)
    if not isinstance(experiment.field, Siren | FourierMlp):
        name = type(experiment.field).__name__
        raise UserError(f"{name} is a field of places, not of pictures; choose field:siren or field:fourier-mlp")
    return FieldLoss(experiment.field)


def radiance_loss(experiment: Experiment) -> RadianceLoss:
    """The loss of objects.

    Raises:
        UserError: a field of pictures, or rays that cannot be differentiated as the objective needs it.
    """
    field, rays = experiment.field, experiment.rays
    if isinstance(field, Siren | FourierMlp | Mlp | ConvNet | Recurrent):
        name = type(field).__name__
        raise UserError(f"{name} is no radiance field; for objects choose field:simple-nerf or field:nerf")
    if getattr(field, "appearance", 0):
        raise UserError("appearance codes are for the photographs of one place, not of many objects; leave them out")
    if isinstance(rays, Marching):
        raise UserError("marched rays know one place, not many objects; choose rays:dense")
    if isinstance(field, HashGrid) and experiment.objective.second_order:
        raise UserError("this objective takes second derivatives, which hash grids do not have; choose fomaml-3d")
    return RadianceLoss(field, rays)


def _evaluate(setup: TaskSetup, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
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


def _privacy(setup: TaskSetup, current: Checkpoint) -> dict:
    """PSNR_p and SSIM_p as the official code computes them, and the cheap level of the audit.

    Both look at the last upload of every training client, or at the last secure sum that it is in. PSNR_p counts a
    client that never had its turn with the initial weights; the audit leaves it out, for it has sent nothing.
    """
    clients, last = setup.federation.clients, current.uploads.last
    pairs = []
    for i, client in enumerate(clients):
        weights = last[i][1] if i in last else setup.params
        for task in client.train:
            signal = seen(task.query)
            shown = render(setup.loss, weights, signal)
            pairs.append((psnr(shown, signal.values), ssim(shown, signal.values)))
    result = cheap_audit(setup, current)
    return {
        "psnr_p": mean(pair[0] for pair in pairs),
        "ssim_p": mean(pair[1] for pair in pairs),
        "leak": result.leak,
        "floor": result.floor,
    }


def cheap_audit(setup: TaskSetup, current: Checkpoint) -> AuditResult:
    """The render family of attacks on every client's last upload."""
    clients = setup.federation.clients
    return audit(
        _observations(setup, current),
        {clients[i].name: clients[i].train[0] for i in current.uploads.last},
        setup.loss,
        setup.experiment.method,
    )


def _observations(setup: TaskSetup, current: Checkpoint) -> list[Observation]:
    return observations(setup.federation.clients, setup.context.method, current.uploads)


def _owner_sheet(setup: TaskSetup, folder: Path, params: Params) -> None:
    """Truth and reconstruction after some steps, for clients never seen (or held-out signals)."""
    from fedfields.adaptation import adapting

    federation, settings = setup.federation, setup.experiment.adaptation
    owners = federation.unseen or federation.clients
    tasks = [task for client in owners for task in client.held_out][:SHOWN]
    steps = [step for step in settings.checkpoints() if step in (0, 1, 2, 8, 32, settings.steps)]
    rows: dict[str, list[Cell | None]] = {}
    for task in tasks:
        truth = seen(task.query)
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


def _server_sheet(setup: TaskSetup, folder: Path, current: Checkpoint) -> None:
    """Truth and what the render family recovers from the last upload."""
    result = cheap_audit(setup, current)
    columns, rows = result.sheet(SHOWN)
    what = "the secure sum of a round" if setup.context.method.sums else "one upload"
    save_sheet(folder / "images", "server", f"What the server reconstructs from {what}", columns, rows)
