"""An owner's program: stays connected to a server, answers it, and shows what leaves the machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedfields.runtime import offline as offline  # isort: split

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedfields.errors import UserError
from fedfields.runtime.engine import Fleet, Gone, explain, hush
from fedfields.runtime.flower import App, client_app
from fedfields.runtime.keys import OwnerKey
from fedfields.runtime.owner import Log, Owner
from fedfields.runtime.wire import nbytes, unpack
from fedfields.store import cannot_write

IDLE = 0.25
"""Seconds between questions to a server that has nothing to ask."""

Tell = Callable[[str], None]


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


def join(visit: Visit, owner: Owner, key: OwnerKey, folder: Path, tell: Tell) -> bool:
    """Answers the server until there is a result; whether there is one.

    Raises:
        UserError: the server cannot be reached for too long, or does not want this owner.
    """
    hush(folder / "flower.log")
    app = client_app(App(desk=owner.desk, hello=owner.hello, finish=owner.finish, guard=owner.guard))
    log = Log(folder / "sent.jsonl")
    with _alone(folder):
        fleet = Fleet(visit.address, key.node, visit.certificate)
        try:
            _connect(fleet, visit, tell)
            with fleet.beating():
                while not owner.done:
                    _turn(fleet, visit, app, log, tell)
        finally:
            fleet.leave()
    return owner.done


def _turn(fleet: Fleet, visit: Visit, app: ClientApp, log: Log, tell: Tell) -> None:
    """One message, or a short rest; after a broken connection, a new one."""
    try:
        message = fleet.receive()
        if message is None:
            time.sleep(IDLE)
            return
        reply, seconds = _answer(app, fleet, message, log, tell)
        if not fleet.reply(reply, seconds):
            tell(f"round {message.metadata.group_id}: the server did not wait for this reply, and did not take it")
    except (httpx.HTTPError, Gone, RuntimeError) as error:
        tell(f"the connection broke ({type(error).__name__}); trying again")
        _connect(fleet, visit, tell)


def _answer(app: ClientApp, fleet: Fleet, message: Message, log: Log, tell: Tell) -> tuple[Message, float]:
    started, head = time.perf_counter(), message.metadata
    if head.message_type in ("train.visit", "train.masked"):
        tell(f"round {head.group_id}: training")
    context = Context(head.run_id, fleet.number, {}, RecordDict(), {})
    reply = app(message=message, context=context)
    weight = nbytes(reply.content)
    line = log.write(head.message_type, head.group_id, unpack(reply.content), weight)
    if weight or "failed" in line["values"]:
        tell(_told(line))
    return reply, time.perf_counter() - started


def _told(line: dict) -> str:
    """A line for the owner's terminal about what leaves."""
    if "failed" in line["values"]:
        return f"round {line['round']}: sent no numbers, but a reason: {line['values']['failed']}"
    if line["masked"]:
        what = "your update under masks: noise, to whoever sees it alone"
    elif line["tensors"]:
        leaves = sum(len(tree) for tree in line["tensors"].values())
        what = f"your update in the clear, {leaves} arrays of numbers"
    else:
        what = f"keys and shares of masks ({line['kind'].split('.')[-1]})"
    return f"round {line['round']}: sent {line['bytes']:,} bytes: {what}"


def _connect(fleet: Fleet, visit: Visit, tell: Tell) -> None:
    """Until it works; what will not get better by waiting ends it.

    Raises:
        UserError: the server refuses, or cannot be reached for too long.
    """
    until, told, pause = time.monotonic() + visit.patience, "", 0.5
    while True:
        try:
            fleet.connect()
            tell(f"connected to {visit.address}")
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
                    f"another fedfields join is at work in {folder}; stop it, or choose another --out"
                ) from None
        yield
