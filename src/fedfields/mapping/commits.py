"""Merging into a map, undoing, forgetting: each wholly or not at all, by any number of processes and threads at once.

A merge reads its tiles, mixes, and writes new files beside the old ones, all without a lock. To commit, it takes the
map's only lock, does again what others have changed in the meantime, gives its files their names, and replaces
``head.json``. So merges of disjoint tiles run in parallel, two writers of one tile are serialised, and nobody can wait
for each other for ever. Whoever is killed before ``head.json`` is replaced has changed nothing; the next writer removes
what is left.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from fedfields.errors import UserError
from fedfields.mapping.history import Entry, Tile, base_of, entry_from, in_force, later_than, oldest_needed
from fedfields.mapping.index import NAMES, TILES, key_of_name
from fedfields.mapping.merge import Contribution, Layer, Refused, check_contribution, merged
from fedfields.mapping.packing import about, largest, packed, packed_layer, unpacked, unpacked_layer
from fedfields.mapping.store import Gone, Map, contribution_file, in_tiles, key_of, tile_file, version_file
from fedfields.mapping.voxels import Bricks
from fedfields.store import (
    cannot_write,
    discard,
    flush_all,
    parse_json,
    sweep,
    tensors_as_bytes,
    tensors_from_bytes,
    write_json,
)


class Merged(NamedTuple):
    """What a merge did.

    Attributes:
        version: of the map, with the contribution.
        tiles: how many it touched.
        voxels: how many it touched.
        written: bytes of the files of these tiles.
        kept: eta, as it was for this contribution.
    """

    version: int
    tiles: int
    voxels: int
    written: int
    kept: float


def merge(store: Map, contribution: Contribution) -> Merged:
    """Mixes a contribution into a map (eq. 4).

    Raises:
        UserError: it is refused (see `check_contribution`), is there already, or cannot be written; nothing changed.
    """
    settings = store.settings
    check_contribution(contribution, settings.voxel, settings.widest, largest(settings.precision))
    parts = in_tiles(contribution.bricks)
    with _drafting(store) as drafts:
        base = store.head
        _check_new(store, base, contribution)
        kept = settings.mixing.kept(contribution.views, _age(contribution, base))
        found = {tile: drafts.merge_if_there(base, tile, part, kept) for tile, part in parts.items()}
        if settings.keep:
            drafts.contribution(contribution)
        drafts.flush()
        with drafts.committing():
            now = store.view()
            _check_new(store, now.version, contribution)
            for tile, part in parts.items():
                if found[tile] != now.pointer(tile):  # Others were here in the meantime.
                    found[tile] = drafts.merge(now.version, tile, part, kept)
            version = now.version + 1
            tiles = {tile: (version, before or 0) for tile, before in found.items()}
            drafts.commit(Entry(version, "merge", contribution.name, 0, kept, tiles, [], about(contribution)))
    return Merged(version, len(parts), contribution.bricks.seen, drafts.written, kept)


def undo(store: Map, name: str) -> int:
    """Makes the map what it would be if the contribution of this name had never come; returns the new version.

    What came later and is mixed again keeps its weight. The name may come again.

    Raises:
        UserError: the map does not have it, it is not one of the last ones, or the map cannot be written.
    """
    with _drafting(store) as drafts, drafts.committing():
        now, history = store.view(), store.history()
        version = store.merged_by(now.version, name)
        _check_undoable(store, history, version, name)
        brought = functools.cache(lambda merge: in_tiles(_contribution(store, merge)))
        tiles: dict[Tile, tuple[int, int]] = {}
        for tile in store.entry(version).tiles:
            base = base_of(history, version, tile)
            before, later = store.view(base).pointer(tile), later_than(history, base, version, tile)
            if later:
                drafts.tile(tile, store.layer(tile, before), [(brought(e.version)[tile], e.kept) for e in later])
            tiles[tile] = (now.version + 1 if later else before, now.pointer(tile))
        drafts.commit(Entry(now.version + 1, "undo", name, version, 0.0, tiles, [], {}))
    return now.version + 1


def _age(contribution: Contribution, head: int) -> int:
    """Versions since the client began."""
    base = head if contribution.base is None else contribution.base
    if not 0 <= base <= head:
        raise Refused(
            f"contribution {contribution.name[:40]!r} is refused: it began with version {base}, and the map has "
            f"{head}; the map is as it was"
        )
    return head - base


def _check_new(store: Map, version: int, contribution: Contribution) -> None:
    before = store.merged_by(version, contribution.name)
    if before:
        raise Refused(
            f"contribution {contribution.name[:40]!r} is refused: version {before} merged it already; undo that first"
        )


def _check_undoable(store: Map, history: list[Entry], version: int, name: str) -> None:
    where, keep = store.place.where, store.settings.keep
    if not version:
        raise UserError(f"{where} has no contribution {name[:40]!r}; nothing was undone")
    if version not in [entry.version for entry in in_force(history)[-keep:] if keep]:
        raise UserError(
            f"{name[:40]!r} came too long ago to be undone: {where} keeps what the last {keep} brought; it stays"
        )


def _contribution(store: Map, version: int) -> Bricks:
    """What a version merged, bit for bit."""
    return unpacked(tensors_from_bytes(store.place.read(contribution_file(version)))[0])


class _Drafts:
    """The files of a version that is being made, in a folder of their own until they are committed."""

    def __init__(self, store: Map, root: Path, folder: Path) -> None:
        self._store, self._root, self._folder = store, root, folder
        self._paths: dict[Tile, Path] = {}
        self._unflushed: set[Path] = set()
        self.written = 0
        """Bytes of the tiles that were committed."""

    def merge_if_there(self, version: int, tile: Tile, part: Bricks, kept: float) -> int | None:
        """As `merge`; None if the version is no longer kept."""
        try:
            return self.merge(version, tile, part, kept)
        except Gone:
            return None

    def merge(self, version: int, tile: Tile, part: Bricks, kept: float) -> int:
        """Writes a tile of a version with one more contribution; returns which version had written that tile."""
        pointer = self._store.view(version).pointer(tile)
        self.tile(tile, self._store.layer(tile, pointer), [(part, kept)])
        return pointer

    def tile(self, tile: Tile, layer: Layer, parts: list[tuple[Bricks, float]]) -> None:
        """Writes a tile with these parts of contributions, of which each is mixed in with its own eta."""
        mixing, precision = self._store.settings.mixing, self._store.settings.precision
        tensors = {}
        for part, kept in parts:  # Each is rounded, as when it is the only one.
            layer = unpacked_layer(tensors) if tensors else layer
            tensors = packed_layer(merged(layer, mixing.taken(part), kept, mixing.first), precision)
        self._paths[tile] = self._folder / "_".join(map(str, tile))
        self._write(self._paths[tile], tensors_as_bytes(tensors))

    def contribution(self, contribution: Contribution) -> None:
        """Writes what is merged, so that others can be undone."""
        content = tensors_as_bytes(packed(contribution.bricks, "float32"), about(contribution))
        self._write(self._folder / "contribution", content)

    def flush(self) -> None:
        """Waits until all that was written is on the disk."""
        try:
            flush_all(self._unflushed)
        except OSError as error:
            raise cannot_write(self._root, error) from error
        self._unflushed.clear()

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.write_bytes(content)
        except OSError as error:
            raise cannot_write(self._root, error) from error
        self._unflushed.add(path)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Nobody else commits meanwhile."""
        with opened(self._root / "commit.lock") as file:
            lock(file, shared=False)
            yield

    def commit(self, entry: Entry) -> None:
        """Makes the entry and the files the newest version.

        Raises:
            UserError: the disk is full, or the like; nothing has changed.
        """
        store, version = self._store, entry.version
        name = version if entry.kind == "merge" else 0
        leaves = {
            TILES: {key_of(t): now for t, (now, _) in entry.tiles.items()},
            NAMES: {key_of_name(entry.name): name},
        }
        nodes, replaced = store.index.changed(version - 1, leaves, version)
        told = {**entry._replace(replaced=replaced).as_json(), "nodes": nodes}
        self._write(self._folder / "version", json.dumps(told, separators=(",", ":")).encode())
        self.flush()
        moves = {self._folder / "version": version_file(version)}  # First: it says which files are its own.
        moves |= {self._paths[tile]: tile_file(tile, version) for tile in self._paths}
        moves |= {path: contribution_file(version) for path in self._folder.glob("contribution")}
        self.written = sum(path.stat().st_size for path in self._paths.values())
        _roll_back(self._root, version)
        try:
            _move({draft: self._root / final for draft, final in moves.items()})
            write_json(self._root / "head.json", {"version": version})
        finally:
            if store.head < version:
                _roll_back(self._root, version)
        with suppress(UserError, OSError):  # The next writer tries again.
            _forget(store, self._root)


@contextmanager
def _drafting(store: Map) -> Iterator[_Drafts]:
    """A folder for drafts, removed in the end; what killed writers left is removed if nobody else writes."""
    root = store.place.path
    if root is None:
        raise UserError(f"{store.place.where} can only be read; merge into a folder on this machine and copy that")
    with opened(root / "writers.lock") as file:
        with suppress(BlockingIOError):
            lock(file, shared=False, wait=False)
            sweep(root)
            sweep(root / "writing")
        lock(file, shared=True)
        try:
            (root / "writing").mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=root / "writing"))
        except OSError as error:
            raise cannot_write(root, error) from error
        try:
            yield _Drafts(store, root, folder)
        finally:
            discard(folder)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to lock, made if it is not there."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:  # Closing it gives the lock back, and so does the end of the process.
        yield file


def lock(file: IO[bytes], *, shared: bool, wait: bool = True) -> None:
    """Locks an open file, against threads of this process too.

    Raises:
        BlockingIOError: somebody else has it, and we do not ``wait``.
        UserError: the system has no such locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UserError("merging into a map needs file locks, which this system lacks; use Linux or macOS") from error
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _move(moves: dict[Path, Path]) -> None:
    """Gives files their names, in this order, and waits until the names are on the disk."""
    folders = list(dict.fromkeys(final.parent for final in moves.values()))
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for draft, final in moves.items():
            draft.replace(final)
        flush_all({above for folder in folders for above in (folder, folder.parent)})
    except OSError as error:
        raise cannot_write(next(iter(moves.values())), error) from error


def _roll_back(root: Path, version: int) -> None:
    """Removes the files of a version that was not committed, if there are any."""
    path = root / version_file(version)
    if path.exists():
        entry = entry_from(parse_json(path.read_bytes()))
        for tile, (now, _) in entry.tiles.items():
            if now == version:
                discard(root / tile_file(tile, version))
        discard(root / contribution_file(version))
        discard(path)


def _forget(store: Map, root: Path) -> None:
    """Removes, version by version, what only versions have that are too old to be needed; again, if it was stopped."""
    entries = store.history()
    oldest = oldest_needed(entries, store.settings.keep)
    for entry in entries:
        if entry.version > oldest:
            break
        later = [other.tiles for other in entries if other.version > entry.version]
        for tile, (now, before) in entry.tiles.items():
            restored = any(tiles.get(tile, (0, 0))[0] == before for tiles in later)
            if before and now != before and not restored:
                discard(root / tile_file(tile, before))
        discard(root / contribution_file(entry.version))
        for writer in entry.replaced:
            with suppress(Gone):
                if not store.index.lives(entry.version, writer):
                    discard(root / version_file(writer))
        write_json(root / "collected.json", {"version": entry.version})
