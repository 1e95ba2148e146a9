"""The client's half of a secure sum. All rules that protect a client are enforced here, by the client itself."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from fedfields.privacy.secure import crypto, shamir
from fedfields.privacy.secure.crypto import KEY, Mask
from fedfields.privacy.secure.errors import Refused
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
    SIGNATURE,
    TAG,
    Kind,
    Settings,
    Stage,
    cohort_of,
    join,
    pack,
    rows,
    signed_of,
    unpack,
)

Sign = Callable[[bytes], bytes]
"""Signs with the client's long-lived key: 64 bytes, e.g. Ed25519."""

Verify = Callable[[int, bytes, bytes], bool]
"""Whether a client's (number) long-lived key signed these bytes with this signature."""


class Client:
    """One client in one round: call the five stages in order, each once, with the server's answer to the one before.

    Every method either returns the message for the server or raises :class:`Refused`; after a refusal, and after the
    last message, the client has forgotten its secrets and does nothing more. To the others a refusal is a dropout.

    Args:
        settings: from the client's own configuration.
        number: of this client, below 2^32 - 1.
        after: the last round of this session in which this client took part; only later ones are joined.
        random: gives that many secret bytes; the operating system's except in tests.
        sign: signs the round's public keys with a long-lived key.
        verify: checks everybody's signatures. Without it, a server in the middle could make up all the other clients.
    """

    def __init__(
        self,
        settings: Settings,
        number: int,
        *,
        after: int = -1,
        random: Callable[[int], bytes] = os.urandom,
        sign: Sign | None = None,
        verify: Verify | None = None,
    ) -> None:
        if not 0 <= number < SERVER:
            raise ValueError(f"clients have numbers from 0 to {SERVER - 1}, not {number}")
        if settings.round <= after:
            raise Refused(f"round {settings.round} is a replay: this client has been in round {after}")
        self.settings, self.number, self.stage = settings, number, Stage.ADVERTISE
        self._context = settings.context
        self._random, self._sign, self._verify = random, sign, verify
        self._forget()

    def _forget(self) -> None:
        """Everything that must survive from one stage to the next, empty; none of it outlives the round."""
        self._channel = self._masks = self._seed = self._cohort = b""
        self._roster: tuple[int, ...] = ()
        self._peers: dict[int, tuple[bytes, bytes]] = {}  # Neighbours' public keys: channel, masks.
        self._held: dict[int, bytes] = {}  # Shares of neighbours' seed and mask key.
        self._survivors: tuple[int, ...] = ()

    def advertise(self) -> bytes:
        """Two fresh public keys."""
        with self._in(Stage.ADVERTISE):
            self._channel, self._masks = self._random(KEY), self._random(KEY)
            keys = crypto.public_key(self._channel), crypto.public_key(self._masks)
            signed = self._sign(signed_of(self._context, self.number, *keys)) if self._sign else bytes(SIGNATURE)
            return self._pack(Kind.ADVERTISE, KEYS.pack(*keys, signed))

    def share(self, roster: bytes) -> bytes:
        """Shares of a fresh seed and of the mask key for every neighbour, and a commitment to the seed."""
        with self._in(Stage.SHARE):
            body = self._body(roster, Kind.ROSTER)
            places = self._accept(self._rows(ENTRY, body))
            self._cohort = cohort_of(self._context, body)
            graph = neighbours(self._cohort, list(places), self.settings.degree)[self.number]
            self._roster, self._peers = tuple(places), {peer: places[peer][1:] for peer in graph}
            self._seed = self._random(KEY)
            indices = [places[peer][0] for peer in graph]
            secret = self._seed + self._masks
            shares = shamir.split(secret, indices, self.settings.threshold, self._random)
            sealed = [
                (peer, crypto.seal(self._key(b"shares", self.number, peer), share, self._link(self.number, peer)))
                for peer, share in zip(graph, shares, strict=True)
            ]
            return self._pack(Kind.SHARE, commitment(self._cohort, self._seed) + join(SEALED, sealed))

    def masked(self, inbox: bytes, vector: np.ndarray) -> bytearray:
        """The vector under the client's own mask and those that it shares with each neighbour.

        Args:
            inbox: what the neighbours sent; those from whom there is nothing have dropped out.
            vector: ``[length]`` words of the session; it is left as it is.
        """
        with self._in(Stage.MASKED):
            if vector.dtype != self.settings.dtype or vector.shape != (self.settings.length,):
                raise Refused(f"a vector of {vector.shape} {vector.dtype} is not the session's")
            for peer, sealed in self._rows(SEALED, self._body(inbox, Kind.INBOX)):
                if peer not in self._peers:
                    raise Refused(
                        f"there are shares of client {peer}, who is no neighbour in this cohort's graph", peer
                    )
                share = crypto.unseal(self._key(b"shares", peer, self.number), sealed, self._link(peer, self.number))
                if share is None:
                    raise Refused(f"the shares of client {peer} were not sealed for this client and cohort", peer)
                self._held[peer] = share
            self._enough(len(self._held), "neighbours have shared their keys")
            message = bytearray(self._pack(Kind.MASKED)) + vector.data
            masks = [
                pair_mask(self._cohort, self._masks, self._peers[peer][1], self.number, peer) for peer in self._held
            ]
            masks.append(own_mask(self._cohort, self._seed))
            crypto.add_masks(np.frombuffer(message, vector.dtype, offset=len(message) - vector.nbytes), masks)
            self._masks = self._seed = b""  # Only the neighbours' shares are needed from here on.
            return message

    def agree(self, survivors: bytes) -> bytes:
        """A tag for every surviving neighbour on who survived, so that the server cannot tell two stories."""
        with self._in(Stage.CONSISTENCY):
            named = [number for (number,) in self._rows(NUMBER, self._body(survivors, Kind.SURVIVORS))]
            if len(named) < self.settings.minimum:
                raise Refused(
                    f"only {len(named)} clients are in the sum; {self.settings.minimum} are the fewest allowed"
                )
            if self.number not in named:
                raise Refused("this client's vector is not in the sum: its secrets stay secret")
            if not set(named) <= set(self._roster):
                raise Refused("clients are in the sum that are not in the cohort")
            alive = set(named) & set(self._peers)
            if not alive <= set(self._held):
                raise Refused(f"client {min(alive - set(self._held))} is in the sum without having shared its keys")
            self._enough(len(alive), "neighbours are in the sum")
            self._survivors = tuple(named)
            return self._pack(
                Kind.CONSISTENCY, join(TAG, [(peer, self._tag(self.number, peer)) for peer in sorted(alive)])
            )

    def unmask(self, agreement: bytes) -> bytes:
        """For every neighbour that shared keys one share: of its seed if it survived, of its mask key if not."""
        with self._in(Stage.UNMASK):
            alive, agreed = set(self._survivors) & set(self._held), 0
            for peer, found in self._rows(TAG, self._body(agreement, Kind.AGREEMENT)):
                if peer not in alive:
                    raise Refused(f"client {peer} has no say in who survived: it is no surviving neighbour", peer)
                if not hmac.compare_digest(found, self._tag(peer, self.number)):
                    raise Refused(f"client {peer} was told of other survivors than this client", peer)
                agreed += 1
            self._enough(agreed, "neighbours agree on who survived")
            revealed = [
                (peer, SEED, held[:KEY]) if peer in alive else (peer, MASK_KEY, held[KEY:])
                for peer, held in sorted(self._held.items())
            ]
            message = self._pack(Kind.UNMASK, join(REVEALED, revealed))
        self._end()
        return message

    def save(self, key: bytes) -> bytes:
        """What must survive between two stages if each may meet another process, sealed under ``key`` (32 bytes).

        Whoever keeps it must delete each state when the next one is there: a client that is started twice from the same
        state could be asked for both shares of a neighbour.
        """
        secrets = [self._channel, self._masks, self._seed, self._cohort]
        state = {
            "stage": self.stage,
            "secrets": [secret.hex() for secret in secrets],
            "peers": [[peer, channel.hex(), masks.hex()] for peer, (channel, masks) in self._peers.items()],
            "held": [[peer, share.hex()] for peer, share in self._held.items()],
            "roster": self._roster,
            "survivors": self._survivors,
        }
        nonce = os.urandom(12)
        return nonce + crypto.seal(key, json.dumps(state).encode(), self._owner, nonce)

    def load(self, sealed: bytes, key: bytes) -> Client:
        """Takes over a saved state of the same client in the same round; returns itself."""
        text = crypto.unseal(key, sealed[12:], self._owner, sealed[:12]) if len(sealed) > 12 else None
        if text is None:
            raise Refused("the saved state is not this client's in this round, or is damaged, or the key is another")
        state = json.loads(text)
        self._channel, self._masks, self._seed, self._cohort = (bytes.fromhex(secret) for secret in state["secrets"])
        self._peers = {peer: (bytes.fromhex(a), bytes.fromhex(b)) for peer, a, b in state["peers"]}
        self._held = {peer: bytes.fromhex(share) for peer, share in state["held"]}
        self._roster, self._survivors = tuple(state["roster"]), tuple(state["survivors"])
        self.stage = Stage(state["stage"])
        return self

    @property
    def _owner(self) -> bytes:
        """Whose state, in which round of which session."""
        return b"state" + self._context + NUMBER.pack(self.number)

    @contextmanager
    def _in(self, stage: Stage) -> Iterator[None]:
        """Runs one stage: in its turn, and whatever goes wrong ends the round for this client."""
        try:
            if self.stage is not stage:
                raise Refused(f"stage {stage.name.lower()} is out of turn: this client is at {self.stage.name.lower()}")
            yield
            self.stage = Stage(stage + 1)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self.stage = Stage.DONE
        self._forget()

    def _accept(self, roster: list[tuple]) -> dict[int, tuple[int, bytes, bytes]]:
        """Place from 1, channel key and mask key of every client in a cohort that this client may be part of."""
        settings = self.settings
        if not settings.minimum <= len(roster) <= settings.largest:
            raise Refused(f"a cohort of {len(roster)} clients; {settings.minimum} to {settings.largest} are allowed")
        places = {number: (place, a, b) for place, (number, a, b, _) in enumerate(roster, 1)}
        if places.get(self.number, ())[1:] != (crypto.public_key(self._channel), crypto.public_key(self._masks)):
            raise Refused("the cohort does not have this client with its own keys")
        keys = [key for _, *both in places.values() for key in both]
        if len(set(keys)) < len(keys) or not all(map(crypto.canonical, keys)):
            raise Refused("two public keys in the cohort are the same, or one is not written in the usual way")
        for number, channel, masks, signature in roster if self._verify else ():
            if not self._verify(number, signed_of(self._context, number, channel, masks), signature):  # pyright: ignore
                raise Refused(f"the keys of client {number} are not signed by it", number)
        self._enough(min(settings.degree, len(roster) - 1), "neighbours are in the graph")
        return places

    def _enough(self, count: int, what: str) -> None:
        if count < self.settings.threshold:
            raise Refused(f"only {count} {what}; the threshold is {self.settings.threshold}")

    def _pack(self, kind: Kind, body: bytes = b"") -> bytes:
        return pack(kind, self._context, self.number, body)

    def _body(self, message: bytes, kind: Kind) -> memoryview:
        body = "too long" if len(message) > self.settings.capacity else unpack(message, kind, self._context, SERVER)
        if isinstance(body, str):
            raise Refused(f"the server's {kind.name.lower()} message is {body}")
        return body

    def _rows(self, record, body: memoryview) -> list[tuple]:
        found = rows(record, body, self.settings.largest)
        if found is None:
            raise Refused("the server's message is malformed: records are cut, repeated, out of order or too many")
        return found

    def _key(self, purpose: bytes, source: int, destination: int) -> bytes:
        """A key for what one client says to another, which only the two can compute; this client is one of them."""
        peer = destination if source == self.number else source
        return pair_key(purpose, self._cohort, self._channel, self._peers[peer][0], source, destination)

    def _link(self, source: int, destination: int) -> bytes:
        """Who says something to whom, in which cohort of which round of which session."""
        return self._context + self._cohort + NUMBER.pack(source) + NUMBER.pack(destination)

    def _tag(self, source: int, destination: int) -> bytes:
        """What one client says to another about who survived."""
        survivors = hashlib.sha256(join(NUMBER, [(number,) for number in self._survivors])).digest()
        return crypto.tag(self._key(b"consistency", source, destination), self._link(source, destination) + survivors)


def pair_key(purpose: bytes, cohort: bytes, secret: bytes, public: bytes, first: int, second: int) -> bytes:
    """A key of two clients in a cohort, whose hash stands for session, round and everybody's public keys."""
    return crypto.derive(crypto.agree(secret, public), purpose, cohort, NUMBER.pack(first), NUMBER.pack(second))


def pair_mask(cohort: bytes, secret: bytes, public: bytes, mine: int, other: int) -> Mask:
    """What client ``mine`` adds to its vector and ``other`` subtracts from its own, or the other way round."""
    key = pair_key(b"mask", cohort, secret, public, min(mine, other), max(mine, other))
    return Mask(key, 1 if mine < other else -1)


def own_mask(cohort: bytes, seed: bytes) -> Mask:
    """What a client adds besides, and only its seed can take away."""
    return Mask(crypto.derive(seed, b"seed", cohort), 1)


def commitment(cohort: bytes, seed: bytes) -> bytes:
    """What the server may know of a seed early: enough to see later that its shares were not tampered with."""
    return crypto.derive(seed, b"commitment", cohort)
