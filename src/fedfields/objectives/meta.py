"""Fit, MAML (first and second order) and Reptile.

Finn et al., *Model-Agnostic Meta-Learning*, ICML 2017, eq. 1 and section 5.2; Nichol et al., *On First-Order
Meta-Learning Algorithms*, 2018, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedfields.lazy import torch
from fedfields.objectives.base import Estimate, Inner, Objective, draw, gradient, leaves_for
from fedfields.types import Loss, Params, Task, Visit


@dataclass(frozen=True)
class Fit(Objective):
    """``grad L(w; Q)``: plain training on the query signal, as in FedAvg."""

    batch: int = 0
    """Samples per step, drawn with replacement; 0 takes the whole signal."""

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        query = draw(task.query, self.batch, visit.generator)
        grads, value = gradient(loss, leaves_for(visit, params), query, create_graph=visit.differentiable)
        return Estimate(grads, {"loss": float(value)}, query)


@dataclass(frozen=True)
class Maml(Objective):
    """``grad_w L(phi_K(w); Q)``, where ``phi_K`` is ``w`` after K inner steps on the support."""

    inner: Inner = field(default_factory=Inner)
    """The inner loop."""

    outer_batch: int = 0
    """Samples in the outer batch, drawn with replacement from the query; 0 takes the whole signal."""

    first_order: bool = False
    """Ignore how ``phi_K`` depends on ``w`` (FOMAML)."""

    @property
    def second_order(self) -> bool:
        """Unless it is FOMAML, or takes no inner step."""
        return not self.first_order and self.inner.steps > 0

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        params = leaves_for(visit, params)
        second_order = visit.differentiable or not self.first_order
        phi, inner_loss = self.inner.adapt(params, task.support, loss, visit.generator, second_order=second_order)
        query = draw(task.query, self.outer_batch, visit.generator)
        at = phi if self.first_order else params
        grads, value = gradient(lambda _, batch: loss(phi, batch), at, query, create_graph=visit.differentiable)
        return Estimate(grads, {"loss": float(value), "inner_loss": inner_loss}, query)


@dataclass(frozen=True)
class Reptile(Objective):
    """``scale (w - phi_K)``: the way to where the inner loop ends, on the support alone.

    With ``inner.proximal`` equal to ``scale`` it is the task gradient of meta-NSGD (Zhou and Bassily, NeurIPS 2022).
    """

    inner: Inner = field(default_factory=Inner)
    """The inner loop."""

    scale: float = 1.0
    """Factor of the difference (lambda of meta-NSGD)."""

    @property
    def queries(self) -> bool:
        """No: there is no outer batch."""
        return False

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        keep = visit.differentiable
        phi, inner_loss = self.inner.adapt(params, task.support, loss, visit.generator, second_order=keep)
        with torch.set_grad_enabled(keep):
            grads = {key: self.scale * (leaf - phi[key]) for key, leaf in params.items()}
        return Estimate(grads, {"loss": inner_loss})
