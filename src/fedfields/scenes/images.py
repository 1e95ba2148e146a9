"""Pictures read from files that nobody has vetted: upright, RGB, in [0, 1], or refused in one line."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fedfields.errors import UserError
from fedfields.lazy import torch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".heic", ".heif", ".hif", ".tif", ".tiff", ".bmp"}
)
"""Suffixes of pictures, in lower case."""

MAX_PIXELS = 100_000_000
"""Pictures and frames with more pixels are refused before decoding: a file of 50 kB can announce billions."""

FORMATS = ("PNG", "JPEG", "WEBP", "HEIF", "TIFF", "BMP")
"""What Pillow calls the formats that are read."""


def load_image(path: Path, size: int | None = 64, crop: bool = True) -> Tensor:
    """Reads a picture, turned upright as its EXIF orientation says, transparency on white.

    Args:
        path: a PNG, JPEG, WebP, HEIC, TIFF or BMP file; its content decides, not its suffix.
        size: length of the longer side after resizing; None or 0 keeps the picture as it is.
        crop: whether to cut out the central square first.

    Returns:
        ``[H, W, 3]``, float32 in [0, 1].

    Raises:
        UserError: the file is missing, unreadable, damaged, not a picture, or above `MAX_PIXELS`.
    """
    from PIL import ImageOps

    with reading(path) as file, open_picture(path, file, FORMATS) as image:
        return prepared(ImageOps.exif_transpose(image), size, crop)


def prepared(image: Image.Image, size: int | None, crop: bool) -> Tensor:
    """``[H, W, 3]`` in [0, 1]: RGB on white, the central square if ``crop``, the longer side ``size``."""
    return to_values(fit(to_rgb(image), size, crop))


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file; any failure in the block becomes a `UserError` of one line, warnings are silenced."""
    try:
        if not path.is_file():  # Opening a named pipe would wait for ever.
            found = "is not a regular file" if path.exists() else "does not exist"
            raise unusable(path, found, "check the path")
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            if os.fstat(file.fileno()).st_size == 0:
                raise unusable(path, "is empty", "copy it again or remove it")
            yield file
    except UserError:
        raise
    except PermissionError as error:
        raise unusable(path, "cannot be read (permission denied)", "change its permissions") from error
    except Exception as error:  # Decoders meeting bad bytes raise nearly everything.
        found = f"cannot be decoded ({_reason(error)})"
        raise unusable(path, found, "copy it again, convert it or remove it") from error


@contextmanager
def open_picture(path: Path, file: BinaryIO, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Opens, without decoding it, a picture in one of Pillow's ``formats``; refuses one above `MAX_PIXELS`."""
    from PIL import Image

    _set_up_pillow()
    try:
        image = Image.open(file, formats=formats)
    except Image.UnidentifiedImageError as error:
        found = f"holds no picture that can be read ({', '.join(formats)})"
        raise unusable(path, found, "convert it or remove it") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    with image:
        check_pixels(path, image.width * image.height)
        yield image


def check_pixels(path: Path, count: int) -> None:
    """Refuses a picture or a frame whose header announces more than `MAX_PIXELS`."""
    if count > MAX_PIXELS:
        raise _too_large(path)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, transparency on white; deep grey in mode F with values in [0, 255]."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int | None, crop: bool) -> Image.Image:
    """Cuts out the central square if ``crop``, then brings the longer side to ``size`` (None or 0: as it is)."""
    from PIL.Image import Resampling

    width, height = image.size
    if crop:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    else:
        box = (0, 0, width, height)
    if not size:
        return image.crop(box)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Means over areas cannot alias; when enlarging they would leave steps.
    return image.resize(target, Resampling.BOX if scale <= 1 else Resampling.BILINEAR, box=box)


def to_values(image: Image.Image) -> Tensor:
    """``[H, W, 3]`` in [0, 1] from what `to_rgb` returns."""
    import numpy as np

    values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).clamp_(0, 1)
    return values if values.ndim == 3 else values[..., None].repeat(1, 1, 3)


def unusable(path: Path, found: str, remedy: str) -> UserError:
    """The one line for a file that cannot be used."""
    return UserError(printable(f"{path}: {' '.join(found.split())}; {remedy}"))


def printable(text: str) -> str:
    """``text`` with escapes for line breaks, control codes and undecodable bytes, which file names may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@functools.cache
def _set_up_pillow() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    # Pillow logs what it then raises; without a handler Python would print that beside our one line.
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _too_large(path: Path) -> UserError:
    found = f"has more than {MAX_PIXELS // 10**6} megapixels"
    return unusable(path, found, "make it smaller or remove it")


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's modes I and I;16), or float grey in [0, 1], as mode F with values in [0, 255]."""
    import numpy as np
    from PIL import Image

    white = 1 if image.mode == "F" else 65535
    values = np.asarray(image).astype(np.float32)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # Also true of NaN.
        raise ValueError(f"grey values from {low:g} to {high:g} where 0 to {white} were expected")
    return Image.fromarray(values * np.float32(255 / white))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
