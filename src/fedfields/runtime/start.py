"""What a federation on a place starts from: weights that the server warmed up on public photographs, and factored if
they are to travel light (Holden et al., arXiv 2305.01163, algorithm 2). Made once, kept in the run's folder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.federation import Method, visit
from fedfields.fields import Factored
from fedfields.runtime.checkpoint import load_weights, save_weights
from fedfields.runtime.inprocess import Settings
from fedfields.runtime.pool import one_thread
from fedfields.strategies import FedAvg
from fedfields.types import Advance, Client, Loss, Memory, Params

SHARED = "shared."
"""Before the keys of the frozen factors in the file."""


class Start(NamedTuple):
    """Where round 1 begins.

    Attributes:
        params: what is trained and travels.
        shared: frozen factors by the key of their weight, which every client gets once; see `LowRank.factors`.
    """

    params: Params
    shared: Params

    def known_to(self, loss: Any) -> Any:
        """The loss whose field knows the frozen factors; itself if there are none."""
        return dataclasses.replace(loss, field=Factored(loss.field, self.shared)) if self.shared else loss


def with_leaves(experiment: Experiment, params: Params, loss: Loss) -> Params:
    """The weights and what the objective learns beside them; see `Objective.leaves`.

    Raises:
        UserError: the objective does not go with the loss.
    """
    try:
        return params | experiment.objective.leaves(params, loss)
    except ValueError as error:
        raise UserError(str(error)) from error


def shared_by(loss: Any) -> Params:
    """Frozen factors that the loss's field knows; none for most."""
    field = getattr(loss, "field", None)
    return field.shared if isinstance(field, Factored) else {}


def settings_of(experiment: Experiment, weights: Sequence[float] | None) -> Settings:
    """How the experiment's rounds are run; ``weights`` are those of the clients, None for equal ones."""
    return Settings(
        experiment.rounds,
        experiment.cohort,
        experiment.seed,
        weights,
        experiment.seconds,
        experiment.max_norm,
        poisson=experiment.sampling == "poisson",
        secret=experiment.noise == "secure",
    )


def start_of(
    experiment: Experiment, public: Client | None, loss: Loss, initial: Params, file: Path, advance: Advance
) -> Start:
    """The start that is kept in ``file``; the first call makes it, from the random weights ``initial``.

    Args:
        experiment: without warm-up and compression the start is ``initial``, and nothing is kept.
        public: who has the public photographs; warming up needs somebody.
        loss: of the whole field.
        initial: random weights.
        file: of the run's folder, safetensors.
        advance: told how far the warm-up is.

    Raises:
        UserError: the warm-up diverged, or the file cannot be written, read, or used with this field.
    """
    if not experiment.warm_up and experiment.compression is None:
        return Start(initial, {})
    if file.exists():
        return _read(file, initial)
    params = initial if public is None else _warm_up(experiment, public, loss, initial, advance)
    with one_thread():
        factored = experiment.compression.factors(params) if experiment.compression else (params, {})
    start = Start(*factored)
    save_weights(file, start.params | {SHARED + key: leaf for key, leaf in start.shared.items()})
    return start


def _warm_up(experiment: Experiment, public: Client, loss: Loss, params: Params, advance: Advance) -> Params:
    """The weights after ``experiment.warm_up`` outer steps on the public photographs; the step size does not fall."""
    local = dataclasses.replace(experiment.local, final=1.0)
    method = Method(experiment.objective, local)
    told = functools.partial(advance, "warm-up")
    what, steps = "the warm-up", experiment.warm_up
    return trained_alone(what, method, public, loss, params, steps, seed=experiment.seed, advance=told)[0]


def trained_alone(
    what: str,
    method: Method,
    client: Client,
    loss: Loss,
    params: Params,
    steps: int,
    *,
    seed: int,
    advance: Callable[[int, int], None],
) -> tuple[Params, Memory]:
    """The weights after so many outer steps of one client, and what it keeps: visits, one after another.

    One optimiser all the way. The method's strategy and protections are left out: nothing is sent.

    Raises:
        UserError: ``what`` this is has diverged; the weights are not finite any more.
    """
    local, strategy = dataclasses.replace(method.local, per_task=False, keep_state=True), FedAvg()
    memory = Memory()
    with one_thread():
        for done in range(0, steps, local.steps):
            advance(done, steps)
            count = min(local.steps, steps - done)
            part = Method(method.objective, dataclasses.replace(local, steps=count), strategy)
            received, number = {"params": params}, 1 + done // local.steps
            reply = visit(part, client, loss, received, memory, seed=seed, round=number, progress=done / steps)
            params, memory = strategy.uploaded(params, reply.report, reply.steps), reply.memory
    if not all(bool(torch.isfinite(leaf).all()) for leaf in params.values()):
        raise UserError(f"{what} diverged: its weights are not finite any more; lower the step size (lr)")
    return params, memory


def _read(file: Path, initial: Params) -> Start:
    """The start in ``file``, its weights in the order of ``initial``: norms depend on it."""
    leaves = load_weights(file)
    shared = {key.removeprefix(SHARED): leaf for key, leaf in leaves.items() if key.startswith(SHARED)}
    if leaves.keys() - {SHARED + key for key in shared} != initial.keys():
        raise UserError(f"{file} belongs to another field; use the run's own settings")
    return Start({key: leaves[key] for key in initial}, shared)
