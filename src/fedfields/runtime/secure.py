"""Rounds of secure sums: what every runtime asks of server and clients, and a round whose clients are all here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fedfields.privacy.base import PUBLIC
from fedfields.privacy.secure import Abandoned, Client, FixedPoint, Refused, Server, Settings
from fedfields.privacy.secure.protocol import HEADER
from fedfields.privacy.sums import SecAgg
from fedfields.seeds import generator
from fedfields.types import Report

LARGEST_COUNT = 4096.0
"""Largest weight or weighted count in a report."""


class Summed(NamedTuple):
    """What came of a round.

    Attributes:
        total: the sum of the reports of ``clients``, float64.
        clients: whose reports are in it.
        seen: what the server saw of every report: masked, read as if it were not.
        dropped: why a client is not in the sum.
        bytes_up: of all messages of clients.
        bytes_down: of all messages of the server.
        scaled: how many reports had to be scaled down to fit.
    """

    total: Report
    clients: tuple[int, ...]
    seen: dict[int, Report]
    dropped: dict[int, str]
    bytes_up: int
    bytes_down: int
    scaled: int


def encoding(privacy: SecAgg, form: Report, cohort: int) -> FixedPoint:
    """The integers that stand for reports of this form in sums of up to ``cohort`` clients."""
    limits = {name: LARGEST_COUNT if name in PUBLIC else privacy.reach for name in form}
    return FixedPoint.of(form, limits, cohort, privacy.bits)


def session_of(seed: int) -> bytes:
    """The session of a simulation: 16 bytes."""
    return hashlib.sha256(f"fedfields run {seed}".encode()).digest()[:16]


def settings_of(privacy: SecAgg, plan: FixedPoint, session: bytes, round: int, attempt: int) -> Settings:
    """The settings of a round's attempt, which everybody makes from the configuration."""
    complete = 2 * (plan.clients // 2)
    degree = min(privacy.neighbours, complete) if privacy.neighbours else complete
    holders = min(degree, plan.clients - 1)  # Of an even number of clients in a complete graph, one less than degree.
    threshold = min(max(math.ceil(privacy.threshold * holders), holders // 2 + 1), holders)
    return plan.settings(session, (round << 8) | attempt, privacy.minimum, degree, threshold)


STEPS = ("advertise", "share", "masked", "agree", "unmask")
"""What a client is asked in a round, in this order; each is a method of the protocol's client."""

Answer = bytes | bytearray | Refused
"""A client's message, or why there is none."""

Ask = Callable[[str, dict[int, bytes]], Iterable[tuple[int, Answer]]]
"""Puts a step to clients, each with its letter from the server, and gives the answers as they come."""


def play(plan: FixedPoint, settings: Settings, cohort: Iterable[int], ask: Ask) -> Summed:
    """The server's side of a round, wherever the clients are.

    Args:
        plan: the encoding of reports.
        settings: of the round.
        cohort: numbers of the clients that are asked.
        ask: reaches them.

    Raises:
        Abandoned: too few clients are left; its ``dropped`` says why each of the others is not.
    """
    server, dropped, seen = Server(settings), dict[int, str](), dict[int, Report]()
    letters, up, down = dict.fromkeys(cohort, b""), 0, 0
    try:
        for step in STEPS:
            for number, answer in ask(step, letters):
                if isinstance(answer, Refused):
                    dropped[number] = str(answer)
                    continue
                up += len(answer)
                if step == "masked" and len(answer) == HEADER.size + plan.length * plan.dtype.itemsize:
                    seen[number] = _read(plan, answer)
                if (reason := server.receive(number, answer)) is not None:
                    dropped[number] = f"its message was {reason}"
            if step != STEPS[-1]:
                letters = server.advance()
                down += sum(len(letter) for letter in letters.values())
        vector, chosen = server.finish()
    except Abandoned as reason:
        reason.dropped = dropped
        raise
    return Summed(plan.decode(vector, len(chosen)), chosen, seen, dropped, up, down, 0)


def sum_reports(
    plan: FixedPoint,
    settings: Settings,
    cohort: Iterable[int],
    reports: Callable[[], Iterable[Report | str]],
    seed: int,
) -> Summed:
    """Plays a round with clients in this process.

    Args:
        plan: the encoding of reports.
        settings: of the round.
        cohort: numbers of the clients that are asked.
        reports: called when keys have been shared; gives the report of each client that is asked, in order, or in
            words why there is none: that client then drops out.
        seed: of the random rounding.

    Raises:
        Abandoned: too few clients are left.
    """
    clients, scaled = {number: Client(settings, number) for number in cohort}, 0

    def ask(step: str, letters: dict[int, bytes]) -> Iterator[tuple[int, Answer]]:
        nonlocal scaled
        given = iter(reports()) if step == "masked" else None
        for number in clients:
            report = next(given) if given else ""
            if number not in letters:
                continue
            try:
                if given is None:
                    yield number, answer(clients[number], step, letters[number])
                else:
                    message, shrunk = masked(clients[number], plan, letters[number], report, seed)
                    scaled += shrunk
                    yield number, message
            except Refused as refusal:
                yield number, refusal

    return play(plan, settings, clients, ask)._replace(scaled=scaled)


def answer(client: Client, step: str, letter: bytes) -> bytes:
    """A client's message of any step but "masked"."""
    return client.advertise() if step == "advertise" else getattr(client, step)(letter)


def masked(client: Client, plan: FixedPoint, letter: bytes, report: Report | str, seed: int) -> tuple[bytearray, bool]:
    """A client's report under its masks, and whether it had to be scaled down to fit.

    Raises:
        Refused: there is no report, but words why, or the client refuses the round.
    """
    if isinstance(report, str):
        raise Refused(report)
    encoded = plan.encode(report, generator(seed, "round", client.settings.round, client.number))
    return client.masked(letter, encoded.vector), encoded.factor < 1


def _read(plan: FixedPoint, message: bytes | bytearray) -> Report:
    """A masked report as if it were none: what a curious server has of one client."""
    return plan.read(np.frombuffer(message, plan.dtype, offset=HEADER.size))
