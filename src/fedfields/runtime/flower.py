"""The one adapter to Flower: a carrier that reaches clients through a grid, and the app that answers for a client."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch

from fedfields.runtime import offline as offline  # isort: split

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedfields.errors import UserError
from fedfields.federation import Reply
from fedfields.privacy.secure import Abandoned, Refused
from fedfields.runtime.desk import KEPT, RECEIVED, REPORT, Desk, Letter, part, refusal
from fedfields.runtime.inprocess import Job, SecretOrder
from fedfields.runtime.pool import Failed
from fedfields.runtime.secure import STEPS, Answer, Summed, play
from fedfields.runtime.wire import Malformed, pack, unpack
from fedfields.types import Memory, Params

VISIT, HELLO, FINISH = "train.visit", "query.hello", "query.finish"
PIECE = "query.piece"
"""Asks for a piece of what is to be added to a map."""

GONE = "it has gone away"
LONGEST = 300
"""Characters of a reason that a client may give."""

POLL = 0.02
"""Seconds between looks at the mailbox; after a while, ten times as many."""


class Node(NamedTuple):
    """Where a client is at the moment.

    Attributes:
        number: Flower's, of the node.
        since: changes when the client's program is started again.
    """

    number: int
    since: str = ""


class Rules(NamedTuple):
    """When a round is over.

    Attributes:
        deadline: seconds that each step of a round waits for its replies, and a round for enough clients to be there.
        least: fewest clients with which a round begins.
    """

    deadline: float = 600.0
    least: int = 1


class Flower:
    """The carrier that asks clients through Flower's grid.

    Args:
        grid: Flower's.
        nodes: gives the nodes that are there, by the index of their client.
        session: of secure sums, 16 bytes.
        rules: when a round is over.
        greeting: what a client is told of this session before anything else; None if it knows all it needs.
        greeted: is called with a client and its answer to that.
        oldest: the round of the oldest checkpoint; None in a simulation, where memories travel.
        tell: is called with lines for whoever watches.
        name: of a client, for these lines.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Callable[[], Mapping[int, Node]],
        session: bytes,
        rules: Rules | None = None,
        *,
        greeting: Callable[[int, bytes], Letter] | None = None,
        greeted: Callable[[int, Letter], None] = lambda client, letter: None,
        oldest: Callable[[], int] | None = None,
        tell: Callable[[str], None] = lambda line: None,
        name: Callable[[int], str] = "client {}".format,
    ) -> None:
        self._grid, self._nodes, self.session, self._rules = grid, nodes, session, rules or Rules()
        self._greeting, self._greeted_by, self._oldest, self._tell = greeting, greeted, oldest, tell
        self._name = name
        self._greeted: dict[int, Node] = {}
        self._refused: dict[int, Node] = {}

    def online(self, number: int) -> Collection[int]:
        """Who is there and knows what this is about; waits until there are enough.

        Raises:
            UserError: too few are, and the deadline is over.
        """
        least, until, told = self._rules.least, time.monotonic() + self._rules.deadline, -1
        while True:
            here = self._welcomed(number)
            if len(here) >= least:
                return here
            if time.monotonic() > until:
                raise UserError(
                    f"only {len(here)} of the {least} owners that a round needs are here after "
                    f"{self._rules.deadline:g} s; ask them to join, or lower the number"
                )
            if told != len(here):
                told = len(here)
                self._tell(f"waiting for owners: {told} of {least} are here")
            time.sleep(10 * POLL)

    def visits(self, jobs: Sequence[Job]) -> Iterator[Reply | Failed]:
        """The jobs' replies in order; each is held back until those before it are there."""
        came: dict[int, Letter | str] = {}
        letters = {job.client: self._order(job) for job in jobs}
        asked = self._ask(VISIT, letters, jobs[0].number) if jobs else iter(())
        for job in jobs:
            while job.client not in came:
                client, letter = next(asked)
                came[client] = letter
            yield self._reply(job, came.pop(job.client))

    def secret_sum(self, order: SecretOrder) -> tuple[Summed, dict[int, Reply]]:
        """The protocol's server half here, each client's half at the client."""
        jobs = {job.client: job for job in order.jobs}
        replies: dict[int, Reply] = {}
        number, scaled = order.jobs[0].number, 0

        def ask(step: str, mail: dict[int, bytes]) -> Iterator[tuple[int, Answer]]:
            nonlocal scaled
            values = {"number": number, "attempt": order.attempt}
            letters = dict[int, Letter]()
            for client, text in mail.items():
                job = self._order(jobs[client]) if step == "masked" else Letter({}, {})
                letters[client] = Letter(job.trees, job.info | values | {"letter": bytes(text)})
            for client, letter in self._ask(_kind(step), letters, number):
                if isinstance(letter, str):
                    yield client, Refused(letter)
                    continue
                if step == "masked":
                    replies[client] = self._remembered(jobs[client], letter)
                    scaled += bool(letter.info.get("scaled"))
                text = letter.info.get("letter")
                yield client, text if isinstance(text, bytes) else Refused("its message is malformed")

        try:
            found = play(order.plan, order.rules, list(jobs), ask)._replace(scaled=scaled)
        except Abandoned as reason:
            self._tell(f"round {number}: no sum from these owners ({reason})")
            raise
        return found, {i: replies[i]._replace(report=found.seen[i]) for i in found.clients}

    def finish(self, params: Params, name: str) -> None:
        """Gives everybody that is there the result; a server that comes back after the last round waits for them."""
        if self._greeting is not None and not self._greeted:
            with suppress(UserError):
                self.online(0)
        here = [] if self._greeting is None else self._welcomed(0)
        for client, letter in self._ask(FINISH, dict.fromkeys(here, Letter({"params": params}, {"preset": name})), 0):
            if isinstance(letter, str):
                self._tell(f"{self._name(client)} did not take the result: {letter}")

    def everybody(self) -> dict[int, int]:
        """Who each node stands for, as it says itself; in a simulation nobody has a reason to lie."""
        asked = self._ask(HELLO, dict.fromkeys(self._nodes(), Letter({}, {})), 0)
        return {node: int(letter.info["client"]) for node, letter in asked if isinstance(letter, Letter)}

    def _order(self, job: Job) -> Letter:
        trees = {RECEIVED + name: tree for name, tree in job.received.items()}
        info = {"number": job.number, "weight": job.weight, "share": job.share, "progress": job.progress}
        if self._oldest is None:
            return Letter(trees | {KEPT + name: tree for name, tree in job.memory.items()}, info)
        return Letter(trees, info | {"kept": kept_round(job.memory), "oldest": self._oldest()})

    def _reply(self, job: Job, letter: Letter | str) -> Reply | Failed:
        if isinstance(letter, str):
            return Failed(letter)
        return self._remembered(job, letter)._replace(report=part(letter, REPORT))

    def _remembered(self, job: Job, letter: Letter) -> Reply:
        """The reply but for its report; of an owner's memory only the round is known here."""
        number = letter.info.get("round", 0)
        if self._oldest is not None:
            return Reply({}, {"kept": {"round": torch.tensor(job.number)}}, {}, 0, number)
        return Reply({}, part(letter, KEPT), json.loads(letter.info["metrics"]), letter.info["steps"], number)

    def _welcomed(self, number: int) -> list[int]:
        """Who is there; newcomers are greeted first."""
        nodes = self._nodes()
        if self._greeting is None:
            return sorted(nodes)
        known = {i: (self._greeted.get(i), self._refused.get(i)) for i in nodes}
        new = {i: self._greeting(i, self.session) for i, node in nodes.items() if node not in known[i]}
        for client, letter in self._ask(HELLO, new, number):
            (self._refused if isinstance(letter, str) else self._greeted)[client] = nodes[client]
            if isinstance(letter, str):
                self._tell(f"{self._name(client)} will not take part: {letter}")
            else:
                self._greeted_by(client, letter)
        return sorted(i for i, node in nodes.items() if self._greeted.get(i) == node)

    def _ask(self, kind: str, letters: Mapping[int, Letter], number: int) -> Iterator[tuple[int, Letter | str]]:
        """Sends everybody a letter, and gives the answers as they come: a letter, or why there is none."""
        nodes, began = self._nodes(), time.monotonic()
        post = Post(self._grid, self._nodes, self._rules.deadline)
        for client, letter in letters.items():
            if client not in nodes:
                yield client, GONE
            elif not post.send(client, nodes[client], kind, letter, number):
                yield client, "the message could not be sent"
        while post.waiting:
            yield from post.answers()
            time.sleep(POLL if time.monotonic() - began < 5 else 10 * POLL)


class Sent(NamedTuple):
    """A letter that is on its way: to which client, at which node, since when."""

    client: int
    node: Node
    began: float


class Post:
    """Letters on their way, and the answers to them as they come; nothing here waits.

    Args:
        grid: Flower's.
        nodes: gives the nodes that are there, by the index of their client.
        patience: seconds for which an answer is waited for.
    """

    def __init__(self, grid: Grid, nodes: Callable[[], Mapping[int, Node]], patience: float) -> None:
        self._grid, self._nodes, self._patience = grid, nodes, patience
        self._sent: dict[str, Sent] = {}
        self._looked = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._sent)

    def send(self, client: int, node: Node, kind: str, letter: Letter, number: int = 0) -> bool:
        """Sends a letter about round ``number``; whether that went well."""
        message = Message(pack(*letter), node.number, kind, ttl=self._patience + 60, group_id=str(number))
        (key,) = self._grid.push_messages([message]) or [""]
        if key:
            self._sent[key] = Sent(client, node, time.monotonic())
        return bool(key)

    def answers(self) -> Iterator[tuple[int, Letter | str]]:
        """The answers that have come: a letter, or why there will be none."""
        for message in self._grid.pull_messages(list(self._sent)):
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:
                yield sent.client, _opened(message)
        now = time.monotonic()
        if now - self._looked > 1:
            self._looked, here = now, self._nodes()
            for key, sent in list(self._sent.items()):
                late = now - sent.began > self._patience
                if late or here.get(sent.client) != sent.node:
                    del self._sent[key]
                    self._forget(key)  # First: whoever has all that it waits for does not come back here.
                    yield sent.client, f"no reply within {self._patience:g} s" if late else GONE

    def _forget(self, key: str) -> None:
        """A reply to this message, should it come, is not taken any more."""
        forget = getattr(self._grid, "forget", None)
        if forget is not None:
            forget(key)


def kept_round(memory: Memory) -> int:
    """The last round of an owner that counted; 0 for none. All that a server has of an owner's memory."""
    return int(memory["kept"]["round"]) if "kept" in memory else 0


def _kind(step: str) -> str:
    return f"{'train' if step == 'masked' else 'query'}.{step}"


def _opened(message: Message) -> Letter | str:
    if message.has_error():
        return _printable(message.error.reason)
    try:
        letter = unpack(message.content)
    except (Malformed, ValueError, TypeError) as error:
        return f"its reply is no good: {error}"
    failed = letter.info.get("failed")
    return letter if failed is None else _printable(failed)


def _printable(reason: object) -> str:
    """A client's words as they may stand in a terminal and a record."""
    return "".join(one if one.isprintable() else " " for one in str(reason)[:LONGEST])


Handler = Callable[[Letter, Context], Letter]
"""Answers letters of one kind."""


class App(NamedTuple):
    """How a client's app gets at its desk.

    Attributes:
        desk: the desk for this node; None before a greeting.
        hello: what is done with a greeting.
        finish: what is done with the result.
        guard: turns what went wrong into a line that may leave the machine.
        moves: the desk may be another one for the next message, so that the state of a secure sum must travel there.
    """

    desk: Callable[[Context], Desk | None]
    hello: Callable[[Letter, Context], Letter]
    finish: Callable[[Letter], Letter]
    guard: Callable[[Exception], str]
    moves: bool = False


def client_app(app: App) -> ClientApp:
    """The Flower app that answers for a client."""
    handlers: dict[str, Handler] = {
        VISIT: lambda letter, context: _desk(app, context).visit(letter),
        HELLO: app.hello,
        FINISH: lambda letter, context: app.finish(letter),
    }
    for step in STEPS:
        handlers[_kind(step)] = _stepping(app, step)
    return answering(handlers, app.guard)


def answering(handlers: Mapping[str, Handler], guard: Callable[[Exception], str]) -> ClientApp:
    """The Flower app that gives each kind of letter to its handler, and says why where that fails."""
    flower = ClientApp()
    for kind, handle in handlers.items():
        category, action = kind.split(".")
        getattr(flower, category)(action)(_answering(handle, guard))
    return flower


def _desk(app: App, context: Context) -> Desk:
    desk = app.desk(context)
    if desk is None:
        raise UserError("this client knows nothing of the session; it must be greeted first")
    return desk


def _answering(handle: Handler, guard: Callable[[Exception], str]) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        try:
            letter = handle(unpack(message.content), context)
        except Exception as error:
            letter = refusal(UserError(guard(error)))
        return Message(pack(*letter), reply_to=message)

    return answer


def _stepping(app: App, step: str) -> Handler:
    def handle(letter: Letter, context: Context) -> Letter:
        desk = _desk(app, context)
        if not app.moves:
            return desk.step(step, letter)
        return _moving(desk, step, letter, context.state)

    return handle


def _moving(desk: Desk, step: str, letter: Letter, state: RecordDict) -> Letter:
    """A step of a desk that another process may go on with."""
    saved = state.config_records.pop("secret", None)
    if saved is not None and step != "advertise":
        desk.rounds = -1
        desk.begin(letter)
        assert desk.secret is not None
        desk.secret.load(bytes(saved["state"]), bytes(saved["key"]))  # pyright: ignore[reportArgumentType]
    elif step == "advertise":
        desk.rounds = -1
    found = desk.step(step, letter)
    if desk.secret is not None:
        key = os.urandom(32)
        state["secret"] = ConfigRecord({"state": desk.secret.save(key), "key": key})
    return found
