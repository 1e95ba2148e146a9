"""Fourier features and an MLP: Tancik et al., *Fourier Features Let Networks Learn High Frequency Functions in
Low Dimensional Domains*, NeurIPS 2020, eq. 5 with a fixed Gaussian matrix B.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class FourierMlp:
    """``[cos(2 pi B x), sin(2 pi B x)]``, ReLU layers, sigmoid output.

    B is drawn from ``seed``, the same for everybody, and is no weight: it is neither trained nor sent.
    """

    width: int = 128
    """Units in each ReLU layer."""

    depth: int = 4
    """Number of ReLU layers; one linear layer follows."""

    features: int = 128
    """Rows of B: number of frequencies."""

    scale: float = 5.0
    """Standard deviation of B, in cycles per unit of the coordinate: the bandwidth."""

    seed: int = 0
    """Seed of B."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.features) < 1:
            raise ValueError(
                f"a Fourier MLP of width {self.width}, depth {self.depth} and {self.features} features; "
                "all must be at least 1"
            )

    def init(self, in_dim: int, out_dim: int, generator: Generator) -> Params:
        """PyTorch's default for linear layers: weights and biases in U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        sizes = [2 * self.features] + [self.width] * self.depth + [out_dim]
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = fan_in**-0.5
            params[f"layers.{i}.weight"] = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator)
            params[f"layers.{i}.bias"] = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
        return params

    def frequencies(self, in_dim: int) -> Tensor:
        """B, ``[features, in_dim]``."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.scale * torch.randn(self.features, in_dim, generator=generator)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """``[B, in_dim]`` to ``[B, out_dim]`` in (0, 1)."""
        angles = 2 * pi * inputs @ self.frequencies(inputs.shape[-1]).to(inputs).T
        hidden = torch.cat([angles.cos(), angles.sin()], dim=-1)
        for i in range(self.depth):
            hidden = torch.nn.functional.linear(hidden, params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]).relu()
        last = torch.nn.functional.linear(
            hidden, params[f"layers.{self.depth}.weight"], params[f"layers.{self.depth}.bias"]
        )
        return last.sigmoid()
