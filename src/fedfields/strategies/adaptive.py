"""Adaptive server optimisers: Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, algorithm 2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedfields import tree
from fedfields.lazy import torch
from fedfields.optim import falling
from fedfields.strategies.base import Strategy, check_final, mean_of
from fedfields.types import Memory, Metrics, Params, Report

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedOpt(Strategy):
    """FedAdam, FedYogi and FedAdagrad: m <- b1 m + (1 - b1) delta, theta <- theta - lr m / (sqrt(v) + tau).

    As in the paper there is no bias correction, and v starts at ``tau ** 2``.
    """

    rule: Literal["adam", "yogi", "adagrad"] = "adam"
    """How v follows the squared update."""

    lr: float = 1e-2
    """Server step size, in units of a normalised update."""

    beta1: float = 0.9
    """Decay of m."""

    beta2: float = 0.99
    """Decay of v; FedAdagrad has none."""

    tau: float = 1e-3
    """Adaptivity: the smaller, the more alike all weights' steps."""

    clip: float = 0.0
    """Largest norm of the averaged update; 0 never clips."""

    final: float = 1.0
    """Share of lr that is left at the end of the run; it falls along half a cosine."""

    def __post_init__(self) -> None:
        check_final(self.final)

    def at(self, progress: float) -> Strategy:
        return self if self.final == 1 else replace(self, lr=self.lr * falling(self.final, progress))

    def init(self, params: Params) -> Memory:
        start = {key: torch.full_like(leaf, self.tau**2) for key, leaf in params.items()}
        return {"mean": tree.zeros(params), "square": start}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        delta = tree.clip(mean_of(total), self.clip)
        delta = {key: delta[key].to(leaf.dtype) for key, leaf in params.items()}
        mean = tree.tree_map(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, memory["mean"], delta)
        square = tree.tree_map(self._second, memory["square"], delta)
        params = tree.tree_map(lambda p, m, v: p - self.lr * m / (v.sqrt() + self.tau), params, mean, square)
        return params, {"mean": mean, "square": square}, {}

    def _second(self, square: Tensor, delta: Tensor) -> Tensor:
        """v after one update."""
        if self.rule == "adagrad":
            return square + delta**2
        if self.rule == "yogi":
            return square - (1 - self.beta2) * delta**2 * torch.sign(square - delta**2)
        return self.beta2 * square + (1 - self.beta2) * delta**2
