"""A run whose data is elsewhere: what server and owners make of an experiment without a single picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedfields.config import Experiment
from fedfields.datasets import SampleData, Samples, Sinusoids
from fedfields.errors import UserError
from fedfields.fields.lowrank import expanded
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.places import loss_for
from fedfields.runtime.pool import Pool
from fedfields.runtime.samples import sample_loss, start_params
from fedfields.runtime.start import Start, settings_of, shared_by, start_of, with_leaves
from fedfields.runtime.tasks import task_loss
from fedfields.scenes.data import Data, Federation
from fedfields.scenes.frame import Frame, load_frame
from fedfields.scenes.monument import Monument, PlaceData
from fedfields.scenes.scene import Scene
from fedfields.scenes.town import Town
from fedfields.seeds import generator
from fedfields.types import Advance, Client, Loss, Params

CHANNELS = 3
"""Of the values of pictures and clips."""


class Bare(NamedTuple):
    """An experiment's loss and initial weights, as everybody makes them alone."""

    loss: Loss
    params: Params


def bare(experiment: Experiment) -> Bare:
    """Loss and weights without data.

    Raises:
        UserError: the parts do not go together.
    """
    random, data, field = generator(experiment.seed, "init"), experiment.data, experiment.field
    if isinstance(data, SampleData):
        return _bare_samples(experiment)
    loss = loss_for(experiment) if isinstance(data, PlaceData) else task_loss(experiment)
    if isinstance(data, Data):
        params = field.init(3 if data.kind == "video" else 2, CHANNELS, random)  # pyright: ignore
    else:
        params = field.init(random)  # pyright: ignore[reportCallIssue]
    return Bare(loss, with_leaves(experiment, params, loss))


def _bare_samples(experiment: Experiment) -> Bare:
    """Loss and weights of a model of samples that lie elsewhere."""
    data = experiment.data
    if isinstance(data, Sinusoids):
        raise UserError("sinusoids are made up for simulations; owners have rows of their own: say data:samples")
    assert isinstance(data, Samples)
    if (form := data.form()) is None:
        raise UserError(
            "owners must know what they share: say --data.kind text, or --data.shape (such as 64 or 1x28x28), "
            "--data.kind classes or numbers, and --data.outputs"
        )
    if experiment.weighting == "size" and not data.largest:
        raise UserError(
            "owners weigh themselves and tell nobody how many rows they have: say with --data.largest how many query "
            "rows count as a whole client"
        )
    shape, outputs, kind = form
    loss = sample_loss(experiment, kind)
    return Bare(loss, start_params(experiment, loss, shape, outputs))


def factored(experiment: Experiment, shared: Params) -> Bare:
    """Loss and weights with the frozen factors that the server sent, if any."""
    found = bare(experiment)
    if not shared or experiment.compression is None:
        return found
    params, _ = experiment.compression.factors(found.params)
    return Bare(Start(params, shared).known_to(found.loss), params)


class RemoteSetup(NamedTuple):
    """What a real run is made of at the server: everything but data.

    Attributes:
        experiment: the whole configuration.
        federation: the owners' names; nobody's signals.
        context: method, owners, loss.
        params: the weights that round 1 starts from.
        settings: rounds, cohort, seed, weights.
        frame: of a place.
    """

    experiment: Experiment
    federation: Federation
    context: Context
    params: Params
    settings: Settings
    frame: Frame | None = None

    def begin(self, folder: Path, advance: Advance) -> RemoteSetup:
        """Publishes the frame of a place; makes the weights that round 1 starts from, or reads them."""
        if self.frame is not None:
            self.frame.save(folder / "scene.json")
        loss = self.context.loss
        start = start_of(self.experiment, None, loss, self.params, folder / "start.safetensors", advance)
        context = self.context._replace(loss=start.known_to(loss))
        return self._replace(params=start.params, context=context)

    @property
    def shared(self) -> Params:
        """Frozen factors that every client gets once, beside the weights."""
        return shared_by(self.context.loss)

    def whole(self, params: Params) -> Params:
        """The weights of the experiment's field from those that travel."""
        return expanded(params, self.shared)

    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
        """Nothing: owners judge the result on their own data."""
        return {"psnr": {}, "ssim": {}}

    def remember(self, uploads: Uploads, step: Round) -> Uploads:
        """Uploads are not kept."""
        return uploads

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Nothing is kept for an audit."""

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """There is nothing to compare with."""


def tells_size(experiment: Experiment) -> bool:
    """Whether owners tell the server how much they have; those of samples weigh themselves instead."""
    return experiment.weighting == "size" and not isinstance(experiment.data, Samples)


def set_up_remote(experiment: Experiment, names: Sequence[str], weights: list[float] | None) -> RemoteSetup:
    """The server's parts of a run with the owners of these names.

    Raises:
        UserError: the experiment cannot be run without data, or not with these owners.
    """
    data, frame = experiment.data, None
    if experiment.warm_up:
        raise UserError("a warm-up needs photographs at the server; warm up in a simulation, or say --warm-up 0")
    if experiment.patience:
        raise UserError("a server has no validation clients to stop by; leave out --patience")
    if experiment.lpips is not None:
        raise UserError("a server has no photographs to judge by LPIPS; leave out --lpips")
    if isinstance(data, Data) and data.kind == "auto":
        raise UserError("owners must know what they share: say --data.kind image or --data.kind video")
    if isinstance(data, Monument | Town):
        name = type(data).__name__.lower()
        raise UserError(f"the {name} is made up for simulations; owners have photographs: say data:capture")
    if isinstance(data, Scene):
        if data.visitors != "none":
            raise UserError("visitors are put into photographs in simulations alone; leave out --data.visitors")
        if data.sharing != "federated":
            raise UserError(
                f"owners share weights here: leave out --data.sharing {data.sharing}, which is for simulations"
            )
        if data.frame is None:
            raise UserError("a place needs the frame that all owners share; give its scene.json with --data.frame")
        frame = load_frame(data.frame)
    found = bare(experiment)
    clients = tuple(Client(name, ()) for name in names)
    context = Context(experiment.method, clients, found.loss)
    settings = settings_of(experiment, weights)
    return RemoteSetup(experiment, Federation(clients, (), ()), context, found.params, settings, frame)


def published(experiment: Experiment) -> Experiment:
    """The experiment as owners get it: without any path of the server's machine."""
    blank: Mapping[str, None] = {"path": None, "split": None, "frame": None}
    data = experiment.data
    known = {field.name for field in dataclasses.fields(data)}
    data = dataclasses.replace(data, **{name: value for name, value in blank.items() if name in known})
    return dataclasses.replace(experiment, data=data)
