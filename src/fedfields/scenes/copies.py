"""Upright copies of somebody's own photographs: smaller, and without anything that says where or when they were taken.

What the camera wrote into a photograph is read once, for its focal length, and not copied.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedfields.scenes.images import FORMATS, fit, open_picture, reading, to_rgb
from fedfields.scenes.posed import same_shape

if TYPE_CHECKING:
    from PIL import Image

_DIAGONAL = math.hypot(36, 24)
"""Diagonal in mm of 35 mm film, which equivalent focal lengths refer to."""

_MAKE, _MODEL, _DETAILS = 0x010F, 0x0110, 0x8769
_FOCAL, _FOCAL_35 = 0x920A, 0xA405
_WIDTH, _HEIGHT = 0xA002, 0xA003
_DENSITY, _DENSITY_UNIT = 0xA20E, 0xA210
"""EXIF tags."""

_UNITS = {2: 25.4, 3: 10.0, 4: 1.0}
"""Millimetres in the units of the density of pixels on the sensor."""

_PLAUSIBLE = (0.1, 10.0)
"""Focal lengths, relative to the diagonal, that are believed."""


class Copy(NamedTuple):
    """A photograph as it is given to structure from motion.

    Attributes:
        name: file name of the copy.
        width: pixels in a row of the copy.
        height: number of rows of the copy.
        focal: focal length in pixels of the copy, as EXIF says; None if it does not.
        device: names the camera and its zoom; empty if EXIF does not.
    """

    name: str
    width: int
    height: int
    focal: float | None
    device: str


def copy_photo(source: Path, target: Path, size: int) -> Copy:
    """Writes an upright JPEG with nothing but its pixels, at most ``size`` pixels on the longer side.

    Raises:
        UserError: the photograph cannot be read; see `load_image`.
    """
    from PIL import ImageOps

    with reading(source) as file, open_picture(source, file, FORMATS) as image:
        relative, device = _lens(image)
        upright = to_rgb(ImageOps.exif_transpose(image))
        picture = _bare(fit(upright, min(size, max(upright.size)), crop=False))
    picture.save(target, "JPEG", quality=95, subsampling=0)
    focal = relative * math.hypot(*picture.size) if relative else None
    return Copy(target.name, picture.width, picture.height, focal, device)


def copy_names(sources: list[Path], numbered: bool) -> list[str]:
    """A plain ``.jpg`` name for each photograph, all different in any case; ``numbered`` keeps their order by name."""
    names: list[str] = []
    taken: set[str] = set()
    for index, source in enumerate(sources):
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", source.stem).lstrip(".-") or "photo"
        stem = f"{index:05d}_{stem}" if numbered else stem
        name, again = stem, 1
        while name.lower() in taken:
            again += 1
            name = f"{stem}-{again}"
        taken.add(name.lower())
        names.append(f"{name}.jpg")
    return names


def _bare(image: Image.Image) -> Image.Image:
    """The pixels alone: Pillow would copy comments and XMP, which may hold a place, into the new file."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    return Image.fromarray(values.round().astype(np.uint8) if values.dtype != np.uint8 else values).convert("RGB")


def _lens(image: Image.Image) -> tuple[float | None, str]:
    """Focal length relative to the diagonal of the picture, and the name of camera and zoom, from EXIF."""
    try:
        exif = image.getexif()
        details = exif.get_ifd(_DETAILS)
    except Exception:  # Damaged EXIF is as good as none.
        return None, ""
    relative = _relative_focal(details, image.size)
    maker = " ".join(str(exif[tag]) for tag in (_MAKE, _MODEL) if tag in exif)
    return relative, f"{maker} at {relative:.4f}" if maker and relative else ""


def _relative_focal(details: Any, size: tuple[int, int]) -> float | None:
    width, height = (_number(details, tag) for tag in (_WIDTH, _HEIGHT))
    told = (round(width), round(height))
    if width and height and not (same_shape(told, size) or same_shape(told, (size[1], size[0]))):
        return None  # It was cropped since; turned it may be, as HEIC is.
    focal = _number(details, _FOCAL_35) / _DIAGONAL
    density = _number(details, _DENSITY)
    if not focal and density and width and height:
        millimetres = _UNITS.get(round(_number(details, _DENSITY_UNIT)), 25.4)
        focal = _number(details, _FOCAL) * density / millimetres / math.hypot(width, height)
    return focal if _PLAUSIBLE[0] <= focal <= _PLAUSIBLE[1] else None


def _number(details: Any, tag: int) -> float:
    """The value of a tag, 0 if it is missing or no positive number."""
    try:
        value = float(details.get(tag, 0))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return value if 0 < value < math.inf else 0.0
