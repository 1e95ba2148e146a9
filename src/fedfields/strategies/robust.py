"""Robust aggregation: it must see every report by itself, so it does not go with secure sums.

Median and trimmed mean: Yin et al., ICML 2018. Krum: Blanchard et al., NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedfields import tree
from fedfields.lazy import torch
from fedfields.strategies.adaptive import FedOpt
from fedfields.strategies.averaging import FedAcg, FedAvg
from fedfields.strategies.base import Outcome, Strategy, scalar
from fedfields.types import Memory, Metrics, Params, Report


@dataclass(frozen=True)
class Robust(Strategy):
    """Replaces the mean of the updates by a robust centre; every client counts the same, whatever its weight."""

    rule: Literal["median", "trimmed-mean", "krum"] = "median"
    """Coordinate-wise median, coordinate-wise trimmed mean, or the update nearest to its neighbours."""

    tolerate: int = 1
    """Number f of hostile clients: trimmed on either side, or assumed by Krum (which needs 2 f + 3 reports)."""

    base: FedAvg | FedOpt | FedAcg = field(default_factory=FedAvg)
    """What the server does with the centre."""

    sums_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tolerate < 0:
            raise ValueError(f"{self.tolerate} hostile clients to tolerate; it must be 0 or more")

    @property
    def least(self) -> int:
        """The smallest number of reports that the rule can work with."""
        return {"median": 1, "trimmed-mean": 2 * self.tolerate + 1, "krum": 2 * self.tolerate + 3}[self.rule]

    def init(self, params: Params) -> Memory:
        return self.base.init(params)

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return self.base.broadcast(params, memory)

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        return self.base.report(outcome._replace(weight=1.0), received, memory)

    def combine(self, reports: Sequence[Report]) -> Report:
        """The robust centre of the updates, as a report of weight one.

        Raises:
            ValueError: fewer reports than the rule can work with.
        """
        if len(reports) < self.least:
            raise ValueError(
                f"{self.rule} that tolerates {self.tolerate} hostile clients needs {self.least} reports "
                f"and got {len(reports)}; raise the cohort or lower strategy.tolerate"
            )
        like = reports[0]["delta"]
        rows = torch.stack([tree.flatten(report["delta"]).double() for report in reports])
        centre = {"median": self._median, "trimmed-mean": self._trimmed, "krum": self._krum}[self.rule](rows)
        return {"delta": tree.unflatten(centre, like), "stats": {"weight": scalar(1.0)}}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        return self.base.apply(params, memory, total, clients)

    def _median(self, rows: torch.Tensor) -> torch.Tensor:
        """Midpoint of the two middle values, as numpy's median (torch's takes the lower one)."""
        ordered, n = rows.sort(dim=0).values, len(rows)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

    def _trimmed(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean without the ``tolerate`` largest and smallest values of every coordinate."""
        return rows.sort(dim=0).values[self.tolerate : len(rows) - self.tolerate].mean(dim=0)

    def _krum(self, rows: torch.Tensor) -> torch.Tensor:
        """The row with the smallest sum of squared distances to its n - f - 2 nearest others."""
        squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = squared.sort(dim=1).values[:, 1 : len(rows) - self.tolerate - 1]
        return rows[nearest.sum(dim=1).argmin()]
