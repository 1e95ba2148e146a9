"""Points from a PLY file, such as nerfstudio keeps beside its transforms."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.scenes.drafts import broken
from fedfields.store import read_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
"""The names of the format's numbers."""

_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}

MAX_BYTES, MAX_POINTS = 2**28, 2**24
"""Largest file that is read, and the most points in one."""

_HEADER = 65536
"""Bytes within which a header must end."""


def read_points(path: Path) -> Tensor:
    """The places of the vertices, ``[P, 3]``, float64; whatever else a vertex or the file has is ignored.

    Raises:
        UserError: the file is missing, no PLY, shorter than it says, or a place is not finite.
    """
    import numpy as np

    try:
        content = read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise broken(path, f"cannot be read ({getattr(error, 'strerror', error)}); check the path") from error
    head, found, body = content[:_HEADER].partition(b"end_header")
    if not (found and head.startswith(b"ply")):
        raise broken(path, "is no PLY file; export the points again")
    start = content.find(b"\n", len(head)) + 1
    order, count, kind = _layout(path, head.decode("ascii", "replace"))
    try:
        rows = _rows(content[start:] if start else body, order, count, kind)
    except ValueError as error:
        raise broken(path, f"does not hold the {count} points that it announces; export them again") from error
    points = torch.from_numpy(np.stack([rows[axis].astype(np.float64) for axis in "xyz"], 1))
    if not points.isfinite().all():
        raise broken(path, "holds points that are not finite; export them again")
    return points


def _layout(path: Path, head: str) -> tuple[str, int, np.dtype]:
    """Order of bytes, number of vertices, and what each of them holds."""
    import numpy as np

    order, element, count = "", "", 0
    fields: list[tuple[str, str]] = []
    try:
        for words in map(str.split, head.splitlines()):
            if words[:1] == ["format"]:
                order = words[1]
            elif words[:1] == ["element"]:
                if not element and words[1] != "vertex":
                    raise ValueError("vertices do not come first")
                element = words[1]
                count = int(words[2]) if element == "vertex" else count
            elif words[:1] == ["property"] and element == "vertex":
                fields.append((words[2], _ORDERS[order] + _TYPES[words[1]]))
        kind = np.dtype(fields)
        if count > MAX_POINTS:
            raise ValueError(f"it announces more than {MAX_POINTS:,} points")
        if count < 0 or not {"x", "y", "z"} <= set(kind.names or ()):
            raise ValueError("no x, y and z")
    except (ValueError, IndexError, KeyError) as error:
        raise broken(path, f"has a header that is not understood ({error}); export the points again") from error
    return order, count, kind


def _rows(body: bytes, order: str, count: int, kind: np.dtype) -> np.ndarray:
    import numpy as np

    if order != "ascii":
        return np.frombuffer(body, kind, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That there is nothing to read: it is said below.
        lines = io.StringIO(body.decode("ascii", "replace"))
        rows = np.loadtxt(lines, kind, comments=None, max_rows=count, ndmin=1)
    if len(rows) < count:
        raise ValueError("too few lines")
    return rows
