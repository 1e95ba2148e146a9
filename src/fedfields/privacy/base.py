"""The contract of a transform, and the joint clip of a whole report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedfields import tree
from fedfields.types import Client, Report

if TYPE_CHECKING:
    from torch import Generator

PUBLIC = frozenset({"stats"})
"""Trees of a report that do not depend on the client's data when client weights are uniform."""


class Transform:
    """Something that protects a client. The identity by default; subclasses are frozen dataclasses."""

    uniform_weights: bool = False
    """Whether it protects only if every client has the same weight."""

    def prepare(self, client: Client, generator: Generator) -> Client:
        """What the client trains on instead of its own tasks; called once, on the owner's machine."""
        return client

    def client(self, report: Report, generator: Generator) -> Report:
        """The report as it leaves the client."""
        return report

    def server(self, total: Report) -> Report:
        """The sum of the reports as the strategy is to see it."""
        return total


def clip_report(report: Report, max_norm: float) -> Report:
    """Scales everything that depends on the data *jointly* to a norm of at most ``max_norm``.

    One factor for all trees: a strategy's extra statistics leak as much as its update does.
    """
    private = {name: part for name, part in report.items() if name not in PUBLIC}
    total = sum(float(tree.sqnorm(part)) for part in private.values()) ** 0.5
    factor = min(1.0, max_norm / (total + 1e-12))
    return report | {name: tree.scale(part, factor) for name, part in private.items()}
