"""Pictures on disk: single images, animated clips, and the index of the contact sheets in a report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedfields.store import read_json, write_json, writing

if TYPE_CHECKING:
    from torch import Tensor


class Cell(NamedTuple):
    """One picture of a sheet: colours ``[H, W, C]`` or ``[T, H, W, C]`` in [0, 1], and what to say under it."""

    values: Tensor
    label: str = ""


def save_picture(path: Path, values: Tensor) -> None:
    """Writes ``[H, W, C]`` as PNG, ``[T, H, W, C]`` as animated PNG; NaN is black, values are clamped to [0, 1]."""
    from PIL import Image

    array = np.nan_to_num(values.detach().float().numpy(), nan=0.0)
    pixels = (array.clip(0, 1) * 255).round().astype(np.uint8)
    frames = [Image.fromarray(frame) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    with writing(path) as temporary:
        more = {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0}
        frames[0].save(temporary, format="PNG", **(more if len(frames) > 1 else {}))


def save_sheet(folder: Path, name: str, title: str, columns: list[str], rows: dict[str, list[Cell | None]]) -> None:
    """Writes the pictures of one contact sheet and enters it in ``folder/sheets.json``.

    Args:
        folder: the ``images`` folder of a run.
        name: of the sheet, e.g. "owner"; an older sheet of that name is replaced.
        title: heading for people.
        columns: heading of each column.
        rows: cells by client, one for each column; None leaves a gap.
    """
    listed = []
    for client, cells in rows.items():
        entries = []
        for column, cell in zip(columns, cells, strict=True):
            if cell is None:
                entries.append(None)
                continue
            file = f"{name}-{_plain(client)}-{_plain(column)}.png"
            save_picture(folder / file, cell.values)
            entries.append({"file": file, "label": cell.label})
        listed.append({"client": client, "cells": entries})
    index = folder / "sheets.json"
    sheets = read_json(index) if index.exists() else {}
    sheets[name] = {"title": title, "columns": columns, "rows": listed}
    write_json(index, sheets)


def _plain(text: str) -> str:
    """A file name that cannot leave its folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:80] or "x"
