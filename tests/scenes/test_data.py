"""From a folder to clients: who owns what, what is kept back, and what is said about the rest."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from fedfields.scenes.data import Data
from tests.scenes.test_clips import greys, write_folder, write_gif, write_npz
from tests.scenes.test_images import refusal

SHARED = Path(os.environ.get("FEDFIELDS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="FEDFIELDS_DATA is not there")


def write_pictures(root, names, side=8):
    """Pictures of one grey each, a different one for each name."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (i, i, i)).save(path)
    return root


def write_split(root, text):
    (root / "split.csv").write_text(text, encoding="utf-8")
    return Data(root, split=root / "split.csv", size=8)


def names_of(clients):
    return [client.name for client in clients]


def parts_of(client):
    return {task.name for task in client.train}, {task.name for task in client.held_out}


def owners(root, folders, each):
    return write_pictures(root, [f"owner{i}/{j}.png" for i in range(folders) for j in range(each)])


# Clients


def test_one_client_per_file(tmp_path):
    write_pictures(tmp_path, ["b/2.png", "b/10.JPG", "a.png", "b/c/d.png"])
    federation = Data(tmp_path, size=8, unseen=0).load(0)
    assert names_of(federation.clients) == ["a", "b/2", "b/10", "b/c/d"]
    assert federation.unseen == ()
    assert federation.notes == ("one client per picture",)
    client = federation.clients[0]
    assert client.held_out == ()
    (task,) = client.train
    assert task.name == "a"
    assert task.support is task.query
    assert task.support.values.shape == (8, 8, 3)
    assert task.support.values[0, 0, 0].item() == pytest.approx(2 / 255)


def test_one_client_per_sub_folder(tmp_path):
    root = owners(tmp_path, folders=4, each=5)
    write_pictures(root, ["stray.png", "owner0/deep/x.png"])
    federation = Data(root, unseen=0, held_out=0.4).load(0)
    assert names_of(federation.clients) == [f"owner{i}" for i in range(4)]
    assert [len(client.held_out) for client in federation.clients] == [2, 2, 2, 2]
    assert [len(client.train) for client in federation.clients] == [4, 3, 3, 3]
    assert "owner0/deep/x" in set.union(*parts_of(federation.clients[0]))
    assert federation.notes == (
        "one client per sub-folder",
        "left out 1 file: not in the sub-folder of a client",
    )


def test_three_sub_folders_are_not_taken_for_clients(tmp_path):
    root = owners(tmp_path, folders=3, each=2)
    federation = Data(root, unseen=0).load(0)
    assert len(federation.clients) == 6
    assert "--data.clients folder" in federation.notes[0]
    assert len(Data(root, unseen=0, clients="folder").load(0).clients) == 3
    assert len(Data(owners(tmp_path / "more", 5, 2), unseen=0, clients="file").load(0).clients) == 10


def test_names_keep_their_suffix_if_they_would_clash(tmp_path):
    write_pictures(tmp_path, ["a.png", "a.jpg", "a.png.png", "b.png"])
    federation = Data(tmp_path, unseen=0).load(0)
    assert sorted(names_of(federation.clients)) == ["a.jpg", "a.png", "a.png.png", "b.png"]


@pytest.mark.parametrize(
    ("total", "fraction", "count"), [(2, 0.9, 0), (3, 0.1, 1), (8, 0.25, 2), (8, 0.0, 0), (9, 0.25, 2)]
)
def test_how_many_clients_are_unseen(tmp_path, total, fraction, count):
    write_pictures(tmp_path, [f"{i}.png" for i in range(total)])
    federation = Data(tmp_path, unseen=fraction).load(0)
    assert len(federation.unseen) == count
    assert len(federation.clients) == total - count
    for client in federation.unseen:
        assert client.train == ()
        assert len(client.held_out) == 1


@pytest.mark.parametrize(
    ("each", "fraction", "count"), [(1, 0.9, 0), (2, 0.1, 1), (8, 0.25, 2), (8, 0.0, 0), (7, 0.5, 3)]
)
def test_how_many_signals_are_held_out(tmp_path, each, fraction, count):
    federation = Data(owners(tmp_path, 4, each), held_out=fraction, unseen=0).load(0)
    assert [len(client.held_out) for client in federation.clients] == [count] * 4
    assert [len(client.train) for client in federation.clients] == [each - count] * 4


@pytest.mark.parametrize("seed", range(5))
def test_nothing_trained_on_is_evaluated_on(tmp_path, seed):
    data = Data(owners(tmp_path, 6, 5))
    federation = data.load(seed)
    train = {task.name for client in federation.clients for task in client.train}
    held_out = {task.name for client in (*federation.clients, *federation.unseen) for task in client.held_out}
    assert not train & held_out
    assert len(train) + len(held_out) == 30
    assert not set(names_of(federation.clients)) & set(names_of(federation.unseen))
    assert not any(
        task.name.startswith(client.name) for client in federation.unseen for task in [*federation.clients[0].train]
    )


def test_the_seed_decides_and_nothing_else(tmp_path):
    data = Data(owners(tmp_path, 8, 6))

    def shares(seed):
        federation = data.load(seed)
        return [(client.name, parts_of(client)) for client in (*federation.clients, *federation.unseen)]

    assert shares(3) == shares(3)
    assert len({str(shares(seed)) for seed in range(5)}) == 5


def test_what_one_client_holds_out_does_not_depend_on_the_others(tmp_path):
    data = Data(owners(tmp_path, 6, 6), unseen=0)
    before = {client.name: parts_of(client) for client in data.load(1).clients}
    (tmp_path / "owner0" / "0.png").write_text("damaged")
    write_pictures(tmp_path, ["aaa/1.png", "aaa/2.png"])
    after = {client.name: parts_of(client) for client in data.load(1).clients}
    assert all(after[f"owner{i}"] == before[f"owner{i}"] for i in range(1, 6))


def test_limit(tmp_path):
    write_pictures(tmp_path, [f"{i}.png" for i in range(9)])
    data = Data(tmp_path, limit=4)
    federation = data.load(0)
    assert (len(federation.clients), len(federation.unseen)) == (3, 1)
    assert "left out 5 files: beyond --data.limit 4" in federation.notes
    assert {str(names_of(data.load(seed).clients)) for seed in range(5)} != {str(names_of(federation.clients))}


def test_survey_agrees_with_load(tmp_path):
    data = Data(owners(tmp_path, 5, 4), size=8)
    (tmp_path / "owner1" / "0.png").write_text("damaged")
    survey, federation = data.survey(7), data.load(7)
    loaded = [(client.name, parts_of(client)) for client in federation.clients]
    assert loaded == [(s.client, (set(s.train), set(s.held_out))) for s in survey.shares if not s.unseen]
    assert names_of(federation.unseen) == [share.client for share in survey.shares if share.unseen]
    assert survey.notes == federation.notes
    assert survey.problem == ""
    assert [file.name for file in survey.files if file.status == "unusable"] == ["owner1/0.png"]
    assert {file.shape for file in survey.files if file.status == "used"} == {(8, 8)}


# What a folder may hold


def test_bad_files_are_left_out_and_named(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "d.jpg").write_text("dear diary")
    (tmp_path / "e.png").touch()
    (tmp_path / "f.png").symlink_to(tmp_path / "gone")
    (tmp_path / "readme.md").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    federation = Data(tmp_path, unseen=0).load(0)
    assert names_of(federation.clients) == ["a", "b", "c"]
    notes = "\n".join(federation.notes[1:])
    assert "left out d.jpg: holds no picture that can be read" in notes
    assert "left out e.png: is empty; copy it again or remove it" in notes
    assert "left out f.png: cannot be read (No such file or directory); mend or remove it" in notes
    assert "left out 1 file: its suffix, .md, is not of a picture or clip" in notes
    assert "left out 1 file: not a regular file" in notes
    assert len(federation.notes) == 6


def test_hidden_files_are_not_mentioned(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png", "._a.png", ".thumbnails/a.png"])
    survey = Data(tmp_path).survey()
    assert [file.name for file in survey.files] == ["a.png", "b.png"]


def test_links_are_followed_once(tmp_path):
    root = write_pictures(tmp_path / "root", ["a.png", "inner/b.png"])
    write_pictures(tmp_path / "outside", ["c.png", "deep/d.png"])
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "inner" / "loop").symlink_to(root)
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "outside")
    (root / "self").symlink_to(root / "self")
    (root / "z.png").symlink_to(root / "a.png")
    survey = Data(root, unseen=0).survey()
    assert [share.client for share in survey.shares] == ["a", "inner/b", "link/c", "link/deep/d"]
    told = {file.name: file.reason for file in survey.files if file.status != "used"}
    assert told["z.png"] == "another link to a file that is listed already"
    assert "Too many levels of symbolic links" in told["self"]


def test_a_relative_path(tmp_path, monkeypatch):
    write_pictures(tmp_path, ["a.png", "b/c.png"])
    monkeypatch.chdir(tmp_path)
    for path in (Path("."), tmp_path.relative_to(tmp_path.parent).joinpath("..", tmp_path)):
        assert names_of(Data(path, unseen=0).load(0).clients) == ["a", "b/c"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_undecodable_and_odd_names(tmp_path):
    for name in (b"\xff.png", b"\xfe.png", b"a\nb.png"):
        Image.new("RGB", (4, 4)).save(os.fsencode(tmp_path) + b"/" + name, "png")
    federation = Data(tmp_path, unseen=0).load(0)
    assert sorted(names_of(federation.clients)) == ["\\udcfe", "\\udcff", "a\\nb"]


def test_paths_that_are_no_folder(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    assert refusal(Data(tmp_path / "a.png").load, 0).endswith(f"give the folder that it is in: --data.path {tmp_path}")
    assert "does not exist" in refusal(Data(tmp_path / "none").load, 0)


def test_too_little(tmp_path):
    empty = refusal(Data(tmp_path).load, 0)
    assert empty == f"{tmp_path} holds no picture or clip that can be used (0 found); add some"
    (tmp_path / "a.cr2").touch()
    (tmp_path / "b.png").touch()
    assert "(2 found, such as b.png: is empty" in refusal(Data(tmp_path).load, 0)
    write_pictures(tmp_path, ["c.png"])
    assert "gives only one client, c, and a federation needs two" in refusal(Data(tmp_path).load, 0)
    assert "gives only one client" in Data(tmp_path).survey().problem


# Clips


def test_clips_of_all_kinds(tmp_path):
    write_gif(tmp_path / "a.gif", greys(4))
    write_npz(tmp_path / "b.npz", frames=greys(4))
    federation = Data(tmp_path, unseen=0, frames=3, size=8).load(0)
    assert names_of(federation.clients) == ["a", "b"]
    assert federation.clients[1].train[0].support.values.shape == (3, 8, 8, 3)
    assert federation.notes == ("one client per clip",)


def test_innermost_folders_of_pictures_are_clips(tmp_path):
    for name in ("walk", "run"):
        write_folder(tmp_path / name, greys(3))
    (tmp_path / "walk" / "notes.txt").write_text("left alone")
    write_pictures(tmp_path, ["contact_sheet.png"])
    (tmp_path / "more").mkdir()
    write_gif(tmp_path / "more" / "a.gif", greys(4))
    write_pictures(tmp_path, ["more/strip.png"])
    survey = Data(tmp_path, kind="video", unseen=0, size=8, frames=2).survey()
    assert [share.client for share in survey.shares] == ["more/a", "run", "walk"]
    assert {file.name: file.reason for file in survey.files if file.status != "used"} == {
        "contact_sheet.png": "a picture, where the data are clips",
        "more/strip.png": "a picture, where the data are clips",
        "walk/notes.txt": "its suffix, .txt, is not of a picture or clip",
    }


def test_sub_folders_of_clips_are_clients(tmp_path):
    for i in range(4):
        (tmp_path / f"owner{i}").mkdir()
        for j in range(2):
            write_folder(tmp_path / f"owner{i}" / f"clip{j}", greys(2))
    federation = Data(tmp_path, kind="video", unseen=0, size=8).load(0)
    assert names_of(federation.clients) == [f"owner{i}" for i in range(4)]
    assert [len(client.train) for client in federation.clients] == [1] * 4


def test_a_folder_of_pictures_alone_is_one_clip(tmp_path):
    write_folder(tmp_path / "walk", greys(3))
    text = refusal(Data(tmp_path / "walk", kind="video").load, 0)
    assert "gives only one client, walk" in text
    assert "--data.kind" in text


def test_a_mixture_needs_a_choice(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])
    write_gif(tmp_path / "c.gif", greys(4))
    assert refusal(Data(tmp_path).load, 0).endswith(
        "holds 2 pictures and 1 clips; choose with --data.kind image or --data.kind video"
    )
    federation = Data(tmp_path, kind="image").load(0)
    assert "left out 1 file: a clip, where the data are pictures" in federation.notes


# A split file


def test_split_with_parts(tmp_path):
    write_pictures(tmp_path, [f"{i}.png" for i in range(6)])
    data = write_split(
        tmp_path, "\ufefffile,client,part\n0.png,ann,train\n1.png, ann ,held_out\n\n2.png,bob,train\n3.png,cy,unseen\n"
    )
    federation = data.load(0)
    assert [(c.name, parts_of(c)) for c in federation.clients] == [("ann", ({"0"}, {"1"})), ("bob", ({"2"}, set()))]
    assert [(c.name, parts_of(c)) for c in federation.unseen] == [("cy", (set(), {"3"}))]
    assert "left out 3 files: not listed in split.csv" in federation.notes  # 4.png, 5.png and itself.


def test_split_without_parts_uses_the_fractions(tmp_path):
    write_pictures(tmp_path, [f"{i}.png" for i in range(8)])
    rows = "".join(f"{i}.png,owner{i % 4}\n" for i in range(8))
    federation = write_split(tmp_path, "file,client\n" + rows).load(0)
    assert (len(federation.clients), len(federation.unseen)) == (3, 1)
    assert [len(client.held_out) for client in federation.clients] == [1, 1, 1]


def test_split_of_frame_folders(tmp_path):
    for name in ("walk", "run"):
        write_folder(tmp_path / name, greys(3))
    federation = write_split(tmp_path, "file,client,part\nwalk,ann,train\nrun,bob,train\n").load(0)
    assert federation.clients[0].train[0].support.values.shape == (3, 8, 8, 3)


def test_a_client_left_with_nothing_to_train_on(tmp_path):
    write_pictures(tmp_path, ["0.png", "1.png", "2.png"])
    text = "file,client,part\n0.png,ann,train\n1.png,bob,train\n2.png,bob,held_out\n"
    (tmp_path / "1.png").write_text("damaged")
    federation = write_split(tmp_path, text).load(0)
    assert names_of(federation.unseen) == ["bob"]
    assert "client bob has nothing to train on, so it is unseen" in federation.notes
    (tmp_path / "0.png").rename(tmp_path / "3.png")
    assert "leaves no client anything to train on" in refusal(
        write_split(tmp_path, "file,client,part\n3.png,ann,unseen\n2.png,bob,unseen\n").load, 0
    )


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("", 1, "the header is ''"),
        ("file;client\n0.png;ann\n", 1, "the header is 'file;client', not file,client or file,client,part"),
        ("file,client\n", 2, "no files are listed"),
        ("file,client\n0.png,ann\n0.png,bob\n", 3, "0.png is listed already, in line 2"),
        ("file,client\n0.png,ann\n./0.png,bob\n", 3, "./0.png is listed already"),
        ("file,client\n\n\nnone.png,ann\n", 4, "none.png does not exist in"),
        ("file,client\n0.png\n", 2, "1 cells under 2 headings"),
        ("file,client\n0.png,ann,train\n", 2, "3 cells under 2 headings"),
        ("file,client\n0.png,\n", 2, "the file or the client is missing"),
        ("file,client\n../0.png,ann\n", 2, "../0.png is not below the data folder"),
        ("file,client\n/etc/passwd,ann\n", 2, "/etc/passwd is not below the data folder"),
        ("file,client,part\n0.png,ann,test\n", 2, "the part is 'test', not train, held_out or unseen"),
        ("file,client,part\n0.png,ann,\n", 2, "the part is ''"),
        ("file,client,part\n0.png,ann,train\n1.png,ann,unseen\n", 3, "client ann is unseen here and train in line 2"),
        ("file,client\n0.png,ann\nsplit.csv,bob\n", 3, "split.csv is not a picture, as the data are"),
        ("file,client\n0.png,ann\nfolder,bob\n", 3, "folder is not a picture"),
    ],
)
def test_errors_in_a_split_name_the_line(tmp_path, text, line, found):
    write_pictures(tmp_path, ["0.png", "1.png", "folder/2.png"])
    message = refusal(write_split(tmp_path, text).load, 0)
    assert message.startswith(f"{tmp_path / 'split.csv'}, line {line}: {found}")
    assert message.endswith("; correct the line")


def test_a_split_that_cannot_be_read(tmp_path):
    write_pictures(tmp_path, ["0.png", "1.png"])
    assert "does not exist" in refusal(Data(tmp_path, split=tmp_path / "none.csv").load, 0)
    assert "as CSV in UTF-8 (Is a directory)" in refusal(Data(tmp_path, split=tmp_path).load, 0)
    assert "as CSV in UTF-8 ('utf-8' codec" in refusal(Data(tmp_path, split=tmp_path / "0.png").load, 0)
    assert "as CSV in UTF-8 (" in refusal(write_split(tmp_path, 'file,client\n"0.png,ann\n').load, 0)


# Configuration


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"size": -1}, "size is -1"),
        ({"frames": 0}, "frames is 0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"held_out": float("nan")}, "held_out is nan"),
        ({"unseen": -0.1}, "unseen is -0.1"),
        ({"limit": 1}, "limit is 1"),
        ({"kind": "video"}, "no path"),
        ({"split": Path("a.csv")}, "no path"),
        ({"path": Path("a"), "split": Path("a.csv"), "clients": "file"}, "split names the clients"),
    ],
)
def test_nonsense_is_refused_at_construction(settings, found):
    with pytest.raises(ValueError, match=found):
        Data(**settings)


def test_every_setting_is_described(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Data, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(Data):
        flag = field.name.replace("_", "-")
        assert f"--{flag}" in text
    for words in ("photographs that come with scikit-image", "kept back to evaluate on", "replaces the rules below"):
        assert words in text


def test_importing_it_loads_nothing_heavy():
    code = "import fedfields.scenes.data, sys; print({'torch', 'PIL', 'av', 'numpy', 'skimage'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


# Real data


@needs_shared
def test_shared_animals():
    federation = Data(SHARED / "animals").load(0)
    assert (len(federation.clients), len(federation.unseen)) == (23, 7)
    values = np.stack([client.train[0].support.values.numpy() for client in federation.clients])
    assert values.shape == (23, 64, 64, 3)
    assert 0.2 < values.mean() < 0.7


@needs_shared
def test_shared_clips():
    federation = Data(SHARED / "video", frames=16).load(0)
    assert len(federation.clients) + len(federation.unseen) == 7
    assert {client.train[0].support.values.shape for client in federation.clients} == {(16, 64, 64, 3)}


def test_pictures_named_after_a_clip_are_its_previews(tmp_path):
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", frames=np.zeros((2, 4, 4, 3), np.uint8))
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}_strip.png")
    survey = Data(path=tmp_path, size=4).survey()
    assert {file.name: file.status for file in survey.files} == {
        "a.npz": "used",
        "b.npz": "used",
        "a_strip.png": "ignored",
        "b_strip.png": "ignored",
    }
