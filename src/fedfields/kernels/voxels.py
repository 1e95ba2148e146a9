"""Trilinear interpolation in a grid of voxels.

Sampling is linear in the grid, so its gradient is the transpose, the gradient of that is sampling again, and two loops
serve every order of differentiation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fedfields.kernels.memory import empty, zeros
from fedfields.kernels.threads import over

if TYPE_CHECKING:
    from torch import Tensor

POINTS = 1024
"""Fewest points worth a thread."""


def sample_voxels(grid: Tensor, points: Tensor) -> Tensor:
    """Interpolated channels at points of the unit cube, whose corners are the centres of the corner voxels.

    The places are those of ``torch.nn.functional.grid_sample`` with ``align_corners=True, padding_mode="border"``.

    Args:
        grid: ``[X, Y, Z, C]``, at least one voxel along each axis.
        points: ``[N, 3]`` in [0, 1], ordered x, y, z; what lies outside is clamped to the border.

    Returns:
        ``[N, C]``, differentiable with respect to the grid as often as one likes; with respect to the points by way of
        the twin, which is taken if they need a gradient. The same on any number of threads.

    Raises:
        ValueError: the shapes are others.
    """
    if grid.dim() != 4 or 0 in grid.shape[:3] or points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"grid {[*grid.shape]} and points {[*points.shape]}; they must be [X, Y, Z, C] and [N, 3]")
    fast = grid.device.type == points.device.type == "cpu" and grid.dtype == points.dtype == torch.float32
    if not fast or points.requires_grad:
        return plain(grid, points)
    return _Sample.apply(grid, points.contiguous())  # pyright: ignore[reportReturnType]


def plain(grid: Tensor, points: Tensor) -> Tensor:
    """The twin."""
    last = torch.tensor(grid.shape[:3], device=points.device) - 1
    scaled = points.clamp(0, 1) * last
    low = torch.minimum(scaled.detach().floor().long(), (last - 1).clamp_min(0))
    part = scaled - low
    found = grid.new_zeros(len(points), grid.shape[3])
    for corner in range(8):
        offset = torch.tensor([corner >> 2, corner >> 1 & 1, corner & 1], device=points.device)
        weight = torch.where(offset.bool(), part, 1 - part).prod(1, keepdim=True)
        x, y, z = torch.minimum(low + offset, last).unbind(1)
        found = found + weight * grid[x, y, z]
    return found


class _Sample(torch.autograd.Function):
    """``A(x) grid``."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, points: Tensor) -> Tensor:
        from fedfields.kernels.compiled import voxels_sample

        ctx.save_for_backward(points)
        ctx.shape = grid.shape
        out = empty((len(points), grid.shape[3]))
        values, x, to = grid.detach().contiguous().numpy(), points.detach().numpy(), out.numpy()
        over(len(points), lambda a, b: voxels_sample(values, x[a:b], to[a:b]), POINTS)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        return _Scatter.apply(grads[0], points, ctx.shape), None  # pyright: ignore[reportReturnType]


class _Scatter(torch.autograd.Function):
    """``A(x)^T features``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, points: Tensor, shape: torch.Size) -> Tensor:
        from fedfields.kernels.compiled import voxels_scatter

        ctx.save_for_backward(points)
        grid = zeros(shape)
        given, x, to = features.detach().contiguous().numpy(), points.numpy(), grid.numpy()
        over(shape[0], lambda a, b: voxels_scatter(given, x, to, a, b))  # A slab a thread: no races.
        return grid

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (points,) = ctx.saved_tensors
        return _Sample.apply(grads[0], points), None, None  # pyright: ignore[reportReturnType]
