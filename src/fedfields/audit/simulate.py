"""A client's local training as the server can imagine it: differentiable with respect to the picture."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fedfields import tree
from fedfields.federation import Method
from fedfields.losses import FieldLoss
from fedfields.scenes.grid import GridSignal
from fedfields.types import Params, Task, Visit


def simulate(method: Method, values: Tensor, start: Params, loss: FieldLoss, generator: Generator) -> Params:
    """The update ``w - theta`` that a client with the picture ``values`` would arrive at.

    Args:
        method: objective and local training; its protections are not applied.
        values: ``[*shape, C]``; the result depends on it differentiably.
        start: the broadcast weights.
        loss: of the field.
        generator: of the draws; the client's own reproduces its update exactly.
    """
    signal = GridSignal(values)
    task, local = Task(signal, signal), method.local
    context = Visit(start, generator, local.lr, differentiable=True)
    params, state = tree.leaves_of(start), local.optimizer.init(start)
    for _ in range(local.steps):
        grads = method.objective.estimate(params, task, loss, context).grads
        params, state = local.optimizer.step(params, tree.clip(grads, local.clip), state, local.lr)
    return tree.sub(params, start)


def draw_spread(
    method: Method, values: Tensor, start: Params, loss: FieldLoss, generator: Generator, tries: int = 4
) -> Tensor:
    """Standard deviation per weight of the update under the random draws, one figure for each leaf: ``[weights]``."""
    updates = [tree.detach(simulate(method, values, start, loss, generator)) for _ in range(tries)]
    spread = {key: torch.stack([one[key] for one in updates]).std(0).square().mean().sqrt() for key in start}
    return torch.cat([spread[key].expand(leaf.numel()) for key, leaf in start.items()])
