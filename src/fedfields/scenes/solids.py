"""Made-up objects: a few ellipsoids and boxes of random colours, in front of white, whose pictures have closed forms.

They stand in for the objects of an owner (see :mod:`fedfields.privacy.surrogate`): what a meta-learner of radiance
fields takes from an object is mostly that there is something solid in the middle of empty, white space, lit from above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fedfields.scenes.views import RaySignal

MOST = 5
"""Parts of a made-up object, at most."""

REACH = 0.45
"""How far from the middle a part's own middle may be."""

SIZES = (0.12, 0.55)
"""Smallest and largest semi-axis of a part."""

AMBIENT = 0.4
"""Share of the light that comes from everywhere."""

LIGHT = (0.3, 0.3, 0.9)
"""Direction of the rest, before it is normalised."""


class Solids(NamedTuple):
    """P parts: the unit balls of two norms, turned, stretched and moved.

    Attributes:
        centres: ``[P, 3]``.
        axes: ``[P, 3, 3]``; its rows take a point relative to the centre to the coordinates of the unit ball.
        boxes: ``[P]`` bool, the ball of the maximum norm; else of the Euclidean one.
        colours: ``[P, 3]`` in [0, 1].
    """

    centres: Tensor
    axes: Tensor
    boxes: Tensor
    colours: Tensor


def random_solids(random: Generator) -> Solids:
    """One to five parts near the origin, all of them within the cube [-1, 1]^3; colours near one of the object's."""
    count = int(torch.randint(1, MOST + 1, (1,), generator=random))
    centres = REACH * (2 * torch.rand(count, 3, generator=random) - 1)
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=random)).Q
    low, high = SIZES
    sizes = low + (high - low) * torch.rand(count, 3, generator=random)
    # A ball in which a part lies must fit into the cube, whichever way the part is turned.
    boxes = torch.rand(count, generator=random) < 0.5
    reach = torch.where(boxes, sizes.norm(dim=1), sizes.amax(1))
    sizes = sizes * ((1 - centres.abs().amax(1)) / reach).clamp_max(1)[:, None]
    own = torch.rand(1, 3, generator=random)
    colours = (own + 0.25 * torch.randn(count, 3, generator=random)).clamp(0, 1)
    return Solids(centres, turns / sizes[:, :, None], boxes, colours)


def look_at(solids: Solids, origins: Tensor, directions: Tensor) -> Tensor:
    """Colours ``[R, 3]`` along rays: of the first part that is hit, lit from above; white where none is."""
    starts = ((origins[:, None] - solids.centres)[:, :, None] * solids.axes).sum(-1)
    ways = (directions[:, None, None] * solids.axes).sum(-1)
    round_hit, box_hit = _enter_ball(starts, ways), _enter_box(starts, ways)
    distance = torch.where(solids.boxes, box_hit, round_hit)
    nearest, part = distance.min(1)
    hit, rows = nearest.isfinite(), torch.arange(len(origins))
    place = starts[rows, part] + torch.where(hit, nearest, 0.0)[:, None] * ways[rows, part]
    side = torch.nn.functional.one_hot(place.abs().argmax(1), 3) * place.sign()
    outward = torch.where(solids.boxes[part][:, None], side, place)
    normal = torch.nn.functional.normalize((outward[:, :, None] * solids.axes[part]).sum(1), dim=1)
    light = torch.nn.functional.normalize(torch.tensor(LIGHT).to(normal), dim=0)
    shade = AMBIENT + (1 - AMBIENT) * (normal @ light).clamp_min(0)
    return torch.where(hit[:, None], shade[:, None] * solids.colours[part], 1.0)


def _enter_ball(starts: Tensor, ways: Tensor) -> Tensor:
    """Distances ``[R, P]`` at which rays enter unit balls; infinite where they miss."""
    a, b, c = ways.square().sum(-1), (starts * ways).sum(-1), starts.square().sum(-1) - 1
    under = b.square() - a * c
    at = (-b - under.clamp_min(0).sqrt()) / a
    return torch.where((under > 0) & (at > 0), at, torch.inf)


def _enter_box(starts: Tensor, ways: Tensor) -> Tensor:
    """The same for cubes [-1, 1]^3."""
    safe = torch.where(ways.abs() < 1e-12, 1e-12, ways)
    walls = torch.stack([(-1 - starts) / safe, (1 - starts) / safe])
    near, far = walls.amin(0).amax(-1), walls.amax(0).amin(-1)
    return torch.where((near < far) & (near > 0), near, torch.inf)


@dataclass(frozen=True, eq=False)
class SolidsSignal:
    """A source of photographs of made-up objects: ``realise`` gives a signal; it has no samples of its own."""

    cameras: RaySignal
    """Photographs whose cameras are used, and not their colours."""

    def realise(self, generator: Generator) -> RaySignal:
        """A new random object, seen by the cameras."""
        rays = self.cameras.everything().inputs
        seen = look_at(random_solids(generator), rays.origins, rays.directions)
        return self.cameras.like(seen.reshape(self.cameras.values.shape))

    def __len__(self) -> int:
        return len(self.cameras)

    def sample(self, count: int, generator: Generator) -> Batch:
        """Samples of a new object."""
        return self.realise(generator).sample(count, generator)

    def everything(self) -> Batch:
        """Not defined: a source has no fixed samples."""
        raise ValueError("a source of objects has no samples of its own; realise(generator) it first")
