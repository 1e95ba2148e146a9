"""Cameras for somebody's own photographs: structure from motion by COLMAP, on this machine."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedfields.errors import UserError
from fedfields.scenes.clips import natural_order
from fedfields.scenes.colmap import load_pycolmap, read_colmap
from fedfields.scenes.copies import Copy, copy_names, copy_photo
from fedfields.scenes.images import IMAGE_SUFFIXES, printable
from fedfields.scenes.motion import Job, drop_impossible, points_seen, write_model
from fedfields.scenes.transforms import transforms_of
from fedfields.scenes.unplaced import Links, reason
from fedfields.store import cannot_write, write_json
from fedfields.types import Advance

_POINTS = "points.ply"

FEWEST = 3
"""Fewer photographs are no capture of a place."""


@dataclass(frozen=True)
class PhotoSettings:
    """How cameras are estimated."""

    size: int = 1600
    """Pixels along the longer side of the copies, at most."""

    order: Literal["any", "video"] = "any"
    """any: each photo is matched with each other. video: frames by name, each matched with those near it in time."""

    camera: Literal["auto", "one", "each"] = "auto"
    """Who shares a camera: auto goes by EXIF (same device and zoom) and takes one for a video; one says that all of
    the same size do; each, none."""

    features: int = 8192
    """SIFT features of a photo, at most, before further orientations of the same."""

    threads: int = 0
    """Threads; 0 takes all cores."""

    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        if self.size < 64:
            raise ValueError(f"size is {self.size}; it must be at least 64 pixels")
        if self.features < 100:
            raise ValueError(f"features is {self.features}; it must be at least 100")
        if self.threads < 0 or self.seed < 0:
            raise ValueError("threads and seed must not be negative")


class Outcome(NamedTuple):
    """What became of a photograph.

    Attributes:
        name: its file name.
        status: whether it has a pose now.
        features: SIFT features found.
        points: points of the model that it sees.
        reason: why it was not placed, and what to do.
    """

    name: str
    status: Literal["placed", "not placed", "unreadable"]
    features: int = 0
    points: int = 0
    reason: str = ""


class Placement(NamedTuple):
    """What structure from motion made.

    Attributes:
        folder: the capture: ``images``, ``sparse/0``, ``transforms.json`` and ``points.ply``.
        photos: every photograph, by name.
        points: points of the model.
        error: their mean distance to the features that show them, in pixels of the copies.
    """

    folder: Path
    photos: tuple[Outcome, ...]
    points: int
    error: float


def place_photos(
    folder: Path, out: Path, settings: PhotoSettings | None = None, advance: Advance = lambda *_: None
) -> Placement:
    """Estimates cameras and poses of the photographs in a folder and writes a capture.

    Args:
        folder: photographs; sub-folders are not looked into.
        out: folder to be made; it holds the upright copies in ``images``, without EXIF, the largest model in
            ``sparse/0`` (COLMAP), ``transforms.json`` (nerfstudio) and ``points.ply``. It appears when all is done,
            or not at all.
        settings: how.
        advance: is told of progress: what, done, total.

    Raises:
        UserError: pycolmap is missing, ``out`` is not empty, there are fewer than 3 usable photographs, or too
            few of them could be placed.
    """
    settings = settings or PhotoSettings()
    pycolmap = load_pycolmap("placing photos")
    sources = _sources(folder)
    with _made_whole(out) as made:
        copies, unreadable = _copied(sources, made / "images", settings, advance)
        if len(copies) < FEWEST:
            raise _too_few(folder, sources, unreadable)
        work = made / "work"
        work.mkdir()
        job = Job(pycolmap, work, made / "images", settings.seed, settings.threads, advance)
        models, links = _posed(job, list(copies.values()), settings)
        model = _largest(models)
        outcomes = unreadable | _judged(copies, links, models, model)
        photos = tuple(outcomes[path.name] for path in sources)
        if model is None:
            raise _nothing_placed(folder, photos)
        _write(model, made)
        shutil.rmtree(work)
        return Placement(out, photos, int(model.num_points3D()), float(model.compute_mean_reprojection_error()))


def _sources(folder: Path) -> list[Path]:
    """The pictures in a folder, by their suffixes, in natural order."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(printable(f"{folder} {found}; give the folder that your photos are in"))
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    except OSError as error:
        raise UserError(printable(f"{folder} cannot be listed ({error.strerror}); change its permissions")) from error
    if len(files) < FEWEST:
        found = f"{folder} holds {len(files)} photos (sub-folders are not looked into)"
        raise UserError(printable(f"{found}; at least {FEWEST} are needed, and twenty or more are better"))
    return sorted(files, key=lambda path: natural_order(path.name))


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place if all goes well, and else disappears.

    Raises:
        UserError: ``out`` is a file or not empty, or nothing can be written there.
    """
    made = None
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            found = "is not empty" if out.is_dir() else "is a file"
            raise UserError(printable(f"{out} {found}; choose a new folder with --out, or remove it"))
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield made
        made.chmod(0o755)
        if out.exists():
            out.rmdir()
        made.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)


def _copied(
    sources: list[Path], images: Path, settings: PhotoSettings, advance: Advance
) -> tuple[dict[str, Copy], dict[str, Outcome]]:
    """The copies, and what cannot be read, each by the name of the original."""
    images.mkdir()
    copies, unreadable = {}, {}
    names = copy_names(sources, numbered=settings.order == "video")
    for done, (source, name) in enumerate(zip(sources, names, strict=True)):
        advance("copying", done, len(sources))
        try:
            copies[source.name] = copy_photo(source, images / name, settings.size)
        except UserError as error:
            why = str(error).removeprefix(printable(f"{source}: "))
            unreadable[source.name] = Outcome(printable(source.name), "unreadable", reason=why)
    return copies, unreadable


def _too_few(folder: Path, sources: list[Path], unreadable: dict[str, Outcome]) -> UserError:
    first = next(iter(unreadable.values()))
    found = f"{len(unreadable)} of the {len(sources)} photos in {folder} cannot be read, such as {first.name}"
    return UserError(printable(f"{found}: {first.reason} (at least {FEWEST} photos are needed)"))


def _posed(job: Job, copies: list[Copy], settings: PhotoSettings) -> tuple[list[Any], Links]:
    """All stages of structure from motion: the models, and what matching found."""
    job.write_cameras(_groups(copies, settings))
    job.extract(len(copies), settings.features)
    if settings.order == "video":
        job.match_neighbours(len(copies))
    else:
        job.match_all(len(copies))
    return job.models(len(copies)), job.links()


def _groups(copies: list[Copy], settings: PhotoSettings) -> list[list[Copy]]:
    """The copies that share a camera."""
    one = settings.camera == "one" or (settings.camera == "auto" and settings.order == "video")
    groups: dict[Any, list[Copy]] = {}
    for copy in copies:
        alone = settings.camera == "each" or not (one or copy.device)
        key = copy.name if alone else ("" if one else copy.device, copy.width, copy.height)
        groups.setdefault(key, []).append(copy)
    return list(groups.values())


def _largest(models: list[Any]) -> Any | None:
    """The model with most photographs, without those whose cameras are impossible; None if too few are left."""
    if not models:
        return None
    model = max(models, key=lambda one: (one.num_reg_images(), one.num_points3D()))
    drop_impossible(model)
    return model if model.num_reg_images() >= FEWEST else None


def _judged(copies: dict[str, Copy], links: Links, models: list[Any], model: Any | None) -> dict[str, Outcome]:
    """What became of each copy, by the name of the original."""
    placed = points_seen(model) if model else {}
    elsewhere = {name for one in models for name in points_seen(one)} - placed.keys()
    called = {copy.name: printable(name) for name, copy in copies.items()}
    outcomes = {}
    for name, copy in copies.items():
        shown, features = called[copy.name], links.features[copy.name]
        if copy.name in placed:
            outcomes[name] = Outcome(shown, "placed", features, placed[copy.name])
        else:
            why = reason(copy.name, links, placed, elsewhere, called)
            outcomes[name] = Outcome(shown, "not placed", features, reason=why)
    return outcomes


def _nothing_placed(folder: Path, photos: tuple[Outcome, ...]) -> UserError:
    """The one line for photographs of which no three belong together; the most frequent reasons first."""
    kinds = Counter(re.split(r" \(|[;,]", photo.reason)[0] for photo in photos if photo.status == "not placed")
    why = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    found = f"{folder}: no {FEWEST} of the {len(photos)} photos could be placed together"
    remedy = "take sharp photos of things with texture, walking around them, each sharing two thirds with the next"
    return UserError(printable(f"{found} ({why}); {remedy}" if why else f"{found}; {remedy}"))


def _write(model: Any, made: Path) -> None:
    """The model for COLMAP, and the same as ``transforms.json`` with its points in a PLY file."""
    write_model(model, made / "sparse" / "0", made / _POINTS)
    write_json(made / "transforms.json", transforms_of(read_colmap(made), "images", _POINTS))
