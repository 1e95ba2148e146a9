"""Who shares keys and masks with whom: the k-regular graph of SecAgg+ (Bell et al., CCS 2020), and how large k must be.

The graph is Harary's: clients on a circle in random order, each joined to the k / 2 next on either side. The order
comes from a public seed, so that everybody can compute the graph and nobody need be told it. Cohorts of at most k + 1
clients form a complete graph, and SecAgg+ is then the protocol of Bonawitz et al. (CCS 2017).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from fedfields.errors import UserError


def neighbours(seed: bytes, numbers: Sequence[int], degree: int) -> dict[int, tuple[int, ...]]:
    """The neighbours of every client, ascending.

    Args:
        seed: public; who knows it before the numbers are given out can choose neighbours.
        numbers: of the clients, distinct.
        degree: k, even; at least ``len(numbers) - 1`` gives the complete graph.
    """
    if degree < 2 or degree % 2:
        raise ValueError(f"the degree of the graph is {degree}; it must be even and at least 2")
    if degree >= len(numbers) - 1:
        return {mine: tuple(sorted(set(numbers) - {mine})) for mine in numbers}
    circle = sorted(numbers, key=lambda number: hashlib.sha256(seed + number.to_bytes(4, "little")).digest())
    steps = [step for step in range(-degree // 2, degree // 2 + 1) if step]
    return {
        mine: tuple(sorted(circle[(place + step) % len(circle)] for step in steps)) for place, mine in enumerate(circle)
    }


class Neighbourhood(NamedTuple):
    """Degree k, threshold t of shares, and a bound on the probability that the graph is a bad one."""

    degree: int
    threshold: int
    failure: float


def degree_for(clients: int, corrupt: int, dropped: int, sigma: float = 40.0) -> Neighbourhood:
    """The smallest even degree, and its best threshold, for which a random graph fails with probability < 2^-sigma.

    A graph fails if one of these holds (the conditions of a good graph in Bell et al., section 3):

    1. some honest client has t corrupt neighbours, who could put its secrets together;
    2. some client has fewer than t neighbours that survive, so that its secrets cannot be put together when due;
    3. the graph of honest survivors is not connected, so that partial sums would show.

    A client's neighbours are a uniformly random k-subset of the others, so 1 and 2 are hypergeometric tails, summed
    exactly, times the number of clients (union bound). Honest survivors on a circle are disconnected only if there are
    two disjoint runs of k / 2 others: at most n (n - 1) / 2 pairs of places times the probability that k given places
    are all corrupt or dropped. Who is corrupt and who drops out is fixed before the order is drawn. The threshold is
    more than half of the degree, so that two sets of holders of one client's shares always meet.

    Args:
        clients: n, the size of the cohort.
        corrupt: how many of them pool what they know with the server.
        dropped: how many may drop out.
        sigma: bits of security, -log2 of the probability of failure.
    """
    others, bad = clients - 1, corrupt + dropped
    if min(corrupt, dropped) < 0 or clients < 3:
        raise ValueError(f"{clients} clients, {corrupt} corrupt and {dropped} dropped: no such cohort")
    allowed = Fraction(1, 2) ** math.ceil(sigma)
    for degree in range(2, clients + 1, 2):
        k = min(degree, others)
        corrupt_at_least = _tail(others, min(corrupt, others), k)
        lost_at_least = _tail(others, min(dropped, others), k)
        split = _split(clients, bad, k) if k < others else Fraction(0)
        found = [
            (split + clients * (corrupt_at_least[t] + lost_at_least[k - t + 1]), t)
            for t in range(degree // 2 + 1, k + 1)
        ]
        failure, threshold = min(found, default=(Fraction(1), 0))
        if failure < allowed:
            return Neighbourhood(degree, threshold, float(failure))
    raise UserError(
        f"no graph of {clients} clients withstands {corrupt} corrupt and {dropped} dropped ones: "
        "the corrupt must be fewer than a threshold that the survivors reach; take a larger cohort"
    )


def _tail(population: int, marked: int, draws: int) -> list[Fraction]:
    """``P[X >= x]`` for x = 0 .. draws + 1, where X counts the marked among ``draws`` without replacement."""
    every = math.comb(population, draws)
    tail, above = [Fraction(0)], 0
    for x in range(draws, -1, -1):
        above += math.comb(marked, x) * math.comb(population - marked, draws - x)
        tail.append(Fraction(above, every))
    return tail[::-1]


def _split(clients: int, bad: int, degree: int) -> Fraction:
    """The bound on condition 3: pairs of places times ``C(n - k, bad - k) / C(n, bad)``."""
    if bad < degree:
        return Fraction(0)
    return math.comb(clients, 2) * Fraction(math.comb(clients - degree, bad - degree), math.comb(clients, bad))
