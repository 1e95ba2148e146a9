"""Captures in the layout of Mega-NeRF (Turki et al., CVPR 2022) and its Mill 19 data.

``{train,val}/rgbs`` hold undistorted pictures, ``{train,val}/metadata`` a ``.pt`` file of the same name for each, and
``coordinates.pt`` says how positions were normalised. Camera axes are those of OpenGL, world axes down, right, back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera, check_pose
from fedfields.scenes.drafts import Draft, Drafts, Finder, broken, make_camera
from fedfields.scenes.images import printable
from fedfields.scenes.posed import Split
from fedfields.store import read_pt

if TYPE_CHECKING:
    from torch import Tensor

_SPLITS: dict[str, Split] = {"train": "train", "val": "test"}
"""Mega-NeRF reports quality on ``val``."""


def is_meganerf(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / "coordinates.pt").is_file() and (folder / "train" / "metadata").is_dir()


def read_meganerf(folder: Path) -> Drafts:
    """Views of ``train`` and, for testing, of ``val``; positions are brought back to those before normalisation.

    The files are read as tensors only (``weights_only``); whatever else a ``.pt`` file may hold is refused.

    Raises:
        UserError: a file is damaged or lacks something, or has an impossible camera or pose.
    """
    origin, scale = _coordinates(folder / "coordinates.pt")
    drafts, missing = [], []
    for name, split in _SPLITS.items():
        finder = Finder((folder / name / "rgbs",))
        for path in sorted((folder / name / "metadata").glob("*.pt")):
            file = finder.find(path.stem)
            if file is None:
                missing.append(f"{name}/rgbs/{path.stem}")
                continue
            where, values = printable(str(path)), _load(path)
            pose = check_pose(_numbers(values, "c2w", (3, 4), where), where)
            pose = torch.cat([pose[:, :3], (pose[:, 3] * scale + origin)[:, None]], 1)
            drafts.append(Draft(f"{name}/rgbs/{file.name}", file, _camera(values, where), pose, split))
    return Drafts(drafts, missing)


def _coordinates(path: Path) -> tuple[Tensor, Tensor]:
    """What to add to positions, and what to multiply them with before."""
    where, values = printable(str(path)), _load(path)
    origin = _numbers(values, "origin_drb", (3,), where)
    scale = _numbers(values, "pose_scale_factor", (), where)
    if not (bool(origin.isfinite().all()) and 0 < float(scale) < float("inf")):
        raise broken(where, "origin_drb is not finite, or pose_scale_factor not positive; make it again")
    return origin, scale


def _camera(values: dict[str, Any], where: str) -> Camera:
    height, width = (float(_numbers(values, key, (), where)) for key in ("H", "W"))
    if not (width.is_integer() and height.is_integer()):
        raise broken(where, f"W and H are {width:g} and {height:g}; they must be whole numbers of pixels")
    fx, fy, cx, cy = _numbers(values, "intrinsics", (4,), where).tolist()
    return make_camera(where, "pinhole", (int(width), int(height)), (fx, fy), cx=cx, cy=cy)


def _load(path: Path) -> dict[str, Any]:
    try:
        values = read_pt(path)
    except ValueError as error:
        found = f"is no file of tensors that can be read safely ({error})"
        raise broken(path, f"{found}; make it again") from error
    if not isinstance(values, dict):
        raise broken(path, f"holds a {type(values).__name__} where names with tensors were expected; make it again")
    return values


def _numbers(values: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Tensor:
    try:
        given = values[key]
        few = not isinstance(given, torch.Tensor) or given.numel() <= 12  # A view may repeat one number for ever.
        found = torch.as_tensor(given, dtype=torch.float64) if few else given
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise broken(where, f"{key} is missing or no number; make it again") from error
    if found.shape != shape:
        raise broken(where, f"{key} has shape {list(found.shape)} where {list(shape)} was expected; make it again")
    return found
