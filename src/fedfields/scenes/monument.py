"""A place that needs no files: a small temple, photographed by any number of owners with people in front of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.scenes.frame import Frame
from fedfields.scenes.scene import Place, Scene
from fedfields.scenes.sdf import (
    Box,
    Capsule,
    Checker,
    Convex,
    Cylinder,
    Part,
    Plain,
    Repeated,
    SmoothUnion,
    Sphere,
    Stripes,
    joined,
    look,
)
from fedfields.scenes.tour import Tour
from fedfields.scenes.town import Town
from fedfields.scenes.views import Photo
from fedfields.scenes.visitors import (
    Crowd,
    Occluded,
    Sharing,
    check_choice,
    group_of,
    in_hands,
    occluded,
    octets,
    rays_of,
)
from fedfields.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

GROUND = -0.55
"""Height of the ground in the frame."""

TOUR = Tour(radius=2.6, view=0.74)
"""How far away cameras stand, and how wide they see."""

ELEVATIONS = (0.3, 0.85)
"""Lowest and highest angle of a camera above the horizon, in radians: as from the slopes around it. People who
stand on the ground before it cover less of it than they would from below."""


@dataclass(frozen=True)
class Monument:
    """Photographs of a temple that are made up and exact: each owner walks along a sector around it."""

    users: int = 20
    """Owners."""

    views: int = 5
    """Photographs of each owner."""

    sector: float = 0.0
    """Degrees around the temple within which an owner's photographs are taken; 0 for as many as owners who stand side
    by side, with the given overlap, need to go around it once."""

    overlap: float = 0.5
    """Share of an owner's sector that the next one's also covers, less than 1; no matter where there is no next one."""

    visitors: Crowd = "heavy"
    """Who stands in front, other people for each owner: heavy, three of them; light, one, and small; mixed, in turn."""

    size: int = 64
    """Pixels along an edge of a photograph."""

    tests: int = 25
    """Photographs without people that nobody trains on."""

    sharing: Sharing = "federated"
    """What owners share. Federated: weights. Pooled: the photographs themselves, people in front and all, on which one
    client trains (centralised). Grouped: the same, by a client that knows whose each is, with an own part for
    every owner. Alone: nothing, and only the first owner trains."""

    def __post_init__(self) -> None:
        if min(self.users, self.views, self.size) < 1:
            raise ValueError(f"{self.users} users, {self.views} views, {self.size} pixels; there must be at least 1")
        check_choice("visitors", self.visitors, Crowd)
        check_choice("sharing", self.sharing, Sharing)
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; it must be at least 0 and less than 1")
        if not 0 <= self.sector <= 360:
            raise ValueError(f"sector is {self.sector}; it must lie between 0 and 360 degrees")
        if self.width > 1.001 * math.tau:
            found = f"{self.users} users with an overlap of {self.overlap}"
            raise ValueError(
                f"{found} would each go around more than once; lower --data.overlap, or give a --data.sector"
            )
        if self.tests < 0:
            raise ValueError(f"tests is {self.tests}; it must not be negative")

    @property
    def width(self) -> float:
        """Of a sector, in radians."""
        around = math.tau if self.users == 1 else math.tau / self.users / (1 - self.overlap)
        return math.radians(self.sector) or around

    def turn(self, owner: int) -> float:
        """The middle of an owner's sector, in radians."""
        return owner * self.width * (1 - self.overlap)

    def load(self, jitters: int = 1, seed: int = 0) -> Place:
        """Takes the photographs.

        Args:
            jitters: see `RaySignal`.
            seed: decides how high cameras are held, and what visitors look like.
        """
        shots = [self._owner(owner, seed) for owner in range(self.users)]
        clients, scored = in_hands(shots, self.sharing, jitters)
        frame = Frame((0.0, 0.0, 0.0), 1.0, "white")
        return Place(clients, self._tests(), frame, (), occluded=() if self.visitors == "none" else scored)

    def _owner(self, owner: int, seed: int) -> tuple[Occluded, ...]:
        """An owner's photographs, evenly spread over the sector."""
        low, high = ELEVATIONS
        heights = low + (high - low) * torch.rand(self.views, generator=generator(seed, "monument", owner))
        turns = [self.turn(owner) + self.width * ((i + 0.5) / self.views - 0.5) for i in range(self.views)]
        names = [f"owner {owner} photo {i}" for i in range(self.views)]
        photos, depth = self._photos(names, turns, heights.tolist())
        return occluded(photos, group_of(self.visitors, owner, photos, GROUND, seed), depth)

    def _tests(self) -> tuple[Photo, ...]:
        """Photographs from all the sectors, at heights in between."""
        covered = min(math.tau, self.width + self.turn(self.users - 1))
        turns = [covered * (i + 0.5) / self.tests - self.width / 2 for i in range(self.tests)]
        low, high = ELEVATIONS
        heights = [low + (high - low) * (0.5 + 0.4 * math.sin(2.4 * i)) for i in range(self.tests)]
        return self._photos([f"test {i}" for i in range(self.tests)], turns, heights)[0]

    def _photos(
        self, names: Sequence[str], turns: Sequence[float], heights: Sequence[float]
    ) -> tuple[tuple[Photo, ...], Tensor]:
        """Clean photographs, and the distances ``[R]`` to what all their pixels show."""
        camera = TOUR.camera(self.size)
        blank = torch.zeros(self.size, self.size, 3, dtype=torch.uint8)
        poses = [TOUR.pose(turn, height).float() for turn, height in zip(turns, heights, strict=True)]
        photos = [Photo(name, pose, camera, blank) for name, pose in zip(names, poses, strict=True)]
        if not photos:
            return (), torch.zeros(0)
        seen = look(temple(), rays_of(photos))
        colours = octets(seen.colour).view(len(photos), self.size, self.size, 3)
        return tuple(photo._replace(colours=each) for photo, each in zip(photos, colours, strict=True)), seen.depth


def temple() -> Part:
    """A temple on steps, with columns all around, on a paved disc with trees and an obelisk; within [-1, 1]^3."""
    stone, shade, clay = (0.90, 0.85, 0.74), (0.74, 0.67, 0.55), (0.72, 0.33, 0.22)
    steps = [Box((0.0, 0.0, GROUND + 0.03 + 0.05 * i), (0.58 - 0.05 * i, 0.42 - 0.05 * i, 0.03)) for i in range(3)]
    column = Cylinder((0.0, 0.0, -0.17), 0.036, 0.2)
    parts = (
        Part(Cylinder((0.0, 0.0, GROUND - 0.03), 0.97, 0.03), Checker((0.66, 0.66, 0.60), (0.52, 0.57, 0.47), 0.16)),
        *(Part(step, Plain(tone)) for step, tone in zip(steps, (shade, stone, shade), strict=True)),
        Part(Repeated(column, (0.145, 0.235, 1.0), (3, 1, 0)), Plain(stone)),
        Part(Box((0.0, 0.0, -0.2), (0.33, 0.155, 0.2)), Stripes((0.80, 0.62, 0.42), (0.62, 0.38, 0.30), 0.065)),
        Part(Box((0.34, 0.0, -0.25), (0.02, 0.06, 0.15)), Plain((0.15, 0.30, 0.42))),
        Part(Box((0.0, 0.0, 0.065), (0.5, 0.3, 0.045)), Stripes(stone, (0.30, 0.45, 0.62), 0.09, axis=0)),
        Part(_roof(0.53, 0.33, (0.11, 0.36)), Stripes(clay, (0.56, 0.24, 0.17), 0.09, axis=0)),
        _tree(-0.28, 0.56, 0.34),
        _tree(0.3, 0.57, 0.26),
        _obelisk(0.12, -0.57),
    )
    return joined(parts)


def _roof(along: float, across: float, heights: tuple[float, float]) -> Convex:
    """A gable over a rectangle with these half edges, from the eaves to the ridge, which runs along x."""
    low, high = heights
    slopes = [((0.0, side * across, low), (0.0, side * (high - low), across)) for side in (-1.0, 1.0)]
    ends = [((side * along, 0.0, 0.0), (side, 0.0, 0.0)) for side in (-1.0, 1.0)]
    return Convex((*slopes, *ends, ((0.0, 0.0, low), (0.0, 0.0, -1.0))))


def _tree(x: float, y: float, height: float) -> Part:
    crown = tuple(
        Sphere((x + 0.35 * height * dx, y + 0.35 * height * dy, GROUND + height * up), 0.3 * height)
        for dx, dy, up in ((0.0, 0.0, 1.0), (0.8, 0.2, 0.75), (-0.5, 0.6, 0.7), (-0.3, -0.7, 0.75))
    )
    trunk = Capsule((x, y, GROUND), (x, y, GROUND + 0.7 * height), 0.08 * height)
    parts = (Part(trunk, Plain((0.40, 0.28, 0.18))), Part(SmoothUnion(crown, 0.2 * height), Plain((0.25, 0.48, 0.22))))
    return joined(parts, ((x, y, GROUND + 0.62 * height), 0.74 * height))


def _obelisk(x: float, y: float) -> Part:
    """A shaft that narrows towards its tip, on a plinth."""
    base, tip = GROUND + 0.08, GROUND + 0.56
    around = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
    sides = [((x + 0.05 * dx, y + 0.05 * dy, base), (dx, dy, 0.03)) for dx, dy in around]
    slopes = [((x + 0.035 * dx, y + 0.035 * dy, tip), (dx, dy, 0.6)) for dx, dy in around]
    shaft = Convex((*sides, *slopes, ((x, y, base), (0.0, 0.0, -1.0))))
    parts = (
        Part(Box((x, y, GROUND + 0.04), (0.08, 0.08, 0.045)), Plain((0.55, 0.52, 0.50))),
        Part(shaft, Stripes((0.83, 0.62, 0.50), (0.70, 0.48, 0.40), 0.12)),
    )
    return joined(parts, ((x, y, GROUND + 0.31), 0.34))


PlaceData = Scene | Monument | Town
"""What a run on one place is about."""
