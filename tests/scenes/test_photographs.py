"""The data of a first run."""

import importlib.util
import socket

import pytest

from fedfields.errors import UserError
from fedfields.scenes import photographs as module
from fedfields.scenes.data import Data
from fedfields.scenes.photographs import PHOTOGRAPHS, photographs


def is_colourful(client):
    values = (client.train or client.held_out)[0].support.values
    return (values.amax(-1) - values.amin(-1)).mean().item() > 0.01


def test_all_are_there_and_differ():
    assert len({path.read_bytes() for path in photographs()}) == len(PHOTOGRAPHS) == 16


def test_one_client_each_and_some_in_colour_are_unseen(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # Nothing may be downloaded.
    federation = Data().load(0)
    assert (len(federation.clients), len(federation.unseen)) == (12, 4)
    assert [client.name for client in federation.unseen] == ["coffee", "grass", "chelsea", "coins"]
    assert sum(map(is_colourful, federation.unseen)) == 2
    assert sum(map(is_colourful, federation.clients)) == 6
    for client in federation.clients:
        assert client.train[0].support.values.shape == (64, 64, 3)
    assert federation.notes == ("the data are 16 photographs that come with scikit-image, each a client",)


def test_settings_apply_and_the_seed_does_not():
    few = Data(limit=4, size=8, unseen=0.5)
    names = [client.name for client in few.load(0).clients]
    assert names == [client.name for client in few.load(1).clients] == ["astronaut", "camera"]


def test_a_missing_photograph_is_told(monkeypatch):
    monkeypatch.setattr(module, "PHOTOGRAPHS", ("astronaut.png", "nessie.png"))
    with pytest.raises(UserError, match=r"nessie\.png does not exist; reinstall scikit-image"):
        photographs()


def test_missing_scikit_image_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="scikit-image is not installed"):
        photographs()
