"""An owner's side of a real run: what the server asks is checked, done here, and written down when it leaves."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.config import PRIVACY, Experiment, from_json, to_json
from fedfields.datasets import Samples
from fedfields.errors import UserError
from fedfields.federation import Rejected, prepare
from fedfields.privacy.secure import Refused
from fedfields.runtime.checkpoint import load_leaves, save_leaves, save_weights
from fedfields.runtime.desk import Desk, Letter, Seat
from fedfields.runtime.inprocess import Context
from fedfields.runtime.keys import OwnerKey, OwnerPublic, checker
from fedfields.runtime.remote import factored, tells_size
from fedfields.runtime.samples import samples_of, share_of
from fedfields.runtime.start import settings_of
from fedfields.scenes.data import Data
from fedfields.scenes.frame import Frame, frame_from
from fedfields.scenes.objects import Objects
from fedfields.scenes.scene import Scene, own_photographs
from fedfields.scenes.tour import publish
from fedfields.scenes.views import photos_of
from fedfields.store import append_line, parse_json, write_json
from fedfields.types import Client, Memory, Params

MASKED = "train.masked"
"""The kind of message whose reply is a report under masks."""

LARGEST_EXPERIMENT = 1 << 20
"""Characters of an experiment that a server may send."""

Tell = Callable[[str], None]


class Policy(NamedTuple):
    """What an owner insists on.

    Attributes:
        require: names of protections without which nothing is sent, as in ``privacy:NAME``.
        roster: public keys of the owners that secure sums may be made with; None takes the server's word.
    """

    require: tuple[str, ...] = ()
    roster: Mapping[str, OwnerPublic] | None = None

    def said(self, name: str, data: Path, folder: Path) -> list[str]:
        """What an owner should know before anything else, in lines."""
        lines = [
            f"{name} trains on {data} when the server asks. What is in there stays on this machine; all that leaves it "
            f"is shown here and listed in {folder / 'sent.jsonl'}"
        ]
        if self.require:
            lines.append(f"nothing is sent unless the run has {' and '.join(self.require)}")
        if self.roster is not None:
            lines.append(f"secure sums are made with {', '.join(self.roster)} only")
        return lines


class Owner:
    """Answers a server for one owner.

    Args:
        data: the owner's pictures, clips, objects or capture.
        key: the owner's keys and name.
        folder: where memory, log and result are kept.
        policy: what the owner insists on.
        tell: is called with lines for the owner's terminal.
    """

    def __init__(self, data: Path, key: OwnerKey, folder: Path, policy: Policy, tell: Tell) -> None:
        self._data, self._key, self._folder, self._policy, self._tell = data, key, folder, policy, tell
        self._desk: Desk | None = None
        self._experiment: Experiment | None = None
        self._client: Client | None = None
        self.done = False

    def desk(self, context: object) -> Desk | None:
        """The desk; None before the first greeting."""
        return self._desk

    @property
    def form(self) -> Mapping[str, Params]:
        """Trees with the names and shapes of what is summed in secret; empty before the first greeting."""
        return {} if self._desk is None else self._desk.form

    def hello(self, letter: Letter, context: object) -> Letter:
        """Looks at what the server wants, and gets ready for it.

        Raises:
            UserError: the owner does not want that, or cannot do it.
        """
        info = letter.info
        if info.get("version") != version("fedfields"):
            raise Declined(f"the server runs fedfields {info.get('version')}, this owner {version('fedfields')}")
        experiment, frame = self._agreed(info), _frame(info)
        if self._client is None:
            self._client = self._read(experiment, frame)
        found = factored(experiment, letter.trees.get("shared", {}))
        names = [str(name) for name in info["names"]]
        if names[info["client"]] != self._key.name:
            raise Declined("the server takes this owner for somebody else")
        clients = tuple(Client(name, ()) for name in names)
        mine = prepare(experiment.privacy, self._client, seed=experiment.seed)
        clients = (*clients[: info["client"]], mine, *clients[info["client"] + 1 :])
        context_ = Context(experiment.method, clients, found.loss)
        keys: dict[str, Any] = {"sign": self._key.sign}
        if self._policy.roster is not None:
            keys["verify"] = checker(names, self._policy.roster)
        settings = settings_of(experiment, None)._replace(secret=True)
        sized = experiment.weighting == "size"
        share = share_of(experiment, samples_of(mine)) if sized and isinstance(experiment.data, Samples) else 1.0
        seat = Seat(context_, info["client"], settings, found.params, info["session"], keys, share)
        shelf = Shelf(self._folder / "memory")
        if experiment != self._experiment:
            self._tell(_summary(experiment, len(names)))
        self._experiment, self._desk = experiment, Desk(seat, shelf)
        if frame is not None:
            publish(self._folder, frame, photos_of((self._client,)))
        return Letter({}, {"size": _size(experiment, self._client)} if tells_size(experiment) else {})

    def finish(self, letter: Letter) -> Letter:
        """Keeps the result, as a run that can be adapted, rendered and looked at."""
        if self._experiment is None:
            raise Declined("there was no run")
        params = letter.trees.get("params", {})
        save_weights(self._folder / "model.safetensors", params)
        experiment = self._experiment
        own = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=self._data.resolve()))
        record = {"preset": letter.info.get("preset", ""), "name": self._folder.name, "version": version("fedfields")}
        write_json(self._folder / "experiment.json", record | {"seed": experiment.seed, "experiment": to_json(own)})
        self.done = True
        return Letter({}, {})

    def guard(self, error: Exception) -> str:
        """What may leave this machine about an error: no path, no file name, no number from a picture."""
        if isinstance(error, Declined | Refused | Rejected):
            return str(error)
        self._tell(f"this machine could not do its part: {type(error).__name__}: {error}")
        return f"the owner's machine could not do its part ({type(error).__name__}); its own log says why"

    def _agreed(self, info: dict[str, Any]) -> Experiment:
        """The experiment, if this owner will take part in it."""
        text = info.get("experiment")
        if not isinstance(text, str) or len(text) > LARGEST_EXPERIMENT:
            raise Declined("the server sent no experiment")
        try:
            experiment = from_json(parse_json(text))
        except ValueError as error:
            raise Declined(f"the server's experiment cannot be read ({type(error).__name__})") from error
        if not isinstance(experiment, Experiment):
            raise Declined("the server sent something else than an experiment")
        if self._experiment is not None and experiment != self._experiment:
            raise Declined("the server changed the experiment; join again if that is what you want")
        for name in self._policy.require:
            if not any(type(part) is type(PRIVACY[name]) for part in experiment.privacy):
                raise Declined(f"this owner takes part only with privacy:{name}, and the run has no such thing")
        return experiment

    def _read(self, experiment: Experiment, frame: Frame | None) -> Client:
        """What this owner has, for this experiment."""
        data, name = experiment.data, self._key.name
        if isinstance(data, Samples):
            return data.own(self._data, name, experiment.seed)
        if isinstance(data, Data):
            client, notes = data.own(self._data, name, experiment.seed)
            for note in notes:
                self._tell(note)
            return client
        jitters = getattr(experiment.rays, "jitters", 1)
        if isinstance(data, Objects):
            return data.own(self._data, name, experiment.seed, jitters)
        if frame is None or not isinstance(data, Scene):
            raise Declined("the server sent no frame for the place")
        return own_photographs(data, self._data, name, frame, jitters)


class Declined(UserError):
    """Why an owner does not take part; made of the server's words and settings only, so it may leave the machine."""


class Shelf:
    """An owner's memory of its federation on disk: one file for each round that may be asked for again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, number: int) -> Memory | None:
        """What was kept after round ``number``."""
        path = self._path(number)
        return load_leaves(path) if path.exists() else None

    def put(self, number: int, memory: Memory, oldest: int) -> None:
        """Keeps this, and drops all that is older than what ``oldest`` needs."""
        if not any(memory.values()):
            return
        save_leaves(self._path(number), memory)
        before = [path for path in sorted(self._folder.glob("round-*.safetensors")) if path <= self._path(oldest)]
        for path in before[:-1]:
            path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.safetensors"


class Log:
    """``sent.jsonl``: a line for everything that left this machine, written before it leaves.

    Args:
        path: of the file; lines are added to what is there.
        form: gives trees with the names and shapes of what lies under masks.

    Attributes:
        messages: how many lines were written.
        bytes: how much they stand for.
    """

    def __init__(self, path: Path, form: Callable[[], Mapping[str, Params]]) -> None:
        self.path, self._form = path, form
        self.messages, self.bytes = 0, 0

    def write(self, kind: str, round: str, letter: Letter, weight: int) -> dict[str, Any]:
        """Notes a reply of so many bytes; returns the line: ``tensors`` can be read, ``under_masks`` cannot."""
        masked = kind == MASKED and "failed" not in letter.info
        values = {name: _shown(value) for name, value in letter.info.items()}
        line = {
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "round": round,
            "kind": kind,
            "bytes": weight,
            "masked": masked,
            "tensors": _shapes(letter.trees),
            "under_masks": _shapes(self._form() if masked else {}),
            "values": values,
        }
        append_line(self.path, json.dumps(line))
        self.messages, self.bytes = self.messages + 1, self.bytes + weight
        return line


def _shapes(trees: Mapping[str, Params]) -> dict[str, dict[str, tuple[str, list[int]]]]:
    return {
        name: {key: (str(leaf.dtype).removeprefix("torch."), list(leaf.shape)) for key, leaf in tree.items()}
        for name, tree in trees.items()
    }


def _shown(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _frame(info: dict[str, Any]) -> Frame | None:
    text = info.get("frame")
    if text is None:
        return None
    try:
        return frame_from(parse_json(text), "the server's frame")
    except ValueError as error:
        raise Declined(f"the server's frame cannot be read ({type(error).__name__})") from error


def _size(experiment: Experiment, client: Client) -> float:
    """What a client weighs: its signals, or its pixels of a place."""
    return float(len(client.train[0].support if isinstance(experiment.data, Scene) else client.train))


def _summary(experiment: Experiment, owners: int) -> str:
    """What the owner is about to take part in."""
    kinds = {type(part) for part in experiment.privacy}
    parts = " and ".join(name for name, part in PRIVACY.items() if type(part) in kinds)
    objective, strategy = type(experiment.objective).__name__, type(experiment.strategy).__name__
    return (
        f"the run: {owners} owners, {experiment.rounds} rounds, {objective} with {strategy}, "
        f"field {type(experiment.field).__name__}; protection: {parts or 'none, the server sees each of your updates'}"
    )
