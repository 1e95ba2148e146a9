"""The pieces that every section of the page is made of. Arguments are HTML unless they are runs."""

from __future__ import annotations

from collections.abc import Sequence

from fedfields.report.figures import swatch
from fedfields.report.runs import Run
from fedfields.report.text import esc


def section(identity: str, title: str, intro: str, body: str) -> str:
    """A heading, a line of introduction and what they introduce; nothing without that."""
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{identity}">\n<h2>{title}</h2>\n{lead}\n{body}\n</section>' if body else ""


def scrolling(table: str) -> str:
    """A table in a box that scrolls sideways, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{table}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table whose first column names the rows; a heading that starts with ``#`` is a number's."""
    classes = [' class="num"' if name.startswith("#") else "" for name in head]
    top = "".join(f"<th{here}>{name.lstrip('#')}</th>" for name, here in zip(head, classes, strict=True))
    lines = [
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{here}>{cell}</td>" for cell, here in zip(row[1:], classes[1:], strict=True))
        for row in rows
    ]
    body = "</tr>\n".join(lines)
    return scrolling(f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{body}</tr>\n</tbody></table>')


def chart(title: str, svg: str, caption: str = "") -> str:
    """A drawing under its title."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="chart"><h3>{title}</h3>{svg}{below}</figure>'


def grid(charts: Sequence[str], runs: Sequence[Run]) -> str:
    """Charts side by side where there is room, under the legend of several runs."""
    shown = "".join(charts)
    legend = f'<p class="legend">{"".join(map(named, runs))}</p>' if len(runs) > 1 else ""
    return f'{legend}<div class="charts">{shown}</div>' if shown else ""


def named(run: Run) -> str:
    """A run's mark and name."""
    return f'<span class="run">{swatch(run.look)}<bdi>{esc(run.label, 60)}</bdi></span>'
