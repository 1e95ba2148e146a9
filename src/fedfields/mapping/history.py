"""What happened to a map, and what undoing a contribution means: as if it had never come.

Undoing the newest one gives its tiles the files that they had before. Undoing an older one takes its tiles as they were
before it, and merges again what came later. So tiles and contributions are kept back to the first that may be needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Tile = tuple[int, int, int]
"""Coordinates of a cube of 8^3 bricks."""


class Entry(NamedTuple):
    """What made a version of a map.

    Attributes:
        version: its number; the empty map is 0.
        kind: a contribution was merged, or undone.
        name: of the contribution.
        of: the version that had merged what was undone; 0 for a merge.
        kept: eta of a merge.
        tiles: what it changed: the version that wrote the tile's file now and before; 0 where there is none.
        replaced: versions whose nodes of the index it replaced.
        about: of a merge, what was told about the contribution.
    """

    version: int
    kind: Literal["merge", "undo"]
    name: str
    of: int
    kept: float
    tiles: dict[Tile, tuple[int, int]]
    replaced: list[int]
    about: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As its file has it."""
        return {**self._asdict(), "tiles": {" ".join(map(str, tile)): pair for tile, pair in self.tiles.items()}}


def entry_from(found: dict[str, Any]) -> Entry:
    """The inverse of `Entry.as_json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is damaged.
    """
    tiles = {_tile(text): (int(now), int(before)) for text, (now, before) in found["tiles"].items()}
    told: dict[str, Any] = {name: found[name] for name in Entry._fields}
    told["tiles"] = tiles
    return Entry(**told)


def _tile(text: str) -> Tile:
    x, y, z = map(int, text.split())
    return x, y, z


def in_force(entries: Sequence[Entry]) -> list[Entry]:
    """The merges among consecutive entries that were not undone, oldest first."""
    undone = {entry.of for entry in entries}
    return [entry for entry in entries if entry.kind == "merge" and entry.version not in undone]


def base_of(entries: Sequence[Entry], version: int, tile: Tile | None = None) -> int:
    """The newest version before a merge that has nothing of what was undone by now.

    Args:
        entries: consecutive ones up to the newest.
        version: the merge.
        tile: what was undone matters only if it touched this tile; without one, in any case.
    """
    base = version - 1
    for entry in sorted((e for e in entries if e.kind == "undo"), key=lambda e: -e.of):
        if entry.of <= base < entry.version and (tile is None or tile in entry.tiles):
            base = entry.of - 1
    return base


def later_than(entries: Sequence[Entry], base: int, version: int, tile: Tile) -> list[Entry]:
    """What has to be merged to the tile of version ``base`` again, if the merge ``version`` is undone."""
    return [e for e in in_force(entries) if e.version > base and e.version != version and tile in e.tiles]


def oldest_needed(entries: Sequence[Entry], keep: int) -> int:
    """The oldest version that is needed to undo any of the last ``keep`` contributions; the newest if none is.

    Args:
        entries: consecutive ones up to the newest, from the oldest version that was needed so far.
        keep: how many contributions.
    """
    last = in_force(entries)[-keep:] if keep else []
    return min((base_of(entries, entry.version) for entry in last), default=entries[-1].version)
