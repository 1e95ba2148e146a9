"""Appearance codes: how a photograph differs from others of the same place in exposure, weather and light.

Martin-Brualla et al., *NeRF in the Wild*, CVPR 2021, section 4.1: each photograph has a code that is trained with the
field and read by its colour network alone, so the geometry is the same in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def check_length(appearance: int) -> None:
    """Raises ValueError if codes cannot be that long."""
    if appearance < 0:
        raise ValueError(f"appearance codes of length {appearance}; it must be positive, or 0 for none")


def with_codes(inputs: Tensor, codes: Tensor | None, appearance: int) -> Tensor:
    """``[N, D]`` and codes ``[N, appearance]`` side by side; without codes zeros, which are the neutral appearance."""
    if appearance == 0:
        return inputs
    codes = inputs.new_zeros(len(inputs), appearance) if codes is None else codes
    return torch.cat([inputs, codes], dim=-1)
