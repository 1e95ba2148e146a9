"""Memory for what a kernel writes: numpy's, which asks for huge pages from 4 MB on.

Fresh memory costs a page fault at the first touch of each page. Where a kernel writes to random places that is most of
its time; where it writes in order, still a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def zeros(shape: Sequence[int]) -> Tensor:
    """As ``torch.zeros``, float32 on the CPU; untouched pages stay free."""
    import numpy as np

    return torch.from_numpy(np.zeros(tuple(shape), np.float32))


def empty(shape: Sequence[int]) -> Tensor:
    """As ``torch.empty``, float32 on the CPU."""
    import numpy as np

    return torch.from_numpy(np.empty(tuple(shape), np.float32))
