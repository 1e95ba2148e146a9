"""A run on samples: a model that is adapted to each client's own rows; judged by clients that never train."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from fedfields.adaptation import Adaptation, adapting
from fedfields.config import Experiment
from fedfields.datasets import SampleData, SampleFederation
from fedfields.datasets.shares import Kind
from fedfields.errors import UserError
from fedfields.federation import prepare
from fedfields.losses import ModelLoss
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.evaluation import Curve, mean
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.pool import Failed, Pool
from fedfields.runtime.start import settings_of, with_leaves
from fedfields.seeds import generator
from fedfields.types import Advance, Batch, Client, Params, Task

FIGURES: dict[Kind, tuple[str, str]] = {"classes": ("accuracy", "loss"), "numbers": ("error", "error")}
"""By kind of target: the figure for people, and the one that early stopping and tuning look at (lower is better).
Accuracy moves in steps of one sample, so the mean cross entropy decides."""

Scores = dict[str, dict[str, Curve]]
"""Figures by name, group of clients and adaptation step."""


class SampleSetup(NamedTuple):
    """What a run is made of, rebuilt from its experiment alone.

    Attributes:
        experiment: the whole configuration.
        federation: the clients.
        context: method, training clients as the transforms prepared them, loss.
        params: the initial weights, and what only the outer loop trains.
        settings: rounds, cohort, seed, weights.
    """

    experiment: Experiment
    federation: SampleFederation
    context: Context
    params: Params
    settings: Settings

    def begin(self, folder: Path, advance: Advance) -> SampleSetup:
        """Nothing comes before round 1."""
        return self

    @property
    def shared(self) -> Params:
        """Nothing travels but weights."""
        return {}

    def whole(self, params: Params) -> Params:
        """The weights travel as they are."""
        return params

    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
        """Figures of the validation clients; at the very end those of the test clients, too."""
        federation = self.federation
        groups = {"validation": federation.validation} | ({"unseen": federation.unseen} if final else {})
        settings, seed = self.experiment.adaptation, self.experiment.seed
        return {"scores": scored(pool, current.state.params, groups, settings, seed)}

    def remember(self, uploads: Uploads, step: Round) -> Uploads:
        """Uploads are not kept: no attack of ours is for them."""
        return uploads

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Nothing is kept for an audit."""

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """There is nothing to look at but curves, which the report draws."""


def set_up_samples(experiment: Experiment) -> SampleSetup:
    """Reads the data and draws the initial weights.

    Raises:
        UserError: the data is no good, or the parts do not go together.
    """
    assert isinstance(experiment.data, SampleData)
    federation = experiment.data.load(experiment.seed)
    if experiment.patience and not federation.validation:
        raise UserError("patience is for runs with validation clients; keep some back with --data.validation")
    loss = sample_loss(experiment, federation.kind)
    params = start_params(experiment, loss, federation.shape, federation.outputs)
    try:
        prepared = tuple(prepare(experiment.privacy, one, seed=experiment.seed) for one in federation.clients)
    except ValueError as error:
        raise UserError(str(error)) from error
    sizes = [samples_of(client) for client in prepared]
    weights = [share_of(experiment, size, max(sizes)) for size in sizes]
    settings = settings_of(experiment, weights if experiment.weighting == "size" else None)
    return SampleSetup(experiment, federation, Context(experiment.method, prepared, loss), params, settings)


def sample_loss(experiment: Experiment, kind: Kind) -> ModelLoss:
    """The loss of a model.

    Raises:
        UserError: parts that do not go together, or not with such data.
    """
    if experiment.compression is not None or experiment.personal is not None:
        raise UserError("low-rank weights and personal fields are for places; leave out compression and personal")
    if not isinstance(experiment.field, Mlp | ConvNet | Recurrent):
        name = type(experiment.field).__name__
        raise UserError(
            f"{name} is a field, not a model of samples; choose field:mlp, field:conv-net or field:recurrent"
        )
    return ModelLoss(experiment.field, kind)


def start_params(experiment: Experiment, loss: ModelLoss, shape: tuple[int, ...], outputs: int) -> Params:
    """Initial weights of the model, and what only the outer loop trains.

    Raises:
        UserError: the model is for inputs of another shape, or not for this objective.
    """
    try:
        params = loss.model.init(shape, outputs, generator(experiment.seed, "init"))
    except ValueError as error:
        raise UserError(str(error)) from error
    return with_leaves(experiment, params, loss)


def samples_of(client: Client) -> float:
    """Query samples of a client."""
    return float(sum(len(task.query) for task in client.train))


def share_of(experiment: Experiment, size: float, largest: float = 1.0) -> float:
    """What a client with so many query samples counts where weights go by size, from 0 to 1.

    Args:
        experiment: its data may say how many samples count 1; each client then weighs itself.
        size: query samples.
        largest: those of the largest client, which else counts 1.
    """
    return min(1.0, size / (getattr(experiment.data, "largest", 0) or largest))


def score_job(
    context: Context, params: Params, task: Task, settings: Adaptation, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of one task by adaptation step."""
    loss, query = context.loss, task.query.everything()
    assert isinstance(loss, ModelLoss)
    random, found = generator(seed, "adapt", task.name), {}
    for step, adapted in adapting(params, task.support, loss, settings, random):
        found[str(step)] = figures(loss, adapted, query)
    return found


def figures(loss: ModelLoss, params: Params, batch: Batch) -> dict[str, float]:
    """What the model is worth on a batch."""
    with torch.no_grad():
        value = float(loss(params, batch))
        if loss.kind == "numbers":
            return {"error": value}
        right = (loss.predict(params, batch.inputs).argmax(-1) == batch.targets).float().mean()
    return {"accuracy": float(right), "loss": value}


def scored(
    pool: Pool, params: Params, groups: dict[str, tuple[Client, ...]], settings: Adaptation, seed: int
) -> Scores:
    """Adapts ``params`` to every task of every client of each group: means over the tasks of a group.

    Raises:
        RuntimeError: an adaptation failed.
    """
    scores: Scores = {}
    for group, clients in groups.items():
        jobs = [(params, task, settings, seed) for client in clients for task in client.held_out]
        if not jobs:
            continue
        results = [result for result in pool.map(score_job, jobs) if not isinstance(result, Failed)]
        if len(results) < len(jobs):
            raise RuntimeError(f"{len(jobs) - len(results)} of {len(jobs)} adaptations failed")
        for name in results[0]["0"]:
            curve = {step: mean(one[step][name] for one in results) for step in results[0]}
            scores.setdefault(name, {})[group] = curve
    return scores


def deciding(record: dict) -> float | None:
    """What early stopping and tuning make small: the validation clients' figure after the last adaptation step."""
    scores: Scores = record.get("scores") or {}
    curve = (scores.get("loss") or scores.get("error") or {}).get("validation") or {}
    return list(curve.values())[-1] if curve else None
