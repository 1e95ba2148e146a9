"""Reports as vectors of integers modulo 2^32 or 2^64, whose sums are exact.

An entry x of a tree becomes ``q = floor(x S) + [u < x S - floor(x S)]`` with u uniform in [0, 1), in two's complement:
the expectation of q is x S, and a sum needs no correction for who dropped out. The weights and counts of a report are
entries like all others, so that nothing travels beside the sum.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedfields.lazy import torch
from fedfields.privacy.base import PUBLIC
from fedfields.privacy.secure.errors import Refused
from fedfields.privacy.secure.protocol import Settings
from fedfields.types import Report

if TYPE_CHECKING:
    from torch import Generator, Tensor

_BLOCK = 1 << 16
_SLACK = 2.0**-40
"""By how much a report that is scaled into its range stays inside, so that rounding cannot lift it out again."""


class Encoded(NamedTuple):
    """A report as integers, and the factor by which its data trees had to be scaled to fit (1: not at all)."""

    vector: np.ndarray
    factor: float


@dataclass(frozen=True)
class FixedPoint:
    """What all clients of a session agree on before any of them has a report.

    No sum overflows: the largest integer that a client may send is ``M = (2^(bits - 1) - 1) // clients``, and the scale
    of a tree is the largest power of two S with ``limit S <= M`` (and at most 2^52, below which float64 counts every
    integer). Multiplying by a power of two is exact, so ``|x| <= limit`` gives ``|x S| <= M``; M is an integer, so
    rounding to either neighbour gives ``|q| <= M``; and ``clients M <= 2^(bits - 1) - 1`` fits two's complement.
    """

    leaves: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Tree, key and shape of every leaf, sorted: the order of the vector."""

    limits: tuple[tuple[str, float], ...]
    """Largest absolute value of an entry of each tree, sorted by tree."""

    clients: int
    """Most clients in a sum."""

    bits: int = 32
    """Modulus 2^32 (half the traffic) or 2^64 (finer steps)."""

    refuse: bool = False
    """Refuse a report whose data trees leave their range, instead of scaling them all by one factor."""

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"{self.bits} bits: the modulus of secure sums is 2^32 or 2^64")
        if not 1 <= self.clients < 2**20:
            raise ValueError(f"sums of {self.clients} clients: between 1 and {2**20 - 1} are possible")
        if not self.leaves or list(self.leaves) != sorted(set(self.leaves)):
            raise ValueError("the leaves of a report must be sorted, each named once, and there must be some")
        if [name for name, _ in self.limits] != sorted({name for name, _, _ in self.leaves}):
            raise ValueError("every tree of a report needs one limit, in the order of their names")
        for name, limit in self.limits:
            if not (0 < limit < math.inf and self.scale(name) >= 2.0**-64):
                raise ValueError(
                    f"the limit of {name} is {limit}; it must be positive and finite, and not astronomical"
                )

    @classmethod
    def of(cls, like: Report, limits: Mapping[str, float], clients: int, bits: int = 32, refuse: bool = False):
        """The encoding of reports shaped like ``like``."""
        leaves = sorted((name, key, tuple(leaf.shape)) for name, part in like.items() for key, leaf in part.items())
        return cls(tuple(leaves), tuple(sorted(limits.items())), clients, bits, refuse)

    @property
    def largest(self) -> int:
        """M, the largest absolute value of an integer that one client may send."""
        return (2 ** (self.bits - 1) - 1) // self.clients

    @property
    def length(self) -> int:
        """Number of integers."""
        return sum(math.prod(shape) for _, _, shape in self.leaves)

    @property
    def dtype(self) -> np.dtype:
        """Of the vectors: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def digest(self) -> bytes:
        """Hash of all this: clients with other models, ranges or moduli cannot be in one sum."""
        text = json.dumps([self.leaves, self.limits, self.clients, self.bits])
        return hashlib.sha256(text.encode()).digest()

    def settings(self, session: bytes, round: int, minimum: int, degree: int, threshold: int) -> Settings:
        """A round of secure sums of such vectors, of as many clients as they have room for."""
        cohort = (minimum, self.clients, degree, threshold)
        return Settings(session, round, self.digest, self.length, self.bits, *cohort)

    def scale(self, name: str) -> float:
        """S, integers per unit of the tree."""
        room = min(self.largest, 2**52) / dict(self.limits)[name]
        power = math.frexp(room)[1] - 1
        return 2.0**power

    def encode(self, report: Report, generator: Generator) -> Encoded:
        """The report as integers, rounded at random.

        A data tree (one that is not public by nature, see ``PUBLIC``) out of its range takes all data trees down with
        it by one factor: entries clipped one by one would point elsewhere. Weights and counts out of range are refused.

        Raises:
            Refused: the report is not shaped as agreed, not finite, or out of range.
        """
        self._check(report)
        factor = self._factor(report)
        vector = np.empty(self.length, self.dtype)
        signed = vector.view(f"<i{self.bits // 8}")
        for name, key, place in self._places():
            leaf = report[name][key].detach().reshape(-1)
            scale = self.scale(name)
            shrink = 1.0 if name in PUBLIC else factor
            for start in range(0, leaf.numel(), _BLOCK):
                exact = leaf[start : start + _BLOCK].to("cpu", torch.float64) * shrink * scale
                low = exact.floor()
                low += torch.rand(low.shape, generator=generator, dtype=torch.float64) < exact - low
                signed[place.start + start : place.start + start + low.numel()] = low.numpy()
        return Encoded(vector, factor)

    def decode(self, vector: np.ndarray, clients: int) -> Report:
        """The sum over ``clients`` clients as float64 trees.

        Raises:
            Refused: the vector is not one of this session, or no sum of that many reports within range.
        """
        if vector.dtype != self.dtype or vector.shape != (self.length,) or not 1 <= clients <= self.clients:
            raise Refused(f"a sum of {vector.shape} {vector.dtype} over {clients} clients is none of this session")
        signed, bound = vector.view(f"<i{self.bits // 8}"), clients * self.largest
        if signed.size and not -bound <= int(signed.min()) <= int(signed.max()) <= bound:
            raise Refused(f"the sum is out of reach of {clients} clients: one of them sent what is no report")
        return self.read(vector)

    def read(self, vector: np.ndarray) -> Report:
        """Any vector as float64 trees, whether or not it can be a sum of reports."""
        signed, total = vector.view(f"<i{self.bits // 8}"), Report()
        shapes = {(name, key): shape for name, key, shape in self.leaves}
        for name, key, place in self._places():
            leaf = torch.from_numpy(signed[place].astype(np.float64) / self.scale(name))
            total.setdefault(name, {})[key] = leaf.reshape(shapes[name, key])
        return total

    def _places(self) -> Iterator[tuple[str, str, slice]]:
        start = 0
        for name, key, shape in self.leaves:
            stop = start + math.prod(shape)
            yield name, key, slice(start, stop)
            start = stop

    def _check(self, report: Report) -> None:
        found = sorted((name, key, tuple(leaf.shape)) for name, part in report.items() for key, leaf in part.items())
        if tuple(found) != self.leaves:
            wrong = sorted(set(found) ^ set(self.leaves))[0]
            raise Refused(f"the report is not shaped as agreed, first at {wrong[0]}/{wrong[1]} {list(wrong[2])}")

    def _factor(self, report: Report) -> float:
        """What all data trees are to be multiplied with, after everything has been looked at."""
        factor = 1.0
        for name, limit in self.limits:
            top = max(_peak(leaf, f"{name}/{key}") for key, leaf in report[name].items())
            if top <= limit:
                continue
            if self.refuse or name in PUBLIC:
                raise Refused(f"the report's {name} reaches {top:g}, beyond the agreed {limit:g}")
            factor = min(factor, limit / top * (1 - _SLACK))
        return factor


def _peak(leaf: Tensor, name: str) -> float:
    """Largest absolute value, 0 for no values at all."""
    if not leaf.numel():
        return 0.0
    low, high = (float(edge) for edge in torch.aminmax(leaf.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused(f"{name} is not finite: the client's training diverged")
    return max(-low, high)
