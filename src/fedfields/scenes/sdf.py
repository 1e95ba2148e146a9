"""Shapes by their signed distance, what they are painted with, and what rays see of them: sphere tracing.

A shape is a function of points ``[N, 3]`` to distances ``[N]``, negative inside. Where it is not the exact distance it
is a lower bound of it outside, which is all that sphere tracing needs (Hart, *Sphere Tracing*, 1996). Everything is
float32 and free of chance: the same rays see the same colours, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.rendering.rays import Rays

Vector = tuple[float, float, float]
Shape = Callable[["Tensor"], "Tensor"]
"""Points ``[N, 3]`` to signed distances ``[N]``."""
Paint = Callable[["Tensor"], "Tensor"]
"""Points ``[N, 3]`` on a surface to colours ``[N, 3]`` in [0, 1]."""

CLOSE = 1e-3
"""Distance at which a ray has arrived at a surface."""

TOGETHER = 65536
"""Rays that are traced at a time."""

MARGIN = 0.05
"""Distance from a ball at which what it bounds is asked."""

STEPS = 80
"""Most steps of a ray; one that has not arrived by then counts as having missed."""


@dataclass(frozen=True)
class Sphere:
    """All points within ``radius`` of the centre."""

    centre: Vector
    radius: float

    def __call__(self, points: Tensor) -> Tensor:
        return _length(*_from(points, self.centre)) - self.radius


@dataclass(frozen=True)
class Box:
    """A box along the axes with half edges ``half``."""

    centre: Vector
    half: Vector

    def __call__(self, points: Tensor) -> Tensor:
        x, y, z = (each.abs() - half for each, half in zip(_from(points, self.centre), self.half, strict=True))
        outside = _length(x.clamp_min(0), y.clamp_min(0), z.clamp_min(0))
        return outside + torch.maximum(torch.maximum(x, y), z).clamp_max(0)


@dataclass(frozen=True)
class Capsule:
    """All points within ``radius`` of the segment from ``start`` to ``end``."""

    start: Vector
    end: Vector
    radius: float

    def __call__(self, points: Tensor) -> Tensor:
        way = [b - a for a, b in zip(self.start, self.end, strict=True)]
        x, y, z = _from(points, self.start)
        along = ((x * way[0] + y * way[1] + z * way[2]) / sum(each * each for each in way)).clamp(0, 1)
        return _length(x - along * way[0], y - along * way[1], z - along * way[2]) - self.radius


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder of half the height ``half``."""

    centre: Vector
    radius: float
    half: float

    def __call__(self, points: Tensor) -> Tensor:
        x, y, z = _from(points, self.centre)
        aside, above = (x * x + y * y).sqrt() - self.radius, z.abs() - self.half
        outside = _length(aside.clamp_min(0), above.clamp_min(0))
        return outside + torch.maximum(aside, above).clamp_max(0)


@dataclass(frozen=True)
class Convex:
    """What lies behind all of some planes, each a point on it and a normal: roofs, pyramids. A bound outside."""

    planes: tuple[tuple[Vector, Vector], ...]

    def __call__(self, points: Tensor) -> Tensor:
        distances = []
        for point, normal in self.planes:
            (x, y, z), length = _from(points, point), sqrt(sum(each * each for each in normal))
            distances.append((x * normal[0] + y * normal[1] + z * normal[2]) / length)
        return _folded(distances, torch.maximum)


@dataclass(frozen=True)
class Union:
    """What lies in any of some shapes."""

    shapes: tuple[Shape, ...]

    def __call__(self, points: Tensor) -> Tensor:
        return _folded([shape(points) for shape in self.shapes], torch.minimum)


@dataclass(frozen=True)
class SmoothUnion:
    """The union, with joints rounded over the width ``blend``: the polynomial smooth minimum of Quilez."""

    shapes: tuple[Shape, ...]
    blend: float

    def __call__(self, points: Tensor) -> Tensor:
        def rounded(a: Tensor, b: Tensor) -> Tensor:
            near = (self.blend - (a - b).abs()).clamp_min(0) / self.blend
            return torch.minimum(a, b) - near * near * self.blend / 4

        return _folded([shape(points) for shape in self.shapes], rounded)


@dataclass(frozen=True)
class Repeated:
    """A shape about the origin ``2 n + 1`` times along each axis, ``spacing`` apart.

    The distance is exact if the shape fits between the middles to its neighbours and is symmetric about its own.
    """

    shape: Shape
    spacing: Vector
    counts: tuple[int, int, int]
    """n along each axis; 0 leaves it alone."""

    def __call__(self, points: Tensor) -> Tensor:
        moved = [
            each - gap * (each / gap).round().clamp(-count, count) if count else each
            for each, gap, count in zip(points.unbind(1), self.spacing, self.counts, strict=True)
        ]
        return self.shape(torch.stack(moved).T)


@dataclass(frozen=True)
class Bounded:
    """A shape within a ball, which is not asked about points far from the ball."""

    shape: Shape
    centre: Vector
    radius: float

    def __call__(self, points: Tensor) -> Tensor:
        distance = Sphere(self.centre, self.radius)(points)
        close = (distance < MARGIN).nonzero()[:, 0]
        if len(close):
            distance[close] = self.shape(points.T[:, close].T)
        return distance


@dataclass(frozen=True)
class Plain:
    """One colour."""

    colour: Vector

    def __call__(self, points: Tensor) -> Tensor:
        return points.new_tensor(self.colour).expand(len(points), 3)


@dataclass(frozen=True)
class Stripes:
    """Two colours in turn along an axis, each ``width`` wide."""

    first: Vector
    second: Vector
    width: float
    axis: int = 2

    def __call__(self, points: Tensor) -> Tensor:
        odd = (points[:, self.axis] / self.width).floor() % 2
        return _mixed(self.first, self.second, odd)


@dataclass(frozen=True)
class Checker:
    """Two colours in turn along the two level axes, in squares of edge ``width``."""

    first: Vector
    second: Vector
    width: float

    def __call__(self, points: Tensor) -> Tensor:
        odd = (points[:, :2] / self.width).floor().sum(1) % 2
        return _mixed(self.first, self.second, odd)


class Part(NamedTuple):
    """A shape and its paint."""

    shape: Shape
    paint: Paint


@dataclass(frozen=True)
class ByPart:
    """The paint of whichever part is nearest."""

    parts: tuple[Part, ...]

    def __call__(self, points: Tensor) -> Tensor:
        nearest = torch.stack([part.shape(points) for part in self.parts]).argmin(0)
        colour = torch.empty_like(points)
        for i, part in enumerate(self.parts):
            mine = (nearest == i).nonzero()[:, 0]
            colour[mine] = part.paint(points[mine])
        return colour


def joined(parts: Sequence[Part], ball: tuple[Vector, float] | None = None) -> Part:
    """Some parts as one, which may be known to lie within a ball (its centre and radius): that saves time."""
    whole = Union(tuple(part.shape for part in parts))
    return Part(whole if ball is None else Bounded(whole, *ball), ByPart(tuple(parts)))


@dataclass(frozen=True)
class Light:
    """Light from everywhere and from two far lamps; matt surfaces."""

    ambient: float = 0.42
    key: Vector = (0.45, -0.55, 0.75)
    """Towards the first lamp, which casts shadows."""
    key_share: float = 0.55
    fill: Vector = (-0.6, 0.5, 0.35)
    """Towards the second one, which casts none."""
    fill_share: float = 0.18


class Seen(NamedTuple):
    """What rays see.

    Attributes:
        colour: ``[R, 3]`` in [0, 1], white where they see nothing.
        depth: ``[R]``, distance along the ray, infinite where it sees nothing: finite is the exact mask.
    """

    colour: Tensor
    depth: Tensor


LIGHT = Light()


def look(part: Part, rays: Rays, light: Light = LIGHT) -> Seen:
    """What rays see of a painted shape between near and far."""
    starts = range(0, len(rays.near), TOGETHER)
    seen = [_look(part, rays.chosen(slice(a, a + TOGETHER)), light) for a in starts]
    return Seen(*(torch.cat(parts) for parts in zip(*seen, strict=True)))


def _look(part: Part, rays: Rays, light: Light) -> Seen:
    depth = trace(part.shape, rays)
    colour = torch.ones_like(rays.origins)
    hit = depth.isfinite().nonzero()[:, 0]
    if len(hit):
        points = _points(rays.chosen(hit), depth[hit])
        colour[hit] = (part.paint(points) * lighting(part.shape, points, light)[:, None]).clamp(0, 1)
    return Seen(colour, depth)


def trace(shape: Shape, rays: Rays) -> Tensor:
    """Distances ``[R]`` along rays at which they enter a shape, by steps of its distance; infinite where they miss."""
    found = torch.full_like(rays.near, torch.inf)
    going = (rays.far > rays.near).nonzero()[:, 0]
    rays, at = rays.chosen(going), rays.near[going]
    for _ in range(STEPS):
        if not len(going):
            break
        distance = shape(_points(rays, at))
        arrived = distance < CLOSE
        found[going[arrived]] = at[arrived]
        at = at + distance
        left = (~arrived & (at < rays.far)).nonzero()[:, 0]
        if len(left) < len(going):
            going, at, rays = going[left], at[left], rays.chosen(left)
    return found


def lighting(shape: Shape, points: Tensor, light: Light) -> Tensor:
    """How bright surfaces are at points ``[N, 3]``: ``[N]``. Corners are darker, for less of the sky is seen there."""
    from fedfields.rendering.rays import Rays

    normal = normals(shape, points)
    towards = torch.nn.functional.normalize(points.new_tensor([light.key, light.fill]), dim=1)
    key, fill = (normal @ towards.T).clamp_min(0).unbind(1)
    starts, ways = points + 0.01 * normal, towards[0].expand_as(points)
    near = torch.zeros_like(key)
    shadowed = trace(shape, Rays(starts, ways, near, torch.where(key > 0, 2.0, near))).isfinite()
    open_sky = (shape(points + 0.08 * normal) / 0.08).clamp(0, 1)
    ambient = light.ambient * (0.5 + 0.5 * open_sky)
    return ambient + light.key_share * torch.where(shadowed, 0.0, key) + light.fill_share * fill


def normals(shape: Shape, points: Tensor, width: float = 2e-3) -> Tensor:
    """Outward unit normals ``[N, 3]``: differences between the corners of a tetrahedron, which soften edges."""
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    total = sum(corner * shape(points + width * corner)[:, None] for corner in corners)
    return torch.nn.functional.normalize(total, dim=1)  # pyright: ignore[reportArgumentType]


def _points(rays: Rays, at: Tensor) -> Tensor:
    """``[N, 3]`` at distances ``[N]``, stored by coordinate: shapes work on one coordinate at a time."""
    return (rays.origins.T + at * rays.directions.T).contiguous().T


def _from(points: Tensor, centre: Vector) -> list[Tensor]:
    return [each - c for each, c in zip(points.unbind(1), centre, strict=True)]


def _length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return total.sqrt()


def _folded(distances: Sequence[Tensor], pair: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    total = distances[0]
    for distance in distances[1:]:
        total = pair(total, distance)
    return total


def _mixed(first: Vector, second: Vector, share: Tensor) -> Tensor:
    a, b = share.new_tensor(first), share.new_tensor(second)
    return a + share[:, None] * (b - a)
