"""Cameras, their poses and the rays through their pixels.

Camera axes are those of OpenGL everywhere: +X right, +Y up, the camera looks along -Z. A pose is camera-to-world,
``[3, 4]``: the columns are the camera's axes and its position, in world units. Conversions from other conventions
are functions here, so that nobody else flips a sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedfields.errors import UserError
from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Model = Literal["pinhole", "opencv", "fisheye"]

COEFFICIENTS: dict[str, tuple[str, ...]] = {
    "pinhole": (),
    "opencv": ("k1", "k2", "p1", "p2", "k3"),
    "fisheye": ("k1", "k2", "k3", "k4"),
}
"""The distortion of each model, in order: none, Brown-Conrady, or a polynomial in the angle (Kannala-Brandt)."""

_WAY = tuple((i + 1) / 16 for i in range(16)) + (1.0,) * 6
"""Newton steps of an undistortion: fractions of the way from the centre of the picture to the place that is sought.

A polynomial may have several roots; moving out from the centre stays on the one that a lens has. The last steps
converge quadratically.
"""

_TOLERANCE = 1e-3
"""How far a rotation may be from orthogonal, in any entry of its Gram matrix."""

_FARTHEST = 1e12
"""World units from the origin within which cameras stand: their differences are still known to a thousandth."""


@dataclass(frozen=True)
class Camera:
    """What maps directions to pixels: size, focal lengths, principal point and distortion.

    Image coordinates (x, y) are continuous: the upper left corner of the picture is (0, 0), the lower right one
    (width, height), and **pixel (row r, column c) has its centre at (c + 0.5, r + 0.5)**, as in COLMAP and OpenGL.
    """

    model: Model
    """pinhole; opencv, with radial and tangential distortion; or fisheye, equidistant with distortion of the angle."""

    width: int
    """Pixels in a row."""

    height: int
    """Number of rows."""

    fx: float
    """Horizontal focal length in pixels."""

    fy: float
    """Vertical focal length in pixels."""

    cx: float
    """Horizontal image coordinate of the principal point, in pixels."""

    cy: float
    """Vertical image coordinate of the principal point, in pixels, downwards."""

    distortion: tuple[float, ...] = ()
    """The coefficients that `COEFFICIENTS` names for the model; for opencv and fisheye, none means all zero."""

    def __post_init__(self) -> None:
        if self.model not in COEFFICIENTS:
            raise ValueError(f"camera model {self.model} is not known; choose one of {', '.join(COEFFICIENTS)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a camera of {self.width} x {self.height} pixels; it needs at least 1 x 1")
        for name in ("fx", "fy"):
            if not 0 < getattr(self, name) < math.inf:  # Also true of NaN.
                raise ValueError(f"focal length {name} is {getattr(self, name)}; it must be positive and finite")
        wanted = COEFFICIENTS[self.model]
        if len(self.distortion) not in (0, len(wanted)):
            names = " ".join(wanted) or "none"
            raise ValueError(f"{len(self.distortion)} distortion coefficients for model {self.model}; it has {names}")
        if not all(math.isfinite(value) for value in (self.cx, self.cy, *self.distortion)):
            found = f"principal point ({self.cx}, {self.cy}) and distortion {self.distortion}"
            raise ValueError(f"{found}; they must be finite")

    def scaled(self, factor: float) -> Camera:
        """The camera of the same picture resized by ``factor``; sizes are rounded, the field of view is kept."""
        if not 0 < factor < math.inf:
            raise ValueError(f"factor is {factor}; it must be positive and finite")
        return self.resized(max(1, round(self.width * factor)), max(1, round(self.height * factor)))

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same picture resized to ``width`` x ``height`` pixels: the same field of view."""
        across, down = width / self.width, height / self.height
        size = {"width": width, "height": height}
        return replace(self, **size, fx=self.fx * across, fy=self.fy * down, cx=self.cx * across, cy=self.cy * down)

    def pixels(self) -> Tensor:
        """Every pixel (row, column), row by row: ``[height * width, 2]``, integers."""
        return torch.cartesian_prod(torch.arange(self.height), torch.arange(self.width)).view(-1, 2)

    def directions(self, pixels: Tensor, corners: bool = False) -> Tensor:
        """Where the camera looks through pixels.

        Args:
            pixels: ``[N, 2]``, (row, column); integers mean whole pixels, floats places between their centres.
            corners: looks through the upper left corner of each pixel instead of its centre, which is half a
                pixel off; the official FedMeNF code does.

        Returns:
            ``[N, 3]`` in camera axes, z = -1 (pinhole, opencv) or length 1 (fisheye); in the type of ``pixels``,
            or in torch's default type if those are integers. Computed in float64.
        """
        dtype = pixels.dtype if pixels.is_floating_point() else torch.get_default_dtype()
        rows, columns = (pixels.double() + (0.0 if corners else 0.5)).unbind(-1)
        x, y = (columns - self.cx) / self.fx, (rows - self.cy) / self.fy
        z = torch.ones_like(x)
        if self.model == "opencv" and any(self.distortion):
            x, y = _undistort(x, y, self.distortion)
        elif self.model == "fisheye":
            x, y, z = _unroll(x, y, self._coefficients())
        return torch.stack((x, -y, -z), -1).to(dtype)

    def project(self, points: Tensor) -> Tensor:
        """Where the camera sees points.

        Args:
            points: ``[N, 3]`` in camera axes, in any unit.

        Returns:
            ``[N, 2]``, image coordinates (x, y) in pixels, in the type of ``points``; NaN for what is behind a
            pinhole or opencv camera.
        """
        x, y, z = (points.double() * points.new_tensor([1, -1, -1])).unbind(-1)
        if self.model == "fisheye":
            x, y = _roll(x, y, z, self._coefficients())
        else:
            z = torch.where(z > 0, z, torch.nan)
            x, y = _distort(x / z, y / z, self._coefficients())
        return torch.stack((x * self.fx + self.cx, y * self.fy + self.cy), -1).to(points.dtype)

    def _coefficients(self) -> tuple[float, ...]:
        if self.model == "pinhole":
            return (0.0,) * 5
        return self.distortion or (0.0,) * len(COEFFICIENTS[self.model])


def rays(camera: Camera, pose: Tensor, pixels: Tensor, corners: bool = False) -> tuple[Tensor, Tensor]:
    """The rays through pixels of a posed camera.

    Args:
        camera: the camera.
        pose: ``[3, 4]``, camera-to-world.
        pixels: ``[N, 2]``, (row, column), as in `Camera.directions`.
        corners: as there.

    Returns:
        Origins and unit directions, ``[N, 3]`` each, in world axes; float64 if ``pixels`` is, as there.
    """
    pose = pose.double()
    looks = camera.directions(pixels.double(), corners) @ pose[:, :3].T
    dtype = pixels.dtype if pixels.is_floating_point() else torch.get_default_dtype()
    directions = torch.nn.functional.normalize(looks, dim=-1)
    return pose[:, 3].expand_as(directions).to(dtype), directions.to(dtype)


def check_pose(pose: Tensor, where: str) -> Tensor:
    """A pose that can be trusted to be one.

    Args:
        pose: ``[3, 4]`` or ``[4, 4]``.
        where: what the pose belongs to, for the message.

    Returns:
        The pose, ``[3, 4]``, float64.

    Raises:
        UserError: the shape is another, a number is not finite or a position absurd, the last row is not 0 0 0 1, or
            the first three columns are no rotation (stretched, skewed or left-handed).
    """
    pose = pose.detach().double()
    if pose.shape not in ((3, 4), (4, 4)):
        raise _bad_pose(where, f"has shape {list(pose.shape)}", "give 3 x 4 or 4 x 4 numbers, camera to world")
    if not pose.isfinite().all():
        raise _bad_pose(where, "holds NaN or infinity", "remove this view or estimate its pose again")
    if pose[:3, 3].abs().max() > _FARTHEST:
        raise _bad_pose(where, f"stands further than {_FARTHEST:g} from the origin", "estimate it again")
    if len(pose) == 4 and (pose[3] - torch.tensor([0.0, 0, 0, 1])).abs().max() > _TOLERANCE:
        row = " ".join(f"{value:g}" for value in pose[3].tolist())
        raise _bad_pose(where, f"ends with the row {row} and not 0 0 0 1", "check the order of its numbers")
    rotation = pose[:3, :3]
    if (rotation.T @ rotation - torch.eye(3)).abs().max() > _TOLERANCE:
        lengths = " ".join(f"{length:.4g}" for length in rotation.norm(dim=0).tolist())
        found = f"has no rotation in its first three columns (not orthogonal, or not of length 1 but {lengths})"
        raise _bad_pose(where, found, "remove any scale or shear from it")
    if rotation.det() < 0:
        raise _bad_pose(where, "is left-handed (it mirrors)", "check the convention of its axes")
    return pose[:3]


def from_opencv(pose: Tensor) -> Tensor:
    """Camera-to-world ``[..., 3, 4]`` of a camera with +Y down that looks along +Z (OpenCV, COLMAP), in our axes."""
    return pose * pose.new_tensor([1, -1, -1, 1])


def to_opencv(pose: Tensor) -> Tensor:
    """The inverse of `from_opencv`."""
    return from_opencv(pose)


def from_llff(pose: Tensor) -> Tensor:
    """Camera-to-world ``[..., 3, 4]`` whose columns are down, right, back and the position (LLFF), in our axes."""
    down, right, back, position = pose.unbind(-1)
    return torch.stack((right, -down, back, position), -1)


def inverted(pose: Tensor) -> Tensor:
    """World-to-camera ``[..., 3, 4]`` from camera-to-world, and the other way round, by the same axes."""
    rotation = pose[..., :3].transpose(-1, -2)
    return torch.cat((rotation, -rotation @ pose[..., 3:]), -1)


def _bad_pose(where: str, found: str, remedy: str) -> UserError:
    return UserError(f"{where}: the pose {found}; {remedy}")


def _distort(x: Tensor, y: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Brown-Conrady: where the lens sends the undistorted image point (x, y), in focal lengths, y downwards."""
    k1, k2, p1, p2, k3 = distortion
    square = x * x + y * y
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    across = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    down = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return across, down


def _undistort(x: Tensor, y: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The inverse of `_distort`, by Newton's method."""
    k1, k2, p1, p2, k3 = distortion
    u, v = torch.zeros_like(x), torch.zeros_like(y)
    for share in _WAY:
        square = u * u + v * v
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        slope = 2 * (k1 + square * (2 * k2 + square * 3 * k3))
        # The Jacobian is symmetric.
        a = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u
        b = u * v * slope + 2 * p1 * u + 2 * p2 * v
        d = radial + v * v * slope + 6 * p1 * v + 2 * p2 * u
        across, down = _distort(u, v, distortion)
        across, down, determinant = across - share * x, down - share * y, a * d - b * b
        u, v = u - (d * across - b * down) / determinant, v - (a * down - b * across) / determinant
    return u, v


def _roll(x: Tensor, y: Tensor, z: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Fisheye: the image point, in focal lengths, of a direction with +Y down and +Z ahead."""
    radius = torch.hypot(x, y)
    angle = torch.atan2(radius, z)
    square = angle * angle
    stretched = angle * (1 + _even(square, distortion))
    factor = stretched / torch.where(radius > 0, radius, 1.0)
    return x * factor, y * factor


def _unroll(x: Tensor, y: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `_roll`, of length 1; the angle by Newton's method from the distorted one."""
    stretched = torch.hypot(x, y)
    derivative = tuple((2 * i + 3) * k for i, k in enumerate(distortion))
    angle = torch.zeros_like(stretched)
    for share in _WAY:
        square = angle * angle
        error = angle * (1 + _even(square, distortion)) - share * stretched
        angle = angle - error / (1 + _even(square, derivative))
    factor = angle.sin() / torch.where(stretched > 0, stretched, 1.0)
    return x * factor, y * factor, angle.cos()


def _even(square: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """c1 s + c2 s^2 + ..."""
    total = torch.zeros_like(square)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * square
    return total
