"""Aggregation weights that are learned: DecentNeRF (Sandhu et al., arXiv 2403.13199, section 3.3, eq. 1 and 2).

The new weights are ``g = sum_k a_k g_k / sum_k a_k``. With ``G``, the gradient of everybody's loss at ``g`` (a sum
that the server learns and broadcasts), an owner knows ``dL/da_k = <G, g_k - g> / sum a`` without telling anybody its
a_k or g_k. A gradient at g can only be asked for when g is known: what a round's weights were worth is known two
rounds later, and an owner that was not there in between keeps its a_k.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from fedfields import tree
from fedfields.lazy import torch
from fedfields.strategies.averaging import FedAvg
from fedfields.strategies.base import Outcome, Strategy, scalar
from fedfields.types import Memory, Metrics, Params, Report

LARGEST = 16.0
"""Largest weight of an owner, where their mean is 1; its inverse is the smallest."""


@dataclass(frozen=True)
class Learned(Strategy):
    """Learned aggregation weights, each known to its owner alone; all that the server sees are three sums.

    ``a_k <- a_k exp(-rate cos(G, g_k - g))``: the step of eq. 1 on ``log a_k``, where it cannot leave the simplex, and
    free of the scales of gradients and weights. Weights are relative to their mean, which the server broadcasts.
    """

    rate: float = 1.0
    """Step size of eq. 1 (eta)."""

    phases: Literal["one", "two"] = "one"
    """One: gradients travel with the weights, and act a round later (the paper's summary). Two: every other round only
    asks for the gradient, and the next one trains with weights that know it (eq. 1 as written)."""

    base: FedAvg = dataclasses.field(default_factory=FedAvg)
    """The server's step with the weighted mean."""

    wants_gradient = True
    heaviest = LARGEST

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"strategy.rate is {self.rate}; it must not be negative")
        if self.phases not in ("one", "two"):
            raise ValueError(f"strategy.phases is {self.phases!r}; it must be one or two")

    def init(self, params: Params) -> Memory:
        state = {"round": scalar(0), "mean": scalar(1)}
        return {"learned": state, "gradient": tree.zeros(params)} | self.base.init(params)

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return {"params": params, "gradient": memory["gradient"], "learned": memory["learned"]}

    def steps(self, steps: int, received: Memory) -> int:
        """None in a round that only asks for the gradient."""
        return 0 if self._asking(received) else steps

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        number, mean = (float(received["learned"][key]) for key in ("round", "mean"))
        own = {key: float(leaf) for key, leaf in memory.get("learned", {}).items()}
        alpha, memory = own.get("alpha", mean) / mean, dict(memory)
        if own.get("about") == number:
            alpha *= math.exp(-self.rate * cosine(received["gradient"], memory["away"]))
        own["alpha"] = alpha = min(LARGEST, max(1 / LARGEST, alpha))
        if own.get("trained") == number - 1:  # These weights went into the mean that has now arrived.
            memory["away"], own["about"] = tree.sub(memory["mine"], outcome.start), number + 1
        if not self._asking(received):
            memory["mine"], own["trained"] = dict(outcome.final), number
        memory["learned"] = {key: scalar(value) for key, value in own.items()}
        report, _ = super().report(outcome._replace(weight=alpha * outcome.weight), received, {})
        report["gradient"] = tree.scale(outcome.gradient or tree.zeros(outcome.start), outcome.weight)
        report["stats"] |= {"alpha": scalar(alpha), "count": scalar(1)}
        return report, memory

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        kept = {name: part for name, part in memory.items() if name not in ("learned", "gradient")}
        metrics: Metrics = {}
        if not self._asking(memory):
            params, kept, metrics = self.base.apply(params, kept, total, clients)
        mean = float(total["stats"]["alpha"] / total["stats"]["count"])
        state = {"round": memory["learned"]["round"] + 1, "mean": scalar(mean)}
        gradient = {key: total["gradient"][key].to(leaf.dtype) for key, leaf in params.items()}
        return params, kept | {"learned": state, "gradient": gradient}, metrics | {"alpha_mean": mean}

    def _asking(self, known: Memory) -> bool:
        """Whether this round only asks for the gradient; the first one trains."""
        return self.phases == "two" and int(known["learned"]["round"]) % 2 == 1


def alpha_gradient(gradient: Params, mine: Params, mean: Params, alphas: float) -> torch.Tensor:
    """``dL/da_k`` of ``L(sum a_j g_j / sum a_j)``: eq. 2 with the normalisation, ``<G, g_k - g> / sum a`` (0-d)."""
    return tree.dot(gradient, tree.sub(mine, mean)) / alphas


def cosine(gradient: Params, away: Params) -> float:
    """``<G, g_k - g> / (|G| |g_k - g|)``, the sign and the relative size of eq. 2; 0 if one of them is."""
    scale = float(tree.norm(gradient)) * float(tree.norm(away))
    return float(tree.dot(gradient, away)) / scale if scale else 0.0
