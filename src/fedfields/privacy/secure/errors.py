"""How a round of secure aggregation ends when it does not end in a sum."""

from __future__ import annotations

from fedfields.errors import UserError


class Refused(UserError):
    """A client takes no further part in the round; to the others it has dropped out. ``peer`` is whom it blames."""

    def __init__(self, text: str, peer: int | None = None) -> None:
        super().__init__(text)
        self.peer = peer


class Abandoned(UserError):
    """The server gives the round up: no sum can be, or may be, computed. A new cohort may try again.

    ``dropped`` says why clients had dropped out, as far as a runtime wrote it down.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.dropped: dict[int, str] = {}
