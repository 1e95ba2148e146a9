"""A town that needs no files, photographed by drones: what one map of many contributions is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera
from fedfields.scenes.frame import Frame
from fedfields.scenes.scene import Place
from fedfields.scenes.views import Photo, RaySignal
from fedfields.scenes.visitors import Sharing, check_choice, octets
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.scenes.townscape import Townscape

VIEW = 1.15
"""Horizontal angle of view of a drone's camera, in radians."""


class Shots(NamedTuple):
    """Photographs in metres, with what only a simulation knows.

    Attributes:
        poses: ``[V, 3, 4]`` float64, camera-to-world, OpenGL axes, east-north-up.
        colours: ``[V, h, w, 3]`` uint8.
        depth: ``[V, h, w]`` float64, distances along the rays; infinite for the sky.
    """

    poses: Tensor
    colours: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Town:
    """Photographs of a made-up town, exact and in metres: drones fly over it in lines, clients have parts of them."""

    extent: float = 200.0
    """Metres along an edge of the town."""

    photos: int = 200
    """Photographs that are taken to train on."""

    clients: int = 16
    """Owners. Each has the photographs nearest to a random one; a photograph may be in several hands."""

    least: int = 20
    """Fewest photographs of a client."""

    most: int = 40
    """Most photographs of a client."""

    width: int = 80
    """Pixels in a row."""

    height: int = 60
    """Rows of pixels."""

    lowest: float = 60.0
    """Metres above the terrain's mean height at which drones fly, at least."""

    highest: float = 120.0
    """And at most."""

    tests: int = 25
    """Photographs that nobody trains on."""

    sharing: Sharing = "federated"
    """What owners share. Federated: weights. Pooled: the photographs themselves, with one client that trains on all.
    Alone: nothing, and only the first owner trains."""

    def __post_init__(self) -> None:
        if not 50 <= self.extent <= 5000:
            raise ValueError(f"extent is {self.extent}; it must lie between 50 and 5000 metres")
        if min(self.photos, self.clients, self.width, self.height) < 1 or self.tests < 0:
            found = f"{self.photos} photos, {self.clients} clients, {self.width} x {self.height} pixels"
            raise ValueError(f"{found}, {self.tests} tests; there must be at least 1, and no less than 0 tests")
        if not 1 <= self.least <= self.most <= self.photos:
            found = f"least is {self.least} and most {self.most} of {self.photos} photos"
            raise ValueError(f"{found}; a client has at least 1, and at most all of them")
        if not 30 <= self.lowest <= self.highest < math.inf:
            raise ValueError(f"drones fly at {self.lowest} to {self.highest} m; they need 30 m above the roofs")
        check_choice("sharing", self.sharing, Sharing)
        if self.sharing == "grouped":
            raise ValueError("sharing is 'grouped', which is for own parts of owners; a town has none: choose pooled")

    @property
    def frame(self) -> Frame:
        """The cube around the town, in metres."""
        return Frame((0.0, 0.0, 0.0), 1.02 * self.extent / 2, "white")

    @property
    def camera(self) -> Camera:
        """That of all photographs."""
        focal = self.width / 2 / math.tan(VIEW / 2)
        return Camera("pinhole", self.width, self.height, focal, focal, self.width / 2, self.height / 2)

    def scene(self, seed: int) -> Townscape:
        """The town itself."""
        from fedfields.scenes.townscape import townscape

        return townscape(self.extent, generator(seed, "town"))

    def flight(self, count: int, seed: int, *path: str) -> Tensor:
        """Poses ``[count, 3, 4]`` of photographs that are taken on the way along parallel lines, in metres.

        Heights, gimbal angles (pitch -90 to -40 degrees) and headings vary; ``path`` names the stream of chance.
        """
        random = generator(seed, "flight", *path)
        lines = max(1, round(math.sqrt(count)))
        number = torch.arange(count)
        line, along = number * lines // count, (number * lines / count) % 1
        along = torch.where(line % 2 == 1, 1 - along, along)
        level = torch.stack([2 * along - 1, 2 * (line + 0.5) / lines - 1], 1).double() * 0.44 * self.extent
        chance = torch.rand(count, 5, generator=random, dtype=torch.float64)
        level = level + (chance[:, :2] - 0.5) * 0.9 * self.extent / lines
        level = level.clamp(-0.48 * self.extent, 0.48 * self.extent)
        height = self.lowest + (self.highest - self.lowest) * chance[:, 2]
        heading = torch.where(line % 2 == 1, math.pi, 0.0) + 1.4 * (chance[:, 3] - 0.5)
        heading = torch.atan2(-level[:, 1], -level[:, 0]) * 0.5 + heading * 0.5  # Rather inwards than out of town.
        pitch = torch.deg2rad(-90 + 50 * chance[:, 4])
        return gimbal(torch.cat([level, height[:, None]], 1), heading, pitch)

    def shoot(self, poses: Tensor, seed: int) -> Shots:
        """Photographs from poses ``[V, 3, 4]`` in metres; any camera pose will do."""
        from fedfields.scenes.townscape import photograph

        camera, scene = self.camera, self.scene(seed)
        local = camera.directions(camera.pixels()).double()
        directions = torch.nn.functional.normalize(local @ poses[:, :, :3].transpose(1, 2), dim=2).reshape(-1, 3)
        origins = poses[:, None, :, 3].expand(-1, len(local), 3).reshape(-1, 3)
        colour, depth = photograph(scene, origins, directions)
        shape = (len(poses), self.height, self.width)
        return Shots(poses, octets(colour).view(*shape, 3), depth.view(shape))

    def shares(self, poses: Tensor, seed: int) -> list[list[int]]:
        """The photographs of each client: the k nearest to a random one by camera centre, k ~ U{least..most}."""
        found = []
        for client in range(self.clients):
            random = generator(seed, "share", client)
            first = int(torch.randint(len(poses), (), generator=random))
            count = int(torch.randint(self.least, self.most + 1, (), generator=random))
            away = (poses[:, :, 3] - poses[first, :, 3]).norm(dim=1)
            found.append(sorted(away.argsort(stable=True)[:count].tolist()))
        return found

    def load(self, jitters: int = 1, seed: int = 0) -> Place:
        """Builds the town and takes the photographs.

        Args:
            jitters: see `RaySignal`.
            seed: decides what the town looks like, how drones fly and who has which photographs.
        """
        poses = self.flight(self.photos, seed, "train")
        photos = self._photos("photo", poses, seed)
        clients = []
        for i, mine in enumerate(self._hands(poses, seed)):
            signal, name = RaySignal(tuple(photos[j] for j in mine), jitters), f"client-{i}"
            clients.append(Client(name, (Task(signal, signal, name),)))
        tests = self._photos("test", self.flight(self.tests, seed, "test"), seed)
        return Place(tuple(clients), tests, self.frame, ())

    def _hands(self, poses: Tensor, seed: int) -> list[list[int]]:
        """Photographs by the client that trains on them."""
        shares = self.shares(poses, seed)
        if self.sharing == "pooled":
            return [sorted(set().union(*shares))]
        return shares[:1] if self.sharing == "alone" else shares

    def _photos(self, name: str, poses: Tensor, seed: int) -> tuple[Photo, ...]:
        shots, frame, camera = self.shoot(poses, seed), self.frame, self.camera
        return tuple(
            Photo(f"{name} {i}", frame.pose(pose).float(), camera, colours)
            for i, (pose, colours) in enumerate(zip(shots.poses, shots.colours, strict=True))
        )


def gimbal(places: Tensor, heading: Tensor, pitch: Tensor) -> Tensor:
    """Poses ``[V, 3, 4]`` of cameras at ``places [V, 3]``.

    Args:
        places: metres, east-north-up.
        heading: ``[V]``, radians from east towards north.
        pitch: ``[V]``, radians above the horizon: -pi/2 looks straight down, with the heading upwards in the picture.
    """
    zero = torch.zeros_like(heading)
    right = torch.stack([heading.sin(), -heading.cos(), zero], 1)
    level = torch.stack([heading.cos(), heading.sin(), zero], 1)
    ahead = pitch.cos()[:, None] * level + pitch.sin()[:, None] * torch.tensor([0.0, 0.0, 1.0]).double()
    up = torch.linalg.cross(right, ahead)
    return torch.stack([right, up, -ahead, places], 2)
