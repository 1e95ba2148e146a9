"""Contact sheets, embedded within a budget; a picture that cannot be shown becomes a note."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfields.errors import UserError
from fedfields.report.parts import named, scrolling, section
from fedfields.report.runs import Run, mapping, read_object
from fedfields.report.text import esc

IMAGE_BYTES = 4 * 2**20
"""The largest picture that is embedded."""
PAGE_BYTES = 32 * 2**20
"""All pictures of one page together."""
IMAGE_PIXELS = 4096 * 4096
ROWS = 40
"""Rows of a sheet that are shown."""
FIRST = ("content", "orbit")
"""Sheets for those who would rather look than read: what became of people in front of a place, and a film around it."""


class Pictures:
    """The contact sheets of one page."""

    def __init__(self) -> None:
        self.left = PAGE_BYTES

    def first(self, runs: Sequence[Run]) -> str:
        """The sheets that come before all figures."""
        intro = (
            "Before: what owners photograph. After: the field that they share, seen from the same place; the truth is "
            "what stands there without people. The server: what can be rendered of all that it has of an owner."
        )
        body = self._blocks(runs, " first", lambda name: name in FIRST)
        return section("look", "Before, after, and what the server saw", intro, body)

    def section(self, runs: Sequence[Run]) -> str:
        """The other sheets of all runs."""
        kind = "" if len(runs) > 1 else " large"
        return section("pictures", "Pictures", "", self._blocks(runs, kind, lambda name: name not in FIRST))

    def _blocks(self, runs: Sequence[Run], kind: str, wanted: Callable[[str], bool]) -> str:
        blocks = []
        for run in runs:
            if sheets := self._sheets(run.folder, wanted):
                title = f"<h3>{named(run)}</h3>" if len(runs) > 1 else ""
                blocks.append(f'{title}<div class="sheets{kind}">{sheets}</div>')
        return "\n".join(blocks)

    def _sheets(self, folder: Path, wanted: Callable[[str], bool]) -> str:
        index = folder / "images" / "sheets.json"
        try:
            sheets = read_object(index) if index.is_file() else {}
        except UserError as error:
            return f'<p class="note">{esc(error, 300)}</p>' if wanted("") else ""
        return "".join(self._sheet(folder, mapping(sheet)) for name, sheet in sheets.items() if wanted(name))

    def _sheet(self, folder: Path, sheet: Mapping[str, Any]) -> str:
        columns, rows = _list(sheet.get("columns")), _list(sheet.get("rows"))
        head = "".join(f"<th>{esc(column)}</th>" for column in ["", *columns])
        body = "".join(self._row(folder, mapping(row), columns) for row in rows[:ROWS])
        table = f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f"<div><h4>{esc(sheet.get('title') or '')}</h4>{scrolling(table)}</div>" if body else ""

    def _row(self, folder: Path, row: Mapping[str, Any], columns: Sequence[Any]) -> str:
        name = esc(row.get("client") or "")
        cells = zip(_list(row.get("cells")), columns, strict=False)
        shown = [self._cell(folder, mapping(cell), f"{name}, {esc(column)}") for cell, column in cells]
        return f'<tr><th scope="row"><bdi>{name}</bdi></th>{"".join(f"<td>{cell}</td>" for cell in shown)}</tr>'

    def _cell(self, folder: Path, cell: Mapping[str, Any], alt: str) -> str:
        """One picture and its label; ``alt`` is HTML."""
        if not cell.get("file"):
            return ""
        try:
            data, kind, crisp = self._read(_inside(folder, str(cell["file"])))
            source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
            image = f'<img class="{crisp}" alt="{alt}" src="{source}">'
        except UserError as reason:
            image = f'<em class="note">not shown: {esc(reason)}</em>'
        return image + (f"<span>{esc(cell['label'])}</span>" if cell.get("label") else "")

    def _read(self, path: Path) -> tuple[bytes, str, str]:
        """A picture's bytes, its kind, and its class: ``px`` where it is so small that its pixels will be seen."""
        try:
            length = path.stat().st_size
            data = path.read_bytes() if length <= min(IMAGE_BYTES, self.left) else b""
        except OSError as error:
            raise UserError("file cannot be read") from error
        if length > len(data):
            raise UserError("file too large" if length > IMAGE_BYTES else "the page is full")
        self.left -= length
        return data, *_decoded(data)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _inside(folder: Path, name: str) -> Path:
    """The picture's path, if it lies in the run's ``images`` folder and nowhere else, links followed."""
    try:
        home = (folder / "images").resolve()
        path = (home / name).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError("not a file name") from error
    if not (home.is_relative_to(folder.resolve()) and path.is_relative_to(home)):
        raise UserError("outside the images folder")
    if not found:
        raise UserError("file missing")
    return path


def _decoded(data: bytes) -> tuple[str, str]:
    """Only what decodes is shown, in a format that browsers know."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=("PNG", "GIF", "JPEG", "WEBP"))
            fits = image.width * image.height <= IMAGE_PIXELS
            if fits:
                image.load()
    except Exception as error:  # Decoders raise whatever they like on damaged data.
        raise UserError("damaged picture") from error
    if not fits:
        raise UserError("too many pixels")
    return str(image.format).lower(), "px" if min(image.size) <= 128 else ""
