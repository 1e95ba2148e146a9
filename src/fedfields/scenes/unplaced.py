"""Why structure from motion could not place a photograph, and what its owner can do about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

ENOUGH = 15
"""So many matches that fit one motion of the camera link two photographs; COLMAP's own limit."""


class Links(NamedTuple):
    """What matching found.

    Attributes:
        features: how many features each photograph has, by name.
        matches: of pairs of names, how many matches fit one motion of the camera.
    """

    features: Mapping[str, int]
    matches: Mapping[tuple[str, str], int]

    def partners(self, name: str) -> dict[str, int]:
        """The photographs that ``name`` has any matches with, most matches first."""
        found = {b if a == name else a: count for (a, b), count in self.matches.items() if name in (a, b) and count}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def linked(self, name: str) -> dict[str, int]:
        """Those with `ENOUGH` matches, most matches first."""
        return {other: count for other, count in self.partners(name).items() if count >= ENOUGH}


def reason(
    name: str,
    links: Links,
    placed: Collection[str],
    elsewhere: Collection[str] = (),
    called: Mapping[str, str] | None = None,
) -> str:
    """Why ``name`` was not placed, in one line.

    Args:
        name: the photograph.
        links: what matching found.
        placed: the photographs of the model.
        elsewhere: those of smaller models, which have nothing to do with it.
        called: what to call each photograph; its name without this.
    """
    called = called or {one: one for one in links.features}
    count = links.features[name]
    if count < ENOUGH:
        return f"no features ({count} found): blurred, dark or plain; take it again, sharp, with more texture in it"
    linked = links.linked(name)
    if not linked:
        best = next(iter(links.partners(name).items()), None)
        most = f"at most {best[1]}, with {called[best[0]]}" if best else "none"
        return f"too few matches with any other ({most}); take it again, sharp, sharing two thirds with a neighbour"
    group = _group(name, links)
    if name in elsewhere or not group & set(placed):
        others = sorted(called[one] for one in group - {name} - set(placed))
        with_whom = f"with {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}" if others else "alone"
        return f"another component, {with_whom}; take photos that lead from it to the placed ones in small steps"
    other, best = next(iter({one: n for one, n in linked.items() if one in placed}.items()), next(iter(linked.items())))
    return f"matched but not placed ({best} matches with {called[other]}); take photos between it and its neighbours"


def _group(name: str, links: Links) -> set[str]:
    """The photographs that links lead to from ``name``, with itself."""
    group, waiting = {name}, [name]
    while waiting:
        fresh = links.linked(waiting.pop()).keys() - group
        group |= fresh
        waiting += fresh
    return group
