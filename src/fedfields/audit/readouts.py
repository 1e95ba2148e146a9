"""Read-outs: pictures that a server gets from an upload by looking, without simulating the client.

Fits that use the true picture (``oracle``) are upper bounds for their family: no attacker has them, but a lucky
guess or a prior could come close. All of them contain the constant picture, which is why it is the floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedfields import tree
from fedfields.types import Params, VisibleLoss

FACTORS = (3.0, 10.0, 30.0, 100.0, -3.0, -10.0, -30.0)
"""How far a server extrapolates along the update."""

DAMPING = (1e-1, 1e-2, 1e-3)
"""Ridge of the NTK read-out, relative to the mean diagonal of the kernel."""


class Readout(NamedTuple):
    """A recovered picture ``[n, C]`` (rows are samples of the grid), and whether a fit to the truth was used."""

    values: Tensor
    oracle: bool


class Seen(NamedTuple):
    """What the read-outs start from, each ``[n, C]``: renders of theta and of w, and the update's Jacobian image."""

    broadcast: Tensor
    upload: Tensor
    jacobian: Tensor


class Jacobian(NamedTuple):
    """A field around some weights: its values ``[n, C]``, and products with its Jacobian and the transpose."""

    values: Tensor
    forward: Callable[[Params], Tensor]
    backward: Callable[[Tensor], Params]


def linearise(loss: VisibleLoss, params: Params, inputs: Any) -> Jacobian:
    """The field's Jacobian at ``params``, without meta leaves; its product by differentiating the transposed one."""
    leaves, _ = tree.parted(tree.leaves_of(params))
    values = loss.show(leaves, inputs)
    dual = torch.zeros_like(values, requires_grad=True)
    transposed = torch.autograd.grad(values, list(leaves.values()), dual, create_graph=True)

    def forward(tangent: Params) -> Tensor:
        return torch.autograd.grad(transposed, dual, [tangent[key] for key in leaves], retain_graph=True)[0]

    def backward(v: Tensor) -> Params:
        grads = torch.autograd.grad(values, list(leaves.values()), v, retain_graph=True)
        return dict(zip(leaves, grads, strict=True))

    return Jacobian(values.detach(), forward, backward)


def look(loss: VisibleLoss, start: Params, upload: Params, inputs: Any) -> Seen:
    """Renders ``theta``, ``w`` and ``J (w - theta)`` at ``inputs``."""
    around = linearise(loss, start, inputs)
    with torch.no_grad():
        return Seen(around.values, loss.show(upload, inputs), around.forward(tree.sub(upload, start)))


def quick_readouts(loss: VisibleLoss, start: Params, upload: Params, inputs: Any, truth: Tensor) -> dict[str, Readout]:
    """The render family: direct, affine, difference, extrapolation, two regressors, Jacobian."""
    seen = look(loss, start, upload, inputs)
    found = {
        "direct": Readout(seen.upload, False),
        "affine": Readout(affine(seen.upload, truth), True),
        "difference": Readout(affine(seen.upload - seen.broadcast, truth), True),
        "two_regressors": Readout(regress([seen.upload, seen.broadcast], truth), True),
        "jacobian": Readout(affine(seen.jacobian, truth), True),
    }
    with torch.no_grad():
        update = tree.sub(upload, start)
        far = [loss.show(tree.add(start, update, factor), inputs) for factor in FACTORS]
    found["extrapolation"] = Readout(nearest(far, truth), True)
    found["extrapolation_affine"] = Readout(nearest([affine(one, truth) for one in far], truth), True)
    return found


def ntk_readout(loss: VisibleLoss, start: Params, upload: Params, inputs: Any, truth: Tensor) -> tuple[Readout, Tensor]:
    """``(J J^T + mu I)^-1 J u``, the residual that explains the update, with an affine fit; and the bare solution.

    In the neural tangent kernel's view a gradient step is ``u = J^T r`` for a residual picture r, so this inverts it.
    """
    around = linearise(loss, start, inputs)

    def product(v: Tensor) -> Tensor:
        return around.forward(around.backward(v))

    probe = torch.randn(around.values.shape, generator=torch.Generator().manual_seed(0), dtype=around.values.dtype)
    diagonal = float((probe.sign() * product(probe.sign())).mean())
    rhs = around.forward(tree.sub(upload, start))
    solutions = [
        conjugate_gradients(lambda v, mu=damping * diagonal: product(v) + mu * v, rhs, 40) for damping in DAMPING
    ]
    fits = [affine(solution, truth) for solution in solutions]
    return Readout(nearest(fits, truth), True), solutions[1]


def conjugate_gradients(product: Callable[[Tensor], Tensor], rhs: Tensor, steps: int) -> Tensor:
    """Solves ``A x = rhs`` for a positive definite A given by its product."""
    x, residual = torch.zeros_like(rhs), rhs.clone()
    direction, size = residual.clone(), residual.square().sum()
    for _ in range(steps):
        if not float(size) > 1e-30:
            break
        image = product(direction)
        rate = size / (direction * image).sum()
        x, residual = x + rate * direction, residual - rate * image
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return x


def features_of(seen: Seen, kernel: Tensor) -> Tensor:
    """What the learned read-out sees at each sample, scaled to unit spread over the picture: ``[n, 4 C + 1]``."""
    parts = [seen.broadcast, seen.upload - seen.broadcast, seen.jacobian, kernel]
    scaled = [(part - part.mean(0)) / part.std(0).clamp_min(1e-12) for part in parts]
    return torch.cat([*scaled, torch.ones_like(scaled[0][:, :1])], dim=1)


def learned_readout(attacked: Tensor, others: list[tuple[Tensor, Tensor]]) -> Readout:
    """Ridge from features to colours, learned on *other* clients' ``(features, picture)``; not an oracle."""
    x = torch.cat([features for features, _ in others]).double()
    y = torch.cat([truth for _, truth in others]).double()
    ridge = 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    return Readout((attacked.double() @ weights).to(attacked.dtype), False)


def affine(values: Tensor, truth: Tensor) -> Tensor:
    """The best ``a v + b`` per channel for a picture ``v``: ``[n, C]``. Constant where ``v`` is useless or broken."""
    return regress([values], truth)


def regress(pictures: list[Tensor], truth: Tensor) -> Tensor:
    """Per channel, the least-squares fit of the truth by the pictures' same channel and a constant."""
    mean = truth.mean(0)
    columns = torch.stack([picture - picture.mean(0) for picture in pictures], dim=-1).double()
    columns = columns / columns.std(0).clamp_min(1e-30)
    if not bool(torch.isfinite(columns).all()):
        return mean.expand_as(truth)
    a, b = columns.transpose(0, 1), (truth - mean).double().T[..., None]
    gram = a.transpose(1, 2) @ a + 1e-9 * len(truth) * torch.eye(a.shape[-1], dtype=a.dtype)
    fit = (a @ torch.linalg.solve(gram, a.transpose(1, 2) @ b))[..., 0].T
    return mean + fit.to(truth.dtype)


def nearest(pictures: list[Tensor], truth: Tensor) -> Tensor:
    """The picture nearest to the truth after clamping: the attacker's luckiest choice."""
    return min(pictures, key=lambda one: float((one.nan_to_num().clamp(0, 1) - truth).square().mean()))
