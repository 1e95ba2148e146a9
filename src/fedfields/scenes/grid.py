"""Signals sampled on a regular grid: an image ``[H, W, C]`` or a clip ``[T, H, W, C]``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fedfields.scenes.texture import TextureSignal


def grid_coordinates(shape: tuple[int, ...]) -> Tensor:
    """Coordinates of a grid in the order of its axes (row, column or frame, row, column): ``[prod(shape), D]``.

    Each axis is ``linspace(-1, 1, n)``: the first and last samples lie on the border. An axis of length one
    has the coordinate -1, as in the official FedMeNF code.
    """
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(shape))


@dataclass(frozen=True, eq=False)
class GridSignal:
    """An image or a clip, as coordinates and colours.

    Attributes:
        values: ``[*shape, C]``, colours in [0, 1].
        keep: optional flat indices ``[n]`` of the samples that may be seen (few-shot support); all by default.
    """

    values: Tensor
    keep: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Grid shape without the channel axis."""
        return tuple(self.values.shape[:-1])

    @property
    def grid_axes(self) -> int:
        """All axes but the channels."""
        return self.values.dim() - 1

    def like(self, values: Tensor) -> GridSignal:
        """Other colours on the same grid; all of them may be seen."""
        return GridSignal(values)

    @cached_property
    def _everything(self) -> Batch:
        batch = Batch(grid_coordinates(self.shape).to(self.values), self.values.reshape(-1, self.values.shape[-1]))
        return batch if self.keep is None else Batch(batch.inputs[self.keep], batch.targets[self.keep])

    def __len__(self) -> int:
        return self._everything.inputs.shape[0]

    def everything(self) -> Batch:
        """All samples, in grid order."""
        return self._everything

    def sample(self, count: int, generator: Generator) -> Batch:
        """``min(count, len(self))`` samples drawn with replacement, as the official FedMeNF code draws them."""
        index = torch.randint(len(self), (min(count, len(self)),), generator=generator)
        return Batch(self._everything.inputs[index], self._everything.targets[index])

    def few(self, fraction: float, generator: Generator) -> GridSignal:
        """A signal of which only a random ``fraction`` in (0, 1] of the samples may be seen."""
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction of samples is {fraction}; it must lie in (0, 1]")
        count = max(1, round(fraction * len(self)))
        return GridSignal(self.values, torch.randperm(len(self), generator=generator)[:count])

    def surrogate(self, *, public: bool) -> TextureSignal:
        """A source of random textures of this shape: with this signal's ten statistics, or with public ones."""
        from fedfields.scenes.texture import TextureSignal, statistics_of

        statistics = None if public else statistics_of(self.values)
        return TextureSignal(self.shape, self.values.shape[-1], statistics)
