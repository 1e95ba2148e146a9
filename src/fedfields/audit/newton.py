"""The strongest attack here: the most probable picture given the update, by Gauss-Newton.

The attacker has a prior ``x = prior(z), z ~ N(0, I)`` (what pictures of this kind look like), a simulator f of the
client's training, and knows the standard deviation of whatever noise was added. It minimises

    |(u - f(prior(z))) / sigma|^2 + |z|^2,    sigma^2 = noise^2 + draws^2 + (s rms(u))^2,

with s annealed down to 1e-4: first only what the prior allows, then every digit of the update. Each step solves the
linearised problem by conjugate gradients with exact Jacobian products. Gradient matching compares directions and
needs thousands of steps; this uses the whole update, with curvature. But it is local, and a second-order update is far
from linear in the picture: so it starts both from the mean picture and from what gradient matching found, and goes on
with whichever explains the update better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedfields import tree
from fedfields.audit.matching import scaled
from fedfields.audit.prior import PicturePrior
from fedfields.types import Params

COARSEST, NEARER, FINEST = 3.0, 0.5, 1e-4
"""Relative precision s at which the annealing starts: from the mean, from a given picture; and at which it ends."""

TRIAL = 0.25
"""Share of the products that each start may spend before the better one is chosen."""

SHARP = 0.03
"""Relative precision at which starts are compared."""


_Misfit = Callable[[Tensor, float], Tensor]


class _Linear(NamedTuple):
    """The simulator around a point: its weighted residual, and products with its Jacobian and the transpose."""

    residual: Tensor
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


class _State(NamedTuple):
    """A point of the annealing."""

    z: Tensor
    s: float


def invert(
    simulated: Callable[[Tensor], Params],
    update: Params,
    prior: PicturePrior,
    *,
    starts: Sequence[Tensor] = (),
    noise: Tensor | float = 0.0,
    products: int = 160,
) -> Tensor:
    """The recovered picture ``[*shape, C]``, not clamped.

    Args:
        simulated: a picture to its update, differentiable twice.
        update: the observed ``w - theta``.
        prior: what is known of the picture beforehand.
        starts: pictures to begin with besides the prior's mean.
        noise: standard deviation of what the simulator cannot know, for each weight or for all.
        products: pairs of Jacobian products that may be spent.
    """
    target, rms = tree.flatten(update), 1 / scaled(update)[1]

    def misfit(z: Tensor, s: float) -> Tensor:
        sigma = (torch.as_tensor(noise) ** 2 + (s * rms) ** 2).sqrt()
        return (target - tree.flatten(simulated(prior.picture(z)))) / sigma

    states = [_State(torch.zeros_like(prior.mean), COARSEST), *(_State(prior.white(one), NEARER) for one in starts)]
    if len(states) > 1:
        trial = int(TRIAL * products)
        products -= trial * len(states)
        states = [_anneal(misfit, one, trial) for one in states]
    best = min(states, key=lambda one: _objective(misfit, one.z, SHARP))
    return prior.picture(_anneal(misfit, best, products).z).detach()


def _anneal(misfit: _Misfit, state: _State, left: int) -> _State:
    """Gauss-Newton steps with falling s until the products are spent or nothing more is gained."""
    z, s = state
    while left > 0:
        before = _objective(misfit, z, s)
        step, used = _solve(_linearise(lambda z, s=s: misfit(z, s), z), z, min(left, 100))
        left -= used
        z, length = _search(misfit, z, s, step, before)
        gain = 1 - _objective(misfit, z, s) / before if length else 0.0
        if s <= FINEST and gain < 1e-3:
            break
        if length == 1 or gain < 0.05:  # Shortened steps that still gain say: not linear enough yet, stay.
            s = max(FINEST, s / 2)
    return _State(z, s)


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


def _search(misfit: _Misfit, z: Tensor, s: float, step: Tensor, now: float) -> tuple[Tensor, float]:
    """The first of z + step, z + step/2, ... that lowers the objective, and the share; z itself and 0 if none does."""
    for halving in range(6):
        ahead = z + step / 2**halving
        if _objective(misfit, ahead, s) < now:
            return ahead, 1 / 2**halving
    return z, 0.0


def _objective(misfit: _Misfit, z: Tensor, s: float) -> float:
    """``|misfit|^2 + |z|^2``; infinite where the simulation diverges."""
    value = float(misfit(z, s).detach().square().sum() + z.square().sum())
    return value if math.isfinite(value) else math.inf
