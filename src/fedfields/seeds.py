"""Random streams: one generator per run, round and client, so that no two draws depend on who ran first."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Generator


def seed_of(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by ``path`` under ``seed``; different paths are independent."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> Generator:
    """A CPU generator for the stream ``path`` under ``seed``, e.g. ``generator(7, "round", 3, "client", 12)``."""
    return torch.Generator().manual_seed(seed_of(seed, *path))
