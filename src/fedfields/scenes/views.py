"""Posed photographs as a signal: batches of rays of random pixels, in the shared frame."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame
from fedfields.scenes.posed import View, load_colours
from fedfields.types import Batch, Client

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fedfields.scenes.solids import SolidsSignal


class Photo(NamedTuple):
    """A photograph in the shared frame.

    Attributes:
        name: what the capture calls it.
        pose: ``[3, 4]`` float32, camera-to-frame.
        camera: for the size of ``colours``.
        colours: ``[h, w, 3]`` uint8.
        usable: indices of the pixels that may be used, row by row; None for all.
        top: z in the frame above which there is nothing to be seen, so that rays begin below it.
    """

    name: str
    pose: Tensor
    camera: Camera
    colours: Tensor
    usable: Tensor | None = None
    top: float = 1.0


def load_photo(view: View, frame: Frame, scale: float = 1.0) -> Photo:
    """Reads a view; at 8 bits a colour, which is what photographs have.

    Raises:
        UserError: see `load_colours`.
    """
    picture = load_colours(view, scale)
    usable = None if bool(picture.weight.all()) else picture.weight.flatten().nonzero()[:, 0]
    colours = (picture.colours * 255).round().to(torch.uint8)
    return Photo(view.name, frame.pose(view.pose).float(), picture.camera, colours, usable)


def left_half(photo: Photo) -> Photo:
    """The photograph, of whose left half alone the pixels may be used."""
    pixels = _pixels(photo)
    return photo._replace(usable=pixels[pixels % photo.camera.width < photo.camera.width // 2])


class _Store(NamedTuple):
    """All photographs behind one another: where each ends, its pose and top, where the directions of its camera begin;
    and of every usable pixel its colour and its place in its photograph."""

    ends: Tensor
    poses: Tensor
    directions: Tensor
    first: Tensor
    colours: Tensor
    pixels: Tensor
    tops: Tensor


@dataclass(frozen=True, eq=False)
class RaySignal:
    """The usable pixels of some photographs, as rays cut to the cube [-1, 1]^3 of the shared frame.

    Directions are kept once for each camera, in its own axes: many photographs may share one.
    """

    photos: tuple[Photo, ...]
    """The photographs; at least one."""

    jitters: int = 1
    """Random places drawn for each ray: one for a marched ray, the number of samples for a dense one."""

    known_background: bool = True
    """Whether what is behind the scene is known; else each ray is drawn before a random colour."""

    owner: int | None = None
    """Whose they are, where one client has the photographs of many owners and knows whose each is."""

    painted: Tensor | None = field(default=None, init=False, repr=False)
    """``[V, h, w, 3]``, colours in place of those of the photographs (see :meth:`like`)."""

    _store: _Store = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.photos:
            raise ValueError("no photographs; a signal needs at least one")
        counts = [_usable(photo) for photo in self.photos]
        cameras = list(dict.fromkeys(photo.camera for photo in self.photos))
        directions = [camera.directions(camera.pixels()).float() for camera in cameras]
        starts = torch.tensor([0, *(len(one) for one in directions)]).cumsum(0)
        first = [int(starts[cameras.index(photo.camera)]) for photo in self.photos]
        store = _Store(
            torch.tensor(counts).cumsum(0),
            torch.stack([photo.pose for photo in self.photos]),
            torch.cat(directions),
            torch.tensor(first),
            torch.cat([_kept(photo) for photo in self.photos]),
            torch.cat([_pixels(photo) for photo in self.photos]),
            torch.tensor([photo.top for photo in self.photos]),
        )
        object.__setattr__(self, "_store", store)

    def __len__(self) -> int:
        """Usable pixels."""
        return int(self._store.ends[-1])

    @property
    def values(self) -> Tensor:
        """``[V, h, w, 3]``, float32 in [0, 1]; for photographs of one size of which all pixels are used."""
        if self.painted is not None:
            return self.painted
        if len({photo.colours.shape for photo in self.photos}) > 1 or any(p.usable is not None for p in self.photos):
            raise ValueError("photographs of several sizes, or with masks, are no array of colours")
        return torch.stack([photo.colours for photo in self.photos]).float() / 255

    @property
    def grid_axes(self) -> int:
        """Rows and columns; one photograph is no neighbour of the next."""
        return 2

    def like(self, values: Tensor) -> RaySignal:
        """The same cameras with other colours ``[V, h, w, 3]``."""
        other = copy.copy(self)
        object.__setattr__(other, "painted", values)
        return other

    def surrogate(self, *, public: bool) -> SolidsSignal:
        """A source of made-up objects seen by the same cameras.

        Raises:
            ValueError: not ``public``: the statistics of pictures say nothing of objects.
        """
        from fedfields.scenes.solids import SolidsSignal

        if not public:
            raise ValueError(
                "surrogates with statistics of their own are for pictures; choose privacy:public-surrogate"
            )
        return SolidsSignal(self)

    def sample(self, count: int, generator: Generator) -> Batch:
        """Rays of ``min(count, len(self))`` random pixels, drawn with replacement, and their colours ``[R, 3]``."""
        index = torch.randint(len(self), (min(count, len(self)),), generator=generator)
        jitter = torch.rand(len(index), self.jitters, generator=generator)
        behind = None if self.known_background else torch.rand(len(index), 3, generator=generator)
        rays = self._rays(index)._replace(jitter=jitter, background=behind)
        return Batch(rays, self._colours(index))

    def everything(self) -> Batch:
        """The rays of all usable pixels, with samples at regular places."""
        index = torch.arange(len(self))
        return Batch(self._rays(index), self._colours(index))

    def _colours(self, index: Tensor) -> Tensor:
        if self.painted is not None:
            return self.painted.reshape(-1, 3)[index]
        return self._store.colours[index].float() / 255

    def _rays(self, index: Tensor) -> Rays:
        store = self._store
        view = torch.searchsorted(store.ends, index, right=True)
        local = store.directions[store.first[view] + store.pixels[index]]
        poses = store.poses[view]
        rays = in_cube(poses[:, :, 3], (poses[:, :, :3] @ local[:, :, None])[..., 0], store.tops[view])
        return rays._replace(photo=view, owner=None if self.owner is None else torch.full_like(view, self.owner))


def photos_of(clients: Sequence[Client]) -> list[Photo]:
    """The photographs that clients fit fields to."""
    return [photo for client in clients for task in client.train for photo in task.support.photos]  # pyright: ignore


def in_cube(origins: Tensor, directions: Tensor, top: Tensor | float = 1.0) -> Rays:
    """Rays of unit direction, cut to the cube [-1, 1]^3 below z = ``top``: ``far <= near`` where they miss it.

    Origins and directions are ``[R, 3]``; a top for each ray ``[R]``, or one for all.
    """
    directions = torch.nn.functional.normalize(directions, dim=1)
    safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)
    high = torch.ones_like(origins)
    high[:, 2] = top
    walls = torch.stack([(-1 - origins) / safe, (high - origins) / safe])
    near, far = walls.amin(0).amax(1).clamp_min(0), walls.amax(0).amin(1)
    return Rays(origins, directions, near, torch.maximum(near, far))


def photo_rays(pose: Tensor, camera: Camera, top: float = 1.0) -> Rays:
    """Rays of all pixels of a camera, row by row; below z = ``top``."""
    local = camera.directions(camera.pixels()).float()
    return in_cube(pose[:, 3].expand(len(local), 3).contiguous(), local @ pose[:, :3].T, top)


def shared_out(photos: Sequence[Photo], clients: int, partition: str) -> list[list[Photo]]:
    """Photographs among clients by the azimuth of the camera, as FedNeRF (Holden et al. 2023) does.

    "interleave" deals them out in turn, "separate" gives each client a sector.
    """
    ordered = sorted(photos, key=lambda photo: float(torch.atan2(photo.pose[1, 3], photo.pose[0, 3])))
    if partition == "interleave":
        return [ordered[i::clients] for i in range(clients)]
    edges = [len(ordered) * i // clients for i in range(clients + 1)]
    return [ordered[a:b] for a, b in itertools.pairwise(edges)]


def drawn(photos: Sequence[Photo], count: int, random: Generator) -> tuple[list[Photo], list[Photo]]:
    """``count`` of the photographs at random, and the others; both in the order in which they came."""
    chosen = set(torch.randperm(len(photos), generator=random)[:count].tolist())
    return [photos[i] for i in sorted(chosen)], [photo for i, photo in enumerate(photos) if i not in chosen]


def _usable(photo: Photo) -> int:
    return photo.camera.width * photo.camera.height if photo.usable is None else len(photo.usable)


def _kept(photo: Photo) -> Tensor:
    flat = photo.colours.reshape(-1, 3)
    return flat if photo.usable is None else flat[photo.usable]


def _pixels(photo: Photo) -> Tensor:
    return torch.arange(_usable(photo)) if photo.usable is None else photo.usable
