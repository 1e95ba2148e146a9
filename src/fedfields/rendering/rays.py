"""Rays, and what a radiance field shows along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.compositing import Background, Rendered, composite
from fedfields.rendering.sampling import Samples, fedmenf_points, importance, stratified, up_to_next
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Tensor

Radiance = Callable[..., tuple["Tensor", "Tensor"]]
"""``(positions [N, 3], directions [N, 3]) -> (density [N], colour [N, 3])``: anything that can be rendered.

It is given ``codes [N, A]`` too if the rays have some."""

RadianceField = Callable[..., tuple["Tensor", "Tensor"]]
"""The same as a function of weights, which come first."""


class Rays(NamedTuple):
    """Rays to be rendered; with everything random that this needs, they can be the inputs of a batch.

    Attributes:
        origins: ``[R, 3]``, world coordinates.
        directions: ``[R, 3]``, of length one, so that depth is a distance.
        near: ``[R]``, the distance at which each ray begins to count.
        far: ``[R]``, the distance at which it ends.
        jitter: ``[R, S]`` in [0, 1), the places of the samples, fine ones last; without it they are regular.
        background: ``[R, 3]``, what is behind each ray; without it, what the settings say.
        photo: ``[R]`` int64, which of the owner's photographs each ray is from.
        codes: ``[R, A]``, the appearance that each ray is to be seen in; without it, the neutral one. Behind it stand
            any transient codes ``[R, T]`` of the photographs, which an owner's own part reads.
        owner: ``[R]`` int64, whose photograph each ray is from, where one client has those of many; in a batch that
            is trained on, the same for all rays.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    jitter: Tensor | None = None
    background: Tensor | None = None
    photo: Tensor | None = None
    codes: Tensor | None = None
    owner: Tensor | None = None

    def chosen(self, index: Tensor | slice) -> Rays:
        """The rays at ``index``, in its order."""
        return Rays(*(None if part is None else part[index] for part in self))  # pyright: ignore[reportArgumentType]


class Picture(NamedTuple):
    """What a camera sees.

    Attributes:
        colour: ``[H, W, 3]``.
        depth: ``[H, W]``, as in `Rendered`.
        opacity: ``[H, W]`` in [0, 1].
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor


@dataclass(frozen=True)
class RenderSettings:
    """How rays are sampled and composited."""

    samples: int = 128
    """Samples on each ray."""

    background: Background = "white"
    """What is behind the scene: white, black, or red, green and blue in [0, 1]."""

    convention: Literal["strata", "fedmenf"] = "strata"
    """Strata fill the way from near to far. Fedmenf does as the official code of FedMeNF: each point stands for the
    way to the next one, and the last for 1e-3 before a white background and 1e10 before any other."""

    fine: int = 0
    """Samples that are added where the coarse field of a pair found something."""

    distortion: float = 0.0
    """Weight of the distortion loss (Barron et al., Mip-NeRF 360, eq. 15), in inverse units of distance."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"{self.samples} samples on a ray; there must be at least 1")
        if self.fine < 0:
            raise ValueError(f"{self.fine} fine samples on a ray; the number must not be negative")
        if self.distortion < 0:
            raise ValueError(f"distortion is {self.distortion}; it must not be negative")
        if self.convention not in ("strata", "fedmenf"):
            raise ValueError(f"convention is {self.convention!r}; it must be strata or fedmenf")

    @property
    def jitters(self) -> int:
        """Random numbers for each ray."""
        return self.samples + self.fine

    def sample(self, rays: Rays) -> Samples:
        """Where the field is asked along each ray."""
        place = stratified if self.convention == "strata" else fedmenf_points
        jitter = None if rays.jitter is None else rays.jitter[:, : self.samples]
        return place(rays.near, rays.far, self.samples, jitter)

    def refine(self, rays: Rays, coarse: Samples, weights: Tensor) -> Samples:
        """The coarse points, and ``fine`` more where their ``weights [R, S]`` are (history is ignored)."""
        even = (torch.arange(self.fine, dtype=weights.dtype, device=weights.device) + 0.5) / self.fine
        places = even.expand(len(weights), -1) if rays.jitter is None else rays.jitter[:, self.samples :]
        edges = torch.cat([coarse.starts, coarse.ends[:, -1:]], 1)
        found = importance(edges, weights.detach(), places)
        at = torch.cat([coarse.at, found], 1).sort(1).values
        return up_to_next(at, torch.maximum(coarse.ends[:, -1], at[:, -1]))

    @property
    def last_delta(self) -> float | None:
        """Length of the last interval, where it is a convention."""
        if self.convention == "strata":
            return None
        return 1e-3 if self.background == "white" else 1e10


def march(radiance: Radiance, rays: Rays, settings: RenderSettings) -> Rendered:
    """Renders rays ``[R]`` through anything that gives density and colour at points."""
    return march_at(radiance, rays, settings, settings.sample(rays))


def march_at(radiance: Radiance, rays: Rays, settings: RenderSettings, samples: Samples) -> Rendered:
    """Renders rays ``[R]`` from samples ``[R, S]`` that are given."""
    positions = rays.origins[:, None] + samples.at[..., None] * rays.directions[:, None]
    directions = rays.directions[:, None].expand_as(positions)
    codes = () if rays.codes is None else (rays.codes.repeat_interleave(samples.at.shape[1], 0),)
    densities, colours = radiance(positions.reshape(-1, 3), directions.reshape(-1, 3), *codes)
    return composite(
        densities.reshape(samples.at.shape),
        colours.reshape(positions.shape),
        samples.starts,
        samples.ends,
        settings.background if rays.background is None else rays.background,
        at=samples.at,
        last_delta=settings.last_delta,
    )


def render_pair(coarse: Radiance, fine: Radiance, rays: Rays, settings: RenderSettings) -> tuple[Rendered, Rendered]:
    """Renders rays ``[R]`` through a coarse field, and through a fine one that looks where that found something."""
    samples = settings.sample(rays)
    first = march_at(coarse, rays, settings, samples)
    return first, march_at(fine, rays, settings, settings.refine(rays, samples, first.weights))


def render_rays(field: RadianceField, params: Params, rays: Rays, settings: RenderSettings) -> Rendered:
    """Renders rays ``[R]`` through a field with the weights ``params``."""
    return march(partial(field, params), rays, settings)


def in_chunks(see: Callable[[Rays], Sequence[Tensor]], rays: Rays, chunk: int) -> list[Tensor]:
    """Colour ``[R, 3]``, depth, opacity and distortion ``[R]`` of all rays, without history.

    Args:
        see: rays to what is seen along them, of which the first four are these.
        rays: any number.
        chunk: at most so many at a time.
    """
    with torch.no_grad():
        pieces = [see(rays.chosen(slice(a, a + chunk)))[:4] for a in range(0, len(rays.near), chunk)]
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def render_image(
    field: RadianceField,
    params: Params,
    rays: Rays,
    settings: RenderSettings,
    shape: tuple[int, int],
    points: int = 8192,
) -> Picture:
    """Renders the rays ``[H * W]`` of all pixels, row by row, without history.

    Args:
        field: the radiance field.
        params: its weights.
        rays: one for each pixel.
        settings: as for single rays.
        shape: height and width.
        points: at most so many samples at a time, but at least one ray. Memory grows with it: a field of width 256
            needs some 2 kB for a sample. The default suits the cache of a processor; give a GPU a million.

    Raises:
        ValueError: there are more or fewer rays than pixels.
    """
    height, width = shape
    if len(rays.origins) != height * width:
        raise ValueError(f"{len(rays.origins)} rays for {height} x {width} pixels; there must be one for each")
    chunk = max(1, points // settings.samples)
    colour, depth, opacity, _ = in_chunks(lambda part: render_rays(field, params, part, settings), rays, chunk)
    return Picture(colour.reshape(height, width, 3), depth.reshape(shape), opacity.reshape(shape))
