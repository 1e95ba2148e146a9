"""The server of a real run: Flower's SuperLink and the rounds, in one process."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.config import Experiment, to_json
from fedfields.errors import UserError
from fedfields.privacy.dp import Clipped
from fedfields.runtime.checkpoint import existing, round_of
from fedfields.runtime.desk import Letter
from fedfields.runtime.engine import SuperLink, Tls, check_address, hush
from fedfields.runtime.flower import Flower, Node, Rules
from fedfields.runtime.keys import OwnerPublic
from fedfields.runtime.remote import RemoteSetup, published, set_up_remote, tells_size
from fedfields.runtime.run import run
from fedfields.scenes.monument import PlaceData

Tell = Callable[[str], None]


class Address(NamedTuple):
    """Where and how the server listens.

    Attributes:
        host: address to bind.
        port: port to bind; 0 takes a free one.
        tls: certificate and key; None for plain HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    tls: Tls | None = None


class Serving:
    """A run with real owners: how it is set up, and how they are reached.

    Args:
        roster: public keys of the owners by name.
        address: where to listen.
        rules: when a round is over.
        tell: is called with lines for the server's terminal.
    """

    def __init__(self, roster: Mapping[str, OwnerPublic], address: Address, rules: Rules, tell: Tell) -> None:
        self._roster, self._address, self._rules, self._tell = roster, address, rules, tell
        self._names = sorted(roster)
        self._sizes = dict[int, float]()
        self.port = address.port

    def set_up(self, experiment: Experiment) -> RemoteSetup:
        """The run's parts; the owners' weights come with their greetings.

        Raises:
            UserError: the experiment does not suit a real run with these owners, or nobody could reach the server.
        """
        check_address(self._address.host, self._address.port)
        sums = experiment.method.sums
        fewest = max(sums.minimum if sums else 1, self._rules.least)
        if len(self._names) < fewest:
            raise UserError(
                f"a round needs {fewest} owners, and only {len(self._names)} have handed in their .pub files"
            )
        if experiment.noise == "seed" and any(isinstance(part, Clipped) for part in experiment.privacy):
            raise UserError("noise that comes from a known seed can be taken away again; say --noise secure")
        weights = [1.0] * len(self._names) if tells_size(experiment) else None
        return set_up_remote(experiment, self._names, weights)

    @contextmanager
    def carrier(self, setup: RemoteSetup, folder: Path) -> Iterator[Flower]:
        """Opens the door, for as long as the context lasts."""
        hush(folder / "flower.log")
        keys = {name: public.node for name, public in self._roster.items()}
        sums = setup.experiment.method.sums
        least = max(self._rules.least, sums.minimum if sums else 1)
        if tells_size(setup.experiment):
            least = len(self._names)  # Weights are shares of the largest, so everybody's must be known.
        with SuperLink(keys, self._address.host, self._address.port, self._address.tls) as link:
            self.port = link.port
            self._tell(f"listening on {self._address.host} port {link.port} for {', '.join(self._names)}")
            yield Flower(
                link.grid,
                lambda: self._here(link),
                os.urandom(16),
                self._rules._replace(least=least),
                greeting=_greeting(setup, self._names),
                greeted=lambda client, letter: self._met(setup, client, letter),
                oldest=lambda: _oldest(folder),
                tell=self._tell,
                name=lambda client: self._names[client],
            )

    def _met(self, setup: RemoteSetup, client: int, letter: Letter) -> None:
        self._tell(f"{self._names[client]} takes part")
        weights, size = setup.settings.weights, letter.info.get("size")
        if isinstance(weights, list) and isinstance(size, float) and 0 < size < float("inf"):
            self._sizes[client] = size
            weigh(self._sizes, weights, isinstance(setup.experiment.data, PlaceData))

    def _here(self, link: SuperLink) -> dict[int, Node]:
        found = link.here()
        return {i: found[name] for i, name in enumerate(self._names) if name in found}


def serve(
    experiment: Experiment,
    folder: Path,
    serving: Serving,
    *,
    name: str = "",
    resume: bool = False,
    on_round: Callable[[dict, int], None] | None = None,
    warn: Tell | None = None,
) -> dict:
    """Runs an experiment with real owners; arguments and result as for :func:`fedfields.runtime.run.run`.

    Every round leaves a checkpoint, so that a server that is killed loses the round in progress and nothing else.
    """
    experiment = dataclasses.replace(experiment, checkpoint_every=1)
    return run(experiment, folder, name=name, resume=resume, on_round=on_round, warn=warn, elsewhere=serving)


def _greeting(setup: RemoteSetup, names: list[str]) -> Callable[[int, bytes], Letter]:
    text = json.dumps(to_json(published(setup.experiment)))
    info: dict[str, Any] = {"experiment": text, "names": names, "version": version("fedfields")}
    if setup.frame is not None:
        info["frame"] = json.dumps(dataclasses.asdict(setup.frame))
    trees = {"shared": setup.shared} if setup.shared else {}
    return lambda client, session: Letter(trees, info | {"client": client, "session": session})


def weigh(sizes: Mapping[int, float], weights: list[float], place: bool) -> None:
    """Puts in each owner's weight, as a simulation has it: its number of signals, or its share of the largest number of
    pixels of a place."""
    largest = max(sizes.values(), default=1.0) if place else 1.0
    for client, size in sizes.items():
        weights[client] = size / largest


def _oldest(folder: Path) -> int:
    found = existing(folder / "checkpoints")
    return round_of(found[0]) if found else 0
