"""From a folder of posed photographs to views, whichever program posed them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from fedfields.errors import UserError
from fedfields.scenes.colmap import model_folders, read_colmap
from fedfields.scenes.drafts import Draft, Drafts, broken, listed
from fedfields.scenes.frame import looks_away
from fedfields.scenes.images import printable
from fedfields.scenes.llff import read_llff
from fedfields.scenes.meganerf import is_meganerf, read_meganerf
from fedfields.scenes.posed import Capture, Split, View
from fedfields.scenes.transforms import blender_files, read_blender, read_transforms

Layout = Literal["auto", "blender", "transforms", "meganerf", "colmap", "llff"]

_AWAY = (
    "the cameras have their backs to what they show: right for a room taken from its middle, else the axes are of "
    "another convention (ours and nerfstudio's: +Y up, looking along -Z); turn the second and third column around"
)

_TEST_EVERY = 8
"""Without a split, every so many views are for testing, as is the custom."""


def load_capture(path: Path, layout: Layout = "auto") -> Capture:
    """Reads the cameras and poses of a folder; pictures are opened only where their size is not given.

    Args:
        path: a folder, or one ``.json`` file with transforms.
        layout: ``blender`` (``transforms_train.json`` ...), ``transforms`` (``transforms.json`` of nerfstudio or
            instant-ngp), ``meganerf`` (``train/metadata/*.pt`` of Mega-NeRF and Mill 19), ``colmap`` (a sparse model,
            with splits from a ``.tsv`` if there is one) or ``llff`` (``poses_bounds.npy``); auto takes the first of
            them that is there.

    Returns:
        The views in the order of the file, or by name for a COLMAP model. Poses are in the world frame of the
        file: nothing is turned, centred or scaled. Without a split, every 8th view by name is for testing.

    Raises:
        UserError: nothing of the kind is there, a file, camera or pose is damaged or may not be read, or no picture
            exists.
    """
    try:
        return _load(Path(path), layout)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror}); check its permissions and those in it") from error


def _load(path: Path, layout: Layout) -> Capture:
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise broken(path, "is a file but not .json; give the folder with the poses and pictures")
        return _finish(path, read_transforms(path))
    if not path.is_dir():
        raise broken(path, "does not exist; give the folder with the poses and pictures")
    chosen = _recognise(path) if layout == "auto" else layout
    if chosen not in _present(path):
        raise broken(path, f"holds no poses in the layout {chosen}; choose another or leave it out")
    return _finish(path, _read(path, chosen))


def layout_of(path: Path) -> Layout | None:
    """The layout that `load_capture` would take, or None if it is no capture of a place."""
    try:
        if path.is_file():
            return "transforms" if path.suffix.lower() == ".json" else None
        return next(iter(_present(path)), None) if path.is_dir() else None
    except OSError:
        return None


def _present(folder: Path) -> list[Layout]:
    """The layouts that are there, the most telling first."""
    found: dict[Layout, bool] = {
        "blender": bool(blender_files(folder)),
        "transforms": (folder / "transforms.json").is_file(),
        "meganerf": is_meganerf(folder),
        "colmap": bool(model_folders(folder)),
        "llff": (folder / "poses_bounds.npy").is_file(),
    }
    return [layout for layout, there in found.items() if there]


def _recognise(folder: Path) -> Layout:
    layouts = _present(folder)
    if not layouts:
        wanted = "transforms.json, transforms_train.json, poses_bounds.npy or a COLMAP model such as sparse/0"
        raise broken(folder, f"holds no poses ({wanted}); estimate them with: fedfields photos {folder.name}")
    return layouts[0]


def _read(folder: Path, layout: Layout) -> Drafts:
    if layout == "blender":
        return read_blender(folder)
    if layout == "transforms":
        return read_transforms(folder / "transforms.json")
    if layout == "meganerf":
        return read_meganerf(folder)
    if layout == "colmap":
        return read_colmap(folder)
    return read_llff(folder)


def _finish(path: Path, found: Drafts) -> Capture:
    """The capture, with what is missing said and every split decided."""
    total = len(found.drafts) + len(found.missing)
    problems = found.problems
    if found.missing:
        problems = (f"missing pictures, {len(found.missing)} of {total}: {listed(found.missing)}", *problems)
    if not found.drafts:
        why = problems[0] if problems else "no picture has a pose"
        raise UserError(printable(f"{path}: no picture can be used: {why}; correct the paths or add the pictures"))
    _check_own_pictures(path, found.drafts)
    _check_masks(path, found.drafts)
    test = _held_back(found.drafts)
    views = tuple(
        View(draft.name, draft.file, draft.camera, draft.pose, _split(draft, test), draft.mask, draft.circle)
        for draft in found.drafts
    )
    capture = Capture(views, found.near, found.far, found.points, found.background, problems, found.applied)
    return dataclasses.replace(capture, problems=(*problems, _AWAY)) if looks_away(capture) else capture


def _check_own_pictures(path: Path, drafts: list[Draft]) -> None:
    """Refuses two names that a tolerant search took for one file: one of the poses would be wrong."""
    owners: dict[Path, str] = {}
    for draft in drafts:
        owner = owners.setdefault(draft.file.resolve(), draft.name)
        if Path(owner) != Path(draft.name):
            raise broken(path, f"{owner} and {draft.name} are both found as {draft.file}; restore the folders in them")


def _check_masks(path: Path, drafts: list[Draft]) -> None:
    """Refuses masks for some pictures only: a mask may hide what nobody is to see, and one was forgotten."""
    without = [draft.name for draft in drafts if draft.mask is None]
    if 0 < len(without) < len(drafts):
        found = f"{len(without)} of {len(drafts)} pictures have no mask though the others have one"
        remedy = "give every picture one (white where all may be used), or none"
        raise broken(path, f"{found}: {listed(without)}; {remedy}")


def _held_back(drafts: list[Draft]) -> set[str]:
    """Names of every 8th view, beginning with the first; none of a single one."""
    names = sorted(draft.name for draft in drafts)
    return set(names[::_TEST_EVERY]) if len(names) > 1 else set()


def _split(draft: Draft, test: set[str]) -> Split:
    return draft.split or ("test" if draft.name in test else "train")
