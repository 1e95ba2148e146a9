"""Poses from LLFF's ``poses_bounds.npy``: 3 x 5 numbers for each picture, and how near and far it sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.rendering.cameras import check_pose, from_llff
from fedfields.scenes.drafts import Draft, Drafts, broken, make_camera
from fedfields.scenes.images import IMAGE_SUFFIXES, printable

if TYPE_CHECKING:
    from torch import Tensor

FOLDERS = ("images", "images_2", "images_4", "images_8")
"""Where the pictures may be, from the largest on."""


def read_llff(folder: Path) -> Drafts:
    """Views of ``poses_bounds.npy`` for the pictures in ``images``, in the order of their names.

    Raises:
        UserError: the file is damaged, or there are not as many pictures as poses, or a pose or focal length is
            impossible.
    """
    path = folder / "poses_bounds.npy"
    rows = _read_rows(path)
    drafts = []
    for file, row in zip(_pictures(folder, len(rows)), rows, strict=True):
        where = printable(f"{path}, row of {file.name}")
        matrix = row[:15].view(3, 5)
        pose = check_pose(from_llff(matrix[:, :4]), where)
        height, width, focal = matrix[:, 4].tolist()
        size = (_whole(width, where), _whole(height, where))
        camera = make_camera(where, "pinhole", size, (focal, focal), cx=size[0] / 2, cy=size[1] / 2)
        drafts.append(Draft(file.name, file, camera, pose))
    near, far = rows[:, 15].min().item(), rows[:, 16].max().item()
    if not 0 <= near < far < float("inf"):
        raise broken(path, f"near is {near:g} and far {far:g}; they must satisfy 0 <= near < far")
    return Drafts(drafts, [], near, far)


def _read_rows(path: Path) -> Tensor:
    import numpy as np

    try:
        rows = np.load(path, allow_pickle=False)
        if getattr(rows, "dtype", None) is None or rows.dtype.kind not in "fiu":
            raise ValueError("it holds something else")
        values = torch.from_numpy(np.asarray(rows, dtype=np.float64))
    except Exception as error:  # The reader of headers raises nearly everything.
        raise broken(path, f"is no array of numbers ({error}); make it again") from error
    if values.ndim != 2 or values.shape[1] != 17 or not len(values):
        raise broken(path, f"has shape {list(values.shape)} where N x 17 was expected; make it again")
    return values


def _pictures(folder: Path, count: int) -> list[Path]:
    """The pictures of the first folder with ``count`` of them."""
    found = []
    for name in FOLDERS:
        files = folder.joinpath(name).iterdir() if folder.joinpath(name).is_dir() else ()
        pictures = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
        if len(pictures) == count:
            return pictures
        found.append(f"{len(pictures)} in {name}")
    remedy = "every picture needs a pose: remove those that were not registered"
    raise broken(folder, f"poses_bounds.npy has {count} poses but the pictures are {', '.join(found)}; {remedy}")


def _whole(value: float, where: str) -> int:
    if not (value >= 1 and value.is_integer()):
        raise broken(where, f"the picture's size is {value:g}; it must be a whole number of pixels")
    return int(value)
