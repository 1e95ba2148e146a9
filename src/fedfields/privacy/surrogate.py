"""Surrogates: a client trains on made-up signals instead of its own, so its own is not in the upload.

What a meta-learner takes from a picture of one owner is mostly how pictures are built: smooth at large scales,
1/f in amplitude, channels that vary together. A random texture with these statistics teaches the same, and the
upload is a function of the statistics alone (the phase-randomised surrogates of time-series analysis, Theiler et
al., Physica D 1992, carried over to federated meta-learning). Whatever an attacker does with the upload, or with
all of them, it cannot get more than those numbers. Instead of an object, an owner trains on random solids seen by its
own cameras: the upload depends on where the cameras stood, and on nothing that they saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedfields.privacy.base import Transform
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class Surrogate(Transform):
    """Every training signal is replaced by a source of made-up ones, a fresh one for each outer step: random textures
    for pictures and clips, random solids for objects."""

    statistics: Literal["own", "public"] = "own"
    """"own": mean colour (3), colour covariance (6) and spectral slope (1) of the picture, which is all that the
    uploads can reveal. "public": drawn anew each time from fixed ranges; the uploads do not depend on the picture.
    Objects have only public ones."""

    def prepare(self, client: Client, generator: Generator) -> Client:
        return client._replace(train=tuple(self._replace(task) for task in client.train))

    def _replace(self, task: Task) -> Task:
        surrogate = getattr(task.support, "surrogate", None)
        if surrogate is None:
            raise ValueError(
                "surrogates are made for pictures, clips and objects; "
                f"{type(task.support).__name__} has none: choose another privacy"
            )
        source = surrogate(public=self.statistics == "public")
        return Task(source, source, task.name)
