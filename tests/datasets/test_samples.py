"""Rows of many clients: who trains, who judges, what is refused."""

import io
import zipfile

import numpy as np
import pytest
import torch

from fedfields.datasets import Samples, Sinusoids
from fedfields.datasets.digits import digits
from fedfields.datasets.episodes import Episodes
from fedfields.datasets.text import CHARACTERS
from fedfields.errors import UserError
from fedfields.federation import realise
from fedfields.types import Task


def write_clients(folder, count=10, rows=12, classes=3, suffix=".npz"):
    """Files of clients whose inputs name the client and the row."""
    folder.mkdir(exist_ok=True)
    for client in range(count):
        x = np.array([[client, row] for row in range(rows)], np.float32)
        y = np.arange(rows) % classes
        if suffix == ".npz":
            np.savez(folder / f"c{client}.npz", x=x, y=y)
        else:
            lines = [
                "a,b,y",
                *(f"{one[0]:g},{one[1]:g},{'cat' if label else 'dog'}" for one, label in zip(x, y, strict=True)),
            ]
            (folder / f"c{client}.csv").write_text("\n".join(lines))
    return folder


def groups_of(found):
    return {
        "train": [client.name for client in found.clients],
        "validation": [client.name for client in found.validation],
        "unseen": [client.name for client in found.unseen],
    }


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_every_client_is_in_one_group_and_every_row_in_support_or_query(tmp_path, suffix):
    found = Samples(write_clients(tmp_path / "d", suffix=suffix)).load(seed=1)
    groups = groups_of(found)
    assert {name: len(names) for name, names in groups.items()} == {"train": 8, "validation": 1, "unseen": 1}
    assert sorted(name for names in groups.values() for name in names) == sorted(f"c{i}" for i in range(10))
    assert (found.shape, found.kind) == ((2,), "classes") and found.outputs == (3 if suffix == ".npz" else 2)
    tasks = [(one.name, task) for one in found.clients for task in one.train]
    tasks += [(one.name, task) for one in (*found.validation, *found.unseen) for task in one.held_out]
    assert not any(one.train for one in (*found.validation, *found.unseen))
    for name, task in tasks:
        support, query = task.support.everything(), task.query.everything()
        rows = torch.cat([support.inputs, query.inputs])
        assert set(rows[:, 0].tolist()) == {float(name[1:])}
        assert sorted(rows[:, 1].tolist()) == list(range(12)) and len(support.inputs) == round(0.2 * 12)
        assert len(set(support.targets.tolist())) == min(2, found.outputs)  # Every class in turn.


def test_the_seed_decides_and_nothing_else(tmp_path):
    folder = write_clients(tmp_path / "d", count=30)
    one, same, other = (groups_of(Samples(folder).load(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_sealed_clients_are_left_out_and_the_others_are_the_same(tmp_path):
    folder = write_clients(tmp_path / "d", count=30)
    whole, sealed = (groups_of(Samples(folder, sealed=one).load(4)) for one in (False, True))
    assert len(whole["unseen"]) == 3 and sealed == whole | {"unseen": []}


def test_one_file_can_hold_the_rows_of_all(tmp_path):
    x, owners = np.arange(40, dtype=np.float32), np.repeat([3, 5, 7, 9], 10)
    np.savez(tmp_path / "all.npz", value=x, goal=2 * x, site=owners, room=owners % 2)
    data = Samples(tmp_path / "all.npz", inputs="value", target="goal", client="site,room", unseen=0.0, validation=0.0)
    found = data.load(0)
    assert [one.name for one in found.clients] == ["3-1", "5-1", "7-1", "9-1"]
    assert (found.shape, found.outputs, found.kind) == ((1,), 1, "numbers")
    query = found.clients[1].train[0].query.everything()
    assert torch.equal(query.targets, 2 * query.inputs) and set(query.inputs[:, 0].tolist()) <= set(range(10, 20))


def test_bytes_are_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 7), np.uint8)
    np.savez(tmp_path / "all.npz", x=images, y=np.arange(12) % 2, client=np.arange(12) // 4)
    found = Samples(tmp_path / "all.npz", unseen=0.0, validation=0.0).load(0)
    assert found.shape == (1, 9, 7)
    shown = torch.cat([part.everything().inputs for one in found.clients for part in one.train[0][:2]])
    assert shown.max() <= 1 and shown.sum().item() == pytest.approx(images.sum() / 255, rel=1e-5)


def test_digits_are_split_by_class_and_no_row_is_anybody_elses():
    rows = digits(0)
    kinds = [sorted(set(one.targets.tolist())) for one in rows.values()]
    assert all(len(one) == 2 for one in kinds) and len(rows) == 50
    assert sum(len(one.inputs) for one in rows.values()) == 1797
    assert [sum(digit in one for one in kinds) for digit in range(10)] == [10] * 10


def test_sinusoids_are_what_the_paper_says():
    found = Sinusoids(clients=50).load(0)
    assert (len(found.clients), len(found.validation), len(found.unseen)) == (40, 5, 5)
    for client in found.clients:
        support, query = client.train[0].support.everything(), client.train[0].query.everything()
        assert support.inputs.shape == (10, 1) and query.inputs.shape == (50, 1)
        x, y = (torch.cat([getattr(part, name) for part in (support, query)])[:, 0] for name in ("inputs", "targets"))
        waves = torch.stack([x.sin(), x.cos()], 1)  # a sin(x - b) = a cos b sin x - a sin b cos x
        fitted = torch.linalg.lstsq(waves, y[:, None]).solution[:, 0]
        assert (waves @ fitted - y).abs().max() < 1e-4
        assert 0.1 <= fitted.norm() <= 5 and fitted[1] <= 1e-4 and x.abs().max() <= 5  # b in [0, pi]: sin b >= 0


def test_an_episode_has_n_classes_k_shots_and_nothing_twice():
    random = torch.Generator().manual_seed(0)
    source = Episodes(torch.arange(60.0)[:, None], torch.arange(60) % 6, ways=4, shots=2, queries=3)
    seen = set()
    for _ in range(20):
        task = realise(Task(source, source), random)
        support, query = task.support.everything(), task.query.everything()
        assert support.targets.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and len(query.inputs) == 12
        rows = torch.cat([support.inputs, query.inputs])[:, 0].long()
        assert len(rows.unique()) == 20
        for label in range(4):  # Support and query call the same class by the same number.
            mine = torch.cat([support.inputs[support.targets == label], query.inputs[query.targets == label]])
            assert len((mine.long() % 6).unique()) == 1
        seen.add(tuple((support.inputs[::2, 0].long() % 6).tolist()))
    assert len(seen) > 10


def test_judges_get_the_same_episodes_each_time(tmp_path):
    data = Samples(write_clients(tmp_path / "d", rows=20, classes=4), ways=3, shots=2, queries=2, episodes=5)
    one, two = data.load(0), data.load(0)
    assert one.outputs == 3 and len(one.unseen[0].held_out) == 5
    for mine, its in zip(one.unseen[0].held_out, two.unseen[0].held_out, strict=True):
        assert torch.equal(mine.query.everything().inputs, its.query.everything().inputs)
    first, second = (task.support.everything().inputs for task in one.unseen[0].held_out[:2])
    assert not torch.equal(first, second)


def test_copies_turn_a_picture_and_keep_its_class(tmp_path):
    image = np.zeros((4, 21, 21), np.uint8)
    image[:, 8:13, 8:13] = 255
    np.savez(tmp_path / "all.npz", x=image, y=np.arange(4) % 2, client=np.arange(4) // 2)
    load = Samples(tmp_path / "all.npz", copies=6, unseen=0.0, validation=0.0).load
    task = load(0).clients[0].train[0]
    both = [part.everything() for part in (task.support, task.query)]
    shown = torch.cat([part.inputs for part in both])
    assert (
        shown.shape == (12, 1, 21, 21)
        and sorted(torch.cat([part.targets for part in both]).tolist()) == [0] * 6 + [1] * 6
    )
    mass = shown.sum((1, 2, 3))
    assert mass.std() > 0 and ((mass / 25 - 1).abs() < 0.5).all()  # Sizes differ by up to 15 % each way.
    still = Samples(tmp_path / "all.npz", copies=1, turn=0.0, unseen=0.0, validation=0.0).load(0)
    same = torch.cat([part.everything().inputs for part in still.clients[0].train[0][:2]])
    assert torch.allclose(same, torch.from_numpy(image[:2, None]) / 255, atol=1e-5)


def test_texts_are_rows_of_characters_and_the_ones_after_them(tmp_path):
    for name in ("anna", "ben", "carl"):
        (tmp_path / f"{name}.txt").write_text(f"{name} says hello, {name} says ß. " * 9)
    found = Samples(tmp_path, length=10, validation=0.0, unseen=0.0).load(0)
    assert found.shape == (10,) and found.outputs == len(CHARACTERS) + 1
    task = found.clients[0].train[0]
    rows = [part.everything() for part in (task.support, task.query)]
    inputs, targets = (torch.cat([getattr(part, name) for part in rows]) for name in ("inputs", "targets"))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = "anna says hello, anna says ß. " * 9
    spelled = {"".join((CHARACTERS + "?")[i] for i in row) for row in inputs.tolist()}
    assert spelled == {text.replace("ß", "?")[i : i + 10] for i in range(0, len(text) - 10, 10)}


def bad_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


REFUSED = {
    "no such path": (lambda p: p / "nothing", "does not exist"),
    "empty folder": (lambda p: p, "has no .npz, .csv or .txt"),
    "no target": (lambda p: bad_npz(p / "a.npz", x=np.ones(3), client=np.ones(3)), "no array 'y'"),
    "lengths": (lambda p: bad_npz(p / "a.npz", x=np.ones(3), y=np.ones(2), client=np.ones(3)), "different lengths"),
    "not finite": (lambda p: bad_npz(p / "a.npz", x=np.full(4, np.nan), y=np.ones(4), client=np.ones(4)), "not finite"),
    "words as inputs": (
        lambda p: bad_npz(p / "a.npz", x=np.array(["a", "b"]), y=[1, 2], client=[1, 2]),
        "must be numbers",
    ),
    "negative class": (lambda p: bad_npz(p / "a.npz", x=np.ones(2), y=[-1, 2], client=[1, 1]), "count from 0"),
    "objects": (
        lambda p: bad_npz(p / "a.npz", x=np.array([{}, {}], object), y=[1, 2], client=[1, 2]),
        "no .npz file of plain arrays",
    ),
    "no zip": (lambda p: (p / "a.npz", (p / "a.npz").write_bytes(b"PK nothing"))[0], "no .npz file"),
    "one client": (lambda p: bad_npz(p / "a.npz", x=np.ones(9), y=np.ones(9, int), client=np.ones(9)), "needs two"),
    "csv without target": (lambda p: (p / "a.csv", (p / "a.csv").write_text("a,b\n1,2\n"))[0], "no column 'y'"),
    "csv cells": (
        lambda p: (p / "a.csv", (p / "a.csv").write_text("client,a,y\n1,2,3\n1,2\n"))[0],
        "line 3, has 2 cells",
    ),
    "csv words": (lambda p: (p / "a.csv", (p / "a.csv").write_text("client,a,y\n1,red,3\n"))[0], "line 2: a is 'red'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_one_clear_line(tmp_path, what):
    make, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as error:
        Samples(make(tmp_path)).load(0)
    assert "\n" not in str(error.value)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fedfields.datasets.tables.LARGEST", 1 << 20)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", b"\0" * (1 << 22))
    (tmp_path / "a.npz").write_bytes(packed.getvalue())
    with pytest.raises(UserError, match="unpacks to more"):
        Samples(tmp_path / "a.npz").load(0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"support": 1.0}, "support"),
        ({"ways": 1}, "ways is 1"),
        ({"shape": "8by8"}, "write it as"),
        ({"unseen": 1.0}, "unseen"),
        ({"copies": -1}, "copies"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        Samples(**settings)
