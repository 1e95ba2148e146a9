"""A map as something to look at: in the cube of a frame, as the fields of runs are, with a way around it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedfields.mapping.render import MapRays, render, stream, volume
from fedfields.mapping.store import View
from fedfields.rendering.cameras import Camera
from fedfields.rendering.marching import Marched
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame
from fedfields.scenes.views import photo_rays

BUDGET = 2**32
"""Bytes of tiles that are held while a map is looked at; a larger map is read tile by tile."""

BYTES = 512 * (2 * 4 + 2 + 27 * 4)
"""Of a brick in memory."""


class MapViewer:
    """Rays of a frame to what is seen of a map along them."""

    def __init__(self, view: View, frame: Frame, rays: MapRays | None = None, budget: int = BUDGET) -> None:
        voxel, settings = view.map.settings.voxel, rays or MapRays()
        tiles = len(list(view.tiles()))
        if tiles * 512 * BYTES <= budget or _in_memory(view, budget):
            self._see = partial(render, volume(view.area(), voxel), settings=settings)
        else:
            self._see = partial(stream, view, voxel, settings=settings, budget=budget)
        self._frame = frame

    def __call__(self, rays: Rays) -> Marched:
        """What is seen, before a white background; lengths are those of the frame."""
        half = self._frame.half
        centre = torch.tensor(self._frame.centre, dtype=torch.float64)
        seen = self._see(
            Rays(rays.origins.double() * half + centre, rays.directions, rays.near * half, rays.far * half)
        )
        colour = seen.colour + (1 - seen.opacity)[:, None]
        nothing = torch.zeros_like(seen.depth, dtype=torch.float32)
        return Marched(colour.float(), (seen.depth / half).float(), seen.opacity.float(), nothing)

    def picture(self, pose: Tensor, camera: Camera) -> Tensor:
        """The colours ``[H, W, 3]`` that a camera sees."""
        return self(photo_rays(pose, camera)).colour.reshape(camera.height, camera.width, 3)


def _in_memory(view: View, budget: int) -> bool:
    """Whether the bricks of a map need at most so many bytes."""
    count = 0
    for tile in view.tiles():
        count += len(view.bricks(tile).coords)
        if count * BYTES > budget:
            return False
    return True
