"""Differential privacy of clients: reports are clipped, and Gaussian noise is added by the client, the server, or all.

The sensitivity is the same everywhere. Let r_k be everything in client k's report that depends on its data: all trees
but "stats". :func:`clip_report` gives |r_k| <= C for all trees together, so that one client more or less changes the
sum of the r_k by at most C, and other data of one client by at most 2 C. How r_k was computed (inner loops, control
variates, squared norms) does not matter. What is left is "stats": constants of the configuration with equal weights.
Where only the sum is protected, not even their sum is used, for it would tell how many came: the expected number takes
its place (the fixed denominator of DP-FedAvg; McMahan et al., ICLR 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fedfields import tree
from fedfields.lazy import torch
from fedfields.privacy.base import PUBLIC, Transform, clip_report, private_norm
from fedfields.privacy.sources import add_normal, discrete_normal
from fedfields.types import Params, Report

if TYPE_CHECKING:
    from fedfields.privacy.sources import Source


@dataclass(frozen=True)
class Clipped(Transform):
    """What all have in common: the joint clip at the client."""

    clip: float = 0.02
    """Largest norm C of everything in a report that depends on the data; about the norm of an ordinary update."""

    uniform_weights = True

    trust: ClassVar[Literal["nobody", "server", "sum"]] = "nobody"
    """Who may see what is not noised enough: nobody, the server, or a server that sees only sums."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise ValueError(f"the clip is {self.clip}; it must be positive and finite")

    def client(self, report: Report, source: Source) -> Report:
        return clip_report(report, self.clip)

    def std(self, weights: int) -> float:
        """Standard deviation of the noise on each of a single report's ``weights`` numbers."""
        return 0.0

    @property
    def fewest(self) -> int:
        """The smallest cohort for which the promise can hold."""
        return 1

    def noise(self, weights: int) -> float:
        """Noise multiplier z, the standard deviation over C, of what this transform promises to protect."""
        return self.std(weights) / self.clip


@dataclass(frozen=True)
class Noise(Clipped):
    """Local noise: every client adds Gaussian noise to its own clipped report; protects against the server itself.

    ``ratio`` is handy for hiding one upload from the attacks in the audit: the norm of the noise is about ``ratio``
    times C, whatever the number d of weights. As differential privacy that is a noise multiplier of ratio / sqrt(d),
    which is no guarantee (an epsilon in the thousands for one report). ``multiplier`` says it the other way round.
    """

    ratio: float = 10.0
    """Expected norm of the noise in units of C."""

    multiplier: float | None = None
    """Noise multiplier z: the standard deviation per weight is z C. Takes the place of the ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < math.inf:
            raise ValueError(f"the noise ratio is {self.ratio}; it must be 0 or more, and finite")
        if self.multiplier is not None:
            _check_multiplier(self.multiplier)

    def std(self, weights: int) -> float:
        if self.multiplier is not None:
            return self.multiplier * self.clip
        return self.ratio * self.clip / weights**0.5

    def client(self, report: Report, source: Source) -> Report:
        report = super().client(report, source)
        return _noised(report, self.std(private_size(report)), source)


@dataclass(frozen=True)
class CentralNoise(Clipped):
    """DP-FedAvg (McMahan et al., ICLR 2018): the server adds noise of z C to the sum; protects what it publishes.

    The server sees every clipped report, and is trusted with it.
    """

    multiplier: float = 1.0
    """Noise multiplier z: the standard deviation of the noise on the sum is z C."""

    of_sum = True
    trust = "server"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multiplier(self.multiplier)

    def noise(self, weights: int) -> float:
        return self.multiplier

    def server(self, total: Report, source: Source, cohort: float) -> Report:
        return _noised(total, self.multiplier * self.clip, source)


@dataclass(frozen=True)
class AdaptiveNoise(CentralNoise):
    """Central noise with a clip that follows a quantile of the reports' norms (Andrew et al., NeurIPS 2021, alg. 1).

    Each client adds b - 1/2 to the sum, b being whether its norm is below C; the server adds noise of s = M / 20, but
    at least z, to it, and multiplies C by exp(-rate (mean of b - quantile)). Updates get z' C with z'^-2 = z^-2 -
    (2 s)^-2, so that both together cost as much as z alone (theorem 1); s >= z keeps z' below 1.16 z.
    """

    quantile: float = 0.5
    """Share of the reports that should not be clipped."""

    rate: float = 0.2
    """How fast C moves: by at most this share of the distance, as a factor, in one round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile < 1 or not 0 < self.rate < math.inf:
            raise ValueError(
                f"quantile {self.quantile} and rate {self.rate}: a quantile lies in (0, 1), a rate above 0"
            )

    def at(self, told: Params) -> AdaptiveNoise:
        return replace(self, clip=float(told["clip"])) if told else self

    def client(self, report: Report, source: Source) -> Report:
        below = float(private_norm(report) <= self.clip) - 0.5
        return super().client(report, source) | {"below": {"count": torch.tensor(below, dtype=torch.float64)}}

    def server(self, total: Report, source: Source, cohort: float) -> Report:
        count = add_normal(total["below"], self._spread(cohort), source)
        updates = {name: part for name, part in total.items() if name != "below"}
        return _noised(updates, self._multiplier(cohort) * self.clip, source) | {"below": count}

    def after(self, total: Report, cohort: float) -> Params:
        share = float(total["below"]["count"]) / cohort + 0.5
        clip = self.clip * math.exp(-self.rate * (min(1.0, max(0.0, share)) - self.quantile))
        return {"clip": torch.tensor(clip, dtype=torch.float64)}

    def _spread(self, cohort: float) -> float:
        """s, the standard deviation of the noise on the count; its sensitivity is 1/2."""
        return max(cohort / 20, self.multiplier)

    def _multiplier(self, cohort: float) -> float:
        """z'."""
        if self.multiplier == 0:
            return 0.0
        return (self.multiplier**-2 - (2 * self._spread(cohort)) ** -2) ** -0.5


@dataclass(frozen=True)
class DistributedNoise(Clipped):
    """Every client adds a share of the noise: for servers that see only sums (Kairouz, Liu and Steinke, ICML 2021).

    Among ``honest`` clients that follow the protocol and stay to the end, each adds z C / sqrt(honest), so that their
    sum holds noise of z C. A report is a whole multiple of a power of two g, rounded to the nearest, with discrete
    Gaussian noise on the same grid: secure sums of fixed-point numbers carry it without an error. With d numbers g is
    at most C / (512 sqrt(d)); rounding moves a report by at most g sqrt(d) / 2 <= C / 1024, and the clip before it is
    lower by as much. Sums of discrete Gaussians this wide (hundreds of grid steps) differ from one discrete Gaussian
    by less than float64 can tell (their theorem 1 bounds the distance by 10 t exp(-pi^2 sigma^2)).

    Without secure sums the server sees single reports, whose noise is only the share.
    """

    multiplier: float = 1.0
    """Noise multiplier z of the sum."""

    honest: int = 3
    """How many clients of a round are counted on to add their share of the noise and to keep it secret."""

    of_sum = True
    trust = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multiplier(self.multiplier)
        if self.honest < 1:
            raise ValueError(f"{self.honest} honest clients; the noise must be shared by at least one")

    @property
    def fewest(self) -> int:
        return self.honest

    def std(self, weights: int) -> float:
        return self.multiplier * self.clip / self.honest**0.5

    def noise(self, weights: int) -> float:
        return self.multiplier

    def grid(self, weights: int) -> float:
        """g, the power of two of which all numbers of a report are multiples."""
        return 2.0 ** math.floor(math.log2(self.clip / (512 * weights**0.5)))

    def client(self, report: Report, source: Source) -> Report:
        weights = private_size(report)
        grid = self.grid(weights)
        clipped = clip_report(report, self.clip - grid * weights**0.5 / 2)

        def on_grid(leaf: torch.Tensor) -> torch.Tensor:
            noise = discrete_normal(leaf.numel(), self.std(weights) / grid, source)
            return grid * ((leaf.double() / grid).round() + noise.view(leaf.shape))

        private = {name: tree.tree_map(on_grid, part) for name, part in clipped.items() if name not in PUBLIC}
        return clipped | private


def private_size(report: Report) -> int:
    """How many numbers of a report depend on the client's data."""
    return sum(tree.size(part) for name, part in report.items() if name not in PUBLIC)


def _noised(report: Report, std: float, source: Source) -> Report:
    """The report with Gaussian noise on everything that depends on data."""
    private = {name: part for name, part in report.items() if name not in PUBLIC}
    return report | {name: add_normal(part, std, source) for name, part in private.items()}


def _check_multiplier(multiplier: float) -> None:
    if not 0 <= multiplier < math.inf:
        raise ValueError(f"the noise multiplier is {multiplier}; it must be 0 or more, and finite")
