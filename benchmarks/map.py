"""The large-scale map: what a merge costs beside the memory bandwidth of the same run, and as the map grows.

    python benchmarks/map.py [--quick] [--json]

"merge in memory" is eq. 4 on bricks that the map has; its share is that of an in-place ``lerp`` by torch over as many
numbers, in GB/s of two arrays read and one written. "merge on disk" has everything: reading tiles, mixing, rounding,
checksums, writing, and waiting for the disk. Then a contribution to one tile is merged into maps of 1, 10, 100 and 1000
tiles, a block of ground, and the map is opened and that tile read: neither may depend on the size of the map; nor may
opening one whose tiles are strewn over 100 km^2. Medians;
of merges in memory of the process's time, of what the disk takes part in of the wall's. What rays see of a map, beside
torch's sampler and the memory, is in `map_render.py` and a part of this, too. One thread.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from map_render import rendering_rows
from measure import median

from fedfields.mapping.commits import merge
from fedfields.mapping.merge import Contribution, blank, merged
from fedfields.mapping.store import SIDE, MapSettings, create_map, open_map
from fedfields.mapping.voxels import CELLS, HARMONICS, Bricks, sorted_coords

VOXEL = 0.25
VALUES = 1 + HARMONICS


def bricks_of(coords: np.ndarray, random: np.random.Generator, seen: float = 1.0) -> Bricks:
    """Random voxels, a share of them seen."""
    coords = sorted_coords(coords)
    visits = (random.random((len(coords), CELLS)) < seen).astype(np.uint16)
    density = random.random((len(coords), CELLS), np.float32) * visits
    sh = random.standard_normal((len(coords), CELLS, HARMONICS), np.float32) * visits[..., None]
    return Bricks(coords, density, sh, visits)


def contribution_of(name: str, coords: np.ndarray, random: np.random.Generator) -> Contribution:
    return Contribution(name, bricks_of(coords, random, 0.3), VOXEL, np.eye(3, 4))


def ground(tiles: int, each: int = 1) -> np.ndarray:
    """Bricks ``[tiles * each, 3]`` on flat ground, so many in every tile of a square."""
    side = int(np.ceil(np.sqrt(tiles)))
    corners = SIDE * np.stack([np.arange(tiles) % side, np.arange(tiles) // side, np.zeros(tiles, int)], 1)
    inside = np.stack([np.arange(each) % SIDE, np.arange(each) // SIDE, np.zeros(each, int)], 1)
    return (corners[:, None] + inside).reshape(-1, 3)


def memory_rows(quick: bool) -> list[dict]:
    """Eq. 4 in memory, and torch's lerp."""
    random, count = np.random.default_rng(0), 512 if quick else 2048
    coords = ground(-(-count // 64), 64)[:count]
    brought, layer = bricks_of(coords, random), merged(blank(coords), bricks_of(coords, random), 0.9)
    old, new = torch.zeros(count * CELLS * VALUES), torch.ones(count * CELLS * VALUES)
    repeats = 3 if quick else 9
    ceiling = median(lambda: old.lerp_(new, 0.1), repeats, clock=time.process_time)
    ours = median(lambda: merged(layer, brought, 0.9), repeats, clock=time.process_time)
    size = 3 * 4 * old.numel() / 1e9
    return [
        {"row": "lerp by torch", "voxels_per_s": count * CELLS / ceiling, "GB_per_s": size / ceiling},
        {
            "row": "merge in memory",
            "voxels_per_s": count * CELLS / ours,
            "GB_per_s": size / ours,
            "share": ceiling / ours,
        },
    ]


def disk_rows(quick: bool) -> list[dict]:
    """Whole merges of 16 tiles (quick: 2) of 64 bricks, which are a ground of 16 m by 16 m each."""
    random, rows, tiles = np.random.default_rng(0), [], 2 if quick else 16
    for precision in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            store = create_map(Path(folder) / "map", MapSettings(VOXEL, precision))
            given = [contribution_of(str(i), ground(tiles, 64), random) for i in range(3 if quick else 5)]
            times = []
            for contribution in given:
                before = time.perf_counter()
                told = merge(store, contribution)
                times.append(time.perf_counter() - before)
            rate = told.voxels / statistics.median(times[1:])
            sizes = {"bytes_per_voxel": told.written / told.voxels}
            rows.append({"row": f"merge on disk, {precision}", "voxels_per_s": rate, **sizes})
    return rows


def growth_rows(quick: bool) -> list[dict]:
    """One tile merged into larger and larger maps, and these opened."""
    rows = []
    for tiles in (1, 10, 100, 1000):
        random = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map"
            store = create_map(path, MapSettings(VOXEL, "float16", widest=1e5))
            merge(store, contribution_of("all", ground(tiles), random))
            given = iter(contribution_of(str(i), ground(1, 64), random) for i in range(20))
            repeats = 3 if quick else 9
            merging = median(lambda store=store, given=given: merge(store, next(given)), repeats)
            opening = median(lambda path=path: open_map(path).view().bricks((0, 0, 0)), repeats)
            size = sum(file.stat().st_size for file in path.rglob("tiles/*/*"))
        rows.append({"row": f"{tiles} tiles", "merge_s": merging, "open_and_read_s": opening, "tile_MB": size / 1e6})
    return rows


def sparse_rows(quick: bool) -> list[dict]:
    """A map of 1000 tiles (quick: 100) strewn over 100 km^2, with a brick in each: opened, and walked through."""
    random, tiles = np.random.default_rng(0), 100 if quick else 1000
    where = random.integers(-312, 313, (tiles, 2))
    coords = np.unique(SIDE * np.concatenate([where, np.zeros((tiles, 1), int)], 1), axis=0)
    with tempfile.TemporaryDirectory() as folder:
        path, repeats = Path(folder) / "map", 3 if quick else 9
        store = create_map(path, MapSettings(VOXEL, "float16", widest=2e4))
        merge(store, contribution_of("all", coords, random))
        tile = next(store.view().tiles())
        opening = median(lambda: open_map(path).view().bricks(tile), repeats)
        listing = median(lambda: list(open_map(path).view().tiles()), repeats)
        size = sum(file.stat().st_size for file in path.rglob("tiles/*/*"))
    return [{"row": "100 km^2", "open_and_read_s": opening, "find_all_tiles_s": listing, "tile_MB": size / 1e6}]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less than a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "memory": memory_rows,
        "disk": disk_rows,
        "growth": growth_rows,
        "sparse": sparse_rows,
        "rendering": rendering_rows,
    }
    found = {name: rows(options.quick) for name, rows in parts.items()}
    if options.json:
        print(json.dumps(found))
        return
    for row in (row for rows in found.values() for row in rows):
        told = {key: value for key, value in row.items() if key != "row"}
        print(f"{row['row']:24} " + "  ".join(f"{key} {value:,.4g}" for key, value in told.items()))


if __name__ == "__main__":
    main()
