"""SIREN: Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, NeurIPS 2020.

With the initialisation and the +0.5 output of the official FedMeNF code.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Siren:
    """Sine layers ``sin(w0 (W x + b))`` and a linear last layer, plus one half."""

    width: int = 128
    """Units in each sine layer."""

    depth: int = 5
    """Number of sine layers; one linear layer follows."""

    w0: float = 30.0
    """Frequency factor of every sine layer: larger values fit finer detail and adapt less smoothly."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"a SIREN of width {self.width} and depth {self.depth}; both must be at least 1")

    def init(self, in_dim: int, out_dim: int, generator: Generator) -> Params:
        """Weights and biases in U(-a, a): a = 1/in_dim for the first layer, sqrt(6/fan_in)/w0 for the others."""
        sizes = [in_dim] + [self.width] * self.depth + [out_dim]
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / fan_in if i == 0 else sqrt(6 / fan_in) / self.w0
            name = f"layers.{i}" if i < self.depth else "last_layer"
            params[f"{name}.weight"] = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator)
            params[f"{name}.bias"] = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
        return params

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """``[B, in_dim]`` to ``[B, out_dim]``; colours are not clamped."""
        from fedfields.kernels import sine

        hidden = inputs
        for i in range(self.depth):
            weight, bias = params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]
            hidden = sine(torch.nn.functional.linear(hidden, weight, bias), self.w0)
        return torch.nn.functional.linear(hidden, params["last_layer.weight"], params["last_layer.bias"] + 0.5)
