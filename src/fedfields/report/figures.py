"""Charts as inline SVG that follow the page: colours are CSS variables, text is text, the same bytes every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fedfields.report.text import esc
from fedfields.store import write_text

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 290, 44, 28, 246
"""The drawing, its left edge and the two ends of the vertical axis; the page stretches it to its column."""
DECIBELS = "dB"
"""The unit whose charts keep a span of at least 5, so that tenths never look like a gulf."""
FLOOR = -1
"""The look of what needs no upload."""

PALETTE = {"card": "#fff", "ink-2": "#444", "grid": "#e6e6e6", "rule": "#888", "floor": "#888"}
INKS = ("#555", "#1b6ca8", "#c2491d", "#3b8132", "#8e44ad", "#b8860b", "#008080")
"""Colours of a chart outside a page: of the drawing, and of the lines."""

Points = Sequence[tuple[float, float | None]]

_MARKS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4L4 3.2H-4z",
    "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
    "M0 4L4 -3.2H-4z",
    "M-1.5 -4h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "M0 -4.2L4 -1.3L2.5 3.4H-2.5L-4 -1.3z",
)
_DASHES = ("0", "7 3", "2 2", "9 3 2 3", "5 2")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Line(NamedTuple):
    """One curve; None is a gap, ``label`` is written at its end."""

    points: Points
    look: int
    label: str = ""


class Spot(NamedTuple):
    """A run in the trade-off plane: what leaks, and quality, each with whether its mark is hollow."""

    leak: float
    heights: Sequence[tuple[float, bool]]
    look: int
    label: str
    peak: float | None = None


class Dot(NamedTuple):
    """A point of a plane, filled or hollow."""

    x: float
    y: float
    look: int
    hollow: bool = False


class Scale(NamedTuple):
    """Values to places between ``start`` and ``end``; ``low`` and ``high`` are already bent."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        return self.start + (self.bend(value) - self.low) / (self.high - self.low) * (self.end - self.start)


class Label(NamedTuple):
    """Text wanted beside a point."""

    text: str
    x: float
    y: float
    look: int


def swatch(look: int) -> str:
    """A run's mark, for legends and tables."""
    drawing = _stroke("M-16 0H16", look) + _mark(0, 0, look)
    return f'<svg class="swatch" viewBox="-16 -6 32 12" width="32" height="12" aria-hidden="true">{drawing}</svg>'


def over_rounds(alt: str, lines: Sequence[Line], unit: str, floors: Sequence[float] = (), below: str = "round") -> str:
    """Curves over rounds, or what ``below`` says; ``floors`` are a shaded span. Spans of decades: logarithmic axis."""
    values = [*figures_of(lines), *floors]
    rounds = [step for line in lines for step, _ in line.points]
    x = _linear(rounds, LEFT, _right(lines), least=0.6, whole=below == "round")
    y = _upright(values, unit)
    band = _box(x.start, y(max(floors)), x.end, y(min(floors))) if floors else ""
    return _chart(alt, x, y, below, unit, band + _curves(lines, x, y))


def scatter(
    alt: str,
    dots: Sequence[Dot],
    unit: str,
    below: str,
    *,
    choices: Sequence[str] = (),
    wide: bool = False,
    path: Points = (),
) -> str:
    """Dots over numbers, on a logarithmic axis if they are ``wide`` apart, or over the positions of ``choices``.

    ``path`` is a line through the plane.
    """
    across, right = [dot.x for dot in dots], WIDTH - 12
    if choices:
        x = Scale(-0.5, len(choices) - 0.5, LEFT, right, [(i, esc(name, 12)) for i, name in enumerate(choices)])
    else:
        x = _decades(across, LEFT, right) if wide else _linear(across, LEFT, right, least=0.6)
    y = _upright([dot.y for dot in dots], unit, span=10)
    placed = [None if value is None else (x(at), y(value)) for at, value in path]
    drawing = _stroke(_path(placed), 0, plain=True) if placed else ""
    marks = (_mark(x(dot.x), y(dot.y), dot.look, dot.hollow) for dot in dots)
    return _chart(alt, x, y, below, unit, drawing + "".join(marks))


def over_steps(alt: str, lines: Sequence[Line], unit: str) -> str:
    """Curves over adaptation steps on a log2 axis, with a place for 0 steps at its left."""
    steps = sorted({step for line in lines for step, _ in line.points})
    zero = math.log2(next((step for step in steps if step), 1)) - 1

    def bend(step: float) -> float:
        return math.log2(step) if step else zero

    low, high = bend(steps[0]) - 0.25, bend(steps[-1]) + 0.25
    named = [step for step, after in pairwise([*steps, math.inf]) if bend(after) - bend(step) > (high - low) / 16]
    x = Scale(low, high, LEFT, _right(lines), [(step, str(step)) for step in named], bend)
    y = _linear(figures_of(lines), BOTTOM, TOP)
    return _chart(alt, x, y, "adaptation steps, log scale", unit, _curves(lines, x, y))


def plane(alt: str, spots: Sequence[Spot], floors: Sequence[float], baseline: float | None) -> str:
    """Quality against leakage: the higher and the further left, the better."""
    heights = [height for spot in spots for height, _ in spot.heights] + ([] if baseline is None else [baseline])
    leaks = [leak for spot in spots for leak in (spot.leak, spot.peak) if leak is not None]
    x, y = _linear([*leaks, *floors], LEFT, WIDTH - 12, least=4), _linear(heights, BOTTOM, TOP, least=4)
    labels = [Label(spot.label, x(spot.leak), y(spot.heights[0][0]), spot.look) for spot in spots]
    drawing = "".join(_spot(spot, x, y) for spot in spots)
    if floors:
        drawing = _box(x(min(floors)), TOP, x(max(floors)), BOTTOM) + drawing
        labels.append(Label("floor", x(max(floors)) - 6, TOP + 5, FLOOR))
    if baseline is not None:
        drawing = _stroke(f"M{LEFT} {y(baseline):.1f}H{WIDTH - 12}", 0) + drawing
    marks = [(x(spot.leak), y(height)) for spot in spots for height, _ in spot.heights]
    below = "worst attack, dB (further right reveals more)"
    return _chart(alt, x, y, below, "PSNR after adaptation, dB", drawing + _labels(labels, marks))


def _spot(spot: Spot, x: Scale, y: Scale) -> str:
    """The marks, joined, and a thin line to the highest round."""
    across, places = x(spot.leak), [y(height) for height, _ in spot.heights]
    path = f"M{across:.1f} {places[-1]:.1f}V{places[0]:.1f}"
    path += "" if spot.peak is None else f"H{x(spot.peak):.1f}m0 -4v8"
    marks = (_mark(across, y(height), spot.look, hollow) for height, hollow in spot.heights)
    return _stroke(path, spot.look, plain=True) + "".join(marks)


def _linear(values: Sequence[float], start: float, end: float, least: float = 0, whole: bool = False) -> Scale:
    """A scale around ``values`` with round ticks (whole numbers on demand) that spans ``least`` or more."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), (least - (high - low)) / 2, abs(low) / 1000) or 1
    low, high = low - room, high + room
    step = max(_round_up((high - low) / 6), 1 if whole else 0)
    ticks = [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Scale(low, high, start, end, [(tick, f"{tick:g}".replace("-", "−")) for tick in ticks])


def _upright(values: Sequence[float], unit: str, span: float = 100) -> Scale:
    """The vertical axis: logarithmic where the largest value is more than ``span`` times the smallest."""
    if unit != DECIBELS and min(values) > 0 and max(values) > span * min(values):
        return _decades(values, BOTTOM, TOP)
    return _linear(values, BOTTOM, TOP, least=5 if unit == DECIBELS else 0)


def _round_up(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    base = 10.0 ** math.floor(math.log10(step))
    return next((base * factor for factor in (1, 2, 5) if base * factor >= step), base * 10)


def _decades(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale with a tick at each power of ten, or at some of them; at 1, 2 and 5 where there are few."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = 0.06 * (high - low) or 0.1
    low, high = low - room, high + room
    powers = range(math.ceil(low), math.floor(high) + 1, math.ceil((high - low) / 6))
    ticks = [(10.0**power, "10" + str(power).translate(_RAISED)) for power in powers]
    if len(ticks) < 3:
        finer = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high)) for factor in (1, 2, 5)]
        ticks = [(tick, f"{tick:g}") for tick in finer if low <= math.log10(tick) <= high]
    return Scale(low, high, start, end, ticks, math.log10)


def _chart(alt: str, x: Scale, y: Scale, below: str, unit: str, drawing: str) -> str:
    """The axes around a drawing."""
    rules = "".join(f'<path class="grid" d="M{x.start} {y(tick):.1f}H{x.end}"/>' for tick, _ in y.ticks)
    left = "".join(f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" class="end">{text}</text>' for tick, text in y.ticks)
    under = "".join(f'<text x="{x(tick):.1f}" y="{BOTTOM + 17}" class="mid">{text}</text>' for tick, text in x.ticks)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(alt)}">{rules}'
        f'<path class="axis" d="M{x.start} {BOTTOM}H{x.end}"/>{left}{under}'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{below}</text><text x="2" y="12">{unit}</text>{drawing}</svg>'
    )


def _curves(lines: Sequence[Line], x: Scale, y: Scale) -> str:
    """The curves, marked here and there, and their names at their ends."""
    drawing, labels = "", []
    for line in lines:
        points = [*line.points[: -1 : max(1, len(line.points) // 300)], line.points[-1]]  # No page of megabytes.
        placed = [None if value is None else (x(step), y(value)) for step, value in points]
        drawing += _stroke(_path(placed), line.look)
        shown = placed[:: 1 if len(placed) <= 16 else math.ceil(len(placed) / 6)]
        drawing += "".join(_mark(*place, line.look) for place in shown if place and line.look != FLOOR)
        labels += [Label(line.label, *place, line.look) for place in placed if place and line.label][-1:]
    return drawing + _labels(labels)


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    pens = ["M", *("L" if before else "M" for before, _ in pairwise(places))]
    return "".join(f"{pen}{place[0]:.1f} {place[1]:.1f}" for pen, place in zip(pens, places, strict=True) if place)


def figures_of(lines: Sequence[Line]) -> list[float]:
    """All values, without the gaps."""
    return [value for line in lines for _, value in line.points if value is not None]


def _right(lines: Sequence[Line]) -> float:
    """Where the horizontal axis ends: names at the ends of curves want room."""
    return WIDTH - (108 if any(line.label for line in lines) else 12)


def _ink(look: int) -> str:
    """The colour of the page's; with mark and dash together 42 runs are told apart."""
    return "var(--floor)" if look == FLOOR else f"var(--s{(look - 1) % 6 + 1 if look else 0})"


def _stroke(path: str, look: int, plain: bool = False) -> str:
    dash = "2 2.5" if look == 0 else "0" if look == FLOOR or plain else _DASHES[(look - 1) % len(_DASHES)]
    width = 1.3 if plain or look <= 0 else 2
    return f'<path d="{path}" fill="none" stroke="{_ink(look)}" stroke-width="{width}" stroke-dasharray="{dash}"/>'


def _mark(x: float, y: float, look: int, hollow: bool = False) -> str:
    shape, ink = _MARKS[(look - 1) % len(_MARKS) if look else 0], _ink(look)
    fill = "var(--card)" if hollow else ink
    move = f' transform="translate({x:.1f} {y:.1f})"'
    return f'<path d="{shape}"{move} fill="{fill}" stroke="{ink}" stroke-width="1.4"/>'


def _box(left: float, top: float, right: float, bottom: float) -> str:
    """The floors of several runs: a line where they agree, a shade where they differ."""
    width, height = max(right - left, 1.5), max(bottom - top, 1.5)
    return f'<rect class="band" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _labels(labels: Sequence[Label], marks: Sequence[tuple[float, float]] = ()) -> str:
    """Names beside their points, on the side with room, moved up or down until clear of marks and one another."""
    taken = [(x - 5, x + 5, y) for x, y in marks]
    drawing = ""
    for label in sorted(labels, key=lambda label: label.y):
        wide = 6.3 * len(label.text)
        left = label.x + 9 + wide > WIDTH
        start = label.x - 9 - wide if left else label.x + 9
        rows = [row for step in range(9) for row in (label.y - 13 * step, label.y + 13 * step) if row < BOTTOM - 4]
        y = next((row for row in rows if _free(start, start + wide, row, taken)), label.y)
        taken.append((start, start + wide, y))
        place = f'x="{label.x + (-9 if left else 9):.1f}" y="{y + 4:.1f}"'
        side = ' class="end"' if left else ""
        drawing += f'<text {place}{side} style="fill:{_ink(label.look)}">{esc(label.text)}</text>'
    return drawing


def _free(start: float, end: float, y: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return all(end < left or start > right or abs(y - middle) > 11 for left, right, middle in taken)


def save_chart(svg: str, path: Path) -> None:
    """A chart of a report as a picture of its own, with the colours and fonts that the page would give it."""
    colours = PALETTE | {f"s{i}": ink for i, ink in enumerate(INKS)}
    variables = "".join(f"--{name}:{ink};" for name, ink in colours.items())
    style = (
        f"svg{{{variables}background:var(--card);font-family:sans-serif}}text{{font-size:11px;fill:var(--ink-2)}}"
        ".end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:var(--grid)}.axis{stroke:var(--rule)}"
    )
    head, rest = svg.split(">", 1)
    write_text(path, f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n')
