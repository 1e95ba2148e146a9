"""One self-contained HTML page about one or several runs, or a search, made from what is on disk and nothing else.

The page holds no script, no outside address and no date: the same runs give the same bytes. Everything read from a
run folder is treated as foreign: escaped, checked, and left out with a note where it is damaged.
"""

from __future__ import annotations

from pathlib import Path

from fedfields.errors import UserError
from fedfields.report.page import page
from fedfields.report.runs import read_runs
from fedfields.report.search import is_search, search_page
from fedfields.store import write_text

__all__ = ["write_report"]


def write_report(runs: list[Path], out: Path) -> Path:
    """Writes one page about all ``runs``, or about a search, to ``out``.

    Raises:
        UserError: no run given, a folder that is no run, a damaged file, or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("no run given; name at least one folder made by `fedfields run`")
    searches = [run for run in runs if is_search(run)]
    if searches and len(runs) > 1:
        raise UserError(f"{searches[0]} is a search, which has a page of its own; name it alone, or runs in its trials")
    try:
        text = search_page(runs[0]) if searches else page(read_runs(runs))
    except RecursionError as error:
        raise UserError("a file of these runs is nested too deeply to have been made by fedfields") from error
    write_text(out, text)
    return out
