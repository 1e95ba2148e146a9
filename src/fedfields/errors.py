"""The one exception that a user is meant to read, and what may be said of the others."""

from __future__ import annotations

import re

_PRIVATE = r"\S*[/\\]\S*|'[^']*'|\"[^\"]*\"|\[[^\]]*\]?"
"""Paths, what stands in quotation marks, and lists of values."""


class UserError(Exception):
    """Something the user can put right. Its text is one line: what was found, where, and what to do."""


def said(error: BaseException) -> str:
    """Kind and words of a client's error as others may read them: without paths, quotations and lists, and short."""
    words = re.sub(_PRIVATE, "...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {words[:200]}"
