"""A map on disk or in object storage: immutable files, and one small file that says which version is the newest.

::

    map.json                            settings, never changed
    head.json                           the newest version; replacing it is what commits a merge
    collected.json                      the oldest version that is still kept
    versions/00000012.json              what made version 12, and the nodes of the index that it wrote
    tiles/0_-1_0/3_-5_1.12.safetensors  the seen voxels of tile (3, -5, 1), as version 12 wrote them
    contributions/00000012.safetensors  what was merged, kept while it can be undone

Nothing is found by listing a folder, so that a map can be read wherever fsspec reads, and a file is never written
twice: whoever copies ``head.json`` last always leaves a map that is whole. Merging needs a local file system, with
locks (`fedfields.mapping.commits`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedfields.errors import UserError
from fedfields.mapping.history import Entry, Tile, entry_from
from fedfields.mapping.index import MIDDLE, NAMES, TILES, Index, Key, Nodes, key_of_name
from fedfields.mapping.merge import Layer, Mixing, blank
from fedfields.mapping.packing import Precision, unpacked_layer
from fedfields.mapping.voxels import EDGE, Bricks, joined
from fedfields.store import parse_json, read_file, tensors_from_bytes, write_text

SIDE = 8
"""Bricks along the edge of a tile."""

FORMAT = 1
"""Of the files; another number is another layout."""

MOST = 2**28
"""Largest file that is read, in bytes: some times a tile of which every voxel was seen."""


@dataclass(frozen=True)
class MapSettings:
    """What a map is, once and for all."""

    voxel: float = 0.25
    """Edge of a voxel, in metres."""

    precision: Precision = "float32"
    """Of stored densities and colours: half the disk with float16 (11 bits, up to 65,504) or bfloat16 (8 bits)."""

    mixing: Mixing = field(default_factory=Mixing)
    """How contributions are mixed."""

    keep: int = 8
    """So many contributions, the last ones, can be undone."""

    widest: float = 2000.0
    """A contribution that is wider, in metres along an axis, is refused."""

    def __post_init__(self) -> None:
        if not 0 < self.voxel < math.inf:
            raise ValueError(f"voxel is {self.voxel}; it must be positive and finite")
        if self.precision not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}; it must be float32, float16 or bfloat16")
        if self.keep < 0:
            raise ValueError(f"keep is {self.keep}; it must not be negative")
        if not self.widest > 0:
            raise ValueError(f"widest is {self.widest}; it must be positive")

    @property
    def tile(self) -> float:
        """Edge of a tile, in metres."""
        return SIDE * EDGE * self.voxel


class Gone(UserError):
    """A version of a map is asked for that is no longer kept."""


class Place:
    """A folder to read from, wherever it is: a path, or an address that fsspec knows (``s3://``, ``https://``)."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where).rstrip("/")
        local = isinstance(where, Path) or "://" not in where
        self.path = Path(where) if local else Path(self.where[7:]) if self.where.startswith("file://") else None
        """Where it is on this machine; None elsewhere."""
        self._files = None if self.path else _remote(self.where)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            UserError: it cannot be read.
        """
        try:
            if self.path:
                return read_file(self.path / name, MOST)
            files, root = self._files  # pyright: ignore
            return files.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            raise
        except Exception as error:  # Every file system has its own.
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read {self.where}/{name}: {why:.200}; is the address right?") from error


def _remote(where: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(where)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {where}: {' '.join(str(error).split())}") from error


class Map:
    """A map, as a folder has it. Made by `create_map` or `open_map`."""

    def __init__(self, place: Place, settings: MapSettings) -> None:
        self.place = place
        self.settings = settings
        self._version = functools.lru_cache(256)(self._read_version)
        self.index = Index(lambda version: self._version(version)[1])

    @property
    def head(self) -> int:
        """The newest version, as of now; 0 is the empty map."""
        return self._number("head.json")

    @property
    def oldest(self) -> int:
        """The oldest version that can still be read."""
        return self._number("collected.json")

    def _number(self, name: str) -> int:
        try:
            return int(parse_json(self.place.read(name))["version"])
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self.place, name, error) from error

    def entry(self, version: int) -> Entry:
        """What made a version.

        Raises:
            UserError: it is damaged; `Gone`, if it is no longer kept.
        """
        return self._version(version)[0]

    def history(self) -> list[Entry]:
        """What made the versions that are kept, oldest first."""
        return [self.entry(version) for version in range(self.oldest + 1, self.head + 1)]

    def _read_version(self, version: int) -> tuple[Entry, Nodes]:
        name = version_file(version)
        try:
            found = parse_json(self.place.read(name))
            return entry_from(found), found["nodes"]
        except FileNotFoundError as error:
            raise _gone(self.place, name) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.place, name, error) from error

    def view(self, version: int | None = None) -> View:
        """The map at a version, by default the newest; later merges do not change it."""
        return View(self, self.head if version is None else version)

    def merged_by(self, version: int, name: str) -> int:
        """The version that merged the contribution of this name, if ``version`` has it; else 0."""
        return self.index.find(version, NAMES, key_of_name(name))

    def layer(self, tile: Tile, pointer: int) -> Layer:
        """What the file of a tile that version ``pointer`` wrote holds; of pointer 0, nothing.

        Raises:
            UserError: it is damaged; `Gone`, if it is no longer kept.
        """
        if not pointer:
            return blank(np.zeros((0, 3), np.int32))
        name = tile_file(tile, pointer)
        try:
            return unpacked_layer(tensors_from_bytes(self.place.read(name))[0])
        except FileNotFoundError as error:
            raise _gone(self.place, name) from error
        except (ValueError, KeyError, RuntimeError) as error:
            raise _damaged(self.place, name, error) from error


class View(NamedTuple):
    """A map at one version.

    Attributes:
        map: the map.
        version: the version.
    """

    map: Map
    version: int

    def tiles(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Iterator[Tile]:
        """The tiles that hold anything; only those that touch the box from ``low`` to ``high`` (metres), if given."""
        edge, last = self.map.settings.tile, 2 * MIDDLE - 1
        least = _key(np.floor(np.asarray(low, np.float64) / edge)) if low is not None else (0, 0, 0)
        most = _key(np.floor(np.asarray(high, np.float64) / edge)) if high is not None else (last, last, last)
        for key, _ in self.map.index.within(self.version, TILES, least, most):
            yield tile_of(key)

    def pointer(self, tile: Tile) -> int:
        """The version that wrote the file of a tile; 0 if it is empty."""
        return self.map.index.find(self.version, TILES, key_of(tile))

    def layer(self, tile: Tile) -> Layer:
        """What the map keeps of a tile."""
        return self.map.layer(tile, self.pointer(tile))

    def bricks(self, tile: Tile) -> Bricks:
        """A tile as it is to be shown."""
        return self.map.settings.mixing.given(self.layer(tile).shown())

    def area(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Bricks:
        """The bricks that touch the box from ``low`` to ``high`` (metres), or all."""
        parts = [self.bricks(tile) for tile in self.tiles(low, high)]
        whole, edge = joined(parts), EDGE * self.map.settings.voxel
        inside = np.ones(len(whole.coords), bool)
        if low is not None:
            inside &= (whole.coords >= np.floor(np.asarray(low) / edge)).all(1)
        if high is not None:
            inside &= (whole.coords <= np.floor(np.asarray(high) / edge)).all(1)
        return whole if inside.all() else whole.chosen(inside)


def key_of(tile: Tile) -> Key:
    """A tile's place in the index."""
    return tile[0] + MIDDLE, tile[1] + MIDDLE, tile[2] + MIDDLE


def tile_of(key: Key) -> Tile:
    """The inverse of `key_of`."""
    return key[0] - MIDDLE, key[1] - MIDDLE, key[2] - MIDDLE


def _key(tile: NDArray[np.float64]) -> Key:
    """The key of a tile that may be out of the world."""
    x, y, z = np.clip(tile + MIDDLE, 0, 2 * MIDDLE - 1).astype(np.int64).tolist()
    return x, y, z


def in_tiles(bricks: Bricks) -> dict[Tile, Bricks]:
    """The bricks of each tile."""
    tiles, which = np.unique(bricks.coords // SIDE, axis=0, return_inverse=True)
    which = which.reshape(-1)
    return {(x, y, z): bricks.chosen(which == i) for i, (x, y, z) in enumerate(tiles.tolist())}


def tile_file(tile: Tile, version: int) -> str:
    """Name of a tile's file; 16^3 tiles share a folder."""
    x, y, z = tile
    return f"tiles/{x >> 4}_{y >> 4}_{z >> 4}/{x}_{y}_{z}.{version}.safetensors"


def version_file(version: int) -> str:
    """Name of the file that says what made a version."""
    return f"versions/{version:08d}.json"


def contribution_file(version: int) -> str:
    """Name of the file with what a version merged."""
    return f"contributions/{version:08d}.safetensors"


def create_map(path: Path, settings: MapSettings | None = None) -> Map:
    """An empty map in a new folder.

    Raises:
        UserError: there is one already, or nothing can be written there.
    """
    settings = settings or MapSettings()
    if (path / "map.json").exists():
        raise UserError(f"{path} is a map already; open it, or choose another folder")
    write_text(path / "map.json", json.dumps({"format": FORMAT, **dataclasses.asdict(settings)}, indent=2) + "\n")
    return Map(Place(path), settings)


def open_map(where: str | Path) -> Map:
    """The map in a folder, or at an address that fsspec knows.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    place = Place(where)
    try:
        found = parse_json(place.read("map.json"))
        number = found.pop("format")
        if number != FORMAT:
            raise UserError(
                f"{place.where} has format {number}, this program reads {FORMAT}; use the one that wrote it"
            )
        return Map(place, MapSettings(**found | {"mixing": Mixing(**found["mixing"])}))
    except FileNotFoundError as error:
        raise UserError(
            f"{place.where} is no map: it has no map.json; make one first, or correct the address"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(place, "map.json", error) from error


def _damaged(place: Place, name: str, error: Exception) -> UserError:
    why = " ".join(str(error).split())
    return UserError(f"{place.where}/{name} is damaged: {why:.200}; bring it back from a copy")


def _gone(place: Place, name: str) -> Gone:
    return Gone(f"{place.where}/{name} is not there: its version is no longer kept; open the map's newest one")
