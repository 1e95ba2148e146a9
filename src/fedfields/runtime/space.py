"""Which settings a search tries: ``objective.inner.lr=0.01..1`` or ``objective.inner.steps=1,3,5``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.flags import parse, setting, whole_name

RATE, STEPS = 10.0, 3.0
"""Factors by which rates and numbers of steps are searched around those of the experiment."""


@dataclass(frozen=True)
class Searched:
    """A setting and where its values are looked for."""

    name: str
    """Of the setting, in whole."""

    low: float = 0.0
    high: float = 0.0
    """The ends of a range; values are evenly spread over their logarithms where it is above 0."""

    whole: bool = False
    """The range is of whole numbers."""

    choices: tuple[str, ...] = ()
    """Instead of a range: all values."""

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends of the range, or all choices, as texts."""
        return self.choices or (self.spelled(self.low), self.spelled(self.high))

    @property
    def text(self) -> str:
        """As it is written on the command line, without the name."""
        return ("," if self.choices else "..").join(self.ends)

    @property
    def logarithmic(self) -> bool:
        """Whether values are evenly spread over their logarithms."""
        return not self.choices and self.low > 0

    def spelled(self, value: float | int | str) -> str:
        """A value that was proposed, as the setting's text: four digits are enough, and it stays in the range."""
        if self.choices:
            return str(value)
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{float(value):.4g}"), self.low), self.high))

    def holds(self, text: str) -> bool:
        """Whether the text is a value of this search."""
        if self.choices:
            return text in self.choices
        try:
            return self.low <= float(text) <= self.high
        except ValueError:
            return False


def default_space(experiment: Experiment) -> list[str]:
    """Inner rate, number of inner steps and outer rate, around those of the experiment.

    The outer rate is the server's where a visit is one step of size 1, so that gradients travel (FedMeta). An
    objective without an inner loop has the rate of adaptation in place of the inner one.
    """
    try:
        inner = whole_name(experiment, "inner.lr")
        steps, _ = setting(experiment, whole_name(experiment, "inner.steps"))
        found = [_around(experiment, inner), f"inner.steps={max(1, round(steps / STEPS))}..{max(1, steps * STEPS):.0f}"]
    except UserError:
        found = [_around(experiment, "adaptation.lr")]
    gradients = experiment.local.steps == 1 and experiment.local.lr == 1 and hasattr(experiment.strategy, "lr")
    return [*found, _around(experiment, "strategy.lr" if gradients else "local.lr")]


def _around(experiment: Experiment, name: str) -> str:
    value, _ = setting(experiment, name)
    return f"{name}={value / RATE:.4g}..{value * RATE:.4g}"


def read_space(specs: Iterable[str], experiment: Experiment) -> tuple[Searched, ...]:
    """What the texts ask for; each may hold several, with blanks between them.

    Raises:
        UserError: there is no such setting, it is no range or list, or the experiment cannot take one of its values.
    """
    space: dict[str, Searched] = {}
    for spec in " ".join(specs).split():
        name, equals, text = spec.partition("=")
        if not (name and equals and text):
            raise UserError(f"--search {spec} is not NAME=LOW..HIGH or NAME=VALUE,VALUE")
        one = _read(whole_name(experiment, name), text, experiment)
        if one.name in space:
            raise UserError(f"--search has {one.name} twice")
        for value in one.ends:
            applied(experiment, {one.name: value})
        space[one.name] = one
    if not space:
        raise UserError("--search names no setting; leave it out for the usual ones")
    return tuple(space.values())


def _read(name: str, text: str, experiment: Experiment) -> Searched:
    low, dots, high = text.partition("..")
    if not dots:
        choices = tuple(dict.fromkeys(part for part in text.split(",") if part))
        return Searched(name, choices=choices)
    _, hint = setting(experiment, name)
    whole = int in (hint, *get_args(hint))
    try:
        ends = [int(end) if whole else float(end) for end in (low, high)]
    except ValueError as error:
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"--search {name}={text}: a range of it has two {kind} with .. between them") from error
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
        raise UserError(f"--search {name}={text}: the first end must be below the second, and both finite")
    return Searched(name, ends[0], ends[1], whole)


def applied(experiment: Experiment, values: Mapping[str, str]) -> Experiment:
    """The experiment with these settings, by whole names.

    Raises:
        UserError: one of them does not fit.
    """
    flags: dict[str, str | None] = {f"--{name}": value for name, value in values.items()}
    return parse(type(experiment), experiment, flags, "fedfields tune", "")


def with_following(experiment: Experiment, values: Mapping[str, str]) -> dict[str, str]:
    """The values, and the rate of adaptation where it has been the inner rate and is not searched by itself."""
    inner = next((name for name in values if name.endswith("inner.lr")), "")
    if inner and "adaptation.lr" not in values and setting(experiment, inner)[0] == experiment.adaptation.lr:
        return {**values, "adaptation.lr": values[inner]}
    return dict(values)
