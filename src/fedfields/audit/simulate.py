"""A client's local training as the server can imagine it: differentiable with respect to its colours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Generator, Tensor

from fedfields import tree
from fedfields.federation import Method
from fedfields.privacy import Clipped
from fedfields.types import Loss, Params, Task, Visit


def simulate(method: Method, task: Task, start: Params, loss: Loss, generator: Generator) -> Params:
    """The update ``w - theta`` that a client with this task would arrive at.

    Args:
        method: objective, local training and clips; the noise of its protections is not drawn.
        task: the client's; the result depends on its colours differentiably.
        start: the broadcast weights.
        loss: of the field.
        generator: of the draws; the client's own reproduces its update exactly.
    """
    local = method.local
    context = Visit(start, generator, local.lr, differentiable=True)
    params, state = tree.leaves_of(start), local.optimizer.init(start)
    for _ in range(local.steps):
        grads = method.objective.estimate(params, task, loss, context).grads
        params, state = local.optimizer.step(params, _clipped(grads, local.clip), state, local.lr)
    update = tree.sub(params, start)
    for transform in method.privacy:
        if isinstance(transform, Clipped):
            update = _clipped(update, transform.clip, 1e-12)
    return update


def _clipped(grads: Params, most: float, epsilon: float = 1e-6) -> Params:
    """The values of :func:`fedfields.tree.clip` with their true derivative."""
    if not most > 0:
        return grads
    size = tree.sqnorm(grads).sqrt()
    return grads if bool(size <= most) else tree.scale(grads, most / (size + epsilon))


def calm(method: Method, samples: int) -> Method:
    """The method with as little chance in it as is affordable, for an attacker who does not know the draws.

    Batches become the whole signal (of ``samples`` samples), or four times as large if that is less.
    """

    def quiet(part: Any) -> Any:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                changes[field.name] = quiet(value)
            elif field.name in ("batch", "outer_batch"):
                changes[field.name] = 4 * value if 4 * value < samples else 0
        return dataclasses.replace(part, **changes)

    return dataclasses.replace(method, objective=quiet(method.objective))


def deviation(
    method: Method, model: Method, task: Task, start: Params, loss: Loss, generator: Generator, tries: int = 4
) -> Tensor:
    """Root mean square per leaf of what ``model`` gets wrong about the random updates of ``method``: ``[weights]``."""
    guess = tree.detach(simulate(model, task, start, loss, generator))
    total = tree.tree_map(lambda leaf: torch.zeros((), dtype=leaf.dtype), guess)
    for _ in range(tries):
        update = tree.detach(simulate(method, task, start, loss, generator))
        total = tree.tree_map(lambda t, a, b: t + (a - b).square().mean() / tries, total, update, guess)
    return torch.cat([total[key].sqrt().expand(leaf.numel()) for key, leaf in start.items()])
