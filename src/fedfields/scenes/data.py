"""Where the data comes from: a folder of pictures or clips, shared out among clients.

A signal is a picture, or a clip (a file, or a folder of frames). Every signal belongs to one client and to one
part of it: ``train``, or ``held_out`` to evaluate on. All signals of an unseen client are held out.
"""

from __future__ import annotations

import csv
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.clips import CLIP_SUFFIXES, load_clip, natural_order
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.images import IMAGE_SUFFIXES, load_image, printable
from fedfields.scenes.photographs import photographs
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

Kind = Literal["image", "video"]
AnyKind = Literal["auto", "image", "video"]

_NOUNS: dict[Kind, str] = {"image": "picture", "video": "clip"}

_PARTS = ("train", "held_out", "unseen")

_FOLDERS_FOR_AUTO = 4
"""From so many sub-folders on, ``clients="auto"`` takes each for a client."""


class Federation(NamedTuple):
    """The data of a run.

    Attributes:
        clients: those that take part in training.
        unseen: those that never do, to evaluate on; their ``train`` is empty.
        notes: what the user should know: how clients were formed, which files were left out and why.
    """

    clients: tuple[Client, ...]
    unseen: tuple[Client, ...]
    notes: tuple[str, ...]


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


class Share(NamedTuple):
    """The signals of one client, by name."""

    client: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    unseen: bool


class Survey(NamedTuple):
    """What a data folder holds and how it is shared out.

    Attributes:
        files: every file, or folder of frames.
        shares: every client.
        notes: as in `Federation`.
        problem: why no run can use this, in one line; empty if all is well.
    """

    files: tuple[Found, ...]
    shares: tuple[Share, ...]
    notes: tuple[str, ...]
    problem: str


class _Claim(NamedTuple):
    """A signal yet to be opened, whose it is, and its part if that is already known."""

    path: Path
    name: str
    client: str
    part: str = ""


class _Plan(NamedTuple):
    """What is to be opened, and what is not."""

    root: Path
    kind: Kind
    claims: list[_Claim]
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


@dataclass(frozen=True)
class Data:
    """Pictures or clips, and how they are shared out among clients."""

    path: Path | None = None
    """Folder with the pictures or clips; without one, 16 photographs that come with scikit-image are used, in a
    fixed order of which the last are unseen."""

    kind: AnyKind = "auto"
    """What the files are; auto goes by their suffixes. As video, a folder of pictures is one clip."""

    clients: Literal["auto", "folder", "file"] = "auto"
    """Who is a client: each sub-folder, or each file; auto takes sub-folders if there are at least four."""

    split: Path | None = None
    """CSV file with the header file,client or file,client,part, where part is train, held_out or unseen, and
    file is relative to the data folder. It replaces the rules below."""

    size: int = 64
    """Pixels along the longer side, after resizing; 0 keeps the size of each file."""

    frames: int = 8
    """Frames taken from a clip, evenly spread."""

    crop: bool = True
    """Cut out the central square first."""

    held_out: float = 0.25
    """Fraction of the signals of each client that is kept back to evaluate on, at least one of two."""

    unseen: float = 0.25
    """Fraction of the clients that never take part in training, at least one of three; 0 for none."""

    limit: int | None = None
    """At most so many clients, drawn at random."""

    def __post_init__(self) -> None:
        if self.path is None and self.kind == "video":
            raise ValueError("kind is video but there is no path; give the folder with the clips")
        if self.path is None and self.split is not None:
            raise ValueError(f"split is {self.split} but there is no path; give the folder that its files are in")
        if self.split is not None and self.clients != "auto":
            raise ValueError(f"clients is {self.clients} but split names the clients; leave out one of them")
        if self.size < 0:
            raise ValueError(f"size is {self.size}; it must be positive, or 0 to keep the size of each file")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; it must be at least 1")
        for name in ("held_out", "unseen"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a fraction must lie in [0, 1)")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit is {self.limit}; a federation needs at least 2 clients")

    def survey(self, seed: int = 0) -> Survey:
        """Opens every file as `load` would, and says what becomes of each.

        Raises:
            UserError: there is no such folder, it mixes pictures and clips, or ``split`` is wrong.
        """
        return self._read(seed)[0]

    def load(self, seed: int) -> Federation:
        """Reads everything; ``seed`` decides which clients are unseen and which signals are held out.

        Raises:
            UserError: as `survey`; or nothing is usable, or there are fewer than 2 clients.
        """
        survey, signals = self._read(seed)
        if survey.problem:
            raise UserError(survey.problem)
        return Federation(
            tuple(_client(share, signals) for share in survey.shares if not share.unseen),
            tuple(_client(share, signals) for share in survey.shares if share.unseen),
            survey.notes,
        )

    def _read(self, seed: int) -> tuple[Survey, dict[str, GridSignal]]:
        """The survey, and the signals in use by name."""
        plan = _plan(self)
        order = list(dict.fromkeys(claim.client for claim in plan.claims))
        if self.path is not None:
            order = _shuffled(order, generator(seed, "split"))
        order = order[: self.limit]
        chosen = set(order)
        files, claims, signals = list(plan.left_out), [], {}
        for claim in plan.claims:
            found = Found(_below(plan.root, claim.path), claim.path, "used")
            if claim.client not in chosen:
                files.append(found._replace(status="ignored", reason=f"beyond --data.limit {self.limit}"))
                continue
            try:
                signal = GridSignal(self._open(claim.path, plan.kind))
            except UserError as error:
                files.append(found._replace(status="unusable", reason=_without_path(error, claim.path)))
                continue
            files.append(found._replace(shape=signal.shape))
            claims.append(claim)
            signals[claim.name] = signal
        files.sort(key=lambda file: natural_order(file.name))
        shares = self._shares(claims, order, seed)
        notes = (*plan.notes, *_file_notes(files), *_share_notes(claims, shares))
        return Survey(tuple(files), shares, notes, _problem(plan.root, files, shares)), signals

    def _open(self, path: Path, kind: Kind) -> Tensor:
        if kind == "video":
            return load_clip(path, self.size, self.frames, self.crop)
        return load_image(path, self.size, self.crop)

    def _shares(self, claims: list[_Claim], order: list[str], seed: int) -> tuple[Share, ...]:
        """What each client trains on and is evaluated on; the last clients of ``order`` are unseen."""
        owned: dict[str, list[_Claim]] = {}
        for claim in claims:
            owned.setdefault(claim.client, []).append(claim)
        present = [client for client in order if client in owned]
        count = max(1, int(self.unseen * len(present))) if self.unseen and len(present) >= 3 else 0
        unseen = set(present[len(present) - count :])
        shares = []
        for client, mine in owned.items():
            if mine[0].part:  # The split file decides.
                held_out = {claim.name for claim in mine if claim.part != "train"}
            elif client in unseen:
                held_out = {claim.name for claim in mine}
            else:
                held_out = self._hold_out([claim.name for claim in mine], generator(seed, "split", client))
            train = tuple(claim.name for claim in mine if claim.name not in held_out)
            rest = tuple(claim.name for claim in mine if claim.name in held_out)
            shares.append(Share(client, train, rest, unseen=not train))
        return tuple(shares)

    def _hold_out(self, names: list[str], generator: Generator) -> set[str]:
        """The signals of one client that are kept back to evaluate on."""
        if not self.held_out or len(names) < 2:
            return set()
        return set(_shuffled(names, generator)[: max(1, int(self.held_out * len(names)))])


def _client(share: Share, signals: dict[str, GridSignal]) -> Client:
    train, held_out = (
        tuple(Task(signals[name], signals[name], name) for name in names) for names in (share.train, share.held_out)
    )
    return Client(share.client, train, held_out)


def _shuffled(items: list[str], generator: Generator) -> list[str]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def _without_path(error: UserError, path: Path) -> str:
    """The text of an error about ``path``, for lists that name the file already."""
    return str(error).removeprefix(printable(f"{path}: "))


def _file_notes(files: list[Found]) -> list[str]:
    """A note for every unusable file, and one for every reason to ignore others."""
    notes = [f"left out {file.name}: {file.reason}" for file in files if file.status == "unusable"]
    ignored = Counter(file.reason for file in files if file.status == "ignored")
    return notes + [f"left out {count} {'file' if count == 1 else 'files'}: {why}" for why, count in ignored.items()]


def _share_notes(claims: list[_Claim], shares: tuple[Share, ...]) -> list[str]:
    """A note for every client that no one meant to be unseen."""
    evaluated = {claim.client for claim in claims if claim.part == "held_out"}
    missing = [share.client for share in shares if share.unseen and share.client in evaluated]
    return [f"client {client} has nothing to train on, so it is unseen" for client in missing]


def _problem(root: Path, files: list[Found], shares: tuple[Share, ...]) -> str:
    """Why there is no federation in this, or nothing."""
    problem = ""
    if not shares:
        telling = [file for file in files if file.status == "unusable"] or files
        first = f", such as {telling[0].name}: {telling[0].reason}" if telling else ""
        problem = f"{root} holds no picture or clip that can be used ({len(files)} found{first}); add some"
    elif len(shares) == 1:
        problem = (
            f"{root} gives only one client, {shares[0].client}, and a federation needs two; "
            "add files, or choose another --data.clients or --data.kind"
        )
    elif all(share.unseen for share in shares):
        problem = f"{root} leaves no client anything to train on; let the split mark some files as train"
    return printable(problem)


def _plan(data: Data) -> _Plan:
    """Finds the signals and their owners, by names alone."""
    if data.path is None:
        return _plan_photographs()
    if os.path.isfile(data.path):
        place = data.path.parent
        raise UserError(printable(f"{data.path} is a file; give the folder that it is in: --data.path {place}"))
    if not os.path.isdir(data.path):
        raise UserError(printable(f"{data.path} does not exist; give a folder of pictures or clips: --data.path"))
    tree = _walk(data.path)
    if data.split is not None:
        return _plan_split(data.split, data.kind, tree)
    return _plan_folders(data.kind, data.clients, tree)


def _plan_photographs() -> _Plan:
    paths = photographs()
    claims = [_Claim(path, path.stem, path.stem) for path in paths]
    note = f"the data are {len(paths)} photographs that come with scikit-image, each a client"
    return _Plan(paths[0].parent, "image", claims, [], [note])


def _plan_folders(wanted: AnyKind, clients: str, tree: _Tree) -> _Plan:
    """A client per sub-folder, or per signal."""
    kind = _resolve_kind(wanted, tree)
    signals, left_out = _pick_signals(kind, tree)
    names = _signal_names(tree.root, signals)
    inside = {path: path.relative_to(tree.root).parts for path in signals}
    owners = {path: printable(parts[0]) for path, parts in inside.items() if len(parts) > 1}
    count = len(set(owners.values()))
    if clients == "folder" or (clients == "auto" and count >= _FOLDERS_FOR_AUTO):
        claims = [_Claim(path, names[path], owner) for path, owner in owners.items()]
        outside = [path for path in signals if path not in owners]
        left_out += [_ignored(tree.root, path, "not in the sub-folder of a client") for path in outside]
        note = "one client per sub-folder"
    else:
        claims = [_Claim(path, names[path], names[path]) for path in signals]
        note = f"one client per {_NOUNS[kind]}"
        if clients == "auto" and count > 1:
            note += f"; with --data.clients folder, one per sub-folder ({count} of them)"
    return _Plan(tree.root, kind, claims, tree.left_out + left_out, [note])


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


def _plan_split(split: Path, wanted: AnyKind, tree: _Tree) -> _Plan:
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
    claims = [_Claim(row.path, names[row.path], row.client, row.part) for row in rows]
    note = printable(f"clients are those of {split}")
    return _Plan(tree.root, kind, claims, tree.left_out + others, [note])


def _read_split(split: Path, root: Path) -> list[_Row]:
    """The rows of the CSV file, at least one."""
    try:
        with split.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
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
        tree.left_out.append(Found(_below(root, path), path, "unusable", reason))

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
                tree.left_out.append(Found(_below(root, path), path, "unusable", reason))
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
    return Found(_below(root, path), path, "ignored", printable(reason))


def _below(root: Path, path: Path) -> str:
    """The path relative to ``root``, to be shown; the name of ``root`` for itself."""
    return printable(path.relative_to(root).as_posix() if path != root else root.resolve().name)


def _signal_names(root: Path, signals: list[Path]) -> dict[Path, str]:
    """Relative paths without suffix, or all with suffix if two signals would have the same name."""
    full = {path: _below(root, path) for path in signals}
    bare = {path: name if os.path.isdir(path) else name.removesuffix(path.suffix) for path, name in full.items()}
    return bare if len(set(bare.values())) == len(bare) else full
