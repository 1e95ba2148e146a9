"""Rendering that skips empty space: an occupancy grid, and as many samples on a ray as it has matter."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.compositing import Background, background_colour
from fedfields.rendering.rays import Radiance, Rays

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

DIAGONAL = 2 * sqrt(3)
"""Of the cube [-1, 1]^3."""


class Marched(NamedTuple):
    """What is seen along rays.

    Attributes:
        colour: ``[R, 3]``, with the background.
        depth: ``[R]``, expected distance of what is seen; the background is at distance 0.
        opacity: ``[R]`` in [0, 1].
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor


@dataclass(frozen=True)
class Marching:
    """How rays are marched through the cube [-1, 1]^3."""

    steps: int = 512
    """Steps along the cube's diagonal."""

    samples: int = 32768
    """At most so many samples in a batch; rays that come later are left out of it."""

    cells: int = 64
    """Cells of the occupancy grid along an axis."""

    refresh: int = 100
    """Outer steps after which the occupancy grid looks at the field again."""

    haze: float = 0.01
    """Opacity of a step below which a cell counts as empty."""

    decay: float = 0.8
    """Factor of what a cell remembers of its density when the grid is refreshed."""

    background: Background = "white"
    """What is behind the scene where a batch does not say: white, black, or red, green and blue in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "cells", "refresh"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def step(self) -> float:
        """Distance between samples."""
        return DIAGONAL / self.steps

    def occupied(self, densities: Tensor) -> Tensor:
        """Which cells ``[G, G, G]`` are not empty: thicker than haze, or than the mean while all is haze."""
        thickness = densities * self.step
        return thickness > thickness.mean().clamp_max(self.haze)

    def look(self, density: Callable[[Tensor], Tensor], kept: Tensor | None, generator: Generator) -> Tensor:
        """The densities that the grid knows: one random point in each cell, or what it remembers if that is more.

        Args:
            density: positions ``[N, 3]`` to density ``[N]``.
            kept: the grid before, ``[G, G, G]``; None at first.
            generator: of the points.
        """
        axes = torch.arange(self.cells)
        corners = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij"), -1).reshape(-1, 3)
        points = 2 * (corners + torch.rand(len(corners), 3, generator=generator)) / self.cells - 1
        with torch.no_grad():
            found = torch.cat([density(part) for part in points.split(65536)]).view(self.cells, self.cells, self.cells)
        return found if kept is None else torch.maximum(found, self.decay * kept)


def march_rays(
    radiance: Radiance, rays: Rays, marching: Marching, occupied: Tensor, most: int | None = None
) -> tuple[Marched, int]:
    """Renders as many of the rays as ``most`` samples allow (all of them without a limit), and says how many."""
    from fedfields.kernels.packed import Packed, composite, march

    jitter = torch.full_like(rays.near, 0.5) if rays.jitter is None else rays.jitter[:, 0]
    origins, directions = (rays.origins + 1) / 2, rays.directions / 2
    samples = march(origins, directions, rays.near, rays.far, jitter, occupied, marching.step)
    count = len(rays.near)
    if most is not None and len(samples.ray) > most:
        count = max(1, int(torch.searchsorted(samples.offsets, most, right=True)) - 1)
        end = int(samples.offsets[count])
        ray, middle, delta, offsets = samples
        samples = Packed(ray[:end], middle[:end], delta[:end], offsets[: count + 1])
    along = rays.directions[samples.ray]
    codes = () if rays.codes is None else (rays.codes[samples.ray],)
    density, colour = radiance(rays.origins[samples.ray] + samples.middle[:, None] * along, along, *codes)
    seen, opacity, depth = composite(density, colour, samples)
    behind = marching.background if rays.background is None else rays.background[:count]
    seen = seen + (1 - opacity)[:, None] * background_colour(behind, seen)
    return Marched(seen, depth, opacity), count
