"""What an objective is, and the inner loop that the meta-learning ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Batch, Loss, Metrics, Params, Signal, Task, Visit

if TYPE_CHECKING:
    from torch import Generator


class Estimate(NamedTuple):
    """A gradient estimate.

    Attributes:
        grads: what the local optimiser is to descend; same keys and shapes as the weights, without history
            unless the visit is differentiable.
        metrics: figures for people.
        query: the outer batch, for wrappers that add a term on the very same samples; None if there was none.
    """

    grads: Params
    metrics: Metrics
    query: Batch | None = None


class Objective(ABC):
    """Weights, a task and a loss to a gradient estimate. Subclasses are frozen dataclasses without state."""

    @property
    def queries(self) -> bool:
        """Whether estimates carry the outer batch."""
        return True

    @property
    def second_order(self) -> bool:
        """Whether estimates differentiate an inner loop, their own or that of the objective inside."""
        base = getattr(self, "base", None)
        return base is not None and base.second_order

    @abstractmethod
    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        """The gradient at ``params``.

        Args:
            params: the local weights ``w``; history is ignored unless the visit is differentiable.
            task: support and query signals.
            loss: the seam; ``loss(params, batch)`` is a scalar.
            visit: anchor, generator and rates of this visit.
        """
        ...


def leaves_for(visit: Visit, params: Params) -> Params:
    """The weights, ready for gradients: fresh leaves, or themselves (they need gradients) if history matters."""
    return params if visit.differentiable else tree.leaves_of(params)


def draw(signal: Signal, count: int, generator: Generator) -> Batch:
    """``count`` random samples of a signal, or all of it if ``count`` is 0."""
    return signal.everything() if count == 0 else signal.sample(count, generator)


def gradient(loss: Loss, params: Params, batch: Batch, *, create_graph: bool = False) -> tuple[Params, torch.Tensor]:
    """Gradient of ``loss(params, batch)`` with respect to every leaf, and the loss without history."""
    value = loss(params, batch)
    grads = torch.autograd.grad(value, list(params.values()), create_graph=create_graph)
    return dict(zip(params, grads, strict=True)), value.detach()


@dataclass(frozen=True)
class Inner:
    """The inner loop: ``phi <- (1 - lr wd) phi - lr (clip(grad L(phi; B)) + rho (phi - w))``, B from the support."""

    steps: int = 8
    """Number of inner steps K."""

    lr: float = 0.1
    """Inner step size (lambda_i)."""

    batch: int = 512
    """Samples per inner step, drawn with replacement; 0 takes the whole signal."""

    clip: float = 5.0
    """Largest norm of an inner gradient; 0 never clips. The clip scales values only: derivatives ignore it."""

    weight_decay: float = 0.0
    """Decay of the adapted weights towards zero, inside the differentiated graph."""

    proximal: float = 0.0
    """Pull rho towards the weights that the loop started from (iMAML, pFedMe, meta-NSGD)."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 0:
            raise ValueError(f"inner loop of {self.steps} steps on {self.batch} samples; neither may be negative")

    def adapt(
        self, params: Params, signal: Signal, loss: Loss, generator: Generator, *, second_order: bool
    ) -> tuple[Params, float]:
        """``phi_K`` from ``params``, and the loss before the last step.

        With ``second_order`` the result depends differentiably on ``params``, which must require gradients;
        without it every leaf of the result is fresh and requires gradients itself.
        """
        phi = params if second_order else tree.leaves_of(params)
        value = torch.zeros(())
        for _ in range(self.steps):
            batch = draw(signal, self.batch, generator)
            grads, value = gradient(loss, phi, batch, create_graph=second_order)
            grads = tree.clip(grads, self.clip)
            if self.proximal:
                grads = {key: grads[key] + self.proximal * (phi[key] - params[key]) for key in phi}
            shrink = 1 - self.lr * self.weight_decay
            with torch.set_grad_enabled(second_order):
                phi = {
                    key: torch.add(leaf * shrink if shrink != 1 else leaf, grads[key], alpha=-self.lr)
                    for key, leaf in phi.items()
                }
            if not second_order:
                phi = tree.leaves_of(phi)
        return phi, float(value)
