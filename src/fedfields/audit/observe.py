"""What an honest-but-curious server saw of a client, or of a sum of clients, and how it is kept for a later audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedfields.errors import UserError
from fedfields.store import read_tensors, write_tensors
from fedfields.types import Params


class Observation(NamedTuple):
    """One upload as the server can work it out, or the mean of several that it only saw as a secure sum.

    Attributes:
        clients: who sent it; of a sum, all that are in it.
        round: in which round.
        start: the broadcast weights theta that the clients started from.
        upload: the client's weights w as its report gives them away (clipped and noised if they were); of a sum of n
            clients, the mean of their weights, which is the sum over n.
    """

    clients: tuple[str, ...]
    round: int
    start: Params
    upload: Params


def save_observations(path: Path, observations: Sequence[Observation]) -> None:
    """Writes the observations of one round, which share their ``start``, as safetensors."""
    first = observations[0]
    flat = {f"start/{key}": leaf for key, leaf in first.start.items()}
    for i, one in enumerate(observations):
        flat |= {f"upload/{i}/{key}": leaf for key, leaf in one.upload.items()}
    write_tensors(path, flat, {"round": first.round, "senders": [list(one.clients) for one in observations]})


def load_observations(path: Path) -> list[Observation]:
    """Reads what :func:`save_observations` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        flat, about = read_tensors(path)
        keys = [key.removeprefix("start/") for key in flat if key.startswith("start/")]
        start = {key: flat[f"start/{key}"] for key in keys}
        return [
            Observation(tuple(clients), about["round"], start, {key: flat[f"upload/{i}/{key}"] for key in keys})
            for i, clients in enumerate(about["senders"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as observations ({error}); run the experiment again") from error
