"""Sinusoids, the regression task of MAML: amplitude and phase differ from client to client."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfields.datasets.shares import Rows, SampleFederation, Way, shared_out
from fedfields.lazy import torch
from fedfields.seeds import generator


@dataclass(frozen=True)
class Sinusoids:
    """``y = a sin(x - b)`` with a in [0.1, 5], b in [0, pi], x in [-5, 5] (Finn et al. 2017, section 5.1).

    The mean over clients says nothing about any of them: a model that is trained jointly cannot fit one, and one that
    knows how sinusoids differ fits a new one from a few points.
    """

    clients: int = 1000
    """Clients, each with a curve of its own."""

    shots: int = 10
    """Points of each that are adapted to."""

    queries: int = 50
    """Points of each that judge."""

    validation: float = 0.1
    """Share of the clients that decide when to stop."""

    unseen: float = 0.1
    """Share of the clients that judge the result, and nothing else."""

    sealed: bool = False
    """Leave those that judge out of everything, as tuning does."""

    def __post_init__(self) -> None:
        for name in ("shots", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a curve needs at least one point")

    def load(self, seed: int) -> SampleFederation:
        """Draws all curves and points."""
        rows = {f"curve-{i:04d}": self._curve(seed, i) for i in range(self.clients)}
        way = Way(self.shots / (self.shots + self.queries))
        kept_back = {"validation": self.validation, "unseen": self.unseen, "sealed": self.sealed}
        return shared_out(rows, "numbers", 1, way, seed, **kept_back)

    def _curve(self, seed: int, number: int) -> Rows:
        random = generator(seed, "sinusoid", number)
        amplitude, phase = torch.rand(2, generator=random).tolist()
        x = 10 * torch.rand(self.shots + self.queries, 1, generator=random) - 5
        return Rows(x, (0.1 + 4.9 * amplitude) * torch.sin(x - math.pi * phase))
