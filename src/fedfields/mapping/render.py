"""What rays see of a map: from memory, or from tiles that are fetched when a ray needs them.

Volume rendering as in Suzuki, *Federated Learning for Large-Scale Scene Modeling with Neural Radiance Fields*, 2023,
eq. 1 and 2: density and spherical-harmonic coefficients are interpolated, and the colour is a sigmoid of their sum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from fedfields.lazy import torch
from fedfields.mapping.voxels import Bricks, joined, unseen

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.kernels.bricks import Lines, Seen, Volume
    from fedfields.rendering.rays import Rays

T = TypeVar("T")
Tile = tuple[int, int, int]


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
    """A map whose tiles of 8^3 bricks are read one by one."""

    def tiles(self) -> Iterable[Tile]:
        """Coordinates of those that hold something."""
        ...

    def bricks(self, tile: Tile) -> Bricks:
        """What one of them holds."""
        ...


def volume(bricks: Bricks, voxel: float) -> Volume:
    """Bricks made ready for rays. Their coefficients are not copied."""
    from fedfields.kernels.bricks import volume_of

    return volume_of(bricks.coords, bricks.density, bricks.sh, bricks.visits, voxel)


def render(found: Volume, rays: Rays, settings: MapRays) -> Seen:
    """What rays see of a map in memory: lengths in metres, no background, float64.

    Differentiable once by origins and directions, if they need a gradient; then every sample's colour is looked up,
    whatever `MapRays.least` is.
    """
    from fedfields.fields.hashgrid import harmonics
    from fedfields.kernels.bricks import advance, fresh, look, seen_of

    if torch.is_grad_enabled() and (rays.origins.requires_grad or rays.directions.requires_grad):
        step, count = _samples(rays, settings)
        basis = harmonics(rays.directions)
        return look(found, rays.origins, rays.directions, basis, rays.near, step, count, settings.stop)
    lines, begin = _lines(found, rays, settings)
    state, wanted = fresh(begin), np.full(len(begin), -1)
    advance(found, lines, np.arange(len(begin)), state, wanted, settings.stop, settings.least)
    return seen_of(state)


def stream(source: Source, voxel: float, rays: Rays, settings: MapRays, budget: int) -> Seen:
    """The same picture, to the bit, of a map that need not fit in memory.

    The next tile is one that is held and that rays wait for, or else the one that most of them wait for.

    Args:
        source: the map.
        voxel: edge of its voxels in metres.
        rays: in its metres.
        settings: how they are sampled.
        budget: bytes that may be held: half of them of tiles as they are read, half of what is made of them for rays.
            Those that were not used for longest are dropped; one of each kind is held, however large.
    """
    from fedfields.kernels.bricks import advance, fresh, seen_of

    there = set(source.tiles())
    index = _index(there, voxel)
    lines, begin = _lines(index, rays, settings)
    state, wanted = fresh(begin), np.full(len(begin), -1)
    limits = (settings.stop, settings.least)
    advance(index, lines, np.arange(len(begin)), state, wanted, *limits)
    read: _Cache[Bricks] = _Cache(budget // 2, lambda part: sum(leaf.nbytes for leaf in part))
    ready: _Cache[Volume] = _Cache(budget // 2, lambda part: part.bytes)
    while (wanted >= 0).any():
        waiting = np.bincount(wanted[wanted >= 0], minlength=len(index.tiles))
        row = max(ready.held, key=lambda row: waiting[row], default=-1)
        row = row if row >= 0 and waiting[row] else int(waiting.argmax())
        found = ready.get(row, lambda row=row: _fetched(source, there, index, row, read))
        slots = np.full(len(index.tiles), -1)
        slots[row] = 0
        here = found._replace(tiles=index.tiles, slots=slots)
        advance(here, lines, np.flatnonzero(wanted == row), state, wanted, *limits)
    return seen_of(state)


class _Cache(Generic[T]):
    """The values that were used last: as many as fit into a number of bytes, and always the newest."""

    def __init__(self, budget: int, size: Callable[[T], int]) -> None:
        self.held: OrderedDict[Any, T] = OrderedDict()
        self._budget, self._size, self._used = budget, size, 0

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not held."""
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key]
        value = make()
        self._used += self._size(value)
        while self.held and self._used > self._budget:
            self._used -= self._size(self.held.popitem(last=False)[1])
        self.held[key] = value
        return value


def _lines(found: Volume, rays: Rays, settings: MapRays) -> tuple[Lines, np.ndarray]:
    """Rays with places for samples, as the loops read them, and their first samples."""
    from fedfields.fields.hashgrid import harmonics
    from fedfields.kernels.bricks import lines_of

    step, count = _samples(rays, settings)
    return lines_of(found, rays.origins, rays.directions, harmonics(rays.directions), rays.near, step, count)


def _samples(rays: Rays, settings: MapRays) -> tuple[Tensor, Tensor]:
    """Metres between samples ``[R]``, and how many there are on each ray."""
    way = (rays.far - rays.near).detach().double().nan_to_num().clamp(0, 1e9)
    if settings.step:
        step = torch.full_like(way, settings.step)
        return step, (way / step - 0.5).ceil().clamp_min(0).long()
    return way / settings.samples, torch.where(way > 0, settings.samples, 0)


def _index(there: set[Tile], voxel: float) -> Volume:
    """All tiles of a map, of which none is here."""
    from fedfields.kernels.bricks import CORNERS, packed

    tiles = np.array(sorted(there), np.int64).reshape(-1, 3)
    keys = np.unique(packed(tiles[:, None] - CORNERS))  # The last cells before a tile reach into it.
    return volume(unseen(np.zeros((0, 3), np.int32)), voxel)._replace(tiles=keys, slots=np.full(len(keys), -1))


def _fetched(source: Source, there: set[Tile], index: Volume, row: int, read: _Cache[Bricks]) -> Volume:
    """The tile in a row of the index, with the first bricks of those that follow it."""
    from fedfields.kernels.bricks import CORNERS, EDGE, unpacked, volume_of

    tile = unpacked(index.tiles[row])
    parts = []
    for x, y, z in (tile + CORNERS).tolist():
        if (x, y, z) in there:
            part = read.get((x, y, z), lambda key=(x, y, z): source.bricks(key))
            parts.append(part.chosen(np.flatnonzero((part.coords <= EDGE * (tile + 1)).all(1))))
    found = joined(parts)
    return volume_of(found.coords, found.density, found.sh, found.visits, index.voxel, tile)
