"""The strongest attack here: the most probable picture given the update, by Gauss-Newton.

The attacker has a prior ``x = prior(z), z ~ N(0, I)`` (what pictures of this kind look like), a simulator f of the
client's training, and knows the standard deviation of whatever noise was added. It minimises

    |(u - f(prior(z))) / sigma|^2 + |z|^2,    sigma^2 = noise^2 + draws^2 + (s rms(u))^2,

with s annealed from 3 to 1e-4: first only what the prior allows, then every digit of the update. Each step solves the
linearised problem by conjugate gradients with exact Jacobian products. Gradient matching compares directions and
needs thousands of steps; this uses the whole update, with curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedfields import tree
from fedfields.audit.prior import PicturePrior
from fedfields.types import Params

COARSEST, FINEST = 3.0, 1e-4
"""Relative precision s at which the annealing starts and ends."""


class _Linear(NamedTuple):
    """The simulator around a point: its weighted residual, and products with its Jacobian and the transpose."""

    residual: Tensor
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


def invert(
    simulated: Callable[[Tensor], Params],
    update: Params,
    prior: PicturePrior,
    *,
    noise: Tensor | float = 0.0,
    products: int = 160,
) -> Tensor:
    """The recovered picture ``[*shape, C]``, not clamped.

    Args:
        simulated: a picture to its update, differentiable twice.
        update: the observed ``w - theta``.
        prior: what is known of the picture beforehand.
        noise: standard deviation of what the simulator cannot know, for each weight or for all.
        products: pairs of Jacobian products that may be spent.
    """
    target = tree.flatten(update)
    rms = 1 / _factors(update)
    z, s, left = torch.zeros_like(prior.mean), COARSEST, products
    while left > 0:
        sigma = (torch.as_tensor(noise) ** 2 + (s * rms) ** 2).sqrt()

        def misfit(z: Tensor, sigma: Tensor = sigma) -> Tensor:
            return (target - tree.flatten(simulated(prior.picture(z)))) / sigma

        step, used = _solve(_linearise(misfit, z), z, min(left, 100))
        left -= used
        z, length = _search(misfit, z, step)
        if s <= FINEST and not length:
            break
        if length in (0.0, 1.0):  # Shortened steps say that the model is not linear enough yet: stay.
            s = max(FINEST, s / 2)
    return prior.picture(z).detach()


def _linearise(misfit: Callable[[Tensor], Tensor], z: Tensor) -> _Linear:
    """One graph of the residual; its Jacobian's products by differentiating the transposed product."""
    point = z.clone().requires_grad_()
    residual = misfit(point)
    dual = torch.zeros_like(residual, requires_grad=True)
    (transposed,) = torch.autograd.grad(residual, point, dual, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return -torch.autograd.grad(transposed, dual, v, retain_graph=True)[0]

    def backward(r: Tensor) -> Tensor:
        return -torch.autograd.grad(residual, point, r, retain_graph=True)[0]

    return _Linear(residual.detach(), forward, backward)


def _solve(linear: _Linear, z: Tensor, limit: int) -> tuple[Tensor, int]:
    """``(J^T J + I) d = J^T r - z`` by conjugate gradients; the step and the products used."""
    residual = linear.backward(linear.residual) - z
    step, direction = torch.zeros_like(z), residual.clone()
    size = first = residual.square().sum()
    used = 0
    while used < limit and bool(torch.isfinite(size)) and float(size) > 1e-4 * float(first):
        image = linear.backward(linear.forward(direction)) + direction
        rate = size / (direction * image).sum()
        step, residual = step + rate * direction, residual - rate * image
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
        used += 1
    return step, max(1, used)


def _search(misfit: Callable[[Tensor], Tensor], z: Tensor, step: Tensor) -> tuple[Tensor, float]:
    """The first of z + step, z + step/2, ... that lowers the objective, and the share; z itself and 0 if none does."""

    def objective(at: Tensor) -> float:
        return float(misfit(at).detach().square().sum() + at.square().sum())

    now = objective(z)
    for halving in range(6):
        ahead = z + step / 2**halving
        if objective(ahead) < now:
            return ahead, 1 / 2**halving
    return z, 0.0


def _factors(update: Params) -> Tensor:
    from fedfields.audit.matching import scaled

    return scaled(update)[1]
