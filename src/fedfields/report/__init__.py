"""One self-contained HTML page about one or several runs, made from what is on disk and nothing else.

The page holds no script, no outside address and no date: the same runs give the same bytes. Everything read from a
run folder is treated as foreign: escaped, checked, and left out with a note where it is damaged.
"""

from __future__ import annotations

from pathlib import Path

from fedfields.errors import UserError
from fedfields.report.page import page
from fedfields.report.runs import read_runs
from fedfields.store import write_text

__all__ = ["write_report"]


def write_report(runs: list[Path], out: Path) -> Path:
    """Writes one page about all ``runs`` to ``out``.

    Raises:
        UserError: no run given, a folder that is no run, a damaged file, or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("no run given; name at least one folder made by `fedfields run`")
    try:
        text = page(read_runs(runs))
    except RecursionError as error:
        raise UserError("a file of these runs is nested too deeply to have been made by fedfields") from error
    write_text(out, text)
    return out
