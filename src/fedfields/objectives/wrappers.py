"""Objectives made from objectives: terms added to, or taken from, another one's gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedfields import tree
from fedfields.lazy import torch
from fedfields.objectives.base import Estimate, Objective, gradient, leaves_for
from fedfields.objectives.meta import Maml
from fedfields.types import Batch, Loss, Params, Signal, Task, Visit

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class MeNF(Objective):
    """The privacy-preserving loss of FedMeNF (Yun et al., ICCV 2025): ``base - gamma grad L(w; Q)``.

    L_pp = L(phi_K, B) - gamma L(w, B) on the same batch B. With gamma 1 the part that memorises vanishes to first
    order; the term ``-gamma L(w)`` is unbounded below, so large steps diverge. It is no guarantee of privacy: other
    attacks than rendering the upload succeed (see the audit).
    """

    base: Objective = field(default_factory=Maml)
    """The objective from which the memorising part is taken."""

    gamma: float = 0.75
    """Share of the memorising gradient that is taken away; 0 is the base objective."""

    budget: float = 0.0
    """If positive, gamma adapts to this budget zeta: clip(1 - zeta N / (R E M lr |grad L(w)|^2), 0, 1)."""

    def __post_init__(self) -> None:
        _require_queries(self.base, "FedMeNF's loss")
        if self.budget < 0:
            raise ValueError(f"privacy budget zeta is {self.budget}; it must be positive, or 0 for a fixed gamma")

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        base = self.base.estimate(params, task, loss, visit)
        if self.gamma == 0 and not self.budget:
            return base
        memorising, at_w = _memorising(base, params, loss, visit)
        gamma = self.gamma
        if self.budget:
            size = _number(tree.sqnorm(memorising), visit)
            allowed = self.budget * visit.step_share / (visit.outer_lr * size + 1e-30)
            gamma = min(1.0, max(0.0, 1 - allowed))
        metrics = base.metrics | {"gamma": _plain(gamma), "loss_before": at_w}
        return base._replace(grads=tree.add(base.grads, memorising, -gamma), metrics=metrics)


@dataclass(frozen=True)
class Proximal(Objective):
    """``base + mu (w - anchor)``: FedProx (Li et al., MLSys 2020, eq. 2) around any objective."""

    base: Objective = field(default_factory=Maml)
    """The objective to which the pull is added."""

    mu: float = 0.1
    """Strength of the pull towards the received weights; leaves that the client never sends are not pulled."""

    @property
    def queries(self) -> bool:
        """As the base."""
        return self.base.queries

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        base = self.base.estimate(params, task, loss, visit)
        if self.mu == 0:
            return base
        drift = params if visit.differentiable else tree.detach(params)
        pulled = {
            key: torch.add(base.grads[key], drift[key] - anchor, alpha=self.mu) for key, anchor in visit.anchor.items()
        }
        return base._replace(grads=base.grads | pulled)


@dataclass(frozen=True)
class Projected(Objective):
    """``base`` minus its component along ``grad L(w; Q)`` (experimental): FedMeNF with a gamma of its own choosing."""

    base: Objective = field(default_factory=Maml)
    """The objective from which the component is taken."""

    def __post_init__(self) -> None:
        _require_queries(self.base, "the projection")

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        base = self.base.estimate(params, task, loss, visit)
        memorising, at_w = _memorising(base, params, loss, visit)
        share = _number(tree.dot(base.grads, memorising) / (tree.sqnorm(memorising) + 1e-30), visit)
        metrics = base.metrics | {"gamma": _plain(share), "loss_before": at_w}
        return base._replace(grads=tree.add(base.grads, memorising, -share), metrics=metrics)


@dataclass(frozen=True)
class Antithetic(Objective):
    """Mean of ``base`` on the signal and on its mirror image ``2 f_w - y`` (experimental).

    What is odd in the residual cancels, so linear read-outs find nothing; gradient matching still does.
    The loss must offer ``mirror(params, batch)``, as a field's loss does.
    """

    base: Objective = field(default_factory=Maml)
    """The objective that is averaged."""

    @property
    def queries(self) -> bool:
        """As the base."""
        return self.base.queries

    def estimate(self, params: Params, task: Task, loss: Loss, visit: Visit) -> Estimate:
        twin = torch.Generator()
        twin.set_state(visit.generator.get_state())
        start = tree.detach(params)
        support = _Mirrored(task.support, loss, start)
        query = support if task.query is task.support else _Mirrored(task.query, loss, start)
        base = self.base.estimate(params, task, loss, visit)
        mirrored = self.base.estimate(params, Task(support, query), loss, visit._replace(generator=twin))
        return base._replace(grads=tree.scale(tree.add(base.grads, mirrored.grads), 0.5))


class _Mirrored:
    """A signal seen through ``loss.mirror``: its residuals at ``params`` have the opposite sign."""

    def __init__(self, signal: Signal, loss: Loss, params: Params) -> None:
        mirror = getattr(loss, "mirror", None)
        if mirror is None:
            raise ValueError(f"{type(loss).__name__} has no mirror(params, batch); the antithetic objective needs it")
        self._signal, self._mirror, self._params = signal, mirror, params

    def __len__(self) -> int:
        return len(self._signal)

    def sample(self, count: int, generator: Generator) -> Batch:
        return self._mirror(self._params, self._signal.sample(count, generator))

    def everything(self) -> Batch:
        return self._mirror(self._params, self._signal.everything())


def _require_queries(base: Objective, what: str) -> None:
    if not base.queries:
        raise ValueError(f"{type(base).__name__} has no outer batch, which {what} needs; use Maml or Fit as its base")


def _memorising(base: Estimate, params: Params, loss: Loss, visit: Visit) -> tuple[Params, float]:
    """``grad L(w; Q)`` on the batch that the base used, and ``L(w; Q)``."""
    assert base.query is not None
    grads, value = gradient(loss, leaves_for(visit, params), base.query, create_graph=visit.differentiable)
    return grads, float(value)


def _number(value: Tensor, visit: Visit) -> Any:
    """The value as a plain number, or itself if its history matters."""
    return value if visit.differentiable else float(value)


def _plain(value: Any) -> float:
    """The number without its history."""
    return float(value.detach()) if isinstance(value, torch.Tensor) else value
