"""Memory that a kernel scatters into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def zeros(shape: Sequence[int]) -> Tensor:
    """As ``torch.zeros``, float32 on the CPU, but numpy's: it asks for huge pages, and untouched pages stay free.

    Writing to random places in fresh memory is mostly page faults: with huge ones it is several times as fast.
    """
    import numpy as np

    return torch.from_numpy(np.zeros(tuple(shape), np.float32))
