"""Weights by the quality of a client's task: the inverse of its query loss.

A client whose model fits its own query samples well has clean data and a task that the others can learn from; one
with wrong labels, or too little to adapt to, should move the model less. The loss is what the objective reports for the
first outer step of the visit: that of the received weights (after the inner steps, where there are any), before they
are trained. The opposite, to weigh by the loss itself, is fair to clients that fare badly instead (q-FFL; Li et al.,
*Fair Resource Allocation in Federated Learning*, ICLR 2020), and trusts whoever reports the largest one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedfields.strategies.adaptive import FedOpt
from fedfields.strategies.averaging import FedAcg, FedAvg, FedExp, FedNova
from fedfields.strategies.base import Outcome, Strategy, scalar
from fedfields.types import Memory, Metrics, Params, Report

LARGEST = 5.0
"""Most that a client may count, where one of mean loss counts 1; its inverse is the least."""

_LOSSES = (1e-12, 1e3)
"""Between these a loss enters the mean, so that a single one cannot leave the range of secure sums."""


@dataclass(frozen=True)
class LossWeighted(Strategy):
    """Weights ``clip(mean loss / own loss, 1/5, 5)`` around a strategy that averages.

    Each client weighs itself, with the mean of the round before, which the server learns as a sum and broadcasts; so it
    goes with secure sums. In the first round all are equal.
    """

    base: FedAvg | FedNova | FedExp | FedAcg | FedOpt = dataclasses.field(default_factory=FedAvg)
    """What the server does with the weighted mean."""

    heaviest = LARGEST

    def __post_init__(self) -> None:
        if not isinstance(self.base, FedAvg | FedNova | FedExp | FedAcg | FedOpt):
            raise ValueError(
                f"{type(self.base).__name__} has weights of its own, or none; for weights by the query loss choose a "
                "strategy that averages, such as strategy:fedavg"
            )

    def init(self, params: Params) -> Memory:
        return self.base.init(params) | {"quality": {"loss": scalar(0)}}

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return self.base.broadcast(params, memory) | {"quality": memory["quality"]}

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        mean, (least, most) = float(received["quality"]["loss"]), _LOSSES
        loss = min(most, max(least, outcome.loss))
        share = min(LARGEST, max(1 / LARGEST, mean / loss)) if mean else 1.0
        report, memory = self.base.report(outcome._replace(weight=share * outcome.weight), received, memory)
        report["stats"] |= {"loss": scalar(loss), "count": scalar(1)}
        return report, memory

    def uploaded(self, start: Params, report: Report, steps: int) -> Params:
        return self.base.uploaded(start, report, steps)

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        kept = {name: part for name, part in memory.items() if name != "quality"}
        params, kept, metrics = self.base.apply(params, kept, total, clients)
        mean = total["stats"]["loss"] / total["stats"]["count"]
        return params, kept | {"quality": {"loss": mean}}, metrics | {"query_loss": float(mean)}
