"""How well points fit a grid, for many motions of them at once."""

from __future__ import annotations

import numpy as np

from fedfields.kernels.threads import over

MOTIONS = 256
"""Fewest motions worth a thread."""


def matched(values: np.ndarray, points: np.ndarray, turns: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The mean over points of ``values[x, 0] + sum_k tint_k values[x, k]``, with x the cell where a point comes to lie.

    Args:
        values: ``[X, Y, Z, 4]`` float32; outside of it everything is zero.
        points: ``[P, 6]`` float32, a place and three tints.
        turns: ``[H, 3, 3]``, of the places into cells.
        shifts: ``[H, 3]``, in cells.

    Returns:
        ``[H]`` float64.
    """
    from fedfields.kernels.compiled import match_points

    found = np.empty(len(turns))
    turns, shifts = turns.astype(np.float32), shifts.astype(np.float32)
    over(len(turns), lambda a, b: match_points(values, points, turns, shifts, found, a, b), MOTIONS)
    return found


def plain(values: np.ndarray, points: np.ndarray, turns: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The twin in numpy."""
    cells = np.floor(np.einsum("hij,pj->hpi", turns, points[:, :3]) + shifts[:, None]).astype(np.int64)
    inside = ((cells >= 0) & (cells < values.shape[:3])).all(-1)
    there = values[tuple(np.where(inside[..., None], cells, 0).transpose(2, 0, 1))] * inside[..., None]
    tints = np.concatenate([np.ones_like(points[:, :1]), points[:, 3:]], 1)
    return np.einsum("hpk,pk->h", there.astype(np.float64), tints) / len(points)
