"""What people see in the terminal: progress bars and tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fedfields.report.text import clean, duration, plural, size
from fedfields.report.words import attack_name
from fedfields.types import Advance

console = Console()
errors = Console(stderr=True)


def warn(line: str) -> None:
    """A line that the user should read, beside the results."""
    errors.print(f"[yellow]note:[/] {escape(line)}", soft_wrap=True)


@contextmanager
def progress(name: str, rounds: int) -> Iterator[tuple[Callable[[dict, int], None], Advance]]:
    """A bar over rounds, and over what comes before them; yields what is to be called with each round's record, and
    with what is done before."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(escape(name), total=rounds or None, figures="")

        def on_round(record: dict, total: int) -> None:
            figures = f"loss {_number(record.get('loss'), 4)}"
            if record["dropped"]:
                figures += f", dropped {len(record['dropped'])}"
            if "psnr_p" in record or record.get("views") or record.get("scores"):
                bar.console.print(f"[dim]{escape(name)} round {record['round']}: {_evaluated(record)}[/]")
            bar.update(task, description=escape(name), completed=record["round"], total=total, figures=figures)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{escape(name)}: {escape(what)}", completed=done, total=total)

        yield on_round, advance


@contextmanager
def serving(name: str) -> Iterator[tuple[Callable[[dict, int], None], Callable[[str], None]]]:
    """For a server: a line and a bar for each round, and lines in between."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(escape(name), total=None)

        def on_round(record: dict, total: int) -> None:
            bar.console.print(_foreign(_served(record, total)), soft_wrap=True, highlight=False)
            bar.update(task, completed=record["round"], total=total)

        yield on_round, lambda line: bar.console.print(_foreign(line), soft_wrap=True, highlight=False)


def _served(record: Mapping[str, Any], total: int) -> str:
    """A round as the server's terminal tells it."""
    came = len(record["cohort"]) - len(record["dropped"])
    parts = [
        f"round {record['round']} of {total}: {came} of {len(record['cohort'])} owners",
        f"{size(record['bytes_up'])} in, {size(record['bytes_down'])} out",
        duration(record["seconds"]),
    ]
    if "epsilon" in record:
        parts.append(f"epsilon {_number(record['epsilon'], 2)}")
    parts += [f"without {one['client']}: {one['reason']}" for one in record["dropped"]]
    return ", ".join(parts) + "".join(f"; tried again, for {why}" for why in record.get("abandoned", ()))


def show_served(summary: Mapping[str, Any]) -> None:
    """What a run between machines came to."""
    parts = [
        f"{plural(summary['rounds'], 'round')} in {duration(summary['seconds'])}",
        plural(summary["dropped"], "failure"),
        f"{size(summary['bytes_up'])} in, {size(summary['bytes_down'])} out",
    ]
    privacy = summary["privacy"]
    if privacy:
        parts.append(f"epsilon {_number(privacy['epsilon'], 2)} at delta {privacy['delta']:.2g}")
    console.print(escape(", ".join(parts)), soft_wrap=True, highlight=False)


def said(line: str) -> None:
    """A line for an owner's terminal."""
    errors.print(_foreign(line), soft_wrap=True, highlight=False)


def _foreign(line: str) -> str:
    """A line of which parts came over the network: nothing in it may move the cursor or clear the screen."""
    return escape(clean(line, 2000))


@contextmanager
def busy(line: str) -> Iterator[None]:
    """Says that something is under way; on a terminal it turns, shows the time, and goes when it is done."""
    if not errors.is_terminal:
        said(line)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        bar.add_task(_foreign(line), total=None)
        yield


def _evaluated(record: Mapping[str, Any]) -> str:
    psnr = record.get("psnr") or {}
    if record.get("views"):
        said = f"{_number(psnr['held_out']['0'])} dB on {len(record['views'])} test photographs"
        if content := record.get("content"):
            said += f"; people leak {_number(content['leak'], 2)} (worst {_number(content['leak_worst'], 2)})"
        return said
    if scores := record.get("scores"):
        name = next(iter(scores))
        return _scored(name, scores[name])
    parts = [
        f"{group.replace('_', ' ')} {_number(list(curve.values())[-1])} dB after {list(curve)[-1]} steps"
        for group, curve in psnr.items()
    ]
    leak, floor = record.get("leak") or {}, record.get("floor") or {}
    parts.append(f"PSNR_p {_number(record.get('psnr_p'))}")
    if leak:
        parts.append(f"worst quick attack {_number(leak.get('worst'))} (floor {_number(floor.get('constant'))})")
    return ", ".join(parts)


def _scored(name: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """A figure of samples before and after adaptation."""
    found = []
    for group, curve in groups.items():
        steps = list(curve)
        found.append(
            f"{group.replace('_', ' ')} clients' {name} {_number(curve[steps[0]], 3)}, after {steps[-1]} steps "
            f"{_number(curve[steps[-1]], 3)}"
        )
    return ", ".join(found)


@contextmanager
def steps_progress(name: str) -> Iterator[Advance]:
    """A bar over anything; yields ``advance(what, done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(escape(name), total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{escape(name)}: {escape(what)}", completed=done, total=total)

        yield advance


def show_summary(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """One row for each run: quality by step, what the quick attacks recover, and what it cost."""
    first = next(iter(summaries.values()))
    if first.get("views"):
        return _show_places(summaries)
    if first.get("scores"):
        return _show_samples(summaries)
    group = next((g for g in ("unseen", "held_out") if (first.get("psnr") or {}).get(g)), None)
    steps = _columns(first["psnr"][group]) if group else []
    table = Table(title="PSNR in dB after k steps, and what the server could recover", box=box.SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for step in steps:
        table.add_column(f"k={step}", justify="right", no_wrap=True)
    for name in ("PSNR_p", "attack", "floor", "MB up"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in summaries.items():
        curve = ((one.get("psnr") or {}).get(group) or {}) if group else {}
        leak, floor = one.get("leak") or {}, one.get("floor") or {}
        table.add_row(
            escape(name),
            *(_number(curve.get(step)) for step in steps),
            *(_number(value) for value in (one.get("psnr_p"), leak.get("worst"), floor.get("constant"))),
            _number((one.get("bytes_up") or 0) / 1e6),
        )
    console.print(table)
    whose = "clients never seen in training" if group == "unseen" else "held-out signals of the training clients"
    console.print(
        f"k: quality on {whose}, higher is better. PSNR_p: the upload rendered as it is; attack: the best of the quick "
        "attacks (fits that know the truth: upper bounds); floor: the best constant picture; lower is better, and at "
        "the floor nothing is recovered. With sec-agg all three are on the mean of a round's uploads, which is all "
        "that the server has. Stronger attacks: fedfields audit RUN.",
        style="dim",
    )


def _show_places(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """One row for each run on a place."""
    table = Table(title="How well test photographs are rendered", box=box.SIMPLE_HEAD)
    peopled = any(one.get("content") for one in summaries.values())
    more = ("leak", "worst") if peopled else ()
    for name in ("run", "PSNR", "SSIM", "photos", "owners", "seconds", "MB up", *more):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name == "run")
    for name, one in summaries.items():
        quality = [((one.get(figure) or {}).get("held_out") or {}).get("0") for figure in ("psnr", "ssim")]
        table.add_row(
            escape(name),
            _number(quality[0]),
            _number(quality[1], 3),
            str(len(one.get("views") or {})),
            str((one.get("clients") or {}).get("train")),
            _number(one.get("seconds"), 0),
            _number((one.get("bytes_up") or 0) / 1e6),
            *(_number((one.get("content") or {}).get(key), 2) for key in ("leak", "leak_worst") if peopled),
        )
    console.print(table)
    console.print("PSNR in dB and SSIM on photographs that nobody trained on: higher is better.", style="dim")
    if peopled:
        console.print(
            "leak: how much of the people before the place is in what the server can render, from 0 (none) to 1 (all); "
            "mean over owners, and the worst of them.",
            style="dim",
        )


def _show_samples(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """One row for each run on samples: what clients that never took part get, by adaptation step."""
    first = next(iter(summaries.values()))["scores"]
    name = next(iter(first))
    group = "unseen" if first[name].get("unseen") else next(iter(first[name]))
    steps = list(first[name][group])
    whose = "clients that never took part" if group == "unseen" else f"{group} clients"
    table = Table(title=f"{name.capitalize()} of {whose} after k steps of adaptation", box=box.SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for step in steps:
        table.add_column(f"k={step}", justify="right", no_wrap=True)
    for heading in ("rounds", "kept", "MB up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, one in summaries.items():
        curve = ((one.get("scores") or {}).get(name) or {}).get(group) or {}
        cost = [str(one.get("rounds")), str(one.get("best_round") or one.get("rounds"))]
        figures = (_number(curve.get(step), 3) for step in steps)
        table.add_row(escape(run), *figures, *cost, _number((one.get("bytes_up") or 0) / 1e6))
    console.print(table)
    better = "higher" if name == "accuracy" else "lower"
    console.print(f"{better} is better; kept: the round whose weights are the result.", style="dim")


def _columns(curve: Mapping[str, float]) -> list[str]:
    """Few enough steps for a terminal."""
    steps = list(curve)
    return [step for step in steps if step in ("1", "8", "32")] or steps[-1:]


def show_adaptation(result: Any) -> None:
    """The figure by step from the run's initialisation and from a random one."""
    what, digits = ("PSNR in dB", 1) if result.figure == "psnr" else (result.figure, 3)
    table = Table(title=escape(f"{result.name}: {what} by adaptation step"))
    table.add_column("step", justify="right")
    table.add_column("from the run", justify="right")
    table.add_column("from a random start", justify="right")
    for step, value in result.curve.items():
        table.add_row(step, _number(value, digits), _number(result.local.get(step), digits))
    console.print(table)
    for note in result.notes:
        warn(note)
    for file in result.files:
        console.print(str(file), soft_wrap=True, markup=False)


def trial_line(trial: Any) -> str:
    """A trial that is over."""
    value = "failed" if trial.value is None else _number(trial.value, 4)
    told = {"pruned": f" (pruned after {plural(trial.rounds, 'round')})", "failed": f" ({trial.reason})"}
    tried = ", ".join(f"{_setting(name)} {value}" for name, value in trial.values.items())
    return f"[dim]trial {trial.number}: {value}, {escape(tried + told.get(trial.state, ''))}[/]"


def show_search(trials: Sequence[Any], folder: Path) -> None:
    """The best trials of a search, and the settings as they stood."""
    ranked = sorted((one for one in trials if one.state == "complete"), key=lambda one: one.value)
    shown = ranked[:8] + [one for one in ranked[8:] if one.number == 0]
    table = Table(title="validation clients after adaptation, lower is better", box=box.SIMPLE_HEAD)
    for name in ("trial", "figure", "rounds", *map(_setting, trials[0].values)):
        table.add_column(name, justify="right", no_wrap=True)
    for one in shown:
        table.add_row(str(one.number), _number(one.value, 4), str(one.rounds), *one.values.values())
    console.print(table)
    ended = {state: sum(one.state == state for one in trials) for state in ("complete", "pruned", "failed")}
    console.print(", ".join(f"{count} {state}" for state, count in ended.items() if count), style="dim")
    if ranked:
        what = f"{folder / 'best.toml'}: trial {ranked[0].number}; fedfields run judges it by the test clients, once"
        console.print(what, soft_wrap=True, markup=False)
    else:
        warn("no trial was completed; search smaller rates")


def _setting(name: str) -> str:
    """The last two parts of a setting's name."""
    return ".".join(name.split(".")[-2:])


def show_audit(result: Mapping[str, Any]) -> None:
    """Every attack next to the floors."""
    summed = result.get("summed") or 1
    what = "one upload" if summed == 1 else f"the secure sum of {summed} uploads"
    console.print(
        _audit_table(result, f"What the attacks recover from {what} (mean PSNR in dB over the audited clients)")
    )
    worst = result.get("worst") or {}
    console.print(
        f"worst: {escape(attack_name(str(worst.get('attack'))))}; the best for each owner: "
        f"{_number(worst.get('psnr'))} dB, by real attacks {_number(result.get('worst_real'))} dB"
    )
    if people := result.get("people"):
        console.print(
            "people leak: how much of the people in front is shown, from 0 to 1, and more if it goes too far; PSNR "
            f"there: against the photographs where they stand; {_number(people['public']['floor'])} dB without them.",
            style="dim",
        )
    for note in result.get("notes") or []:
        console.print(escape(note), style="dim")
    if summed > 1 and not result.get("notes") and "newton_unknown" not in (result.get("attacks") or {}):
        console.print(
            f"the sum was only looked at; --summed {summed} also inverts it, which takes {summed} times as long"
        )
    if faces := result.get("faces"):
        found = ", ".join(f"{escape(name.replace('_', ' '))} {one['per_hundred']:.0f}" for name, one in faces.items())
        console.print(f"faces found in a hundred pictures: {found}")


def _audit_table(result: Mapping[str, Any], title: str) -> Table:
    """Floors and attacks, the strongest first; with what they show of people, where that is known."""
    people = result.get("people") or {}
    shown = {"public": people.get("public")} | (people.get("attacks") or {})

    def leak(name: str) -> list[str]:
        one = shown.get(name) or {}
        return [_number(one.get("leak"), 2), _number(one.get("psnr"))] if people else []

    table = Table(title=title)
    for name in ("attack", "PSNR", *(("people leak", "PSNR there") if people else ()), "kind"):
        table.add_column(name, justify="left" if name in ("attack", "kind") else "right")
    for name, value in (result.get("floor") or {}).items():
        table.add_row(f"floor: {escape(name.replace('_', ' '))}", _number(value), *leak(name), "no upload needed")
    attacks = sorted((result.get("attacks") or {}).items(), key=lambda item: -(item[1]["psnr"] or -math.inf))
    for name, attack in attacks:
        helped = "the truth" if attack.get("oracle") else "the pixel draws" if attack.get("helped") else ""
        kind = f"knows {helped}: an upper bound" if helped else "a real attack"
        table.add_row(escape(attack_name(name)), _number(attack["psnr"]), *leak(name), kind)
    return table


def show_placement(placement: Any) -> None:
    """Which photographs have a pose now, which do not, and why."""
    styles = {"placed": "green", "not placed": "yellow", "unreadable": "bold red"}
    table = Table("Photo", "Status", box=box.SIMPLE_HEAD)
    for name in ("Features", "Points seen"):
        table.add_column(name, justify="right")
    table.add_column("Why not, and what to do")
    for photo in placement.photos:
        counts = ("", "") if photo.status == "unreadable" else (f"{photo.features:,}", f"{photo.points:,}")
        cells = (photo.name, photo.status, *counts, photo.reason)
        table.add_row(*(Text(cell, style=styles[photo.status], overflow="fold") for cell in cells))
    console.print(table)
    placed = sum(photo.status == "placed" for photo in placement.photos)
    console.print(
        f"{placed} of {len(placement.photos)} photos are placed; {placement.points:,} points, "
        f"on average {placement.error:.2f} pixels from where the photos show them"
    )
    console.print(f"capture: {placement.folder}", soft_wrap=True, markup=False)
    console.print(
        f"go on with: fedfields run nerf --data {shlex.quote(str(placement.folder))}", soft_wrap=True, markup=False
    )


def show_presets() -> None:
    """Presets and all parts that have a name."""
    from fedfields.config import AXES, PRESETS

    table = Table(title="presets: fedfields run PRESET")
    table.add_column("preset")
    table.add_column("what it is")
    for name, (_, about) in PRESETS.items():
        table.add_row(name, about)
    console.print(table)
    parts = Table(title="parts: fedfields run PRESET axis:name")
    parts.add_column("axis")
    parts.add_column("names")
    for axis, members in AXES.items():
        parts.add_row(axis, ", ".join(members))
    console.print(parts)


def _number(value: Any, digits: int = 1) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"
