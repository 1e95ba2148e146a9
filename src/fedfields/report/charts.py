"""Which curves the page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedfields.report.figures import DECIBELS, FLOOR, Line, Points, Spot, figures_of, over_rounds, over_steps, plane
from fedfields.report.parts import chart, grid, section
from fedfields.report.runs import Run
from fedfields.report.text import clean, esc, plural
from fedfields.report.words import GROUPS, Steps, attacked

Curves = Mapping[str, Callable[[Run], Points]]

QUALITY: Curves = {name: lambda run, group=group: list(run.by_steps(group).items()) for group, name in GROUPS.items()}
LEAKAGE: Curves = {
    "quick attacks": lambda run: run.probes,
    "audit": lambda run: run.curve("worst", audited=True),
    "PSNR_p": lambda run: run.curve("psnr_p"),
}
TRAINING = {"loss": "Loss", "update_norm": "Norm of the update", "epsilon": "Epsilon", "clip": "Adaptive clip"}
SHOWN_ELSEWHERE = {"round", "views", "bytes_up", "bytes_down", "seconds", "psnr_p", "ssim_p"}


def places(runs: Sequence[Run]) -> str:
    """How quality on test photographs of a place grew, by round and by seconds of training."""
    grown = [run for run in runs if len(run.same_views) > 1]
    if not grown:
        return ""
    counts = sorted({run.views_each_time for run in grown})
    which = plural(counts[0], "photograph") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} photographs"
    caption = f"Mean over the {which} rendered in every evaluation, so that the points can be compared."
    charts = []
    for title, below, x in (("PSNR over rounds", "round", 0), ("PSNR over training time", "seconds", 1)):
        lines = [Line([(point[x], point[2]) for point in run.same_views], run.look) for run in grown]
        charts.append(chart(title, over_rounds(title, lines, DECIBELS, below=below), caption))
    charts += _people(grown)
    return section("growth", "How well the place is rendered", "", grid(charts, grown))


def _people(runs: Sequence[Run]) -> list[str]:
    """How much of the people before the place the server could render, over rounds."""
    title, curves = "People in what the server can render", {"mean": "leak", "worst owner": "leak_worst"}
    panels = _panels(
        title, {name: lambda run, key=key: run.curve("content", key) for name, key in curves.items()}, runs
    )
    caption = "The leak fraction: 0 for none of them, 1 for all."
    return [chart(title, over_rounds(title, lines, ""), caption) for title, lines in panels.items()]


def tradeoff(runs: Sequence[Run], steps: Steps) -> str:
    """Quality against leakage, and quality over adaptation steps."""
    runs = [run for run in runs if not run.place]
    against = _plane(runs, steps)
    panels = _panels("Quality over adaptation", QUALITY, runs).items()
    curves = [chart(title, over_steps(title, lines, "PSNR, dB")) for title, lines in panels]
    intro = "Higher is sharper for the owner; further left reveals less to the server." if against else ""
    return section("tradeoff", "What owners get, what uploads reveal", intro, grid([against, *curves], runs))


def rounds(runs: Sequence[Run]) -> str:
    """What attacks recover, and every plain figure of the training, round by round."""
    intro = f"Attacks are on {attacked(runs)}: higher reveals more. PSNR_p is one of them, and a naive one."
    leaks, trained = _leakage(runs), [run for run in runs if run.rounds]
    return section("rounds", "Round by round", intro if leaks else "", grid(leaks + _training(runs), trained))


def _panels(title: str, curves: Curves, runs: Sequence[Run]) -> dict[str, list[Line]]:
    """All curves of one run in one panel, by name; each curve of several runs in a panel of its own."""
    if len(runs) == 1:
        found = [(name, curve(runs[0])) for name, curve in curves.items()]
        panels = {title: [Line(points, look, name) for look, (name, points) in enumerate(found, 1) if points]}
    else:
        panels = {
            f"{title}: {name}": [Line(points, run.look) for run in runs if (points := curve(run))]
            for name, curve in curves.items()
        }
    return {title: lines for title, lines in panels.items() if lines}


def _plane(runs: Sequence[Run], steps: Steps) -> str:
    spots = [spot for run in runs if (spot := _spot(run, steps, len(runs) > 1))]
    if steps[0] is None or not spots:
        return ""
    floors = [run.ground[1] for run in runs if run.worst and run.ground]
    plain = next((run.quality(steps[0]) for run in runs if run.baseline and not run.worst), None)
    caption = f"Filled: after {plural(steps[0], 'step')}."
    caption += f" Hollow: after {plural(steps[1], 'step')}." if steps[1] else ""
    caption += " Thin line to the right: the round that revealed most." if any(spot.peak for spot in spots) else ""
    caption += "" if plain is None else " Dotted: random initialisation."
    title = "Quality against leakage"
    return chart(title, plane(title, spots, floors, plain), caption)


def _spot(run: Run, steps: Steps, several: bool) -> Spot | None:
    """Filled after few steps, hollow after more."""
    heights = [(height, step == steps[1]) for step in steps if (height := run.quality(step)) is not None]
    if not run.worst or not heights:
        return None
    return Spot(run.worst[1], heights, run.look, clean(run.label, 22) if several else "", run.peak and run.peak[1])


def _leakage(runs: Sequence[Run]) -> list[str]:
    """The attacks over rounds; the floor as a curve for one run, and as a band for several."""
    sources = {"floor": False, "audit's floor": True}
    floors = {
        name: [Line(points, FLOOR, name) for run in runs if (points := run.curve("floor", "constant", audited))]
        for name, audited in sources.items()
    }
    charts = []
    for title, lines in _panels(f"What {attacked(runs)} reveals", LEAKAGE, runs).items():
        grey = floors["audit's floor" if title.endswith("audit") else "floor"]
        if len(runs) == 1:
            grey = [line for each in floors.values() for line in each]
            svg = over_rounds(title, lines + grey, DECIBELS)
        else:
            svg = over_rounds(title, lines, DECIBELS, figures_of(grey))
        charts.append(chart(title, svg, "Grey: the best constant image, which needs no upload." if grey else ""))
    return charts


def _training(runs: Sequence[Run]) -> list[str]:
    """Every plain figure that changes over the rounds: the loss, the update's norm, then what a method adds."""
    added = {key for run in runs for entry in run.rounds for key in entry} - SHOWN_ELSEWHERE - TRAINING.keys()
    charts = []
    for key in [*TRAINING, *sorted(added)]:
        lines = [Line(points, run.look) for run in runs if len(points := run.curve(key)) > 1]
        if len({value for line in lines for _, value in line.points}) > 1:
            title = esc(TRAINING.get(key, key.replace("_", " ").capitalize()), 40)
            charts.append(chart(title, over_rounds(title, lines, "")))
    return charts[:8]
