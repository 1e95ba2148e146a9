"""Where to look along a ray: ``R`` rays between ``near`` and ``far``, ``S`` samples on each, in order.

Nothing here draws: random numbers are passed in, so that a batch and weights give one value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Samples(NamedTuple):
    """Intervals of each ray and a point for each, as distances from the origin of the ray.

    Attributes:
        starts: ``[R, S]``, where the intervals begin.
        ends: ``[R, S]``, where they end.
        at: ``[R, S]``, where the field is asked.
    """

    starts: Tensor
    ends: Tensor
    at: Tensor


def stratified(near: Tensor, far: Tensor, count: int, jitter: Tensor | None = None) -> Samples:
    """One point in each of ``count`` strata of equal length (Mildenhall et al. 2020, eq. 2).

    Args:
        near: ``[R]``, where the rays begin to count.
        far: ``[R]``, where they end.
        count: number of strata S.
        jitter: ``[R, S]`` in [0, 1), the place in each stratum; the middle by default.
    """
    _check(count, jitter)
    edges = torch.lerp(near[:, None], far[:, None], torch.linspace(0, 1, count + 1, dtype=near.dtype).to(near.device))
    starts, ends = edges[:, :-1], edges[:, 1:]
    return Samples(starts, ends, torch.lerp(starts, ends, 0.5 if jitter is None else jitter))


def fedmenf_points(near: Tensor, far: Tensor, count: int, jitter: Tensor | None = None) -> Samples:
    """The points of the official FedMeNF code: a grid that includes both ends, moved away by up to (far - near) / S.

    The last point may lie beyond ``far``. An interval reaches from its point to the next one; the last one ends
    where a point can at most be. Arguments as for `stratified`, but without jitter the points are on the grid.
    """
    _check(count, jitter)
    at = torch.lerp(near[:, None], far[:, None], torch.linspace(0, 1, count, dtype=near.dtype).to(near.device))
    step = (far - near) / count
    if jitter is not None:
        at = at + jitter * step[:, None]
    return up_to_next(at, far + step)


def up_to_next(points: Tensor, end: Tensor) -> Samples:
    """Points ``[R, S]`` in order, each of which stands for the way to the next; the last one for the way to ``end``."""
    return Samples(points, torch.cat([points[:, 1:], end[:, None]], dim=-1), points)


def importance(edges: Tensor, weights: Tensor, uniforms: Tensor) -> Tensor:
    """Points distributed as a piecewise-constant density, by inverse transform (Mildenhall et al. 2020, section 5.2).

    A ray whose weights are all zero is sampled evenly. Give detached weights, or the points carry their gradients.

    Args:
        edges: ``[R, S + 1]``, distances in order.
        weights: ``[R, S]``, not negative: the mass between two edges, up to a factor.
        uniforms: ``[R, N]`` in [0, 1]; sorted ones give sorted points.

    Returns:
        ``[R, N]``, in the order of ``uniforms``.
    """
    empty = weights.sum(-1, keepdim=True) <= 0
    mass = torch.where(empty, edges.diff(dim=-1), weights)
    upto = mass.cumsum(-1)
    target = uniforms * upto[:, -1:]
    last = torch.searchsorted(upto, upto[:, -1:].contiguous())  # The last interval with any mass.
    index = torch.minimum(torch.searchsorted(upto, target, right=True), last)
    inside = target - (upto.gather(-1, index) - mass.gather(-1, index))
    share = (inside / mass.gather(-1, index).clamp_min(torch.finfo(mass.dtype).tiny)).clamp(0, 1)
    return torch.lerp(edges.gather(-1, index), edges.gather(-1, index + 1), share)


def _check(count: int, jitter: Tensor | None) -> None:
    if count < 1:
        raise ValueError(f"{count} samples on a ray; there must be at least 1")
    if jitter is not None and jitter.shape[-1] != count:
        raise ValueError(f"jitter for {jitter.shape[-1]} samples on a ray, but {count} are asked for; draw as many")
