"""Ways around a place, made from where its photographs were taken; what it keeps is no single camera."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera
from fedfields.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.scenes.frame import Frame
    from fedfields.scenes.views import Photo


@dataclass(frozen=True)
class Tour:
    """A circle around the middle of the frame, in frame coordinates."""

    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Which way is up."""

    radius: float = 2.5
    """Distance of the camera to the middle."""

    elevation: float = 0.5
    """Angle of the camera above the horizon, in radians."""

    view: float = 0.7
    """Horizontal angle of view, in radians."""

    def __post_init__(self) -> None:
        if not (len(self.up) == 3 and math.isfinite(math.hypot(*self.up)) and any(self.up)):
            raise ValueError(f"up is {self.up}; it must be a direction of three finite numbers")
        if not (0 < self.radius < math.inf and math.isfinite(self.elevation) and 0 < self.view < math.pi):
            found = f"radius {self.radius}, elevation {self.elevation} and angle of view {self.view}"
            raise ValueError(f"{found} are no place to look from")

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, dataclasses.asdict(self))

    def camera(self, size: int) -> Camera:
        """A square pinhole camera of ``size`` pixels."""
        focal = size / 2 / math.tan(self.view / 2)
        return Camera("pinhole", size, size, focal, focal, size / 2, size / 2)

    def pose(self, turn: float, elevation: float | None = None, radius: float | None = None) -> Tensor:
        """``[3, 4]``, looking at the middle from the angle ``turn`` (radians) of the circle."""
        up = torch.nn.functional.normalize(torch.tensor(self.up), dim=0)
        aside = torch.eye(3)[int(up.abs().argmin())]
        east = torch.nn.functional.normalize(torch.linalg.cross(aside, up), dim=0)
        north = torch.linalg.cross(up, east)
        angle = self.elevation if elevation is None else elevation
        level = math.cos(turn) * east + math.sin(turn) * north
        back = math.cos(angle) * level + math.sin(angle) * up
        right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=0)
        place = (self.radius if radius is None else radius) * back
        return torch.stack([right, torch.linalg.cross(back, right), back, place], 1)

    def orbit(self, frames: int) -> list[Tensor]:
        """Poses of one turn at the usual height."""
        return [self.pose(2 * math.pi * i / frames) for i in range(frames)]

    def spiral(self, frames: int) -> list[Tensor]:
        """Poses of two turns that rise and fall, and come nearer on the way up."""
        turns = [4 * math.pi * i / frames for i in range(frames)]
        swing = [math.sin(turn / 2) for turn in turns]
        return [
            self.pose(turn, self.elevation + 0.3 * s, self.radius * (1 - 0.15 * s))
            for turn, s in zip(turns, swing, strict=True)
        ]


def publish(folder: Path, frame: Frame, photos: Sequence[Photo]) -> None:
    """Writes what everybody may know of the places in some photographs: ``scene.json`` and ``tour.json``."""
    frame.save(folder / "scene.json")
    tour_of([photo.pose for photo in photos], [photo.camera for photo in photos]).save(folder / "tour.json")


def load_tour(path: Path) -> Tour:
    """Reads what :meth:`Tour.save` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    found = read_json(path)
    try:
        up = tuple(float(x) for x in found["up"])
        return Tour(up, float(found["radius"]), float(found["elevation"]), float(found["view"]))  # pyright: ignore
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no tour: {error}; was it edited? run again to have it made anew") from error


def tour_of(poses: Sequence[Tensor], cameras: Sequence[Camera]) -> Tour:
    """A circle at the usual distance and height of some cameras."""
    stacked = torch.stack(list(poses))
    up = torch.nn.functional.normalize(stacked[:, :, 1].mean(0), dim=0)
    places = stacked[:, :, 3]
    distance = places.norm(dim=1)
    heights = torch.asin(((places @ up) / distance.clamp_min(1e-6)).clamp(-1, 1))
    views = torch.tensor([2 * math.atan(camera.width / 2 / camera.fx) for camera in cameras])
    radius = max(float(distance.median()), 1e-3)
    return Tour(tuple(up.tolist()), radius, float(heights.median()), float(views.median()))
