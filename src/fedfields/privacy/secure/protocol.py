"""What both sides agree on: the settings of a round, its stages, and the bytes of every message.

A message is a header of 48 bytes (magic, version, kind, sender, context) and records of a fixed size, in ascending
order of the client number they begin with. There is nothing to parse: a message of another length, order, round or
sender is not a message. The context is a hash of all settings: it stands for session, round, model and rules at once.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import IntEnum

import numpy as np

from fedfields.privacy.secure.crypto import KEY, SEAL

SERVER = 2**32 - 1
"""The sender of what the server sends; clients have smaller numbers."""

MOST = 2**16 - 1
"""Most clients in a cohort: their places in it are the indices of shares."""

SIGNATURE = 64
"""Bytes of a signature (Ed25519)."""


class Stage(IntEnum):
    """What a client sends next, and what the server is waiting for."""

    ADVERTISE = 1
    SHARE = 2
    MASKED = 3
    CONSISTENCY = 4
    UNMASK = 5
    DONE = 6


class Kind(IntEnum):
    """Kinds of messages: five from clients, one for each stage, and the four answers of the server."""

    ADVERTISE = 1
    SHARE = 2
    MASKED = 3
    CONSISTENCY = 4
    UNMASK = 5
    ROSTER = 17
    INBOX = 18
    SURVIVORS = 19
    AGREEMENT = 20


HEADER = struct.Struct("<4sHHII32s")
MAGIC, VERSION = b"ffsa", 1

KEYS = struct.Struct(f"<{KEY}s{KEY}s{SIGNATURE}s")
"""Advertise: public keys of the channel and of the masks, and a signature of both or zeros."""

ENTRY = struct.Struct(f"<I{KEY}s{KEY}s{SIGNATURE}s")
"""Roster: a client and what it advertised."""

SEALED = struct.Struct(f"<I{2 * KEY + SEAL}s")
"""Share and inbox: the other client, and shares of the seed and of the mask key that only the two can read."""

NUMBER = struct.Struct("<I")
"""Survivors: a client whose masked vector is in the sum."""

TAG = struct.Struct(f"<I{KEY}s")
"""Consistency and agreement: the other client, and a tag on the survivors that only the two can make."""

REVEALED = struct.Struct(f"<IB{KEY}s")
"""Unmask: a client, 1 for a share of its seed or 2 for one of its mask key, and the share."""

SEED, MASK_KEY = 1, 2


@dataclass(frozen=True)
class Settings:
    """What everybody knows before a round and has from its own configuration, not from the server.

    Every pair of quorums meets: more than half of the neighbours are needed to reveal anything about a client, so no
    two disjoint sets of neighbours can be told different things about it, not even without the consistency check.
    """

    session: bytes
    """16 bytes that name the session."""

    round: int
    """Number of the round; a retry with another cohort is another round."""

    layout: bytes
    """Hash of what the vectors mean (``FixedPoint.digest``)."""

    length: int
    """Words in a vector."""

    bits: int
    """Modulus 2^32 or 2^64."""

    minimum: int
    """Fewest clients in a sum."""

    largest: int
    """Most clients in a cohort; the fixed-point encoding must have room for them."""

    degree: int
    """Neighbours of a client, even; cohorts of at most ``degree + 1`` form a complete graph (see ``degree_for``)."""

    threshold: int
    """Neighbours whose shares reveal a client's seed or mask key; more than half of all that a client can have."""

    def __post_init__(self) -> None:
        if len(self.session) != 16 or len(self.layout) != 32:
            raise ValueError("a session is named by 16 bytes and a layout by 32")
        if self.bits not in (32, 64) or not 0 < self.length < 2**40 or not 0 <= self.round < 2**63:
            raise ValueError(f"{self.length} words of {self.bits} bits in round {self.round}: no such round")
        if not 3 <= self.minimum <= self.largest <= MOST:
            raise ValueError(
                f"cohorts of {self.minimum} to {self.largest} clients: at least 3, since two know each other's reports "
                f"from their sum, and at most {MOST}"
            )
        holders = min(self.degree, self.largest - 1)
        if self.degree % 2 or not holders // 2 < self.threshold <= holders:
            raise ValueError(
                f"{self.threshold} of {holders} neighbours: the degree, {self.degree}, must be even, and the threshold "
                "more than half of the neighbours and at most all of them"
            )

    @property
    def context(self) -> bytes:
        """A hash of all of this."""
        return hashlib.sha256(repr(("fedfields secure sum", VERSION, *astuple(self))).encode()).digest()

    @property
    def capacity(self) -> int:
        """Bytes of the longest message."""
        return HEADER.size + max(self.length * self.dtype.itemsize, KEY + self.largest * ENTRY.size)

    @property
    def dtype(self) -> np.dtype:
        """Of the vectors: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")


def pack(kind: Kind, context: bytes, sender: int, body: bytes = b"") -> bytes:
    """A message."""
    return HEADER.pack(MAGIC, VERSION, kind, sender, 0, context) + body


def unpack(message: bytes | bytearray, kind: Kind, context: bytes, sender: int) -> memoryview | str:
    """The body of a message, or in words why it is not the one that is due."""
    if len(message) < HEADER.size:
        return "malformed"
    magic, version, found, source, zero, session = HEADER.unpack_from(message)
    if (magic, version, zero) != (MAGIC, VERSION, 0):
        return "malformed"
    if session != context:
        return "of another session, round or model"
    if found != kind:
        return "out of order"
    if source != sender:
        return "from another sender than it says"
    return memoryview(message)[HEADER.size :]


def join(record: struct.Struct, rows: Iterable[tuple]) -> bytes:
    """Records as bytes."""
    return b"".join(record.pack(*row) for row in rows)


def rows(record: struct.Struct, body: bytes | memoryview, most: int) -> list[tuple] | None:
    """The records in a body, or None if there are more than ``most``, a part of one, or their numbers do not ascend."""
    if len(body) % record.size or len(body) > most * record.size:
        return None
    found = list(record.iter_unpack(body))
    return found if all(a[0] < b[0] for a, b in itertools.pairwise(found)) else None


def cohort_of(context: bytes, roster: bytes | memoryview) -> bytes:
    """What names the cohort in every key and tag: a hash of the settings and of everybody's public keys."""
    return hashlib.sha256(b"cohort" + context + roster).digest()


def signed_of(context: bytes, number: int, channel: bytes, masks: bytes) -> bytes:
    """What a client signs with its long-lived key, if the clients have such."""
    return b"fedfields keys" + context + NUMBER.pack(number) + channel + masks
