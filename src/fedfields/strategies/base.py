"""The contract between a client's half and a server's half of a federated algorithm.

A report is a dict of trees; the server sees only the sum of the reports, and the weights are part of that sum.
So every strategy works unchanged when nobody may look at a single report.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Memory, Metrics, Params, Report

if TYPE_CHECKING:
    from torch import Tensor


class Outcome(NamedTuple):
    """What local training did: from ``start`` (received) to ``final`` in ``steps`` steps of ``lr``; the weight p_k; the
    objective's gradient at ``start``, for strategies that want it; and its loss there."""

    start: Params
    final: Params
    steps: int
    lr: float
    weight: float
    gradient: Params | None = None
    loss: float = 1.0


class Strategy(ABC):
    """A federated algorithm. Subclasses are frozen dataclasses; all state goes in and out."""

    sums_only: ClassVar[bool] = True
    """Whether the server needs nothing but the sum of the reports."""

    wants_gradient: ClassVar[bool] = False
    """Whether reports need the objective's gradient at the received weights."""

    heaviest: ClassVar[float] = 1.0
    """How many times its weight p_k a client may count."""

    def at(self, progress: float) -> Strategy:
        """The server's step when a share ``progress`` of the run is over; most are the same all the way."""
        base = getattr(self, "base", None)
        return self if base is None else dataclasses.replace(self, base=base.at(progress))  # pyright: ignore

    def init(self, params: Params) -> Memory:
        """What the server remembers before the first round."""
        return {}

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        """What travels down: ``{"params": where clients start, ...}``."""
        return {"params": params}

    def client_init(self, params: Params) -> Memory:
        """What a client remembers before its first visit."""
        return {}

    def steps(self, steps: int, received: Memory) -> int:
        """Outer steps of this visit, where ``steps`` are usual."""
        return steps

    def correct(self, grads: Params, received: Memory, memory: Memory) -> Params:
        """The client's gradient, corrected before each local step."""
        return grads

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        """The client's report, already multiplied by its weight, and its new memory.

        ``{"delta": p (start - final), "stats": {"weight": p}}``: a pseudo-gradient, so a server descends it.
        """
        delta = tree.sub(outcome.start, outcome.final)
        if outcome.weight != 1:
            delta = tree.scale(delta, outcome.weight)
        return {"delta": delta, "stats": {"weight": scalar(outcome.weight)}}, memory

    def uploaded(self, start: Params, report: Report, steps: int) -> Params:
        """The client's weights as one report gives them away: ``start - delta / weight``."""
        weight = float(report["stats"]["weight"])
        return {key: leaf - report["delta"][key].to(leaf.dtype) / weight for key, leaf in start.items()}

    @abstractmethod
    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        """One server step.

        Args:
            params: the global weights before the round.
            memory: what the server remembers.
            total: the sum of the reports, float64.
            clients: N, the number of clients in the federation (not the cohort).

        Returns:
            New weights, new memory and figures for people.
        """


def scalar(value: float | Tensor) -> Tensor:
    """A 0-d float64 tensor: sums of weights and counts are kept exact."""
    return torch.as_tensor(value, dtype=torch.float64).detach()


def mean_of(total: Report, key: str = "delta") -> Params:
    """The weighted mean of a reported tree: its sum over the sum of the weights."""
    return tree.scale(total[key], 1 / total["stats"]["weight"])


def descend(params: Params, direction: Params, lr: float = 1.0) -> Params:
    """``params - lr direction`` in the dtype of the direction (float64), cast back to that of the weights."""
    return {key: (leaf - lr * direction[key]).to(leaf.dtype) for key, leaf in params.items()}


def check_final(final: float) -> None:
    """Raises ValueError unless this is a share of a step size."""
    if not 0 <= final <= 1:
        raise ValueError(f"strategy.final is {final}; it must lie in [0, 1]")
