"""Owners of a collection of many people's photographs: by EXIF, by the names that Flickr's have, or one each."""

import json

import numpy as np
import pytest
from PIL import Image

from fedfields.scenes.captures import load_capture
from fedfields.scenes.photographers import gathered, photographer_of
from fedfields.scenes.scene import Scene
from fedfields.scenes.tour import Tour
from tests.scenes.test_captures import SHARED


def write_collection(folder, names, exifs=None):
    """Photographs of these names around a place, with EXIF tags where there are some."""
    frames = []
    for i, name in enumerate(names):
        exif = Image.Exif()
        for tag, value in (exifs or {}).get(name, {}).items():
            if tag in (0xA430, 0xA431):
                exif.get_ifd(0x8769)[tag] = value
            else:
                exif[tag] = value
        Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(folder / name, exif=exif)
        pose = [*Tour().pose(0.5 * i).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": name, "transform_matrix": pose})
    train = {"train_filenames": list(names), "val_filenames": [], "test_filenames": []}
    camera = {"fl_x": 9.0, "fl_y": 9.0, "cx": 4.0, "cy": 3.0, "w": 8, "h": 6}
    (folder / "transforms.json").write_text(json.dumps(camera | train | {"frames": frames}))


def shares(folder, clients=20):
    place = Scene(folder, clients=clients, partition="photographer").load()
    return [[photo.name for photo in client.train[0].support.photos] for client in place.clients]


def test_photographs_go_to_who_took_them(tmp_path):
    exifs = {
        "a.jpg": {0x013B: "Ann\0", 0x0110: "X1"},
        "b.jpg": {0xA430: " Bob "},
        "c.jpg": {0x010F: "Maker", 0x0110: "X1"},
        "d.jpg": {0x010F: "Maker", 0x0110: "X1", 0xA431: "77"},
        "e.jpg": {0x013B: "Ann"},
        "f.jpg": {0x010F: "Maker", 0x0110: "X1"},
    }
    write_collection(tmp_path, [*exifs, "g.jpg", "h.jpg"], exifs)
    assert shares(tmp_path) == [["a.jpg", "e.jpg"], ["b.jpg"], ["c.jpg", "f.jpg"], ["d.jpg"], ["g.jpg"], ["h.jpg"]]


def test_accounts_in_the_names_of_a_flickr_collection(tmp_path):
    names = ["02928139_3448003521.jpg", "02928139_99999999.jpg", "17295357_9106075285.jpg"]
    by_date = ["20190704_153022.jpg", "20190704_153055.jpg", "20190704_153022123.jpg"]  # Cameras count like that.
    write_collection(tmp_path, names + by_date)
    assert shares(tmp_path) == [names[:2], names[2:], *([name] for name in by_date)]


def test_of_too_many_photographers_several_are_one_client(tmp_path):
    names = [f"{10000000 + owner}_{1000000 + i}.jpg" for owner, count in enumerate((1, 3, 2, 2)) for i in range(count)]
    write_collection(tmp_path, names)
    assert list(map(len, shares(tmp_path))) == [1, 3, 2, 2]
    assert list(map(len, shares(tmp_path, 3))) == [3, 3, 2]
    assert shares(tmp_path, 3)[1] == [*names[4:6], names[0]]  # The one photograph joins the first who has two.
    assert shares(tmp_path, 1) == [[*names[1:], names[0]]]


@pytest.mark.parametrize("most", range(1, 8))
def test_gathering_loses_nobody_and_splits_nobody(most):
    owners = [f"{i * i % 7}" for i in range(40)]
    found = gathered(list(range(40)), owners, most)
    assert sorted(item for share in found for item in share) == list(range(40)) and len(found) == min(most, 4)
    of = {owner: {i for i, share in enumerate(found) for item in share if owners[item] == owner} for owner in owners}
    assert all(len(clients) == 1 for clients in of.values())


def test_a_damaged_picture_says_nothing_of_its_photographer(tmp_path):
    write_collection(tmp_path, ["a.jpg", "b.jpg"])
    views = load_capture(tmp_path).views
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe1 no picture")
    (tmp_path / "b.jpg").unlink()
    assert [photographer_of(view) for view in views] == ["photograph a.jpg", "photograph b.jpg"]


@pytest.mark.skipif(not (SHARED / "sacre_coeur").is_dir(), reason="FEDFIELDS_DATA is not there")
def test_ten_tourists_in_paris():
    """Ten accounts, of which every eighth photograph by name is for testing."""
    folder = SHARED / "sacre_coeur"
    place = Scene(folder, size=32, clients=20, partition="photographer").load()
    assert len(place.clients) == 8 and len(place.tests) == 2
    assert [len(client.train[0].support.photos) for client in place.clients] == [1] * 8
    pairs = Scene(folder, size=32, clients=4, partition="photographer").load()
    assert [len(client.train[0].support.photos) for client in pairs.clients] == [2] * 4
