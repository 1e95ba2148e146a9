"""What rays see of a map: from memory, or from tiles that are fetched when a ray needs them.

Volume rendering as in Suzuki, *Federated Learning for Large-Scale Scene Modeling with Neural Radiance Fields*, 2023,
eq. 1 and 2: density and spherical-harmonic coefficients are interpolated, and the colour is a sigmoid of their sum.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedfields.lazy import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedfields.kernels.bricks import Lines, Seen, Volume
    from fedfields.mapping.voxels import Bricks
    from fedfields.rendering.rays import Rays


@dataclass(frozen=True)
class MapRays:
    """How rays through a map are sampled."""

    samples: int = 512
    """Samples on each ray, in the middles of equal parts of the way from near to far."""

    step: float = 0.0
    """Metres between samples; 0 for the number of samples."""

    stop: float = 1e-3
    """Rays end where less light than this passes. Depth misses at most as much of what is behind."""

    least: float = 1e-4
    """Weight of samples that is collected before a colour is looked up."""

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 <= self.step < np.inf:
            raise ValueError(f"{self.samples} samples, {self.step} m apart; there must be one, and no way back")
        if not (0 <= self.stop < 1 and 0 <= self.least < 1):
            raise ValueError(f"stop is {self.stop} and least {self.least}; both must be at least 0 and less than 1")


class Source(Protocol):
    """A map whose bricks are read piece by piece."""

    @property
    def voxel(self) -> float:
        """Edge of a voxel in metres."""
        ...

    def tiles(self) -> NDArray[np.int32]:
        """``[T, 3]``, coordinates of the tiles of 8^3 bricks that hold something."""
        ...

    def bricks(self, low: NDArray[np.int32], high: NDArray[np.int32]) -> Bricks:
        """The bricks with ``low <= coords < high`` along each axis."""
        ...


def volume(bricks: Bricks, voxel: float) -> Volume:
    """Bricks made ready for rays. Their coefficients are not copied."""
    from fedfields.kernels.bricks import volume_of

    return volume_of(bricks.coords, bricks.density, bricks.sh, bricks.visits, voxel)


def render(found: Volume, rays: Rays, settings: MapRays) -> Seen:
    """What rays see of a map in memory: lengths in metres, no background, float64."""
    from fedfields.kernels.bricks import advance, fresh, seen_of

    lines, begin = _lines(found, rays, settings)
    state, wanted = fresh(begin), np.full(len(begin), -1)
    advance(found, lines, np.arange(len(begin)), state, wanted, settings.stop, settings.least)
    return seen_of(state)


def stream(source: Source, rays: Rays, settings: MapRays, budget: int) -> Seen:
    """The same picture, to the bit, of a map that need not fit in memory.

    Every tile is fetched when most of the rays that can go no further wait for it, and dropped when there is no room
    and it was not used for longest.

    Args:
        source: the map.
        rays: in its metres.
        settings: how they are sampled.
        budget: bytes that tiles may take together; one tile is always held, however large.
    """
    from fedfields.kernels.bricks import advance, fresh, seen_of

    index = _index(source)
    lines, begin = _lines(index, rays, settings)
    state, wanted = fresh(begin), np.full(len(begin), -1)
    limits = (settings.stop, settings.least)
    advance(index, lines, np.arange(len(begin)), state, wanted, *limits)
    held: OrderedDict[int, Volume] = OrderedDict()
    while (wanted >= 0).any():
        waiting = np.bincount(wanted[wanted >= 0], minlength=len(index.tiles))
        here = [row for row in held if waiting[row]]
        row = max(here, key=lambda row: waiting[row]) if here else int(waiting.argmax())
        tile = held[row] if here else _fetched(source, index, row, held, budget)
        held.move_to_end(row)
        slots = np.full(len(index.tiles), -1)
        slots[row] = 0
        tile = tile._replace(tiles=index.tiles, slots=slots)
        advance(tile, lines, np.flatnonzero(wanted == row), state, wanted, *limits)
    return seen_of(state)


def _lines(found: Volume, rays: Rays, settings: MapRays) -> tuple[Lines, np.ndarray]:
    """Rays with places for samples, as the loops read them, and their first samples."""
    from fedfields.fields.hashgrid import harmonics
    from fedfields.kernels.bricks import lines_of

    step, count = _samples(rays, settings)
    return lines_of(found, rays.origins, rays.directions, harmonics(rays.directions), rays.near, step, count)


def _samples(rays: Rays, settings: MapRays) -> tuple[Tensor, Tensor]:
    """Metres between samples ``[R]``, and how many there are on each ray."""
    way = (rays.far - rays.near).detach().double().nan_to_num().clamp_min(0)
    if settings.step:
        step = torch.full_like(way, settings.step)
        return step, (way / step - 0.5).ceil().clamp_min(0).long()
    return way / settings.samples, torch.where(way > 0, settings.samples, 0)


def _index(source: Source) -> Volume:
    """All tiles of a map, of which none is here."""
    from fedfields.kernels.bricks import CORNERS, packed, volume_of

    none = np.zeros((0, 3), np.int32)
    empty = volume_of(none, np.zeros((0, 512)), np.zeros((0, 512, 27)), np.zeros((0, 512)), source.voxel)
    tiles = np.asarray(source.tiles(), np.int64).reshape(-1, 3)
    keys = np.unique(packed(tiles[:, None] - CORNERS))  # The cells before a tile's first ones reach into it.
    return empty._replace(tiles=keys, slots=np.full(len(keys), -1))


def _fetched(source: Source, index: Volume, row: int, held: OrderedDict[int, Volume], budget: int) -> Volume:
    """The tile in a row of the index, for which others are dropped."""
    from fedfields.kernels.bricks import EDGE, unpacked, volume_of

    tile = unpacked(index.tiles[row])
    low = (EDGE * tile).astype(np.int32)
    bricks = source.bricks(low, low + EDGE + 1)
    found = volume_of(bricks.coords, bricks.density, bricks.sh, bricks.visits, source.voxel, tile)
    while held and found.bytes + sum(each.bytes for each in held.values()) > budget:
        held.popitem(last=False)
    held[row] = found
    return found
