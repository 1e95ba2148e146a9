"""What the noise of a run is worth: epsilon and delta, for whom, and against whom.

Composition by Renyi differential privacy (Mironov, CSF 2017; subsampled: Mironov, Talwar and Zhang, 2019; Wang, Balle
and Kasiviswanathan, AISTATS 2019) and by privacy loss distributions, both from dp-accounting; rounds without
subsampling have a closed form (Balle and Wang, ICML 2018, theorem 8). All are upper bounds, so the least of them holds.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fedfields.privacy.base import Transform
from fedfields.privacy.dp import Clipped

if TYPE_CHECKING:
    from dp_accounting import DpEvent
LOOSE = 100.0
"""Epsilon by Renyi composition from which on no privacy loss distribution is computed: it says nothing any more, and
its size grows with epsilon."""

MOST_DELTA = 0.1
"""The default delta of very small federations, where N^-1.1 would be near one."""


@dataclass(frozen=True)
class Sampled:
    """A Gaussian mechanism that is repeated, each time on a secret sample.

    ``sampling`` "poisson" is about one client more or less (add or remove) and "fixed" about the data of one client
    exchanged for others (replace one); "none" is the mechanism itself, about whatever ``multiplier`` is about.
    """

    multiplier: float
    """Standard deviation of the noise over what the change makes of the sum."""

    sampling: Literal["none", "poisson", "fixed"] = "none"
    """How a round's clients are drawn: each by itself, as many as ever without replacement, or all of them."""

    cohort: int = 1
    """M, clients in a round, or their expected number."""

    clients: int = 1
    """N, clients to draw from."""

    def rdp(self, rounds: int, delta: float) -> float:
        """Epsilon after so many rounds, by Renyi composition."""
        from dp_accounting.rdp import compute_epsilon

        orders, spent = self._round
        return float(compute_epsilon(orders, [rounds * one for one in spent], delta)[0]) if rounds else 0.0

    def pld(self, rounds: int, delta: float) -> float | None:
        """Epsilon by privacy loss distributions; None where there are none, or where it would be beyond ``LOOSE``."""
        if self.sampling == "none":
            return self.unsampled(rounds, delta)
        if self.sampling == "fixed" or self.rdp(rounds, delta) > LOOSE:
            return None
        from dp_accounting.pld import PLDAccountant

        return float(PLDAccountant().compose(self._event, rounds).get_epsilon(delta)) if rounds else 0.0

    def unsampled(self, rounds: int, delta: float) -> float:
        """Epsilon if the sample were known: exact for the Gaussian mechanism, and never less than with a sample."""
        from dp_accounting import get_epsilon_gaussian

        return float(get_epsilon_gaussian(self.multiplier / rounds**0.5, delta)) if rounds else 0.0

    def epsilon(self, rounds: int, delta: float) -> float:
        """The better of the two bounds that take no time."""
        return min(self.rdp(rounds, delta), self.unsampled(rounds, delta))

    @property
    def _event(self) -> DpEvent:
        import dp_accounting as dp

        gaussian = dp.GaussianDpEvent(self.multiplier)
        if self.sampling == "poisson":
            return dp.PoissonSampledDpEvent(self.cohort / self.clients, gaussian)
        if self.sampling == "fixed":
            return dp.SampledWithoutReplacementDpEvent(self.clients, self.cohort, gaussian)
        return gaussian

    @cached_property
    def _round(self) -> tuple[list[float], list[float]]:
        """Orders, and the Renyi divergence of one round at each: it adds up over rounds."""
        from dp_accounting import NeighboringRelation
        from dp_accounting.rdp import RdpAccountant

        one = NeighboringRelation
        accountant = RdpAccountant(
            neighboring_relation=one.REPLACE_ONE if self.sampling == "fixed" else one.ADD_OR_REMOVE_ONE
        )
        with _quiet():
            accountant.compose(self._event)
        return list(accountant._orders), list(accountant._rdp)


@dataclass(frozen=True)
class Accountant:
    """The guarantee of a run for its worst-off owner."""

    mechanism: Sampled
    """What happens in a round."""

    trust: Literal["nobody", "server", "sum"]
    """Whom the owners trust; see `Clipped.trust`."""

    delta: float
    """The probability with which epsilon may fail to hold."""

    @classmethod
    def of(
        cls,
        privacy: Sequence[Transform],
        *,
        weights: int,
        cohort: int,
        clients: int,
        poisson: bool = False,
        delta: float | None = None,
    ) -> Accountant | None:
        """The accountant of a configuration; None if nothing in it gives a guarantee.

        Whoever sees only published weights does not know who took part, which makes central noise worth more. A server
        does know: local and distributed noise count in full, for every round that an owner took part in, and about any
        two data sets of theirs, which are up to 2 C apart.

        Args:
            privacy: of the method.
            weights: d, numbers in a report that depend on data.
            cohort: M, or its expectation.
            clients: N.
            poisson: whether each client is drawn by itself.
            delta: N^-1.1 by default, and at most 0.1.
        """
        noise = next((transform for transform in privacy if isinstance(transform, Clipped)), None)
        if noise is None or noise.noise(weights) == 0:
            return None
        delta = min(MOST_DELTA, clients**-1.1) if delta is None else delta
        trust, z, cohort = noise.trust, noise.noise(weights), min(cohort, clients)
        hidden = any(transform.hides_reports for transform in privacy) and cohort >= noise.fewest and not poisson
        if trust == "sum" and not hidden:
            trust, z = "nobody", noise.std(weights) / noise.clip
        if trust != "server":
            return cls(Sampled(z / 2), trust, delta)
        if cohort == clients:
            return cls(Sampled(z), trust, delta)
        if poisson:
            return cls(Sampled(z, "poisson", cohort, clients), trust, delta)
        return cls(Sampled(z / 2, "fixed", cohort, clients), trust, delta)

    def counted(self, cohorts: Sequence[Sequence[str]]) -> int:
        """How many rounds count, given who took part in each: all, or those of the owner who was in most of them."""
        if self.trust == "server":
            return len(cohorts)
        taken: dict[str, int] = {}
        for cohort in cohorts:
            for name in cohort:
                taken[name] = taken.get(name, 0) + 1
        return max(taken.values(), default=0)

    def epsilon(self, cohorts: Sequence[Sequence[str]]) -> float:
        """What has been spent after these rounds; quick, so that every round can be told."""
        return self.mechanism.epsilon(self.counted(cohorts), self.delta)

    def statement(self, cohorts: Sequence[Sequence[str]], seeded: bool) -> dict:
        """The guarantee for people: the best epsilon, by either way of composing, and what it means."""
        rounds = self.counted(cohorts)
        rdp, pld = self.mechanism.rdp(rounds, self.delta), self.mechanism.pld(rounds, self.delta)
        best = min(self.mechanism.epsilon(rounds, self.delta), rdp if pld is None else pld)
        return {
            "epsilon": best,
            "epsilon_rdp": rdp,
            "epsilon_pld": pld,
            "delta": self.delta,
            "protects": self.meaning,
            "noise": "seed" if seeded else "secure",
        }

    @property
    def meaning(self) -> str:
        """Against whom, and what of an owner."""
        if self.trust == "nobody":
            return "what one owner's data are, from the server and everybody else, over the rounds they took part in"
        if self.trust == "sum":
            return "what one owner's data are, from a server that sees only sums with enough honest clients in each"
        about = "what one owner's data are" if self.mechanism.sampling == "fixed" else "whether one owner took part"
        return f"{about}, from whoever sees the published weights alone, and not the cohorts; the server sees more"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines in which dp-accounting says which orders it leaves out."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
