"""The shared frame: where the scene is, for everybody who trains on it.

Weights can only be averaged if the same coordinates mean the same place. So one frame is made (or published by whoever
starts the federation) as ``scene.json``, and every client uses it; nobody centres or scales poses for itself.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from fedfields.scenes.posed import Capture

BLENDER = 1.5
"""Half the edge of the cube that holds the objects of the NeRF synthetic set, in their units."""


@dataclass(frozen=True)
class Frame:
    """A cube in the world: fields see it as [-1, 1]^3."""

    centre: tuple[float, float, float]
    """Its centre, in world units."""

    half: float
    """Half its edge, in world units."""

    background: Literal["white", "none"] = "none"
    """What lies behind everything: white, or nothing that is known."""

    def __post_init__(self) -> None:
        if not (all(math.isfinite(x) for x in self.centre) and len(self.centre) == 3):
            raise ValueError(f"the frame's centre is {self.centre}; it must be three finite numbers")
        if not 0 < self.half < math.inf:
            raise ValueError(f"half the frame's edge is {self.half}; it must be positive and finite")

    def points(self, world: Tensor) -> Tensor:
        """World points ``[..., 3]`` in the frame."""
        return (world - torch.tensor(self.centre, dtype=world.dtype)) / self.half

    def pose(self, world: Tensor) -> Tensor:
        """A camera-to-world pose ``[3, 4]`` as camera-to-frame; the rotation is the same."""
        return torch.cat([world[:, :3], self.points(world[:, 3])[:, None]], 1)

    def save(self, path: Path) -> None:
        """Writes ``scene.json``."""
        write_json(path, dataclasses.asdict(self))


def load_frame(path: Path) -> Frame:
    """Reads ``scene.json``.

    Raises:
        UserError: it is missing, damaged or impossible.
    """
    found = read_json(path)
    try:
        return Frame(tuple(float(x) for x in found["centre"]), float(found["half"]), found.get("background", "none"))  # pyright: ignore
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no scene.json: {error}; ask for the file that was published") from error


def frame_of(capture: Capture) -> Frame:
    """The frame that suits a capture: Blender's cube, or a cube around what its cameras see.

    With structure-from-motion points: their middle 98 % along each axis, and a margin. Without: the point that the
    viewing axes come closest to, and the mean distance to it.
    """
    if capture.background == "white":
        return Frame((0.0, 0.0, 0.0), BLENDER, "white")
    if capture.points is not None and len(capture.points) >= 8:
        low, high = (capture.points.quantile(q, dim=0) for q in (0.01, 0.99))
        centre, half = (low + high) / 2, 1.1 * float((high - low).max()) / 2
    else:
        centre, half = _looked_at(torch.stack([view.pose for view in capture.views]))
    return Frame(tuple(centre.tolist()), max(half, 1e-6))


def _looked_at(poses: Tensor) -> tuple[Tensor, float]:
    """The point nearest to all viewing axes in the least-squares sense, and the mean distance of the cameras to it."""
    origins, axes = poses[:, :, 3], -poses[:, :, 2]
    across = torch.eye(3, dtype=poses.dtype) - axes[:, :, None] * axes[:, None, :]
    rhs = (across @ origins[:, :, None]).sum(0)
    point = torch.linalg.lstsq(across.sum(0), rhs).solution[:, 0]
    return point, float((origins - point).norm(dim=1).mean())
