"""Rendering that skips empty space: an occupancy grid, and as many samples on a ray as it has matter."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.compositing import Background, background_colour
from fedfields.rendering.rays import Radiance, Rays

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from fedfields.kernels.packed import Packed

DIAGONAL = 2 * sqrt(3)
"""Of the cube [-1, 1]^3."""

TOGETHER = 16
"""Samples of a ray that are asked for at a time, where what is behind them may be left out."""


class Marched(NamedTuple):
    """What is seen along rays.

    Attributes:
        colour: ``[R, 3]``, with the background.
        depth: ``[R]``, expected distance of what is seen; the background is at distance 0.
        opacity: ``[R]`` in [0, 1].
        distortion: ``[R]``, how far the weights are from a single short interval; in units of distance.
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor
    distortion: Tensor


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

    opaque: float = 1e-4
    """Pictures leave out what less than this share of the light reaches; training leaves nothing out."""

    distortion: float = 0.0
    """Weight of the distortion loss (Barron et al., Mip-NeRF 360, eq. 15), in inverse units of distance."""

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "cells", "refresh"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.opaque < 1:
            raise ValueError(f"opaque is {self.opaque}; it must be at least 0 and less than 1")
        if self.distortion < 0:
            raise ValueError(f"distortion is {self.distortion}; it must not be negative")

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
            generator: of the points, on the CPU.
        """
        axes = torch.arange(self.cells)
        corners = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij"), -1).reshape(-1, 3)
        points = 2 * (corners + torch.rand(len(corners), 3, generator=generator)) / self.cells - 1
        with torch.no_grad():
            found = torch.cat([density(part) for part in points.split(65536)]).view(self.cells, self.cells, self.cells)
        return found if kept is None else torch.maximum(found, self.decay * kept)


def march_rays(
    radiance: Radiance, rays: Rays, marching: Marching, occupied: Tensor, most: int | None = None
) -> tuple[Marched, Packed]:
    """Renders as many of the rays as ``most`` samples allow (all of them without a limit), and gives these samples."""
    from fedfields.kernels.packed import Packed

    samples = _samples(rays, marching, occupied)
    if most is not None and len(samples.ray) > most:
        count = max(1, int(torch.searchsorted(samples.offsets, most, right=True)) - 1)
        end = int(samples.offsets[count])
        ray, middle, delta, offsets = samples
        samples, rays = Packed(ray[:end], middle[:end], delta[:end], offsets[: count + 1]), rays.chosen(slice(count))
    return _composited(*_ask(radiance, rays, samples.ray, samples.middle), samples, rays, marching), samples


def along(density: Tensor, values: Tensor, samples: Packed) -> Tensor:
    """What values ``[M]`` at samples of this ``density [M]`` come to along rays, ``[R]``: weighted like colours."""
    from fedfields.kernels.packed import composite

    return composite(density, values[:, None].expand(-1, 3), samples).colour[:, 0]


def view_rays(radiance: Radiance, rays: Rays, marching: Marching, occupied: Tensor) -> Marched:
    """Renders all rays without history, and asks for no samples behind what lets less than ``opaque`` through.

    Samples are asked for front to back, some of every ray at a time. What is left out has a share of at most
    ``opaque`` in a ray; so has the error of opacity and of colours in [0, 1].
    """
    samples, thickest = _samples(rays, marching, occupied), -log(marching.opaque) if marching.opaque else inf
    density, colour = rays.origins.new_zeros(len(samples.ray)), rays.origins.new_zeros(len(samples.ray), 3)
    thickness = torch.zeros_like(rays.near)
    going, done = torch.arange(len(rays.near), device=rays.near.device), 0
    with torch.no_grad():
        while len(going):
            first, end = samples.offsets[going] + done, samples.offsets[going + 1]
            count = (end - first).clamp(0, TOGETHER)
            upto = count.cumsum(0)
            part = torch.arange(int(upto[-1]), device=upto.device) + (first - upto + count).repeat_interleave(count)
            density[part], colour[part] = _ask(radiance, rays, samples.ray[part], samples.middle[part])
            thickness.index_add_(0, samples.ray[part], density[part] * samples.delta[part])
            going = going[(thickness[going] < thickest) & (first + TOGETHER < end)]
            done += TOGETHER
        return _composited(density, colour, samples, rays, marching)


def _samples(rays: Rays, marching: Marching, occupied: Tensor) -> Packed:
    """Samples in occupied cells of the cube [-1, 1]^3."""
    from fedfields.kernels.packed import march

    jitter = torch.full_like(rays.near, 0.5) if rays.jitter is None else rays.jitter[:, 0]
    origins, directions = (rays.origins + 1) / 2, rays.directions / 2
    return march(origins, directions, rays.near, rays.far, jitter, occupied.to(jitter.device), marching.step)


def _ask(radiance: Radiance, rays: Rays, ray: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Density ``[N]`` and colour ``[N, 3]`` at distances ``middle [N]`` along the rays with the indices ``ray [N]``."""
    along = rays.directions[ray]
    codes = () if rays.codes is None else (rays.codes[ray],)
    return radiance(rays.origins[ray] + middle[:, None] * along, along, *codes)


def _composited(density: Tensor, colour: Tensor, samples: Packed, rays: Rays, marching: Marching) -> Marched:
    """What is seen, with the background."""
    from fedfields.kernels.packed import composite

    seen, opacity, depth, distortion = composite(density, colour, samples)
    behind = marching.background if rays.background is None else rays.background
    seen = seen + (1 - opacity)[:, None] * background_colour(behind, seen)
    return Marched(seen, depth, opacity, distortion)
