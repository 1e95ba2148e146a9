"""What an honest-but-curious server saw of a client, or of a sum of clients, and how it is kept for a later audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedfields.errors import UserError
from fedfields.store import writing
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
    flat = {f"start/{key}": leaf.contiguous().clone() for key, leaf in first.start.items()}
    for i, one in enumerate(observations):
        flat |= {f"upload/{i}/{key}": leaf.contiguous().clone() for key, leaf in one.upload.items()}
    meta = {
        "round": str(first.round),
        "senders": json.dumps([one.clients for one in observations]),
        "keys": json.dumps(list(first.start)),
    }
    with writing(path) as temporary:
        save_file(flat, temporary, metadata=meta)


def load_observations(path: Path) -> list[Observation]:
    """Reads what :func:`save_observations` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            keys, senders = json.loads(meta["keys"]), json.loads(meta["senders"])
            start = {key: file.get_tensor(f"start/{key}") for key in keys}
            return [
                Observation(
                    tuple(clients),
                    int(meta["round"]),
                    start,
                    {key: file.get_tensor(f"upload/{i}/{key}") for key in keys},
                )
                for i, clients in enumerate(senders)
            ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as observations ({error}); run the experiment again") from error
