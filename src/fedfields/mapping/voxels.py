"""Sparse voxels in memory: what a map holds, what an area of it holds, and what one contribution brings.

A lattice of voxels fills space: voxel ``i`` (three integers, negative ones too) has the edge ``voxel`` in metres, and
its values belong to its centre, ``voxel * (i + 0.5)`` in global metres. Between centres, values are interpolated
trilinearly; an unseen voxel counts as empty (density 0) and takes no part in colour. What was seen is kept in bricks of
8^3 voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EDGE = 8
"""Voxels along the edge of a brick."""

CELLS = EDGE**3
"""Voxels of a brick."""

HARMONICS = 27
"""Spherical-harmonic coefficients of a voxel: nine (degree 2) for each of red, green and blue."""


class Bricks(NamedTuple):
    """The seen voxels of a map, of an area of it, or of one contribution.

    Attributes:
        coords: int32 ``[N, 3]``, which bricks, sorted by x, then y, then z, each once: brick ``b`` holds the voxels
            ``8 b`` to ``8 b + 7`` along each axis.
        density: float32 ``[N, 512]``, in 1/m, after the activation. Voxels of a brick are in the order x slowest, z
            fastest: voxel ``8 b + (i, j, k)`` is at ``64 i + 8 j + k``.
        sh: float32 ``[N, 512, 27]``, coefficients before the sigmoid, as `fields.hashgrid` has them: nine of red, nine
        of
            green, nine of blue, each in the order and with the signs of `fields.hashgrid.harmonics`.
        visits: uint16 ``[N, 512]``, how many contributions touched a voxel. Where it is 0 the voxel is unseen, and
            density and sh are 0.
    """

    coords: NDArray[np.int32]
    density: NDArray[np.float32]
    sh: NDArray[np.float32]
    visits: NDArray[np.uint16]

    @property
    def seen(self) -> int:
        """Number of voxels that were seen."""
        return int(np.count_nonzero(self.visits))

    def chosen(self, index: NDArray | slice) -> Bricks:
        """The bricks at ``index`` (a mask, or numbers in increasing order)."""
        return Bricks(self.coords[index], self.density[index], self.sh[index], self.visits[index])


def unseen(coords: NDArray[np.int32]) -> Bricks:
    """Bricks at ``coords [N, 3]`` (sorted, each once) of which nothing was seen."""
    count = len(coords)
    values, harmonics = np.zeros((count, CELLS), np.float32), np.zeros((count, CELLS, HARMONICS), np.float32)
    return Bricks(coords.astype(np.int32, copy=False), values, harmonics, np.zeros((count, CELLS), np.uint16))


def sorted_coords(coords: NDArray[np.int32]) -> NDArray[np.int32]:
    """Coordinates ``[M, 3]`` in the order of `Bricks`, each once: ``[N, 3]``."""
    return np.unique(coords.astype(np.int32, copy=False).reshape(-1, 3), axis=0)


def joined(parts: list[Bricks]) -> Bricks:
    """Bricks that lie in several places as one; no brick may be in two of them."""
    if not parts:
        return unseen(np.zeros((0, 3), np.int32))
    whole = Bricks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return whole.chosen(np.lexsort(whole.coords.T[::-1]))


def centres(coords: NDArray[np.int32], voxel: float) -> NDArray[np.float64]:
    """Where the values of bricks ``[N, 3]`` belong: ``[N, 512, 3]`` in global metres."""
    inside = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return voxel * (EDGE * coords[:, None].astype(np.float64) + inside + 0.5)
