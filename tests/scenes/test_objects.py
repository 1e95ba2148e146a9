"""Sets of objects: who owns what, which photographs are fitted, and what is refused."""

import dataclasses
import shutil

import pytest
import torch

from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.scenes.objects import Objects, dirichlet_shares, object_folders
from fedfields.seeds import generator
from tests.scenes.ball import write_capture


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Six balls of several sizes and colours, in folders of two kinds."""
    root = tmp_path_factory.mktemp("objects")
    for i in range(6):
        write_capture(root / f"kind-{i % 2}" / f"ball-{i}", size=12, train=5, test=3, radius=0.5 + 0.05 * i, turn=i % 3)
    return root


def load(balls, seed=0, **changes):
    return Objects(path=balls, size=0, half=1.5, **changes).load(seed, jitters=4)


def names(clients, part):
    return [task.name for client in clients for task in getattr(client, part)]


@pytest.mark.parametrize("clients", [0, 2, 3, 6])
def test_every_object_belongs_to_exactly_one_client(balls, clients):
    found = load(balls, clients=clients, seed=3)
    everybody = (*found.clients, *found.unseen)
    assert len(everybody) == (clients or 6)
    assert sorted(names(everybody, "train") + names(everybody, "held_out")) == [
        f"kind-{i % 2}/ball-{i}" for i in (0, 2, 4, 1, 3, 5)
    ]
    assert all(client.train for client in found.clients) and not any(client.train for client in found.unseen)
    again = load(balls, clients=clients, seed=3)
    assert [c.name for c in again.clients] == [c.name for c in found.clients]
    assert names(again.clients, "train") == names(found.clients, "train")


def test_photographs_are_of_the_right_split_and_number(balls):
    found = load(balls, support=2, query=3, shots=1)
    for client in found.clients:
        for task in client.train:
            assert [len(task.support.photos), len(task.query.photos)] == [2, 3]
    for client in found.unseen:
        for task in client.held_out:
            assert [len(task.support.photos), len(task.query.photos)] == [1, 3]
    for client in (*found.clients, *found.unseen):
        for task in (*client.train, *client.held_out):
            assert {photo.name.split("/")[1] for photo in task.support.photos} == {"train"}
            assert {photo.name.split("/")[1] for photo in task.query.photos} == {"test"}


def test_few_shots_change_nothing_but_the_fit(balls):
    """The photographs of training and those that judge are the same, and the few are the first of the many."""
    many, few = load(balls, support=4), load(balls, support=4, shots=2)
    for one, other in zip(many.clients, few.clients, strict=True):
        assert [t.support.photos[0].name for t in one.train] == [t.support.photos[0].name for t in other.train]
    for one, other in zip(many.unseen, few.unseen, strict=True):
        for a, b in zip(one.held_out, other.held_out, strict=True):
            assert [p.name for p in a.support.photos[:2]] == [p.name for p in b.support.photos]


def test_views_by_dirichlet_keep_their_mean(balls):
    found = load(balls, support=3, views_alpha=0.5, unseen=0.0)
    counts = [len(task.support.photos) for client in found.clients for task in client.train]
    assert min(counts) >= 1 and len(set(counts)) > 1
    # Nobody has more photographs than there are (five), so the total may be smaller than 3 x 6.
    assert sum(counts) <= 18


@pytest.mark.parametrize(("total", "owners"), [(5, 5), (29, 7), (400, 30)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, 1e6])
def test_dirichlet_shares_add_up(total, owners, alpha):
    for seed in range(20):
        shares = dirichlet_shares(total, owners, alpha, generator(seed))
        assert sum(shares) == total and min(shares) >= 1 and len(shares) == owners
        if alpha in (0.0, 1e6):  # The limit of the Dirichlet distribution: equal shares.
            assert max(shares) - min(shares) <= max(1, round(0.1 * total / owners))


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    """Var of a proportion is p (1 - p) / (n alpha + 1) with p = 1 / n."""
    owners, alpha, total = 4, 2.0, 100_000
    draws = torch.tensor([dirichlet_shares(total, owners, alpha, generator(seed)) for seed in range(2000)]) / total
    expected = 0.25 * 0.75 / (owners * alpha + 1)
    assert float(draws.var(0).mean()) == pytest.approx(expected, rel=0.1)
    assert float(draws.mean(0).max()) == pytest.approx(0.25, abs=0.02)


def test_objects_are_found_at_any_depth_but_not_inside_of_each_other(tmp_path):
    write_capture(tmp_path / "cars" / "0295" / "a", size=8, train=2, test=1)
    write_capture(tmp_path / "b", size=8, train=2, test=1)
    write_capture(tmp_path / "b" / "inside", size=8, train=2, test=1)
    write_capture(tmp_path / ".hidden", size=8, train=2, test=1)
    assert object_folders(tmp_path) == [tmp_path / "b", tmp_path / "cars" / "0295" / "a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"half": 0.3}, "outside of the cube"),
        ({"clients": 9}, "6 objects, too few for 9 clients"),
        ({"path": None}, "--data"),
    ],
)
def test_what_cannot_be_used_is_one_line(balls, changes, words):
    data = dataclasses.replace(Objects(path=balls, size=0, half=1.5), **changes)
    with pytest.raises(UserError, match=words) as caught:
        data.load(0, jitters=1)
    assert "\n" not in str(caught.value)


def test_folders_without_objects_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds 0 objects"):
        Objects(path=tmp_path).load(0, 1)
    with pytest.raises(UserError, match="not a folder"):
        Objects(path=tmp_path / "nothing").load(0, 1)
    write_capture(tmp_path / "one", size=8, train=2, test=1)
    with pytest.raises(UserError, match="holds 1 object"):
        Objects(path=tmp_path).load(0, 1)


@pytest.mark.parametrize(
    "wrong", [{"support": 0}, {"unseen": 1.0}, {"alpha": -1.0}, {"half": 0.0}, {"size": -1}, {"held_out": -0.1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        Objects(**wrong)


def test_check_lists_objects_and_what_is_wrong(balls, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(balls, folder)
    with pytest.raises(SystemExit) as caught:
        main(["check", str(folder)])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "kind-0/ball-0" in out and "a run can use this" in out
    picture = next((folder / "kind-1" / "ball-1" / "train").iterdir())
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(SystemExit) as caught:
        main(["check", str(folder)])
    assert caught.value.code == 1 and "1 of them must be put right" in capsys.readouterr().out
