"""Servers and owners as processes of their own on this machine: started, held up, killed, watched."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

# Imported for the processes, which are forked from one that has done so.
from fedfields import cli
from fedfields.runtime import collect, desk, join, keys, send, serve  # noqa: F401

PATIENCE = 120.0
"""Seconds that a test waits for anything, on a machine with much else to do."""

EXPERIMENT = """preset = "{preset}"
parts = [{parts}]
rounds = 3
cohort = {owners}
local.steps = 2
data.kind = "image"
data.size = 12
field.width = 12
field.depth = 2
inner.steps = 2
adaptation.steps = 2
"""


# --- in the child --------------------------------------------------------------------------------------------


def command(words: list[str], log: Path, held: Path | None, watched: Path | None, environment: dict[str, str]) -> None:
    """``fedfields WORDS``, its output in a file; see :class:`Process` for the rest."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1), os.dup2(file, 2)
    torch.set_num_threads(1)
    if watched is not None:
        _watch(watched)
    if held is not None:
        _hold(held)
    cli.main(words)


def _hold(held: Path) -> None:
    visit, piece = desk.visit_job, send.Sender.piece

    def waiting(gate: Path) -> None:
        if gate.exists():
            gate.with_suffix(".reached").touch()
        while gate.exists():
            time.sleep(0.02)

    def held_visit(context, index, received, memory, seed, number, *rest):
        waiting(held / str(number))
        return visit(context, index, received, memory, seed, number, *rest)

    def held_piece(sender, letter, context):
        waiting(held / f"from-{letter.info['start']}")
        return piece(sender, letter, context)

    desk.visit_job, send.Sender.piece = held_visit, held_piece


def _watch(watched: Path) -> None:
    """Notes everybody whom this process talks to or asks for, and every program that it starts."""
    file = os.open(watched, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    kinds = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")

    def hook(event: str, arguments: tuple) -> None:
        if event in kinds or event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            rest = arguments[1:] if event in kinds[:3] else arguments
            os.write(file, (json.dumps([event, *map(str, rest)]) + "\n").encode())

    sys.addaudithook(hook)


# --- in the test ---------------------------------------------------------------------------------------------


class Process:
    """One command of fedfields in a process of its own.

    Args:
        folder: for the output.
        name: of the output's file.
        words: the command.
        held: a visit of round 7 waits while there is a file ``7`` in this folder, and says so by ``7.reached``; so
            does a piece of what is sent to a map, ``from-0``.
        watched: file for whom the process talks to.
        environment: more of it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *words: object,
        held: Path | None = None,
        watched: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.log, self.name = folder / f"{name}.out", name
        arguments = ([str(word) for word in words], self.log, held, watched, environment or {})
        self._process = context.Process(target=command, args=arguments, daemon=True)
        self._process.start()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL: no goodbye, no tidying up."""
        self._process.kill()
        self._process.join()

    def end(self) -> int:
        """The exit status."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"{self.name} goes on:\n{self.said}"
        return self._process.exitcode

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for something that other processes do while this one lives."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self._process.exitcode is None, f"{self.name} ended before {what}:\n{self.said}"
            assert time.monotonic() < end, f"no {what}:\n{self.said}"
            time.sleep(0.02)


class Federation(NamedTuple):
    """Folders of a federation whose machines are all this one."""

    folder: Path
    names: tuple[str, ...]
    port: int
    plain: bool = False

    def serve(self, *more: object, name: str = "server", **kwargs) -> Process:
        """The server; ``run`` is its folder."""
        door = ["--plain"] if self.plain else ["--keys", self.folder / "server"]
        words = ["serve", self.folder / "experiment.toml", "--owners", self.folder / "owners", *door]
        words += ["--port", self.port, "--out", self.folder / "run", "--no-report", "--least", len(self.names)]
        return Process(self.folder, name, *words, *more, **kwargs)

    def join(self, owner: str, *more: object, port: int = 0, **kwargs) -> Process:
        """An owner; held up by files in the folder ``held-NAME``."""
        door = ["--plain"] if self.plain else ["--ca", self.folder / "server" / "ca.crt"]
        words = ["join", f"127.0.0.1:{port or self.port}", "--data", self.folder / "data" / owner, *door]
        words += ["--key", self.folder / "keys" / f"{owner}.key", "--out", self.out(owner)]
        return Process(self.folder, owner, *words, *more, held=self.held(owner), **kwargs)

    def out(self, owner: str) -> Path:
        return self.folder / "out" / owner

    def held(self, owner: str) -> Path:
        return self.folder / f"held-{owner}"

    def hold(self, owner: str, number: int) -> Path:
        """From now on the owner waits in that round until :meth:`release`; returns what tells that it does."""
        (self.held(owner) / str(number)).touch()
        return self.held(owner) / f"{number}.reached"

    def release(self, owner: str, number: int) -> None:
        (self.held(owner) / str(number)).unlink()

    def records(self, file: str = "run/metrics.jsonl") -> list[dict]:
        path = self.folder / file
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def sent(self, owner: str) -> list[dict]:
        return self.records(f"out/{owner}/sent.jsonl")


def federation(folder: Path, names: str, preset: str, parts: str = "", *, plain: bool = False) -> Federation:
    """Makes data, keys and an experiment for owners of these names."""
    owners = tuple(names.split())
    keys.make_server(["localhost"], folder / "server")
    (folder / "owners").mkdir()
    for i, name in enumerate(owners):
        _, public = keys.make_owner(name, folder / "keys")
        public.rename(folder / "owners" / public.name)
        (folder / f"held-{name}").mkdir()
        picture(folder / "data" / name, "one.png", 2 * i), picture(folder / "data" / name, "two.png", 2 * i + 1)
    (folder / "experiment.toml").write_text(EXPERIMENT.format(preset=preset, parts=parts, owners=len(owners)))
    return Federation(folder, owners, free_port(), plain)


class Proxy:
    """Passes connections on to another port of this machine, and keeps every byte."""

    def __init__(self, port: int) -> None:
        self._port, self._socket = port, socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.sent: list[bytearray] = []
        self.received: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                owner, _ = self._socket.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    owner.close()
                    continue
                self.sent.append(bytearray()), self.received.append(bytearray())
                for one, other, kept in ((owner, server, self.sent[-1]), (server, owner, self.received[-1])):
                    threading.Thread(target=self._pass, args=(one, other, kept), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(1 << 16):
                kept += piece
                other.sendall(piece)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        one.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def everything(self) -> bytes:
        return b"".join([*self.sent, *self.received])

    def requests(self) -> list[tuple[str, bytes]]:
        """What the owner's side asked: paths and bodies."""
        return [(head.split()[1].decode(), body) for stream in self.sent for head, body in _http(bytes(stream))]

    def answers(self) -> list[bytes]:
        """The bodies of what the server answered."""
        return [body for stream in self.received for _, body in _http(bytes(stream))]


def _http(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        assert found, head
        yield head, rest[: int(found[1])]
        stream = rest[int(found[1]) :]


def picture(folder: Path, name: str, seed: int, **kwargs) -> np.ndarray:
    """A picture in a file, of the size in which it is trained on, and its values (12, 12, 3)."""
    values = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name, **kwargs)
    return values


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
