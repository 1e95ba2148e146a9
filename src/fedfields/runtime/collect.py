"""The door of a map for owners elsewhere: what they bring is fetched in pieces, put into the queue, answered for.

Everything is asked by the server, as in a run: whoever comes is told about the map and says what they have; pieces are
asked for one after the other; in the end the server tells what became of it. A conversation is a generator, so that
many go on side by side in one thread, and none waits for another.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from fedfields.errors import UserError, said
from fedfields.mapping.intake import LARGEST, Note, Queue
from fedfields.mapping.merge import Refused
from fedfields.runtime.desk import Letter
from fedfields.runtime.engine import SuperLink, hush
from fedfields.runtime.flower import FINISH, GONE, HELLO, PIECE, POLL, Node, Post
from fedfields.runtime.keys import OwnerPublic
from fedfields.runtime.serve import Address, Tell
from fedfields.runtime.wire import Malformed
from fedfields.store import cannot_write

SIZE = 2**22
"""Bytes of a piece."""

MOST = 1000
"""Contributions that an owner may offer at once."""

PATIENCE = 600.0
"""Seconds for which a piece is waited for."""

PAUSE = 10.0
"""Seconds before an owner of whom something was wrong is greeted again."""

Talk = Generator[tuple[str, Letter] | None, Letter, None]
"""A conversation: gives the next kind and letter and takes the answer, or gives None to go on later."""


class Offer(NamedTuple):
    """What an owner has: the digest of a file, and its bytes."""

    digest: str
    size: int


class Guest:
    """An owner's program that is connected, and how far the conversation with it is.

    Attributes:
        node: where it is.
        talk: what is still to be said; None if all was.
        asked: whether an answer of it is waited for.
        again: when it is greeted anew, on the monotonic clock.
    """

    def __init__(self, node: Node, talk: Talk) -> None:
        self.node, self.talk, self.asked, self.again = node, talk, False, float("inf")


class Collector:
    """Takes contributions from owners elsewhere.

    Args:
        queue: of the map.
        link: to the owners' programs.
        names: of the owners.
        tell: is called with lines for the server's terminal.
        patience: seconds for which a piece is waited for.
    """

    def __init__(self, queue: Queue, link: SuperLink, names: list[str], tell: Tell, patience: float = PATIENCE) -> None:
        self._queue, self._link, self._names, self._tell = queue, link, names, tell
        self._guests: dict[int, Guest] = {}
        self._post = Post(link.grid, self._here, patience)
        self._told: dict[int, str] = {}

    @property
    def asking(self) -> bool:
        """Whether an answer is still to come."""
        return self._post.waiting

    def turn(self) -> None:
        """All that can be done now, without waiting for anybody."""
        for client, node in self._here().items():
            guest = self._guests.get(client)
            now = time.monotonic()
            if guest is None or (not guest.asked and (guest.node != node or now > guest.again)):
                self._guests[client] = Guest(node, self._talk(self._names[client]))
        for client, answer in self._post.answers():
            self._go_on(client, answer)
        for client, guest in self._guests.items():
            if not guest.asked:
                self._go_on(client, None)

    def _go_on(self, client: int, answer: Letter | str | None) -> None:
        """Gives an owner's conversation an answer, and sends what it says next."""
        guest = self._guests[client]
        guest.asked = False
        try:
            if isinstance(answer, str):
                raise UserError(answer)
            letter = guest.talk.send(answer)  # pyright: ignore[reportArgumentType]
            if letter is not None:
                guest.asked = self._post.send(client, guest.node, *letter)
                if not guest.asked:
                    raise UserError("the message could not be sent")
        except StopIteration:
            pass
        except Exception as error:  # Whatever one brings must not stop the others.
            guest.talk.close()
            guest.again = time.monotonic() + PAUSE
            known = isinstance(error, UserError | Malformed)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            if reason not in (GONE, self._told.get(client)):
                self._told[client] = reason
                self._tell(f"{self._names[client]}: {reason}")

    def _talk(self, owner: str) -> Talk:
        """The whole conversation with an owner's program."""
        store = self._queue.store
        about = {"version": version("fedfields"), "voxel": store.settings.voxel, "base": store.head}
        found = _offers((yield HELLO, Letter({}, about)))
        for offer in found:
            try:
                note = yield from self._settled(owner, offer)
            except Refused as refusal:
                note = Note(offer.digest, "refused", why=str(refusal))
                self._tell(f"{owner}: refused: {refusal}")
            told = {"digest": offer.digest, "state": note.state, "why": note.why, "version": note.version}
            yield FINISH, Letter({}, told)

    def _settled(self, owner: str, offer: Offer) -> Generator[tuple[str, Letter] | None, Letter, Note]:
        """What became of a contribution, which is fetched unless it is here."""
        note = self._queue.fate(offer.digest)
        if not (self._queue.waits(offer.digest) or (note and note.state == "merged")):
            arrival = self._queue.arrival(owner, offer.digest, offer.size)
            while (start := arrival.came) < offer.size:
                count = min(SIZE, offer.size - start)
                answer = yield PIECE, Letter({}, {"digest": offer.digest, "start": start, "count": count})
                arrival.add(_piece(answer, count))
            content = arrival.content()
            try:
                self._queue.put(content, owner)
            except Refused:
                arrival.drop()
                raise
            arrival.drop()  # Not where the disk is full: it need not come again.
            self._tell(f"{owner}: {offer.size:,} bytes have come, and wait as {offer.digest[:12]}")
            note = None
        while note is None:
            yield None
            note = self._queue.fate(offer.digest)
        return note

    def _here(self) -> dict[int, Node]:
        found = self._link.here()
        return {i: found[name] for i, name in enumerate(self._names) if name in found}


def _offers(letter: Letter) -> list[Offer]:
    """What an owner says that it has.

    Raises:
        Malformed: that is no list of files, one is too large, or they are too many.
    """
    digests, sizes = letter.info.get("digests"), letter.info.get("sizes")
    if not isinstance(digests, list) or not isinstance(sizes, list) or len(digests) != len(sizes):
        raise Malformed("what it offers is no list of digests and sizes")
    found = [Offer(str(digest), size) for digest, size in zip(digests, sizes, strict=True)]
    for digest, size in found:
        if not re.fullmatch("[0-9a-f]{64}", digest) or type(size) is not int or size < 1:
            raise Malformed("what it offers is no list of digests and sizes")
        if size > LARGEST or len(found) > MOST:
            raise Malformed(f"it offers {len(found):,} files, one of {size:,} bytes; {MOST:,} of {LARGEST:,} may come")
    return found


def _piece(letter: Letter, count: int) -> bytes:
    """The bytes of a piece.

    Raises:
        Malformed: they are not those that were asked for.
    """
    piece = letter.trees.get("piece", {}).get("bytes")
    if piece is None or piece.dtype != torch.uint8 or piece.shape != (count,):
        raise Malformed(f"it was asked for {count:,} bytes and sent something else")
    return piece.numpy().tobytes()


@contextmanager
def collecting(queue: Queue, roster: Mapping[str, OwnerPublic], address: Address, tell: Tell) -> Iterator[int]:
    """Lets owners bring contributions for as long as the context lasts; gives the port.

    Args:
        queue: of the map.
        roster: public keys of the owners by name; nobody else gets in.
        address: where to listen.
        tell: is called with lines for the server's terminal.

    Raises:
        UserError: the port is taken, or the certificate cannot be used.
    """
    try:
        queue.root.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(queue.root, error) from error
    hush(queue.root / "flower.log")
    names, over = sorted(roster), threading.Event()
    keys: dict[str, Any] = {name: public.node for name, public in roster.items()}
    with SuperLink(keys, address.host, address.port, address.tls) as link:
        collector = Collector(queue, link, names, tell)

        def work() -> None:
            try:
                while not over.wait(POLL if collector.asking else 10 * POLL):
                    collector.turn()
            except Exception as error:
                tell(f"nobody is let in any more ({said(error)}); start the server again, nothing is lost")
                raise

        thread = threading.Thread(target=work, name="collect", daemon=True)
        thread.start()
        tell(f"listening on {address.host} port {link.port} for {', '.join(names)}")
        try:
            yield link.port
        finally:
            over.set()
            thread.join(timeout=10)
