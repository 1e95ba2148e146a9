"""The configuration of secure aggregation; the protocol is in :mod:`fedfields.privacy.secure`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedfields.privacy.base import Transform


@dataclass(frozen=True)
class SecAgg(Transform):
    """The server learns the sum of a round's reports and nothing else about any of them (Bonawitz et al., CCS 2017).

    Reports are rounded to integers, at random and without bias, and masked; the sum of the integers is exact. It comes
    last among the protections: what is masked cannot be clipped or noised any more.
    """

    minimum: int = 3
    """Fewest clients in a sum; a round with fewer is given up and tried again with another cohort."""

    neighbours: int = 0
    """Clients with whom each one shares masks and keys (Bell et al., CCS 2020), even; 0 for all of them."""

    threshold: float = 2 / 3
    """Share of its neighbours whose help it takes to recover from a client's dropping out; more than half."""

    reach: float = 16.0
    """Largest entry of an update; a report with a larger one is scaled down as a whole, which its owner is told."""

    bits: Literal[32, 64] = 32
    """Modulus of the sums, 2^32 or 2^64; 64 for very fine steps, at twice the traffic."""

    tries: int = 3
    """Cohorts that are tried in a round before the run stops."""

    hides_reports = True

    def __post_init__(self) -> None:
        if self.minimum < 3:
            raise ValueError(
                f"minimum is {self.minimum}; in a sum of fewer than 3 clients each one knows the other's report"
            )
        if self.neighbours < 0 or self.neighbours % 2:
            raise ValueError(f"neighbours is {self.neighbours}; it must be even, or 0 for all")
        if not 0.5 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be more than a half and at most 1")
        if not 0 < self.reach < math.inf:
            raise ValueError(f"reach is {self.reach}; it must be positive and finite")
        if self.bits not in (32, 64) or self.tries < 1:
            raise ValueError(f"{self.bits} bits and {self.tries} tries; bits must be 32 or 64, tries at least 1")
