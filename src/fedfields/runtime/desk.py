"""A client's half of what travels: it answers one message at a time, wherever it sits.

The same desk serves a node of a simulation and an owner's machine. They differ in where a client's memory lies: in a
simulation it comes with the message and goes back with the reply; an owner's never leaves its :class:`Shelf`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from fedfields.errors import UserError, said
from fedfields.federation import Door, Rejected, Reply, expected
from fedfields.privacy.secure import Client as SecretClient
from fedfields.privacy.secure import Refused
from fedfields.runtime.inprocess import Context, Job, Settings, checked, visit_job
from fedfields.runtime.pool import Failed, one_thread
from fedfields.runtime.secure import answer, encoding, masked, settings_of
from fedfields.types import Memory, Params

RECEIVED, KEPT, REPORT = "received/", "memory/", "report/"
"""Before the names of trees in messages, for what they are part of."""


class Letter(NamedTuple):
    """The content of a message: named trees, and a few named values beside them."""

    trees: dict[str, Params]
    info: dict[str, Any]


class Shelf(Protocol):
    """Where an owner's machine keeps what a client remembers."""

    def at(self, number: int) -> Memory | None:
        """What was kept after round ``number``; None if nothing is."""
        ...

    def put(self, number: int, memory: Memory, oldest: int) -> None:
        """Keeps what is to be remembered after round ``number``; nothing before ``oldest`` will be asked for again."""
        ...


class Seat(NamedTuple):
    """What a client knows of its federation.

    Attributes:
        context: method, clients and loss; of the clients, only its own has signals.
        client: its own index among them.
        settings: how rounds are run.
        params: weights of the form that travels.
        session: of secure sums, 16 bytes.
        keys: how a secure sum's client signs, and checks the others' signatures; empty for not at all.
        share: of the weight that the server gives it, with which it counts; the client's secret, inside the sum.
    """

    context: Context
    client: int
    settings: Settings
    params: Params
    session: bytes
    keys: Mapping[str, Callable[..., Any]] = {}
    share: float = 1.0


class Desk:
    """Answers what a server asks of one client.

    Args:
        seat: what the client knows of its federation.
        shelf: where its memory lies; without one this is a simulation, and memories travel.

    Attributes:
        form: a report of zeros, with the names and shapes of every report.
    """

    def __init__(self, seat: Seat, shelf: Shelf | None = None) -> None:
        self.seat, self._shelf = seat, shelf
        with one_thread():
            self.form = expected(seat.context.method, seat.params)
            self._initial = seat.context.method.client_init(seat.params)
        self.secret: SecretClient | None = None
        self.rounds = -1  # The last round of secure sums of this session.

    def visit(self, letter: Letter) -> Letter:
        """One visit; the report travels as it is."""
        reply = self._visited(self._job(letter))
        if isinstance(reply, Rejected):
            return refusal(reply)
        return self._reply(letter, reply, {REPORT + name: tree for name, tree in reply.report.items()}, {})

    def step(self, name: str, letter: Letter) -> Letter:
        """A step of a secure sum."""
        try:
            if name == "advertise":
                self.begin(letter)
            client, mail = self._present, letter.info.get("letter", b"")
            if name != "masked":
                return Letter({}, {"letter": bytes(answer(client, name, mail))})
            return self._masked(client, letter, mail)
        except Refused as reason:
            return refusal(reason)

    def begin(self, letter: Letter) -> None:
        """Takes part in a round of secure sums; the settings are the client's own, not the server's."""
        seat = self.seat
        sums = seat.context.method.sums
        if sums is None:
            raise Refused("this run has no secure sums")
        self._plan = encoding(sums, self.form, min(seat.settings.cohort, len(seat.context.clients)))
        rules = settings_of(sums, self._plan, seat.session, letter.info["number"], letter.info["attempt"])
        self.secret = SecretClient(rules, seat.client, after=self.rounds, **seat.keys)
        self.rounds = rules.round

    def _masked(self, client: SecretClient, letter: Letter, mail: bytes) -> Letter:
        reply = self._visited(self._job(letter))
        if isinstance(reply, Rejected):
            return refusal(reply)
        message, scaled = masked(client, self._plan, mail, reply.report, self.seat.settings.seed)
        return self._reply(letter, reply, {}, {"letter": bytes(message), "scaled": scaled})

    @property
    def _present(self) -> SecretClient:
        if self.secret is None:
            raise Refused("this client is in no round of secure sums")
        return self.secret

    def _job(self, letter: Letter) -> Job:
        info, seat = letter.info, self.seat
        received = part(letter, RECEIVED)
        if self._shelf is None:
            memory = part(letter, KEPT)
        else:
            memory = self._shelf.at(info["kept"]) if info["kept"] else None
        seed, share, secret = seat.settings.seed, info["share"], seat.settings.secret
        return Job(
            *(seat.client, received, memory or self._initial, seed, info["number"]),
            *(info["weight"] * seat.share, share, info["progress"], secret),
        )

    def _visited(self, job: Job) -> Reply | Rejected:
        with one_thread():
            try:
                self._check(job)
                reply: Reply | Failed = visit_job(self.seat.context, *job)
            except Exception as error:
                if self._shelf is not None and not isinstance(error, Rejected):
                    raise
                reply = Failed(said(error))
            heaviest = self.seat.context.method.strategy.heaviest
            door = Door(job.number, [job.client], self.form, self.seat.settings.max_norm, heaviest)
            return checked(reply, door, job)

    def _check(self, job: Job) -> None:
        """Refuses weights of another model."""
        found = {key: (leaf.shape, leaf.dtype) for key, leaf in job.received.get("params", {}).items()}
        if found != {key: (leaf.shape, leaf.dtype) for key, leaf in self.seat.params.items()}:
            raise Rejected("the weights that were sent are not of the model that was agreed on")

    def _reply(self, letter: Letter, reply: Reply, trees: dict[str, Params], info: dict[str, Any]) -> Letter:
        info = info | {"round": reply.round}
        if self._shelf is not None:
            self._shelf.put(letter.info["number"], reply.memory, letter.info["oldest"])
            return Letter(trees, info)
        info |= {"steps": reply.steps, "metrics": json.dumps(reply.metrics)}
        return Letter(trees | {KEPT + name: tree for name, tree in reply.memory.items()}, info)


def part(letter: Letter, prefix: str) -> dict[str, Params]:
    """The trees of a letter whose names begin so, without that."""
    return {name.removeprefix(prefix): tree for name, tree in letter.trees.items() if name.startswith(prefix)}


def refusal(reason: UserError | Rejected) -> Letter:
    """A letter that says why there is nothing else."""
    return Letter({}, {"failed": str(reason)})
