"""A simulation on Flower's engine with Ray: clients in as many processes, or on as many machines, as Ray has."""

from __future__ import annotations

import functools
import json
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedfields.runtime import offline as offline  # isort: split

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfields.config import Experiment, from_json, to_json
from fedfields.errors import UserError, said
from fedfields.runtime.desk import Desk, Letter, Seat
from fedfields.runtime.engine import hush, node_numbers, ray_simulation
from fedfields.runtime.flower import App, Flower, Node, client_app
from fedfields.runtime.secure import session_of

START = 120.0
"""Seconds that Ray may take to start."""


@contextmanager
def simulated(experiment: Experiment, folder: Path, clients: int) -> Iterator[Flower]:
    """A carrier to clients that Ray runs, for as long as the context lasts.

    Args:
        experiment: of the run; every process reads its data anew.
        folder: of the run, which every process can read.
        clients: how many train.

    Raises:
        UserError: Ray is not installed, or did not start.
    """
    hush(folder / "flower.log")
    given, done = queue.SimpleQueue[Grid | BaseException](), threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        given.put(grid)
        done.wait()

    def engine() -> None:
        try:
            workers = experiment.workers or os.cpu_count() or 1
            ray_simulation(server, client_app(simulated_app(experiment, folder)), clients, workers)
        except BaseException as error:
            given.put(error)

    thread = threading.Thread(target=engine, daemon=True)
    thread.start()
    try:
        yield _carrier(given, session_of(experiment.seed), clients)
    finally:
        done.set()
        thread.join(timeout=60)


def _carrier(given: queue.SimpleQueue, session: bytes, clients: int) -> Flower:
    try:
        grid = given.get(timeout=START)
    except queue.Empty:
        raise UserError(f"Ray did not start within {START:g} s; is this machine short of memory?") from None
    if isinstance(grid, BaseException):
        raise UserError(f"Flower's simulation did not start ({type(grid).__name__}: {grid})") from grid
    unnamed = {i: Node(number) for i, number in enumerate(node_numbers(grid, clients))}
    found = Flower(grid, lambda: unnamed, session).everybody()
    nodes = {client: unnamed[i] for i, client in found.items()}
    return Flower(grid, lambda: nodes, session)


def simulated_app(experiment: Experiment, folder: Path) -> App:
    """A node's answers in a simulation; what it needs fits into a few strings, which travel to Ray's processes."""
    text, where = json.dumps(to_json(experiment)), str(folder)
    return App(
        desk=functools.partial(_desk, text, where),
        hello=_hello,
        finish=_finish,
        guard=said,
        moves=True,
    )


def _index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _desk(text: str, folder: str, context: Context) -> Desk:
    return _desks(text, folder, _index(context))


@functools.lru_cache(maxsize=64)
def _desks(text: str, folder: str, client: int) -> Desk:
    setup = _setup(text, folder)
    session = session_of(setup.experiment.seed)
    return Desk(Seat(setup.context, client, setup.settings, setup.params, session))


@functools.lru_cache(maxsize=2)
def _setup(text: str, folder: str) -> Any:
    from fedfields.runtime.run import set_up

    experiment = from_json(json.loads(text))
    assert isinstance(experiment, Experiment)
    return set_up(experiment).begin(Path(folder), lambda what, done, total: None)


def _hello(letter: Letter, context: Context) -> Letter:
    return Letter({}, {"client": _index(context)})


def _finish(letter: Letter) -> Letter:
    return Letter({}, {})
