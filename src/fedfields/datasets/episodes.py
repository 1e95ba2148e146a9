"""N-way K-shot episodes: new small tasks from the classes that a client has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.scenes.arrays import ArraySignal
from fedfields.types import Batch, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Episodes:
    """A source of tasks (Vinyals et al., *Matching Networks*, NeurIPS 2016; Finn et al. 2017, section 5.2).

    An episode has ``ways`` classes, called 0 to ways - 1 in random order, with ``shots`` rows of each in its support
    and ``queries`` other rows of each in its query.
    """

    inputs: Tensor
    """All rows ``[n, ...]``."""

    targets: Tensor
    """Their classes ``[n]``, int64; those with too few rows are never drawn."""

    ways: int
    shots: int
    queries: int

    def __len__(self) -> int:
        """Query rows of an episode."""
        return self.ways * self.queries

    def episode(self, random: Generator) -> Task:
        """A new task."""
        labels, counts = self.targets.unique(return_counts=True)
        labels = labels[counts >= self.shots + self.queries]
        chosen = labels[torch.randperm(len(labels), generator=random)[: self.ways]]
        support, query = [], []
        for label in chosen:
            rows = (self.targets == label).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=random)]
            support.append(rows[: self.shots])
            query.append(rows[self.shots : self.shots + self.queries])
        return Task(self._signal(support), self._signal(query))

    def _signal(self, rows: list[Tensor]) -> ArraySignal:
        targets = torch.arange(self.ways).repeat_interleave(len(rows[0]))
        return ArraySignal(self.inputs[torch.cat(rows)], targets)

    def sample(self, count: int, generator: Generator) -> Batch:
        """Never asked for: an episode is drawn first."""
        raise TypeError("episodes are drawn before batches; see fedfields.federation.realise")

    def everything(self) -> Batch:
        """Never asked for, as `sample`."""
        raise TypeError("episodes are drawn before batches; see fedfields.federation.realise")
