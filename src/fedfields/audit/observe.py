"""What an honest-but-curious server saw of one client in one round, and how it is kept for a later audit."""

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
    """One upload as the server can work it out.

    Attributes:
        client: who sent it.
        round: in which round.
        start: the broadcast weights theta that the client started from.
        upload: the client's weights w as its report gives them away (clipped and noised if they were).
    """

    client: str
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
        "clients": json.dumps([one.client for one in observations]),
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
            keys, clients = json.loads(meta["keys"]), json.loads(meta["clients"])
            start = {key: file.get_tensor(f"start/{key}") for key in keys}
            return [
                Observation(
                    client, int(meta["round"]), start, {key: file.get_tensor(f"upload/{i}/{key}") for key in keys}
                )
                for i, client in enumerate(clients)
            ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as observations ({error}); run the experiment again") from error
