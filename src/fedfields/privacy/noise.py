"""Clip and Gaussian noise on the client's own machine: protection against the server itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields import tree
from fedfields.privacy.base import PUBLIC, Transform, clip_report
from fedfields.types import Report

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class Noise(Transform):
    """Every report is clipped to norm C, then Gaussian noise whose norm is about ``ratio`` times C is added.

    The standard deviation per weight is ``ratio C / sqrt(d)`` for d weights: as differential privacy a noise
    multiplier of ratio / sqrt(d), which is weak (an epsilon in the hundreds). It hides one upload from the attacks
    in the audit; averages over many uploads of one client hide less.
    """

    clip: float = 0.02
    """Largest norm C of everything in a report that depends on the data; about the norm of an ordinary update."""

    ratio: float = 10.0
    """Expected norm of the noise in units of C."""

    uniform_weights = True

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.ratio < 0:
            raise ValueError(f"clip {self.clip} and noise ratio {self.ratio}; clip must be positive, ratio 0 or more")

    def client(self, report: Report, generator: Generator) -> Report:
        report = clip_report(report, self.clip)
        private = [name for name in report if name not in PUBLIC]
        std = self.ratio * self.clip / sum(tree.size(report[name]) for name in private) ** 0.5
        noisy = {name: tree.add(report[name], tree.randn_like(report[name], generator), std) for name in private}
        return report | noisy
