"""Text fit to be shown, and figures as people say them."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any


def clean(text: Any, most: int = 80) -> str:
    """One line without control or direction-changing characters, not endless (plain text)."""
    shown = "".join(_shown(letter) for letter in str(text)[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _shown(letter: str) -> str:
    if letter.isspace():
        return " "
    direction = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return "\ufffd" if direction or unicodedata.category(letter) in ("Cc", "Cs") else letter


def esc(text: Any, most: int = 80) -> str:
    """Foreign text as HTML."""
    return html.escape(clean(text, most))


def prose(text: str) -> str:
    """Sentences as HTML; a figure stays on one line with its unit."""
    return re.sub(r"([\d.]) dB", "\\1\u00a0dB", esc(text, 1000))


def db(value: float | None, sign: bool = False) -> str:
    """Decibels to one place, or a dash."""
    if value is None:
        return "–"
    shown = f"{abs(value):.1f}"
    minus = value < 0 and shown != "0.0"
    return ("−" if minus else "+" if sign else "") + shown


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def operations(value: float) -> str:
    """Floating-point operations in decimal units, to three digits."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= 1000
    return f"{value:.3g} {unit}FLOP"


def duration(value: float | None) -> str:
    """Seconds as people say them."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def plural(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: list[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``: too close to call."""
    names = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} others"]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
