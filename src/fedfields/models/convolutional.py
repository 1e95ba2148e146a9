"""The network of few-shot classification: blocks of convolution, normalisation, ReLU and pooling.

Vinyals et al., *Matching Networks*, NeurIPS 2016, and Finn et al., ICML 2017, section 5.2. No normalisation here has
running statistics, which would be no weights and would move in inner loops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedfields.lazy import torch
from fedfields.models.layers import keep, layer, linear, positive
from fedfields.types import Noise, Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ConvNet:
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max pooling, and a linear last layer."""

    filters: int = 32
    """Channels of each block."""

    blocks: int = 4
    """Number of blocks; each halves height and width."""

    groups: int = 4
    """Groups of channels, each normalised by itself in each sample; 1 is layer norm, one a filter instance norm."""

    norm: Literal["group", "batch"] = "group"
    """Over groups of channels of each sample (Wu and He, ECCV 2018), so that a prediction depends on its sample alone;
    or over the batch, as MAML has it: classes of few samples are learned faster, but what is predicted for a sample
    depends on which others are asked about with it."""

    def __post_init__(self) -> None:
        positive("a ConvNet", filters=self.filters, blocks=self.blocks, groups=self.groups)
        if self.norm not in ("group", "batch"):
            raise ValueError(f"a ConvNet with norm {self.norm!r}; it must be group or batch")
        if self.filters % self.groups:
            raise ValueError(
                f"a ConvNet with {self.filters} filters in {self.groups} groups; they do not divide evenly"
            )

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each block, by its name."""
        return {f"blocks.{i}": self.filters for i in range(self.blocks)}

    def init(self, inputs: tuple[int, ...], outputs: int, generator: Generator) -> Params:
        """Weights and biases in U(-a, a), a = 1/sqrt(fan_in), norms of 1 and 0; ``inputs`` is ``[C, H, W]``.

        Raises:
            ValueError: the samples are no images, or too small to be halved so often.
        """
        if len(inputs) != 3:
            raise ValueError(
                f"a ConvNet needs samples [C, H, W], these are {list(inputs)}; choose an MLP, or reshape them"
            )
        channels, *size = inputs
        sides = [side >> self.blocks for side in size]
        if min(sides) < 1:
            most = max(0, min(size).bit_length() - 1)
            raise ValueError(
                f"samples of {size[0]} x {size[1]} cannot be halved {self.blocks} times; use {most} blocks"
            )
        params: Params = {}
        for name in self.widths:
            params |= layer(f"{name}.conv", (self.filters, channels, 3, 3), generator)
            params |= {f"{name}.norm.weight": torch.ones(self.filters), f"{name}.norm.bias": torch.zeros(self.filters)}
            channels = self.filters
        return params | layer("last_layer", (outputs, self.filters * math.prod(sides)), generator)

    def __call__(self, params: Params, x: Tensor, noise: Noise = keep) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs]``."""
        functional = torch.nn.functional
        for name in self.widths:
            x = functional.conv2d(x, params[f"{name}.conv.weight"], params[f"{name}.conv.bias"], padding=1)
            x = self._normalised(x, params[f"{name}.norm.weight"], params[f"{name}.norm.bias"])
            x = noise(name, functional.max_pool2d(x.relu(), 2))
        return linear(params, "last_layer", x.flatten(1))

    def _normalised(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.norm == "batch":
            return torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
        return torch.nn.functional.group_norm(x, self.groups, weight, bias)
