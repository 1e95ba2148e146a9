"""Rays through a sparse map of voxels: density and spherical harmonics in bricks of 8^3 voxels.

Rays skip what is empty, by tiles of 8^3 bricks, bricks and blocks of 2^3 voxels; and they end where nothing behind
would be seen. Where a tile is not at hand they stop and can be carried on later: the same picture to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fedfields.kernels.threads import over

if TYPE_CHECKING:
    from torch import Tensor

EDGE = 8
"""Voxels along the edge of a brick, and bricks along that of a tile."""

RAYS = 64
"""Fewest rays worth a thread."""

REACH = 2**20
"""Tiles from the origin, in all directions, that have a number."""


class Volume(NamedTuple):
    """Bricks made ready for rays. A cell holds the places whose lower corner voxel is in one brick: it needs the first
    layers of its neighbours, too.

    Attributes:
        voxel: edge of a voxel in metres.
        tiles: ``[T]`` int64, sorted and `packed`, all tiles of 8^3 cells that hold something.
        slots: ``[T]`` int64, row of each in ``cells``; -1 for one that is not here.
        cells: ``[S, 512]`` int32, row of each cell; -1 where density is zero.
        density: ``[M, 729]``, of the 9^3 corners of a cell.
        blocks: ``[M]`` uint64, a bit for each 2^3 voxels that says whether density is positive anywhere.
        bricks: ``[M, 8]`` int64, row of the brick that a cell's corners are in, for the cell's own and those one
            further along z, y, x; -1 for none.
        sh: ``[N * 512, 27]``.
        seen: ``[N * 512]`` bool, which voxels have a colour.
    """

    voxel: float
    tiles: np.ndarray
    slots: np.ndarray
    cells: np.ndarray
    density: np.ndarray
    blocks: np.ndarray
    bricks: np.ndarray
    sh: np.ndarray
    seen: np.ndarray

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return sum(part.nbytes for part in self[1:])  # pyright: ignore[reportAttributeAccessIssue]


class Lines(NamedTuple):
    """R rays as loops read them: in voxels, with places for samples.

    Attributes:
        origins: ``[R, 3]`` float64.
        ways: ``[R, 3]`` float64, voxels for each metre of the ray.
        basis: ``[R, 9]``, spherical harmonics of the directions.
        near: ``[R]`` float64, metres.
        step: ``[R]`` float64, metres; sample i is at ``near + (i + 0.5) step``.
        counts: ``[R]`` int64, samples.
    """

    origins: np.ndarray
    ways: np.ndarray
    basis: np.ndarray
    near: np.ndarray
    step: np.ndarray
    counts: np.ndarray


class Seen(NamedTuple):
    """What is seen along R rays, without background.

    Attributes:
        colour: ``[R, 3]``.
        depth: ``[R]``, the sum of ``w_i s_i`` in metres.
        opacity: ``[R]``, the sum of the weights.
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor


def packed(coords: np.ndarray) -> np.ndarray:
    """Integer coordinates ``[..., 3]`` within `REACH` as one number each, in the same order."""
    x, y, z = np.moveaxis(coords.astype(np.int64) + REACH, -1, 0)
    return (x << 42) | (y << 21) | z


def _rows(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of wanted keys among sorted ones, -1 where there is none."""
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return np.where(keys[at] == wanted, at, -1) if len(keys) else np.full(wanted.shape, -1)


def unpacked(keys: np.ndarray) -> np.ndarray:
    """The inverse of `packed`."""
    return np.stack([keys >> 42, keys >> 21 & (2 * REACH - 1), keys & (2 * REACH - 1)], -1) - REACH


CORNERS = np.array([[c >> 2, c >> 1 & 1, c & 1] for c in range(8)])
"""Of a cube, z first."""


def volume_of(
    coords: np.ndarray, density: np.ndarray, sh: np.ndarray, visits: np.ndarray, voxel: float,
    tile: np.ndarray | None = None,
) -> Volume:  # fmt: skip
    """Makes bricks ready for rays; ``sh`` is kept and not copied. float64 values make everything float64.

    Args:
        coords: ``[N, 3]`` int32, sorted and unique.
        density: ``[N, 512]``, in 1/m.
        sh: ``[N, 512, 27]``.
        visits: ``[N, 512]``, 0 where nothing was seen.
        voxel: edge of a voxel in metres.
        tile: ``[3]``, the one tile whose cells are wanted; by default all.

    Raises:
        ValueError: a brick is too far from the origin to have a number.
    """
    if coords.size and np.abs(coords.astype(np.int64) >> 3).max() >= REACH - 1:
        raise ValueError(f"a brick at {coords[np.abs(coords).max(1).argmax()].tolist()} is too far from the origin")
    keys = packed(coords)
    around = unpacked(np.unique(packed(coords[:, None].astype(np.int64) - CORNERS)))
    if tile is not None:
        around = around[(around >> 3 == tile).all(1)]
    rows = _rows(keys, packed(around[:, None] + CORNERS))
    halo = _with_halo(np.where(visits > 0, density, 0), rows)
    filled = (halo > 0).any((1, 2, 3))
    around, rows, halo = around[filled], rows[filled], np.ascontiguousarray(halo[filled])
    tiles, of_tile = np.unique(packed(around >> 3), return_inverse=True)
    cells = np.full((max(len(tiles), 1), EDGE**3), -1, np.int32)
    inside = around & 7
    cells[of_tile, (inside[:, 0] << 6) | (inside[:, 1] << 3) | inside[:, 2]] = np.arange(len(around))
    return Volume(
        voxel, tiles, np.arange(len(tiles)), cells, halo.reshape(-1, 729), _blocks(halo), rows,
        np.ascontiguousarray(sh).reshape(-1, 27), np.ascontiguousarray(visits > 0).reshape(-1),
    )  # fmt: skip


def _with_halo(density: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``[M, 9, 9, 9]``: density of the brick ``rows[:, 0]``, and the first layers of those that follow it."""
    given = density.reshape(-1, EDGE, EDGE, EDGE)
    halo = np.zeros((len(rows), 9, 9, 9), density.dtype)
    for corner, offset in enumerate(CORNERS):
        there = np.flatnonzero(rows[:, corner] >= 0)
        to = tuple(slice(8, 9) if further else slice(0, 8) for further in offset)
        part = tuple(slice(0, 1) if further else slice(0, 8) for further in offset)
        halo[(there, *to)] = given[(rows[there, corner], *part)]
    return halo


def _blocks(halo: np.ndarray) -> np.ndarray:
    """A bit for each 2^3 voxels of a cell: whether one of their 3^3 corners is positive."""
    some = halo > 0
    for axis in (1, 2, 3):
        a, b, c = (np.moveaxis(some, axis, 0)[first : first + 7 : 2] for first in range(3))
        some = np.moveaxis(a | b | c, 0, axis)
    return np.packbits(some.reshape(-1, 64), axis=1, bitorder="little").view("<u8")[:, 0]


def lines_of(
    volume: Volume, origins: Tensor, directions: Tensor, basis: Tensor, near: Tensor, step: Tensor, count: Tensor
) -> tuple[Lines, np.ndarray]:
    """Rays as the loops read them, and the first sample of each that may lie in a tile.

    Args:
        volume: of which the tiles count.
        origins: ``[R, 3]`` in metres.
        directions: ``[R, 3]``, of length one.
        basis: ``[R, 9]``, spherical harmonics of the directions.
        near: ``[R]``, metres.
        step: ``[R]``, metres between samples.
        count: ``[R]`` int64, samples.
    """
    start, way, at, pace = (leaf.detach().double().cpu().numpy() for leaf in (origins, directions, near, step))
    start, way = np.ascontiguousarray(start / volume.voxel - 0.5), np.ascontiguousarray(way / volume.voxel)
    tiles = 64.0 * unpacked(volume.tiles)
    low, high = (tiles.min(0), tiles.max(0) + 64) if len(tiles) else (np.zeros(3), np.zeros(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.sort(np.stack([(low - start) / way, (high - start) / way]), 0)
        span = np.stack([np.fmax.reduce(walls[0], 1), np.fmin.reduce(walls[1], 1)])
        first, last = (span - at) / pace
    inside = np.isfinite(start).all(1) & np.isfinite(way).all(1) & np.isfinite(at) & (pace > 0) & (first <= last)
    end = np.where(inside, np.clip(last + 2, 0, count.cpu().numpy()), 0).astype(np.int64)
    begin = np.where(inside, np.clip(first - 2, 0, end), 0).astype(np.int64)
    kept = np.ascontiguousarray(basis.detach().cpu().numpy().astype(volume.sh.dtype, copy=False))
    return Lines(start, way, kept, at, pace, end), begin


def fresh(begin: np.ndarray) -> np.ndarray:
    """The state ``[R, 7]`` of rays that begin at these samples."""
    from fedfields.kernels.walking import INDEX, PASSED, STATE

    state = np.zeros((len(begin), STATE))
    state[:, INDEX], state[:, PASSED] = begin, 1.0
    return state


def advance(
    volume: Volume, lines: Lines, which: np.ndarray, state: np.ndarray, wanted: np.ndarray, stop: float, least: float
) -> None:
    """Carries rays on as far as the volume goes.

    Args:
        volume: where they go.
        lines: all R rays.
        which: ``[K]`` int64, those to carry on.
        state: ``[R, 7]``, changed in place.
        wanted: ``[R]`` int64, becomes the row of the tile that a ray waits for; -1 if it has ended.
        stop: light that passes, below which a ray ends.
        least: weight that is collected before a colour is looked up; no weight goes without one but the last.
    """
    from fedfields.kernels.walking import walk

    over(len(which), lambda a, b: walk(lines, which, volume, stop, least, state, wanted, a, b), RAYS)


def seen_of(state: np.ndarray) -> Seen:
    """What rays have seen so far, in float64."""
    from fedfields.kernels.walking import DEPTH, PASSED, RED

    found = torch.from_numpy(state)
    return Seen(found[:, RED : RED + 3].clone(), found[:, DEPTH].clone(), 1 - found[:, PASSED])


def look(
    volume: Volume, origins: Tensor, directions: Tensor, basis: Tensor, near: Tensor, step: Tensor, count: Tensor,
    stop: float,
) -> Seen:  # fmt: skip
    """What rays see, differentiable once by origins, directions and basis; every weight gets a colour of its own.

    Arguments as in `lines_of`; samples stay at their distances. Where a ray ends early nothing behind has a gradient.
    """
    seen = _Look.apply(origins, directions, basis, volume, near, step, count, stop)
    return Seen(*seen)  # pyright: ignore[reportGeneralTypeIssues]


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, origins: Tensor, directions: Tensor, basis: Tensor, *others: Any) -> tuple[Tensor, ...]:
        volume, near, step, count, stop = others
        lines, begin = lines_of(volume, origins, directions, basis, near, step, count)
        state, wanted = fresh(begin), np.full(len(begin), -1)
        advance(volume, lines, np.arange(len(begin)), state, wanted, stop, 0.0)
        ctx.kept = lines, begin, volume, stop, state
        ctx.kinds = origins.dtype, directions.dtype, basis.dtype
        return tuple(seen_of(state))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from fedfields.kernels.walking import walk_back

        lines, begin, volume, stop, state = ctx.kept
        above = torch.cat([grads[0], torch.stack(grads[1:], 1)], 1).contiguous().numpy()
        of_origin, of_way = np.zeros((len(begin), 3)), np.zeros((len(begin), 3))
        of_basis = np.zeros((len(begin), 9))
        to = of_origin, of_way, of_basis
        over(len(begin), lambda a, b: walk_back(lines, begin, volume, stop, state, above, *to, a, b), RAYS)
        found = of_origin / volume.voxel, of_way / volume.voxel, of_basis
        return *(torch.from_numpy(leaf).to(kind) for leaf, kind in zip(found, ctx.kinds, strict=True)), *[None] * 5


def plain(
    coords: Tensor, density: Tensor, sh: Tensor, visits: Tensor, voxel: float,
    origins: Tensor, directions: Tensor, basis: Tensor, near: Tensor, step: Tensor, count: int,
) -> Seen:  # fmt: skip
    """The twin: all ``count`` samples of every ray, from bricks as they are. Differentiable as often as one likes."""
    keys = torch.from_numpy(packed(coords.numpy()))
    at = near[:, None] + (torch.arange(count, dtype=near.dtype) + 0.5) * step[:, None]
    places = (origins[:, None] + at[..., None] * directions[:, None]) / voxel - 0.5
    low = places.detach().floor().long()
    part = places - low
    thickness, shades, total = torch.zeros_like(at), torch.zeros(*at.shape, 3, dtype=at.dtype), torch.zeros_like(at)
    for offset in torch.from_numpy(CORNERS):
        weight = torch.where(offset.bool(), part, 1 - part).prod(-1)
        corner = low + offset
        key = torch.from_numpy(packed((corner >> 3).numpy()))
        row = torch.searchsorted(keys, key).clamp_max(len(keys) - 1)
        inside = ((corner & 7) * torch.tensor([64, 8, 1])).sum(-1)
        weight = weight * ((keys[row] == key) & (visits[row, inside] > 0))
        thickness = thickness + weight * density[row, inside] * step[:, None]
        shades = shades + weight[..., None] * torch.einsum("rsck,rk->rsc", sh[row, inside].unflatten(-1, (3, 9)), basis)
        total = total + weight
    colours = (shades / torch.where(total > 0, total, 1)[..., None]).sigmoid()
    weights = (-(thickness.cumsum(1) - thickness)).exp() * -torch.expm1(-thickness)
    return Seen((weights[..., None] * colours).sum(1), (weights * at).sum(1), weights.sum(1))
