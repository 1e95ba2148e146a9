"""Tells owners, before a run, what would become of each of their files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedfields.scenes.data import Data, Survey
from fedfields.scenes.folders import Found

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"used": "green", "ignored": "dim", "unusable": "bold red"}


def check(data: Data, console: Console) -> int:
    """Prints a table of all files, and how the usable ones are shared out.

    Returns:
        How many problems there are: files that cannot be used, and whether a run is impossible.

    Raises:
        UserError: there is nothing to list, as in `Data.survey`.
    """
    from rich.table import Table
    from rich.text import Text

    survey = data.survey()
    table = Table("File", "Status", "On disk", "As used", "Why, and what to do", show_edge=False)
    for file in survey.files:
        style = _STYLES[file.status]
        cells = (file.name, file.status, _on_disk(file), " × ".join(map(str, file.shape)), file.reason)
        table.add_row(*(Text(cell, style=style, overflow="fold") for cell in cells))  # Text: names are no markup.
    console.print(table)
    for line in _counts(survey):
        console.print(Text(line))
    if survey.problem:
        console.print(Text(survey.problem, style="bold red"))
    return sum(file.status == "unusable" for file in survey.files) + bool(survey.problem)


def _on_disk(found: Found) -> str:
    """Size of the file, or how many files a folder of frames holds."""
    if os.path.isdir(found.path):
        return f"{sum(1 for _ in found.path.iterdir())} files" if found.status == "used" else ""
    if not os.path.exists(found.path):
        return ""
    return f"{found.path.stat().st_size / 1000:,.1f} kB"


def _counts(survey: Survey) -> Iterator[str]:
    yield survey.notes[0]
    seen = [share for share in survey.shares if not share.unseen]
    unseen = [share for share in survey.shares if share.unseen]
    train = sum(len(share.train) for share in seen)
    held_out = sum(len(share.held_out) for share in seen)
    yield f"clients: {len(seen)}; their signals: {train} to train on, {held_out} held out"
    yield f"unseen clients: {len(unseen)}; their signals: {sum(len(share.held_out) for share in unseen)}"
