"""Fit, MAML (first and second order, and without Hessians) and Reptile.

Finn et al., *Model-Agnostic Meta-Learning*, ICML 2017, eq. 1 and section 5.2; Nichol et al., *On First-Order
Meta-Learning Algorithms*, 2018, algorithm 2; Fallah et al., *Personalized Federated Learning with Theoretical
Guarantees: A Model-Agnostic Meta-Learning Approach* (Per-FedAvg), NeurIPS 2020, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedfields import tree
from fedfields.lazy import torch
from fedfields.objectives import metaleaves
from fedfields.objectives.base import Estimate, Inner, Objective, Step, draw, gradient, leaves_for
from fedfields.types import Loss, Params, Signal, Task, Visit

if TYPE_CHECKING:
    from torch import Generator


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

    def __post_init__(self) -> None:
        if self.first_order:
            _require_nothing_learned(self.inner, "first-order MAML")

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
class HessianFree(Objective):
    """MAML's gradient from gradients alone: Per-FedAvg (HF), for any number of inner steps.

    The chain rule through the inner loop, backwards from ``v = grad L(phi_K; Q)``: ``v <- v - lr H v`` for k = K - 1 to
    0, with the Hessian at phi_k, ``H v = (grad L(phi_k + d v; D) - grad L(phi_k - d v; D)) / 2 d``.
    """

    inner: Inner = field(default_factory=Inner)
    """The inner loop."""

    outer_batch: int = 0
    """Samples in the outer batch, drawn with replacement from the query; 0 takes the whole signal."""

    delta: float = 1e-3
    """Length of ``d v``, on which the difference is taken."""

    fresh: bool = True
    """The Hessian is that of a batch of its own (the paper's D''), or else of the batch on which the step was taken."""

    def __post_init__(self) -> None:
        _require_nothing_learned(self.inner, "Hessian-free MAML")
        if not 0 < self.delta < math.inf:
            raise ValueError(f"objective.delta is {self.delta}; it must be positive and finite")

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        keep, inner = visit.differentiable, self.inner
        params = leaves_for(visit, params)
        phi, meta = tree.parted(params)
        steps = list(inner.path(params, task.support, loss, visit.generator, second_order=keep))
        query = draw(task.query, self.outer_batch, visit.generator)
        phi = steps[-1].after if steps else phi
        grads, value = gradient(loss, phi, query, create_graph=keep)
        pulled = tree.zeros(grads)
        for step in reversed(steps):
            if self.fresh:
                step = self._afresh(step, task.support, loss, meta, visit.generator)
            moved = {key: grad * metaleaves.rate(key, inner.lr, meta) for key, grad in grads.items()}
            pulled = tree.add(pulled, moved, inner.proximal)
            curved = self._hessian(step, moved, keep)
            shrunk = tree.add(grads, moved, -(inner.weight_decay + inner.proximal))
            grads = tree.sub(shrunk, curved)
        inner_loss = float(steps[-1].value) if steps else 0.0
        grads = tree.add(grads, pulled) | tree.zeros(meta)
        return Estimate(grads, {"loss": float(value), "inner_loss": inner_loss}, query)

    def _afresh(self, step: Step, support: Signal, loss: Loss, meta: Params, generator: Generator) -> Step:
        """The step as if it had been taken on other samples."""
        batch = draw(support, self.inner.batch, generator)
        return step._replace(batch=batch, loss=self.inner.perturbed(loss, meta, generator))

    def _hessian(self, step: Step, along: Params, keep: bool) -> Params:
        """The Hessian of a step's loss at ``phi_k`` times the direction ``along``, by a central difference."""
        size = float(tree.norm(along))
        if size == 0 or not math.isfinite(size):
            return tree.zeros(along)

        def slope(d: float) -> Params:
            at = tree.add(step.before, along, d)
            return gradient(step.loss, at if keep else tree.leaves_of(at), step.batch, create_graph=keep)[0]

        d = self.delta / size
        return tree.scale(tree.sub(slope(d), slope(-d)), 1 / (2 * d))


@dataclass(frozen=True)
class Reptile(Objective):
    """``scale (w - phi_K)``: the way to where the inner loop ends, on the support alone.

    With ``inner.proximal`` equal to ``scale`` it is the task gradient of meta-NSGD (Zhou and Bassily, NeurIPS 2022).
    """

    inner: Inner = field(default_factory=Inner)
    """The inner loop."""

    scale: float = 1.0
    """Factor of the difference (lambda of meta-NSGD)."""

    def __post_init__(self) -> None:
        _require_nothing_learned(self.inner, "Reptile")

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


def _require_nothing_learned(inner: Inner, who: str) -> None:
    if inner.learn_rates or inner.learn_noise:
        raise ValueError(
            f"{who} does not differentiate its inner loop, so it cannot learn step sizes or noise; leave out "
            "inner.learn-rates and inner.learn-noise, or choose objective:meta-sgd"
        )
