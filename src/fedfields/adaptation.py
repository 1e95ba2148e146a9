"""Test-time optimisation: from the shared initialisation to one signal, in a few plain optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedfields import tree
from fedfields.lazy import torch
from fedfields.objectives import metaleaves
from fedfields.objectives.base import draw, gradient
from fedfields.optim import Adam, Sgd
from fedfields.types import Loss, Params, Signal, Task

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class Adaptation:
    """How an owner fits the field to a signal. The defaults are those of the official FedMeNF code, batch apart."""

    steps: int = 128
    """Last step; figures are taken at 0, 1, 2, 4, 8, ... and there (the official code goes to 512)."""

    lr: float = 0.1
    """Step size."""

    batch: int = 512
    """Samples per step, drawn with replacement from the support; 0 takes all of it."""

    clip: float = 5.0
    """Largest norm of a gradient; 0 never clips."""

    optimizer: Sgd | Adam = field(default_factory=Sgd)
    """The optimiser (SGD, SGD with momentum, Adam)."""

    fraction: float = 1.0
    """Share of the samples that the owner may use (few-shot); the whole signal judges the result."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"adaptation.steps is {self.steps}; it must be 0 or more")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"adaptation.fraction is {self.fraction}; it must lie in (0, 1]")

    def checkpoints(self) -> tuple[int, ...]:
        """Steps after which figures are taken: 0, the powers of two, and the last."""
        doubling = [0] + [2**i for i in range(self.steps.bit_length()) if 2**i <= self.steps]
        return tuple(sorted({*doubling, self.steps}))


def adapting(
    params: Params, support: Signal, loss: Loss, settings: Adaptation, generator: Generator
) -> Iterator[tuple[int, Params]]:
    """Yields ``(step, weights)`` at each checkpoint while ``params`` are fitted to ``support``.

    Meta leaves stay as they are: step sizes take the place of ``settings.lr``, and learned noise is put on hidden
    layers while the weights are fitted (Lee et al., ICLR 2020), never where they are judged.

    Raises:
        ValueError: the support has too few samples to be cut, or learned step sizes meet Adam, which knows no size.
    """
    if settings.fraction < 1:
        few = getattr(support, "few", None)
        if few is None:
            raise ValueError(f"{type(support).__name__} cannot be cut to a fraction of its samples")
        support = few(settings.fraction, generator)
    wanted = set(settings.checkpoints())
    weights, meta = tree.parted(tree.detach(params))
    rates = any(key.startswith(metaleaves.RATE) for key in meta)
    if rates and not isinstance(settings.optimizer, Sgd):
        raise ValueError("these weights have learned step sizes, which are for SGD; adapt with adapt-optimizer:sgd")
    state = settings.optimizer.init(weights)
    for step in range(settings.steps + 1):
        if step in wanted:
            yield step, weights | meta
        if step < settings.steps:
            batch = draw(support, settings.batch, generator)
            here = metaleaves.perturbed(loss, 0.0, meta, generator)
            grads, _ = gradient(here, tree.leaves_of(weights), batch)
            with torch.no_grad():
                grads = tree.clip(grads, settings.clip)
                if rates:
                    grads = {key: grad * metaleaves.rate(key, settings.lr, meta) for key, grad in grads.items()}
                weights, state = settings.optimizer.step(weights, grads, state, 1.0 if rates else settings.lr)


def adapt(params: Params, task: Task, loss: Loss, settings: Adaptation, generator: Generator) -> Params:
    """The weights after the last step, fitted to the task's support."""
    *_, (_, adapted) = adapting(params, task.support, loss, settings, generator)
    return adapted
