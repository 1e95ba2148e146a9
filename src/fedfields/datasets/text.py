"""Texts: the next character from those before it."""

from __future__ import annotations

import string
from pathlib import Path

from fedfields.datasets.shares import Rows
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.images import printable
from fedfields.store import MAX_TEXT, read_file

CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
"""The same for everybody, so that no owner's text decides it; anything else is one more character, called unknown."""


def texts_in(path: Path) -> bool:
    """Whether this is a text or a folder of texts, by names alone."""
    return path.suffix.lower() == ".txt" or (path.is_dir() and any(path.glob("*.txt")))


def read_texts(path: Path, length: int) -> dict[str, Rows]:
    """A client for each text: inputs ``[n, L]`` of characters by number, targets ``[n, L]``, the ones after them.

    Raises:
        UserError: there is no text, or one cannot be read.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    rows = {file.stem: _windows(file, length) for file in files}
    found = {name: one for name, one in rows.items() if one is not None}
    if not found:
        raise UserError(f"{printable(str(path))} has no text of more than {length} characters; add some (.txt)")
    return found


def _windows(file: Path, length: int) -> Rows | None:
    """The text in rows of ``length`` characters, one after another; None if it is shorter."""
    try:
        text = read_file(file, MAX_TEXT).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(str(file))} cannot be read ({error})") from error
    numbers = {character: i for i, character in enumerate(CHARACTERS)}
    tokens = torch.tensor([numbers.get(one, len(numbers)) for one in text.replace("\r\n", "\n")], dtype=torch.int64)
    count = (len(tokens) - 1) // length
    if count < 1:
        return None
    inputs, targets = (tokens[start : start + count * length].view(count, length) for start in (0, 1))
    return Rows(inputs, targets)
