"""Checkpoints: everything that the next round depends on, in one safetensors file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedfields.errors import UserError
from fedfields.federation import ServerState
from fedfields.store import discard, read_tensors, write_tensors
from fedfields.types import Memory, Params

KEPT = 2
"""Checkpoints that stay on disk: the newest and, should it be damaged, the one before."""


class Uploads(NamedTuple):
    """What the server has of the clients, as far as a run keeps it.

    Attributes:
        last: the last upload of every client that had its turn, with its round; of a secure sum, the mean.
        broadcasts: what they answered, by round.
        masked: one client's last upload as it travelled to a secure sum, with the client's number.
    """

    last: dict[int, tuple[int, Params]]
    broadcasts: dict[int, Params]
    masked: tuple[int, Params] | None = None


class Checkpoint(NamedTuple):
    """The whole state of a run after a round."""

    state: ServerState
    memories: dict[int, Memory]
    uploads: Uploads


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes ``folder/round-000123.safetensors``; of the others, only the one before it stays.

    Raises:
        UserError: the disk is full or not writable; what was there before is untouched.
    """
    number = checkpoint.state.round
    about = {"round": number, "uploads": {str(i): number for i, (number, _) in checkpoint.uploads.last.items()}}
    target = folder / f"round-{number:06d}.safetensors"
    write_tensors(target, _flat(checkpoint), about)
    before = [path for path in existing(folder) if path.name <= target.name]
    for old in set(existing(folder)) - set(before[-KEPT:]):
        discard(old)


def existing(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("round-*.safetensors"))


def round_of(path: Path) -> int:
    """After which round a checkpoint was written."""
    return int(path.stem.removeprefix("round-"))


def load(folder: Path, most: int | None = None, warn: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The newest checkpoint that can be read; None if there is none at all.

    Args:
        folder: of the checkpoints.
        most: the last round that may be over; None for any.
        warn: told of each checkpoint that is damaged and left aside.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    damaged = []
    for path in reversed(existing(folder)):
        try:
            found = _read(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append(path)
            warn(f"{path} is damaged ({error}); going on from an older one")
            continue
        if most is None or found.state.round <= most:
            return found
    if damaged and damaged == existing(folder)[::-1]:
        raise UserError(f"no checkpoint in {folder} can be read; they are damaged: start the run anew")
    return None


def _flat(checkpoint: Checkpoint) -> Params:
    state, memories, uploads = checkpoint
    parts: Memory = {"params": state.params}
    parts |= {f"server/{name}": part for name, part in state.memory.items()}
    parts |= {f"client/{i}/{name}": part for i, kept in memories.items() for name, part in kept.items()}
    parts |= {f"upload/{i}": weights for i, (_, weights) in uploads.last.items()}
    parts |= {f"broadcast/{number}": weights for number, weights in uploads.broadcasts.items()}
    if uploads.masked is not None:
        parts[f"masked/{uploads.masked[0]}"] = uploads.masked[1]
    return {f"{name}//{key}": leaf for name, part in parts.items() for key, leaf in part.items()}


def _read(path: Path) -> Checkpoint:
    leaves, about = read_tensors(path)
    parts = _parts(leaves)
    memories: dict[int, Memory] = {}
    for name in parts:
        if name.startswith("client/"):
            _, index, part = name.split("/", 2)
            memories.setdefault(int(index), {})[part] = parts[name]
    last = {int(i): (number, parts[f"upload/{i}"]) for i, number in about["uploads"].items()}
    broadcasts = {int(name.split("/")[1]): part for name, part in parts.items() if name.startswith("broadcast/")}
    masked = next(((int(name.split("/")[1]), part) for name, part in parts.items() if name.startswith("masked/")), None)
    server = {name.removeprefix("server/"): part for name, part in parts.items() if name.startswith("server/")}
    state = ServerState(parts["params"], server, int(about["round"]))
    return Checkpoint(state, memories, Uploads(last, broadcasts, masked))


def save_weights(path: Path, params: Params) -> None:
    """Writes weights alone as safetensors, whole or not at all."""
    write_tensors(path, params)


def load_weights(path: Path) -> Params:
    """Reads weights alone.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return read_tensors(path)[0]
    except ValueError as error:
        raise UserError(f"{path} cannot be read as weights ({error}); finish the run, or run it again") from error


def save_leaves(path: Path, memory: Memory) -> None:
    """Writes named trees as safetensors, whole or not at all; the order of their leaves is kept."""
    write_tensors(path, {f"{name}//{key}": leaf for name, part in memory.items() for key, leaf in part.items()})


def load_leaves(path: Path) -> Memory | None:
    """Reads what :func:`save_leaves` wrote; None if it is damaged."""
    try:
        return _parts(read_tensors(path)[0])
    except ValueError:
        return None


def _parts(leaves: Params) -> Memory:
    """Trees by name from leaves called ``name//key``, in their order: sums over leaves depend on it."""
    parts: Memory = {}
    for place, leaf in leaves.items():
        name, _, key = place.partition("//")
        parts.setdefault(name, {})[key] = leaf
    return parts
