"""Contributions to a map over the network: servers and owners as processes, killed and started again."""

import hashlib
import json
import re
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.mapping.commits import undo
from fedfields.mapping.intake import LARGEST, Queue, Rules
from fedfields.mapping.merge import Refused
from fedfields.mapping.packing import contribution_as_bytes
from fedfields.mapping.store import MapSettings, create_map, open_map
from fedfields.runtime import keys
from fedfields.runtime.collect import MOST, SIZE, Collector
from fedfields.runtime.desk import Letter
from fedfields.runtime.flower import FINISH, GONE, HELLO, PIECE, Node
from fedfields.runtime.send import Outgoing, Sender, outgoing
from fedfields.runtime.wire import Malformed
from tests.mapping.made import box_of, contribution_of
from tests.mapping.test_store import by_hand, same
from tests.runtime.deployment import Process, free_port
from tests.runtime.test_maps import FIELD, TOWN


class Place(NamedTuple):
    """A map and its owners, in one folder."""

    folder: object
    port: int

    def serve(self, name="server", **kwargs):
        words = ["map", "serve", self.folder / "map", "--owners", self.folder / "owners", "--port", self.port]
        return Process(self.folder, name, *words, "--keys", self.folder / "server", **kwargs)

    def reach(self, owner):
        return [
            "--key",
            self.folder / f"{owner}.key",
            "--ca",
            self.folder / "server" / "ca.crt",
            "--folder",
            self.out(owner),
        ]

    def send(self, owner, *files, name="", **kwargs):
        words = ["map", "send", f"127.0.0.1:{self.port}", *files, *self.reach(owner)]
        return Process(self.folder, name or owner, *words, **kwargs)

    def out(self, owner):
        return self.folder / f"out-{owner}"

    def sent(self, owner):
        lines = (self.out(owner) / "sent.jsonl").read_text().splitlines()
        return [line["bytes"] for line in map(json.loads, lines) if line["kind"] == PIECE]

    def write(self, contribution):
        path = self.folder / f"{contribution.name.replace('/', '-')}.safetensors"
        path.write_bytes(contribution_as_bytes(contribution))
        return path

    @property
    def map(self):
        return open_map(self.folder / "map")


@pytest.fixture
def place(tmp_path):
    keys.make_server(["localhost"], tmp_path / "server")
    (tmp_path / "owners").mkdir()
    for name in ("anna", "bert"):
        _, public = keys.make_owner(name, tmp_path)
        public.rename(tmp_path / "owners" / public.name)
    create_map(tmp_path / "map", MapSettings(widest=1e4))
    return Place(tmp_path, free_port())


def large(name, seed=0):
    """A contribution of which three pieces are made."""
    found = contribution_of(name, box_of((0, 0, 0), (13, 13, 1)), seed)
    return found._replace(bricks=found.bricks._replace(visits=np.ones_like(found.bricks.visits)))


def test_what_two_owners_send_is_merged_and_answered_for(place):
    """Voxels by hand, over TLS: the map is that of both in the order in which they were merged, and nothing is left."""
    given = {name: contribution_of(f"{name}/flight", seed=seed) for seed, name in enumerate(("anna", "bert"))}
    server = place.serve()
    sending = {name: place.send(name, place.write(one)) for name, one in given.items()}
    assert [sending[name].end() for name in given] == [0, 0], [one.said for one in sending.values()]
    notes = Queue(place.map).journal()
    assert sorted((note.name, note.state) for note in notes) == [("anna/flight", "merged"), ("bert/flight", "merged")]
    assert same(place.map.view().area(), by_hand(*(given[note.name.split("/")[0]] for note in notes)))
    for name in given:
        assert re.search(rf"{name}/flight: merged, version [12] of the map", sending[name].said)
        assert place.sent(name) == [(place.folder / f"{name}-flight.safetensors").stat().st_size]
    assert list((place.folder / "map" / "queue" / "arriving").glob("*/*")) == []
    again = place.send("anna", place.folder / "anna-flight.safetensors", name="again")
    assert again.end() == 0 and "merged, version" in again.said
    assert len(place.sent("anna")) == 1 and place.map.head == 2  # It was not fetched again.
    server.kill()


def test_who_is_killed_goes_on_where_it_was(place):
    """The owner is killed in the second piece, the server in the third; no piece that came is sent again."""
    path, held = place.write(large("anna/large")), place.folder / "held"
    held.mkdir()
    size = path.stat().st_size
    assert 2 * SIZE < size < 3 * SIZE
    gates = {start: held / f"from-{start}" for start in (SIZE, 2 * SIZE)}
    for gate in gates.values():
        gate.touch()
    server, first = place.serve(), place.send("anna", path, held=held)
    first.until(gates[SIZE].with_suffix(".reached").exists, "second piece")
    first.kill()
    gates[SIZE].unlink()
    second = place.send("anna", path, name="second", held=held)
    second.until(gates[2 * SIZE].with_suffix(".reached").exists, "third piece")
    server.kill()
    gates[2 * SIZE].unlink()
    another = place.serve("another")
    assert second.end() == 0, second.said + another.said
    assert "merged, version 1" in second.said
    came = place.sent("anna")  # The third was on its way when the server died, perhaps.
    assert came[:2] == [SIZE, SIZE] and set(came[2:]) == {size - 2 * SIZE}
    assert same(place.map.view().area(), by_hand(large("anna/large")))
    another.kill()


def test_train_and_send(place, capsys):
    """The map's voxels are known from the server; the name is the owner's; what does not fit is told, with exit 1."""
    shutil.rmtree(place.folder / "map")
    create_map(place.folder / "map", MapSettings(voxel=3.0))
    server = place.serve()
    words = ["map", "join", f"127.0.0.1:{place.port}", *TOWN, *FIELD, "--out", place.folder / "field.safetensors"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*words, *place.reach("anna"))])
    said = capsys.readouterr().err
    assert stop.value.code == 0 and "anna/client-0: merged, version 1 of the map" in said, said + server.said
    assert [entry.name for entry in place.map.history()] == ["anna/client-0"]
    bert = place.send("bert", place.write(contribution_of("bert")))
    assert bert.end() == 1 and "bert: refused: contribution 'bert' is refused: its voxels are 0.25 m wide" in bert.said
    server.kill()


# --- by hand -------------------------------------------------------------------------------------------------


class Link:
    """No network: letters are given to the conversation by the test."""

    grid = None

    def here(self):
        return {"anna": Node(1)}


@pytest.fixture
def talking(tmp_path):
    """A queue, and the conversation with anna after her greeting."""
    queue = Queue(create_map(tmp_path / "map", MapSettings()))
    talk = Collector(queue, Link(), ["anna"], lambda line: None)._talk("anna")  # pyright: ignore
    kind, letter = next(talk)
    assert kind == HELLO and letter.info["voxel"] == 0.25 and letter.info["base"] == 0
    return queue, talk


def offer(content, size=None):
    digest = hashlib.sha256(content).hexdigest()
    return Letter({}, {"digests": [digest], "sizes": [len(content) if size is None else size]})


def bytes_of(content):
    return Letter({"piece": {"bytes": torch.frombuffer(bytearray(content), dtype=torch.uint8)}}, {})


def test_a_contribution_waits_until_it_is_settled(talking):
    queue, talk = talking
    content = contribution_as_bytes(contribution_of("anna"))
    kind, letter = talk.send(offer(content))
    assert (kind, letter.info["start"], letter.info["count"]) == (PIECE, 0, len(content))
    assert talk.send(bytes_of(content)) is None and talk.send(None) is None and len(queue.waiting()) == 1
    Queue(queue.store).work(Rules())
    kind, letter = talk.send(None)
    assert (kind, letter.info["state"], letter.info["version"]) == (FINISH, "merged", 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (contribution_as_bytes(contribution_of("bert")), "anna may bring what is called anna/"),
        (contribution_as_bytes(contribution_of("annabel/x")), "anna may bring"),
        (b"junk" * 99, "no contribution"),
    ],
)
def test_what_is_not_hers_or_nothing_is_refused(talking, content, why):
    queue, talk = talking
    talk.send(offer(content))
    kind, letter = talk.send(bytes_of(content))
    assert kind == FINISH and letter.info["state"] == "refused" and why in letter.info["why"]
    assert queue.waiting() == [] and list(queue.root.glob("arriving/*/*")) == []


def test_what_arrives_damaged_is_refused_and_begins_anew(talking):
    queue, talk = talking
    content = contribution_as_bytes(contribution_of("anna"))
    talk.send(offer(content))
    kind, letter = talk.send(bytes_of(content[:-1] + b"!"))
    assert kind == FINISH and "arrived damaged" in letter.info["why"]
    assert queue.waiting() == [] and queue.arrival("anna", hashlib.sha256(content).hexdigest(), len(content)).came == 0


def test_a_full_disk_keeps_what_came(talking, monkeypatch):
    queue, talk = talking
    content = contribution_as_bytes(contribution_of("anna"))
    talk.send(offer(content))

    def full(*_):
        raise UserError("cannot write it: No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space"):
        patch.setattr(Queue, "put", full)
        talk.send(bytes_of(content))
    again = Collector(queue, Link(), ["anna"], lambda line: None)._talk("anna")  # pyright: ignore
    next(again)
    assert again.send(offer(content)) is None and len(queue.waiting()) == 1  # Nothing is fetched again.


@pytest.mark.parametrize(
    "letter",
    [
        Letter({}, {}),
        Letter({}, {"digests": "all", "sizes": [1]}),
        Letter({}, {"digests": ["../../etc/passwd"], "sizes": [1]}),
        Letter({}, {"digests": ["0" * 64], "sizes": [-1]}),
        Letter({}, {"digests": ["0" * 64], "sizes": [True]}),
        Letter({}, {"digests": ["0" * 64], "sizes": [LARGEST + 1]}),
        Letter({}, {"digests": ["0" * 64] * (MOST + 1), "sizes": [1] * (MOST + 1)}),
        Letter({}, {"digests": ["0" * 64], "sizes": [1, 2]}),
    ],
)
def test_offers_that_are_none(talking, letter):
    with pytest.raises(Malformed):
        talking[1].send(letter)


@pytest.mark.parametrize(
    "piece",
    [
        Letter({}, {}),
        bytes_of(b"ab"),
        bytes_of(b"abcd"),
        Letter({"piece": {"bytes": torch.zeros(3)}}, {}),
        Letter({"piece": {"bytes": torch.zeros(1, 3, dtype=torch.uint8)}}, {}),
    ],
)
def test_pieces_that_were_not_asked_for(talking, piece):
    queue, talk = talking
    talk.send(offer(b"abc"))
    with pytest.raises(Malformed, match="asked for 3 bytes"):
        talk.send(piece)
    assert list(queue.root.glob("arriving/*/*")) == []


def test_of_an_owner_one_unfinished_file_is_kept(talking):
    queue, _ = talking
    for name in "ab":
        queue.arrival("anna", name * 64, 9).add(b"1234")
    assert [path.name for path in queue.root.glob("arriving/anna/*")] == ["b" * 64]
    assert queue.arrival("anna", "b" * 64, 9).came == 4
    assert queue.arrival("anna", "b" * 64, 3).came == 0  # More than it says it is: from the beginning.


def test_what_was_undone_may_come_again(talking):
    queue, talk = talking
    content = contribution_as_bytes(contribution_of("anna"))
    queue.put(content, "anna")
    queue.work(Rules())
    digest = hashlib.sha256(content).hexdigest()
    assert queue.fate(digest).state == "merged"
    undo(queue.store, "anna")
    assert queue.fate(digest) is None
    kind, _ = talk.send(offer(content))
    assert kind == PIECE


class Mail:
    """In place of the post: keeps what is sent, and gives the answers that the test has put there."""

    def __init__(self):
        self.sent, self.came, self.waiting = [], [], False

    def send(self, client, node, kind, letter):
        self.sent.append((node, kind))
        return True

    def answers(self):
        came, self.came = self.came, []
        return came


def test_what_one_brings_stops_nobody_and_who_comes_back_is_greeted_again(tmp_path):
    queue, lines, link = Queue(create_map(tmp_path / "map", MapSettings())), [], Link()
    collector = Collector(queue, link, ["anna"], lines.append)  # pyright: ignore
    collector._post = mail = Mail()
    collector.turn()
    mail.came = [(0, Letter({}, {"digests": 7, "sizes": []}))]
    collector.turn()
    collector.turn()
    assert mail.sent == [(Node(1), HELLO)] and lines == ["anna: what it offers is no list of digests and sizes"]
    link.here = lambda: {"anna": Node(1, "later")}
    collector.turn()
    assert mail.sent[1:] == [(Node(1, "later"), HELLO)]
    mail.came = [(0, GONE)]
    collector.turn()
    assert len(lines) == 1


@pytest.mark.parametrize(
    "info", [{"digest": "x", "start": 0, "count": 4}, {"start": 0, "count": 4}, {"start": -1, "count": 1}]
)
def test_an_owner_gives_what_it_offered_and_nothing_else(tmp_path, info):
    (tmp_path / "file").write_bytes(b"abc")
    sender = Sender({"d": Outgoing(tmp_path / "file", "anna", 3)}, lambda line: None)
    given = sender.piece(Letter({}, {"digest": "d", "start": 1, "count": 2}), None)
    assert given.trees["piece"]["bytes"].tolist() == [98, 99]
    with pytest.raises(UserError, match="was not offered"):
        sender.piece(Letter({}, {"digest": "d"} | info), None)


def test_a_file_by_another_name_is_not_sent(tmp_path):
    (tmp_path / "file").write_bytes(contribution_as_bytes(contribution_of("bert")))
    with pytest.raises(UserError, match="file cannot be sent: it is called 'bert'; anna may bring"):
        outgoing([tmp_path / "file"], "anna")
    with pytest.raises(Refused, match="called 'bert'"):
        Queue(create_map(tmp_path / "map", MapSettings())).put((tmp_path / "file").read_bytes(), "anna")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["serve", "{map}", "--owners", "{owners}"], "server.crt is missing"),
        (["serve", "{map}", "--owners", "{owners}", "--keys", "{keys}", "--once"], "leave out --once or --owners"),
        (["serve", "{map}", "--port", "1234"], "by --owners"),
        (["serve", "{map}", "--owners", "{map}", "--plain"], "holds no .pub files"),
        (["serve", "{map}", "--owners", "{owners}", "--plain", "--host", "0.0.0.0"], "for this machine only"),
        (["send", "localhost"], "at least one FILE"),
        (["send", "localhost", "file"], "needs --key"),
        (["send", "localhost:1", "{file}", "--key", "{key}", "--plain", "--patience", "0"], "cannot be reached"),
        (["send", "localhost", "{map}/map.json", "--key", "{key}", "--ca", "{keys}/ca.crt"], "no contribution"),
        (["join", "local host", "--key", "{key}"], "no HOST or HOST:PORT"),
        (["join", "localhost", "data:town", "--key", "{key}", "--ca", "{keys}/none"], "--ca names"),
    ],
)
def test_what_cannot_be_is_one_line(place, capsys, monkeypatch, words, why):
    monkeypatch.chdir(place.folder)
    names = {"map": place.folder / "map", "owners": place.folder / "owners", "keys": place.folder / "server"}
    names |= {"key": place.folder / "anna.key", "file": place.write(contribution_of("anna"))}
    with pytest.raises(SystemExit) as stop:
        main(["map", *(word.format(**names) for word in words)])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and re.search(why, said[-1]) and said[-1].startswith("fedfields: "), said
