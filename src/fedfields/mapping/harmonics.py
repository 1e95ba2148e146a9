"""Rotation of view-dependent colour: spherical harmonics of degree 0 to 2 under a rotation of space.

A contributor's field knows colours by directions in its own axes; before they are mixed with others' in global axes
they must be turned with the pose (Suzuki 2023 does not say so).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def rotation_of_harmonics(rotation: NDArray) -> NDArray[np.float64]:
    """``M [9, 9]`` such that coefficients ``M k`` show along ``R d`` what ``k`` show along ``d``, for R ``[3, 3]``.

    M is orthogonal and mixes no degrees. ``M = 4 pi / 12 sum_i Y(v_i) Y(R^T v_i)^T`` over the corners v of an
    icosahedron: a spherical design of strength 5, so the sum is the integral over the sphere of products of degree up
    to 4.
    """
    corners = _icosahedron()
    turned = _harmonics(corners @ np.asarray(rotation, np.float64))  # Rows are R^T v.
    return 4 * math.pi / len(corners) * _harmonics(corners).T @ turned


def rotated(coefficients: Tensor, rotation: NDArray) -> Tensor:
    """Coefficients ``[..., 27]`` (nine of red, of green, of blue) turned by a rotation ``[3, 3]``."""
    matrix = torch.from_numpy(rotation_of_harmonics(rotation)).to(coefficients.dtype)
    return (coefficients.reshape(-1, 9) @ matrix.T).reshape(coefficients.shape)


def _harmonics(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    from fedfields.fields.hashgrid import harmonics

    return harmonics(torch.from_numpy(np.ascontiguousarray(directions))).numpy()


def _icosahedron() -> NDArray[np.float64]:
    """Its 12 corners on the unit sphere."""
    golden = (1 + math.sqrt(5)) / 2
    corners = np.array([[0.0, a, b * golden] for a in (1, -1) for b in (1, -1)])
    return np.concatenate([np.roll(corners, shift, 1) for shift in range(3)]) / math.hypot(1, golden)
