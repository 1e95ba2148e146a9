"""Rounds of secure sums in one process: the same state machines that go between machines, and messages as bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fedfields.privacy.base import PUBLIC
from fedfields.privacy.secure import Client, FixedPoint, Refused, Server, Settings
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


def settings_of(privacy: SecAgg, plan: FixedPoint, seed: int, round: int, attempt: int) -> Settings:
    """The settings of a round's attempt, which everybody makes from the configuration."""
    session = hashlib.sha256(f"fedfields run {seed}".encode()).digest()[:16]
    complete = 2 * (plan.clients // 2)
    degree = min(privacy.neighbours, complete) if privacy.neighbours else complete
    least = degree // 2 + 1
    threshold = min(max(math.ceil(privacy.threshold * degree), least), degree, plan.clients - 1)
    return plan.settings(session, (round << 8) | attempt, privacy.minimum, degree, threshold)


def sum_reports(
    plan: FixedPoint,
    settings: Settings,
    cohort: Iterable[int],
    reports: Callable[[], Iterable[Report | str]],
    seed: int,
) -> Summed:
    """Plays a round.

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
    server, clients = Server(settings), {number: Client(settings, number) for number in cohort}
    post = _Post(server)
    post.collect({number: client.advertise for number, client in clients.items()})
    letters = post.deliver()
    post.collect({number: _call(clients[number].share, letter) for number, letter in letters.items()})
    letters, seen, scaled = post.deliver(), {}, 0
    for number, report in zip(clients, reports(), strict=True):
        if number not in letters:
            continue
        try:
            if isinstance(report, str):
                raise Refused(report)
            encoded = plan.encode(report, generator(seed, "round", settings.round, number))
            message = clients[number].masked(letters[number], encoded.vector)
        except Refused as refusal:
            post.dropped[number] = str(refusal)
            continue
        scaled += encoded.factor < 1
        seen[number] = _read(plan, message)
        post.take(number, message)
    letters = post.deliver()
    post.collect({number: _call(clients[number].agree, letter) for number, letter in letters.items()})
    letters = post.deliver()
    post.collect({number: _call(clients[number].unmask, letter) for number, letter in letters.items()})
    vector, chosen = server.finish()
    return Summed(plan.decode(vector, len(chosen)), chosen, seen, post.dropped, post.up, post.down, scaled)


class _Post:
    """Carries messages and counts their bytes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.up = self.down = 0
        self.dropped: dict[int, str] = {}

    def collect(self, answers: dict[int, Callable[[], bytes | bytearray]]) -> None:
        """Everybody's message of one stage."""
        for number, answer in answers.items():
            try:
                self.take(number, answer())
            except Refused as refusal:
                self.dropped[number] = str(refusal)

    def take(self, number: int, message: bytes | bytearray) -> None:
        """One message."""
        self.up += len(message)
        reason = self.server.receive(number, message)
        if reason is not None:
            self.dropped[number] = f"its message was {reason}"

    def deliver(self) -> dict[int, bytes]:
        """The server's answers to a stage."""
        letters = self.server.advance()
        self.down += sum(len(letter) for letter in letters.values())
        return letters


def _call(method: Callable[[bytes], bytes], letter: bytes) -> Callable[[], bytes]:
    return lambda: method(letter)


def _read(plan: FixedPoint, message: bytearray) -> Report:
    """A masked report as if it were none: what a curious server has of one client."""
    return plan.read(np.frombuffer(message, plan.dtype, offset=HEADER.size))
