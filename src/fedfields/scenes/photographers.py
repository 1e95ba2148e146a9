"""Who took a photograph, as far as its file says: so that a collection of many people's becomes as many owners."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fedfields.errors import UserError
from fedfields.scenes.images import FORMATS, open_picture, reading
from fedfields.scenes.posed import View

T = TypeVar("T")

_DETAILS = 0x8769
"""The directory of EXIF that says how a photograph was taken."""

_ARTIST, _OWNER = 0x013B, 0xA430
_DEVICE = (0x010F, 0x0110, 0xA431)
"""EXIF tags: who took it, whose camera it was; make, model and serial number of the camera."""

_ACCOUNT = re.compile(r"(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])_)(\d{8}(?:@N\d\d)?)_\d{7,}")
"""How collections from Flickr (YFCC100M, Photo Tourism) name files: eight digits of the account, and the photograph's
number. Eight digits that are a date are a camera's way of counting."""


def photographer_of(view: View) -> str:
    """Who took it: by EXIF's artist or owner, else the account in its name, else the camera; else nobody else's.

    Two owners of one model of camera, of which EXIF has no serial number, are taken for one.
    """
    exif = _exif(view.file)
    for kind, tags in (("artist", (_ARTIST,)), ("owner", (_OWNER,))):
        if said := _said(exif, tags):
            return f"{kind} {said}"
    if account := _ACCOUNT.fullmatch(Path(view.name).stem):
        return f"account {account[1]}"
    camera = _said(exif, _DEVICE)
    return f"camera {camera}" if camera else f"photograph {view.name}"


def gathered(items: Sequence[T], owners: Sequence[str], most: int) -> list[list[T]]:
    """Items by owner, in the order of their first ones; of more than ``most`` owners, several are one.

    Those with most items come first, each to whom has least so far: so that nobody has much more than others.
    """
    groups: dict[str, list[T]] = {}
    for item, owner in zip(items, owners, strict=True):
        groups.setdefault(owner, []).append(item)
    if len(groups) <= most:
        return list(groups.values())
    shares: list[list[T]] = [[] for _ in range(most)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return shares


def _exif(path: Path) -> Mapping[int, object]:
    """Its EXIF tags; damaged or unreadable ones are as good as none, and loading the picture tells of the rest."""
    try:
        with reading(path) as file, open_picture(path, file, FORMATS) as image:
            exif = image.getexif()
            return {**exif, **exif.get_ifd(_DETAILS)}
    except UserError:
        return {}


def _said(exif: Mapping[int, object], tags: Sequence[int]) -> str:
    """The values of some tags in one line; empty if it has none."""
    words = " ".join(str(exif[tag]) for tag in tags if tag in exif)
    return " ".join(words.replace("\0", " ").split())
