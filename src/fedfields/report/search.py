"""The page of a search: what was tried, what it came to, and what to run now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, log
from pathlib import Path

from fedfields.report import samples, tables
from fedfields.report.figures import Dot, Line, over_rounds, scatter, swatch
from fedfields.report.page import SAMPLES, document, glossary
from fedfields.report.parts import chart, section, table
from fedfields.report.runs import Run, mapping, number, read_run, read_runs
from fedfields.report.text import clean, duration, esc, plural, prose
from fedfields.runtime.trials import RECORD, Trial, best_of, read_trial
from fedfields.store import MAX_LINES, read_file

LOOKS = {"complete": 1, "pruned": 0, "best": 6}
"""The marks of trials."""

SHOWN = 30
"""Rows of the table before the others are folded away."""

TERMS = {
    "Validation clients": "They never train. Their figure after the last step of adaptation is what the search makes"
    " small, at the best round of each trial, so the best one's is a little flattering.",
    "Test clients": "Left out of the data altogether: no trial and no figure on this page knows them. A run of"
    " best.toml judges by them, once.",
    "Pruned": "Stopped, because its best figure so far was worse than the median of completed trials at that round.",
    "Failed": "Its training diverged, or left no figure that is a number.",
    "How sure": "All trials share one seed. Look for a valley in the charts, not for the one best dot: differences"
    " between neighbours may be chance.",
}


@dataclass(frozen=True, eq=False)
class Found:
    """A search on disk."""

    base: Run
    trials: Sequence[Trial]
    folder: Path

    @cached_property
    def best(self) -> Trial | None:
        """The best trial."""
        return best_of(self.trials)

    @cached_property
    def run(self) -> Run | None:
        """The best trial's run, if it is there."""
        where = self.folder / "trials" / f"{self.best.number:04d}" if self.best else None
        return read_runs([where])[0] if where is not None and (where / "experiment.json").is_file() else None

    @property
    def figure(self) -> str:
        """What is made small."""
        return {"accuracy": "loss", "error": "error"}.get(self.run.scored if self.run else "", "figure")

    @cached_property
    def space(self) -> dict[str, str]:
        """Where the values of each setting are looked for, as text."""
        found = mapping(mapping(self.base.manifest.get("search")).get("space"))
        return {str(name): str(text) for name, text in found.items()}

    def ends(self, name: str) -> tuple[float, float] | None:
        """The ends of a setting's range; None of a list."""
        low, dots, high = self.space[name].partition("..")
        try:
            return (float(low), float(high)) if dots else None
        except ValueError:
            return None


def is_search(folder: Path) -> bool:
    """Whether a folder is that of a search, with one trial or more."""
    return (folder / RECORD).is_file()


def search_page(folder: Path) -> str:
    """The whole page.

    Raises:
        UserError: a file is damaged.
    """
    found = Found(read_run(folder), _trials(folder / RECORD), folder)
    parts = [
        _head(found),
        _tiles(found),
        _notices(found),
        _course(found),
        _settings(found),
        samples.samples([found.run]) if found.run else "",
        _table(found),
        glossary(TERMS | {"Accuracy": SAMPLES["Accuracy"], "Error": SAMPLES["Error"]}),
        tables.settings([found.base]),
    ]
    return document(esc(found.base.label), parts)


def _trials(path: Path) -> list[Trial]:
    """The trials that can be read."""
    lines = read_file(path, MAX_LINES).decode("utf-8", "replace").split("\n")
    return [trial for line in lines if (trial := read_trial(line)) is not None]


def _head(found: Found) -> str:
    facts = [plural(len(found.trials), "trial"), f"preset {esc(found.base.preset)}"]
    facts += [
        f"seed {esc(found.base.manifest.get('seed'))}",
        f"fedfields {esc(found.base.manifest.get('version'), 30)}",
    ]
    return (
        f'<header>\n<p class="brow">fedfields search</p>\n<h1><bdi>{esc(found.base.label)}</bdi></h1>\n'
        f'<p class="facts">{" · ".join(facts)}</p>\n<p class="verdict">{prose(_verdict(found))}</p>\n'
        '<p class="facts"><a href="#how">How to read these numbers</a></p>\n</header>'
    )


def _verdict(found: Found) -> str:
    best, first = found.best, found.trials[0] if found.trials else None
    if best is None:
        return "No trial has been completed yet."
    text = f"Trial {best.number} leaves validation clients with the smallest {found.figure}, {_score(best.value)}"
    if first is not None and first is not best:
        text += f"; the first trial came to {_score(first.value)}" if first.value is not None else "; the first failed"
    return f"{text}. Test clients were left out: fedfields run best.toml judges it by them, once."


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def short(name: str) -> str:
    """The last two parts of a setting's name."""
    return ".".join(name.split(".")[-2:])


def _tiles(found: Found) -> str:
    if found.best is None:
        return ""
    states = [trial.state for trial in found.trials]
    told = [
        (
            f"Best {found.figure}",
            _score(found.best.value),
            f"of validation clients, in {plural(found.best.rounds, 'round')}",
        )
    ]
    for name, value in found.best.values.items():
        told.append((esc(short(name)), esc(value, 20), f"of {esc(_where(found.space.get(name, '')))}"))
    ended = ", ".join(f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states)
    told.append(("Completed", f"{states.count('complete')}", ended or "all of them"))
    told.append(("Time", duration(sum(trial.seconds for trial in found.trials)), "all trials"))
    cells = "".join(f"<div><dt>{name}</dt><dd><strong>{value}</strong><small>{under}</small></dd></div>"
                    for name, value, under in told)  # fmt: skip
    return f'<dl class="tiles">{cells}</dl>'


def _where(text: str) -> str:
    return text.replace("..", " to ").replace(",", ", ")


def _notices(found: Found) -> str:
    """Where to search on, and why trials failed."""
    lines = [_edge(found, name) for name in found.space]
    reasons: dict[str, list[str]] = {}
    for trial in found.trials:
        if trial.state == "failed":
            reasons.setdefault(clean(trial.reason, 200), []).append(str(trial.number))
    lines += [f"Failed, trial {', '.join(numbers[:12])}: {why}." for why, numbers in list(reasons.items())[:10]]
    listed = "".join(f"<li>{prose(line)}</li>" for line in lines if line)
    return f'<aside class="notices"><h2>Worth knowing</h2><ul>{listed}</ul></aside>' if listed else ""


def _edge(found: Found, name: str) -> str:
    """Whether the best value lies at an end of its range, so that better ones may lie beyond."""
    ends = found.ends(name)
    value = _as_number(found.best.values.get(name)) if found.best else None
    if ends is None or value is None or not 0 < ends[0] <= value <= ends[1] or len(found.trials) < 5:
        return ""
    place = log(value / ends[0]) / (log(ends[1] / ends[0]) or 1)
    if 0.05 < place < 0.95:
        return ""
    text = f"{short(name)} of the best trial, {value:g}, lies at the end of what was searched"
    return f"{text} ({_where(found.space[name])}): a wider range may hold better ones."


def _as_number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return number(value)


# Charts.


def _dot(found: Found, trial: Trial, x: float) -> Dot:
    assert trial.value is not None
    look = LOOKS["best" if trial is found.best else trial.state]
    return Dot(x, trial.value, look, trial.state == "pruned")


def _legend(found: Found) -> str:
    there = {trial.state for trial in found.trials if trial.value is not None}
    names = [name for name in LOOKS if name in there or (name == "best" and found.best)]
    marks = "".join(f'<span class="run">{swatch(LOOKS[name])}{name}</span>' for name in names)
    return f'<p class="legend">{marks}</p>'


def _judged(found: Found) -> list[Trial]:
    return [trial for trial in found.trials if trial.value is not None and number(trial.value) is not None]


def _course(found: Found) -> str:
    """The figure by trial, and by round in each trial."""
    judged = _judged(found)
    if not judged:
        return ""
    least, path = judged[0].value, []
    for trial in judged:
        if trial.state == "complete":
            least = min(least, trial.value)  # pyright: ignore[reportArgumentType, reportCallIssue]
            path.append((trial.number, least))
    title = f"Best {found.figure} of each trial"
    dots = [_dot(found, trial, trial.number) for trial in judged]
    charts = [chart(title, scatter(title, dots, found.figure, "trial", path=path), "Line: the best so far.")]
    lines = [
        Line([(at, value if isfinite(value) else None) for at, value in sorted(trial.curve.items())], look)
        for trial in sorted(judged, key=lambda one: one is found.best)
        for look in [LOOKS["best" if trial is found.best else trial.state]]
        if len(trial.curve) > 1
    ]
    if lines:
        title = f"{found.figure.capitalize()} of validation clients in each trial"
        charts.append(chart(title, over_rounds(title, lines, found.figure), ""))
    body = f'{_legend(found)}<div class="charts">{"".join(charts)}</div>'
    return section("course", "How the search went", "Lower is better.", body)


def _settings(found: Found) -> str:
    """The figure against each setting."""
    judged, charts = _judged(found), []
    for name in found.space:
        title = f"{found.figure.capitalize()} by {short(name)}"
        ends = found.ends(name)
        if ends is None:
            choices = found.space[name].split(",")
            dots = [
                _dot(found, one, choices.index(one.values[name])) for one in judged if one.values.get(name) in choices
            ]
            svg = scatter(title, dots, found.figure, esc(short(name)), choices=choices) if dots else ""
        else:
            placed = [(one, at) for one in judged if (at := _as_number(one.values.get(name))) is not None]
            dots = [_dot(found, one, at) for one, at in placed if at > 0 or ends[0] <= 0]
            wide = ends[0] > 0 and ends[1] > 10 * ends[0]
            svg = scatter(title, dots, found.figure, esc(short(name)), wide=wide) if dots else ""
        charts += [chart(esc(title), svg)] if svg else []
    body = f'{_legend(found)}<div class="charts">{"".join(charts)}</div>' if charts else ""
    return section("settings-tried", "What each setting does", "Each mark is a trial; lower is better.", body)


# The table.


def _table(found: Found) -> str:
    order = {"complete": 0, "pruned": 1, "failed": 2}
    ranked = sorted(found.trials, key=lambda one: (order[one.state], one.value if one.value is not None else 0.0))
    head = ["Trial", f"#{found.figure.capitalize()}", *(f"#{esc(short(name))}" for name in found.space)]
    head += ["#Rounds", "#Time", "What became of it"]
    rows = [_row(found, trial) for trial in ranked]
    body = table(head, rows[:SHOWN]) if rows else ""
    if rows[SHOWN:]:
        more = plural(len(rows) - SHOWN, "more trial")
        body += f"<details><summary>{more}</summary>{table(head, rows[SHOWN:])}</details>"
    return section("trials", "Trials", "The best first; then those that were pruned, and those that failed.", body)


def _row(found: Found, trial: Trial) -> list[str]:
    values: Mapping[str, str] = trial.values
    tried = [esc(values.get(name, "–"), 20) for name in found.space]
    became = "best" if trial is found.best else trial.state
    why = f"{became}: {esc(trial.reason, 120)}" if trial.state == "failed" else became
    value = f"<strong>{_score(trial.value)}</strong>" if trial is found.best else _score(trial.value)
    return [str(trial.number), value, *tried, f"{trial.rounds:,}", duration(trial.seconds), why]
