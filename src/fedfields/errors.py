"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. Its text is one line: what was found, where, and what to do."""
