"""Poses from a COLMAP sparse model, and the splits that Photo Tourism data add to one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.rendering.cameras import COEFFICIENTS, Camera, Model, check_pose, from_opencv, inverted
from fedfields.scenes.colmap_files import check_counts
from fedfields.scenes.drafts import Draft, Drafts, Finder, broken, listed, make_camera
from fedfields.scenes.images import IMAGE_SUFFIXES, printable
from fedfields.scenes.llff import FOLDERS
from fedfields.scenes.posed import Split
from fedfields.store import MAX_TEXT, read_file

if TYPE_CHECKING:
    from torch import Tensor

_PARENTS = ("dense/sparse", "undistorted/sparse", "sparse_undistorted", "sparse", "colmap/sparse", "")
"""Where models are, or folders 0, 1, ... with one each; undistorted ones come first."""

_PARAMETERS: dict[str, tuple[Model, str]] = {
    "SIMPLE_PINHOLE": ("pinhole", "f cx cy"),
    "PINHOLE": ("pinhole", "fx fy cx cy"),
    "SIMPLE_RADIAL": ("opencv", "f cx cy k1"),
    "RADIAL": ("opencv", "f cx cy k1 k2"),
    "OPENCV": ("opencv", "fx fy cx cy k1 k2 p1 p2"),
    "FULL_OPENCV": ("opencv", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", "f cx cy k1"),
    "RADIAL_FISHEYE": ("fisheye", "f cx cy k1 k2"),
    "OPENCV_FISHEYE": ("fisheye", "fx fy cx cy k1 k2 k3 k4"),
}
"""COLMAP's camera models that are understood, and the order of their parameters."""

_PERCENTILES = (0.1, 99.9)
"""Of the depths of points: what lies outside is taken for mistakes of the matching."""


def model_folders(folder: Path) -> list[Path]:
    """The folders with COLMAP models, in the first place that has any."""
    for parent in _PARENTS:
        place = folder / parent
        inside = sorted(path for path in place.iterdir() if path.name.isdecimal()) if place.is_dir() else []
        models = [path for path in (place, *inside) if _is_model(path)]
        if models:
            return models
    return []


def split_files(folder: Path) -> list[Path]:
    """The tab-separated lists of a Photo Tourism folder."""
    return sorted(folder.glob("*.tsv"))


def read_colmap(folder: Path) -> Drafts:
    """Views of the largest COLMAP model in a folder, sorted by name; near and far are those of its points.

    Raises:
        UserError: pycolmap is not installed, the model cannot be read or holds no image with a pose, a camera is of
            an unsupported model, or a split file is wrong.
    """
    folders = model_folders(folder)
    models = [(_read_model(path), path) for path in folders]
    model, path = max(models, key=lambda pair: (pair[0].num_reg_images(), pair[0].num_points3D()))
    images = _posed_images(model, path)
    around = [parent for parent in path.parents if parent == folder or folder in parent.parents] or [folder]
    finder, masks = Finder(_picture_folders(around)), Finder(tuple(parent / "masks" for parent in around))
    cameras: dict[int, Camera] = {}
    drafts, missing = [], []
    for image in images:
        file = finder.find(image.name)
        if file is None:
            missing.append(image.name)
            continue
        if image.camera_id not in cameras:
            cameras[image.camera_id] = camera_of(model.cameras[image.camera_id], path)
        mask = _mask(masks, image.name)
        drafts.append(Draft(image.name, file, cameras[image.camera_id], _pose(image, path), mask=mask))
    near, far = _bounds(model, images)
    problems = _other_models(folder, models, path) + _unplaced(drafts)
    found = Drafts(drafts, missing, near, far, _points(model), problems=problems)
    return _with_splits(found, split_files(folder))


def _is_model(path: Path) -> bool:
    names = ("cameras", "images", "points3D")
    return any(all((path / f"{name}.{suffix}").is_file() for name in names) for suffix in ("bin", "txt"))


def load_pycolmap(what: str) -> Any:
    """The module pycolmap, imported on first use.

    Raises:
        UserError: it is not installed; ``what`` needs it.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(f'{what} needs pycolmap; pip install "fedfields[photos]"') from error
    return pycolmap


def _read_model(path: Path) -> Any:
    check_counts(path)
    pycolmap = load_pycolmap("a COLMAP model")
    try:
        return pycolmap.Reconstruction(str(path))
    except Exception as error:  # pycolmap does not say which.
        raise broken(path, f"is no COLMAP model that can be read ({error}); make it again") from error


def _posed_images(model: Any, path: Path) -> list[Any]:
    """The images with a pose, by name; at least one."""
    try:
        images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
        for image in images:
            image.cam_from_world()
    except UnicodeDecodeError as error:
        raise broken(path, "holds a picture's name that is not UTF-8; rename the pictures and make it again") from error
    except Exception as error:  # A rig without the camera of an image, and the like; pycolmap does not say which.
        raise broken(path, f"is no COLMAP model that can be read ({error}); make it again") from error
    if not images:
        raise broken(path, "no image has a pose: COLMAP could not place any; take more pictures that overlap")
    return images


def _picture_folders(around: list[Path]) -> tuple[Path, ...]:
    """``images`` beside the model's parents, innermost first, and the folders above it."""
    return tuple(parent / name for parent in around for name in (*FOLDERS, "input")) + tuple(around)


def _mask(masks: Finder, name: str) -> Path | None:
    """The mask of a picture: ``a.jpg.png``, as COLMAP has it, or a picture of its own name."""
    return masks.find(f"{name}.png") or masks.find(Path(name).with_suffix("").as_posix())


def camera_of(camera: Any, path: Path) -> Camera:
    """A camera of COLMAP's as ours.

    Args:
        camera: pycolmap's camera.
        path: the model, for the message.

    Raises:
        UserError: its model is not supported, or its parameters are impossible.
    """
    name = camera.model.name
    where = f"{path}, camera {camera.camera_id}"
    if name not in _PARAMETERS:
        remedy = "undistort the pictures with colmap image_undistorter"
        raise broken(where, f"its model, {name}, is not supported; {remedy}, or use one of {', '.join(_PARAMETERS)}")
    model, order = _PARAMETERS[name]
    values = dict(zip(order.split(), map(float, camera.params), strict=True))
    if name == "FULL_OPENCV" and any(values[key] for key in ("k4", "k5", "k6")):
        raise broken(where, "FULL_OPENCV with k4, k5 or k6 is not supported; undistort the pictures")
    focal = (values.get("fx", values.get("f", 0.0)), values.get("fy", values.get("f", 0.0)))
    distortion = tuple(values.get(key, 0.0) for key in COEFFICIENTS[model])
    if model == "opencv" and not any(distortion):
        model, distortion = cast(Model, "pinhole"), ()
    size = (int(camera.width), int(camera.height))
    return make_camera(where, model, size, focal, cx=values["cx"], cy=values["cy"], distortion=distortion)


def _pose(image: Any, path: Path) -> Tensor:
    world_to_camera = torch.tensor(image.cam_from_world().matrix(), dtype=torch.float64)
    return check_pose(from_opencv(inverted(world_to_camera)), printable(f"{path}, image {image.name}"))


def _bounds(model: Any, images: list[Any]) -> tuple[float | None, float | None]:
    """Percentiles of the depths at which the images see their points."""
    import numpy as np

    places = {key: point.xyz for key, point in model.points3D.items()}
    depths = []
    for image in images:
        seen = [places[point.point3D_id] for point in image.get_observation_points2D() if point.point3D_id in places]
        if seen:
            matrix = image.cam_from_world().matrix()
            depths.append(np.array(seen) @ matrix[2, :3] + matrix[2, 3])
    ahead = np.concatenate(depths) if depths else np.empty(0)
    ahead = ahead[ahead > 0]
    if not len(ahead):
        return None, None
    near, far = np.percentile(ahead, _PERCENTILES)
    return float(near), float(far)


def _points(model: Any) -> Tensor | None:
    import numpy as np

    points = [point.xyz for _, point in sorted(model.points3D.items())]
    return torch.from_numpy(np.array(points, dtype=np.float64)) if points else None


def _other_models(folder: Path, models: list[tuple[Any, Path]], chosen: Path) -> tuple[str, ...]:
    if len(models) == 1:
        return ()
    sizes = ", ".join(f"{path.relative_to(folder)} with {model.num_reg_images()} images" for model, path in models)
    name = chosen.relative_to(folder)
    return (printable(f"COLMAP left {len(models)} models that do not connect ({sizes}); the largest, {name}, is used"),)


def _unplaced(drafts: list[Draft]) -> tuple[str, ...]:
    """Pictures beside those with a pose that have none."""
    used = {draft.file for draft in drafts}
    beside = {file for folder in {file.parent for file in used} for file in folder.iterdir()}
    pictures = [file for file in beside if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    rest = sorted(file.name for file in pictures if file not in used)
    found = f"pictures without a pose (COLMAP could not place them), {len(rest)} of {len(pictures)}"
    return (f"{found}: {listed(rest)}",) if rest else ()


def _with_splits(found: Drafts, files: list[Path]) -> Drafts:
    """The views that the first list names, with its splits."""
    if not files:
        return found
    splits = _read_splits(files[0])
    unlisted = [draft.name for draft in found.drafts if Path(draft.name).name not in splits]
    drafts = [draft._replace(split=splits.get(Path(draft.name).name)) for draft in found.drafts]
    problems = found.problems
    if unlisted:
        which = f"pictures in no split of {files[0].name}, left out, {len(unlisted)} of {len(drafts)}"
        problems += (f"{printable(which)}: {listed(unlisted)}",)
    return found._replace(drafts=[draft for draft in drafts if draft.split], problems=problems)


def _read_splits(path: Path) -> dict[str, Split]:
    try:
        text = read_file(path, MAX_TEXT).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        raise broken(path, f"cannot be read as tab-separated text ({error}); save it again") from error
    if not rows or not {"filename", "split"} <= set(rows[0]):
        raise broken(path, "has no columns filename and split; give a tab-separated table with such headings")
    splits: dict[str, Split] = {}
    for row in rows:
        split = (row["split"] or "").strip()
        if split in ("train", "val", "test"):
            splits[row["filename"]] = cast(Split, split)
        elif split and split != "nan":
            raise broken(path, f"the split of {row['filename']} is {split}; choose train, val or test")
    return splits
