"""An owner's program: stays connected to a server, answers it, and shows what leaves the machine."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.runtime import offline as offline  # isort: split

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedfields.errors import UserError
from fedfields.runtime.desk import REPORT
from fedfields.runtime.engine import Fleet, Gone, explain, hush
from fedfields.runtime.flower import VISIT, App, client_app
from fedfields.runtime.keys import OwnerKey
from fedfields.runtime.owner import MASKED, Log, Owner
from fedfields.runtime.wire import nbytes, unpack
from fedfields.store import cannot_write

IDLE = 0.25
"""Seconds between questions to a server that has nothing to ask."""

Tell = Callable[[str], None]

Answer = Callable[[Message, Context], Message]

Busy = Callable[[str], contextlib.AbstractContextManager[object]]
"""Shows that a piece of work is under way for as long as its context lasts."""

STEPS = {
    "query.advertise": "fresh public keys for the masks",
    "query.share": "pieces of the masks' keys, each sealed for one other owner",
    "query.agree": "tags for the other owners on who is in the sum",
    "query.unmask": "pieces of keys that take the masks off the sum of all",
}
"""What a step of a secure sum sends beside the report."""


class Visit(NamedTuple):
    """Where an owner's program goes.

    Attributes:
        address: host and port of the server.
        certificate: PEM text of the authority that signed the server's certificate; None for plain HTTP.
        patience: seconds for which an unreachable server is tried again.
    """

    address: str
    certificate: bytes | None = None
    patience: float = 600.0


def join(
    visit: Visit,
    owner: Owner,
    key: OwnerKey,
    folder: Path,
    tell: Tell,
    busy: Busy = contextlib.nullcontext,
) -> bool:
    """Answers the server until there is a result; whether there is one.

    Raises:
        UserError: the server cannot be reached for too long, or does not want this owner.
    """
    app = _watched(client_app(App(owner.desk, owner.hello, owner.finish, owner.guard)), busy)
    log = Log(folder / "sent.jsonl", lambda: owner.form)
    converse(visit, key, Program(app, log, _told, lambda: owner.done), tell)
    return owner.done


class Program(NamedTuple):
    """What answers a server.

    Attributes:
        answer: a message to its reply.
        log: lists what leaves the machine.
        told: a line of the log as the terminal shows it; "" for not at all.
        over: whether there is nothing more to say.
    """

    answer: Answer
    log: Log
    told: Callable[[Mapping[str, Any]], str]
    over: Callable[[], bool]


def converse(visit: Visit, key: OwnerKey, program: Program, tell: Tell) -> None:
    """Answers the server until all is said; the folder of the log is the program's alone meanwhile.

    Raises:
        UserError: the server cannot be reached for too long, or does not want this owner.
    """
    log, folder = program.log, program.log.path.parent
    hush(folder / "flower.log")
    with _alone(folder):
        fleet = Fleet(visit.address, key.node, visit.certificate)
        try:
            _connect(fleet, visit, tell)
            with fleet.beating():
                while not program.over():
                    _turn(fleet, visit, program, tell)
        finally:
            fleet.leave()
            if log.messages:
                tell(f"{log.bytes:,} bytes in {log.messages} messages left this machine; each is listed in {log.path}")


def _watched(app: ClientApp, busy: Busy) -> Answer:
    """The app, which shows when it trains."""

    def answer(message: Message, context: Context) -> Message:
        head = message.metadata
        training = head.message_type in (VISIT, MASKED)
        with busy(f"round {head.group_id}: training on your data") if training else contextlib.nullcontext():
            return app(message=message, context=context)

    return answer


def _turn(fleet: Fleet, visit: Visit, program: Program, tell: Tell) -> None:
    """One message, or a short rest; after a broken connection, a new one."""
    try:
        message = fleet.receive()
        if message is None:
            time.sleep(IDLE)
            return
        reply, seconds = _answer(program, fleet, message, tell)
        if not fleet.reply(reply, seconds):
            tell(f"round {message.metadata.group_id}: the server did not wait for this reply, and did not take it")
    except (httpx.HTTPError, Gone, RuntimeError) as error:
        tell(f"the connection broke ({type(error).__name__}); trying again")
        _connect(fleet, visit, tell)


def _answer(program: Program, fleet: Fleet, message: Message, tell: Tell) -> tuple[Message, float]:
    started, head = time.perf_counter(), message.metadata
    context = Context(head.run_id, fleet.number, {}, RecordDict(), {})
    reply = program.answer(message, context)
    weight = nbytes(reply.content)
    line = program.log.write(head.message_type, head.group_id, unpack(reply.content), weight)
    told = program.told(line)
    if told:
        tell(told)
    return reply, time.perf_counter() - started


def _told(line: Mapping[str, Any]) -> str:
    """A line for the owner's terminal about what leaves, if anything does."""
    values, tensors = line["values"], line["tensors"]
    if not (values or tensors):
        return ""
    if "failed" in values:
        return f"round {line['round']}: sent no numbers, but a reason: {values['failed']}"
    if line["masked"]:
        what = f"your update under masks ({_sizes(line['under_masks'])}): noise, to whoever sees it alone"
    elif tensors:
        what = f"your update, readable by the server ({_sizes(tensors)})"
    elif line["kind"] in STEPS:
        what = STEPS[line["kind"]]
    else:
        return f"round {line['round']}: told the server {', '.join(f'{name} {one}' for name, one in values.items())}"
    return f"round {line['round']}: sent {line['bytes']:,} bytes: {what}"


def _sizes(trees: Mapping[str, Mapping[str, tuple[str, list[int]]]]) -> str:
    """How many numbers each tree has."""
    counts = {name: sum(math.prod(shape) for _, shape in tree.values()) for name, tree in trees.items()}
    return "numbers: " + ", ".join(f"{count:,} of {name.removeprefix(REPORT)}" for name, count in counts.items())


def _connect(fleet: Fleet, visit: Visit, tell: Tell) -> None:
    """Until it works; what will not get better by waiting ends it.

    Raises:
        UserError: the server refuses, or cannot be reached for too long.
    """
    until, told, pause = time.monotonic() + visit.patience, "", 0.5
    while True:
        try:
            fleet.connect()
            tell(f"connected to {visit.address}; waiting for its questions")
            return
        except (httpx.HTTPError, RuntimeError) as error:
            line = explain(error, visit.address) if isinstance(error, httpx.HTTPError) else str(error)
            if not isinstance(error, httpx.TransportError) or "certificate" in line or "TLS" in line:
                raise UserError(line) from error
            if time.monotonic() + pause > until:
                raise UserError(f"{line}; gave up after {visit.patience:g} s") from error
            if line != told:
                told = line
                tell(f"{line}; trying for {visit.patience:g} s")
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One program for each folder: two with one key would take messages from each other.

    Raises:
        UserError: another one is running.
    """
    path = folder / ".joined"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another fedfields is at work in {folder}; stop it, or choose another folder"
                ) from None
        yield
