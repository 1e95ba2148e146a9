"""Charts as inline SVG that follow the page: colours are CSS variables, text is text, the same bytes every time.

Matplotlib draws with placeholder colours (``#0000..`` for the page's inks, ``#0001..`` for the runs); the finished
SVG has them replaced by ``var(--...)``, so that one drawing reads well on light and on dark paper. Names never go
through Matplotlib: a label is drawn as ``@3@`` and put in afterwards, escaped.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 440, 290
"""Points; the page stretches the drawing to its column."""

INK, RULE, GRID, FLOOR, PAPER = ("#000001", "#000002", "#000003", "#000004", "#000005")
_INKS = {INK: "--ink-2", RULE: "--rule", GRID: "--grid", FLOOR: "--floor", PAPER: "--card"}

_SHAPES = {  # Matplotlib's marker: the same shape for the legend, around (0, 0).
    "o": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "s": "M-3.2 -3.2h6.4v6.4h-6.4z",
    "^": "M0 -4L4 3.2H-4z",
    "D": "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
    "v": "M0 4L4 -3.2H-4z",
    "P": "M-1.5 -4h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "p": "M0 -4.2L4 -1.3L2.5 3.4H-2.5L-4 -1.3z",
}
_DASHES = ((), (7, 3), (2, 2), (9, 3, 2, 3), (5, 2))
COLOURS = 6
FEW = 16
"""Points: a curve of no more shows each of them."""
DECIBELS = "dB"
"""The unit whose charts keep a span of at least 5."""


@dataclass(frozen=True)
class Style:
    """How one run looks in every chart: colour, marker and dash together, so that no single one has to carry it."""

    colour: int
    marker: str
    dash: tuple[float, ...]

    @property
    def ink(self) -> str:
        """The placeholder colour."""
        return f"#0001{self.colour:02d}"


def style(index: int) -> Style:
    """The look of the ``index``-th run; colours and markers repeat together only after 42 runs."""
    markers = tuple(_SHAPES)
    return Style(index % COLOURS + 1, markers[index % len(markers)], _DASHES[index % len(_DASHES)])


BASELINE = Style(0, "o", (2, 2.5))
"""The look of a run that shares nothing: grey, beside the others."""


@dataclass(frozen=True)
class Line:
    """One curve. ``label`` is written at its end; ``quiet`` draws it thin and hollow."""

    points: Sequence[tuple[float, float | None]]
    style: Style
    label: str = ""
    quiet: bool = False
    floor: bool = False


@dataclass(frozen=True)
class Spot:
    """A run in the trade-off plane: ``x`` is what leaks, ``ys`` the quality after few and after more steps."""

    x: float
    ys: tuple[float | None, float | None]
    style: Style
    label: str
    peak: float | None = None


def swatch(look: Style) -> str:
    """The run's mark, for legends and tables."""
    dash = f' stroke-dasharray="{" ".join(f"{part:g}" for part in look.dash)}"' if look.dash else ""
    ink = f"var(--s{look.colour})"
    return (
        '<svg class="swatch" viewBox="-16 -6 32 12" width="32" height="12" aria-hidden="true">'
        f'<path d="M-16 0H16" stroke="{ink}" stroke-width="1.8"{dash}/>'
        f'<path d="{_SHAPES[look.marker]}" fill="{ink}"/></svg>'
    )


def over_rounds(slug: str, alt: str, lines: Sequence[Line], unit: str, band: tuple[float, float] | None = None) -> str:
    """Curves over rounds; ``band`` is shaded (the floors of several runs). Spans of decades get a log axis."""
    drawing = _Drawing(slug, alt, any(line.label for line in lines), unit)
    axes = drawing.axes
    values = [y for line in lines for _, y in line.points if y is not None]
    if unit != DECIBELS and values and min(values) > 1e-60 and max(values) > 100 * min(values):
        drawing.decades()
    else:
        drawing.nice(axes.yaxis)
        if unit == DECIBELS and values:
            _at_least(axes, min(values), max(values), band)
    drawing.nice(axes.xaxis, integer=True)
    if band is not None:
        _draw_band(axes, band)
    drawing.draw(lines)
    rounds = [x for line in lines for x, _ in line.points]
    if rounds:
        pad = max(0.02 * (max(rounds) - min(rounds)), 0.3)
        axes.set_xlim(min(rounds) - pad, max(rounds) + pad)
    drawing.titles("round", unit)
    return drawing.finish()


def over_steps(slug: str, alt: str, lines: Sequence[Line], unit: str, limits: tuple[float, float] | None = None) -> str:
    """Curves over adaptation steps on a log2 axis, with a place for 0 steps at its left."""
    steps = sorted({x for line in lines for x, _ in line.points})
    least = min((step for step in steps if step > 0), default=1.0)
    place = {step: math.log2(step) if step > 0 else math.log2(least) - 1 for step in steps}
    drawing = _Drawing(slug, alt, any(line.label for line in lines), unit)
    drawing.nice(drawing.axes.yaxis)
    if limits is not None:
        drawing.axes.set_ylim(*limits)
    drawing.draw([_moved(line, place) for line in lines])
    shown = _uncrowded([place[step] for step in steps])
    names = {place[step]: f"{step:g}" for step in steps}
    drawing.axes.set_xticks(shown, [names[position] for position in shown])
    drawing.axes.set_xlim(min(place.values(), default=0) - 0.25, max(place.values(), default=1) + 0.25)
    drawing.titles("adaptation steps, log scale", unit)
    return drawing.finish()


def plane(
    slug: str, alt: str, spots: Sequence[Spot], floor: tuple[float, float] | None, baseline: float | None, unit: str
) -> str:
    """Quality against leakage: the higher and the further left, the better."""
    drawing = _Drawing(slug, alt, False, unit)
    axes = drawing.axes
    _plane_limits(axes, spots, floor, baseline)
    drawing.nice(axes.xaxis)
    drawing.nice(axes.yaxis)
    if floor is not None:
        _draw_band(axes, floor, upright=True)
        drawing.mark(floor[1], 1.0, "floor", dx=4, dy=-9)
    if baseline is not None:
        axes.axhline(baseline, color=BASELINE.ink, lw=1.2, dashes=BASELINE.dash, zorder=1)
        drawing.mark(1.0, baseline, "random initialisation", dx=-2, dy=5, ha="right")
    for spot in spots:
        _draw_spot(axes, spot)
    drawing.name_spots(spots)
    drawing.titles("worst attack on one upload, dB (further right reveals more)", unit)
    return drawing.finish()


class _Drawing:
    """One figure in the making."""

    def __init__(self, slug: str, alt: str, labelled: bool, unit: str) -> None:
        from matplotlib.figure import Figure

        self.slug, self.alt, self.texts = slug, alt, list[str]()
        self.right = 108 if labelled else 12
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")
        top = 28 if unit else 8
        box = (42 / WIDTH, 44 / HEIGHT, (WIDTH - 42 - self.right) / WIDTH, (HEIGHT - 44 - top) / HEIGHT)
        self.axes: Any = self.figure.add_axes(box, facecolor="none")
        for side, spine in self.axes.spines.items():
            spine.set(visible=side == "bottom", color=RULE, linewidth=1)
        self.axes.grid(axis="y", color=GRID, linewidth=1)
        self.axes.set_axisbelow(True)
        self.axes.tick_params(which="both", color=RULE, labelcolor=INK, labelsize=11, length=0, pad=6)

    def nice(self, axis: Any, integer: bool = False) -> None:
        """Few, round ticks."""
        from matplotlib.ticker import MaxNLocator

        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=integer))
        axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))

    def decades(self) -> None:
        """A logarithmic vertical axis with a tick at each power of ten, or at some of them."""
        from matplotlib.ticker import LogLocator, NullFormatter

        raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        axis = self.axes.yaxis
        self.axes.set_yscale("log")
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: "10" + str(round(math.log10(value))).translate(raised))

    def draw(self, lines: Sequence[Line]) -> None:
        """Draws the curves and, where they have one, their names at their ends."""
        for line in lines:
            _draw_line(self.axes, line, marked=len(lines) > 1 or len(line.points) <= FEW)
        self.axes.autoscale_view()
        ends = [(line, end) for line in lines if line.label and (end := _end(line)) is not None]
        heights = [self.axes.transData.transform(end)[1] for _, end in ends]
        for (line, end), height, free in zip(ends, heights, _spread(heights, 14.5), strict=True):
            ink = FLOOR if line.floor else line.style.ink
            self.note(line.label, end, (9, free - height - 4), "left", ink)

    def note(self, text: str, at: tuple[float, float], shift: tuple[float, float], ha: str, ink: str) -> None:
        """Text near a point; what it says is put in afterwards."""
        self.texts.append(text)
        self.axes.annotate(
            f"@{len(self.texts) - 1}@", at, shift, textcoords="offset points", ha=ha, color=ink, fontsize=11,
            annotation_clip=False,
        )  # fmt: skip

    def mark(self, x: float, y: float, text: str, dx: float, dy: float, ha: str = "left") -> None:
        """The name of a floor (``y`` is then 1, the top) or of a baseline (``x`` is then 1, the right)."""
        axes = self.axes
        where = axes.get_xaxis_transform() if y == 1.0 else axes.get_yaxis_transform()
        axes.annotate(
            text, (x, y), (dx, dy), where, "offset points", ha=ha, color=FLOOR, fontsize=11,
            annotation_clip=False,
        )  # fmt: skip

    def name_spots(self, spots: Sequence[Spot]) -> None:
        """Writes each run's name beside it, on the side with room, clear of the names and marks already there."""
        at = self.axes.transData.transform
        marks = [tuple(at((spot.x, y))) for spot in spots for y in spot.ys if y is not None]
        taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
        for spot in sorted(spots, key=lambda spot: -max(y for y in spot.ys if y is not None)):
            height = next(y for y in spot.ys if y is not None)
            x, y = at((spot.x, height))
            wide = 6.3 * len(spot.label)
            left = x + 9 + wide > WIDTH
            start = x - 9 - wide if left else x + 9
            rows = (0, 13, -13, 26, -26, 39, -39, 52, -52)
            row = next((row for row in rows if _free((start, y + row, wide), taken)), 0)
            taken.append((start, y + row - 6, start + wide, y + row + 6))
            self.note(
                spot.label, (spot.x, height), (-9 if left else 9, row - 4), "right" if left else "left",
                spot.style.ink,
            )  # fmt: skip

    def titles(self, below: str, unit: str) -> None:
        """What the axes measure: the horizontal one below, the vertical one level at the top left."""
        self.figure.text(42 / WIDTH, 8 / HEIGHT, below, color=INK, fontsize=11)
        self.figure.text(2 / WIDTH, (HEIGHT - 13) / HEIGHT, unit, color=INK, fontsize=11)

    def finish(self) -> str:
        """The SVG, fit to stand inside the page."""
        from matplotlib import rc_context

        target = io.StringIO()
        with rc_context({"svg.hashsalt": "fedfields", "svg.fonttype": "none"}):  # Restored on leaving.
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(target, format="svg", facecolor="none", metadata=nothing)
        return _embed(target.getvalue(), self.slug, self.alt, self.texts)


def _embed(svg: str, slug: str, alt: str, texts: Sequence[str]) -> str:
    """Cuts everything foreign from Matplotlib's SVG: prolog, metadata, page-wide style, fonts, unused ids."""
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    body = re.sub(r"^.*?<svg[^>]*>", "", body, count=1, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px)[^;\"]*", r"font-size: \1", body)
    used = set(re.findall(r"href=\"#([^\"]+)\"|url\(#([^)]+)\)", body))
    keep = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{slug}-{found[1]}"' if found[1] in keep else "", body)
    body = re.sub(r'href="#', f'href="#{slug}-', body).replace("url(#", f"url(#{slug}-")
    for ink, variable in _INKS.items():
        body = body.replace(ink, f"var({variable})")
    body = re.sub(r"#0001(\d\d)", lambda found: f"var(--s{int(found[1])})", body)
    body = re.sub(r"@(\d+)@", lambda found: html.escape(texts[int(found[1])]), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(alt)}">{body.strip()}'


def _draw_line(axes: Any, line: Line, marked: bool) -> None:
    """One curve; missing values are gaps. A long one is marked here and there."""
    points = _thinned(line.points)
    xs = [x for x, _ in points]
    ys = [math.nan if y is None else y for _, y in points]
    if line.floor:
        axes.plot(xs, ys, color=FLOOR, lw=1.3, dashes=(4, 3) if line.quiet else (None, None), zorder=1)
        return
    look = line.style
    extra: dict[str, Any] = {"dashes": look.dash} if look.dash else {}
    face = PAPER if line.quiet or look is BASELINE else look.ink
    if marked:
        extra |= {"marker": look.marker, "ms": 6, "mew": 1.4, "mfc": face, "mec": look.ink}
        extra["markevery"] = 1 if len(points) <= FEW else math.ceil(len(points) / 6)
    axes.plot(xs, ys, color=look.ink, lw=1.3 if line.quiet else 2.0, clip_on=False, zorder=3, **extra)


def _draw_band(axes: Any, band: tuple[float, float], upright: bool = False) -> None:
    """The floors of several runs: a line where they agree, a shade where they differ."""
    low, high = band
    if high - low < 0.1:
        line = axes.axvline if upright else axes.axhline
        line((low + high) / 2, color=FLOOR, lw=1.3, zorder=1)
    else:
        shade = axes.axvspan if upright else axes.axhspan
        shade(low, high, color=FLOOR, alpha=0.22, lw=0, zorder=1)


def _at_least(axes: Any, low: float, high: float, band: tuple[float, float] | None) -> None:
    """Limits that never blow tenths of a decibel up to the height of the chart."""
    low, high = (min(low, band[0]), max(high, band[1])) if band else (low, high)
    pad = max(0.06 * (high - low), (5 - (high - low)) / 2)
    axes.set_ylim(low - pad, high + pad)


def _draw_spot(axes: Any, spot: Spot) -> None:
    """A filled mark after few steps, a hollow one after more, joined; a thin line to the highest round."""
    first, second = spot.ys
    look = {"color": spot.style.ink, "clip_on": False}
    if first is not None and second is not None:
        axes.plot([spot.x, spot.x], [first, second], lw=1.3, zorder=2, **look)
    for y, face in ((first, spot.style.ink), (second, PAPER)):
        if y is not None:
            axes.plot([spot.x], [y], marker=spot.style.marker, ms=8, mew=1.6, mfc=face, zorder=4, **look)
    height = first if first is not None else second
    if spot.peak is not None and height is not None:
        axes.plot([spot.x, spot.peak], [height, height], lw=1.2, zorder=2, **look)
        axes.plot([spot.peak], [height], marker="|", ms=9, mew=1.4, zorder=2, **look)


def _plane_limits(axes: Any, spots: Sequence[Spot], floor: tuple[float, float] | None, baseline: float | None) -> None:
    """Room around everything, and never so close that tenths of a decibel look like a gulf."""
    xs = [x for spot in spots for x in (spot.x, spot.peak) if x is not None]
    ys = [y for spot in spots for y in spot.ys if y is not None]
    ys += [] if baseline is None else [baseline]
    for known, setter in (([*xs, *(floor or ())], axes.set_xlim), (ys, axes.set_ylim)):
        low, high = min(known), max(known)
        pad = max(0.12 * (high - low), (4 - (high - low)) / 2, 0.5)
        setter(low - pad, high + pad)


def _moved(line: Line, place: dict[float, float]) -> Line:
    return Line([(place[x], y) for x, y in line.points], line.style, line.label, line.quiet, line.floor)


def _uncrowded(positions: Sequence[float]) -> list[float]:
    """The tick positions that are at least one tenth of the axis apart, from the left."""
    if not positions:
        return []
    gap = 0.09 * (positions[-1] - positions[0])
    kept = [positions[0]]
    for position in positions[1:]:
        if position - kept[-1] >= gap:
            kept.append(position)
    return kept


def _thinned(points: Sequence[tuple[float, float | None]], most: int = 400) -> Sequence[tuple[float, float | None]]:
    """At most about ``most`` points, the last one included: a long run must not make a heavy page."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _end(line: Line) -> tuple[float, float] | None:
    return next(((x, y) for x, y in reversed(line.points) if y is not None), None)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights apart until neighbours are ``gap`` away from each other, keeping their order."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    free = list(heights)
    for _ in range(50):
        for below, above in pairwise(order):
            lack = gap - (free[above] - free[below])
            if lack > 1e-6:
                free[below] -= lack / 2
                free[above] += lack / 2
    return free


def _free(text: tuple[float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    """Whether a text at (start, middle) of some width clears every box."""
    start, middle, wide = text
    return all(
        start + wide < left or start > right or middle + 6 < low or middle - 6 > high
        for left, low, right, high in taken
    )


CSS = """
:root{color-scheme:light dark;--paper:#faf9f7;--card:#fff;--ink:#1c1f24;--ink-2:#565c66;--ink-3:#838993;
--rule:#c9ccd1;--grid:#ececea;--line:#e4e3df;--floor:#757b85;--note:#fbf3dd;--note-line:#dcb85a;
--s0:#858b95;--s1:#2460bd;--s2:#c5501a;--s3:#0f8069;--s4:#a23c8d;--s5:#5f4a00;--s6:#2a2d35}
@media (prefers-color-scheme:dark){:root{--paper:#131518;--card:#1a1d21;--ink:#e9eaec;--ink-2:#a9afb8;
--ink-3:#7d848e;--rule:#474d56;--grid:#272b31;--line:#2b2f35;--floor:#949ba6;--note:#262214;--note-line:#8a7230;
--s0:#8b929c;--s1:#6ba0f7;--s2:#f5854d;--s3:#45c9ab;--s4:#e18bd0;--s5:#e6cf6a;--s6:#f2f3f5}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:3rem 1.5rem 5rem}
h1,h2,h3,h4,p,ul,dl,dd,figure{margin:0}
h1{font-size:2.1rem;line-height:1.2;letter-spacing:-.02em;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.25rem;line-height:1.3;letter-spacing:-.01em;font-weight:650;overflow-wrap:anywhere}
h3{font-size:.95rem;font-weight:600;overflow-wrap:anywhere}
h4{font-size:.85rem;font-weight:500;color:var(--ink-2);margin-bottom:.5rem}
section{margin-top:3.5rem}
section>*+*{margin-top:1rem}
section>.sheets+h3{margin-top:2rem}
a{color:inherit;text-underline-offset:.2em;text-decoration-color:var(--rule)}
.brow{color:var(--ink-3);font-size:.85rem;margin-bottom:.35rem}
.facts{color:var(--ink-2);font-size:.9rem;margin-top:.5rem}
.verdict{font-size:1.2rem;line-height:1.5;margin:1.25rem 0 .75rem;max-width:46rem;
overflow-wrap:anywhere}
.n{white-space:nowrap;font-variant-numeric:tabular-nums}
.intro{color:var(--ink-2);max-width:46rem;margin-top:.35rem;font-size:.95rem}
.note,.chart figcaption,.scroll+p{color:var(--ink-2);font-size:.85rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:1px;margin-top:2.25rem;
background:var(--line);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tiles>div{background:var(--card);padding:1rem 1.1rem}
dt{color:var(--ink-2);font-size:.82rem}
.tiles strong{display:block;font-size:1.6rem;line-height:1.3;font-weight:600;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.tiles span{display:block;color:var(--ink-2);font-size:.8rem;line-height:1.4}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:1rem;margin-top:2.25rem}
.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.2rem}
.card{display:flex;flex-direction:column;gap:.6rem}
.card>h3{display:flex;flex-wrap:wrap;align-items:baseline;gap:.5rem;font-size:1rem}
.card p{font-size:.9rem;color:var(--ink-2);line-height:1.5;overflow-wrap:anywhere}
.card dl{display:grid;grid-template-columns:repeat(3,1fr);gap:.75rem;margin-top:auto;padding-top:.6rem;
border-top:1px solid var(--line)}
.card dl>div{display:flex;flex-direction:column;justify-content:space-between}
.card dt{font-size:.75rem;line-height:1.35}
.card dd{font-size:1.15rem;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}
.chip{font-size:.75rem;font-weight:500;color:var(--ink-2);border:1px solid var(--line);border-radius:99px;
padding:.05rem .55rem}
.run{display:inline-flex;align-items:baseline;gap:.45rem;overflow-wrap:anywhere}
.swatch{flex:none;overflow:visible;fill:none}
.legend{display:flex;flex-wrap:wrap;gap:.35rem 1.5rem;font-size:.88rem;margin-top:.75rem}
.notices{margin-top:1.5rem;background:var(--note);border-left:3px solid var(--note-line);border-radius:4px;
padding:.9rem 1.2rem;font-size:.92rem}
.notices h2{font-size:.95rem}
.notices ul{margin:.3rem 0 0;padding-left:1.1rem}
.notices li{overflow-wrap:anywhere}
.notices li+li{margin-top:.25rem}
.notices .run{font-weight:600}
.cards.pairs{grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr))}
.hero{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;align-items:flex-start}
.hero>div{flex:1 1 24rem;min-width:0;max-width:36rem}
.beside{flex:1 1 15rem;list-style:none;padding:0;font-size:.88rem}
.beside li+li{margin-top:.9rem}
.beside .run{font-weight:600}
.beside li>span:last-child{display:block;color:var(--ink-2);font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1rem}
.chart{min-width:0}
.chart svg:not(.swatch){display:block;width:100%;height:auto;max-width:36rem;margin-top:.5rem;overflow:visible;
stroke-linejoin:round;stroke-linecap:butt}
.chart text{font-family:inherit;font-variant-numeric:tabular-nums;paint-order:stroke;stroke:var(--card);
stroke-width:3px;stroke-linejoin:round}
.chart figcaption{margin-top:.25rem}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch;border:1px solid var(--line);border-radius:10px;
background:var(--card)}
.scroll:focus-visible{outline:2px solid var(--s1);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.55rem .9rem;text-align:left;vertical-align:baseline;font-weight:400}
thead th{color:var(--ink-2);font-size:.8rem;vertical-align:bottom;border-bottom:1px solid var(--line)}
tbody tr+tr>*{border-top:1px solid var(--line)}
tbody th{font-weight:500}
.num{text-align:right;white-space:nowrap}
.num .run{justify-content:flex-end}
td .run,th .run{white-space:nowrap}
td bdi,th .run bdi{max-width:16rem;overflow:hidden;text-overflow:ellipsis}
thead .run bdi{max-width:9rem}
.attacks tbody th{min-width:11rem}
small{display:block;color:var(--ink-2);font-size:.8rem;font-weight:400}
em{font-style:normal;color:var(--ink-2)}
.intro em{color:var(--ink);font-weight:500}
.track{position:relative;display:block;width:9rem;height:.7rem;vertical-align:middle;
background:linear-gradient(var(--line),var(--line)) center/100% 1px no-repeat}
.track b{position:absolute;top:50%;width:.6rem;height:.6rem;margin:-.3rem 0 0 -.3rem;border-radius:50%;
background:var(--s1)}
.floor b{background:var(--floor)}
.track i{position:absolute;top:-.25rem;bottom:-.25rem;width:2px;margin-left:-1px;background:var(--floor)}
.sheet td,.sheet th{text-align:center}
.sheets{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1.25rem}
.sheets>div{min-width:0}
.sheets>.large{grid-column:1/-1}
.sheets .scroll{width:fit-content;max-width:100%}
.sheet{width:auto}
.sheet th,.sheet td{padding:.5rem .3rem;border:0!important;vertical-align:top;font-size:.8rem;color:var(--ink-2)}
.sheet thead th{padding-bottom:0;font-weight:500;max-width:5.5rem;
line-height:1.3;vertical-align:bottom}
.sheet tr>:last-child{padding-right:.8rem}
.large .sheet thead th{max-width:8rem}
.sheet tbody th{position:sticky;left:0;z-index:1;background:var(--card);text-align:left;vertical-align:middle;
min-width:3.75rem;max-width:6.5rem;overflow-wrap:anywhere;padding-left:.8rem;color:var(--ink)}
.sheet img{display:block;height:5rem;width:auto;max-width:none;margin:0 auto;border-radius:3px;background:var(--grid)}
.sheet .px{image-rendering:pixelated}
.sheet span{display:block;margin-top:.25rem}
.sheet .note{display:grid;place-items:center;width:5rem;height:5rem;padding:.25rem;border:1px dashed var(--rule);
border-radius:3px;font-size:.75rem;line-height:1.35;margin:0 auto}
.large .sheet img,.large .sheet .note{height:7rem}
.large .sheet .note{width:7rem}
.guide{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:1.5rem 2.25rem}
.guide dt{color:var(--ink);font-weight:600;font-size:.95rem}
.guide dd{color:var(--ink-2);font-size:.92rem;margin-top:.2rem}
code{font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.settings th,.settings td{padding:.35rem .9rem}
summary{cursor:pointer;color:var(--ink-2);font-size:.9rem}
details .scroll{margin-top:.75rem}
@media (max-width:40rem){main{padding:1.75rem 1rem 3rem}h1{font-size:1.7rem}.verdict{font-size:1.08rem}
section{margin-top:2.5rem}.chart text{font-size:12px!important}.card,.chart{padding:.9rem .9rem}
.tiles{grid-template-columns:1fr 1fr}
.tiles>div{padding:.8rem .9rem}.tiles strong{font-size:1.35rem}.large .sheet img,.large .sheet .note{height:5.5rem}
.large .sheet .note{width:5.5rem}.sheet tbody th{min-width:3.5rem;max-width:5rem;padding-left:.6rem}}
@media print{body{background:#fff}.card,.chart,.scroll,.tiles{break-inside:avoid}.scroll{overflow:visible}}
"""
