"""Ordinary data: rows of inputs and targets, for models that are no fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class ArraySignal:
    """Inputs ``[n, ...]`` with targets ``[n, ...]``; batches are drawn with replacement."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.targets)} targets; they must match")

    def __len__(self) -> int:
        return len(self.inputs)

    def everything(self) -> Batch:
        """All rows, in order."""
        return Batch(self.inputs, self.targets)

    def sample(self, count: int, generator: Generator) -> Batch:
        """``min(count, n)`` random rows."""
        index = torch.randint(len(self), (min(count, len(self)),), generator=generator)
        return Batch(self.inputs[index], self.targets[index])
