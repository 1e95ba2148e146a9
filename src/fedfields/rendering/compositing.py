"""Volume rendering by quadrature: Max, *Optical Models for Direct Volume Rendering*, 1995; Mildenhall et al.,
*NeRF*, ECCV 2020, eq. 3; the distortion of Barron et al., *Mip-NeRF 360*, CVPR 2022, eq. 15.

Notation: ``R`` rays, ``S`` samples on each, in the order of their distance. Everything has derivatives of any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Background = Literal["white", "black"] | tuple[float, float, float]
"""What is seen where nothing is in the way: a name, or red, green and blue in [0, 1]."""


class Rendered(NamedTuple):
    """What is seen along rays.

    Attributes:
        colour: ``[R, 3]``, with the background.
        depth: ``[R]``, expected distance of the sample that is seen; the background is at distance 0.
        opacity: ``[R]`` in [0, 1], the sum of the weights.
        distortion: ``[R]``, how far the weights are from a single short interval; in units of distance.
        weights: ``[R, S]``, the share of each sample in the colour.
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor
    distortion: Tensor
    weights: Tensor


def composite(
    densities: Tensor,
    colours: Tensor,
    starts: Tensor,
    ends: Tensor,
    background: Background | Tensor = "black",
    *,
    at: Tensor | None = None,
    last_delta: float | None = None,
    normalise_depth: bool = False,
) -> Rendered:
    """The colour of every ray, from samples that fill the intervals between ``starts`` and ``ends``.

    Args:
        densities: ``[R, S]``, not negative, per unit of distance.
        colours: ``[R, S, 3]``.
        starts: ``[R, S]``, distances at which the intervals begin.
        ends: ``[R, S]``, distances at which they end.
        background: a name, a colour, or a tensor ``[3]`` or ``[R, 3]``, such as a random colour for each ray.
        at: ``[R, S]``, the distances that the depth is the mean of; the middles of the intervals by default.
        last_delta: length of the last interval as far as its opacity goes. A huge one makes the last sample
            opaque wherever it has any density; the distortion keeps to ``ends``.
        normalise_depth: divide the depth by the opacity, so that what is half transparent is not half as far away.
    """
    optical, weights = _absorb(densities, _deltas(starts, ends, last_delta))
    opacity = weights.sum(-1)
    unseen = (-optical.sum(-1)).exp()
    colour = (weights[..., None] * colours).sum(-2) + unseen[..., None] * background_colour(background, colours)
    depth = (weights * ((starts + ends) / 2 if at is None else at)).sum(-1)
    if normalise_depth:
        depth = depth / opacity.clamp_min(torch.finfo(opacity.dtype).eps)
    return Rendered(colour, depth, opacity, distortion(weights, starts, ends), weights)


def weights_of(densities: Tensor, deltas: Tensor) -> Tensor:
    """``w_i = T_i (1 - exp(-sigma_i delta_i))`` with ``T_i = exp(-sum_(j<i) sigma_j delta_j)``; all ``[R, S]``."""
    return _absorb(densities, deltas)[1]


def distortion(weights: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """``sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 delta_i / 3`` with the middles m, ``[R, S]`` to ``[R]``, in O(S).

    Every gap between two neighbouring middles is counted by the pairs that it separates: the weight before it
    times the weight behind it, twice. Weights must sum to at most 1 and intervals must be in order.
    """
    before = weights.cumsum(-1)[..., :-1]
    behind = weights.sum(-1, keepdim=True) - before
    gaps = ((starts + ends) / 2).diff(dim=-1)
    return 2 * (gaps * before * behind).sum(-1) + (weights.square() * (ends - starts)).sum(-1) / 3


def background_colour(background: Background | Tensor, like: Tensor) -> Tensor:
    """The background as a tensor ``[3]`` or ``[R, 3]`` of the type and device of ``like``."""
    if isinstance(background, str):
        if background not in ("white", "black"):
            raise ValueError(f"background is {background!r}; it must be white, black or three numbers")
        return like.new_full((3,), 1.0 if background == "white" else 0.0)
    colour = torch.as_tensor(background, dtype=like.dtype, device=like.device)
    if colour.ndim == 0 or colour.shape[-1] != 3:
        raise ValueError(f"background has the shape {tuple(colour.shape)}; its last axis must have length 3")
    return colour


def _deltas(starts: Tensor, ends: Tensor, last_delta: float | None) -> Tensor:
    """Lengths of the intervals."""
    deltas = ends - starts
    if last_delta is None:
        return deltas
    return torch.cat([deltas[..., :-1], torch.full_like(deltas[..., -1:], last_delta)], dim=-1)


def _absorb(densities: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Optical lengths and weights. The sum before each sample leaves itself out, so infinite lengths are safe."""
    optical = densities * deltas
    before = torch.cat([torch.zeros_like(optical[..., :1]), optical[..., :-1].cumsum(-1)], dim=-1)
    return optical, (-before).exp() * -torch.expm1(-optical)
