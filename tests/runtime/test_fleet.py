"""Flower's engine as we use it: what a server takes from a node, and what it refuses without falling."""

import contextlib
import inspect
import socket
import threading
import time

import httpx
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import constant
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.routers.runtime import create_runtime_router
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.routers.control.router import router as control
from flwr.superlink.routers.fleet.router import router as fleet
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedfields import tree
from fedfields.federation import Local, Method, start_server
from fedfields.objectives import Inner, Maml
from fedfields.runtime import engine, inprocess
from fedfields.runtime.desk import Desk, Letter, Seat
from fedfields.runtime.engine import Fleet, SuperLink
from fedfields.runtime.flower import App, Flower, Rules, client_app
from fedfields.runtime.inprocess import Settings, run_rounds, train
from fedfields.runtime.keys import load_owner, load_roster, make_owner
from fedfields.strategies import FedAvg
from tests.helpers import LOSS, clients_of, params_of

NAMES = "client-0", "client-1", "client-2"
START = tree.to(params_of(), torch.float32)
METHOD = Method(Maml(Inner(steps=1, lr=0.05, batch=8), outer_batch=8), Local(steps=1, lr=0.05), FedAvg())
SETTINGS = Settings(rounds=2, cohort=3)
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}
WHOLE = inprocess.Context(METHOD, tuple(clients_of(3)), LOSS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Each owner's private key, and all the public ones."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: load_owner(make_owner(name, folder)[0]) for name in NAMES}, load_roster(folder)


@pytest.fixture
def link(keys):
    engine.hush()
    with SuperLink({name: public.node for name, public in keys[1].items()}, "127.0.0.1", 0) as found:
        yield found


class Member(threading.Thread):
    """An owner's program as a thread; what it does with a message and its honest reply is up to ``act``."""

    def __init__(self, link, key, act=None):
        super().__init__(daemon=True)
        desk = Desk(Seat(WHOLE, NAMES.index(key.name), SETTINGS, START, bytes(16)))
        nothing = Letter({}, {})
        self._app = client_app(App(lambda context: desk, lambda letter, context: nothing, lambda letter: nothing, str))
        self.fleet, self._act, self._over = Fleet(f"127.0.0.1:{link.port}", key.node, None), act, threading.Event()
        self.fleet.connect()
        self.failure = None

    def run(self):
        try:
            while not self._over.wait(0.05):
                if (message := self.fleet.receive()) is not None:
                    reply = self.answer(message)
                    (self._act or Member.send)(self, message, reply)
        except Exception as error:
            self.failure = error

    def answer(self, message):
        return self._app(message=message, context=Context(1, self.fleet.number, {}, RecordDict(), {}))

    def send(self, message, reply):
        assert self.fleet.reply(reply, 0.0) > 0

    def end(self):
        self._over.set()
        self.join(10)
        self.fleet.leave()
        if self.failure:
            raise self.failure


@contextlib.contextmanager
def members(link, keys, **acts):
    """All owners, connected; ``client_1=act`` says what one of them does instead of sending its reply."""
    mine = TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id
    found = [Member(link, keys[0][name], acts.get(name.replace("-", "_"))) for name in NAMES]
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = mine  # One process is usually one machine.
    for one in found:
        one.start()
    yield found
    for one in found:
        one.end()


def rounds(link, deadline=60.0, on_round=lambda step: None, count=2):
    """The rounds with the owners that are there: their records, and the weights."""

    def nodes():
        here = link.here()
        return {i: here[name] for i, name in enumerate(NAMES) if name in here}

    carrier = Flower(link.grid, nodes, bytes(16), Rules(deadline, 3), tell=print)
    state, records = start_server(METHOD.strategy, START), []
    for step in run_rounds(WHOLE, SETTINGS._replace(rounds=count), state, {}, carrier):
        records.append(step.record)
        state = step.state
        on_round(step)
    return records, state.params


def same(found, monkeypatch, failing=(), count=2):
    """Whether these are the weights of a run in this process in which clients fail at (name, round)."""
    real = inprocess.visit_job

    def job(context, index, received, memory, seed, number, *rest):
        if (context.clients[index].name, number) in failing:
            raise RuntimeError
        return real(context, index, received, memory, seed, number, *rest)

    monkeypatch.setattr(inprocess, "visit_job", job)
    expected = train(METHOD, WHOLE.clients, LOSS, START, rounds=count, cohort=3)
    return all(torch.equal(found[key], leaf) for key, leaf in expected.items())


def left_over(link):
    """What the server still holds of messages and objects."""
    state = link.grid._state
    return len(state.object_store), len(state.message_ins_store), len(state.message_res_store)


def test_rounds_through_the_server_are_those_of_a_simulation_and_leave_nothing_behind(link, keys, monkeypatch):
    with members(link, keys):
        records, params = rounds(link)
    assert [record["dropped"] for record in records] == [[], []]
    assert left_over(link) == (0, 0, 0)
    assert same(params, monkeypatch)


def test_a_late_reply_is_refused_and_its_owner_is_back_in_the_next_round(link, keys, monkeypatch):
    over, taken = threading.Event(), []

    def late(member, message, reply):
        if message.metadata.group_id == "1":
            assert over.wait(60)
        taken.append(member.fleet.reply(reply, 0.0))

    with members(link, keys, client_1=late):
        records, params = rounds(link, deadline=4.0, on_round=lambda step: over.set())
    assert [record["dropped"] for record in records] == [[{"client": "client-1", "reason": "no reply within 4 s"}], []]
    assert taken[0] == 0 and taken[1] > 0
    assert left_over(link) == (0, 0, 0)
    assert same(params, monkeypatch, {("client-1", 1)})


def test_of_two_replies_the_first_counts(link, keys, monkeypatch):
    taken = []

    def twice(member, message, reply):
        other = Message(RecordDict({"more": ConfigRecord({"a": 1})}), reply_to=message)
        taken.extend(member.fleet.reply(one, 0.0) for one in (reply, reply, other))

    with members(link, keys, client_1=twice):
        records, params = rounds(link)
    assert [record["dropped"] for record in records] == [[], []]
    assert [bool(size) for size in taken] == [True, False, False] * 2
    assert left_over(link) == (0, 0, 0)
    assert same(params, monkeypatch)


def test_nobody_replies_for_another_nor_to_what_another_was_asked(link, keys, monkeypatch):
    asked, refused = {}, []

    def watched(member, message, reply):
        asked[message.metadata.group_id] = member.fleet.number, message
        done.wait(60)
        member.send(message, reply)

    def forging(member, message, reply):
        while message.metadata.group_id not in asked:
            pass
        victim, theirs = asked[message.metadata.group_id]
        forged = Message(reply.content, reply_to=theirs)
        assert forged.metadata.src_node_id == victim
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            member.fleet.reply(forged, 0.0)
        forged.metadata.__dict__["_src_node_id"] = member.fleet.number
        refused.append(member.fleet.reply(forged, 0.0))
        done.set()
        member.send(message, reply)

    done = threading.Event()
    with members(link, keys, client_1=watched, client_2=forging):
        records, params = rounds(link)
    assert refused == [0, 0] and [record["dropped"] for record in records] == [[], []]
    assert same(params, monkeypatch)


def test_a_reply_to_an_old_round_or_an_old_server_is_refused(link, keys, monkeypatch):
    kept = []

    def old(member, message, reply):
        for one in kept:
            assert member.fleet.reply(one, 0.0) == 0
        kept.append(Message(reply.content, reply_to=message))
        member.send(message, reply)

    with members(link, keys, client_0=old):
        _, params = rounds(link)
    assert same(params, monkeypatch)
    with SuperLink({name: public.node for name, public in keys[1].items()}, "127.0.0.1", 0) as another:
        with members(another, keys) as found:
            stale = Message(kept[0].content, reply_to=kept[0])
            stale.metadata.__dict__["_src_node_id"] = found[0].fleet.number
            with pytest.raises(httpx.HTTPStatusError):
                found[0].fleet.reply(stale, 0.0)
            _, params = rounds(another)
        assert left_over(another) == (0, 0, 0)
    assert same(params, monkeypatch)


def push(member, reply, tree, contents=()):
    """A reply with any tree and any pieces."""
    fleet, node = member.fleet, NodeProto(node_id=member.fleet.number)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    request = PushMessagesRequest(node=node, messages_list=[message_to_proto(reply)], message_object_trees=[tree])
    session = fleet._client.PushMessages(request).session_id
    for key, content in contents:
        found = PushObjectRequest(
            node=node, run_id=reply.metadata.run_id, object_id=key, object_content=content, session_id=session
        )
        fleet._client.PushObject(found)


def elsewhere(member, message, reply):
    """Announces another object than the reply."""
    push(member, reply, ObjectTree(object_id="ab" * 32))


def no_hash(member, message, reply):
    """Announces something that cannot be an object."""
    with contextlib.suppress(httpx.HTTPStatusError):
        push(member, reply, ObjectTree(object_id="../../etc"))


def circle(member, message, reply):
    """A tree that comes back to where it began."""
    key = reply.object_id
    push(
        member,
        reply,
        ObjectTree(object_id=key, children=[ObjectTree(object_id="cd" * 32, children=[ObjectTree(object_id=key)])]),
    )


def withdrawn(member, message, reply):
    """Sends all of it, and has the server delete it."""
    nested = get_all_nested_objects(reply)
    push(member, reply, get_object_tree(reply), [(key, one.deflate()) for key, one in nested.items()][:1])
    node = NodeProto(node_id=member.fleet.number)
    member.fleet._client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=reply.metadata.run_id, message_object_id=reply.object_id)
    )


def no_message(member, message, reply):
    """A reply whose content is no message."""
    record = reply.content
    push(member, reply, get_object_tree(record), [(k, o.deflate()) for k, o in get_all_nested_objects(record).items()])


def nothing(member, message, reply):
    """A request without a message, one that is no protobuf, and one that is far too large."""
    with contextlib.suppress(httpx.HTTPStatusError):
        member.fleet._client.PushMessages(PushMessagesRequest(node=NodeProto(node_id=member.fleet.number)))
    client, address = member.fleet._client._client, member.fleet._client._base_url
    assert client.post(f"{address}/v1/fleet/push-messages", content=b"\xff" * 99, headers=PROTOBUF).status_code >= 400
    with socket.create_connection(httpx.URL(address).netloc.decode().split(":")) as plain:
        plain.sendall(b"POST /v1/fleet/push-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
        assert plain.recv(99).startswith(b"HTTP/1.1 413")


def empty(member, message, reply):
    """A message without what ours have."""
    member.fleet.reply(Message(RecordDict(), reply_to=message), 0.0)


def screaming(member, message, reply):
    """A reason that would clear the terminal of whoever reads it, and fill it."""
    text = "\x1b[2J\r\n" + "A" * 10_000
    content = RecordDict({"info": ConfigRecord({"order": [], "trees": [], "failed": text})})
    member.fleet.reply(Message(content, reply_to=message), 0.0)


@pytest.mark.parametrize(
    "act", [elsewhere, no_hash, circle, withdrawn, no_message, nothing, empty, screaming], ids=lambda act: act.__name__
)
def test_a_malformed_reply_costs_its_sender_the_round_and_nobody_else(link, keys, monkeypatch, capfd, act):
    with members(link, keys, client_2=act):
        (record,), params = rounds(link, deadline=4.0, count=1)
    ((client, reason),) = (one.values() for one in record["dropped"])
    assert client == "client-2"
    assert reason.isprintable() and 0 < len(reason) <= 300
    assert capfd.readouterr().err == "", "a server's terminal is no place for Flower's tracebacks"
    assert same(params, monkeypatch, {("client-2", 1)}, count=1)


def test_the_result_goes_to_all_who_are_there_and_newcomers_are_greeted_first(link, keys):
    asked = []

    def noting(member, message, reply):
        asked.append((member.fleet.number, message.metadata.message_type))
        member.send(message, reply)

    with members(link, keys, client_0=noting, client_1=noting, client_2=noting):
        here = link.here()
        nodes = {i: here[name] for i, name in enumerate(NAMES)}
        soon = time.monotonic() + 0.5  # The server has come back after the last round, and owners come one by one.

        def arriving():
            return nodes if time.monotonic() > soon else {0: nodes[0]}

        rules, greeting = Rules(60.0, 3), lambda client, session: Letter({}, {})
        Flower(link.grid, arriving, bytes(16), rules, greeting=greeting).finish(START, "maml")
    for node in nodes.values():
        assert [kind for number, kind in asked if number == node.number] == ["query.hello", "query.finish"]


def test_a_node_survives_what_the_server_takes_back(link, keys):
    """A message whose pieces are gone when the node wants them."""
    with members(link, keys) as found:
        one = found[0]
        one._over.set(), one.join()
        (key,) = link.grid.push_messages(
            [Message(RecordDict({"a": ConfigRecord({"b": 1})}), one.fleet.number, "query.hello")]
        )
        link.grid._state.object_store.clear()
        link.grid._state.object_store.preregister(link.grid.run.run_id, ObjectTree(object_id=key))
        link.grid._state.object_store.store[key].is_available = True
        link.grid._state.object_store.store[key].content = b"no object"
        assert one.fleet.receive() is None
        assert one.fleet.receive() is None


def paths(router):
    """Of everything that one of Flower's routers answers."""
    for one in router.routes:
        yield from paths(one.original_router) if hasattr(one, "original_router") else [one.path]


def test_the_server_speaks_the_fleet_api_and_nothing_else(link, keys):
    """Flower's SuperLink has all three on one port, and its other two would let anybody start a run."""
    base = f"http://127.0.0.1:{link.port}"
    ours = {path.path for path in fleet.routes}
    assert all(path.startswith("/v1/fleet/") for path in ours) and len(ours) == 12
    others = {path for router in (control, create_runtime_router("SuperLink")) for path in paths(router)}
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/push-task-output"} < others
    with httpx.Client(trust_env=False) as client:
        for path in [*others, "/", "/docs", "/openapi.json", "/health"]:
            assert client.post(base + path, content=b"", headers=PROTOBUF).status_code == 404, path
        for path in ours:  # Without a signature.
            assert client.post(base + path, content=b"", headers=PROTOBUF).status_code == 401, path


def test_no_node_registers_itself_or_fetches_a_bundle(link, keys):
    from flwr.proto.fab_pb2 import GetFabRequest
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest, UnregisterNodeFleetRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    with members(link, keys) as (one, *_):
        client, node = one.fleet._client, NodeProto(node_id=one.fleet.number)
        public = public_key_to_bytes(keys[0]["client-0"].node.public_key())
        for call, request in (
            (client.GetFab, GetFabRequest(node=node, run_id=link.grid.run.run_id, hash_str="")),
            (client.RegisterNode, RegisterNodeFleetRequest(public_key=public)),
            (client.UnregisterNode, UnregisterNodeFleetRequest(node_id=one.fleet.number)),
        ):
            with pytest.raises(httpx.HTTPStatusError):
                call(request)
        assert len(link.here()) == 3


CALLED = {
    LinkState.create_node: "owner_aid owner_name public_key heartbeat_interval location name",
    LinkState.create_run: "fab_id fab_version fab_hash override_config federation_id federation_config flwr_aid "
    "primary_task_type",
    LinkState.claim_task: "task_id",
    LinkState.activate_task: "task_id",
    LinkState.acknowledge_task_heartbeat: "task_id",
    LinkState.start_session: "run_id",
    LinkState.store_message_and_object_tree: "message object_tree session_id",
    LinkState.store_object: "run_id session_id object_id object_content",
    LinkState.get_message_res: "message_ids run_id",
    LinkState.delete_messages: "message_ins_ids",
    LinkState.deactivate_node: "node_id",
    LinkState.get_node_id_by_public_key: "public_key",
    LinkState.get_nodes: "run_id",
    LinkState.get_node_info: "node_ids owner_aids statuses",
    ObjectStore.get: "object_id",
    ObjectStore.delete: "object_id",
    ObjectStore.get_object_tree: "object_id",
    FleetHttpClient.__init__: "base_url interceptors",
    NodeAuthHttpInterceptor.__init__: "private_key public_key",
}


@pytest.mark.parametrize("function", CALLED, ids=lambda function: function.__qualname__)
def test_flower_has_what_the_engine_calls(function):
    """Names that Flower does not promise to keep: where this fails, a new Flower needs another engine.py."""
    found = list(inspect.signature(function).parameters)[1:]
    assert found[: len(CALLED[function].split())] == CALLED[function].split()


def test_flower_s_limits_are_those_that_we_explain():
    assert constant.SYSTEM_TIME_TOLERANCE == 5 and constant.TIMESTAMP_TOLERANCE == 300
    assert constant.HEARTBEAT_MIN_INTERVAL <= engine.HEARTBEAT and constant.HEARTBEAT_PATIENCE == 2
