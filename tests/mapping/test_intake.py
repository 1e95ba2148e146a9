"""The queue of a map: everything that comes is merged once or refused in one line, whoever is killed when."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfields.errors import UserError
from fedfields.mapping import intake
from fedfields.mapping.commits import merge, undo
from fedfields.mapping.intake import Aligner, Deferred, Queue, Rules
from fedfields.mapping.merge import Contribution, Refused
from fedfields.mapping.packing import contribution_as_bytes
from fedfields.mapping.rigid import apart
from fedfields.mapping.store import MapSettings, create_map, open_map
from fedfields.mapping.upload import Upload, sent_from_bytes, upload_as_bytes
from fedfields.scenes.frame import Frame
from tests.mapping.made import contribution_of
from tests.mapping.places import baked
from tests.mapping.test_align import HOUSES, OFFSET, SETTINGS, TRUTH, VOXEL, cameras, wrong
from tests.mapping.test_bake import local_of, pose_of
from tests.mapping.test_store import by_hand, random_contribution, same

CAMERAS = np.stack([pose_of(3), pose_of(4)])


def queue_of(path, **settings):
    return Queue(create_map(path / "map", MapSettings(**settings)))


def upload_of(**options):
    given = {"pose": pose_of(), "error": (3.0, 2.0), "cameras": CAMERAS, "base": None} | options
    return Upload(local_of(), **given)


def with_local(**options):
    return upload_of()._replace(local=local_of()._replace(**options))


def test_what_travels_comes_back():
    sent = upload_of(base=4)
    found = sent_from_bytes(upload_as_bytes(sent))
    assert isinstance(found, Upload)
    assert (found.name, found.error, found.base, found.local.field) == ("drone 7", (3.0, 2.0), 4, sent.local.field)
    assert np.array_equal(found.pose, sent.pose) and np.array_equal(found.cameras, sent.cameras)
    assert np.array_equal(found.local.seen, sent.local.seen)
    assert all(torch.equal(found.local.params[name], leaf) for name, leaf in sent.local.params.items())


def test_contributions_are_merged_in_the_order_in_which_they_came(tmp_path):
    queue, given = queue_of(tmp_path), [random_contribution(seed) for seed in range(3)]
    for i, one in enumerate(given):
        os.utime(queue._file(queue.put(contribution_as_bytes(one))), ns=(i, i))
    assert [note.state for note in queue.states().values()] == ["waiting"] * 3
    assert queue.work(Rules()) == 3
    assert same(queue.store.view().area(), by_hand(*given))
    assert [(note.name, note.state, note.version) for note in queue.journal()] == [
        (one.name, "merged", i + 1) for i, one in enumerate(given)
    ]
    assert queue.waiting() == [] and queue.work(Rules()) == 0


def test_a_field_is_baked_under_the_pose_that_is_found(tmp_path):
    queue, sent = queue_of(tmp_path), upload_of()
    right = np.concatenate([np.eye(3), [[1.0], [2.0], [3.0]]], 1)
    queue.put(contribution_as_bytes(random_contribution(0)))
    queue.put(upload_as_bytes(sent))
    queue.work(Rules(), lambda view, upload: right)
    about = [entry.about for entry in queue.store.history() if entry.name == "drone 7"]
    assert [np.array(one["pose"]).tolist() for one in about] == [right.tolist()]


def test_the_pose_of_a_field_is_found_in_the_map(tmp_path, monkeypatch):
    """A village in another lattice; a pose that is 1,000 m off overlaps nothing, and what does not fit is refused."""
    store = create_map(tmp_path / "map", MapSettings(VOXEL))
    merge(store, Contribution("map", baked(HOUSES, (-24, -24, -2), (24, 24, 12), VOXEL, 1, 0.5), VOXEL, np.eye(3, 4)))
    part = baked(HOUSES, (-12, -20, -2), (24, 16, 12), VOXEL, 2, 0.5, OFFSET)
    start = wrong(0, part, 2.0, 4.0)
    upload, find = upload_of(pose=start, error=(2.5, 5.0), cameras=cameras()), Aligner(SETTINGS)
    monkeypatch.setattr(intake, "bake", lambda local, pose, voxel: Contribution("c", part, voxel, pose))
    degrees, metres = apart(find(store.view(), upload), TRUTH, np.zeros(3))
    assert degrees < 0.5 and metres < 0.25 and apart(start, TRUTH, np.zeros(3))[1] > 1
    with pytest.raises(Deferred, match="overlaps nothing"):
        find(store.view(), upload._replace(pose=start + [[0, 0, 0, 1000.0]] * 3))
    hasty = replace(SETTINGS, search=replace(SETTINGS.search, hypotheses=512), confidence=1.0, steps=1)
    with pytest.raises(Refused, match="a confidence of"):
        Aligner(hasty)(store.view(), upload)


def test_a_surveyed_pose_and_the_first_one_are_believed(tmp_path):
    def never(view, upload):
        raise AssertionError("nothing is to be aligned here")

    queue = queue_of(tmp_path)
    queue.put(upload_as_bytes(upload_of()))  # The map is empty: somebody has to be the first.
    queue.work(Rules(), never)
    second = with_local(name="surveyed")._replace(error=(0.0, 0.0))
    queue.put(upload_as_bytes(second))
    queue.work(Rules(), never)
    assert queue.store.head == 2


def test_what_overlaps_nothing_waits_until_something_is_there(tmp_path):
    queue, asked = queue_of(tmp_path), []

    def find(view, upload):
        asked.append(view.version)
        if view.version < 2:
            raise Deferred("nothing of the map is near")
        return upload.pose

    queue.put(contribution_as_bytes(random_contribution(0)))
    queue.work(Rules())
    queue.put(upload_as_bytes(upload_of()))
    assert queue.work(Rules(), find) == 0 == queue.work(Rules(), find)
    assert asked == [1]  # Not again before the map has changed.
    assert [note.state for note in queue.journal()] == ["merged", "waiting"]
    assert queue.states().popitem()[1].why == "nothing of the map is near"
    queue.put(contribution_as_bytes(random_contribution(1)))
    assert queue.work(Rules(), find) == 2
    assert [note.state for note in queue.journal()][-1] == "merged" and queue.waiting() == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: contribution_as_bytes(contribution_of(coords=[[0, 0, 0], [9999, 0, 0]])), "m wide"),
        (lambda: contribution_as_bytes(contribution_of()._replace(voxel=0.5)), "bake it again"),
        (lambda: contribution_as_bytes(contribution_of(base=7)), "began with version 7"),
        (lambda: upload_as_bytes(with_local(frame=Frame((0.0, 0.0, 0.0), 5e4))), "100,000 m wide"),
        (lambda: upload_as_bytes(with_local(frame=Frame((0.0, 0.0, 0.0), 900.0))), "7200 voxels"),
        (lambda: upload_as_bytes(with_local(seen=np.ones((64, 64, 64), bool))), "64 cells along an axis"),
    ],
)
def test_what_would_damage_the_map_is_refused_in_one_line(tmp_path, content, why):
    queue = queue_of(tmp_path)
    queue.put(content())
    assert queue.work(Rules()) == 1
    (note,) = queue.journal()
    assert note.state == "refused" and why in note.why and "\n" not in note.why
    assert queue.store.head == 0 and queue.waiting() == []


def spoiled():
    """Uploads that are impossible."""
    nan, local = np.full((3, 4), np.nan), local_of()
    yield upload_of(pose=nan), "its frame: the pose holds NaN"
    yield upload_of(pose=2 * pose_of()), "no rotation"
    yield upload_of(cameras=np.stack([nan])), "a camera of it: the pose holds NaN"
    yield upload_of(cameras=CAMERAS[:, :2]), "x 3 x 4"
    yield upload_of(error=(float("nan"), 0.0)), "may be off"
    yield upload_of(error=(-1.0, 0.0)), "may be off"
    weights = {**local.params, "table": local.params["table"] * float("nan")}
    yield with_local(params=weights), "not finite"
    yield with_local(name="a\nb"), "printable"


@pytest.mark.parametrize(("upload", "why"), [*spoiled()], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_impossible_does_not_get_into_the_queue(tmp_path, upload, why):
    with pytest.raises(Refused, match=why) as told:
        queue_of(tmp_path).put(upload_as_bytes(upload))
    assert "\n" not in str(told.value)


def test_nor_does_what_somebody_puts_there_past_the_door(tmp_path):
    queue = queue_of(tmp_path)
    digest = queue.put(contribution_as_bytes(contribution_of()))
    for content, name in [(b"", "0" * 64), (b"junk" * 99, "1" * 64), (queue._file(digest).read_bytes()[:-9], digest)]:
        queue._file(name).write_bytes(content)
    assert queue.work(Rules()) == 3
    assert {note.state for note in queue.journal()} == {"refused"} and queue.store.head == 0


def test_a_duplicate_is_refused_and_may_come_again_after_it_was_undone(tmp_path):
    queue, content = queue_of(tmp_path), contribution_as_bytes(contribution_of())
    other = contribution_as_bytes(contribution_of(seed=5))  # By the same name.
    for each in (content, content, other):
        queue.put(each)
        queue.work(Rules())
    assert [note.state for note in queue.journal()] == ["merged", "refused", "refused"]
    assert all("version 1 merged it already" in note.why for note in queue.journal()[1:])
    undo(queue.store, "one")
    queue.put(content)
    queue.work(Rules())
    assert queue.journal()[-1].state == "merged" and queue.store.head == 3


@pytest.mark.parametrize("lost", [["discard"], ["discard", "write"]], ids=["the file stays", "and nothing is noted"])
def test_a_crash_after_the_merge_makes_no_duplicate(tmp_path, monkeypatch, lost):
    queue = queue_of(tmp_path)
    queue.put(contribution_as_bytes(contribution_of()))
    with monkeypatch.context() as patch:
        patch.setattr(intake, "discard", lambda path: None)
        if "write" in lost:
            patch.setattr(Queue, "_write", lambda self, note: None)
        assert queue._settle(queue.waiting()[0], Rules(), None).state == "merged"
    assert queue.work(Rules()) == 1 and queue.waiting() == []
    assert [note.state for note in queue.journal()] == ["merged"] and queue.store.head == 1


def test_a_stale_one_is_refused(tmp_path):
    queue = queue_of(tmp_path)
    for i in range(3):
        queue.put(contribution_as_bytes(random_contribution(i)))
        queue.work(Rules(stale=2))
    for base, state in [(0, "refused"), (1, "merged")]:
        queue.put(contribution_as_bytes(contribution_of(f"from {base}", base=base)))
        queue.work(Rules(stale=2))
        assert queue.journal()[-1].state == state
    assert "began with version 0" in queue.journal()[-2].why


def test_a_full_disk_refuses_nobody(tmp_path, monkeypatch):
    queue = queue_of(tmp_path)
    queue.put(contribution_as_bytes(contribution_of()))

    def full(*_):
        raise UserError("cannot write it: No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space"):
        patch.setattr(intake, "merge", full)
        queue.work(Rules())
    assert queue.journal() == [] and queue.work(Rules()) == 1


def test_a_journal_that_a_crash_cut_short_goes_on(tmp_path):
    queue = queue_of(tmp_path)
    for seed in range(2):
        queue.put(contribution_as_bytes(random_contribution(seed)))
        queue.work(Rules())
        path = tmp_path / "map" / "queue" / "journal.jsonl"
        path.write_bytes(path.read_bytes() + b'{"digest": "12')
    assert [note.name for note in queue.journal()] == ["c0", "c1"]
    assert [bool(line.endswith("}")) for line in path.read_text().splitlines()] == [True, False, True, False]
    assert json.loads(path.read_text().splitlines()[2])["name"] == "c1"


def serve(path):
    """A worker that goes on until it is killed."""
    queue = Queue(open_map(path))
    while True:
        queue.work(Rules())
        time.sleep(0.005)


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_are_killed_at_any_moment_lose_nothing_and_merge_nothing_twice(tmp_path, seed):
    """One of three processes is killed after each contribution; in the end the map is that of all, in some order."""
    queue, given = queue_of(tmp_path, keep=16), [random_contribution(i, spread=4) for i in range(12)]
    chance, fork, workers = random.Random(seed), multiprocessing.get_context("fork"), []
    for one in given:
        queue.put(contribution_as_bytes(one))
        while len(workers) < 3:
            workers.append(fork.Process(target=serve, args=(tmp_path / "map",)))
            workers[-1].start()
        time.sleep(chance.uniform(0, 0.15))
        victim = workers.pop(chance.randrange(3))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    for worker in workers:
        worker.kill()
        worker.join()
    queue.work(Rules())
    merged = sorted((note for note in queue.journal() if note.state == "merged"), key=lambda note: note.version)
    assert queue.waiting() == []
    assert sorted(note.name for note in merged) == sorted(one.name for one in given)
    assert [note.version for note in merged] == list(range(1, 13))
    by_name = {one.name: one for one in given}
    assert same(queue.store.view().area(), by_hand(*(by_name[note.name] for note in merged)))
