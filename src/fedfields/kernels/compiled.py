"""The loops themselves. Imported when first needed: numba takes half a second, and compiles into its cache once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_F = np.float32


def compiled(function: Callable[..., None]) -> Any:
    """numba's compiler, with a cache on disk where there is a place to write one.

    Sums may be contracted and divisions by constants multiplied, but never reordered: the same result everywhere.
    """
    options = {"fastmath": {"contract", "nsz", "arcp"}, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # No folder to cache in.
        return numba.njit(**options)(function)


@compiled
def sincos(x: np.ndarray, w0: float, sin: np.ndarray, slope: np.ndarray) -> None:
    """``sin = sin(w0 x)`` and ``slope = w0 cos(w0 x)``: all ``[N]`` float32.

    The argument is reduced to [-pi/4, pi/4] by Cody and Waite's three-part pi/2; the two polynomials are the minimax
    ones of the Cephes library (Moshier).
    """
    w = _F(w0)
    for i in range(x.size):
        angle = w0 * x[i]
        quarter = np.rint(angle * (2 / math.pi))
        turn = np.int64(quarter)
        r = _F(angle - quarter * (math.pi / 2))
        z = r * r
        s = ((_F(-1.9515295891e-4) * z + _F(8.3321608736e-3)) * z - _F(1.6666654611e-1)) * z * r + r
        c = ((_F(2.443315711809948e-5) * z - _F(1.388731625493765e-3)) * z + _F(4.166664568298827e-2)) * z * z
        c = c - _F(0.5) * z + _F(1)
        odd = (turn & 1) != 0
        a = c if odd else s
        b = s if odd else c
        sin[i] = -a if (turn & 2) != 0 else a
        slope[i] = -(w * b) if ((turn + 1) & 2) != 0 else w * b
