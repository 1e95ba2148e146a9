"""Poses from JSON: the transforms of Blender (NeRF), nerfstudio and instant-ngp."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedfields.lazy import torch
from fedfields.rendering.cameras import COEFFICIENTS, Camera, Model, check_pose
from fedfields.scenes.drafts import Draft, Drafts, Finder, broken, listed, make_camera
from fedfields.scenes.images import printable
from fedfields.scenes.ply import read_points
from fedfields.scenes.posed import AS_POSED, Split, read_header
from fedfields.store import MAX_TEXT, parse_json, read_file

if TYPE_CHECKING:
    from torch import Tensor

_SPLITS: tuple[Split, ...] = ("train", "val", "test")

MODELS: dict[str, Model] = {
    "SIMPLE_PINHOLE": "pinhole",
    "PINHOLE": "pinhole",
    "SIMPLE_RADIAL": "opencv",
    "RADIAL": "opencv",
    "OPENCV": "opencv",
    "OPENCV_FISHEYE": "fisheye",
}
"""Values of ``camera_model`` that are understood."""

_ORDER = ("k1", "k2", "k3", "k4", "p1", "p2")
"""Order of nerfstudio's ``distortion_params``."""


def blender_files(folder: Path) -> dict[Split, Path]:
    """The ``transforms_{train,val,test}.json`` that exist."""
    files: dict[Split, Path] = {split: folder / f"transforms_{split}.json" for split in _SPLITS}
    return {split: file for split, file in files.items() if file.is_file()}


def read_blender(folder: Path) -> Drafts:
    """Views of ``transforms_{train,val,test}.json``, with transparent pictures on white.

    Raises:
        UserError: see `read_transforms`.
    """
    drafts, missing = [], []
    problems: dict[str, None] = {}
    applied: dict[tuple[float, ...], Path] = {}
    for split, file in blender_files(folder).items():
        found = read_transforms(file)
        drafts += [draft._replace(split=split) for draft in found.drafts]
        missing += found.missing
        problems |= dict.fromkeys(found.problems)
        applied.setdefault(found.applied, file)
    if len(applied) > 1:
        first, other = (file.name for file in list(applied.values())[:2])
        raise broken(folder, f"{first} and {other} differ in applied_transform or applied_scale; make them alike")
    return Drafts(drafts, missing, background="white", problems=tuple(problems), applied=next(iter(applied)))


def read_transforms(path: Path) -> Drafts:
    """Views of one JSON file, whose poses are camera-to-world with OpenGL axes.

    Intrinsics are global or of a frame. Without a size, that of the picture is taken; of the first one, where the
    intrinsics are global. ``orientation_override`` asks nerfstudio how to turn the poses: here nobody turns them.

    Raises:
        UserError: the file is not JSON, has no frames, or a frame lacks something or has an impossible camera or
            pose.
    """
    meta = _read_json(path)
    finder = Finder((path.parent, path.parent.parent))
    splits = _splits(meta, path)
    drafts, missing, unlisted = [], [], []
    for number, frame in enumerate(_frames(meta, path)):
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise broken(path, f"frame {number} has no file_path; name its picture")
        if splits and _plain(name) not in splits:
            unlisted.append(name)
            continue
        values = _same_size(drafts, frame) | meta | frame
        where = printable(f"{path}, frame {name}")
        if values.get("camera_model") != meta.get("camera_model"):
            found = f"has a camera_model of its own, {values['camera_model']!r:.40}, which other programs do not read"
            raise broken(where, f"{found}; name one model for all frames, outside of them")
        draft = _draft(name, values, finder, where)
        if isinstance(draft, str):
            missing.append(draft)
        else:
            drafts.append(draft._replace(split=splits.get(_plain(name))))
    near, far = _bounds(meta, path)
    problems = (f"frames in no split of {path.name}, left out: {listed(unlisted)}",) if unlisted else ()
    white = drafts and read_header(drafts[0].file).transparent
    points, lost = _points(meta, path)
    problems += lost + _depth_maps(meta, path)
    return Drafts(drafts, missing, near, far, points, "white" if white else "none", problems, _applied(meta, path))


def transforms_of(found: Drafts, folder: str, points: str = "") -> dict[str, Any]:
    """What `read_transforms` reads as ``found``, without its problems, after the convention of nerfstudio.

    Args:
        found: the views; every frame gets intrinsics of its own.
        folder: where the pictures are, relative to the file.
        points: the PLY file with the points, likewise; empty if there is none.
    """
    fisheye = {draft.camera.model == "fisheye" for draft in found.drafts}
    meta: dict[str, Any] = {"camera_model": "OPENCV_FISHEYE" if fisheye == {True} else "OPENCV"}
    if found.near is not None and found.far is not None:
        meta |= {"near": found.near, "far": found.far}
    if points:
        meta["ply_file_path"] = points
    return meta | {"frames": [_frame_of(draft, folder) for draft in found.drafts]}


def _frame_of(draft: Draft, folder: str) -> dict[str, Any]:
    camera = draft.camera
    values = {"w": camera.width, "h": camera.height, "fl_x": camera.fx, "fl_y": camera.fy}
    values |= {"cx": camera.cx, "cy": camera.cy} | dict(
        zip(COEFFICIENTS[camera.model], camera.distortion, strict=False)
    )
    matrix = [*draft.pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
    return {"file_path": f"{folder}/{draft.name}", **values, "transform_matrix": matrix}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(read_file(path, MAX_TEXT))
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise broken(path, f"is not JSON ({error}); save it again") from error
    if not isinstance(meta, dict):
        raise broken(path, f"holds a {type(meta).__name__} where an object with frames was expected")
    return meta


def _frames(meta: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise broken(path, "has no frames; it should hold a list of them, each with file_path and transform_matrix")
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise broken(path, f"frame {number} is a {type(frame).__name__} and not an object; correct it")
    return frames


def _splits(meta: dict[str, Any], path: Path) -> dict[str, Split]:
    """The split of each file that ``train_filenames`` and the others list; empty if there are none."""
    splits: dict[str, Split] = {}
    for split in _SPLITS:
        names = meta.get(f"{split}_filenames") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise broken(path, f"{split}_filenames is not a list of names; correct it")
        for name in map(_plain, names):
            if splits.setdefault(name, split) != split:
                raise broken(path, f"{name} is listed as {splits[name]} and as {split}; choose one")
    return splits


def _same_size(drafts: list[Draft], frame: dict[str, Any]) -> dict[str, Any]:
    """The size of the first camera, for frames without intrinsics of their own; opening every picture takes long."""
    if not drafts or frame.keys() & {"fl_x", "camera_angle_x"}:
        return {}
    return {"w": drafts[0].camera.width, "h": drafts[0].camera.height}


def _draft(name: str, values: dict[str, Any], finder: Finder, where: str) -> Draft | str:
    """The view of a frame, or the name of what is missing."""
    pose = check_pose(_matrix(values.get("transform_matrix"), where), where)
    file = finder.find(name)
    if file is None:
        return name
    mask_name = values.get("mask_path")
    mask = finder.find(str(mask_name)) if mask_name else None
    if mask_name and mask is None:
        return str(mask_name)
    return Draft(name, file, _camera(values, file, where), pose, mask=mask, circle=_circle(values, where))


def _matrix(values: Any, where: str) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise broken(where, "transform_matrix is missing or not 4 x 4 numbers; correct it") from error


def _camera(values: dict[str, Any], file: Path, where: str) -> Camera:
    name = str(values.get("camera_model") or ("OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV"))
    if name not in MODELS:
        raise broken(where, f"camera_model {name} is not supported; use one of {', '.join(MODELS)}")
    model = MODELS[name]
    size = _size(values, file, where)
    focal = _focal(values, size, where)
    distortion = _distortion(values, model, where)
    if model == "opencv" and not any(distortion):
        model, distortion = cast(Model, "pinhole"), ()
    cx, cy = _number(values, "cx", where, size[0] / 2), _number(values, "cy", where, size[1] / 2)
    return make_camera(where, model, size, focal, cx=cx, cy=cy, distortion=distortion)


def _size(values: dict[str, Any], file: Path, where: str) -> tuple[int, int]:
    if "w" not in values and "h" not in values:
        header = read_header(file)
        return header.width, header.height
    size = _number(values, "w", where), _number(values, "h", where)
    if not all(value.is_integer() for value in size):
        raise broken(where, f"w and h are {size[0]:g} and {size[1]:g}; they must be whole numbers of pixels")
    return int(size[0]), int(size[1])


def _focal(values: dict[str, Any], size: tuple[int, int], where: str) -> tuple[float, float]:
    """The focal lengths in pixels, from themselves or from the fields of view."""
    if "fl_x" in values:
        across = _number(values, "fl_x", where)
    elif "camera_angle_x" in values:
        across = _from_angle(values, "camera_angle_x", size[0], where)
    else:
        raise broken(where, "has no focal length; give fl_x or camera_angle_x, for all frames or for each")
    if "fl_y" in values:
        return across, _number(values, "fl_y", where)
    if "fl_x" not in values and "camera_angle_y" in values:
        return across, _from_angle(values, "camera_angle_y", size[1], where)
    return across, across


def _from_angle(values: dict[str, Any], key: str, size: int, where: str) -> float:
    angle = _number(values, key, where)
    if not 0 < angle < math.pi:
        raise broken(where, f"{key} is {angle:g}; it must lie between 0 and pi, in radians")
    return 0.5 * size / math.tan(0.5 * angle)


def _distortion(values: dict[str, Any], model: Model, where: str) -> tuple[float, ...]:
    given = values.get("distortion_params")
    if given is not None:
        names = COEFFICIENTS["fisheye"] if isinstance(given, list) and len(given) == 4 else _ORDER
        if not isinstance(given, list) or len(given) != len(names):
            raise broken(where, f"distortion_params is not a list of 6 numbers ({' '.join(_ORDER)}); correct it")
        values = values | dict(zip(names, given, strict=True))
    if model != "fisheye" and _number(values, "k4", where, 0.0):
        raise broken(where, "k4 is not 0, which only fisheye cameras may have; undistort the pictures")
    found = tuple(_number(values, key, where, 0.0) for key in COEFFICIENTS["opencv" if model != "fisheye" else model])
    if model == "pinhole" and any(found):
        raise broken(where, "has distortion though its camera_model is a pinhole; name it OPENCV")
    return found if model != "pinhole" else ()


def _bounds(meta: dict[str, Any], path: Path) -> tuple[float | None, float | None]:
    """The nearest near and the farthest far, where the file or each of its frames gives them."""
    every = [meta | frame for frame in _frames(meta, path)]
    if not all("near" in values and "far" in values for values in every):
        return None, None
    near = min(_number(values, "near", str(path)) for values in every)
    far = max(_number(values, "far", str(path)) for values in every)
    if not 0 <= near < far < math.inf:
        raise broken(path, f"near is {near:g} and far {far:g}; they must satisfy 0 <= near < far")
    return near, far


def _circle(values: dict[str, Any], where: str) -> float | None:
    """``fisheye_crop_radius``, in pixels; None if there is none."""
    if values.get("fisheye_crop_radius") is None:
        return None
    radius = _number(values, "fisheye_crop_radius", where)
    if not 0 < radius < math.inf:
        raise broken(where, f"fisheye_crop_radius is {radius:g}; it must be positive, in pixels")
    return radius


def _depth_maps(meta: dict[str, Any], path: Path) -> tuple[str, ...]:
    """A line about depth maps, if there are any."""
    count = sum("depth_file_path" in frame for frame in _frames(meta, path))
    return (f"depth maps (depth_file_path), {count}: not used, fields are trained on colours alone",) if count else ()


def _applied(meta: dict[str, Any], path: Path) -> tuple[float, ...]:
    """What was done to the poses since they were estimated: ``applied_transform``, then ``applied_scale``."""
    given = meta.get("applied_transform")
    rows = torch.tensor(AS_POSED, dtype=torch.float64).view(3, 4)
    if given is not None:
        try:
            rows = torch.tensor(given, dtype=torch.float64)[:3]
        except (TypeError, ValueError, RuntimeError, OverflowError, IndexError):
            rows = torch.zeros(0)
    scale = _number(meta, "applied_scale", str(path), 1.0)
    if rows.shape != (3, 4) or not rows.isfinite().all() or not 0 < scale < math.inf:
        raise broken(path, "applied_transform is not 3 x 4 numbers, or applied_scale not positive; correct them")
    return tuple((scale * rows).flatten().tolist())


def _points(meta: dict[str, Any], path: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """The points that ``ply_file_path`` names; or a line about them if there is no such file."""
    name = meta.get("ply_file_path")
    if not isinstance(name, str) or not name:
        return None, ()
    file = path.parent / name
    if not file.is_file():
        return None, (printable(f"missing points: {name}, which {path.name} names"),)
    points = read_points(file)
    return points if len(points) else None, ()


def _number(values: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        found = "is missing" if value is None else f"is {value!r:.40} and not a number"
        raise broken(where, f"{key} {found}; give it for all frames or for each")
    try:
        return float(value)
    except OverflowError as error:
        raise broken(where, f"{key} is an integer of {len(str(value))} digits; correct it") from error


def _plain(name: str) -> str:
    """The name without a leading ./ and with forward slashes."""
    return Path(name.replace("\\", "/")).as_posix()
