"""Whether COLMAP's binary files are as long as they say: its own reader would read on for hours, into all memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from fedfields.scenes.drafts import broken


def check_counts(folder: Path) -> None:
    """Walks through the files of a binary model, element by element.

    Raises:
        UserError: a file ends before what it announces.
    """
    for name, walk in _WALKS.items():
        path = folder / f"{name}.bin"
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
            (count,) = struct.unpack_from("<Q", content)
            at = 8
            for _ in range(count):
                at = walk(content, at)
                if at > len(content):
                    raise ValueError("too short")
        except OSError as error:
            raise broken(path, f"cannot be read ({error.strerror}); check its permissions") from error
        except (struct.error, ValueError) as error:
            raise broken(path, "is damaged: it ends before what it announces; copy it or make it again") from error


def _image(content: bytes, at: int) -> int:
    """Id, pose, camera; a name that ends with a null byte; a number of places in the picture, 24 bytes each."""
    at = content.index(0, at + 64) + 1
    return at + 8 + 24 * struct.unpack_from("<Q", content, at)[0]


def _point(content: bytes, at: int) -> int:
    """Id, place, colour, error; a number of places that show it, 8 bytes each."""
    return at + 51 + 8 * struct.unpack_from("<Q", content, at + 43)[0]


def _frame(content: bytes, at: int) -> int:
    """Id, rig, pose; a number of images, 16 bytes each."""
    return at + 68 + 16 * struct.unpack_from("<I", content, at + 64)[0]


def _rig(content: bytes, at: int) -> int:
    """Id; a number of sensors, the first of 8 bytes, the others of 9 and, where they have one, a pose."""
    (sensors,) = struct.unpack_from("<I", content, at + 4)
    at += 8 + 8 * bool(sensors)
    for _ in range(sensors - 1):
        at += 9 + 56 * bool(struct.unpack_from("<B", content, at + 8)[0])
    return at


_WALKS: dict[str, Callable[[bytes, int], int]] = {"images": _image, "points3D": _point, "frames": _frame, "rigs": _rig}
