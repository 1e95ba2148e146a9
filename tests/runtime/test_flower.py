"""What runs in process runs through Flower's messages, to the bit: as a simulation, and as on owners' machines."""

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import Context as FlowerContext
from flwr.app import RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedfields.errors import UserError
from fedfields.federation import Local, Method, prepare, start_server
from fedfields.privacy import SecAgg
from fedfields.runtime.desk import Desk, Seat
from fedfields.runtime.flower import App, Flower, Node, Rules, client_app
from fedfields.runtime.inprocess import AllFailed, Context, Settings, run_rounds
from fedfields.runtime.owner import Shelf
from fedfields.runtime.pool import Pool
from fedfields.runtime.secure import session_of
from fedfields.strategies import FedAvg, Scaffold
from tests.helpers import LOSS, clients_of, params_of
from tests.runtime.test_secure import SUMMED, method_of
from tests.table import PAIRS, TRANSFORMS

START = params_of(dtype=torch.float32)
SETTINGS = Settings(2, 5, seed=3)


def travelled(message):
    """A message after its way as bytes."""
    pieces = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    found = inflate_object_from_contents(message.object_id, pieces)
    found.metadata.__dict__["_message_id"] = message.object_id
    return found


class Mail(Grid):
    """A grid whose nodes answer at once; every message travels as bytes."""

    def __init__(self, apps):
        self.apps = apps  # By node number.
        self.states = {number: RecordDict() for number in apps}
        self.replies, self.kinds, self.spoilt = {}, [], {}

    def set_run(self, run): ...
    @property
    def run(self): ...
    def create_message(self, *_): ...
    def send_and_receive(self, *_, **__): ...

    def get_node_ids(self):
        return list(self.apps)

    def push_messages(self, messages):
        keys = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            head = message.metadata
            number, key = head.dst_node_id, head.message_id
            self.kinds.append(head.message_type)
            context = FlowerContext(0, number, {}, self.states[number], {})
            TaskIdentity.node_id = number
            reply = travelled(self.apps[number](message=travelled(message), context=context))
            spoil = self.spoilt.get((number, head.message_type))
            self.replies[key] = spoil(reply) if spoil else reply
            keys.append(key)
        return keys

    def pull_messages(self, ids):
        return [reply for key in ids if (reply := self.replies.pop(key, None)) is not None]


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def started(context):
    """The weights of round 1, with what the objective learns beside them."""
    return START | context.method.objective.leaves(START, context.loss)


def simulation(context, settings, **more):
    """Desks that keep nothing: everything is in the message, and secure sums move from process to process."""

    def app(client):
        def fresh(_):
            return Desk(Seat(context, client, settings, started(context), session_of(settings.seed)))

        return client_app(App(fresh, hello=None, finish=None, guard=str, moves=True))

    mail = Mail({100 + i: app(i) for i in range(len(context.clients))})
    nodes = {i: Node(100 + i) for i in range(len(context.clients))}
    return Flower(mail, lambda: nodes, session_of(settings.seed), **more), mail


def owners(context, settings, folder, **more):
    """Desks that stay, with memory on disk."""

    def app(client):
        known = tuple(one if i == client else one._replace(train=()) for i, one in enumerate(context.clients))
        mine = context._replace(clients=known)
        seat = Seat(mine, client, settings, started(context), session_of(settings.seed))
        desk = Desk(seat, Shelf(folder / str(client)))
        return client_app(App(lambda _: desk, hello=None, finish=None, guard=str))

    mail = Mail({100 + i: app(i) for i in range(len(context.clients))})
    nodes = {i: Node(100 + i) for i in range(len(context.clients))}
    return Flower(mail, lambda: nodes, session_of(settings.seed), oldest=lambda: 0, **more), mail


def last(context, settings, carrier):
    *_, step = run_rounds(context, settings, start_server(context.method.strategy, started(context)), {}, carrier)
    return step


def same(a, b):
    assert a.state.params.keys() == b.state.params.keys()
    assert all(torch.equal(a.state.params[key], b.state.params[key]) for key in a.state.params)


def compared(method, tmp_path, clients=None):
    context = Context(method, tuple(clients or clients_of(6)), LOSS)
    with Pool(context, 1) as pool:
        here = last(context, SETTINGS, pool)
    carrier, mail = simulation(context, SETTINGS)
    there = last(context, SETTINGS, carrier)
    same(here, there)
    carrier, _ = owners(context, SETTINGS, tmp_path)
    home = last(context, SETTINGS, carrier)
    same(here, home)
    assert there.record["cohort"] == here.record["cohort"] == home.record["cohort"]
    assert not here.record["dropped"] and not there.record["dropped"] and not home.record["dropped"]
    return mail


@pytest.mark.parametrize("objective, strategy", [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_every_pair_ends_where_it_ends_in_process(objective, strategy, tmp_path):
    compared(Method(objective, Local(steps=2, lr=0.01), strategy), tmp_path)


@pytest.mark.parametrize("name, transform", TRANSFORMS, ids=[row[0] for row in TRANSFORMS])
def test_every_protection_ends_where_it_ends_in_process(name, transform, tmp_path):
    method = method_of(privacy=(transform,))
    mail = compared(method, tmp_path, [prepare(method.privacy, client, seed=0) for client in clients_of(6)])
    assert ("train.visit" in mail.kinds) == (name != "sec-agg")


@pytest.mark.parametrize("name", list(SUMMED))
def test_every_strategy_sums_in_secret_as_in_process(name, tmp_path):
    mail = compared(method_of(SUMMED[name], privacy=(SecAgg(),)), tmp_path)
    steps = ["query.advertise", "query.share", "train.masked", "query.agree", "query.unmask"]
    assert list(dict.fromkeys(mail.kinds)) == steps


def test_a_secret_round_holds_no_report_in_the_clear(tmp_path):
    """No message of a secure sum has a tree; what looks like one is masks."""
    method = method_of(privacy=(SecAgg(),))
    context = Context(method, tuple(clients_of(5)), LOSS)
    carrier, mail = owners(context, SETTINGS, tmp_path)
    seen = []
    for number, app in list(mail.apps.items()):

        def watched(message, context, app=app):
            reply = app(message=message, context=context)
            seen.append((message.metadata.message_type, dict(reply.content.array_records)))
            return reply

        mail.apps[number] = watched
    last(context, SETTINGS, carrier)
    assert {kind for kind, _ in seen} > {"train.masked"}
    assert all(not arrays for _, arrays in seen)


def test_memories_survive_a_restart_of_everybody(tmp_path):
    """Owners who start anew go on from their shelves, where a server left off."""
    method = method_of(Scaffold())
    context, settings = Context(method, tuple(clients_of(5)), LOSS), Settings(5, 3, seed=3)
    with Pool(context, 1) as pool:
        whole = last(context, settings, pool)
    carrier, _ = owners(context, settings, tmp_path)
    steps = run_rounds(context, settings, start_server(method.strategy, START), {}, carrier)
    second, third = [next(steps) for _ in range(3)][1:]
    # The server is killed in round 4, and comes back with its checkpoint of round 2: shelves have gone further.
    assert third.state.round == 3
    again, _ = owners(context, settings, tmp_path)
    *_, end = run_rounds(context, settings, second.state, second.memories, again)
    same(whole, end)


def test_a_shelf_keeps_what_may_be_asked_for_again(tmp_path):
    shelf = Shelf(tmp_path)
    for number in (1, 3, 4, 6):
        shelf.put(number, {"variate": {"w": torch.full((2,), float(number))}}, oldest=4 if number == 6 else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004.safetensors", "round-000006.safetensors"]
    assert shelf.at(3) is None and torch.equal(shelf.at(4)["variate"]["w"], torch.tensor([4.0, 4.0]))
    (tmp_path / "round-000006.safetensors").write_bytes(b"damaged")
    assert shelf.at(6) is None


def test_who_is_away_is_not_asked(tmp_path):
    context = Context(method_of(), tuple(clients_of(5)), LOSS)
    settings = Settings(1, 5, seed=3)
    carrier, _ = owners(context, settings, tmp_path)
    carrier._nodes = lambda: {i: Node(100 + i) for i in (0, 2, 4)}
    step = last(context, settings, carrier)
    assert step.record["cohort"] == ["client-0", "client-2", "client-4"]


def test_too_few_owners_is_one_line_and_not_for_ever(tmp_path):
    context = Context(method_of(), tuple(clients_of(5)), LOSS)
    carrier, _ = owners(context, SETTINGS, tmp_path, rules=Rules(deadline=0.3, least=3))
    carrier._nodes = lambda: {0: Node(100)}
    with pytest.raises(UserError, match=r"only 1 of the 3 owners that a round needs are here after 0\.3 s"):
        last(context, SETTINGS, carrier)


def test_a_reply_that_does_not_come_costs_itself_and_not_the_round(tmp_path):
    context, settings = Context(method_of(), tuple(clients_of(5)), LOSS), Settings(1, 5, seed=3)
    carrier, mail = owners(context, settings, tmp_path, rules=Rules(deadline=1.0))
    pull = mail.pull_messages
    mail.pull_messages = lambda ids: [one for one in pull(ids) if one.metadata.src_node_id != 102]
    step = last(context, settings, carrier)
    assert [(one["client"], one["reason"]) for one in step.record["dropped"]] == [("client-2", "no reply within 1 s")]
    assert sorted(step.replies) == [0, 1, 3, 4]


def garbled(change):
    def spoil(reply):
        change(reply.content)
        return reply

    return spoil


BROKEN = {
    "without its list": lambda content: content.config_records.clear(),
    "cut": lambda content: _cut(content.array_records["tree.report/delta"]),
    "renamed": lambda content: _renamed(content.array_records["tree.report/delta"]),
}


def _cut(record):
    for array in record.values():
        array.data = array.data[:-1]


def _renamed(record):
    first = next(iter(record))
    record["other"] = record.pop(first)


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_malformed_reply_is_dropped_and_named(how, tmp_path):
    context, settings = Context(method_of(), tuple(clients_of(5)), LOSS), Settings(1, 5, seed=3)
    carrier, mail = owners(context, settings, tmp_path)
    mail.spoilt[102, "train.visit"] = garbled(BROKEN[how])
    step = last(context, settings, carrier)
    (dropped,) = step.record["dropped"]
    assert dropped["client"] == "client-2" and "reply is no good" in dropped["reason"]


def test_a_dropout_in_a_secret_round_is_recovered_as_in_process(tmp_path):
    method = method_of(privacy=(SecAgg(),))
    context, settings = Context(method, tuple(clients_of(5)), LOSS), Settings(1, 5, seed=3)
    carrier, mail = owners(context, settings, tmp_path, rules=Rules(deadline=1.0))
    pull = mail.pull_messages

    def lossy(ids):
        return [m for m in pull(ids) if (m.metadata.src_node_id, m.metadata.message_type) != (102, "train.masked")]

    mail.pull_messages = lossy
    step = last(context, settings, carrier)
    assert [one["client"] for one in step.record["dropped"]] == ["client-2"]
    plain = Context(method_of(), context.clients, LOSS)
    carrier, mail = owners(plain, settings, tmp_path / "plain", rules=Rules(deadline=1.0))
    carrier._nodes = lambda: {i: Node(100 + i) for i in (0, 1, 3, 4)}
    for key, leaf in last(plain, settings, carrier).state.params.items():
        torch.testing.assert_close(step.state.params[key], leaf, rtol=0, atol=1e-6)


def test_weights_of_another_model_are_not_trained_on(tmp_path):
    context, settings = Context(method_of(), tuple(clients_of(2)), LOSS), Settings(1, 2, seed=3)
    carrier, _ = owners(context, settings, tmp_path)
    other = {key: leaf[:1] if leaf.dim() else leaf for key, leaf in START.items()}
    with pytest.raises(AllFailed, match="not of the model that was agreed on"):
        *_, _ = run_rounds(context, settings, start_server(FedAvg(), other), {}, carrier)
