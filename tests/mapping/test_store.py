"""The map on disk: what is in it, at every version, whatever happens."""

import functools

import numpy as np
import pytest

from fedfields.errors import UserError
from fedfields.mapping.commits import merge, undo
from fedfields.mapping.merge import Mixing, blank, merged
from fedfields.mapping.store import MapSettings, create_map, in_tiles, open_map, tile_file
from tests.mapping.made import box_of, bricks_of, contribution_of


def same(a, b):
    return all(x.tobytes() == y.tobytes() and x.shape == y.shape for x, y in zip(a, b, strict=True))


def random_contribution(seed, spread=10):
    """Some bricks around zero; the next ones overlap with it."""
    random = np.random.default_rng(seed)
    return contribution_of(f"c{seed}", random.integers(-spread, spread, (10, 3)), seed)


def by_hand(*contributions, first="debias"):
    """What a map of these contributions must show."""
    layers = [blank(bricks_of([]).coords.reshape(-1, 3))]
    layer = functools.reduce(lambda layer, c: merged(layer, c.bricks, 0.9, first), contributions, layers[0])
    return layer.shown()


def map_of(path, *contributions, **settings):
    store = create_map(path / "map", MapSettings(**settings))
    for contribution in contributions:
        merge(store, contribution)
    return store


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("first", ["debias", "zero", "replace"])
def test_a_map_shows_what_its_contributions_come_to(tmp_path, first):
    given = [random_contribution(seed) for seed in range(4)]
    store = map_of(tmp_path, *given, mixing=Mixing(first=first))
    assert same(open_map(store.place.where).view().area(), by_hand(*given, first=first))
    assert store.head == 4


def test_every_version_stays_as_it_was(tmp_path):
    given = [random_contribution(seed) for seed in range(4)]
    store = map_of(tmp_path, *given)
    for version in range(5):
        assert same(store.view(version).area(), by_hand(*given[:version]))


def test_an_area_is_the_bricks_that_touch_it(tmp_path):
    store = map_of(tmp_path, contribution_of(coords=box_of((-9, -9, -1), (9, 9, 1))))
    low, high = (-3.9, 2.1, -0.5), (-0.1, 40.0, 0.5)  # Bricks are 2 m wide: x of -2 and -1, y from 1, z of -1 and 0.
    expected = box_of((-2, 1, -1), (0, 9, 1))
    assert store.view().area(low, high).coords.tolist() == expected.tolist()
    assert {tile[0] for tile in store.view().tiles(low, high)} == {-1}
    assert len(store.view().area((500, 500, 500), (1e300, 1e300, 1e300)).coords) == 0


def test_only_seen_voxels_take_room(tmp_path):
    """A voxel takes 28 values, 2 bytes of visits and 4 of weight; a brick 12 bytes of coordinates and a bit a voxel."""
    sizes = {}
    for precision, bytes_ in [("float32", 4), ("float16", 2)]:
        store = create_map(tmp_path / precision, MapSettings(precision=precision, keep=0))
        told = merge(store, contribution_of(coords=box_of((0, 0, 0), (4, 4, 4))))
        sizes[precision] = told.written
        voxels = contribution_of(coords=box_of((0, 0, 0), (4, 4, 4))).bricks.seen
        assert told.voxels == voxels
        assert told.written == pytest.approx(voxels * (28 * bytes_ + 6) + 64 * (64 + 12), abs=2000)
    assert sizes["float16"] < 0.56 * sizes["float32"]


@pytest.mark.parametrize(("precision", "error"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_half_precision_rounds_what_is_stored(tmp_path, precision, error):
    given = [random_contribution(0), random_contribution(1)]
    found, exact = map_of(tmp_path, *given, precision=precision).view().area(), by_hand(*given)
    assert np.array_equal(found.visits, exact.visits)
    assert np.abs(found.density - exact.density).max() <= 2 * error * exact.density.max()
    assert np.abs(found.density - exact.density).max() > 0


def test_a_merge_leaves_all_other_files_alone(tmp_path):
    store = map_of(tmp_path, contribution_of("a", box_of((0, 0, 0), (30, 30, 1))), keep=99)
    before = files(tmp_path)
    merge(store, contribution_of("b", [[20, 20, 0]]))
    after = files(tmp_path)
    new = after.keys() - before.keys()
    assert len([name for name in new if "tiles" in name]) == 1
    assert {name for name in before if after[name] != before[name]} == {"map/head.json"}


def test_a_name_is_merged_once_and_may_come_again_when_undone(tmp_path):
    store = map_of(tmp_path, contribution_of("a"))
    with pytest.raises(UserError, match="'a' is refused: version 1 merged it already"):
        merge(store, contribution_of("a", seed=5))
    undo(store, "a")
    assert merge(store, contribution_of("a")).version == 3


def test_undoing_the_newest_restores_the_files(tmp_path):
    given = [random_contribution(seed) for seed in range(3)]
    store = map_of(tmp_path, *given, precision="float16")
    tiles = {tile: store.view(2).pointer(tile) for tile in store.view(2).tiles()}
    undo(store, "c2")
    assert {tile: store.view().pointer(tile) for tile in store.view().tiles()} == tiles
    assert same(store.view().area(), store.view(2).area())


@pytest.mark.parametrize("density", ["linear", "log"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("order", [(0,), (1,), (2, 1), (1, 2), (3, 0), (0, 3), (0, 1, 2, 3), (3, 1, 2)])
def test_undoing_is_as_if_it_had_never_come(tmp_path, order, precision, density):
    given = [random_contribution(seed) for seed in range(4)]
    settings = {"precision": precision, "mixing": Mixing(density=density)}
    store = map_of(tmp_path, *given, **settings)
    for number in order:
        undo(store, f"c{number}")
    left = [c for i, c in enumerate(given) if i not in order]
    other = map_of(tmp_path / "never", *left, **settings)
    assert same(store.view().area(), other.view().area())


def test_any_order_of_merging_and_undoing(tmp_path):
    """A long random history beside a map that is made anew of what should be left; old files do not pile up."""
    random, store = np.random.default_rng(0), create_map(tmp_path / "map", MapSettings(keep=3, precision="float16"))
    left: list[int] = []
    kept = 0
    for step in range(25):
        if kept and random.random() < 0.4:
            undo(store, f"c{left.pop(-int(random.integers(1, kept + 1)))}")
            kept -= 1
        else:
            merge(store, random_contribution(step, spread=8))
            left.append(step)
            kept = min(kept + 1, 3)
    fresh = map_of(tmp_path / "fresh", *(random_contribution(seed, spread=8) for seed in left), precision="float16")
    assert same(store.view().area(), fresh.view().area())
    for version in range(store.oldest, store.head + 1):
        store.view(version).area()
    needed = {
        tile_file(tile, store.view(version).pointer(tile))
        for version in range(store.oldest, store.head + 1)
        for tile in store.view(version).tiles()
    }
    root = tmp_path / "map"
    assert {name for name in files(root) if name.startswith("tiles")} == needed
    assert len(list((root / "contributions").iterdir())) <= store.head - store.oldest
    assert len(list((root / "versions").iterdir())) <= 2 * (store.head - store.oldest) + 8


def test_what_is_too_old_cannot_be_undone(tmp_path):
    store = map_of(tmp_path, *(random_contribution(seed) for seed in range(5)), keep=2)
    with pytest.raises(UserError, match="'c2' came too long ago to be undone"):
        undo(store, "c2")
    with pytest.raises(UserError, match="has no contribution 'x'; nothing was undone"):
        undo(store, "x")
    undo(store, "c3")
    with pytest.raises(UserError, match="no longer kept; open the map's newest one"):
        open_map(store.place.where).view(1).area()


def test_stale_contributions_count_less(tmp_path):
    store = map_of(tmp_path, contribution_of("a"), contribution_of("b"), mixing=Mixing(staleness=1.0))
    assert merge(store, contribution_of("old", base=0)).kept == pytest.approx(0.9 ** (1 / 3))
    assert merge(store, contribution_of("new", base=3)).kept == 0.9
    with pytest.raises(UserError, match="began with version 9, and the map has 4"):
        merge(store, contribution_of("early", base=9))


def test_a_refused_contribution_changes_no_file(tmp_path):
    store = map_of(tmp_path, contribution_of("a"))
    before = files(tmp_path)
    bad = contribution_of("b")
    bad.bricks.density[0, 0] = np.nan
    with pytest.raises(UserError, match="the map is as it was"):
        merge(store, bad)
    assert files(tmp_path) == before


def test_tiles_share_out_the_bricks_on_both_sides_of_zero():
    parts = in_tiles(bricks_of([[-9, 0, 7], [-8, 0, 7], [-1, 0, 8], [0, 0, 8]]))
    assert {tile: part.coords.tolist() for tile, part in parts.items()} == {
        (-2, 0, 0): [[-9, 0, 7]],
        (-1, 0, 0): [[-8, 0, 7]],
        (-1, 0, 1): [[-1, 0, 8]],
        (0, 0, 1): [[0, 0, 8]],
    }


def test_maps_that_are_none(tmp_path):
    with pytest.raises(UserError, match="is no map"):
        open_map(tmp_path)
    map_of(tmp_path)
    with pytest.raises(UserError, match="is a map already"):
        create_map(tmp_path / "map")
    (tmp_path / "map" / "map.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2"):
        open_map(tmp_path / "map")


@pytest.mark.parametrize("name", ["map.json", "head.json", "versions/00000001.json", "tiles/0_0_0/0_0_0.1.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1, 2]", b"\xff" * 100, b'{"version": "x", "nodes": {}, "format": 1}']
)
def test_damaged_files_are_one_line(tmp_path, name, content):
    map_of(tmp_path, contribution_of(coords=[[0, 0, 0]]))
    (tmp_path / "map" / name).write_bytes(content)
    with pytest.raises(UserError) as told:
        open_map(tmp_path / "map").view().area()
    assert "\n" not in str(told.value)
