"""The server's half of a secure sum: it carries messages, adds masked vectors as they come, and unmasks the sum."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedfields.privacy.secure import crypto, shamir
from fedfields.privacy.secure.client import commitment, own_mask, pair_mask
from fedfields.privacy.secure.crypto import KEY, Mask
from fedfields.privacy.secure.errors import Abandoned
from fedfields.privacy.secure.graph import neighbours
from fedfields.privacy.secure.protocol import (
    ENTRY,
    KEYS,
    MASK_KEY,
    NUMBER,
    REVEALED,
    SEALED,
    SEED,
    SERVER,
    TAG,
    Kind,
    Settings,
    Stage,
    cohort_of,
    join,
    pack,
    rows,
    unpack,
)


class Total(NamedTuple):
    """The sum of the clients' vectors modulo 2^bits, and who is in it."""

    vector: np.ndarray
    clients: tuple[int, ...]


class Server:
    """One round: ``receive`` messages, ``advance`` when a stage is over, and ``finish`` after the last.

    A message that is late, a duplicate, malformed or somebody else's is dropped, with a reason that is counted in
    ``dropped``; the round goes on. When too few clients are left for an exact sum, :class:`Abandoned` is raised and the
    server has forgotten the round.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stage = settings, Stage.ADVERTISE
        self.dropped: Counter[str] = Counter()
        self._context = settings.context
        self._forget()

    def _forget(self) -> None:
        self._keys: dict[int, tuple[bytes, bytes, bytes]] = {}  # Channel, masks, signature.
        self._cohort = b""
        self._places: dict[int, int] = {}  # Indices of shares.
        self._graph: dict[int, tuple[int, ...]] = {}
        self._commitments: dict[int, bytes] = {}
        self._mail: dict[int, dict[int, bytes]] = {}  # For each client, from each neighbour.
        self._sent: set[int] = set()  # Who has sent the message of this stage.
        self._shared: set[int] = set()
        self._survivors: set[int] = set()
        self._sum = np.zeros(0, self.settings.dtype)
        self._shares: dict[int, dict[int, bytes]] = {}  # For each client, from each neighbour.

    @property
    def waiting(self) -> frozenset[int]:
        """Who is expected to send something, and has not; unknown before there is a cohort."""
        expected = {
            Stage.SHARE: set(self._keys),
            Stage.MASKED: self._shared,
            Stage.CONSISTENCY: self._survivors,
            Stage.UNMASK: set(self._mail),
        }
        return frozenset(expected.get(self.stage, set()) - self._sent)

    def receive(self, sender: int, message: bytes | bytearray) -> str | None:
        """Takes a message from the client that the transport says it is from; returns why it was dropped, if it was."""
        reason = self._take(sender, message)
        if reason is None:
            self._sent.add(sender)
        else:
            self.dropped[reason] += 1
        return reason

    def _take(self, sender: int, message: bytes | bytearray) -> str | None:
        if self.stage is Stage.DONE:
            return "late"
        if len(message) > self.settings.capacity:
            return "too long"
        body = unpack(message, Kind(self.stage), self._context, sender)
        if isinstance(body, str):
            return body
        if sender in self._sent:
            return "a duplicate"
        if self.stage is not Stage.ADVERTISE and sender not in self.waiting:
            return "from nobody in this round"
        take = {
            Stage.ADVERTISE: self._take_keys,
            Stage.SHARE: self._take_shares,
            Stage.MASKED: self._take_masked,
            Stage.CONSISTENCY: self._take_tags,
            Stage.UNMASK: self._take_revealed,
        }[self.stage]
        return take(sender, body)

    def _take_keys(self, sender: int, body: memoryview) -> str | None:
        if len(body) != KEYS.size or not 0 <= sender < SERVER:
            return "malformed"
        if len(self._keys) == self.settings.largest:
            return "too late: the cohort is full"
        channel, masks, signature = KEYS.unpack(body)
        if not (crypto.canonical(channel) and crypto.canonical(masks)):
            return "made of keys of low order or written in an unusual way"
        if channel == masks or {channel, masks} & {key for keys in self._keys.values() for key in keys[:2]}:
            return "made of keys that are not fresh"
        self._keys[sender] = (channel, masks, signature)
        return None

    def _take_shares(self, sender: int, body: memoryview) -> str | None:
        found = self._addressed(SEALED, body[KEY:], self._graph[sender])
        if found is None:
            return "malformed"
        self._commitments[sender] = bytes(body[:KEY])
        self._deliver(sender, found)
        return None

    def _take_masked(self, sender: int, body: memoryview) -> str | None:
        if len(body) != self._sum.nbytes:
            return "malformed"
        self._sum += np.frombuffer(body, self._sum.dtype)
        return None

    def _take_tags(self, sender: int, body: memoryview) -> str | None:
        found = self._addressed(TAG, body, self._near(sender, self._survivors))
        if found is None:
            return "malformed"
        self._deliver(sender, found)
        return None

    def _take_revealed(self, sender: int, body: memoryview) -> str | None:
        found = self._addressed(REVEALED, body, self._near(sender, self._shared))
        if found is None or any(kind != (SEED if who in self._survivors else MASK_KEY) for who, kind, _ in found):
            return "malformed"
        for who, _, share in found:
            self._shares.setdefault(who, {})[sender] = share
        return None

    def advance(self) -> dict[int, bytes]:
        """Closes a stage; returns the message for every client that goes on, by its number.

        Raises:
            Abandoned: too few are left.
        """
        close = {
            Stage.ADVERTISE: self._close_keys,
            Stage.SHARE: self._close_shares,
            Stage.MASKED: self._close_masked,
            Stage.CONSISTENCY: self._close_tags,
        }
        if self.stage not in close:
            raise ValueError(f"there is nothing to advance to from {self.stage.name.lower()}")
        try:
            messages = close[self.stage]()
        except Abandoned:
            self._end()
            raise
        self.stage, self._sent = Stage(self.stage + 1), set()
        return messages

    def _close_keys(self) -> dict[int, bytes]:
        self._check(len(self._keys), "advertised keys")
        if min(self.settings.degree, len(self._keys) - 1) < self.settings.threshold:
            raise Abandoned(
                f"{len(self._keys)} clients advertised keys; with a threshold of {self.settings.threshold} neighbours "
                f"it takes {self.settings.threshold + 1}"
            )
        body = join(ENTRY, [(number, *keys) for number, keys in sorted(self._keys.items())])
        self._cohort = cohort_of(self._context, body)
        self._places = {number: place for place, number in enumerate(sorted(self._keys), 1)}
        self._graph = neighbours(self._cohort, list(self._keys), self.settings.degree)
        roster = pack(Kind.ROSTER, self._context, SERVER, body)
        return dict.fromkeys(self._keys, roster)

    def _close_shares(self) -> dict[int, bytes]:
        kept = set(self._sent)
        while lonely := {who for who in kept if len(self._near(who, kept)) < self.settings.threshold}:
            kept -= lonely
            self.dropped["from a client with too few neighbours left"] += len(lonely)
        self._check(len(kept), "shared keys with enough neighbours")
        self._shared = kept
        self._sum = np.zeros(self.settings.length, self.settings.dtype)
        return self._letters(Kind.INBOX, SEALED, kept)

    def _close_masked(self) -> dict[int, bytes]:
        self._survivors = set(self._sent)
        self._check(len(self._survivors), "sent their masked vector")
        self._recoverable(self._survivors)
        body = join(NUMBER, [(number,) for number in sorted(self._survivors)])
        return dict.fromkeys(self._survivors, pack(Kind.SURVIVORS, self._context, SERVER, body))

    def _close_tags(self) -> dict[int, bytes]:
        self._recoverable(self._sent)
        return self._letters(Kind.AGREEMENT, TAG, self._sent)

    def finish(self) -> Total:
        """The exact sum over everybody whose masked vector came in time.

        Raises:
            Abandoned: too few shares were revealed, or they do not fit together.
        """
        if self.stage is not Stage.UNMASK:
            raise ValueError(f"the round is at {self.stage.name.lower()}, not at its end")
        try:
            self._recoverable(self._sent)
            masks = [mask for who in sorted(self._needed()) for mask in self._masks_of(who)]
            crypto.add_masks(self._sum, [Mask(mask.key, -mask.sign) for mask in masks])
            return Total(self._sum, tuple(sorted(self._survivors)))
        finally:
            self._end()

    def _masks_of(self, who: int) -> list[Mask]:
        """What a client left in the sum: its own mask, or, if it dropped out, those of its neighbours with it."""
        revealed = sorted(self._shares[who].items())[: self.settings.threshold]
        secret = shamir.combine({self._places[peer]: share for peer, share in revealed})
        if who in self._survivors:
            if commitment(self._cohort, secret) != self._commitments[who]:
                raise Abandoned(f"the shares of client {who}'s seed do not fit together: some client sent wrong ones")
            return [own_mask(self._cohort, secret)]
        if crypto.public_key(secret) != self._keys[who][1]:
            raise Abandoned(f"the shares of client {who}'s mask key do not fit together: some client sent wrong ones")
        near = self._near(who, self._survivors)
        mirrored = [pair_mask(self._cohort, secret, self._keys[peer][1], who, peer) for peer in near]
        return [Mask(mask.key, -mask.sign) for mask in mirrored]

    def _needed(self) -> set[int]:
        """Whose secrets it takes: all who are in the sum, and all who are not but share masks with one who is."""
        return self._survivors | {who for who in self._shared if self._near(who, self._survivors)}

    def _recoverable(self, helpers: Iterable[int]) -> None:
        """Checks that enough neighbours of everybody whose secrets are needed can still reveal their shares."""
        helpers = set(helpers)
        for who in sorted(self._needed()):
            left = len(self._near(who, helpers))
            if left < self.settings.threshold:
                raise Abandoned(
                    f"{left} neighbours of client {who} are left to reveal its shares; "
                    f"it takes {self.settings.threshold}"
                )

    def _check(self, count: int, what: str) -> None:
        if count < self.settings.minimum:
            raise Abandoned(f"{count} clients {what}; {self.settings.minimum} are the fewest in a sum")

    def _near(self, who: int, among: set[int]) -> list[int]:
        return [peer for peer in self._graph[who] if peer in among]

    def _addressed(self, record: struct.Struct, body: memoryview, to: Iterable[int]) -> list[tuple] | None:
        """The records in a body if there is exactly one for each of ``to``."""
        found = rows(record, body, self.settings.largest)
        return found if found is not None and [row[0] for row in found] == list(to) else None

    def _deliver(self, sender: int, found: Iterable[tuple[int, bytes]]) -> None:
        for peer, data in found:
            self._mail.setdefault(peer, {})[sender] = data

    def _letters(self, kind: Kind, record: struct.Struct, to: Iterable[int]) -> dict[int, bytes]:
        """For each client what the others who go on have sent it."""
        going = set(to)
        letters = {}
        for who in sorted(going):
            mail = [(peer, data) for peer, data in sorted(self._mail.get(who, {}).items()) if peer in going]
            letters[who] = pack(kind, self._context, SERVER, join(record, mail))
        self._mail = {who: {} for who in going}
        return letters

    def _end(self) -> None:
        self.stage = Stage.DONE
        self._forget()
