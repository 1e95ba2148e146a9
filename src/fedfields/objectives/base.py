"""What an objective is, and the inner loop that the meta-learning ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedfields import tree
from fedfields.lazy import torch
from fedfields.objectives import metaleaves
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

    def leaves(self, params: Params, loss: Loss) -> Params:
        """Meta leaves that the objective trains beside the weights, as they are at first; most have none.

        Raises:
            ValueError: the loss does not go with the objective.
        """
        part = getattr(self, "inner", None) or getattr(self, "base", None)
        return {} if part is None else part.leaves(params, loss)

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
    """Gradient of ``loss(params, batch)`` with respect to every leaf, and the loss without history.

    It is zero for what the loss does not depend on, such as meta leaves.
    """
    value = loss(params, batch)
    grads = torch.autograd.grad(value, list(params.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(params, grads, strict=True)), value.detach()


class Step(NamedTuple):
    """One step of an inner loop.

    Attributes:
        before: phi_k.
        loss: of the step, with all that is random about it.
        batch: of the support.
        value: the loss at phi_k.
        after: phi_{k+1}.
    """

    before: Params
    loss: Loss
    batch: Batch
    value: torch.Tensor
    after: Params


@dataclass(frozen=True)
class Inner:
    """The inner loop: ``phi <- (1 - lr wd) phi - lr (clip(grad L(phi; B)) + rho (phi - w))``, B from the support.

    Meta leaves among the weights are not adapted: step sizes of single weights take the place of ``lr`` (Meta-SGD), and
    learned noise is put on hidden layers (meta-dropout); see :mod:`fedfields.objectives.metaleaves`.
    """

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

    dropout: float = 0.0
    """Share of the hidden units that each inner step drops, by a mask of its own; the outer step drops none."""

    learn_rates: bool = False
    """Learn a step size for each weight, from lr on (Meta-SGD; Li et al. 2017, and FedMeta, Chen et al. 2018)."""

    learn_noise: bool = False
    """Learn the noise that inner steps put on hidden layers (meta-dropout; Lee et al., ICLR 2020)."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 0:
            raise ValueError(f"inner loop of {self.steps} steps on {self.batch} samples; neither may be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"inner.dropout is {self.dropout}; it must be at least 0 and less than 1")

    def leaves(self, params: Params, loss: Loss) -> Params:
        """The meta leaves that this loop learns, as they are at first.

        Raises:
            ValueError: the loss has no hidden layers that noise could be put on.
        """
        weights, _ = tree.parted(params)
        rates = metaleaves.rates(weights, self.lr) if self.learn_rates else {}
        noise = metaleaves.noise(loss) if self.learn_noise else {}
        if self.dropout:
            metaleaves.noisy(loss)
        return rates | noise

    def perturbed(self, loss: Loss, meta: Params, generator: Generator) -> Loss:
        """The loss of one inner step, with dropout and learned noise if there are any."""
        return metaleaves.perturbed(loss, self.dropout, meta, generator)

    def path(
        self, params: Params, signal: Signal, loss: Loss, generator: Generator, *, second_order: bool
    ) -> Iterator[Step]:
        """The steps of the loop; arguments as for :meth:`adapt`."""
        start, meta = tree.parted(params)
        metaleaves.require(meta, rates=self.learn_rates, noise=self.learn_noise)
        phi = start if second_order else tree.leaves_of(start)
        for _ in range(self.steps):
            before, batch = phi, draw(signal, self.batch, generator)
            here = self.perturbed(loss, meta, generator)
            grads, value = gradient(here, phi, batch, create_graph=second_order)
            with torch.set_grad_enabled(second_order):
                phi = self._descend(phi, tree.clip(grads, self.clip), start, meta)
            if not second_order:
                phi = tree.leaves_of(phi)
            yield Step(before, here, batch, value, phi)

    def _descend(self, phi: Params, grads: Params, start: Params, meta: Params) -> Params:
        """``phi`` after a step along these gradients."""
        if self.proximal:
            grads = {key: grads[key] + self.proximal * (phi[key] - start[key]) for key in phi}
        if self.weight_decay:
            kept = {key: 1 - self.weight_decay * metaleaves.rate(key, self.lr, meta) for key in phi}
            phi = {key: leaf * kept[key] for key, leaf in phi.items()}
        return metaleaves.descend(phi, grads, self.lr, meta)

    def adapt(
        self, params: Params, signal: Signal, loss: Loss, generator: Generator, *, second_order: bool
    ) -> tuple[Params, float]:
        """``phi_K`` from ``params``, and the loss before the last step.

        With ``second_order`` the result depends differentiably on ``params``, which must require gradients;
        without it every leaf of the result is fresh and requires gradients itself.
        """
        phi, meta = tree.parted(params if second_order else tree.leaves_of(params))
        value = torch.zeros(())
        for step in self.path(params, signal, loss, generator, second_order=second_order):
            phi, value = step.after, step.value
        return phi | meta, float(value)
