"""Samples of many clients: files of rows, or handwritten digits that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedfields.datasets.digits import digits
from fedfields.datasets.shares import Kind, Rows, SampleFederation, Way, enough, shared_out, task_of
from fedfields.datasets.sinusoids import Sinusoids
from fedfields.datasets.tables import read_clients
from fedfields.datasets.text import CHARACTERS, read_texts, texts_in
from fedfields.datasets.turned import copied
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.seeds import generator
from fedfields.types import Client


@dataclass(frozen=True)
class Samples:
    """Rows of inputs and targets that clients have, and which of them train."""

    path: Path | None = None
    """A folder with a .npz or .csv file for each client, or with texts (.txt); or one such file with the rows of all
    clients. Without one: the digits of scikit-learn, two kinds of digits to each of 50 clients."""

    inputs: str = "x"
    """Array with the inputs in .npz files, [n, ...]; bytes are pictures and become numbers in [0, 1]. In .csv files all
    columns but those of target and client are inputs."""

    target: str = "y"
    """Array or column with the targets: whole numbers or words are classes, other numbers are fitted."""

    client: str = "client"
    """Arrays or columns, with commas between them, that say whose a row is, where one file has the rows of all."""

    support: float = 0.2
    """Share of a client's rows that are adapted to; the others judge."""

    ways: int = 0
    """Classes of an episode; 0 for one task of all of a client's rows, with the classes' own numbers."""

    shots: int = 1
    """Rows of each class in the support of an episode."""

    queries: int = 3
    """Rows of each class in the query of an episode."""

    episodes: int = 4
    """Episodes on which a client is judged."""

    copies: int = 0
    """Pictures: so many copies of each instead of itself, turned, moved and sized a little."""

    turn: float = 0.15
    """Pictures: how far copies differ: angle in radians, shift as a share of the width, and size."""

    length: int = 40
    """Texts: characters in a row."""

    validation: float = 0.1
    """Share of the clients that decide when to stop."""

    unseen: float = 0.1
    """Share of the clients that judge the result, and nothing else."""

    sealed: bool = False
    """Leave those that judge out of everything, as tuning does."""

    limit: int | None = None
    """At most so many clients, drawn at random."""

    shape: str = ""
    """Shape of an input, such as 64 or 1x28x28; found in the files. Owners of a real run must be told."""

    outputs: int = 0
    """Outputs of the model: classes, or numbers in a target; found in the files. Owners of a real run must be told."""

    largest: int = 0
    """With --weighting size: query rows that count as one whole client, more count no more. Each client then weighs
    itself, inside the sum, and tells nobody how many it has; 0 takes those of the largest client of a simulation."""

    kind: Literal["auto", "classes", "numbers", "text"] = "auto"
    """What targets are; auto goes by the files. Owners of a real run must be told."""

    def __post_init__(self) -> None:
        if not 0 < self.support < 1:
            raise ValueError(f"support is {self.support}; it is a share of a client's rows, between 0 and 1")
        for name in ("validation", "unseen"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share of the clients, in [0, 1)")
        for name, least in (
            ("ways", 0),
            ("shots", 1),
            ("queries", 1),
            ("episodes", 1),
            ("copies", 0),
            ("length", 1),
            ("largest", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.ways == 1:
            raise ValueError("ways is 1; an episode tells at least two classes apart, and 0 means no episodes")
        if self.turn < 0:
            raise ValueError(f"turn is {self.turn}; it must not be negative")
        self.input_shape()

    def input_shape(self) -> tuple[int, ...]:
        """What ``shape`` says; empty if it says nothing.

        Raises:
            ValueError: it is no shape.
        """
        parts = self.shape.lower().split("x") if self.shape else []
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"shape is {self.shape!r}; write it as 64 or 1x28x28")
        return tuple(map(int, parts))

    def form(self) -> tuple[tuple[int, ...], int, Kind] | None:
        """Shape of an input, outputs of a model and kind of targets, as far as the settings tell them; None if not."""
        if self.kind == "text":
            return (self.length,), len(CHARACTERS) + 1, "classes"
        if not self.shape or self.kind == "auto" or not (self.ways or self.outputs):
            return None
        return self.input_shape(), self.ways or self.outputs, self.kind

    @property
    def way(self) -> Way:
        """How a client's rows become tasks."""
        return Way(self.support, self.ways, self.shots, self.queries, self.episodes)

    def load(self, seed: int) -> SampleFederation:
        """Reads everything; ``seed`` decides who trains and which rows are support.

        Raises:
            UserError: there is no such file, something in it cannot be used, or there are too few clients.
        """
        rows, outputs = self._read(self.path, seed)
        names = [list(rows)[i] for i in torch.randperm(len(rows), generator=generator(seed, "limit")).tolist()][
            : self.limit
        ]
        rows = {name: copied(rows[name], self.copies, self.turn, seed, name) for name in rows if name in set(names)}
        kind = "numbers" if next(iter(rows.values())).targets.is_floating_point() else "classes"
        if self.ways and kind == "numbers":
            raise UserError("episodes are made of classes, and these targets are numbers; leave out --data.ways")
        kept_back = {"validation": self.validation, "unseen": self.unseen, "sealed": self.sealed}
        return shared_out(rows, kind, self.ways or outputs, self.way, seed, **kept_back)

    def own(self, path: Path, name: str, seed: int) -> Client:
        """All rows of a file or folder as one owner's, to train on.

        Raises:
            UserError: as `load`; or they are not of the shape or kind of the run.
        """
        found, _ = self._read(path, seed, alone=True)
        rows = copied(_together(list(found.values())), self.copies, self.turn, seed, name)
        if not enough(rows, self.way):
            raise UserError(f"{path} has too few rows for support and query")
        return Client(name, (task_of(name, rows, self.way, seed),))

    def _read(self, path: Path | None, seed: int, *, alone: bool = False) -> tuple[dict[str, Rows], int]:
        """The rows of each client, or of one who is ``alone``, and the outputs of a model for them."""
        if path is None:
            return digits(seed), 10
        if self.kind == "text" or (self.kind == "auto" and texts_in(path)):
            return read_texts(path, self.length), len(CHARACTERS) + 1
        columns = tuple(name.strip() for name in self.client.split(",") if name.strip())
        rows, outputs = read_clients(path, self.inputs, self.target, columns, self.kind, alone=alone)
        found = next(iter(rows.values()))
        asked = self.input_shape()
        if asked and tuple(found.inputs.shape[1:]) != asked:
            raise UserError(f"{path} has inputs of shape {_by(found.inputs.shape[1:])}, the run is on {self.shape}")
        if self.outputs and outputs > self.outputs:
            raise UserError(f"{path} has {outputs} classes or numbers in a target, the run has {self.outputs}")
        return rows, self.outputs or outputs


SampleData = Samples | Sinusoids
"""Data of runs on samples."""


def _together(parts: list[Rows]) -> Rows:
    return Rows(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
