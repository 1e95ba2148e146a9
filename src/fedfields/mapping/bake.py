"""A client's field as voxels of the map (Suzuki 2023, section 3.2): the field is asked at the centres of global voxels.

A field lives in the cube of its own frame, in metres. Its pose ``[3, 4]`` takes these to global metres,
``P_g = R P + t``. What the client's cameras never saw must stay out of the map; the paper leaves open what that is, and
here a voxel counts as seen if enough training rays reach it with some of their light left. That is found once, in the
frame of the field, so that the server can bake again under another pose and needs no cameras.

Either the client bakes and sends voxels (`packing.contribution_as_bytes`) or it sends its field (`local_as_bytes`) and
the server bakes: both come to the same.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.fields.hashgrid import HashGrid, density_of
from fedfields.lazy import torch
from fedfields.mapping.harmonics import rotated
from fedfields.mapping.merge import Contribution
from fedfields.mapping.rigid import check_motion
from fedfields.mapping.voxels import CELLS, EDGE, Bricks, centres, unseen
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame, frame_from
from fedfields.store import tensors_as_bytes, tensors_from_bytes
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 128
"""Bricks that are baked at a time."""

FINEST = 1024
"""Most cells along an axis of the cube for which what was seen is kept: 128 MiB of bits."""


class Local(NamedTuple):
    """A field as a client has trained it.

    Attributes:
        name: what nobody else's is called.
        field: the hash grid.
        params: its weights.
        frame: the cube of the field, in metres of the client's own axes.
        seen: bool ``[G, G, G]``, which cells of the cube were seen (see `seen_cells`).
        views: photographs that it was trained on.
        code: appearance code ``[A]`` to bake with: the mean of the photographs' codes. None is the neutral one.
    """

    name: str
    field: HashGrid
    params: Params
    frame: Frame
    seen: NDArray[np.bool_]
    views: int = 0
    code: Tensor | None = None


def cells_of(frame: Frame, voxel: float) -> int:
    """How many cells along an axis of its cube are about as large as voxels.

    Raises:
        UserError: there would be more than `FINEST`.
    """
    cells = math.ceil(2 * frame.half / voxel)
    if cells > FINEST:
        raise UserError(
            f"a cube of {2 * frame.half:g} m has {cells} voxels of {voxel:g} m along an axis; {FINEST} are the most: "
            "make voxels larger or share the photographs out among several fields"
        )
    return cells


def seen_cells(
    density: Callable[[Tensor], Tensor], rays: Rays, cells: int, least: int = 3, light: float = 0.01
) -> NDArray[np.bool_]:
    """Which cells of the cube [-1, 1]^3 at least so many rays reach between near and far.

    Args:
        density: positions ``[N, 3]`` in the cube to density ``[N]``; a cell has that of its centre.
        rays: those of the training photographs' pixels, or evenly some of them, in the cube.
        cells: G, along an axis.
        least: rays.
        light: transmittance that a ray must have more than as it enters the cell.

    Returns:
        ``[G, G, G]``.
    """
    from fedfields.kernels.compiled import count_rays

    parts = [(rays.origins + 1) / 2, rays.directions / 2, rays.near, rays.far]
    arrays = [part.detach().float().contiguous().numpy() for part in parts]
    thickness, counts = np.zeros((cells,) * 3, np.float32), np.zeros((cells,) * 3, np.int32)
    count_rays(*arrays, thickness, 0.0, counts)  # Through empty space: the density of other cells does not matter.
    crossed = torch.from_numpy(np.argwhere(counts >= least))
    with torch.no_grad():
        found = [density((2 * part.float() + 1) / cells - 1) for part in crossed.split(65536)]
    thickness[counts >= least] = torch.cat(found).numpy() if found else 0
    counts[:] = 0
    count_rays(*arrays, thickness, light, counts)
    return counts >= least


def with_neighbours(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Seen cells ``[G, G, G]`` and the six next to each: a map is interpolated between voxels, of which all are needed.

    Without those behind a surface that is one cell thick, half of it would be missing.
    """
    found = seen.copy()
    for axis in range(3):
        along, given = found.swapaxes(0, axis), seen.swapaxes(0, axis)
        along[1:] |= given[:-1]
        along[:-1] |= given[1:]
    return found


def bake(local: Local, pose: NDArray, voxel: float, base: int | None = None) -> Contribution:
    """The voxels of the map that a field has something to say about, in global axes.

    Density is per metre; the spherical harmonics are rotated with the pose.

    Args:
        local: the field.
        pose: ``[3, 4]``, a rotation and metres.
        voxel: edge of the map's voxels, in metres.
        base: version of the map when the client began; see `Contribution`.

    Raises:
        UserError: the pose is none.
    """
    pose = np.asarray(pose, np.float64)
    check_motion(pose, f"the frame of {local.name[:40]!r}")
    coords = _touched(local, pose, voxel)
    parts = [_baked(local, pose, voxel, coords[i : i + TOGETHER]) for i in range(0, len(coords), TOGETHER)]
    bricks = unseen(coords) if not parts else Bricks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Contribution(local.name, bricks.chosen(np.flatnonzero(bricks.visits.any(1))), voxel, pose, local.views, base)


def _touched(local: Local, pose: NDArray[np.float64], voxel: float) -> NDArray[np.int32]:
    """Bricks in which the corners of seen cells lie, sorted: all that may hold the centre of a seen voxel."""
    size, half = len(local.seen), local.frame.half
    corners = np.zeros((size + 1,) * 3, bool)
    for shift in np.ndindex(2, 2, 2):
        corners[tuple(slice(s, size + s) for s in shift)] |= local.seen
    inside = (2 * np.argwhere(corners) / size - 1) * half + np.array(local.frame.centre)
    bricks = np.floor((inside @ pose[:, :3].T + pose[:, 3]) / (EDGE * voxel)).astype(np.int64)
    if not len(bricks):
        return np.zeros((0, 3), np.int32)
    low = bricks.min(0)
    there = np.zeros(bricks.max(0) - low + 1, bool)
    there[tuple((bricks - low).T)] = True
    return (np.argwhere(there) + low).astype(np.int32)


def _baked(local: Local, pose: NDArray[np.float64], voxel: float, coords: NDArray[np.int32]) -> Bricks:
    """The bricks at these coordinates."""
    frame, size, bricks = local.frame, len(local.seen), unseen(coords)
    points = (centres(coords, voxel).reshape(-1, 3) - pose[:, 3]) @ pose[:, :3]  # P = R^T (P_g - t).
    points = (points - np.array(frame.centre)) / frame.half
    cells = np.floor((points + 1) / 2 * size).astype(np.int64)
    at = np.flatnonzero(((cells >= 0) & (cells < size)).all(1))
    at = at[local.seen[tuple(cells[at].T)]]
    if len(at):
        positions = torch.from_numpy(points[at]).float()
        codes = None if local.code is None else local.code.expand(len(at), -1)
        with torch.no_grad():
            latents = local.field.latents(local.params, positions)
            sh = local.field.coefficients(local.params, latents, codes).reshape(-1, 27)
            bricks.density.reshape(-1)[at] = (density_of(latents[:, 0]) / frame.half).numpy()
            bricks.sh.reshape(len(coords) * CELLS, -1)[at] = rotated(sh, pose[:, :3]).numpy()
        bricks.visits.reshape(-1)[at] = 1
    return bricks


def local_as_bytes(local: Local) -> bytes:
    """A field as a client sends it: weights, frame, and which cells were seen."""
    return tensors_as_bytes(*local_as_tensors(local))


def local_as_tensors(local: Local) -> tuple[Params, dict[str, Any]]:
    """The tensors of `local_as_bytes`, and what is told about them."""
    tensors = {f"params.{name}": leaf for name, leaf in local.params.items()}
    bits = zlib.compress(np.packbits(local.seen).tobytes())
    tensors["seen"] = torch.frombuffer(bytearray(bits), dtype=torch.uint8)
    if local.code is not None:
        tensors["code"] = local.code
    told = {"name": local.name, "views": local.views, "cells": len(local.seen)}
    return tensors, told | {"field": dataclasses.asdict(local.field), "frame": dataclasses.asdict(local.frame)}


def local_from_bytes(content: bytes) -> Local:
    """What `local_as_bytes` made.

    Raises:
        UserError: it is damaged, impossible, or something else.
    """
    try:
        return local_of(*tensors_from_bytes(content))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{len(content):,} bytes are no trained field: {why:.200}; send it again") from error


def local_of(tensors: Params, told: dict[str, Any]) -> Local:
    """The inverse of `local_as_tensors`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error: it is damaged or impossible.
    """
    field, cells = HashGrid(**told["field"]), int(told["cells"])
    frame = frame_from(told["frame"], "the field that was sent")
    params = {name.removeprefix("params."): leaf for name, leaf in tensors.items() if name.startswith("params.")}
    code = tensors.get("code")
    _check_weights(field, params, code)
    if not 0 < cells <= FINEST:
        raise ValueError(f"it has {cells} cells along an axis; 1 to {FINEST} are allowed")
    bits = zlib.decompressobj().decompress(tensors["seen"].numpy().tobytes(), -(-(cells**3) // 8))
    seen = np.unpackbits(np.frombuffer(bits, np.uint8), count=cells**3).astype(bool).reshape((cells,) * 3)
    return Local(str(told["name"]), field, params, frame, seen, int(told["views"]), code)


def _check_weights(field: HashGrid, params: Params, code: Tensor | None) -> None:
    found = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in params.items()}
    if found != {name: (shape, torch.float32) for name, shape in field.shapes.items()}:
        raise ValueError("its weights are not those of the field that it names")
    if code is not None and code.shape != (field.appearance,):
        raise ValueError(f"its appearance code is {[*code.shape]}; it must be [{field.appearance}]")
    if not all(bool(leaf.isfinite().all()) for leaf in params.values()):
        raise ValueError("its weights are not finite")
