"""The pose of a contribution in the map: roughly by its voxels, finely by what both show along the same rays.

Suzuki, *Federated Learning for Large-Scale Scene Modeling with Neural Radiance Fields*, 2023, section 3.3: GPS and
gimbal are metres and degrees wrong, so the server finds the rigid motion under which map and contribution look alike::

    t, R = argmin sum_j E_rays  lambda |C_g(r) - C(r_j)| + (1 - lambda) |D_g(r) - D(r_j)|                 (5)

with ``r_j`` the rays of a view j of the contributor and ``r`` the same rays moved into the map. The paper starts from
many random hypotheses, all of which it renders. Here they are tried on voxels first (`fedfields.mapping.register`), and
eq. 5 improves the best of them. The contribution is rendered once; the gradient goes through the renderer of the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.mapping.register import Level, Search, levels_of, register, surface_of
from fedfields.mapping.render import MapRays, render, volume
from fedfields.mapping.rigid import exp, moved
from fedfields.mapping.voxels import Bricks, centres
from fedfields.rendering.cameras import check_pose
from fedfields.rendering.rays import Rays

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fedfields.kernels.bricks import Seen, Volume

SURE = 0.9
"""Opacity above which a ray has seen something."""

FEWEST = 50
"""Voxels or rays below which nothing can be aligned."""

FIRST = 8
"""One of so many rays leads to the neighbourhood of a pose; all of them then find it."""

DAMPING, STILL, SMALL = 1e-3, 1e-4, 1e-2
"""Of the descent: the least damping, a step that ends it, and a residual below which its absolute value is rounded."""


@dataclass(frozen=True)
class Alignment:
    """How the pose of a contribution is found, and how sure of it one must be."""

    search: Search = field(default_factory=Search)
    """The rough stage."""

    colour: float = 0.75
    """Weight of colour against depth: lambda of eq. 5."""

    depth: float = 0.0
    """Metres of depth that count as much as black against white; 0 for as many as make both mismatches equal on average
    (the scales of two Laplace distributions). Soft surfaces count little then, and sharp ones much."""

    views: int = 8
    """Cameras of the contributor through which both are looked at, far from each other."""

    angle: float = 60.0
    """Degrees across such a view."""

    rays: int = 8192
    """Rays of all views together."""

    steps: int = 20
    """Of Levenberg and Marquardt, at most; fewer where they do not help any more."""

    confidence: float = 0.26
    """Least confidence (see `Aligned`) of a contribution that is accepted: on fields of the town (docs/map.md), 39 good
    ones had 0.60 or more, and 19 bad ones 0.10 or less."""

    overlap: float = 0.2
    """Least share of its rays that see something in the map, too."""

    def __post_init__(self) -> None:
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour is {self.colour}; it must lie between 0 and 1")
        if not (0 <= self.depth < math.inf and 0 < self.angle < 170):
            raise ValueError(f"depth {self.depth}, angle {self.angle}: impossible")
        if min(self.views, self.rays, self.steps) < 1:
            raise ValueError("views, rays and steps must be at least 1")


class Target(NamedTuple):
    """A map, or an area of one, to which contributions are aligned: made ready once for all of them."""

    volume: Volume
    levels: list[Level]
    voxel: float


class Brought(NamedTuple):
    """A contribution before its pose is known.

    Attributes:
        name: for messages.
        bricks: its voxels, in its own frame and metres; of the map's size.
        cameras: ``[V, 3, 4]``, poses of its training photographs in that frame.
        start: ``[3, 4]``, the motion from that frame to the world that GPS and gimbal tell (see `rigid.between`).
    """

    name: str
    bricks: Bricks
    cameras: NDArray[np.float64]
    start: NDArray[np.float64]


class Aligned(NamedTuple):
    """Where a contribution belongs.

    Attributes:
        pose: ``[3, 4]``, from its frame to the world.
        confidence: in [0, 1]: the correlation of the colours that map and contribution show along the same rays, times
            the share of these rays whose depths agree to two voxels.
        overlap: share of the contribution's rays that see something in the map, too.
        loss: eq. 5.
    """

    pose: NDArray[np.float64]
    confidence: float
    overlap: float
    loss: float


class Views(NamedTuple):
    """Rays ``[R]`` of a contribution's views, in its frame, and what it shows along them."""

    rays: Rays
    seen: Seen

    def chosen(self, index: Tensor) -> Views:
        """The rays at ``index``."""
        return Views(self.rays.chosen(index), type(self.seen)(*(part[index] for part in self.seen)))


def around(brought: Brought, voxel: float, search: Search) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two corners ``[3]``, in metres, of all that a contribution may cover within the search: what to read of a map."""
    places = centres(brought.bricks.coords, voxel)[brought.bricks.visits > 0]
    if not len(places):
        raise UserError(f"contribution {brought.name[:40]!r} saw nothing; train it for longer")
    middle = (places.min(0) + places.max(0)) / 2
    reach = float(np.linalg.norm(places - middle, axis=1).max()) + search.metres
    return moved(brought.start, middle) - reach, moved(brought.start, middle) + reach


def target(bricks: Bricks, voxel: float, settings: Alignment) -> Target:
    """A map made ready.

    Raises:
        UserError: there is next to nothing in it.
    """
    if len(surface_of(bricks, voxel).places) < FEWEST:
        raise UserError("the map has no surfaces here; merge a contribution whose pose is known first")
    return Target(volume(bricks, voxel), levels_of(bricks, voxel, settings.search), voxel)


def align(to: Target, brought: Brought, settings: Alignment, generator: Generator) -> Aligned:
    """The pose of a contribution that fits.

    Raises:
        UserError: it does not fit, or what came with it is no pose. The map was not touched.
    """
    found = fitted(to, brought, settings, generator)
    if found.overlap < settings.overlap or found.confidence < settings.confidence:
        search = settings.search
        raise UserError(
            f"contribution {brought.name[:40]!r} is refused: under the best pose within {search.metres:g} m and "
            f"{search.degrees:g} degrees of its own, {found.overlap:.0%} of it overlap the map "
            f"({settings.overlap:.0%} are needed), with a confidence of {found.confidence:.2f} "
            f"({settings.confidence:.2f} is needed); check its GPS and gimbal angles; the map is as it was"
        )
    return found


def fitted(to: Target, brought: Brought, settings: Alignment, generator: Generator) -> Aligned:
    """The pose under which a contribution fits best, however badly.

    Raises:
        UserError: what came is no pose, or there is nothing to align.
    """
    where = f"contribution {brought.name[:40]!r}"
    start = check_pose(torch.from_numpy(np.asarray(brought.start, np.float64)), where).numpy()
    if not len(brought.cameras):
        raise UserError(f"{where} has no cameras, so that nothing can be looked at; send the poses of its photographs")
    for pose in torch.from_numpy(np.asarray(brought.cameras, np.float64)):
        check_pose(pose, f"a camera of {where}")
    surface = surface_of(brought.bricks, to.voxel)
    views = views_of(brought, to.voxel, settings, generator)
    if len(surface.places) < FEWEST or len(views.rays.near) < FEWEST:
        raise UserError(f"{where} shows no surfaces to align; train it for longer; the map is as it was")
    tried = register(to.levels, surface, start, settings.search, generator)
    return refined(to, views, tried, settings)


def refined(to: Target, views: Views, tried: NDArray, settings: Alignment) -> Aligned:
    """The best of several motions ``[C, 3, 4]``, improved by eq. 5.

    Raises:
        UserError: none of them leads to where the map shows something.
    """
    judged = [judged_at(to, views, motion, settings) for motion in tried]
    best = max(judged, key=lambda one: one.confidence)
    if best.overlap * len(views.rays.near) < FEWEST:
        raise UserError("the contribution is refused: it does not overlap the map; the map is as it was")
    some = views.chosen(torch.arange(0, len(views.rays.near), FIRST))
    near = _descended(to, some, best.pose, weighed(to, some, best.pose, settings))
    settings = weighed(to, views, near, settings)
    better = judged_at(to, views, _descended(to, views, near, settings), settings)
    return min(judged_at(to, views, best.pose, settings), better, key=lambda one: one.loss)


def weighed(to: Target, views: Views, pose: NDArray, settings: Alignment) -> Alignment:
    """The settings with a number of metres for `Alignment.depth`, if there is none: that of a pose."""
    if settings.depth:
        return settings
    with torch.no_grad():
        shown, both = _shown(to, views, torch.from_numpy(pose))
    colour, depth = ((one - other).abs()[both].mean() for one, other in zip(shown[:2], views.seen[:2], strict=True))
    return replace(settings, depth=float((depth / colour).nan_to_num(1.0, 1.0).clamp(to.voxel, 1e6)))


def _descended(to: Target, views: Views, pose: NDArray, settings: Alignment) -> NDArray:
    """A pose after the steps of Levenberg and Marquardt on eq. 5, of which each makes it less or is not taken."""
    centre, reach = _middle(views), float(views.seen.depth.median())
    best, damping = torch.from_numpy(pose), DAMPING
    with torch.no_grad():
        least = mismatch(to, views, best, settings)
    for _ in range(settings.steps):
        normal, slope = _equations(to, views, best, settings, centre, reach)
        while damping < 1 / DAMPING:
            step = torch.linalg.solve(normal + damping * (normal.diag() + 1e-12).diag(), -slope)
            tried = changed(best, step, centre, reach)
            with torch.no_grad():
                loss = mismatch(to, views, tried, settings)
            if loss < least:
                best, least, damping = tried, loss, max(damping / 10, DAMPING)
                break
            damping *= 10
        else:
            break
        if step.abs().max() < STILL:
            break
    return best.numpy()


def _equations(
    to: Target, views: Views, pose: Tensor, settings: Alignment, centre: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    """The normal matrix ``[6, 6]`` and the gradient ``[6]`` of eq. 5 at a pose, by the six numbers of `changed`.

    Absolute values are squares with weights 1 over the residual (iteratively reweighted least squares). A ray's colour
    and depth depend on its own origin and direction alone, so four backward passes give the Jacobian of all rays.
    """
    rays = _moved(views, pose)
    origins, ways = rays.origins.detach().requires_grad_(), rays.directions.detach().requires_grad_()
    shown = render(to.volume, rays._replace(origins=origins, directions=ways), MapRays(step=to.voxel))
    values = [*shown.colour.unbind(1), shown.depth]
    told = [*views.seen.colour.unbind(1), views.seen.depth]
    parts = [settings.colour / 3] * 3 + [(1 - settings.colour) / settings.depth]
    arms, both = origins.detach() - (pose[:, :3] @ centre + pose[:, 3]), (shown.opacity > SURE).double()
    normal, slope = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for value, other, part in zip(values, told, parts, strict=True):
        by_origin, by_way = torch.autograd.grad(value.sum(), (origins, ways), retain_graph=True)
        turn = torch.linalg.cross(arms, by_origin) + torch.linalg.cross(ways.detach(), by_way)
        jacobian, off = torch.cat([turn, reach * by_origin], 1), (value - other).detach()
        weight = both * part / (part * off.abs()).clamp_min(SMALL) * part
        normal += (jacobian * weight[:, None]).T @ jacobian
        slope += jacobian.T @ (weight * off)
    return normal, slope


def changed(pose: Tensor, step: Tensor, centre: Tensor, reach: float) -> Tensor:
    """A pose ``[3, 4]``, turned by ``exp(step[:3])`` about where it takes ``centre``, shifted by ``reach step[3:]``."""
    turn, middle = exp(step[:3]), pose[:, :3] @ centre + pose[:, 3]
    shift = turn @ (pose[:, 3] - middle) + middle + reach * step[3:]
    return torch.cat([turn @ pose[:, :3], shift[:, None]], 1)


def mismatch(to: Target, views: Views, pose: Tensor, settings: Alignment) -> Tensor:
    """Eq. 5 over rays that see something in both, differentiable by the pose ``[3, 4]``; for settings `weighed`."""
    shown, both = _shown(to, views, pose)
    share = both.double() / both.sum().clamp_min(1)
    colour = (shown.colour - views.seen.colour).abs().mean(1)
    depth = (shown.depth - views.seen.depth).abs() / settings.depth
    return (share * (settings.colour * colour + (1 - settings.colour) * depth)).sum()


def _shown(to: Target, views: Views, pose: Tensor) -> tuple[Seen, Tensor]:
    """What the map shows along rays that a pose moves into it, and which of them see something in both."""
    shown = render(to.volume, _moved(views, pose), MapRays(step=to.voxel))
    return shown, (shown.opacity > SURE).detach()


def _moved(views: Views, pose: Tensor) -> Rays:
    """The rays under a pose of the contribution."""
    rays = views.rays
    return rays._replace(origins=rays.origins @ pose[:, :3].T + pose[:, 3], directions=rays.directions @ pose[:, :3].T)


def judged_at(to: Target, views: Views, pose: NDArray, settings: Alignment) -> Aligned:
    """How well a contribution fits under a pose."""
    settings = weighed(to, views, pose, settings)
    with torch.no_grad():
        shown, both = _shown(to, views, torch.from_numpy(pose))
        loss = float(mismatch(to, views, torch.from_numpy(pose), settings))
    overlap = float(both.double().mean())
    if both.sum() < FEWEST:
        return Aligned(pose, 0.0, overlap, math.inf)
    colours = [seen.colour[both] - seen.colour[both].mean(0) for seen in (shown, views.seen)]
    spread = (colours[0].square().sum() * colours[1].square().sum()).sqrt().clamp_min(1e-12)
    alike = float((colours[0] * colours[1]).sum() / spread)
    near = float(((shown.depth - views.seen.depth).abs()[both] < 2 * to.voxel).double().mean())
    return Aligned(pose, max(alike, 0.0) * near, overlap, loss)


def views_of(brought: Brought, voxel: float, settings: Alignment, generator: Generator) -> Views:
    """Random rays of some of a contributor's cameras along which it shows something."""
    poses = torch.from_numpy(np.asarray(brought.cameras, np.float64))[_spread(brought.cameras, settings.views)]
    count = max(1, settings.rays // len(poses))
    wide = math.tan(math.radians(settings.angle) / 2)
    plane = (2 * torch.rand(len(poses), count, 2, dtype=torch.float64, generator=generator) - 1) * wide
    local = torch.cat([plane, -torch.ones(len(poses), count, 1, dtype=torch.float64)], 2)
    directions = torch.nn.functional.normalize(local @ poses[:, :, :3].mT, dim=2).flatten(0, 1)
    origins = poses[:, None, :, 3].expand(-1, count, 3).flatten(0, 1)
    near = torch.zeros(len(origins), dtype=torch.float64)
    rays = Rays(origins, directions, near, torch.full_like(near, _farthest(brought, voxel)))
    with torch.no_grad():
        seen = render(volume(brought.bricks, voxel), rays, MapRays(step=voxel))
    return Views(rays, seen).chosen((seen.opacity > SURE).nonzero()[:, 0])


def _farthest(brought: Brought, voxel: float) -> float:
    """Metres from any camera to the end of what was brought, and a little more."""
    coords = brought.bricks.coords.astype(np.float64) * 8 * voxel
    corners = np.stack([coords.min(0), coords.max(0) + 8 * voxel]) if len(coords) else np.zeros((2, 3))
    farthest = np.abs(brought.cameras[:, None, :, 3] - corners).max(1)
    return 1.5 * float(np.linalg.norm(farthest, axis=1).max())


def _spread(cameras: NDArray, count: int) -> list[int]:
    """Some of the cameras, far from each other: each the farthest from those before, the first next to the middle."""
    places = np.asarray(cameras, np.float64)[:, :, 3]
    chosen = [int(np.linalg.norm(places - places.mean(0), axis=1).argmin())]
    while len(chosen) < min(count, len(places)):
        gaps = np.linalg.norm(places[:, None] - places[chosen], axis=2).min(1)
        gaps[chosen] = -1
        chosen.append(int(gaps.argmax()))
    return chosen


def _middle(views: Views) -> Tensor:
    """The middle of what is seen, in the contribution's frame."""
    return (views.rays.origins + views.seen.depth[:, None] * views.rays.directions).mean(0)
