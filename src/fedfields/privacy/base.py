"""The contract of a transform, and the joint clip of a whole report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Client, Params, Report

if TYPE_CHECKING:
    from fedfields.privacy.sources import Source

PUBLIC = frozenset({"stats"})
"""Trees of a report that do not depend on the client's data when client weights are uniform."""

_SLACK = 2.0**-22
"""By how much a clipped report stays inside its norm, so that rounding to float32 cannot lift it out again."""


class Transform:
    """Something that protects a client. The identity by default; subclasses are frozen dataclasses."""

    uniform_weights: bool = False
    """Whether it protects only if every client has the same weight."""

    of_sum: bool = False
    """Whether it protects the sum and nothing but the sum. The sum of the weights is then a constant, the expected
    size of the cohort, and a round without reports is a sum of zeros."""

    hides_reports: bool = False
    """Whether the server sees nothing but the sum of the reports."""

    def prepare(self, client: Client, generator: torch.Generator) -> Client:
        """What the client trains on instead of its own tasks; called once, on the owner's machine."""
        return client

    def at(self, told: Params) -> Transform:
        """The transform as it is in a round for which :meth:`after` returned ``told``; nothing was told before."""
        return self

    def client(self, report: Report, source: Source) -> Report:
        """The report as it leaves the client."""
        return report

    def server(self, total: Report, source: Source, cohort: float) -> Report:
        """The sum of the reports as the strategy is to see it; ``cohort`` is the expected number of reports."""
        return total

    def after(self, total: Report, cohort: float) -> Params:
        """What the server remembers of the sum it is to see, and broadcasts with the next round; float64 leaves."""
        return {}


def private_norm(report: Report) -> float:
    """The norm of everything in a report that depends on the data, summed in float64."""
    leaves = (leaf for name, part in report.items() if name not in PUBLIC for leaf in part.values())
    return sum(float(leaf.double().square().sum()) for leaf in leaves) ** 0.5


def clip_report(report: Report, max_norm: float) -> Report:
    """Scales everything that depends on the data *jointly* to a norm of at most ``max_norm``.

    One factor for all trees: a strategy's extra statistics leak as much as its update does. The bound holds for the
    numbers as they are stored, not only up to rounding: sensitivities rest on it.
    """
    private = {name: part for name, part in report.items() if name not in PUBLIC}
    total = private_norm(private)
    if total <= max_norm:
        return report
    factor = max_norm / total * (1 - _SLACK)
    return report | {name: tree.scale(part, factor) for name, part in private.items()}
