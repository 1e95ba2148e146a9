"""A multilayer perceptron: with its defaults the network of MAML's sinusoids (Finn et al., ICML 2017, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.models.layers import keep, layer, linear, positive
from fedfields.types import Noise, Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Mlp:
    """ReLU layers and a linear last layer; a sample of any shape is one vector."""

    width: int = 40
    """Units in each hidden layer."""

    depth: int = 2
    """Number of hidden layers; 0 is a linear model."""

    def __post_init__(self) -> None:
        positive("an MLP", width=self.width)
        if self.depth < 0:
            raise ValueError(f"an MLP of depth {self.depth}; it must be 0 or more")

    @property
    def widths(self) -> dict[str, int]:
        """Units of each hidden layer, by its name."""
        return {f"layers.{i}": self.width for i in range(self.depth)}

    def init(self, inputs: tuple[int, ...], outputs: int, generator: Generator) -> Params:
        """Weights and biases in U(-a, a), a = 1/sqrt(fan_in); ``inputs`` is the shape of one sample."""
        params, fan_in = {}, math.prod(inputs)
        for name, units in self.widths.items():
            params |= layer(name, (units, fan_in), generator)
            fan_in = units
        return params | layer("last_layer", (outputs, fan_in), generator)

    def __call__(self, params: Params, x: Tensor, noise: Noise = keep) -> Tensor:
        """``[B, *inputs]`` to ``[B, outputs]``."""
        hidden = x.flatten(1)
        for name in self.widths:
            hidden = noise(name, linear(params, name, hidden).relu())
        return linear(params, "last_layer", hidden)
