"""The shared frame: where the scene is, for everybody who trains on it.

Weights can only be averaged if the same coordinates mean the same place. So one frame is made (or published by whoever
starts the federation) as ``scene.json``, and every client uses it; nobody centres or scales poses for itself.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.images import printable
from fedfields.scenes.posed import AS_POSED
from fedfields.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.scenes.posed import Capture

BLENDER = 1.5
"""Half the edge of the cube that holds the objects of the NeRF synthetic set, in their units."""

_PARALLEL = 0.05
"""Viewing axes with a smaller spread (see `_spread`) do not meet in a point that means anything: 13 degrees."""


@dataclass(frozen=True)
class Frame:
    """A cube in the world: fields see it as [-1, 1]^3."""

    centre: tuple[float, float, float]
    """Its centre, in world units."""

    half: float
    """Half its edge, in world units."""

    background: Literal["white", "none"] = "none"
    """What lies behind everything: white, or nothing that is known."""

    applied: tuple[float, ...] = AS_POSED
    """What had been done to the poses that the frame was made for: see `Capture`."""

    def __post_init__(self) -> None:
        if not (all(math.isfinite(x) for x in self.centre) and len(self.centre) == 3):
            raise ValueError(f"the frame's centre is {self.centre}; it must be three finite numbers")
        if not 0 < self.half < math.inf:
            raise ValueError(f"half the frame's edge is {self.half}; it must be positive and finite")
        if self.background not in ("white", "none"):
            raise ValueError(f"the background is {self.background!r:.40}; it must be white or none")
        if not (len(self.applied) == 12 and all(math.isfinite(x) for x in self.applied)):
            raise ValueError(f"applied holds {len(self.applied)} numbers; it must be 3 x 4 finite ones, row by row")

    def points(self, world: Tensor) -> Tensor:
        """World points ``[..., 3]`` in the frame."""
        return (world - torch.tensor(self.centre, dtype=world.dtype)) / self.half

    def pose(self, world: Tensor) -> Tensor:
        """A camera-to-world pose ``[3, 4]`` as camera-to-frame; the rotation is the same."""
        return torch.cat([world[:, :3], self.points(world[:, 3])[:, None]], 1)

    def height(self, world: float) -> float:
        """A world z in the frame, or that of the cube's upper side if it is lower."""
        return min((world - self.centre[2]) / self.half, 1.0)

    def save(self, path: Path) -> None:
        """Writes ``scene.json``."""
        write_json(path, dataclasses.asdict(self))


def load_frame(path: Path) -> Frame:
    """Reads ``scene.json``.

    Raises:
        UserError: it is missing, damaged or impossible.
    """
    return frame_from(read_json(path), str(path))


def frame_from(found: Any, where: str) -> Frame:
    """A frame from the content of ``scene.json``.

    Raises:
        UserError: it is impossible.
    """
    try:
        centre, applied = (
            tuple(float(x) for x in values) for values in (found["centre"], found.get("applied", AS_POSED))
        )
        return Frame(centre, float(found["half"]), found.get("background", "none"), applied)  # pyright: ignore
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(printable(f"{where} is no scene.json: {why}; ask for the file that was published")) from error


def frame_of(capture: Capture) -> Frame:
    """The frame that suits a capture: Blender's cube, or a cube around what its cameras see.

    With structure-from-motion points: their middle 98 % along each axis, and a margin. Without: the point that the
    viewing axes come closest to, and the mean distance to it; or, where these are nearly parallel (drones, LLFF), all
    that the cameras see between near and far.

    Raises:
        UserError: the axes are parallel and nothing says how far away the scene is.
    """
    if capture.background == "white":
        return Frame((0.0, 0.0, 0.0), BLENDER, "white", capture.applied)
    if capture.points is not None and len(capture.points) >= 8:
        low, high = (capture.points.quantile(q, dim=0) for q in (0.01, 0.99))
        centre, half = (low + high) / 2, 1.1 * float((high - low).max()) / 2
    else:
        poses = torch.stack([view.pose for view in capture.views])
        spread = _spread(poses)
        if spread < _PARALLEL and capture.near is not None and capture.far is not None:
            centre, half = _seen(capture, (capture.near, capture.far))
        elif spread < 1e-3:
            raise UserError(
                "the cameras look in parallel and nothing says how far away the scene is, so no frame can be made; "
                "give near and far in transforms.json, points in its ply_file_path, or a scene.json with --data.frame"
            )
        else:
            centre, half = _looked_at(poses)
    try:
        return Frame(tuple(centre.tolist()), max(half, 1e-6), applied=capture.applied)
    except ValueError as error:
        raise UserError(f"no frame can be made, poses or points are absurd: {error}; estimate them again") from error


def looks_away(capture: Capture) -> bool:
    """Whether the cameras have their backs to the scene, as they do where axes of another convention were written.

    With structure-from-motion points: most of them are behind the cameras. Without: the point that the viewing axes
    come closest to is.
    """
    poses = torch.stack([view.pose for view in capture.views])
    known = capture.points is not None and len(capture.points) >= 8
    if not known and _spread(poses) < _PARALLEL:
        return False  # There is no such point.
    scene = capture.points if known else _looked_at(poses)[0][None]
    ahead = -((scene[:, None] - poses[:, :, 3]) * poses[:, :, 2]).sum(-1) > 0  # pyright: ignore
    return float(ahead.double().mean()) < 0.1


def _spread(poses: Tensor) -> float:
    """Mean squared sine of the angle between the viewing axes and the direction that they have most in common."""
    axes = poses[:, :, 2]
    return float(torch.linalg.eigvalsh(torch.eye(3, dtype=poses.dtype) - axes.T @ axes / len(axes))[0])


def _seen(capture: Capture, depths: tuple[float, float]) -> tuple[Tensor, float]:
    """Centre and half the edge of the cube around what the cameras see between two depths."""
    corners = []
    for view in capture.views:
        ends = torch.tensor([0.0, 1.0]).double()
        pixels = torch.cartesian_prod(ends * view.camera.height, ends * view.camera.width) - 0.5
        corners += [view.camera.directions(pixels) @ view.pose[:, :3].T * depth + view.pose[:, 3] for depth in depths]
    low, high = torch.cat(corners).aminmax(dim=0)
    return (low + high) / 2, float((high - low).max()) / 2


def _looked_at(poses: Tensor) -> tuple[Tensor, float]:
    """The point nearest to all viewing axes in the least-squares sense, and the mean distance of the cameras to it."""
    origins, axes = poses[:, :, 3], -poses[:, :, 2]
    across = torch.eye(3, dtype=poses.dtype) - axes[:, :, None] * axes[:, None, :]
    rhs = (across @ origins[:, :, None]).sum(0)
    point = torch.linalg.lstsq(across.sum(0), rhs).solution[:, 0]
    return point, float((origins - point).norm(dim=1).mean())
