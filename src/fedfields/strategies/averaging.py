"""Strategies that average: FedAvg (with server momentum), FedNova, FedExP, FedACG."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedfields import tree
from fedfields.optim import falling
from fedfields.strategies.base import Outcome, Strategy, check_final, descend, mean_of, scalar
from fedfields.types import Memory, Metrics, Params, Report


@dataclass(frozen=True)
class FedAvg(Strategy):
    """FedAvg (McMahan et al., AISTATS 2017) and, with momentum, FedAvgM (Hsu et al., 2019)."""

    lr: float = 1.0
    """Server step size."""

    momentum: float = 0.0
    """Server momentum beta: v <- beta v + delta, theta <- theta - lr v."""

    clip: float = 0.0
    """Largest norm of the averaged update (the official FedMeNF code uses 5); 0 never clips."""

    final: float = 1.0
    """Share of lr that is left at the end of the run; it falls along half a cosine (FedReptile ends with 0)."""

    def __post_init__(self) -> None:
        check_final(self.final)

    def at(self, progress: float) -> Strategy:
        return self if self.final == 1 else replace(self, lr=self.lr * falling(self.final, progress))

    def init(self, params: Params) -> Memory:
        return {"velocity": tree.zeros(params)} if self.momentum else {}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        delta = tree.clip(mean_of(total), self.clip)
        if self.momentum:
            delta = tree.add(delta, memory["velocity"], self.momentum)
            memory = {"velocity": {key: delta[key].to(leaf.dtype) for key, leaf in params.items()}}
        return descend(params, delta, self.lr), memory, {}


@dataclass(frozen=True)
class FedNova(Strategy):
    """FedNova (Wang et al., NeurIPS 2020, eq. 7): updates per local step, times the mean number of steps."""

    lr: float = 1.0
    """Server step size."""

    clip: float = 0.0
    """Largest norm of the averaged update; 0 never clips."""

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        report, memory = super().report(outcome, received, memory)
        steps = max(1, outcome.steps)
        report["delta"] = tree.scale(report["delta"], 1 / steps)
        report["stats"]["steps"] = scalar(outcome.weight * steps)
        return report, memory

    def uploaded(self, start: Params, report: Report, steps: int) -> Params:
        whole = report | {"delta": tree.scale(report["delta"], max(1, steps))}
        return super().uploaded(start, whole, steps)

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        effective = float(total["stats"]["steps"] / total["stats"]["weight"])
        delta = tree.clip(tree.scale(mean_of(total), effective), self.clip)
        return descend(params, delta, self.lr), memory, {"effective_steps": effective}


@dataclass(frozen=True)
class FedExp(Strategy):
    """FedExP (Jhunjhunwala et al., ICLR 2023, eq. 8): max(1, mean |delta_k|^2 / (2 (|mean delta|^2 + eps)))."""

    epsilon: float = 1e-3
    """Keeps the step finite when the updates cancel; small next to the squared norm of an update."""

    clip: float = 0.0
    """Largest norm of the averaged update, before it is extrapolated; 0 never clips."""

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        report, memory = super().report(outcome, received, memory)
        difference = tree.sub(outcome.start, outcome.final)
        report["moments"] = {"sqnorm": scalar(outcome.weight * tree.sqnorm(difference).double())}
        return report, memory

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        delta = mean_of(total)
        spread = float(total["moments"]["sqnorm"] / total["stats"]["weight"])
        lr = max(1.0, spread / (2 * (float(tree.sqnorm(delta)) + self.epsilon)))
        return descend(params, tree.clip(delta, self.clip), lr), memory, {"server_lr": lr}


@dataclass(frozen=True)
class FedAcg(Strategy):
    """FedACG (Kim et al., CVPR 2024): clients start from the look-ahead theta + lambda m; m <- lambda m + delta.

    The paper's client adds the pull (beta/2) |w - look-ahead|^2 with beta 1e-3: wrap the objective in ``Proximal``.
    """

    momentum: float = 0.85
    """Lambda, the decay of the accumulated momentum."""

    clip: float = 0.0
    """Largest norm of the averaged update; 0 never clips."""

    def init(self, params: Params) -> Memory:
        return {"momentum": tree.zeros(params)}

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return {"params": tree.add(params, memory["momentum"], self.momentum)}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        delta = tree.clip(mean_of(total), self.clip)
        momentum = {key: (self.momentum * leaf - delta[key]).to(leaf.dtype) for key, leaf in memory["momentum"].items()}
        return tree.add(params, momentum), {"momentum": momentum}, {}
