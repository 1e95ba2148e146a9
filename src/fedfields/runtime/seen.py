"""What a curious server saw of the clients: remembered from round to round, and kept for a full audit afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfields.audit import Observation, save_observations
from fedfields.federation import Method
from fedfields.runtime.checkpoint import Uploads
from fedfields.runtime.inprocess import Round
from fedfields.strategies import Strategy
from fedfields.types import Client, Params


def given_away(strategy: Strategy, step: Round) -> dict[int, tuple[int, Params]]:
    """By client, the round and the weights that its report gave away in it.

    Of a secure sum, everybody's is the mean: what the sum gives away as if it were one report.
    """
    number, start = step.state.round, step.received["params"]
    reports = {i: (step.total or reply.report, reply.steps) for i, reply in step.replies.items()}
    return {i: (number, strategy.uploaded(start, *report)) for i, report in reports.items()}


def in_transit(step: Round) -> tuple[int, Params] | None:
    """One client, and its report of a secure sum as the server saw it, read as if nothing had masked it.

    Its weight is masked too; it is taken for one, as for a client like the others.
    """
    if step.total is None or not step.replies:
        return None
    client = min(step.replies)
    delta = step.replies[client].report["delta"]
    start = step.received["params"]
    return client, {key: leaf - delta[key].to(leaf.dtype) for key, leaf in start.items()}


def remembered(uploads: Uploads, strategy: Strategy, step: Round) -> Uploads:
    """The uploads after a round: its own in place of older ones of the same clients."""
    last = uploads.last | given_away(strategy, step)
    needed = {number for number, _ in last.values()}
    broadcasts = uploads.broadcasts | {step.state.round: step.received["params"]}
    return Uploads(last, {number: broadcasts[number] for number in sorted(needed)})


def observations(clients: Sequence[Client], method: Method, uploads: Uploads) -> list[Observation]:
    """What the server last saw of every client; clients whose last reports are in the same secure sum are together."""
    senders: dict[int, list[int]] = {}
    for i, (number, _) in sorted(uploads.last.items()):
        senders.setdefault(number if method.sums else -i, []).append(i)
    found = []
    for together in senders.values():
        number, weights = uploads.last[together[0]]
        names = tuple(clients[i].name for i in together)
        found.append(Observation(names, number, uploads.broadcasts[number], weights))
    return found


def keep(folder: Path, seen: Sequence[Observation], number: int) -> None:
    """Writes what the server saw in one round into a run's folder, for a full audit afterwards."""
    uploads = [one for one in seen if one.round == number]
    if uploads:
        save_observations(folder / "observations" / f"round-{number:06d}.safetensors", uploads)
