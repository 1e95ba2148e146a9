"""An owner's side of a map: learns what the map needs, and hands over files when the server asks for them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from fedfields.errors import UserError
from fedfields.mapping.intake import LARGEST, check_owner
from fedfields.mapping.upload import About, sent_from_bytes
from fedfields.runtime.desk import Letter
from fedfields.runtime.flower import FINISH, HELLO, PIECE, answering
from fedfields.runtime.join import Program, Tell, Visit, converse
from fedfields.runtime.keys import OwnerKey
from fedfields.runtime.owner import Declined, Log
from fedfields.store import read_file


class Outgoing(NamedTuple):
    """A file that is offered: where it is, what the contribution in it is called, and its bytes."""

    path: Path
    name: str
    size: int


class Sender:
    """Answers the server of a map.

    Args:
        files: what is offered, by digest.
        tell: is called with lines for the owner's terminal.

    Attributes:
        about: what the server told of the map.
        states: what became of each file, by digest.
    """

    def __init__(self, files: Mapping[str, Outgoing], tell: Tell) -> None:
        self._files, self._tell = files, tell
        self.about: About | None = None
        self.states: dict[str, str] = {}
        self._failure = ""

    def hello(self, letter: Letter, context: object) -> Letter:
        """Takes note of the map; offers what is not settled yet."""
        voxel, base = letter.info.get("voxel"), letter.info.get("base")
        if letter.info.get("version") != version("fedfields"):
            raise Declined(f"the server runs fedfields {letter.info.get('version')}, this owner {version('fedfields')}")
        if not isinstance(voxel, float) or not 0 < voxel < math.inf or type(base) is not int or base < 0:
            raise Declined("the server is that of no map; is this the right port?")
        self.about = About(voxel, base)
        left = {digest: file for digest, file in self._files.items() if digest not in self.states}
        return Letter({}, {"digests": [*left], "sizes": [file.size for file in left.values()]})

    def piece(self, letter: Letter, context: object) -> Letter:
        """Some bytes of a file that was offered."""
        file = self._files.get(str(letter.info.get("digest")))
        start, count = letter.info.get("start"), letter.info.get("count")
        if (
            file is None
            or type(start) is not int
            or type(count) is not int
            or not 0 <= start < start + count <= file.size
        ):
            raise Declined("the server asks for what was not offered")
        if not start:
            self._tell(f"{file.path}: {file.name}, {file.size:,} bytes, is being sent")
        path = file.path
        with path.open("rb") as opened:
            opened.seek(start)
            content = bytearray(opened.read(count))
        return Letter({"piece": {"bytes": torch.frombuffer(content, dtype=torch.uint8)}}, {})

    def finish(self, letter: Letter, context: object) -> Letter:
        """Takes note of what became of a file."""
        digest, state, info = str(letter.info.get("digest")), str(letter.info.get("state")), letter.info
        if digest in self._files:
            self.states[digest] = state
            what = f"merged, version {info.get('version')} of the map" if state == "merged" else state
            self._tell(f"{self._files[digest].name}: {what}{': ' if info.get('why') else ''}{info.get('why', '')}")
        return Letter({}, {})

    def guard(self, error: Exception) -> str:
        """What may leave this machine about an error; it ends the conversation."""
        self._failure = str(error)
        return self._failure if isinstance(error, Declined) else "the owner's machine could not read its file"

    def over(self) -> bool:
        """Whether all is settled.

        Raises:
            UserError: something was wrong.
        """
        if self._failure:
            raise UserError(self._failure)
        return self.about is not None and len(self.states) == len(self._files)


def outgoing(paths: Sequence[Path], owner: str) -> dict[str, Outgoing]:
    """Files to be sent, by digest.

    Raises:
        UserError: one cannot be read, is no contribution, or is called like somebody else's.
    """
    found: dict[str, Outgoing] = {}
    for path in paths:
        try:
            content = read_file(path, LARGEST)
            name = sent_from_bytes(content).name
            check_owner(name, owner)
        except (OSError, ValueError, UserError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path} cannot be sent: {why}") from error
        found[hashlib.sha256(content).hexdigest()] = Outgoing(path, name, len(content))
    return found


def ask_about(visit: Visit, key: OwnerKey, folder: Path, tell: Tell) -> About:
    """What the server tells of its map.

    Raises:
        UserError: it cannot be reached, or is none.
    """
    sender = _talk(visit, key, {}, folder, tell)
    assert sender.about is not None
    return sender.about


def send(visit: Visit, key: OwnerKey, files: Mapping[str, Outgoing], folder: Path, tell: Tell) -> dict[str, str]:
    """Sends files, and waits until the server has settled them; returns what became of each, by digest.

    Args:
        visit: where the server is.
        key: the owner's.
        files: see :func:`outgoing`.
        folder: for ``sent.jsonl``, which lists what left the machine.
        tell: is called with lines for the owner's terminal.

    Raises:
        UserError: the server cannot be reached for too long, or does not want this owner.
    """
    return _talk(visit, key, files, folder, tell).states


def _talk(visit: Visit, key: OwnerKey, files: Mapping[str, Outgoing], folder: Path, tell: Tell) -> Sender:
    sender = Sender(files, tell)
    handlers = {HELLO: sender.hello, PIECE: sender.piece, FINISH: sender.finish}
    app = answering(handlers, sender.guard)
    log = Log(folder / "sent.jsonl", dict)
    program = Program(lambda message, context: app(message=message, context=context), log, lambda line: "", sender.over)
    converse(visit, key, program, tell)
    return sender
