"""A set of objects, each in posed photographs: the 3D data of FedMeNF (ICCV 2025, section 4), laid out as ShapeNet's.

An object is a folder with poses and pictures (``transforms.json`` or ``transforms_train.json`` and so on), at any depth
below the set's. All objects are seen in one frame, that of the set: a cube around the origin of their poses.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.captures import layout_of, load_capture
from fedfields.scenes.clips import natural_order
from fedfields.scenes.data import Federation, kept_back, shuffled
from fedfields.scenes.frame import Frame
from fedfields.scenes.images import printable
from fedfields.scenes.posed import Split
from fedfields.scenes.views import Photo, RaySignal, load_photo, photo_rays
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator

DEEPEST = 4
"""Folders below the set's in which objects are looked for."""

OUTSIDE = 0.02
"""Share of the pixels showing an object that may lie outside of the cube."""

WHITE = 250
"""From this value of every colour on, of 255, a pixel counts as background."""


class Views(NamedTuple):
    """How many photographs of an object are fitted, and how many judge the fit."""

    support: int
    query: int


ALL = Views(1_000_000, 1_000_000)
"""More photographs than there are."""


@dataclass(frozen=True)
class Objects:
    """Photographs of many objects, and which of them belong to whom."""

    path: Path | None = None
    """Folder of the set. Every folder below it that holds poses is an object."""

    size: int = 32
    """Pixels along the longer side, after resizing; 0 keeps the size of the photographs."""

    half: float = 1.0
    """Half the edge of the cube around the origin that holds every object, in units of their poses."""

    clients: int = 0
    """Owners among whom the objects are shared out, at least one for each; 0 makes every object a client."""

    alpha: float = 1.0
    """How even the shares are: parameter of the Dirichlet distribution that they are drawn from; 0 for equal ones."""

    held_out: float = 0.25
    """Fraction of the objects of each client that is kept back to evaluate on, at least one of two."""

    unseen: float = 0.25
    """Fraction of the clients that never take part in training, at least one of three; 0 for none."""

    support: int = 4
    """Photographs of an object that are fitted, on the mean over objects."""

    query: int = 4
    """Photographs of an object that judge the fit, on the mean; test photographs, where the object has such."""

    views_alpha: float = 0.0
    """Parameter of the Dirichlet distribution that shares out the photographs among objects; 0 for equal numbers."""

    shots: int = 0
    """Photographs that an owner has to adapt to an object kept back (few-shot); 0 for as many as in training."""

    limit: int = 0
    """At most so many objects, drawn at random; 0 for all."""

    def __post_init__(self) -> None:
        for name in ("size", "clients", "alpha", "views_alpha", "shots", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if min(self.support, self.query) < 1:
            raise ValueError(f"{self.support} photographs to fit and {self.query} to judge; both must be at least 1")
        if not 0 < self.half < float("inf"):
            raise ValueError(f"half the cube's edge is {self.half}; it must be positive and finite")
        for name in ("held_out", "unseen"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a fraction must lie in [0, 1)")

    @property
    def frame(self) -> Frame:
        """What everybody's poses are relative to."""
        return Frame((0.0, 0.0, 0.0), self.half, "white")

    def load(self, seed: int, jitters: int) -> Federation:
        """Reads everything; ``seed`` decides who owns what, and which photographs are fitted.

        Args:
            seed: of the run.
            jitters: see `RaySignal`.

        Raises:
            UserError: no such folder, fewer than two objects or clients, or an object that is no good.
        """
        folders, notes = self._folders(seed)
        counts = self._views(folders, seed)
        owners = self._owners(len(folders), seed)
        seen, unseen, start = [], [], 0
        hidden = kept_back(len(owners), self.unseen, of=3)
        for i, count in enumerate(owners):
            kept = count if i >= len(owners) - hidden else kept_back(count, self.held_out, of=2)
            tasks = []
            for k in range(start, start + count):
                name, views = self._name(folders[k]), counts[k]
                if self.shots and k < start + kept:
                    views = views._replace(support=min(self.shots, views.support))
                tasks.append(self._task(folders[k], name, views, jitters, generator(seed, "views", name)))
            start += count
            client = Client(f"client-{i}" if self.clients else tasks[0].name, tuple(tasks[kept:]), tuple(tasks[:kept]))
            (seen if client.train else unseen).append(client)
        notes = (f"{len(folders)} objects; {len(seen)} clients train, {len(unseen)} are unseen", *notes)
        return Federation(tuple(seen), tuple(unseen), notes)

    def own(self, path: Path, name: str, seed: int, jitters: int) -> Client:
        """All objects of a folder as one owner's.

        Raises:
            UserError: there is none, or one is no good.
        """
        mine = dataclasses.replace(self, path=path)
        folders = shuffled(object_folders(path), generator(seed, "split", name))
        if not folders:
            raise UserError(printable(f"{path} holds no objects; an object is a folder with poses and pictures"))
        tasks, kept = [], kept_back(len(folders), self.held_out, of=2)
        for i, folder in enumerate(folders):
            views = Views(min(self.shots, self.support) if self.shots and i < kept else self.support, self.query)
            called = mine._name(folder)
            tasks.append(mine._task(folder, called, views, jitters, generator(seed, "views", called)))
        return Client(name, tuple(tasks[kept:]), tuple(tasks[:kept]))

    def _folders(self, seed: int) -> tuple[list[Path], tuple[str, ...]]:
        """The objects, in random order."""
        if self.path is None:
            raise UserError("no objects were given; name the folder of a set with --data")
        found = object_folders(self.path)
        if len(found) < 2:
            raise UserError(
                printable(f"{self.path} holds {len(found)} objects, and a federation needs two; an object is a folder ")
                + "with transforms.json, or with transforms_train.json and transforms_test.json, and pictures"
            )
        folders = shuffled(found, generator(seed, "split"))
        if self.limit and len(folders) > self.limit:
            return folders[: self.limit], (f"left out {len(folders) - self.limit} objects: beyond --data.limit",)
        return folders, ()

    def _views(self, folders: Sequence[Path], seed: int) -> list[Views]:
        """How many photographs of each object are used."""
        count = len(folders)
        if not self.views_alpha:
            return [Views(self.support, self.query)] * count
        random = generator(seed, "views")
        support = dirichlet_shares(self.support * count, count, self.views_alpha, random)
        return [Views(n, max(1, round(n * self.query / self.support))) for n in support]

    def _owners(self, objects: int, seed: int) -> list[int]:
        """How many objects each client has."""
        if not self.clients:
            return [1] * objects
        if self.clients > objects:
            raise UserError(f"{self.path} holds {objects} objects, too few for {self.clients} clients")
        return dirichlet_shares(objects, self.clients, self.alpha, generator(seed, "owners"))

    def open(self, folder: Path, jitters: int) -> Task:
        """An object from elsewhere as a task, with all photographs it has.

        Raises:
            UserError: as `load`.
        """
        return self._task(folder, folder.name, ALL, jitters, generator(0))

    def _name(self, folder: Path) -> str:
        assert self.path is not None
        return folder.relative_to(self.path).as_posix()

    def _task(self, folder: Path, name: str, views: Views, jitters: int, random: Generator) -> Task:
        """An object as a task: photographs to fit, and others that judge."""
        capture = load_capture(folder)

        def some(split: Split, most: int) -> RaySignal:
            pool = [view for view in capture.views if view.split == split]
            if not pool:
                raise UserError(printable(f"{folder} has no photographs for {split}ing; every object needs both kinds"))
            chosen = shuffled(pool, random)[:most]
            photos = [load_photo(view, self.frame, view.scale_to(self.size)) for view in chosen]
            _check_photos(folder, photos, self.half)
            return RaySignal(tuple(photos), jitters)

        return Task(some("train", views.support), some("test", views.query), name)


def object_folders(path: Path) -> list[Path]:
    """The folders below ``path`` that hold poses, in natural order; inside of them nothing is looked for.

    Raises:
        UserError: there is no such folder.
    """
    if not path.is_dir():
        raise UserError(printable(f"{path} is not a folder; give the folder of a set of objects"))
    found = []
    for folder, below, _ in os.walk(path):
        here = Path(folder)
        below[:] = [name for name in below if not name.startswith(".")]
        if here != path and layout_of(here) is not None:
            found.append(here)
            below.clear()
        elif len(here.relative_to(path).parts) >= DEEPEST:
            below.clear()
    return sorted(found, key=lambda one: natural_order(one.relative_to(path).as_posix()))


def dirichlet_shares(total: int, owners: int, alpha: float, random: Generator) -> list[int]:
    """``total`` things shared out by proportions from Dir(alpha), at least one for each owner; equally for 0.

    Proportions are rounded by largest remainders; who got nothing is given one by who has most.
    """
    import numpy as np

    draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random)))
    shares = draws.dirichlet([alpha] * owners) if alpha else np.full(owners, 1 / owners)
    counts = np.floor(shares * total).astype(int)
    counts[np.argsort(counts - shares * total, kind="stable")[: total - counts.sum()]] += 1
    for poor in np.flatnonzero(counts == 0):
        counts[counts.argmax()] -= 1
        counts[poor] += 1
    return counts.tolist()


def _check_photos(folder: Path, photos: Sequence[Photo], half: float) -> None:
    """Refuses photographs of several sizes, with masks, or of something that reaches out of the cube."""
    if len({photo.colours.shape for photo in photos}) > 1 or any(photo.usable is not None for photo in photos):
        raise UserError(printable(f"{folder} has photographs of several sizes or with masks; objects need one size"))
    outside = total = 0
    for photo in photos:
        shows = (photo.colours < WHITE).any(-1).flatten()
        rays = photo_rays(photo.pose, photo.camera)
        outside += int((shows & (rays.far <= rays.near)).sum())
        total += int(shows.sum())
    if outside > OUTSIDE * total:
        raise UserError(
            printable(f"{folder}: {outside / total:.0%} of what it shows is outside of the cube of half edge {half:g}")
            + "; raise --data.half until every object is inside, the same for all owners"
        )
