"""SCAFFOLD: Karimireddy et al., *Stochastic Controlled Averaging for Federated Learning*, ICML 2020, algorithm 1.

The textbook, with control variates that are used (the official FedMeNF code computes them and never applies them).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedfields import tree
from fedfields.strategies.base import Outcome, Strategy, descend, mean_of, scalar
from fedfields.types import Memory, Metrics, Params, Report


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Local steps along ``g - c_k + c``; every client counts the same, whatever its weight."""

    lr: float = 1.0
    """Server step size."""

    clip: float = 0.0
    """Largest norm of the averaged update; 0 never clips."""

    def init(self, params: Params) -> Memory:
        return {"variate": tree.zeros(params)}

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return {"params": params, "variate": memory["variate"]}

    def client_init(self, params: Params) -> Memory:
        return {"variate": tree.zeros(params)}

    def correct(self, grads: Params, received: Memory, memory: Memory) -> Params:
        return {key: g - memory["variate"][key] + received["variate"][key] for key, g in grads.items()}

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        """Adds ``"variate": c_k+ - c_k`` with ``c_k+ = c_k - c + (start - final) / (steps lr)`` (option II)."""
        delta = tree.sub(outcome.start, outcome.final)
        per_step = 1 / (max(1, outcome.steps) * outcome.lr)
        change = tree.add(tree.scale(received["variate"], -1.0), delta, per_step)
        report = {"delta": delta, "variate": change, "stats": {"weight": scalar(1.0)}}
        return report, {"variate": tree.add(memory["variate"], change)}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        delta = tree.clip(mean_of(total), self.clip)
        variate = {
            key: (leaf + total["variate"][key] / clients).to(leaf.dtype) for key, leaf in memory["variate"].items()
        }
        return descend(params, delta, self.lr), {"variate": variate}, {}
