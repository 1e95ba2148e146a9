"""What an outer loop can learn about its inner loop, as meta leaves: step sizes (Meta-SGD) and noise (meta-dropout).

Li et al., *Meta-SGD: Learning to Learn Quickly for Few-Shot Learning*, 2017, eq. 2; Chen et al., *Federated
Meta-Learning with Fast Convergence and Efficient Communication*, 2018, algorithm 1. Lee et al., *Meta Dropout: Learning
to Perturb Latent Features for Generalization*, ICLR 2020: hidden activations h become ``h softplus(mu(h) + e)``, e from
N(0, 1), in the inner loop and whenever the weights are adapted to a new task.

Where we differ from Lee et al.: mu is a linear map over the channels of h itself, not a second network beside the
model, and a prediction has no factor at all instead of the factor ``softplus(mu(h))``, so that what is adapted is the
plain model. At first mu is such that this factor is 1. Adaptation draws one noise per step; their code averages 30.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedfields.lazy import torch
from fedfields.types import META, Batch, Loss, Params

if TYPE_CHECKING:
    from torch import Generator, Tensor

RATE = f"{META}rate."
"""Before the name of a weight: its step size, as large as the weight."""

NOISE = f"{META}noise."
"""Before the name of a hidden layer: ``weight`` ``[C, C]`` and ``bias`` ``[C]`` of mu."""


def rates(weights: Params, lr: float) -> Params:
    """A step size for each number of each weight, ``lr`` at first."""
    return {RATE + key: torch.full_like(leaf, lr) for key, leaf in weights.items()}


def rate(key: str, lr: float, meta: Params) -> float | Tensor:
    """The step size of the weight of this name: its own if there is one."""
    return meta.get(RATE + key, lr)


def descend(params: Params, grads: Params, lr: float, meta: Params) -> Params:
    """``params - rate grads``."""
    return {
        key: leaf - meta[RATE + key] * grads[key] if RATE + key in meta else torch.add(leaf, grads[key], alpha=-lr)
        for key, leaf in params.items()
    }


def noise(loss: Loss) -> Params:
    """The noise generators of all hidden layers: mu is the constant at which the noise is centred on 1.

    Raises:
        ValueError: the loss does not say which hidden layers there are.
    """
    widths = getattr(loss, "widths", None)
    if widths is None:
        raise ValueError(
            f"{type(loss).__name__} does not name its hidden layers, for which noise could be learned; use a model of "
            "fedfields.models, or leave out inner.learn_noise"
        )
    leaves: Params = {}
    for name, width in widths.items():
        leaves[f"{NOISE}{name}.weight"] = torch.zeros(width, width)
        leaves[f"{NOISE}{name}.bias"] = torch.full((width,), math.log(math.e - 1))
    return leaves


def require(meta: Params, *, rates: bool, noise: bool) -> None:
    """Raises ValueError if there are no leaves for what is to be learned: then nothing would be, and nobody told."""
    for wanted, prefix in ((rates, RATE), (noise, NOISE)):
        if wanted and not any(key.startswith(prefix) for key in meta):
            raise ValueError(f"there are no {prefix}* among the weights; add objective.leaves(params, loss) to them")


def noisy(loss: Loss) -> Any:
    """The method of the loss that puts noise on its hidden layers.

    Raises:
        ValueError: it has none, or nowhere to put noise on.
    """
    method = getattr(loss, "noisy", None)
    if method is None:
        raise ValueError(
            f"{type(loss).__name__} has no hidden layers that noise could be put on; leave out inner.dropout and "
            "inner.learn_noise"
        )
    method(lambda name, hidden: hidden)
    return method


def perturbed(loss: Loss, dropout: float, meta: Params, generator: Generator) -> Loss:
    """The loss of one step with dropout and, where meta leaves say so, learned noise.

    It is a loss like others: everything random about it is drawn here, and asked twice it gives the same answer.
    """
    if not dropout and not any(key.startswith(NOISE) for key in meta):
        return loss
    put, seed = noisy(loss), int(torch.randint(2**62, (), generator=generator))

    def one(params: Params, batch: Batch) -> Tensor:
        random = torch.Generator().manual_seed(seed)

        def perturb(name: str, hidden: Tensor) -> Tensor:
            if f"{NOISE}{name}.weight" in meta:
                hidden = hidden * _factor(name, hidden, meta, random)
            return _dropped(hidden, dropout, random) if dropout else hidden

        return put(perturb)(params, batch)

    return one


def _dropped(hidden: Tensor, share: float, random: Generator) -> Tensor:
    """Activations of which a share is zero, and the others larger in turn (Srivastava et al., JMLR 2014)."""
    kept = torch.rand(hidden.shape, generator=random) >= share
    return hidden * kept.to(hidden) / (1 - share)


def _factor(name: str, hidden: Tensor, meta: Params, random: Generator) -> Tensor:
    """``softplus(mu(h) + e)`` for activations ``[B, C, ...]``."""
    weight, bias = meta[f"{NOISE}{name}.weight"], meta[f"{NOISE}{name}.bias"]
    mu = torch.nn.functional.linear(hidden.movedim(1, -1), weight, bias).movedim(-1, 1)
    return torch.nn.functional.softplus(mu + torch.randn(hidden.shape, generator=random).to(mu))
