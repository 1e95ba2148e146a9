"""What a client sends to a map: its field, with the pose that it believes in, or voxels that it has baked itself.

A field can still be moved: the server aligns it and then bakes it. Voxels lie in the lattice of the map already, so
whoever sends them vouches for the pose.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.mapping.bake import Local, local_as_tensors, local_of
from fedfields.mapping.merge import Contribution, Refused
from fedfields.mapping.packing import contribution_of
from fedfields.mapping.rigid import check_motion
from fedfields.store import tensors_as_bytes, tensors_from_bytes

MOST_CAMERAS = 10_000
"""That may come with a field."""

MOST_BRICKS = 2**17
"""That a contribution may have: 7 GiB in memory."""


class About(NamedTuple):
    """What a client must know of a map.

    Attributes:
        voxel: edge of its voxels, in metres.
        base: its newest version.
    """

    voxel: float
    base: int


class Upload(NamedTuple):
    """A field, and what is needed to find its place in the map.

    Attributes:
        local: the field, in the client's own axes.
        pose: ``[3, 4]`` float64, from these axes to global ones, in metres, as far as the client knows.
        error: how far the pose may be off, along each axis in metres and about each axis in degrees; zeros for a pose
            that was surveyed, which is not corrected.
        cameras: ``[V, 3, 4]`` float64, poses of the training photographs in the client's axes, metres, OpenGL.
        base: version of the map when the client began; None for the newest.
    """

    local: Local
    pose: NDArray[np.float64]
    error: tuple[float, float] = (0.0, 0.0)
    cameras: NDArray[np.float64] = np.zeros((0, 3, 4))
    base: int | None = None

    @property
    def name(self) -> str:
        """What nobody else's is called."""
        return self.local.name


def upload_as_bytes(upload: Upload) -> bytes:
    """A field with its pose as a client sends it."""
    tensors, told = local_as_tensors(upload.local)
    tensors["cameras"] = torch.from_numpy(np.ascontiguousarray(upload.cameras, np.float64))
    told |= {"pose": np.asarray(upload.pose).tolist(), "error": list(upload.error), "base": upload.base}
    return tensors_as_bytes(tensors, told)


def sent_from_bytes(content: bytes) -> Upload | Contribution:
    """What `upload_as_bytes` or `packing.contribution_as_bytes` made.

    Raises:
        Refused: it is damaged, impossible, or something else; in one line.
    """
    try:
        tensors, told = tensors_from_bytes(content)
        if not (isinstance(told["name"], str) and told["name"].isprintable() and 0 < len(told["name"]) <= 200):
            raise ValueError("its name must be 1 to 200 printable characters")
        if "voxel" in told:
            if len(tensors["coords"]) > MOST_BRICKS:
                raise ValueError(f"it has {len(tensors['coords']):,} bricks and {MOST_BRICKS:,} are allowed")
            return contribution_of(tensors, told)
        cameras = tensors["cameras"].double().numpy()
        metres, degrees = (float(value) for value in told["error"])
        base = None if told["base"] is None else int(told["base"])
        found = Upload(local_of(tensors, told), np.array(told["pose"], np.float64), (metres, degrees), cameras, base)
        _check(found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error, UserError) as error:
        why = " ".join(str(error).split())
        raise Refused(f"{len(content):,} bytes are no contribution to a map: {why:.200}; send it again") from error


def _check(upload: Upload) -> None:
    check_motion(upload.pose, "its frame")
    if not all(0 <= value < math.inf for value in upload.error):
        raise ValueError(f"its pose may be off by {upload.error}; errors must be finite and not negative")
    count = len(upload.cameras)
    if count > MOST_CAMERAS or upload.cameras.shape != (count, 3, 4):
        raise ValueError(f"its cameras are {[*upload.cameras.shape]}; they must be at most {MOST_CAMERAS:,} x 3 x 4")
    for camera in upload.cameras:
        check_motion(camera, "a camera of it")
