"""Where the data comes from: a folder of pictures or clips, shared out among clients.

A signal is a picture, or a clip (a file, or a folder of frames). Every signal belongs to one client and to one
part of it: ``train``, or ``held_out`` to evaluate on. All signals of an unseen client are held out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.clips import load_clip, natural_order
from fedfields.scenes.folders import AnyKind, Claim, Found, Kind, below, make_plan
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.images import load_image, printable
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor


T = TypeVar("T")


class Federation(NamedTuple):
    """The data of a run.

    Attributes:
        clients: those that take part in training.
        unseen: those that never do, to evaluate on; their ``train`` is empty.
        notes: what the user should know: how clients were formed, which files were left out and why.
    """

    clients: tuple[Client, ...]
    unseen: tuple[Client, ...]
    notes: tuple[str, ...]


class Share(NamedTuple):
    """The signals of one client, by name."""

    client: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    unseen: bool


class Survey(NamedTuple):
    """What a data folder holds and how it is shared out.

    Attributes:
        files: every file, or folder of frames.
        shares: every client.
        notes: as in `Federation`.
        problem: why no run can use this, in one line; empty if all is well.
    """

    files: tuple[Found, ...]
    shares: tuple[Share, ...]
    notes: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Data:
    """Pictures or clips, and how they are shared out among clients."""

    path: Path | None = None
    """Folder with the pictures or clips; without one, 16 photographs that come with scikit-image are used, in a
    fixed order of which the last are unseen."""

    kind: AnyKind = "auto"
    """What the files are; auto goes by their suffixes. As video, a folder of pictures is one clip."""

    clients: Literal["auto", "folder", "file"] = "auto"
    """Who is a client: each sub-folder, or each file; auto takes sub-folders if there are at least four."""

    split: Path | None = None
    """CSV file with the header file,client or file,client,part, where part is train, held_out or unseen, and
    file is relative to the data folder. It replaces the rules below."""

    size: int = 64
    """Pixels along the longer side, after resizing; 0 keeps the size of each file."""

    frames: int = 8
    """Frames taken from a clip, evenly spread."""

    crop: bool = True
    """Cut out the central square first."""

    held_out: float = 0.25
    """Fraction of the signals of each client that is kept back to evaluate on, at least one of two."""

    unseen: float = 0.25
    """Fraction of the clients that never take part in training, at least one of three; 0 for none."""

    limit: int | None = None
    """At most so many clients, drawn at random."""

    def __post_init__(self) -> None:
        if self.path is None and self.kind == "video":
            raise ValueError("kind is video but there is no path; give the folder with the clips")
        if self.path is None and self.split is not None:
            raise ValueError(f"split is {self.split} but there is no path; give the folder that its files are in")
        if self.split is not None and self.clients != "auto":
            raise ValueError(f"clients is {self.clients} but split names the clients; leave out one of them")
        if self.size < 0:
            raise ValueError(f"size is {self.size}; it must be positive, or 0 to keep the size of each file")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; it must be at least 1")
        for name in ("held_out", "unseen"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a fraction must lie in [0, 1)")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit is {self.limit}; a federation needs at least 2 clients")

    def survey(self, seed: int = 0) -> Survey:
        """Opens every file as `load` would, and says what becomes of each.

        Raises:
            UserError: there is no such folder, it mixes pictures and clips, or ``split`` is wrong.
        """
        return self._read(seed)[0]

    def load(self, seed: int) -> Federation:
        """Reads everything; ``seed`` decides which clients are unseen and which signals are held out.

        Raises:
            UserError: as `survey`; or nothing is usable, or there are fewer than 2 clients.
        """
        survey, signals = self._read(seed)
        if survey.problem:
            raise UserError(survey.problem)
        return Federation(
            tuple(_client(share, signals) for share in survey.shares if not share.unseen),
            tuple(_client(share, signals) for share in survey.shares if share.unseen),
            survey.notes,
        )

    def own(self, path: Path, name: str, seed: int) -> tuple[Client, tuple[str, ...]]:
        """All of a folder as one owner's, whatever this says about clients; and notes on what was left out.

        Raises:
            UserError: there is no such folder, or nothing in it can be used.
        """
        mine = dataclasses.replace(self, path=path, clients="file", split=None, unseen=0.0, limit=None)
        survey, signals = mine._read(seed)
        order = [claim.name for claim in make_plan(path, self.kind, "file", None).claims if claim.name in signals]
        if not order:
            raise UserError(survey.problem)
        held_out = mine._hold_out(order, generator(seed, "split", name))
        train = tuple(one for one in order if one not in held_out)
        rest = tuple(one for one in order if one in held_out)
        notes = tuple(note for note in survey.notes if note.startswith("left out"))
        return _client(Share(name, train, rest, unseen=False), signals), notes

    def _read(self, seed: int) -> tuple[Survey, dict[str, GridSignal]]:
        """The survey, and the signals in use by name."""
        plan = make_plan(self.path, self.kind, self.clients, self.split)
        order = list(dict.fromkeys(claim.client for claim in plan.claims))
        if self.path is not None:
            order = shuffled(order, generator(seed, "split"))
        order = order[: self.limit]
        chosen = set(order)
        files, claims, signals = list(plan.left_out), [], {}
        for claim in plan.claims:
            found = Found(below(plan.root, claim.path), claim.path, "used")
            if claim.client not in chosen:
                files.append(found._replace(status="ignored", reason=f"beyond --data.limit {self.limit}"))
                continue
            try:
                signal = GridSignal(self._open(claim.path, plan.kind))
            except UserError as error:
                files.append(found._replace(status="unusable", reason=_without_path(error, claim.path)))
                continue
            files.append(found._replace(shape=signal.shape))
            claims.append(claim)
            signals[claim.name] = signal
        files.sort(key=lambda file: natural_order(file.name))
        shares = self._shares(claims, order, seed)
        notes = (*plan.notes, *_file_notes(files), *_share_notes(claims, shares))
        return Survey(tuple(files), shares, notes, _problem(plan.root, files, shares)), signals

    def _open(self, path: Path, kind: Kind) -> Tensor:
        if kind == "video":
            return load_clip(path, self.size, self.frames, self.crop)
        return load_image(path, self.size, self.crop)

    def _shares(self, claims: list[Claim], order: list[str], seed: int) -> tuple[Share, ...]:
        """What each client trains on and is evaluated on; the last clients of ``order`` are unseen."""
        owned: dict[str, list[Claim]] = {}
        for claim in claims:
            owned.setdefault(claim.client, []).append(claim)
        present = [client for client in order if client in owned]
        count = kept_back(len(present), self.unseen, of=3)
        unseen = set(present[len(present) - count :])
        shares = []
        for client, mine in owned.items():
            if mine[0].part:  # The split file decides.
                held_out = {claim.name for claim in mine if claim.part != "train"}
            elif client in unseen:
                held_out = {claim.name for claim in mine}
            else:
                held_out = self._hold_out([claim.name for claim in mine], generator(seed, "split", client))
            train = tuple(claim.name for claim in mine if claim.name not in held_out)
            rest = tuple(claim.name for claim in mine if claim.name in held_out)
            shares.append(Share(client, train, rest, unseen=not train))
        return tuple(shares)

    def _hold_out(self, names: list[str], generator: Generator) -> set[str]:
        """The signals of one client that are kept back to evaluate on."""
        return set(shuffled(names, generator)[: kept_back(len(names), self.held_out, of=2)])


def _client(share: Share, signals: dict[str, GridSignal]) -> Client:
    train, held_out = (
        tuple(Task(signals[name], signals[name], name) for name in names) for names in (share.train, share.held_out)
    )
    return Client(share.client, train, held_out)


def kept_back(count: int, fraction: float, of: int) -> int:
    """How many of ``count`` a fraction keeps back: at least one if there are ``of`` of them, none for 0."""
    return max(1, int(fraction * count)) if fraction and count >= of else 0


def shuffled(items: list[T], generator: Generator) -> list[T]:
    """The items in random order."""
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def _without_path(error: UserError, path: Path) -> str:
    """The text of an error about ``path``, for lists that name the file already."""
    return str(error).removeprefix(printable(f"{path}: "))


def _file_notes(files: list[Found]) -> list[str]:
    """A note for every unusable file, and one for every reason to ignore others."""
    notes = [f"left out {file.name}: {file.reason}" for file in files if file.status == "unusable"]
    ignored = Counter(file.reason for file in files if file.status == "ignored")
    return notes + [f"left out {count} {'file' if count == 1 else 'files'}: {why}" for why, count in ignored.items()]


def _share_notes(claims: list[Claim], shares: tuple[Share, ...]) -> list[str]:
    """A note for every client that no one meant to be unseen."""
    evaluated = {claim.client for claim in claims if claim.part == "held_out"}
    missing = [share.client for share in shares if share.unseen and share.client in evaluated]
    return [f"client {client} has nothing to train on, so it is unseen" for client in missing]


def _problem(root: Path, files: list[Found], shares: tuple[Share, ...]) -> str:
    """Why there is no federation in this, or nothing."""
    problem = ""
    if not shares:
        telling = [file for file in files if file.status == "unusable"] or files
        first = f", such as {telling[0].name}: {telling[0].reason}" if telling else ""
        problem = f"{root} holds no picture or clip that can be used ({len(files)} found{first}); add some"
    elif len(shares) == 1:
        problem = (
            f"{root} gives only one client, {shares[0].client}, and a federation needs two; "
            "add files, or choose another --data.clients or --data.kind"
        )
    elif all(share.unseen for share in shares):
        problem = f"{root} leaves no client anything to train on; let the split mark some files as train"
    return printable(problem)
