"""What the models share: linear layers under a name, and their first weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


def keep(name: str, hidden: Tensor) -> Tensor:
    """The noise that is none: the hidden activations ``[B, C, ...]`` of the layer of this name as they are."""
    return hidden


def layer(name: str, shape: tuple[int, ...], generator: Generator) -> Params:
    """Weights ``shape`` (outputs first) and biases in U(-a, a), a = 1/sqrt(fan_in), as torch's own layers have them."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": torch.empty(shape).uniform_(-bound, bound, generator=generator),
        f"{name}.bias": torch.empty(shape[0]).uniform_(-bound, bound, generator=generator),
    }


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """``W x + b`` over the last axis."""
    return torch.nn.functional.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def positive(model: str, **sizes: int) -> None:
    """Raises ValueError unless all sizes are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{model} with {name} {size}; it must be at least 1")
