"""Which files of a folder are signals, and whose: by names alone, or as a CSV file says. Nothing is opened here."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from fedfields.errors import UserError
from fedfields.scenes.clips import CLIP_SUFFIXES, natural_order
from fedfields.scenes.images import IMAGE_SUFFIXES, printable
from fedfields.scenes.photographs import photographs
from fedfields.store import MAX_TEXT, read_file

Kind = Literal["image", "video"]
AnyKind = Literal["auto", "image", "video"]

_NOUNS: dict[Kind, str] = {"image": "picture", "video": "clip"}

_PARTS = ("train", "held_out", "unseen")

_FOLDERS_FOR_AUTO = 4
"""From so many sub-folders on, ``clients="auto"`` takes each for a client."""


class Found(NamedTuple):
    """A file, or a folder of frames, and what became of it.

    Attributes:
        name: path below the data folder.
        path: where it is.
        status: ``ignored`` files are no signals of this run; ``unusable`` ones should have been.
        reason: why it is not used, and what to do.
        shape: grid of the signal as it will be used: (rows, columns) or (frames, rows, columns).
    """

    name: str
    path: Path
    status: Literal["used", "ignored", "unusable"]
    reason: str = ""
    shape: tuple[int, ...] = ()


class Claim(NamedTuple):
    """A signal yet to be opened, whose it is, and its part if that is already known."""

    path: Path
    name: str
    client: str
    part: str = ""


class Plan(NamedTuple):
    """What is to be opened, and what is not."""

    root: Path
    kind: Kind
    claims: list[Claim]
    left_out: list[Found]
    notes: list[str]


class _Tree(NamedTuple):
    """The visible files of each folder in and below ``root``, and what could not be listed."""

    root: Path
    folders: dict[Path, list[Path]]
    left_out: list[Found]


class _Row(NamedTuple):
    """A line of a split file."""

    line: int
    path: Path
    client: str
    part: str


def make_plan(path: Path | None, kind: AnyKind, clients: str, split: Path | None) -> Plan:
    """Finds the signals and their owners.

    Raises:
        UserError: there is no such folder, it mixes pictures and clips, or ``split`` is wrong.
    """
    if path is None:
        return _plan_photographs()
    if os.path.isfile(path):
        place = path.parent
        raise UserError(printable(f"{path} is a file; give the folder that it is in: --data.path {place}"))
    if not os.path.isdir(path):
        raise UserError(printable(f"{path} does not exist; give a folder of pictures or clips: --data.path"))
    tree = _walk(path)
    if split is not None:
        return _plan_split(split, kind, tree)
    return _plan_folders(kind, clients, tree)


def _plan_photographs() -> Plan:
    paths = photographs()
    claims = [Claim(path, path.stem, path.stem) for path in paths]
    note = f"the data are {len(paths)} photographs that come with scikit-image, each a client"
    return Plan(paths[0].parent, "image", claims, [], [note])


def _plan_folders(wanted: AnyKind, clients: str, tree: _Tree) -> Plan:
    """A client per sub-folder, or per signal."""
    kind = _resolve_kind(wanted, tree)
    signals, left_out = _pick_signals(kind, tree)
    names = _signal_names(tree.root, signals)
    inside = {path: path.relative_to(tree.root).parts for path in signals}
    owners = {path: printable(parts[0]) for path, parts in inside.items() if len(parts) > 1}
    count = len(set(owners.values()))
    if clients == "folder" or (clients == "auto" and count >= _FOLDERS_FOR_AUTO):
        claims = [Claim(path, names[path], owner) for path, owner in owners.items()]
        outside = [path for path in signals if path not in owners]
        left_out += [_ignored(tree.root, path, "not in the sub-folder of a client") for path in outside]
        note = "one client per sub-folder"
    else:
        claims = [Claim(path, names[path], names[path]) for path in signals]
        note = f"one client per {_NOUNS[kind]}"
        if clients == "auto" and count > 1:
            note += f"; with --data.clients folder, one per sub-folder ({count} of them)"
    return Plan(tree.root, kind, claims, tree.left_out + left_out, [note])


def _resolve_kind(wanted: AnyKind, tree: _Tree) -> Kind:
    if wanted != "auto":
        return wanted
    kinds = Counter(_kind_of(file) for files in tree.folders.values() for file in files)
    if kinds["image"] and kinds["video"] and not all(_only_previews(files) for files in tree.folders.values()):
        found = f"{tree.root} holds {kinds['image']} pictures and {kinds['video']} clips"
        raise UserError(printable(f"{found}; choose with --data.kind image or --data.kind video"))
    return "video" if kinds["video"] else "image"


def _only_previews(files: list[Path]) -> bool:
    """Whether every picture of a folder is named after a clip beside it, as in clip.mp4 and clip_thumbnail.png."""
    clips = tuple(file.stem for file in files if _kind_of(file) == "video")
    return all(file.stem.startswith(clips) for file in files if _kind_of(file) == "image")


def _pick_signals(kind: Kind, tree: _Tree) -> tuple[list[Path], list[Found]]:
    """Pictures; or clips, and those innermost folders whose pictures are frames. Then the files that are neither."""
    signals, left_out = [], []
    outer = {folder.parent for folder in tree.folders if folder != tree.root}
    for folder, files in tree.folders.items():
        kinds: dict[Path, Kind | None] = {file: _kind_of(file) for file in files}
        if kind == "video" and folder not in outer and set(kinds.values()) - {None} == {"image"}:
            signals.append(folder)
            kinds = {file: its for file, its in kinds.items() if its is None}
        for file, its in kinds.items():
            if its == kind:
                signals.append(file)
            elif its is None:
                suffix = file.suffix or "(none)"
                left_out.append(_ignored(tree.root, file, f"its suffix, {suffix}, is not of a picture or clip"))
            else:
                left_out.append(_ignored(tree.root, file, f"a {_NOUNS[its]}, where the data are {_NOUNS[kind]}s"))
    return signals, left_out


def _plan_split(split: Path, wanted: AnyKind, tree: _Tree) -> Plan:
    """Clients, and perhaps parts, as a CSV file says."""
    rows = _read_split(split, tree.root)
    kind: Kind = wanted if wanted != "auto" else _kind_of(rows[0].path) or "image"
    for row in rows:
        if _kind_of(row.path) != kind:
            raise _wrong_line(split, row.line, f"{row.path.name} is not a {_NOUNS[kind]}, as the data are")
    _check_parts(split, rows)
    listed = {row.path for row in rows}
    others = [
        _ignored(tree.root, file, f"not listed in {split.name}")
        for folder, files in tree.folders.items()
        for file in files
        if file not in listed and folder not in listed
    ]
    names = _signal_names(tree.root, [row.path for row in rows])
    claims = [Claim(row.path, names[row.path], row.client, row.part) for row in rows]
    note = printable(f"clients are those of {split}")
    return Plan(tree.root, kind, claims, tree.left_out + others, [note])


def _read_split(split: Path, root: Path) -> list[_Row]:
    """The rows of the CSV file, at least one."""
    try:
        lines = csv.reader(io.StringIO(read_file(split, MAX_TEXT).decode("utf-8-sig"), newline=""), strict=True)
        cells = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(line)]
    except FileNotFoundError as error:
        raise UserError(printable(f"{split} does not exist; correct --data.split")) from error
    except (OSError, ValueError, csv.Error) as error:
        found = f"{split} cannot be read as CSV in UTF-8 ({getattr(error, 'strerror', None) or error})"
        raise UserError(printable(f"{found}; save it again or correct --data.split")) from error
    header = cells[0][1] if cells else []
    if header not in (["file", "client"], ["file", "client", "part"]):
        raise _wrong_line(split, 1, f"the header is '{','.join(header)[:80]}', not file,client or file,client,part")
    if len(cells) == 1:
        raise _wrong_line(split, 2, "no files are listed")
    rows: list[_Row] = []
    places: dict[str, int] = {}
    for line, values in cells[1:]:
        row = _read_row(split, line, root, header, values)
        place = os.path.realpath(row.path)
        if place in places:
            raise _wrong_line(split, line, f"{values[0]} is listed already, in line {places[place]}")
        places[place] = line
        rows.append(row)
    return rows


def _read_row(split: Path, line: int, root: Path, header: list[str], values: list[str]) -> _Row:
    if len(values) != len(header):
        raise _wrong_line(split, line, f"{len(values)} cells under {len(header)} headings")
    name, client, *part = values
    if not name or not client:
        raise _wrong_line(split, line, "the file or the client is missing")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _wrong_line(split, line, f"{name} is not below the data folder")
    if not os.path.exists(root / name):
        raise _wrong_line(split, line, f"{name} does not exist in {root}")
    if part and part[0] not in _PARTS:
        raise _wrong_line(split, line, f"the part is '{part[0]}', not {', '.join(_PARTS[:-1])} or {_PARTS[-1]}")
    return _Row(line, root / name, printable(client), part[0] if part else "")


def _check_parts(split: Path, rows: list[_Row]) -> None:
    """An unseen client must be unseen altogether."""
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(row.client, row)
        if (row.part == "unseen") != (other.part == "unseen"):
            found = f"client {row.client} is {row.part} here and {other.part} in line {other.line}"
            raise _wrong_line(split, row.line, found)


def _wrong_line(split: Path, line: int, found: str) -> UserError:
    return UserError(printable(f"{split}, line {line}: {found}; correct the line"))


def _walk(root: Path) -> _Tree:
    """Lists a folder with all below it: every real file and folder once, however many links lead to it."""
    tree = _Tree(root, {}, [])
    known: set[tuple[int, int]] = set()

    def refused(error: OSError) -> None:
        reason = f"cannot be listed ({error.strerror}); change its permissions"
        path = Path(error.filename)
        tree.left_out.append(Found(below(root, path), path, "unusable", reason))

    for place, subfolders, names in os.walk(root, onerror=refused, followlinks=True):
        folder = Path(place)
        if _is_known(folder.stat(), known):
            subfolders.clear()  # A link to a folder that was listed already, perhaps to one that it is in.
            continue
        subfolders[:] = sorted(_visible(subfolders), key=natural_order)
        tree.folders[folder] = []
        for name in sorted(_visible(names), key=natural_order):
            path = folder / name
            try:
                status = path.stat()
            except OSError as error:
                reason = f"cannot be read ({error.strerror}); mend or remove it"
                tree.left_out.append(Found(below(root, path), path, "unusable", reason))
                continue
            if not stat.S_ISREG(status.st_mode):
                tree.left_out.append(_ignored(root, path, "not a regular file"))
            elif _is_known(status, known):
                tree.left_out.append(_ignored(root, path, "another link to a file that is listed already"))
            else:
                tree.folders[folder].append(path)
    return tree


def _is_known(status: os.stat_result, known: set[tuple[int, int]]) -> bool:
    """Whether this file or folder is in ``known``, under any name; it is from now on."""
    identity = (status.st_dev, status.st_ino)
    if identity in known:
        return True
    known.add(identity)
    return False


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _kind_of(path: Path) -> Kind | None:
    """What the suffix says; a folder is a clip."""
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES or os.path.isdir(path):
        return "video"
    return "image" if suffix in IMAGE_SUFFIXES else None


def _ignored(root: Path, path: Path, reason: str) -> Found:
    return Found(below(root, path), path, "ignored", printable(reason))


def below(root: Path, path: Path) -> str:
    """The path relative to ``root``, to be shown; the name of ``root`` for itself."""
    return printable(path.relative_to(root).as_posix() if path != root else root.resolve().name)


def _signal_names(root: Path, signals: list[Path]) -> dict[Path, str]:
    """Relative paths without suffix, or all with suffix if two signals would have the same name."""
    full = {path: below(root, path) for path in signals}
    bare = {path: name if os.path.isdir(path) else name.removesuffix(path.suffix) for path, name in full.items()}
    return bare if len(set(bare.values())) == len(bare) else full
