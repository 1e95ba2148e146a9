"""A map as something to look at: in the cube of a frame, as the fields of runs are, with a way around it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfields.errors import UserError
from fedfields.fields.hashgrid import harmonics
from fedfields.mapping.render import MapRays, render, stream, volume
from fedfields.mapping.store import View, open_map
from fedfields.mapping.voxels import HARMONICS, Bricks, centres, joined
from fedfields.rendering.cameras import Camera
from fedfields.rendering.marching import Marched
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame
from fedfields.scenes.tour import Tour
from fedfields.scenes.views import photo_rays

BUDGET = 2**32
"""Bytes of tiles that are held while a map is looked at; a larger map is read tile by tile."""

BYTES = 512 * (2 * 4 + 2 + 27 * 4)
"""Of a brick in memory."""

MOST = 2**26
"""Voxels of the box around a map of which a regular grid is made."""


class MapViewer:
    """Rays of a frame to what is seen of a map along them."""

    def __init__(self, view: View, frame: Frame, rays: MapRays | None = None, budget: int = BUDGET) -> None:
        voxel = view.map.settings.voxel
        settings = rays or MapRays(step=voxel / 2)
        whole = _whole(view, budget)
        if whole is None:
            self._see = partial(stream, view, voxel, settings=settings, budget=budget)
        else:
            self._see = partial(render, volume(whole, voxel), settings=settings)
        self._frame = frame

    def __call__(self, rays: Rays) -> Marched:
        """What is seen, before a white background; lengths are those of the frame."""
        half = self._frame.half
        centre = torch.tensor(self._frame.centre, dtype=torch.float64)
        origins = rays.origins.double() * half + centre
        seen = self._see(rays=Rays(origins, rays.directions, rays.near * half, rays.far * half))
        colour = seen.colour + (1 - seen.opacity)[:, None]
        nothing = torch.zeros_like(seen.depth, dtype=torch.float32)
        return Marched(colour.float(), (seen.depth / half).float(), seen.opacity.float(), nothing)

    def picture(self, pose: Tensor, camera: Camera) -> Tensor:
        """The colours ``[H, W, 3]`` that a camera sees."""
        return self(photo_rays(pose, camera)).colour.reshape(camera.height, camera.width, 3)


class Mapped(NamedTuple):
    """A map to be shown, in place of a run.

    Attributes:
        view: the map at a version.
        frame: the cube around its tiles, in metres.
        tour: a way around.
    """

    view: View
    frame: Frame
    tour: Tour

    def viewer(self) -> MapViewer:
        """Rays to what is seen along them."""
        return MapViewer(self.view, self.frame)


def is_map(path: Path) -> bool:
    """Whether a folder is a map and no run."""
    return (path / "map.json").is_file()


def load_map(where: str | Path) -> Mapped:
    """Opens the map in a folder, or as text at an address that fsspec knows, to be shown at its newest version.

    Raises:
        UserError: it is damaged, or empty.
    """
    view = open_map(where).view()
    tiles = np.array(list(view.tiles()))
    if not len(tiles):
        raise UserError(f"{where} is empty; merge something first: fedfields map serve {where} --once")
    low, high = tiles.min(0) * view.map.settings.tile, (tiles.max(0) + 1) * view.map.settings.tile
    x, y, z = ((low + high) / 2).tolist()
    half = float((high - low).max()) / 2
    return Mapped(view, Frame((x, y, z), half, "white"), Tour(radius=1.7, elevation=0.8, view=0.9))


def dense_voxels(view: View, level: float | None = None) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Centres ``[P, 3]`` (metres) of all voxels at least as dense as ``level``, and colours ``[P, 3]``, tile by tile.

    By default they are those in which half of the light ends.

    Raises:
        UserError: there are none.
    """
    voxel = view.map.settings.voxel
    level = math.log(2) / voxel if level is None else level
    points, colours = [], []
    for tile in view.tiles():
        bricks = view.bricks(tile)
        dense = (bricks.visits > 0) & (bricks.density >= level)
        points.append(centres(bricks.coords, voxel)[dense])
        colours.append(_colours(bricks, dense))
    if not sum(map(len, points)):
        raise UserError(f"no voxel has a density of {level:.3g}; lower --level")
    return np.concatenate(points), np.concatenate(colours)


def as_grid(view: View) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Density ``[X, Y, Z]`` (1/m) and colour ``[X, Y, Z, 3]`` of the box around a map, and its first centre ``[3]``.

    Raises:
        UserError: the box has more than `MOST` voxels.
    """
    tiles, voxel = np.array(list(view.tiles())), view.map.settings.voxel
    side = round(view.map.settings.tile / voxel)
    low, shape = tiles.min(0) * side, (tiles.max(0) - tiles.min(0) + 1) * side
    count = math.prod(shape.tolist())
    if count > MOST:
        raise UserError(f"the box around the map has {count:,} voxels and {MOST:,} are the most; say --points")
    density, colour = np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    for tile in view.tiles():
        bricks = view.bricks(tile)
        seen = bricks.visits > 0
        at = np.rint(centres(bricks.coords, voxel)[seen] / voxel - 0.5).astype(np.int64) - low
        density[tuple(at.T)], colour[tuple(at.T)] = bricks.density[seen], _colours(bricks, seen)
    return density, colour, voxel * (low + 0.5)


def _colours(bricks: Bricks, which: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Colours ``[P, 3]`` of voxels, the mean over six directions of view."""
    six = harmonics(torch.cat([torch.eye(3), -torch.eye(3)]))
    sh = torch.from_numpy(bricks.sh.reshape(-1, HARMONICS)[which.reshape(-1)]).view(-1, 3, 9)
    return (sh @ six.T).sigmoid().mean(2).numpy()


def _whole(view: View, budget: int) -> Bricks | None:
    """All bricks of a map; None if they need more than so many bytes."""
    parts, count = [], 0
    for tile in view.tiles():
        parts.append(view.bricks(tile))
        count += len(parts[-1].coords)
        if count * BYTES > budget:
            return None
    return joined(parts)
