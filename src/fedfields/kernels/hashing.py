"""Multi-resolution hash encoding: Mueller et al., *Instant Neural Graphics Primitives*, SIGGRAPH 2022, section 3.

``A(x)`` looks up and interpolates: the encoding is linear in the table, so its gradient is the transpose of ``A(x)``,
the gradient of that is ``A(x)`` again, and two loops serve every order of differentiation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fedfields.kernels.memory import empty, zeros
from fedfields.kernels.threads import over

if TYPE_CHECKING:
    from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
"""Factors of the spatial hash (eq. 4)."""

POINTS = 1024
"""Fewest points worth a thread."""


def resolutions(levels: int, coarsest: int, finest: int) -> list[int]:
    """Cells along an axis at every level, in geometric progression (eq. 2 and 3)."""
    growth = (finest / coarsest) ** (1 / max(1, levels - 1))
    return [round(coarsest * growth**level) for level in range(levels)]


def hash_encode(points: Tensor, table: Tensor, cells: list[int]) -> Tensor:
    """Interpolated features of all levels.

    Args:
        points: ``[N, 3]`` in [0, 1]; what lies outside is clamped to the border.
        table: ``[L, T, F]``; T a power of two. A level whose (cells + 1)^3 corners fit is not hashed.
        cells: along an axis, for each of the L levels.

    Returns:
        ``[N, L F]``, differentiable with respect to the table as often as one likes; with respect to the points by
        way of the twin, which is taken if they need a gradient.
    """
    fast = points.device.type == "cpu" and points.dtype == table.dtype == torch.float32 and table.shape[2] == 2
    if not fast or points.requires_grad:
        return plain(points, table, cells)
    return _Encode.apply(points.detach().T.contiguous(), table, cells)  # pyright: ignore[reportReturnType]


def plain(points: Tensor, table: Tensor, cells: list[int]) -> Tensor:
    """The twin."""
    size, found = table.shape[1], []
    for level, count in enumerate(cells):
        scaled = points.clamp(0, 1) * count
        low = scaled.detach().floor().clamp(max=count - 1)
        part, low = scaled - low, low.long()
        features = torch.zeros(len(points), table.shape[2], dtype=table.dtype, device=table.device)
        for corner in range(8):
            offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=points.device)
            weight = torch.where(offset.bool(), part, 1 - part).prod(1, keepdim=True)
            features = features + weight * table[level][_index(low + offset, count, size)]
        found.append(features)
    return torch.cat(found, 1)


def _index(corner: Tensor, count: int, size: int) -> Tensor:
    """Row of the table for each corner ``[N, 3]``."""
    if (count + 1) ** 3 <= size:
        return (corner[:, 2] * (count + 1) + corner[:, 1]) * (count + 1) + corner[:, 0]
    hashed = corner[:, 0] ^ corner[:, 1] * PRIMES[1] ^ corner[:, 2] * PRIMES[2]
    return hashed & (size - 1)


class _Encode(torch.autograd.Function):
    """``A(x) table``, with points ``[3, N]``: loops over points are loops over memory."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, cells: list[int]) -> Tensor:
        from fedfields.kernels.compiled import encode

        ctx.save_for_backward(points)
        ctx.cells, ctx.rows = cells, table.shape[1]
        out = empty((points.shape[1], 2 * len(cells)))
        x, rows, to = points.numpy(), table.detach().contiguous().numpy(), out.numpy()
        over(points.shape[1], lambda a, b: encode(x, rows, _cells(cells), to, a, b), POINTS)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (points,) = ctx.saved_tensors
        table = _Scatter.apply(points, grads[0], ctx.cells, ctx.rows)
        return None, table, None  # pyright: ignore[reportReturnType]


class _Scatter(torch.autograd.Function):
    """``A(x)^T features``."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, features: Tensor, cells: list[int], rows: int) -> Tensor:
        from fedfields.kernels.compiled import scatter

        ctx.save_for_backward(points)
        ctx.cells = cells
        table = zeros((len(cells), rows, 2))
        x, given, to = points.numpy(), features.detach().contiguous().numpy(), table.numpy()
        over(len(cells), lambda a, b: scatter(x, given, _cells(cells), to, a, b))  # A level a thread: no races.
        return table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (points,) = ctx.saved_tensors
        features = _Encode.apply(points, grads[0], ctx.cells)
        return None, features, None, None  # pyright: ignore[reportReturnType]


def _cells(cells: list[int]) -> Any:
    import numpy as np

    return np.asarray(cells, dtype=np.int64)
