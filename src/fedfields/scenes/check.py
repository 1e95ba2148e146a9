"""Tells owners, before a run, what would become of each of their files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedfields.errors import UserError
from fedfields.scenes.captures import layout_of, load_capture
from fedfields.scenes.data import Data, Survey
from fedfields.scenes.folders import Found
from fedfields.scenes.frame import Frame, frame_of, load_frame
from fedfields.scenes.images import printable
from fedfields.scenes.objects import Objects, object_folders
from fedfields.scenes.posed import Capture, View, load_colours
from fedfields.scenes.scene import check_frame, frame_notes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LAYOUTS = {
    "blender": "Blender's transforms_train.json",
    "transforms": "transforms.json of nerfstudio or instant-ngp",
    "meganerf": "train/metadata of Mega-NeRF",
    "colmap": "a COLMAP model",
    "llff": "LLFF's poses_bounds.npy",
    "auto": "of no known layout",
}

_DECODED = 64
"""Pixels along the longer side that pictures are brought to after decoding; no more is looked at."""

_STYLES = {"used": "green", "ignored": "dim", "unusable": "bold red"}


def check(data: Data, console: Console) -> int:
    """Prints a table of all files, and how the usable ones are shared out.

    Returns:
        How many problems there are: files that cannot be used, and whether a run is impossible.

    Raises:
        UserError: there is nothing to list, as in `Data.survey`.
    """
    from rich.table import Table
    from rich.text import Text

    survey = data.survey()
    table = Table("File", "Status", "On disk", "As used", "Why, and what to do", show_edge=False)
    for file in survey.files:
        style = _STYLES[file.status]
        cells = (file.name, file.status, _on_disk(file), " × ".join(map(str, file.shape)), file.reason)
        table.add_row(*(Text(cell, style=style, overflow="fold") for cell in cells))  # Text: names are no markup.
    console.print(table)
    for line in _counts(survey):
        console.print(Text(line))
    if survey.problem:
        console.print(Text(survey.problem, style="bold red"))
    return sum(file.status == "unusable" for file in survey.files) + bool(survey.problem)


def _on_disk(found: Found) -> str:
    """Size of the file, or how many files a folder of frames holds."""
    if os.path.isdir(found.path):
        return f"{sum(1 for _ in found.path.iterdir())} files" if found.status == "used" else ""
    if not os.path.exists(found.path):
        return ""
    return f"{found.path.stat().st_size / 1000:,.1f} kB"


def _counts(survey: Survey) -> Iterator[str]:
    yield survey.notes[0]
    seen = [share for share in survey.shares if not share.unseen]
    unseen = [share for share in survey.shares if share.unseen]
    train = sum(len(share.train) for share in seen)
    held_out = sum(len(share.held_out) for share in seen)
    yield f"clients: {len(seen)}; their signals: {train} to train on, {held_out} held out"
    yield f"unseen clients: {len(unseen)}; their signals: {sum(len(share.held_out) for share in unseen)}"


def is_place(data: Data) -> bool:
    """Whether the folder is a capture of a place, and nobody said that it holds pictures or clips."""
    return data.path is not None and data.kind == "auto" and data.split is None and layout_of(data.path) is not None


def check_place(
    path: Path,
    console: Console,
    advance: Callable[[str, int, int], None] = lambda *_: None,
    published: Path | None = None,
) -> int:
    """Prints the views of a capture, the frame that suits it, and what is wrong; decodes every picture.

    Args:
        path: folder of the capture, or one ``.json`` file.
        console: where to print.
        advance: is told of progress: what, done, total.
        published: the ``scene.json`` of a federation; without it the capture's own frame is taken.

    Returns:
        How many problems keep a run from using it.
    """
    from rich.text import Text

    console.print(Text(printable(f"{path} is a capture of a place: {_LAYOUTS[layout_of(path) or 'auto']}")))
    console.print(Text("with --kind image its pictures are checked one by one, as for runs on pictures", style="dim"))
    try:
        capture = load_capture(path)
        frame = frame_of(capture) if published is None else load_frame(published)
    except UserError as error:
        console.print(Text(str(error), style="bold red"))
        return 1
    console.print(_views_table(capture))
    for line in _place_facts(capture, frame):
        console.print(Text(line))
    for line in capture.problems + frame_notes(path, capture, frame):
        console.print(Text(line, style="yellow"))
    damaged = list(_damaged(capture, advance))
    for _, line in (pair for pair in damaged if pair[0] == "val"):
        console.print(Text(line, style="yellow"))
    problems = [line for split, line in damaged if split != "val"]  # No run opens pictures for validation.
    problems += _useless(path, capture, frame)
    for line in problems:
        console.print(Text(line, style="bold red"))
    console.print(Text(_verdict(len(problems), len(capture.views)), style="bold red" if problems else "green"))
    return len(problems)


def is_set_of_objects(data: Data) -> bool:
    """Whether folders of the folder hold poses, and nobody said that it holds pictures or clips."""
    if data.path is None or data.kind != "auto" or data.split is not None or not data.path.is_dir():
        return False
    return bool(object_folders(data.path))


def check_objects(path: Path, console: Console, advance: Callable[[str, int, int], None] = lambda *_: None) -> int:
    """Prints the objects of a set, their photographs, and what is wrong; decodes every picture.

    Returns:
        How many objects keep a run from using the set.
    """
    from rich.table import Table
    from rich.text import Text

    data, folders = Objects(path=path), object_folders(path)
    console.print(Text(printable(f"{path} is a set of {len(folders)} objects in posed photographs")))
    table = Table("Object", "To fit", "To judge", "Why not, and what to do", show_edge=False)
    problems = 0
    for done, folder in enumerate(folders):
        advance("decoding", done, len(folders))
        name = printable(folder.relative_to(path).as_posix())
        try:
            task = data.open(folder, jitters=1)
            table.add_row(Text(name), *(str(len(signal.photos)) for signal in (task.support, task.query)), "")  # pyright: ignore
        except UserError as error:
            problems += 1
            table.add_row(Text(name, style="bold red"), "", "", Text(str(error), style="bold red"))
    console.print(table)
    if len(folders) < 2:
        problems += 1
        console.print(Text("a federation needs two objects", style="bold red"))
    verdict = (
        f"{problems} of them must be put right" if problems else "a run can use this: fedfields run maml-3d --data"
    )
    console.print(Text(printable(f"{verdict} {'' if problems else path}"), style="bold red" if problems else "green"))
    return problems


def _views_table(capture: Capture) -> Table:
    """Views by split, camera model and size, with how wide they see."""
    from rich.table import Table

    table = Table("Split", "Views", "Camera", "Size in pixels", "Field of view across", show_edge=False)
    groups: dict[tuple[str, str, str], list[View]] = {}
    for view in capture.views:
        camera = view.camera
        groups.setdefault((view.split, camera.model, f"{camera.width} × {camera.height}"), []).append(view)
    for split in ("train", "val", "test"):
        for (its, model, size), views in sorted(groups.items()):
            if its == split:
                table.add_row(split, str(len(views)), model, size, _angles(views))
    return table


def _angles(views: list[View]) -> str:
    """Horizontal fields of view, without distortion."""
    angles = sorted(math.degrees(2 * math.atan(view.camera.width / 2 / view.camera.fx)) for view in views)
    low, high = f"{angles[0]:.0f}", f"{angles[-1]:.0f}"
    return f"{low}°" if low == high else f"{low}° to {high}°"


def _place_facts(capture: Capture, frame: Frame) -> Iterator[str]:
    counts = Counter(view.split for view in capture.views)
    parts = [f"{counts[split]} {split}" for split in ("train", "val", "test") if counts[split]]
    masks = sum(view.mask is not None for view in capture.views)
    yield f"views: {', '.join(parts)}" + (f"; {masks} with a mask" if masks else "")
    if capture.near is not None and capture.far is not None:
        yield f"depth: from {capture.near:.4g} to {capture.far:.4g} world units"
    if capture.points is not None:
        yield f"points: {len(capture.points):,} of structure from motion"
    centre = ", ".join(f"{value:.4g}" for value in frame.centre)
    behind = "white" if frame.background == "white" else "unknown"
    yield f"frame: a cube around ({centre}), half its edge {frame.half:.4g} world units; background {behind}"


def _damaged(capture: Capture, advance: Callable[[str, int, int], None]) -> Iterator[tuple[str, str]]:
    """The split of every picture or mask that cannot be decoded or does not fit its camera, and a line about it."""
    for done, view in enumerate(capture.views):
        advance("decoding", done, len(capture.views))
        try:
            load_colours(view, min(1.0, _DECODED / max(view.camera.width, view.camera.height)))
        except UserError as error:
            yield view.split, str(error)


def _useless(path: Path, capture: Capture, frame: Frame) -> Iterator[str]:
    """Why no run could use it, though every picture may be well."""
    if not any(view.split == "train" for view in capture.views):
        yield printable(f"{path} has no view to train on; mark some as train, or leave out the splits")
    try:
        check_frame(path, capture, frame)
    except UserError as error:
        yield str(error)


def _verdict(problems: int, views: int) -> str:
    if problems:
        return f"{problems} {'problem' if problems == 1 else 'problems'}: no run can use this until they are put right"
    return f"{views} pictures; a run can use this"
