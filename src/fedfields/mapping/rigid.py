"""Rigid motions ``[3, 4]``: how they are written, compared and averaged.

The left of a motion is a rotation and its last column a translation in metres, so that ``x`` goes to ``R x + t``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.rendering.cameras import check_pose

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 1e-8
"""Squared angles below this are treated by series."""


def exp(vectors: Tensor) -> Tensor:
    """Rotations ``[..., 3, 3]`` about axes ``[..., 3]`` whose lengths are angles in radians (Rodrigues).

    Differentiable everywhere, at zero too.
    """
    square = vectors.square().sum(-1)[..., None, None]
    near = square < _SMALL
    safe = torch.where(near, torch.ones_like(square), square)
    angle = safe.sqrt()
    first = torch.where(near, 1 - square / 6, angle.sin() / angle)
    second = torch.where(near, 0.5 - square / 24, (1 - angle.cos()) / safe)
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=vectors.dtype) + first * cross + second * cross @ cross


def log(rotation: NDArray) -> NDArray[np.float64]:
    """The inverse of `exp` for one rotation ``[3, 3]``: the axis ``[3]``, as long as the angle in [0, pi]."""
    turn = np.asarray(rotation, np.float64)
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine, cosine = np.linalg.norm(skew) / 2, (np.trace(turn) - 1) / 2
    angle = math.atan2(sine, cosine)
    if cosine > -0.9:
        return skew * float(0.5 if sine < _SMALL else angle / (2 * sine))
    # Near half a turn, the axis is in the symmetric part: (1 - cos) a a^T.
    outer = (turn + turn.T) / 2 - cosine * np.eye(3)
    axis = outer[:, np.diag(outer).argmax()]
    axis = axis / np.linalg.norm(axis)
    return angle * (axis if skew @ axis >= 0 else -axis)


def moved(motion: NDArray, points: NDArray) -> NDArray[np.float64]:
    """Points ``[..., 3]`` after a motion."""
    return points @ motion[:, :3].T + motion[:, 3]


def check_motion(motion: NDArray, where: str) -> None:
    """Refuses what is no rigid motion ``[3, 4]``; ``where`` says what it belongs to.

    Raises:
        UserError: it is none.
    """
    if np.shape(motion) != (3, 4):
        raise UserError(f"{where}: the pose has shape {[*np.shape(motion)]}; it must be 3 x 4")
    check_pose(torch.from_numpy(np.asarray(motion, np.float64)), where)


def after(second: NDArray, first: NDArray) -> NDArray[np.float64]:
    """The motion ``first`` and then ``second``; ``first`` may be many poses ``[..., 3, 4]``."""
    turned = second[:, :3] @ np.asarray(first, np.float64)
    turned[..., 3] += second[:, 3]
    return turned


def inverse(motion: NDArray) -> NDArray[np.float64]:
    """The motion that undoes one."""
    return np.concatenate([motion[:, :3].T, -motion[:, :3].T @ motion[:, 3:]], 1)


def about(turn: NDArray, shift: NDArray, centre: NDArray) -> NDArray[np.float64]:
    """The motion that turns ``[3, 3]`` about a point and then shifts: ``x`` goes to ``R (x - c) + c + t``."""
    return np.concatenate([turn, (centre + shift - turn @ centre)[:, None]], 1)


def apart(one: NDArray, other: NDArray, centre: NDArray) -> tuple[float, float]:
    """By how many degrees two motions differ, and by how many metres for the point ``centre``."""
    degrees = math.degrees(float(np.linalg.norm(log(one[:, :3] @ other[:, :3].T))))
    return degrees, float(np.linalg.norm(moved(one, centre) - moved(other, centre)))


def between(own: NDArray, told: NDArray, steps: int = 50) -> NDArray[np.float64]:
    """The motion from a contributor's frame to the world, from poses of the same cameras in both.

    A median, so that a few cameras may be told wrongly: that of the rotations minimises the sum of angles (Weiszfeld's
    algorithm on the rotations, Hartley et al., *L1 rotation averaging using the Weiszfeld algorithm*, 2011).

    Args:
        own: ``[V, 3, 4]``, camera-to-frame poses as the contributor has them.
        told: ``[V, 3, 4]``, camera-to-world poses as GPS and gimbal have them.
        steps: of the algorithm.
    """
    turns = told[:, :, :3] @ own[:, :, :3].swapaxes(1, 2)
    angles = [[np.linalg.norm(log(a @ b.T)) for a in turns] for b in turns]
    middle = turns[np.argmin(np.sum(angles, 1))]
    for _ in range(steps):
        ways = np.stack([log(turn @ middle.T) for turn in turns])
        weights = 1 / np.maximum(np.linalg.norm(ways, axis=1), 1e-9)
        step = (ways * weights[:, None]).sum(0) / weights.sum()
        middle = exp(torch.from_numpy(step)).numpy() @ middle
    shift = np.median(told[:, :, 3] - own[:, :, 3] @ middle.T, axis=0)
    return np.concatenate([middle, shift[:, None]], 1)
