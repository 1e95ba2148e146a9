"""Whole rounds of secure sums in one process, with clients that drop out and a wire that tells what went over it."""

import random
from collections.abc import Callable

import numpy as np

from fedfields.privacy.secure import Client, Refused, Server, Settings, Stage

STEPS = (Stage.ADVERTISE, Stage.SHARE, Stage.MASKED, Stage.CONSISTENCY, Stage.UNMASK)


def settings_of(clients, length=5, bits=32, minimum=3, degree=None, threshold=None, round=1):
    """Settings of a cohort; complete, and with a threshold of two thirds, unless told otherwise."""
    degree = degree or 2 * (clients // 2)
    threshold = threshold or min(degree // 2 + 1 + degree // 6, clients - 1)
    return Settings(b"session of tests", round, bytes(32), length, bits, minimum, clients, degree, threshold)


def clients_of(settings, numbers, seed=0, **kwargs):
    """Clients whose secrets come from a seed."""
    return {
        number: Client(settings, number, random=random.Random(f"{seed}/{number}").randbytes, **kwargs)
        for number in numbers
    }


def vector_of(settings, number, seed=0):
    """What a client has to say: uniform words."""
    source = np.random.default_rng([seed, number])
    return source.integers(0, 2**settings.bits, settings.length, dtype=np.uint64).astype(settings.dtype)


class Round:
    """A round step by step.

    Args:
        settings: of the round.
        vectors: of every client by its number.
        lost: for a stage, who falls silent before sending that stage's message.
        late: whether what the lost would have sent arrives right after the stage is over.
        wire: sees and may change what the server sends: ``wire(stage that it begins, client, message)``.
    """

    def __init__(self, settings, vectors, lost=None, late=False, wire: Callable | None = None, seed=0, **kwargs):
        self.settings, self.vectors, self.lost, self.late = settings, vectors, lost or {}, late
        self.wire = wire or (lambda stage, client, message: message)
        self.server, self.clients = Server(settings), clients_of(settings, vectors, seed, **kwargs)
        self.inbox = dict.fromkeys(vectors, b"")
        self.refused: dict[int, Refused] = {}
        self.sent: dict[tuple[Stage, int], bytes] = {}
        self.reasons: list[str] = []

    def play(self, until=Stage.DONE):
        """Goes on until a stage, which is not played; at the end, the total."""
        for stage in STEPS:
            if stage >= self.server.stage and stage < until:
                self.step(stage)
        return self.server.finish() if until is Stage.DONE else self

    def step(self, stage):
        """One stage: messages to the server, and its answers."""
        held_back = []
        for number, message in self.inbox.items():
            answer = self.answer(stage, number, message)
            if answer is None:
                continue
            self.sent[stage, number] = bytes(answer)
            if number in self.lost.get(stage, ()):
                held_back.append((number, answer))
            elif reason := self.server.receive(number, answer):
                self.reasons.append(reason)
        if stage is not Stage.UNMASK:
            letters = self.server.advance()
            gone = {number for lost in range(1, stage + 1) for number in self.lost.get(Stage(lost), ())}
            self.inbox = {
                number: self.wire(Stage(stage + 1), number, letter)
                for number, letter in letters.items()
                if number not in gone
            }
        for number, answer in held_back if self.late and stage is not Stage.UNMASK else ():
            assert self.server.receive(number, answer) is not None

    def answer(self, stage, number, message):
        """What a client sends in a stage, or None if it refuses."""
        client = self.clients[number]
        ask = {
            Stage.ADVERTISE: lambda: client.advertise(),
            Stage.SHARE: lambda: client.share(message),
            Stage.MASKED: lambda: client.masked(message, self.vectors[number]),
            Stage.CONSISTENCY: lambda: client.agree(message),
            Stage.UNMASK: lambda: client.unmask(message),
        }[stage]
        try:
            return ask()
        except Refused as refusal:
            self.refused[number] = refusal
            return None


def total_of(vectors, numbers):
    """The sum modulo 2^bits by Python's integers."""
    chosen = [vectors[number] for number in numbers]
    modulus = 2 ** (8 * chosen[0].itemsize)
    return np.array([sum(map(int, column)) % modulus for column in zip(*chosen, strict=True)], chosen[0].dtype)
