"""Merges that are killed, that find the disk full, and that meet others; and maps that lie elsewhere."""

import errno
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest

from fedfields import store as files_store
from fedfields.errors import UserError
from fedfields.mapping import commits
from fedfields.mapping import store as store_module
from fedfields.mapping.commits import merge, undo
from fedfields.mapping.store import SIDE, MapSettings, Place, create_map, open_map
from tests.mapping.made import box_of, contribution_of
from tests.mapping.test_store import by_hand, files, map_of, same

FIRST = contribution_of("first", [[0, 0, 0], [9, 0, 0], [-9, 0, 0]], 1)
SECOND = contribution_of("second", [[0, 0, 0], [9, 0, 0], [0, 9, 0]], 2)
THIRD = contribution_of("third", [[0, 0, 0]], 3)


def before_steps(monkeypatch, act):
    """Calls ``act`` before every step that changes the disk."""

    def watched(owner, name):
        original = getattr(owner, name)

        def step(*args, **kwargs):
            act()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    watched(Path, "replace"), watched(Path, "write_bytes"), watched(Path, "write_text"), watched(Path, "mkdir")
    watched(commits, "discard"), watched(files_store, "flush")


def killed_at(step, work):
    """Does ``work`` in a process that kills itself before one of its steps; whether it came so far."""

    def run():
        count = iter(range(step))

        def act():
            if next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            before_steps(patch, act)
            work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("keep", [8, 0])
def test_a_killed_merge_is_before_or_after(tmp_path, keep):
    before, after, last = by_hand(FIRST), by_hand(FIRST, SECOND), by_hand(FIRST, SECOND, THIRD)
    seen, step = set(), 0
    while True:
        store = map_of(tmp_path / str(step), FIRST, keep=keep)
        if not killed_at(step, lambda store=store: merge(store, SECOND)):
            break
        found = open_map(store.place.where).view().area()
        assert same(found, before) or same(found, after), f"killed at step {step}"
        seen.add(store.head)
        if store.head == 1:
            merge(store, SECOND)
        merge(store, THIRD)
        assert same(open_map(store.place.where).view().area(), last)
        names = files(tmp_path / str(step) / "map")
        assert not [name for name in names if ".writing-" in name]
        tiles = {store.view(v).pointer(t) for v in range(store.oldest, 4) for t in store.view(v).tiles()}
        assert {int(name.split(".")[1]) for name in names if name.startswith("tiles")} == tiles
        step += 1
    assert step >= 10 and seen == {1, 2}


def test_a_killed_undo_is_before_or_after(tmp_path):
    before, after, step = by_hand(FIRST, SECOND), by_hand(SECOND), 0
    while True:
        store = map_of(tmp_path / str(step), FIRST, SECOND)
        if not killed_at(step, lambda store=store: undo(store, "first")):
            break
        found = store.view().area()
        assert same(found, before) or same(found, after), f"killed at step {step}"
        if store.head == 2:
            undo(store, "first")
        assert same(store.view().area(), after)
        step += 1
    assert step >= 8


def test_a_full_disk_loses_nothing(tmp_path):
    before, step, full = by_hand(FIRST), 0, OSError(errno.ENOSPC, "No space left on device")
    while True:
        store = map_of(tmp_path / str(step), FIRST)
        count = iter(range(step))

        def act(count=count):
            if next(count, None) is None:
                raise full

        with pytest.MonkeyPatch.context() as patch:
            before_steps(patch, act)
            patch.setattr(commits, "discard", files_store.discard)  # To remove a file takes no space.
            try:
                merge(store, SECOND)
                break
            except UserError as told:
                assert "No space left on device" in str(told) and "\n" not in str(told)
            if store.head == 2:  # Only what is too old could not be marked as forgotten.
                break
        assert same(store.view().area(), before), f"full at step {step}"
        assert not (store.place.path / "versions" / "00000002.json").exists()
        merge(store, SECOND)
        assert same(store.view().area(), by_hand(FIRST, SECOND))
        step += 1
    assert step >= 10


def merge_all(path, contributions):
    for contribution in contributions:
        merge(open_map(path), contribution)


def test_writers_on_disjoint_tiles_and_on_one_tile_lose_nothing(tmp_path):
    """Four processes with tiles of their own, and one tile that all of them change: some order explains the result."""
    store = map_of(tmp_path, keep=20)
    given = [
        [contribution_of(f"{who} {i}", [[0, 0, 0], [10 * who, 20, 0]], 10 * who + i) for i in range(3)]
        for who in range(4)
    ]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=merge_all, args=(store.place.where, mine)) for mine in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert store.head == 12
    by_name = {contribution.name: contribution for mine in given for contribution in mine}
    order = [by_name[entry.name] for entry in store.history()]
    assert same(store.view().area(), by_hand(*order))
    assert (store.view().area().visits[0] == 12).any() or store.view().area().visits.max() > 5


def test_threads_are_serialised_too(tmp_path):
    store = map_of(tmp_path, keep=20)
    given = [contribution_of(f"c{i}", [[0, 0, 0], [100 * i, 0, 0]], i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(merge, store), given))
    order = [given[int(entry.name[1:])] for entry in store.history()]
    assert same(store.view().area(), by_hand(*order))


def test_one_name_from_many_threads_is_merged_once(tmp_path):
    store = map_of(tmp_path)

    def attempt(_):
        try:
            return merge(store, FIRST).version
        except UserError as told:
            assert "merged it already" in str(told)
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == [0, 0, 0, 1]


def test_merges_of_disjoint_tiles_do_not_wait_for_each_other(tmp_path, monkeypatch):
    """The first holds its tile, mixed and not committed, until the second is done."""
    store, written, done = map_of(tmp_path), threading.Event(), threading.Event()
    original = commits._Drafts.tile

    def tile(self, tile, layer, parts):
        original(self, tile, layer, parts)
        if tile == (0, 0, 0):
            written.set()
            assert done.wait(60)

    monkeypatch.setattr(commits._Drafts, "tile", tile)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(merge, store, contribution_of("slow", [[0, 0, 0]]))
        assert written.wait(60)
        assert merge(store, contribution_of("quick", [[50, 0, 0]])).version == 1
        done.set()
        assert slow.result(60).version == 2


def test_a_map_in_memory_and_behind_http(tmp_path):
    store = map_of(tmp_path, FIRST, SECOND)
    memory = fsspec.filesystem("memory")
    for name, content in files(store.place.path).items():
        memory.pipe_file(f"/town/{name}", content)
    remote = open_map("memory://town")
    assert same(remote.view().area(), store.view().area())
    assert same(open_map(f"file://{store.place.where}").view().area(), store.view().area())
    with pytest.raises(UserError, match="memory://town can only be read"):
        merge(remote, THIRD)
    with pytest.raises(UserError, match="is no map"):
        open_map("memory://elsewhere")
    with pytest.raises(UserError, match="cannot open nonsense://x"):
        open_map("nonsense://x")


def test_a_map_of_100_square_kilometres_costs_what_is_looked_at(tmp_path, monkeypatch):
    """400 tiles strewn over 10 km by 10 km: to open it and read a tile takes as many files as if there were one."""
    random, side, counts, real = np.random.default_rng(0), 625, [], Place.read  # Tiles of 16 m.
    for name, tiles in {"one": np.zeros((1, 2), int), "many": random.integers(-side // 2, side // 2, (400, 2))}.items():
        store = create_map(tmp_path / name, MapSettings(widest=2e4))
        coords = SIDE * np.concatenate([tiles, np.zeros((len(tiles), 1), int)], 1)
        merge(store, contribution_of(name, np.unique(coords, axis=0)))
        tile = (int(tiles[-1, 0]), int(tiles[-1, 1]), 0)
        reads = []
        with monkeypatch.context() as patch:
            patch.setattr(Place, "read", lambda self, name, reads=reads: reads.append(name) or real(self, name))
            assert open_map(tmp_path / name).view().bricks(tile).seen
        counts.append(len(reads))
        assert len(reads) <= 4, reads  # Settings, head, version, tile.
    assert counts[0] == counts[1]
    size = sum(file.stat().st_size for file in (tmp_path / "many").rglob("*") if file.is_file())
    assert size < 4 * 400 * 60_000  # A brick of float32 is 60 kB, in the tile and in the contribution that is kept.


def test_a_map_is_read_without_listing_folders(tmp_path, monkeypatch):
    """What a plain web server can do: give files whose names are known."""
    store, memory = map_of(tmp_path, FIRST, SECOND), fsspec.filesystem("memory")
    for name, content in files(store.place.path).items():
        memory.pipe_file(f"/plain/{name}", content)
    for listing in ("ls", "info", "exists"):
        monkeypatch.setattr(type(memory), listing, lambda *args, **kwargs: pytest.fail("it was listed"))
    assert same(open_map("memory://plain").view().area(), store.view().area())


def test_opening_a_large_map_reads_a_few_small_files(tmp_path, monkeypatch):
    """100 km^2: a brick every kilometre, 10 km by 10 km."""
    create_map(tmp_path / "map", MapSettings(keep=0, widest=20_000.0, precision="float16"))
    merge(open_map(tmp_path / "map"), contribution_of("all", 500 * box_of((-5, -5, 0), (5, 5, 1))))
    read = []
    monkeypatch.setattr(store_module, "read_file", lambda *args: read.append(args[0]) or files_store.read_file(*args))
    view = open_map(tmp_path / "map").view()
    assert len(view.area((0, 0, 0), (100, 100, 1)).coords) == 1
    assert len(read) <= 4 and sum(path.stat().st_size for path in read) < 100_000
    assert len(list(view.tiles())) == 100
