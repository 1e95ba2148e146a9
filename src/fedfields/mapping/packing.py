"""Voxels as safetensors: only those that were seen, in the precision that is asked for."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.mapping.merge import Contribution, Layer
from fedfields.mapping.voxels import CELLS, HARMONICS, Bricks, unseen
from fedfields.store import tensors_as_bytes, tensors_from_bytes
from fedfields.types import Params

Precision = Literal["float32", "float16", "bfloat16"]


def largest(precision: Precision) -> float:
    """The largest number of a precision."""
    return torch.finfo(getattr(torch, precision)).max


def packed(bricks: Bricks, precision: Precision) -> Params:
    """The M seen voxels of N bricks: which, in bits ``[N, 64]``, density ``[M]``, sh ``[M, 27]``, visits ``[M]``."""
    at, dtype = np.flatnonzero(bricks.visits), getattr(torch, precision)
    return {
        "coords": torch.from_numpy(bricks.coords),
        "seen": torch.from_numpy(np.packbits(bricks.visits > 0, axis=1)),
        "visits": torch.from_numpy(bricks.visits.reshape(-1)[at]),
        "density": torch.from_numpy(bricks.density.reshape(-1)[at]).to(dtype),
        "sh": torch.from_numpy(bricks.sh.reshape(-1, HARMONICS)[at]).to(dtype),
    }


def unpacked(tensors: Params) -> Bricks:
    """The inverse of `packed`.

    Raises:
        ValueError: the tensors do not fit together.
    """
    arrays = {name: tensors[name] for name in ("coords", "seen", "visits", "density", "sh")}
    bricks, count = len(arrays["coords"]), len(arrays["visits"])
    shapes = {"coords": (bricks, 3), "seen": (bricks, CELLS // 8), "visits": (count,), "density": (count,)}
    if any(arrays[name].shape != shape for name, shape in (shapes | {"sh": (count, HARMONICS)}).items()):
        raise ValueError("its tensors do not fit together")
    at = np.flatnonzero(np.unpackbits(arrays["seen"].numpy(), axis=1))
    if len(at) != count:
        raise ValueError(f"it marks {len(at)} voxels and has values of {count}")
    found = unseen(arrays["coords"].numpy().astype(np.int32))
    found.visits.reshape(-1)[at] = arrays["visits"].numpy().astype(np.uint16)
    found.density.reshape(-1)[at] = arrays["density"].float().numpy()
    found.sh.reshape(-1, HARMONICS)[at] = arrays["sh"].float().numpy()
    return found


def packed_layer(layer: Layer, precision: Precision) -> Params:
    """A layer as a file of the map has it: weights stay float32."""
    at = np.flatnonzero(layer.bricks.visits)
    return {**packed(layer.bricks, precision), "weight": torch.from_numpy(layer.weight.reshape(-1)[at])}


def unpacked_layer(tensors: Params) -> Layer:
    """The inverse of `packed_layer`."""
    bricks = unpacked(tensors)
    weight: NDArray[np.float32] = np.zeros(bricks.density.shape, np.float32)
    weight[bricks.visits > 0] = tensors["weight"].numpy()
    return Layer(bricks, weight)


def about(contribution: Contribution) -> dict[str, Any]:
    """What is told about the voxels of a contribution, as JSON."""
    told = {name: getattr(contribution, name) for name in ("name", "voxel", "views", "base", "source")}
    return {**told, "pose": contribution.pose.tolist()}


def contribution_as_bytes(contribution: Contribution, precision: Precision = "float32") -> bytes:
    """A contribution as a client sends it."""
    return tensors_as_bytes(packed(contribution.bricks, precision), about(contribution))


def contribution_from_bytes(content: bytes) -> Contribution:
    """What `contribution_as_bytes` made; its values are checked when it is merged.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        return contribution_of(*tensors_from_bytes(content))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{len(content):,} bytes are no contribution to a map: {why:.200}; send it again") from error


def contribution_of(tensors: Params, told: dict[str, Any]) -> Contribution:
    """A contribution from its voxels (see `packed`) and what was told `about` them."""
    pose = np.array(told["pose"], np.float64)
    base = None if told["base"] is None else int(told["base"])
    return Contribution(str(told["name"]), unpacked(tensors), float(told["voxel"]), pose, int(told["views"]), base)
