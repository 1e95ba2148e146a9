"""The record of a search: ``trials.jsonl``, a line for each trial that is over."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from fedfields.store import parse_json

RECORD = "trials.jsonl"
"""In the folder of a search."""


class Trial(NamedTuple):
    """A trial that is over, as a line of the record.

    Attributes:
        number: from 0 on.
        state: "complete"; "pruned", it was behind; "failed", its training diverged.
        value: of its best evaluation, the smaller the better; None if it failed.
        values: the settings that it tried, by whole names.
        curve: what validation clients said, by round: infinite where it was no number.
        rounds: that were run.
        seconds: that they took.
        reason: why it was not completed.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    values: dict[str, str]
    curve: dict[int, float]
    rounds: int
    seconds: float
    reason: str = ""


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The completed trial with the smallest value, the first of equal ones; None if none was completed."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=lambda trial: math.inf if trial.value is None else trial.value, default=None)


def line_of(trial: Trial) -> str:
    """A trial as a line; infinities are null."""
    curve = {str(number): value if math.isfinite(value) else None for number, value in trial.curve.items()}
    return json.dumps(trial._asdict() | {"curve": curve})


def read_trial(text: str) -> Trial | None:
    """A line of the record; None if it is not that."""
    try:
        found = parse_json(text)
        curve = {int(number): math.inf if value is None else float(value) for number, value in found["curve"].items()}
        trial = Trial(
            int(found["number"]),
            found["state"],
            None if found["value"] is None else float(found["value"]),
            {str(name): str(value) for name, value in found["values"].items()},
            curve,
            int(found["rounds"]),
            float(found["seconds"]),
            str(found["reason"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    finite = trial.value is None or math.isfinite(trial.value)
    judged = trial.state in ("pruned", "failed") or (trial.state == "complete" and trial.value is not None)
    return trial if finite and judged else None
