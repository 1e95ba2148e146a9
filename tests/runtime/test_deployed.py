"""Real federations on this machine: a process for the server and for each owner, killed and started again."""

import base64
import contextlib
import json
import re
import socket
import zlib

import numpy as np
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_id, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError
from PIL import Image
from safetensors.torch import load_file

from fedfields.cli import main
from fedfields.runtime import inprocess
from fedfields.runtime.owner import Log
from fedfields.runtime.wire import nbytes, unpack
from fedfields.scenes.data import Data
from tests.runtime.deployment import Proxy, federation, picture


def simulated(place, monkeypatch, failing):
    """The weights of the same run in this process, in which clients fail at (name, round)."""
    real = inprocess.visit_job

    def job(context, index, received, memory, seed, number, *rest):
        if (context.clients[index].name, number) in failing:
            raise RuntimeError("killed")
        return real(context, index, received, memory, seed, number, *rest)

    monkeypatch.setattr(inprocess, "visit_job", job)
    data = ["--data", place.folder / "data", "--data.clients", "folder", "--data.unseen", 0, "--workers", 1]
    words = ["run", place.folder / "experiment.toml", *data, "--out", place.folder / "sim", "--no-report"]
    with contextlib.suppress(SystemExit):
        main([str(word) for word in words])
    return (place.folder / "sim" / "model.safetensors").read_bytes()


def test_secure_sums_with_a_killed_owner_and_a_killed_server(tmp_path, monkeypatch):
    """Four owners over TLS. One is killed in round 1 after its keys were shared, the server in the midst of round 2."""
    place = federation(tmp_path, "anna bert cleo dora", "fedmenf", '"privacy:sec-agg"')
    insist = ["--require", "sec-agg", "--owners", tmp_path / "owners"]
    training = place.hold("dora", 1)
    server = place.serve()
    owners = {name: place.join(name, *insist) for name in place.names}
    owners["dora"].until(training.exists, "visit in round 1")
    owners["dora"].kill()
    assert [line["kind"] for line in place.sent("dora")] == ["query.hello", "query.advertise", "query.share"]
    server.until(place.records, "end of round 1")
    place.release("dora", 1)
    training = place.hold("bert", 2)
    owners["dora"] = place.join("dora", *insist)
    owners["bert"].until(training.exists, "visit in round 2")
    server.until(lambda: any(line["masked"] and line["round"] == "2" for line in place.sent("cleo")), "a masked reply")
    server.kill()
    again = place.serve("--resume", name="again")
    place.release("bert", 2)
    assert again.end() == 0, again.said
    assert [owner.end() for owner in owners.values()] == [0] * 4, [owner.said for owner in owners.values()]

    records = place.records()
    assert [record["dropped"] for record in records] == [
        [{"client": "dora", "reason": "it has gone away"}],
        [],
        [],
    ]
    assert [record["cohort"] for record in records] == [list(place.names)] * 3
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert all((place.out(name) / "model.safetensors").read_bytes() == model for name in place.names)
    assert model == simulated(place, monkeypatch, {("dora", 1)})
    sessions = {name: {line["round"] for line in place.sent(name) if line["masked"]} for name in place.names}
    assert sessions == {name: {"1", "2", "3"} - ({"1"} if name == "dora" else set()) for name in place.names}
    assert not any(line["tensors"] for name in place.names for line in place.sent(name))


def test_what_owners_remember_outlives_them_and_the_server(tmp_path, monkeypatch):
    """SCAFFOLD's variates lie with the owners. One owner is killed in round 2, the server when the other is through
    with its visit of round 3, which is then asked for again from the memory of round 2."""
    place = federation(tmp_path, "anna bert", "maml", '"strategy:scaffold"')
    training = place.hold("bert", 2)
    server = place.serve()
    owners = {name: place.join(name) for name in place.names}
    owners["bert"].until(training.exists, "visit in round 2")
    owners["bert"].kill()
    place.release("bert", 2)
    training = place.hold("bert", 3)
    owners["bert"] = place.join("bert")
    server.until(lambda: len(place.records()) == 2, "end of round 2")
    server.until(lambda: any(line["round"] == "3" for line in place.sent("anna")), "a reply in round 3")
    owners["bert"].until(training.exists, "visit in round 3")
    server.kill()
    again = place.serve("--resume", name="again")
    place.release("bert", 3)
    assert again.end() == 0, again.said
    assert [owner.end() for owner in owners.values()] == [0, 0], [owner.said for owner in owners.values()]
    dropped = [[one["client"] for one in record["dropped"]] for record in place.records()]
    assert dropped == [[], ["bert"], []]
    rounds = [line["round"] for line in place.sent("anna") if line["tensors"]]
    assert rounds == ["1", "2", "3", "3"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == simulated(place, monkeypatch, {("bert", 2)})


# --- what leaves a machine -----------------------------------------------------------------------------------

PIECE = 24
"""Bytes in a row that count as found."""


class Canaries:
    """Things that must not be found, in every form in which they could travel."""

    def __init__(self, words, pictures, files):
        self.forms = {f"word {word}": [word.encode(), word.encode("utf-16-le")] for word in words}
        for i, values in enumerate(pictures):
            flat = values.reshape(-1)
            scaled = [
                flat.astype(kind) * factor - shift
                for kind in ("f4", "f8")
                for factor, shift in ((np.dtype(kind).type(1 / 255), 0), (1, 0), (np.dtype(kind).type(2 / 255), 1))
            ]
            planes = values.transpose(2, 0, 1).reshape(-1)
            raw = [flat.tobytes(), planes.tobytes(), *(one.tobytes() for one in scaled)]
            text = [base64.b64encode(flat.tobytes()), flat.tobytes().hex().encode(), zlib.compress(flat.tobytes())]
            self.forms[f"picture {i}"] = [part for one in raw + text for part in pieces(one)]
        for file in files:
            self.forms[f"file {file.name}"] = pieces(file.read_bytes()[-300:])  # Heads of files are all alike.

    def found(self, data):
        """What is in there, plain or compressed."""
        unpacked = [data, *inflated(data)]
        return {what for what, forms in self.forms.items() if any(form in one for form in forms for one in unpacked)}


def pieces(data):
    return [data[i : i + PIECE] for i in range(0, len(data) - PIECE + 1, PIECE // 2)]


def inflated(data):
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data):
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj(47).decompress(data[match.start() :])


def exif():
    """A place that nobody else's numbers would be: GPS in degrees, minutes and seconds."""
    found = Image.Exif()
    found[0x010F] = "canarycamera"
    found.get_ifd(0x8825).update({1: "N", 2: (61.0, 13.0, 37.77), 3: "E", 4: (172.0, 41.0, 9.31)})
    return found


def received(proxies):
    """By owner, the replies that the server got, put together from the bytes on the way."""
    contents = {}
    for proxy in proxies.values():
        for path, body in proxy.requests():
            if path.endswith("push-object"):
                content = PushObjectRequest.FromString(body).object_content
                contents[get_object_id(content)] = content
        for body in proxy.answers():
            with contextlib.suppress(DecodeError):
                content = PullObjectResponse.FromString(body).object_content
                contents[get_object_id(content)] = content
    replies, known = {name: [] for name in proxies}, set()
    for name, proxy in proxies.items():
        for body in (body for path, body in proxy.requests() if path.endswith("push-messages")):
            request = PushMessagesRequest.FromString(body)
            (head,), (tree,) = request.messages_list, request.message_object_trees
            ids = [one.object_id for one in iterate_object_tree(tree)]
            known |= set(ids)
            full = inflate_object_from_contents(tree.object_id, {key: contents[key] for key in ids})
            replies[name].append((message_from_proto(head).metadata, full.content))
    pushed = {
        PushObjectRequest.FromString(body).object_id
        for proxy in proxies.values()
        for path, body in proxy.requests()
        if path.endswith("push-object")
    }
    assert pushed <= known, "something was sent that is part of no reply"
    return replies


def unordered(lines):
    """Lines of a log without their times; an owner has several connections, so their order is not that of the bytes."""
    return sorted(json.dumps(line | {"time": ""}) for line in lines)


def test_nothing_of_the_pictures_leaves_and_all_that_leaves_is_written_down(tmp_path):
    """Every byte of a run without TLS, in which an owner's pictures are damaged on the way."""
    place = federation(tmp_path, "anna bert", "maml", plain=True)
    words = ["canaryone", "canarytwo", "canaryfolder", "canaryhome", "canaryuser", "canarycamera", str(tmp_path)]
    if len(socket.gethostname()) > 5:
        words.append(socket.gethostname())
    for path in (tmp_path / "data").glob("*/*.png"):
        path.unlink()
    where = {name: tmp_path / "data" / name / "canaryfolder" for name in place.names}
    shown = [
        picture(where[name], f"canary{word}.png", seed)
        for seed, (name, word) in enumerate((name, word) for name in place.names for word in ("one", "two"))
    ]
    picture(where["anna"], "canaryone.jpg", 9, exif=exif())
    files = list((tmp_path / "data").rglob("canary*.*"))
    canaries = Canaries(words, shown, files)
    north = 61 + 13 / 60 + 37.77 / 3600
    numbers = [b"61.227", b"37.77", np.float32(north).tobytes(), np.float64(north).tobytes()]
    canaries.forms["place"] = pieces(exif().tobytes()) + numbers
    client, _ = Data(kind="image", size=12).own(tmp_path / "data" / "bert", "bert", 0)
    trained = b"".join(task.support.values.numpy().tobytes() for task in (*client.train, *client.held_out))
    assert canaries.found(trained) == {"picture 2", "picture 3"}, "the search does not know what is trained on"
    environment = {"HOME": "/home/canaryhome", "USER": "canaryuser", "LOGNAME": "canaryuser"}

    proxies = {name: Proxy(place.port) for name in place.names}
    training = place.hold("bert", 2)
    server = place.serve(watched=tmp_path / "server.watched")

    def join(name):
        return place.join(name, port=proxies[name].port, watched=tmp_path / f"{name}.watched", environment=environment)

    owners = {name: join(name) for name in place.names}
    owners["bert"].until(training.exists, "visit in round 2")
    owners["bert"].kill()
    place.release("bert", 2)
    whole = {path: path.read_bytes() for path in where["bert"].iterdir()}
    for path in whole:
        path.write_bytes(b"no picture")
    broken = join("bert")
    server.until(lambda: "could not do its part" in server.said, "word of the damage")
    for path, content in whole.items():
        path.write_bytes(content)
    broken.kill()
    owners["bert"] = join("bert")
    assert server.end() == 0, server.said
    assert [owner.end() for owner in owners.values()] == [0, 0], [owner.said for owner in owners.values()]
    for proxy in proxies.values():
        proxy.close()

    stream = b"".join(proxy.everything for proxy in proxies.values())
    model = load_file(tmp_path / "run" / "model.safetensors")
    assert all(leaf.numpy().tobytes() in stream for leaf in model.values()), "not everything was recorded"
    assert b"bert" in stream  # An owner's name is what the server and the others know it by.
    inside = {"place", "word canarycamera", *(f"file {path.name}" for path in files)}
    assert inside <= canaries.found(b"".join(path.read_bytes() for path in files)), (
        "the search does not find what is there"
    )
    planted = shown[0].reshape(-1).astype("f4") * np.float32(1 / 255)
    assert canaries.found(stream + zlib.compress(planted[:100].tobytes())) == {"picture 0"}
    assert not canaries.found(stream)
    assert "canaryfolder" in broken.said or "canaryone" in broken.said  # The owner is told all of it.
    assert "bert will not take part: the owner's machine could not do its part (UserError)" in server.said
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    logs = [server.log, *(place.out(name) / "flower.log" for name in place.names)]
    assert (tmp_path / "run" / "flower.log") in kept
    del canaries.forms[f"word {tmp_path}"]
    for path in [*kept, *(path for path in logs if path.exists())]:
        assert not canaries.found(path.read_bytes()), path

    fleet = ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages")
    asked = {path for proxy in proxies.values() for path, _ in proxy.requests()}
    objects = ("pull-object", "push-object", "confirm-message-received")
    assert asked <= {f"/v1/fleet/{name}" for name in fleet + objects}, "no app bundle and no run is ever asked for"
    for name in ("server", *place.names):
        events = [json.loads(line) for line in (tmp_path / f"{name}.watched").read_text().splitlines()]
        assert name == "server" or ["socket.connect", f"('127.0.0.1', {proxies[name].port})"] in events
        for event, *rest in events:
            assert event in ("socket.connect", "socket.getaddrinfo"), (event, rest)
            assert rest[0].strip("('").startswith(("127.0.0.1", "localhost", "::1", "None")), (name, event, rest)

    for name, replies in received(proxies).items():
        log = Log(tmp_path / f"{name}.seen", dict)
        for head, content in replies:
            log.write(head.message_type, head.group_id, unpack(content), nbytes(content))
        seen = place.records(f"{name}.seen")
        assert unordered(seen) == unordered(place.sent(name))
        assert sum(line["bytes"] for line in seen if line["tensors"]) > 0
