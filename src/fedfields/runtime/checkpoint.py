"""Checkpoints: everything that the next round depends on, in safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedfields.errors import UserError
from fedfields.federation import ServerState
from fedfields.store import cannot_write, discard, writing
from fedfields.types import Memory, Params

KEPT = 2
"""Checkpoints that stay on disk: the newest and, should it be damaged, the one before."""


class Uploads(NamedTuple):
    """The last upload of every client that had its turn: ``(round, weights)``, and the broadcasts they answered."""

    last: dict[int, tuple[int, Params]]
    broadcasts: dict[int, Params]


class Checkpoint(NamedTuple):
    """The whole state of a run after a round."""

    state: ServerState
    memories: dict[int, Memory]
    uploads: Uploads


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes ``folder/round-000123`` and removes all but the newest two.

    Raises:
        UserError: the disk is full or not writable; what was there before is untouched.
    """
    number = checkpoint.state.round
    target = folder / f"round-{number:06d}"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        rounds = {str(i): number for i, (number, _) in checkpoint.uploads.last.items()}
        flat = _flat(checkpoint)
        save_file(flat, temporary / "state.safetensors")
        meta = {"round": number, "uploads": rounds, "keys": list(flat)}
        (temporary / "state.json").write_text(json.dumps(meta))
        for file in temporary.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        discard(target)
        temporary.chmod(0o755)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        reason = error if isinstance(error, OSError) else OSError(0, str(error))
        raise cannot_write(target, reason) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in existing(folder)[:-KEPT]:
        discard(old)


def existing(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; None if there is none at all.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    found = existing(folder)
    for path in reversed(found):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    if found:
        raise UserError(f"no checkpoint in {folder} can be read; they are damaged: start the run anew")
    return None


def _flat(checkpoint: Checkpoint) -> Params:
    state, memories, uploads = checkpoint
    parts: Memory = {"params": state.params}
    parts |= {f"server/{name}": part for name, part in state.memory.items()}
    parts |= {f"client/{i}/{name}": part for i, kept in memories.items() for name, part in kept.items()}
    parts |= {f"upload/{i}": weights for i, (_, weights) in uploads.last.items()}
    parts |= {f"broadcast/{number}": weights for number, weights in uploads.broadcasts.items()}
    return {f"{name}//{key}": leaf.clone() for name, part in parts.items() for key, leaf in part.items()}


def _read(path: Path) -> Checkpoint:
    meta = json.loads((path / "state.json").read_text())
    parts: Memory = {}
    leaves = load_file(path / "state.safetensors")
    for key in meta["keys"]:  # In the order in which they were: sums over leaves depend on it.
        name, _, leaf_name = key.partition("//")
        parts.setdefault(name, {})[leaf_name] = leaves[key]
    memories: dict[int, Memory] = {}
    for name in parts:
        if name.startswith("client/"):
            _, index, part = name.split("/", 2)
            memories.setdefault(int(index), {})[part] = parts[name]
    last = {int(i): (number, parts[f"upload/{i}"]) for i, number in meta["uploads"].items()}
    broadcasts = {int(name.split("/")[1]): part for name, part in parts.items() if name.startswith("broadcast/")}
    server = {name.removeprefix("server/"): part for name, part in parts.items() if name.startswith("server/")}
    return Checkpoint(ServerState(parts["params"], server, int(meta["round"])), memories, Uploads(last, broadcasts))


def save_weights(path: Path, params: Params) -> None:
    """Writes weights alone as safetensors, whole or not at all."""
    with writing(path) as temporary:
        save_file({key: leaf.contiguous() for key, leaf in params.items()}, temporary)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads weights alone.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); finish the run, or run it again") from error


def save_leaves(path: Path, memory: Memory) -> None:
    """Writes named trees as safetensors, whole or not at all; the order of their leaves is kept."""
    flat = {f"{name}//{key}": leaf.contiguous() for name, part in memory.items() for key, leaf in part.items()}
    with writing(path) as temporary:
        save_file(flat, temporary, {"order": json.dumps(list(flat))})


def load_leaves(path: Path) -> Memory | None:
    """Reads what :func:`save_leaves` wrote; None if it is damaged."""
    memory: Memory = {}
    try:
        with safe_open(path, "pt") as file:
            for place in json.loads((file.metadata() or {})["order"]):
                name, _, key = place.partition("//")
                memory.setdefault(name, {})[key] = file.get_tensor(place)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return memory
