"""Robust aggregation: it must see every report by itself, so it does not go with secure sums.

Median and trimmed mean: Yin et al., ICML 2018. Krum and multi-Krum: Blanchard et al., NeurIPS 2017. Geometric median:
Pillutla et al., *Robust Aggregation for Federated Learning*, IEEE TSP 2022. Clipping to the median norm: Nguyen et al.,
*FLAME*, USENIX Security 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from fedfields import tree
from fedfields.lazy import torch
from fedfields.strategies.adaptive import FedOpt
from fedfields.strategies.averaging import FedAcg, FedAvg
from fedfields.strategies.base import Outcome, Strategy, scalar
from fedfields.types import Memory, Metrics, Params, Report

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Robust(Strategy):
    """Replaces the mean of the updates by a robust centre; every client counts the same, whatever its weight."""

    rule: Literal["median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "clipped-mean"] = "median"
    """Coordinate-wise median, coordinate-wise trimmed mean, the update nearest to its neighbours (Krum), the mean of
    the n - f such (multi-Krum), the point with the smallest sum of distances, or the mean of updates of which none is
    longer than the median norm."""

    tolerate: int = 1
    """Number f of hostile clients in a round of n: the trimmed mean and the medians need n > 2 f, Krum n > 2 f + 2."""

    base: FedAvg | FedOpt | FedAcg = field(default_factory=FedAvg)
    """What the server does with the centre."""

    sums_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tolerate < 0:
            raise ValueError(f"{self.tolerate} hostile clients to tolerate; it must be 0 or more")

    @property
    def least(self) -> int:
        """The smallest number of reports of which the rule can tolerate ``tolerate`` hostile ones."""
        return 2 * self.tolerate + self._spare

    @property
    def _spare(self) -> int:
        """How many reports a rule needs beside two for each hostile one."""
        return 3 if self.rule in ("krum", "multi-krum") else 1

    def init(self, params: Params) -> Memory:
        return self.base.init(params)

    def broadcast(self, params: Params, memory: Memory) -> Memory:
        return self.base.broadcast(params, memory)

    def report(self, outcome: Outcome, received: Memory, memory: Memory) -> tuple[Report, Memory]:
        return self.base.report(outcome._replace(weight=1.0), received, memory)

    def combine(self, reports: Sequence[Report]) -> Report:
        """The robust centre of the updates, as a report of weight one; none if there are too few for f = 0.

        Where reports were dropped, f is the largest that those that are left allow: at least ``tolerate`` less the
        dropped ones, so that clients who drop out, or send what is refused, buy nothing and stop nothing.
        """
        spare = len(reports) - self._spare
        if spare < 0:
            return {}
        hostile, like = min(self.tolerate, spare // 2), reports[0]["delta"]
        rows = torch.stack([tree.flatten(tree.only(report["delta"], like)).double() for report in reports])
        stats = {"weight": scalar(1.0), "tolerated": scalar(hostile)}
        return {"delta": tree.unflatten(self._centre(rows, hostile), like), "stats": stats}

    def apply(self, params: Params, memory: Memory, total: Report, clients: int) -> tuple[Params, Memory, Metrics]:
        params, memory, metrics = self.base.apply(params, memory, total, clients)
        return params, memory, metrics | {"tolerated": float(total["stats"]["tolerated"])}

    def _centre(self, rows: Tensor, hostile: int) -> Tensor:
        """The centre ``[P]`` of updates ``[n, P]`` of which ``hostile`` may be anything."""
        if self.rule == "median":
            return _median(rows)
        if self.rule == "trimmed-mean":
            return _ordered(rows)[hostile : len(rows) - hostile].mean(dim=0)
        if self.rule == "geometric-median":
            return _geometric_median(rows)
        if self.rule == "clipped-mean":
            return _clipped_mean(rows)
        return _krum(rows, hostile, keep=1 if self.rule == "krum" else len(rows) - hostile)


def _ordered(rows: Tensor) -> Tensor:
    """Every coordinate's values in ascending order; sorting along contiguous memory is three times as fast."""
    return rows.t().contiguous().sort(dim=1).values.t()


def _median(rows: Tensor) -> Tensor:
    """Midpoint of the two middle values of every coordinate, as numpy's median (torch's takes the lower one)."""
    ordered, n = _ordered(rows), len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _krum(rows: Tensor, hostile: int, keep: int) -> Tensor:
    """The mean of the ``keep`` rows with the smallest sums of squared distances to their n - f - 2 nearest others."""
    squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squared.sort(dim=1).values[:, 1 : len(rows) - hostile - 1]
    return rows[nearest.sum(dim=1).argsort(stable=True)[:keep]].mean(dim=0)


def _clipped_mean(rows: Tensor) -> Tensor:
    """The mean of the rows, each scaled down to the median of their norms where it is longer."""
    sizes = rows.norm(dim=1)
    return (sizes.median() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).clamp_max(1) @ rows / len(rows)


def _geometric_median(rows: Tensor, steps: int = 100) -> Tensor:
    """The point with the smallest sum of distances to the rows, by the smoothed Weiszfeld algorithm.

    Pillutla et al., algorithm 2 (weights 1 / max(nu, distance)) from the coordinate-wise median, with nu a millionth
    of the median distance and as many steps until one is shorter than that.
    """
    centre = _median(rows)
    nu = 1e-6 * float((rows - centre).norm(dim=1).median())
    for _ in range(steps if nu else 0):
        weights = 1 / (rows - centre).norm(dim=1).clamp_min(nu)
        before, centre = centre, weights @ rows / weights.sum()
        if float((centre - before).norm()) < nu:
            break
    return centre
