"""What the readers of posed photographs share: finding pictures, checking cameras, saying what is missing."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera, Model
from fedfields.scenes.images import IMAGE_SUFFIXES, printable
from fedfields.scenes.posed import AS_POSED, Split

if TYPE_CHECKING:
    from torch import Tensor

_NAMED = 8
"""So many names are listed in one line; the others are counted."""


_LONGEST = 1_000_000
"""Pixels along an edge of a camera, at most."""


class Draft(NamedTuple):
    """A view as a file describes it; the split may be open yet."""

    name: str
    file: Path
    camera: Camera
    pose: Tensor
    split: Split | None = None
    mask: Path | None = None
    circle: float | None = None


class Drafts(NamedTuple):
    """What a reader found. ``missing`` are the names of pictures that do not exist; the rest is as in `Capture`."""

    drafts: list[Draft]
    missing: list[str]
    near: float | None = None
    far: float | None = None
    points: Tensor | None = None
    background: Literal["white", "none"] = "none"
    problems: tuple[str, ...] = ()
    applied: tuple[float, ...] = AS_POSED


@dataclass(frozen=True)
class Finder:
    """Finds pictures under the names that other programs gave them, on other machines.

    A name is looked up in each of ``bases``; then without its leading folders, in the first. The suffix may be
    missing or in another case.
    """

    bases: tuple[Path, ...]
    _listings: dict[Path, dict[str, str]] = field(default_factory=dict, repr=False)

    def find(self, name: str) -> Path | None:
        """The file, or None."""
        path = Path(name.replace("\\", "/"))
        places = [base / path for base in self.bases]  # An absolute path stays as it is.
        places += [self.bases[0] / Path(*path.parts[start:]) for start in range(1, len(path.parts))]
        return next((found for place in places if (found := self._match(place))), None)

    def _match(self, place: Path) -> Path | None:
        names = self._listing(place.parent)
        if place.suffix.lower() in IMAGE_SUFFIXES:
            wanted = [place.name, _small(place.name)]
        else:
            wanted = [place.name] + [place.name + suffix for suffix in (".png", *sorted(IMAGE_SUFFIXES))]
        return next((place.parent / names[name] for name in wanted if name in names), None)

    def _listing(self, folder: Path) -> dict[str, str]:
        """The files of a folder, by their name and by that with a small suffix."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    files = sorted(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # ValueError: a null byte in the name.
                files = []
            self._listings[folder] = {_small(file): file for file in files} | {file: file for file in files}
        return self._listings[folder]


def make_camera(where: str, model: Model, size: tuple[int, int], focal: tuple[float, float], **others) -> Camera:
    """A `Camera`, or one line about ``where``.

    Raises:
        UserError: the camera is impossible, or its distortion cannot be undone up to the edge of the picture.
    """
    if max(size) > _LONGEST:
        raise broken(where, f"a camera of {size[0]} x {size[1]} pixels; no picture is so large, correct its size")
    try:
        camera = Camera(model, *size, *focal, **others)
    except ValueError as error:
        raise broken(where, str(error)) from error
    if not _reaches_edges(camera):
        found = "the distortion cannot be undone at the edge of the picture"
        raise broken(where, f"{found}; check its coefficients, or undistort the pictures")
    return camera


@functools.lru_cache(maxsize=4096)
def _reaches_edges(camera: Camera) -> bool:
    rows, columns = (torch.linspace(0, size - 1, 5).double() for size in (camera.height, camera.width))
    pixels = torch.cartesian_prod(rows, columns)
    away = camera.project(camera.directions(pixels)) - pixels.flip(1) - 0.5
    return bool((away.abs() < 0.01).all())


def broken(where: str | Path, found: str) -> UserError:
    """The one line for something wrong in a file; ``found`` says what to do as well."""
    return UserError(printable(f"{where}: {' '.join(found.split())}"))


def listed(names: list[str]) -> str:
    """The names, or the first of many and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return printable(", ".join(names[:_NAMED]) + more)


def _small(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()
