"""Runs on samples: what clients that never took part get from a few steps of adaptation."""

from __future__ import annotations

from collections.abc import Sequence

from fedfields.report.figures import Line, over_rounds, over_steps
from fedfields.report.parts import chart, grid, named, section, table
from fedfields.report.runs import Run, number
from fedfields.report.text import duration, plural, size

WHOSE = {"unseen": "clients that never took part", "validation": "validation clients"}
"""Whose rows judge."""


def samples(runs: Sequence[Run]) -> str:
    """Curves of all runs on samples, and a table of several."""
    runs = [run for run in runs if run.scored]
    charts = []
    for name in dict.fromkeys(run.scored for run in runs):
        those = [run for run in runs if run.scored == name]
        for group in WHOSE:
            lines = [Line(list(curve.items()), run.look) for run in those if (curve := run.scores(group))]
            if lines:
                title = f"{name.capitalize()} by adaptation step: {WHOSE[group]}"
                charts.append(chart(title, over_steps(title, lines, name), ""))
        lines = [Line(curve, run.look) for run in those if len(curve := run.score_curve("validation")) > 1]
        if lines:
            title = f"{name.capitalize()} of validation clients after adaptation, over rounds"
            caption = "With --patience, the loss of these clients decides when training stops."
            charts.append(chart(title, over_rounds(title, lines, name), caption))
    intro = "Each client adapts the shared model to its own support and is judged on its query."
    body = grid(charts, runs) + (_side_by_side(runs) if len(runs) > 1 else "") if runs else ""
    return section("samples", "What clients get", intro, body)


def score(value: float | None) -> str:
    """A share or an error."""
    return "–" if value is None else f"{value:.3g}" if value > 1 else f"{value:.3f}"


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """The key figures of one run."""
    curve = run.scores(run.scored_on)
    if not curve:
        return []
    steps = list(curve)
    some = "".join(f"<br>{score(curve[step])} after {plural(step, 'step')}" for step in steps[:-1])
    title = f"{run.scored.capitalize()} after {plural(steps[-1], 'step')}"
    found = [(title, score(curve[steps[-1]]), WHOSE[run.scored_on] + some)]
    if (best := number(run.summary.get("best_round"))) is not None:
        found.append(("Kept round", f"{best:.0f}", f"best for validation clients, of {run.done}"))
    return found


def gain(run: Run) -> str:
    """What a run comes to, as a sentence without its full stop."""
    curve = run.scores(run.scored_on)
    if not curve:
        return "No client has been judged yet"
    first, last = next(iter(curve)), list(curve)[-1]
    what = f"{WHOSE[run.scored_on]} have a mean {run.scored} of {score(curve[last])} after {plural(last, 'step')}"
    return what[0].upper() + what[1:] + f" on their own rows, {score(curve[first])} before"


def best(runs: Sequence[Run]) -> str:
    """Which of several runs on samples is ahead, where they were judged alike."""
    last = [(list(curve.values())[-1], list(curve)[-1], run) for run in runs if (curve := run.scores(run.scored_on))]
    if len(last) < 2 or len({(step, run.scored, run.scored_on) for _, step, run in last}) > 1:
        return ""
    choose = max if last[0][2].scored == "accuracy" else min
    value, step, run = choose(last, key=lambda one: one[0])
    kind = "highest" if choose is max else "lowest"
    return f"after {plural(step, 'step')} {run.label} has the {kind} {run.scored} ({score(value)})"


def _side_by_side(runs: Sequence[Run]) -> str:
    steps = sorted({step for run in runs for step in run.scores(run.scored_on)})
    head = ["Run", *(f"#{plural(step, 'step')}" for step in steps), "Figure", "#Rounds", "#Uploaded", "#Time"]
    rows = []
    for run in runs:
        curve = run.scores(run.scored_on)
        cells = [score(curve.get(step)) for step in steps]
        what = f"{run.scored}, {WHOSE[run.scored_on]}"
        rows.append(
            [named(run), *cells, what, f"{run.done:,}", size(run.total("bytes_up")), duration(run.total("seconds"))]
        )
    return table(head, rows)
