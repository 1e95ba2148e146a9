"""Contributions that wait for a map: any number of clients put files into a folder, any number of processes merge them.

::

    MAP/queue/waiting/DIGEST.safetensors    what a client sent, put there whole by renaming
    MAP/queue/journal.jsonl                 what became of it, a line each time
    MAP/queue/journal.lock                  held while a line is written
    MAP/queue/arriving/OWNER/DIGEST         what comes in pieces over the network, as far as it has come

Who works on a file holds its lock, which the end of a process gives back. The order is: the map, the journal, away with
the file. Whoever is killed in between leaves a file that waits, and the map remembers by its digest that it has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.mapping.align import FEWEST, Alignment, Brought, align, around, target
from fedfields.mapping.bake import bake, cells_of
from fedfields.mapping.commits import lock, merge, opened
from fedfields.mapping.merge import Contribution, Refused
from fedfields.mapping.register import surface_of
from fedfields.mapping.store import Gone, Map, View
from fedfields.mapping.upload import MOST_BRICKS, Upload, sent_from_bytes
from fedfields.mapping.voxels import CELLS
from fedfields.seeds import generator
from fedfields.store import MAX_LINES, append, append_line, discard, is_unfinished, parse_json, read_file, writing

LARGEST = 2**30
"""Of what a client may send, in bytes."""

State = Literal["waiting", "merged", "refused"]


class Note(NamedTuple):
    """A line of the journal: what became of a contribution.

    Attributes:
        digest: of what the client sent.
        state: it waits for others that it can be aligned to, was merged, or was refused.
        name: what the contribution is called; empty if it could not be read.
        why: what keeps it waiting, or why it was refused.
        version: of the map, with it; 0 if it was not merged.
        size: bytes that the client sent.
        seconds: that it took.
        at: seconds since 1970.
    """

    digest: str
    state: State
    name: str = ""
    why: str = ""
    version: int = 0
    size: int = 0
    seconds: float = 0.0
    at: float = 0.0


class Deferred(Exception):
    """A contribution cannot be placed yet; the text says what for it waits."""


Align = Callable[[View, Upload], NDArray[np.float64]]
"""The pose ``[3, 4]`` of a field in a map. Raises `Refused` if it fits nowhere, `Deferred` if nothing is there yet."""


@dataclass(frozen=True)
class Rules:
    """What a server takes."""

    stale: int = 0
    """A contribution that began more than so many versions of the map ago is refused; 0 for any."""

    def __post_init__(self) -> None:
        if self.stale < 0:
            raise ValueError(f"stale is {self.stale}; it must not be negative")


class Queue:
    """The contributions that wait for a map, and what became of the others.

    Attributes:
        store: the map.
        root: folder of the queue.
    """

    def __init__(self, store: Map) -> None:
        if store.place.path is None:
            raise UserError(f"{store.place.where} can only be read; merge into a folder on this machine and copy that")
        self.store = store
        self.root = store.place.path / "queue"
        self._waiting = self.root / "waiting"
        self._read: tuple[int, list[Note]] = (0, [])  # The journal when it had so many bytes; it only grows.
        self._looked: dict[str, int] = {}  # Version of the map at which a file had to wait.

    def put(self, content: bytes, owner: str = "") -> str:
        """Puts what a client sent into the queue; returns its digest. Whatever is there already is not put again.

        Args:
            content: of the file.
            owner: of the key by which it came, who may only bring what is called so, or so and a slash; "" for anybody.

        Raises:
            Refused: it is no contribution, or too large.
            UserError: the queue cannot be written.
        """
        if len(content) > LARGEST:
            raise Refused(f"{len(content):,} bytes were sent and {LARGEST:,} are allowed; send less")
        check_owner(sent_from_bytes(content).name, owner)
        digest = hashlib.sha256(content).hexdigest()
        path = self._file(digest)
        if not path.exists():
            with writing(path) as temporary:
                temporary.write_bytes(content)
        return digest

    def waiting(self) -> list[Path]:
        """The files that wait, those first that came first."""
        if not self._waiting.is_dir():
            return []
        found = []
        for path in self._waiting.glob("*.safetensors"):
            try:
                if not is_unfinished(path):
                    found.append((path.stat().st_mtime_ns, path.name, path))
            except FileNotFoundError:  # Somebody else was faster.
                continue
        return [path for *_, path in sorted(found)]

    def journal(self) -> list[Note]:
        """All that happened, oldest first; a line that a crash cut short is passed over."""
        path = self.root / "journal.jsonl"
        if not path.exists():
            return []
        try:
            if path.stat().st_size != self._read[0]:
                content = read_file(path, MAX_LINES)
                self._read = len(content), list(_notes(content))
            return self._read[1]
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; move it away to begin a new one") from error

    def states(self) -> dict[str, Note]:
        """The last note of each contribution, and one for each that waits and was not looked at, by digest."""
        found = {note.digest: note for note in self.journal()}
        for path in self.waiting():
            if path.stem not in found:
                found[path.stem] = Note(path.stem, "waiting")
        return found

    def fate(self, digest: str) -> Note | None:
        """What became of a contribution since it was put here last; None: nobody has looked at it, or it was undone."""
        waits = self.waits(digest)
        since = waits.st_mtime if waits else 0.0
        notes = [note for note in self.journal() if note.digest == digest and note.at >= since]
        last = notes[-1] if notes else None
        if last and last.state == "merged" and self.store.merged_by(self.store.head, last.name) != last.version:
            return None
        return last

    def waits(self, digest: str) -> os.stat_result | None:
        """The file of a contribution that waits; None if there is none."""
        try:
            return self._file(digest).stat()
        except FileNotFoundError:
            return None

    def arrival(self, owner: str, digest: str, size: int) -> Arrival:
        """What has come of a contribution in pieces; of an owner, the last one is kept and no other."""
        folder = self.root / "arriving" / owner
        for path in folder.glob("*") if folder.is_dir() else ():
            if path.name != digest:
                discard(path)
        return Arrival(folder / digest, size)

    def work(self, rules: Rules, find: Align | None = None, told: Callable[[Note], None] = lambda note: None) -> int:
        """Settles what waits until nothing can be settled any more; returns how many contributions were.

        Args:
            rules: what is taken.
            find: finds the pose of a field in the map; without it poses are believed.
            told: called with every note.

        Raises:
            UserError: the map or the queue cannot be read or written; what was worked on still waits.
        """
        settled, passed = 0, set[str]()
        _sweep(self._waiting)
        while todo := [path for path in self.waiting() if path.name not in passed and self._is_due(path)]:
            for path in todo:
                with _claimed(path) as mine:
                    note = self._settle(path, rules, find) if mine else None
                if note is None:
                    passed.add(path.name)
                else:
                    told(note)
                    settled += note.state != "waiting"
        return settled

    def _is_due(self, path: Path) -> bool:
        """Whether a file was not looked at yet, or the map has changed since."""
        return self._looked.get(path.name) != self.store.head

    def _settle(self, path: Path, rules: Rules, find: Align | None) -> Note:
        """Merges or refuses a file, unless it has to wait, and says so in the journal."""
        began, digest, head, before = time.monotonic(), path.stem, self.store.head, 0
        note = Note(digest, "refused", size=path.stat().st_size)
        try:
            content = read_file(path, LARGEST)
            if hashlib.sha256(content).hexdigest() != digest:
                raise Refused(f"{path.name} is not what its name says; put it into the queue again")
            sent = sent_from_bytes(content)
            note = note._replace(name=sent.name)
            before = self._merged(sent.name, path)
            note = note._replace(state="merged", version=before or self._merge(sent, digest, rules, find))
        except Gone:  # Others have merged so much meanwhile that the version is forgotten.
            note = note._replace(state="waiting", why="the map has changed meanwhile")
            head = -1
        except Deferred as wait:
            note = note._replace(state="waiting", why=str(wait))
        except ValueError as error:  # Of `read_file`.
            note = note._replace(why=f"{path.name} is refused: {error}")
        except Refused as refusal:
            note = note._replace(why=str(refusal))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        note = note._replace(seconds=time.monotonic() - began, at=time.time())
        said = before and any((old.digest, old.version) == (digest, before) for old in self.journal())
        if not said and (note.state != "waiting" or path.name not in self._looked):
            self._write(note)
        if note.state == "waiting":
            self._looked[path.name] = head
        else:
            discard(path)
        return note

    def _merged(self, name: str, path: Path) -> int:
        """The version that merged this very file before a crash kept it from being taken away; else 0."""
        version, put = self.store.merged_by(self.store.head, name), path.stat().st_mtime
        if not version or any(note.version == version and note.at < put for note in self.journal()):
            return 0  # Nobody has merged it, or it came again afterwards.
        try:
            return version if self.store.entry(version).about.get("source") == path.stem else 0
        except Gone:
            return 0

    def _merge(self, sent: Upload | Contribution, digest: str, rules: Rules, find: Align | None) -> int:
        view = self.store.view()
        if rules.stale and sent.base is not None and view.version - sent.base > rules.stale:
            raise Refused(
                f"contribution {sent.name[:40]!r} is refused: it began with version {sent.base} and the map has "
                f"{view.version}; train it again from the newest one"
            )
        before = self.store.merged_by(view.version, sent.name)
        if before:  # Before it is aligned and baked, which takes seconds.
            raise Refused(f"contribution {sent.name[:40]!r} is refused: version {before} merged it already")
        if isinstance(sent, Upload):
            sent = baked(view, sent, find)
        return merge(self.store, sent._replace(source=digest)).version

    def _file(self, digest: str) -> Path:
        return self._waiting / f"{digest}.safetensors"

    def _write(self, note: Note) -> None:
        """Adds a line to the journal, after one that a crash has cut short, too."""
        path = self.root / "journal.jsonl"
        with opened(self.root / "journal.lock") as file:
            lock(file, shared=False)
            append_line(path, ("" if _ends_whole(path) else "\n") + json.dumps(note._asdict()))


class Arrival:
    """A contribution of which pieces have come: a file that outlives its process, and is believed by its digest."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        if self.came > size:
            discard(path)

    @property
    def came(self) -> int:
        """Bytes that are here."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        append(self._path, piece)

    def content(self) -> bytes:
        """All of it.

        Raises:
            Refused: it is not what its digest says; the next attempt begins anew.
        """
        content = read_file(self._path, self._size)
        if hashlib.sha256(content).hexdigest() != self._path.name:
            self.drop()
            raise Refused(f"{len(content):,} bytes arrived damaged; send them again")
        return content

    def drop(self) -> None:
        """Forgets it."""
        discard(self._path)


def check_owner(name: str, owner: str) -> None:
    """Refuses a contribution by the name of somebody else.

    Raises:
        Refused: it is one.
    """
    if owner and name.split("/")[0] != owner:
        raise Refused(
            f"it is called {name[:40]!r}; {owner} may bring what is called {owner}/..., so say --name when training"
        )


@dataclass(frozen=True)
class Aligner:
    """Finds the pose of a field by what it shows and what the map shows, within the error that came with it."""

    settings: Alignment = field(default_factory=Alignment)
    """How; its search is as wide as the error."""

    seed: int = 0
    """Of everything random."""

    def __call__(self, view: View, sent: Upload) -> NDArray[np.float64]:
        """See `Align`."""
        voxel, (metres, degrees) = view.map.settings.voxel, sent.error
        search = replace(self.settings.search, metres=max(metres, voxel), degrees=max(degrees, 0.1))
        settings, random = replace(self.settings, search=search), generator(self.seed, "align", sent.name)
        brought = Brought(sent.name, bake(sent.local, np.eye(3, 4), voxel).bricks, sent.cameras, sent.pose)
        try:
            low, high = around(brought, voxel, search)
        except UserError as error:
            raise Refused(str(error)) from error
        area = view.area(low, high)
        if len(surface_of(area, voxel).places) < FEWEST:
            raise Deferred("it overlaps nothing of the map within the error of its pose; it waits for others")
        try:
            return align(target(area, voxel, settings), brought, settings, random).pose
        except UserError as error:
            raise Refused(str(error)) from error


def baked(view: View, sent: Upload, find: Align | None) -> Contribution:
    """A field in the lattice of a map, where it belongs: under its own pose, if that was surveyed or the map is empty.

    Raises:
        Refused: it does not fit, or would be too large.
        Deferred: there is nothing in the map to fit it to.
    """
    settings, frame = view.map.settings, sent.local.frame
    try:
        if 2 * frame.half > settings.widest:
            raise UserError(f"its cube is {2 * frame.half:,.0f} m wide and {settings.widest:,.0f} m are allowed")
        cells, seen = cells_of(frame, settings.voxel), sent.local.seen
        if len(seen) > cells:
            raise UserError(f"what it saw is told for {len(seen)} cells along an axis and its cube has {cells} voxels")
        if np.count_nonzero(seen) > MOST_BRICKS * CELLS:
            raise UserError(f"it saw {np.count_nonzero(seen):,} voxels and {MOST_BRICKS * CELLS:,} are allowed")
    except UserError as error:
        raise Refused(f"contribution {sent.name[:40]!r} is refused: {error}; the map is as it was") from error
    pose = sent.pose
    if find is not None and any(sent.error) and view.version:
        pose = find(view, sent)
    return bake(sent.local, pose, settings.voxel, sent.base)


def _sweep(waiting: Path) -> None:
    """Removes what clients left half-written more than an hour ago."""
    for path in waiting.glob(".*"):
        with suppress(FileNotFoundError):
            if is_unfinished(path) and path.stat().st_mtime < time.time() - 3600:
                discard(path)


def _ends_whole(path: Path) -> bool:
    """Whether the last line was not cut short."""
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END) == 0 or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n"
    except FileNotFoundError:
        return True


def _notes(content: bytes) -> Iterator[Note]:
    for line in content.splitlines():
        try:
            yield Note(**parse_json(line))
        except (ValueError, TypeError):
            continue


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether a file that waits is still there and ours alone; until the end."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file:
        try:
            lock(file, shared=False, wait=False)
        except BlockingIOError:
            yield False
            return
        try:
            mine = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            mine = False
        yield mine
