"""Rays with as many samples as they need: marching through an occupancy grid, and compositing what was sampled.

Samples of all rays lie behind one another; ``offsets [R + 1]`` says where each ray's begin. Empty space costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedfields.kernels.threads import over

if TYPE_CHECKING:
    from torch import Tensor

RAYS = 256
"""Fewest rays worth a thread."""


class Packed(NamedTuple):
    """Samples of R rays.

    Attributes:
        ray: index of each sample's ray, ``[M]`` int64.
        middle: distance along the ray, ``[M]``.
        delta: length of each sample's interval, ``[M]``.
        offsets: ``[R + 1]`` int64.
    """

    ray: Tensor
    middle: Tensor
    delta: Tensor
    offsets: Tensor

    @property
    def rays(self) -> int:
        """R."""
        return len(self.offsets) - 1


def march(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, jitter: Tensor, occupied: Tensor, step: float
) -> Packed:
    """Samples at ``near + (i + jitter) step`` before ``far`` that lie in occupied cells of the unit cube.

    Args:
        origins: ``[R, 3]``, in coordinates whose unit cube is the grid.
        directions: ``[R, 3]`` of any length; distances count in it.
        near: ``[R]``, where the ray enters the cube.
        far: ``[R]``, where it leaves.
        jitter: ``[R]`` in [0, 1).
        occupied: ``[G, G, G]`` bool, indexed x, y, z.
        step: distance between samples.
    """
    if origins.device.type != "cpu" or origins.dtype != torch.float32:
        return march_plain(origins, directions, near, far, jitter, occupied, step)
    from fedfields.kernels.compiled import march_count, march_fill

    rays = [leaf.contiguous().numpy() for leaf in (origins, directions, near, far, jitter)]
    grid = occupied.contiguous().numpy()
    counts = torch.zeros(len(origins) + 1, dtype=torch.int64)
    to = counts.numpy()
    over(len(origins), lambda a, b: march_count(*rays, grid, step, to, a, b), RAYS)
    offsets = counts.cumsum(0)
    total = int(offsets[-1])
    ray, middle = torch.empty(total, dtype=torch.int64), torch.empty(total)
    starts, rows, filled = offsets.numpy(), ray.numpy(), middle.numpy()
    over(len(origins), lambda a, b: march_fill(*rays, grid, step, starts, rows, filled, a, b), RAYS)
    return Packed(ray, middle, torch.full_like(middle, step), offsets)


def march_plain(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, jitter: Tensor, occupied: Tensor, step: float
) -> Packed:
    """The twin."""
    most = int(((far - near) / step).max().clamp_min(0).ceil()) + 1
    middle = near[:, None] + (torch.arange(most, device=near.device) + jitter[:, None]) * step
    positions = origins[:, None] + directions[:, None] * middle[..., None]
    size = occupied.shape[0]
    x, y, z = (positions * size).floor().long().clamp(0, size - 1).unbind(-1)
    kept = occupied[x, y, z] & (middle < far[:, None])
    offsets = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    ray = kept.nonzero()[:, 0]
    return Packed(ray, middle[kept], torch.full_like(middle[kept], step), offsets)


class Composited(NamedTuple):
    """What is seen along R rays, without background.

    Attributes:
        colour: ``[R, 3]``.
        opacity: ``[R]``, the sum of the weights.
        depth: ``[R]``, the sum of ``w_i t_i`` with the middles t.
        distortion: ``[R]``, as :func:`fedfields.rendering.compositing.distortion` has it.
    """

    colour: Tensor
    opacity: Tensor
    depth: Tensor
    distortion: Tensor


def composite(density: Tensor, colour: Tensor, samples: Packed) -> Composited:
    """Volume rendering (Max 1995; Mildenhall et al. 2020, eq. 3): ``w_i = T_i (1 - exp(-density_i delta_i))``.

    Args:
        density: ``[M]``.
        colour: ``[M, 3]``.
        samples: of R rays.

    The compiled path is differentiable once; :func:`composite_plain` as often as one likes.
    """
    if density.device.type != "cpu" or density.dtype != torch.float32:
        return composite_plain(density, colour, samples)
    return Composited(*_Composite.apply(density, colour, samples))  # pyright: ignore[reportGeneralTypeIssues]


def weights_plain(density: Tensor, samples: Packed) -> Tensor:
    """``w_i`` of every sample ``[M]``."""
    thickness = density * samples.delta
    return (-_before(thickness, samples)).exp() * -torch.expm1(-thickness)


def _before(values: Tensor, samples: Packed) -> Tensor:
    """Sum of the values of the samples that come before each one on its ray, all ``[M]``.

    Sums run through all rays, so they grow large: in double precision the difference of two is still exact enough.
    """
    upto = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    return (upto[:-1] - upto[samples.offsets[:-1]][samples.ray]).to(values.dtype)


def composite_plain(density: Tensor, colour: Tensor, samples: Packed) -> Composited:
    """The twin."""
    weights, middle = weights_plain(density, samples), samples.middle
    apart = middle * _before(weights, samples) - _before(weights * middle, samples)
    spread = 2 * apart + weights * samples.delta / 3
    values = torch.cat([colour, torch.stack([torch.ones_like(weights), middle, spread], 1)], 1)
    sums = weights.new_zeros(len(samples.offsets) - 1, 6).index_add(0, samples.ray, weights[:, None] * values)
    return Composited(sums[:, :3], *sums[:, 3:].unbind(1))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, colour: Tensor, samples: Packed) -> tuple[Tensor, ...]:
        from fedfields.kernels.compiled import composite_forward

        rays = len(samples.offsets) - 1
        density, colour = density.detach().contiguous(), colour.detach().contiguous()
        out, weights = torch.zeros(rays, 6), torch.empty_like(density)
        given = [leaf.numpy() for leaf in (density, colour, samples.middle, samples.delta, samples.offsets)]
        to, kept = out.numpy(), weights.numpy()
        over(rays, lambda a, b: composite_forward(*given, to, kept, a, b), RAYS)
        ctx.save_for_backward(density, colour, out, weights, *samples)
        return out[:, :3], *out[:, 3:].unbind(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from fedfields.kernels.compiled import composite_backward

        density, colour, out, weights, _, middle, delta, offsets = ctx.saved_tensors
        above = torch.cat([grads[0], torch.stack(grads[1:], 1)], 1)
        of_density, of_colour = torch.empty_like(density), torch.empty_like(colour)
        given = [leaf.numpy() for leaf in (density, colour, middle, delta, offsets, out, weights, above)]
        a_density, a_colour = of_density.numpy(), of_colour.numpy()
        over(len(offsets) - 1, lambda a, b: composite_backward(*given, a_density, a_colour, a, b), RAYS)
        return of_density, of_colour, None
