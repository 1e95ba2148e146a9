"""Gradient matching: find the picture whose simulated update points the same way as the real one.

Geiping et al., *Inverting Gradients*, NeurIPS 2020, eq. 4: Adam on 1 - cosine + total variation; the idea is that of
Zhu et al., *Deep Leakage from Gradients*, NeurIPS 2019. Starts: the mean of other people's pictures, the render of
the broadcast model, grey, noise. The attacker keeps the start with the lowest objective: it cannot see the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from fedfields import tree
from fedfields.types import Params

TV_WEIGHT = 1e-2
RATE = 0.02
"""Weight of the total variation and step size of Adam, tuned on MAML uploads; the same for every method."""


def match(
    simulated: Callable[[Tensor], Params], update: Params, starts: dict[str, Tensor], steps: int, grid_axes: int
) -> tuple[Tensor, str]:
    """The picture with the lowest objective over all starts, and the name of its start.

    Args:
        simulated: a picture to its update, differentiable.
        update: the observed ``w - theta``.
        starts: pictures to begin with, by name; each gets a quarter of the steps, and the best then all of them.
        steps: of Adam.
        grid_axes: of the pictures, see `Visible`.
    """

    def descend(picture: Tensor, steps: int) -> tuple[Tensor, float]:
        return _descend(simulated, update, picture, steps, grid_axes)

    found = {name: descend(picture, max(1, steps // 4)) for name, picture in starts.items()}
    best = min(found, key=lambda name: found[name][1])
    return descend(found[best][0], steps)[0], best


def _descend(
    simulated: Callable[[Tensor], Params], update: Params, picture: Tensor, steps: int, grid_axes: int
) -> tuple[Tensor, float]:
    """Adam with a cosine schedule; the best iterate by the objective."""
    target, scale = scaled(update)
    target = target / target.norm().clamp_min(1e-30)
    values = picture.clone().clamp(0, 1).requires_grad_()
    optimiser = torch.optim.Adam([values], lr=RATE)
    best, lowest = values.detach().clone(), math.inf
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * max(0.05, 0.5 * (1 + math.cos(math.pi * step / steps)))
        guess = tree.flatten(simulated(values)) * scale
        cosine = (guess @ target) / guess.norm().clamp_min(1e-30)
        objective = 1 - cosine + TV_WEIGHT * total_variation(values, grid_axes)
        if not math.isfinite(float(objective.detach())):
            break
        if float(objective.detach()) < lowest:
            best, lowest = values.detach().clone(), float(objective.detach())
        optimiser.zero_grad()
        objective.backward()
        optimiser.step()
        with torch.no_grad():
            values.clamp_(0, 1)
    return best, lowest


def scaled(update: Params) -> tuple[Tensor, Tensor]:
    """The update as a vector with every leaf at unit root mean square, and the factors ``[weights]`` that do it.

    Otherwise the last layer, whose gradients are largest, would be all that is matched.
    """
    factors = torch.cat(
        [
            torch.full((leaf.numel(),), float(leaf.square().mean().sqrt().clamp_min(1e-30)) ** -1)
            for leaf in update.values()
        ]
    )
    return tree.flatten(update) * factors, factors


def total_variation(values: Tensor, grid_axes: int) -> Tensor:
    """Mean absolute difference of neighbours, summed over the axes of the grid, which are the last but the channels."""
    return torch.stack([values.diff(dim=-2 - axis).abs().mean() for axis in range(grid_axes)]).sum()


def starting_pictures(mean: Tensor, broadcast: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Public mean, render of the broadcast model, grey, noise, for each picture of a cohort ``[n, *shape, C]``."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    shown = broadcast.nan_to_num(0.5) + 0.02 * noise  # The render itself would give no update, which has no direction.
    grey = torch.full_like(mean, 0.5)
    if len(mean) > 1:  # A sum is the same whoever sent what: pictures that start alike would stay alike.
        mean, grey = mean + 0.1 * noise, grey + 0.1 * noise
    return {"mean": mean, "broadcast": shown, "grey": grey, "noise": 0.5 + 0.2 * noise}
