"""Where noise comes from: the operating system's entropy, or a seeded generator that makes a run repeatable.

Noise from a seed hides nothing from whoever knows the seed. A seeded Mersenne twister can also be worked out from its
own output, so that seeds are for simulations alone, however they were chosen.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Source: TypeAlias = "Generator | Secure"
    """What noise is drawn from."""


class Secure:
    """A stream that nobody can predict or repeat: AES-256 in counter mode under a key from the operating system."""

    def __init__(self) -> None:
        from fedfields.privacy.secure.crypto import KEY, keystream

        self._stream = keystream(os.urandom(KEY))

    def uniform(self, count: int) -> Tensor:
        """``[count]`` float64 in the open interval (0, 1), odd multiples of 2^-53."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), "<u8")
        return torch.from_numpy(((words >> 12) + 0.5) * 2.0**-52)

    def normal(self, count: int) -> Tensor:
        """``[count]`` float64, standard normal (Box and Muller)."""
        half = -(-count // 2)
        radius, angle = (-2 * self.uniform(half).log()).sqrt(), 2 * math.pi * self.uniform(half)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def uniform(count: int, source: Source) -> Tensor:
    """``[count]`` float64 in (0, 1)."""
    if isinstance(source, Secure):
        return source.uniform(count)
    return torch.rand(count, generator=source, dtype=torch.float64).clamp_min(2.0**-54)


def add_normal(part: Params, std: float, source: Source) -> Params:
    """The leaves with Gaussian noise: added in float64, then rounded to the leaves' own dtype."""
    if isinstance(source, Secure):
        noise = {key: source.normal(leaf.numel()).view(leaf.shape) for key, leaf in part.items()}
    else:
        noise = tree.randn_like(part, source)
    return {key: (leaf.double() + std * noise[key].double()).to(leaf.dtype) for key, leaf in part.items()}


def discrete_normal(count: int, sigma: float, source: Source) -> Tensor:
    """``[count]`` integers as float64 with probabilities proportional to exp(-k^2 / (2 sigma^2)).

    Canonne, Kamath and Steinke, NeurIPS 2020, algorithm 3: discrete Laplace of scale t = floor(sigma) + 1, of which y
    is kept with probability exp(-(|y| - sigma^2 / t)^2 / (2 sigma^2)). Their coins are exact rationals, ours float64.
    """
    if sigma == 0:
        return torch.zeros(count, dtype=torch.float64)
    scale, kept = math.floor(sigma) + 1, []
    while count > 0:
        draws = uniform(3 * (2 * count + 16), source).view(3, -1)
        laplace = (-scale * draws[0].log()).floor() - (-scale * draws[1].log()).floor()
        chance = torch.exp(-((laplace.abs() - sigma**2 / scale) ** 2) / (2 * sigma**2))
        kept.append(laplace[draws[2] < chance][:count])
        count -= len(kept[-1])
    return torch.cat(kept)
