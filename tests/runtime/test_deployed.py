"""Real federations on this machine: a process for the server and for each owner, killed and started again."""

import contextlib

import pytest

from fedfields.cli import main
from fedfields.runtime import inprocess
from tests.runtime.deployment import federation

pytestmark = pytest.mark.xdist_group("deployed")


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
