"""Where two sparse maps fit each other, roughly: many motions of the one, scored by what lies there in the other.

Correlative matching from coarse to fine (Olson, *Real-time correlative scan matching*, 2009) by Monte-Carlo hypotheses
with resampling (Lin et al., *Parallel inversion of neural radiance fields*, 2023). They can be thousands and not 64,
because a motion costs some hundred look-ups in a grid and no picture. What it finds is good to a part of a metre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.lazy import torch
from fedfields.mapping.rigid import about, after, apart, exp, moved
from fedfields.mapping.voxels import HARMONICS, Bricks, centres

if TYPE_CHECKING:
    from torch import Generator

FLAT = 0.28209479177387814
"""The spherical harmonic of degree 0."""


class Surface(NamedTuple):
    """Voxels in which a ray would end: places ``[P, 3]`` in metres, and colours ``[P, 3]`` over all directions."""

    places: NDArray[np.float64]
    colours: NDArray[np.float32]


class Level(NamedTuple):
    """A map as a grid: ``values [X, Y, Z, 4]`` of cells that are ``cell`` metres wide, from ``low [3]`` on.

    The first value is how much surface there is, less what an empty cell that was seen takes away; the others are its
    colour, relative to that of the map and times how much there is. All are zero where nothing was seen.
    """

    values: NDArray[np.float32]
    low: NDArray[np.float64]
    cell: float


@dataclass(frozen=True)
class Search:
    """How far from its start a contribution is looked for, and how thoroughly."""

    metres: float = 20.0
    """Largest error of the start along each axis."""

    degrees: float = 20.0
    """Largest error of the start about each axis."""

    hypotheses: int = 65536
    """Motions that are tried at first, evenly over all six dimensions."""

    kept: int = 256
    """Motions that a round keeps."""

    spawned: int = 16
    """Motions that each of them becomes, itself unchanged and copies with noise."""

    points: int = 1024
    """Points of the contribution that each motion is judged by."""

    candidates: int = 4
    """Different motions at the end, the best first."""

    def __post_init__(self) -> None:
        if not (0 < self.metres < np.inf and 0 < self.degrees <= 180):
            raise ValueError(f"the search goes {self.metres} m and {self.degrees} degrees far; that is impossible")
        if min(self.hypotheses, self.kept, self.spawned, self.points, self.candidates) < 1:
            raise ValueError("hypotheses, kept, spawned, points and candidates must be at least 1")


ROUNDS = ((0, 1 / 4), (0, 1 / 8), (1, 1 / 8), (1, 1 / 16), (1, 1 / 32), (2, 1 / 32), (2, 1 / 64), (2, 1 / 128))
"""Of resampling: the level that scores, and the noise as a part of the range that was searched at first."""

CELLS = (1 / 5, 1 / 10, 1 / 20)
"""Of the levels, as a part of that range."""

DENSE = 0.35
"""1/m: two metres of it stop half of the light. Fields that were trained for minutes are that soft."""

EMPTY, TINT = 0.3, 0.5
"""What a point in seen emptiness loses, and what a standard deviation of colour counts."""


def surface_of(bricks: Bricks, voxel: float) -> Surface:
    """The seen voxels that are dense."""
    solid = (bricks.density > DENSE) & (bricks.visits > 0)
    shades = bricks.sh.reshape(-1, HARMONICS)[solid.reshape(-1)][:, ::9]
    colours = (1 / (1 + np.exp(-FLAT * shades))).astype(np.float32)
    return Surface(centres(bricks.coords, voxel)[solid], colours)


def levels_of(bricks: Bricks, voxel: float, search: Search) -> list[Level]:
    """A map at the resolutions that a search needs, the coarsest first; something of it must have been seen."""
    found, seen = surface_of(bricks, voxel), centres(bricks.coords, voxel)[bricks.visits > 0]
    return [_level(found, seen, voxel, max(part * search.metres, voxel)) for part in CELLS]


def _level(found: Surface, seen: NDArray[np.float64], voxel: float, cell: float) -> Level:
    """A surface and the centres of seen voxels at another resolution, smoothed by a cell or so."""
    low = seen.min(0) - 3 * cell
    shape = tuple(int(n) for n in np.ceil((seen.max(0) - low) / cell).astype(int) + 3)
    flat = np.ravel_multi_index(tuple(((found.places - low) / cell).astype(np.int64).T), shape)
    size = int(np.prod(shape))
    share = np.float32((voxel / cell) ** 2)  # A wall fills a layer of a cell's voxels.
    tints = _standard(found.colours) * TINT
    sums = [np.bincount(flat, weights, size).reshape(shape) for weights in (None, *tints.T)]
    count = np.maximum(sums[0], 1 / share)
    values = np.stack([_smoothed((total / count).astype(np.float32)) for total in sums], -1)
    known = np.zeros(size, bool)
    known[np.ravel_multi_index(tuple(((seen - low) / cell).astype(np.int64).T), shape)] = True
    values[..., 0] = np.where(known.reshape(shape), values[..., 0] - EMPTY, np.maximum(values[..., 0] - EMPTY, 0))
    return Level(np.ascontiguousarray(values), low, cell)


def _standard(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours less their mean, by their standard deviation, and never more than two."""
    return np.clip((colours - colours.mean(0)) / (colours.std(0).mean() + 1e-6), -2, 2).astype(np.float32)


def _smoothed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A grid blurred by 1/4, 1/2, 1/4 along each axis, twice, so that the surface of a plane keeps about its height."""
    for axis in (0, 1, 2, 0, 1, 2):
        padded = np.pad(values, [(1, 1) if k == axis else (0, 0) for k in range(3)])
        a, b, c = (padded.take(range(i, i + values.shape[axis]), axis) for i in range(3))
        values = (0.25 * a + 0.5 * b + 0.25 * c).astype(np.float32, copy=False)
    return values


def register(levels: list[Level], brought: Surface, start: NDArray, search: Search, generator: Generator) -> NDArray:
    """Motions ``[C, 3, 4]`` of a contribution into a map, the best first, no two of them nearly the same.

    Args:
        levels: of the map, for the same search.
        brought: of the contribution, in its own frame.
        start: ``[3, 4]``, the motion that is told; it is in error by at most the search's range.
        search: how.
        generator: of the hypotheses.
    """
    picked = torch.randperm(len(brought.places), generator=generator)[: search.points].numpy()
    centre = moved(start, brought.places).mean(0)
    points = np.concatenate([moved(start, brought.places) - centre, _standard(brought.colours)], 1)[picked]
    points = np.ascontiguousarray(points.astype(np.float32))
    reach = torch.tensor([np.radians(search.degrees)] * 3 + [search.metres] * 3, dtype=torch.float64)
    seed = int(torch.randint(2**31, (), generator=generator))
    sobol = torch.quasirandom.SobolEngine(6, scramble=True, seed=seed)
    tried = (2 * sobol.draw(search.hypotheses).double() - 1) * reach
    scores = _scores(levels[0], points[: search.points // 4], tried, centre)
    for level, noise in ROUNDS:
        best = tried[scores.topk(min(search.kept, len(tried))).indices]
        copies = torch.randn(len(best), search.spawned, 6, dtype=torch.float64, generator=generator)
        copies[:, 0] = 0
        tried = (best[:, None] + noise * reach * copies).flatten(0, 1)
        scores = _scores(levels[level], points, tried, centre)
    order = scores.argsort(descending=True)
    return _different(tried[order], centre, start, search)


def _different(tried: torch.Tensor, centre: NDArray, start: NDArray, search: Search) -> NDArray:
    """The first of each kind, as motions."""
    near = search.metres / 20, search.degrees / 20
    found: list[NDArray] = []
    for row in tried[:: max(1, len(tried) // 1024)]:
        motion = after(about(exp(row[:3]).numpy(), row[3:].numpy(), centre), start)
        gaps = [apart(motion, other, np.zeros(3))[0] / near[1] for other in found]
        if all(gap > 1 for gap in gaps) or not found:
            found.append(motion)
        if len(found) == search.candidates:
            break
    return np.stack(found)


def _scores(level: Level, points: NDArray[np.float32], tried: torch.Tensor, centre: NDArray) -> torch.Tensor:
    """How well points fit, for each row of angles and shifts ``[H, 6]``."""
    from fedfields.kernels.matching import matched

    turns, shifts = exp(tried[:, :3]).numpy(), tried[:, 3:].numpy() + centre - level.low
    return torch.from_numpy(matched(level.values, points, turns / level.cell, shifts / level.cell))
