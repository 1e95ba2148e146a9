"""The default data: photographs that come with scikit-image, so that a first run needs no files and no network.

They are free to use; ``skimage/data/README.txt`` and the documentation of `skimage.data` say who took them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fedfields.errors import UserError

PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "motorcycle_left.png",
    "gravel.png",
    "rocket.jpg",
    "moon.png",
    "retina.jpg",
    "clock_motion.png",
    "hubble_deep_field.jpg",
    "brick.png",
    "ihc.png",
    "cell.png",
    "coffee.png",
    "grass.png",
    "chelsea.png",
    "coins.png",
)
"""Colour and grey by turns; the last quarter, unseen by default, holds two natural pictures in colour."""


def photographs() -> tuple[Path, ...]:
    """The files of `PHOTOGRAPHS`, in that order.

    Raises:
        UserError: scikit-image, or one of the photographs, is not installed. Nothing is ever downloaded.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError("scikit-image is not installed; install it, or give a folder with --data.path")
    folder = Path(package.origin).parent / "data"
    paths = tuple(folder / name for name in PHOTOGRAPHS)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist; reinstall scikit-image, or give a folder with --data.path")
    return paths
