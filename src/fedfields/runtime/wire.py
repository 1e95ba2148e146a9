"""Trees of tensors as Flower's records and back: raw numbers with their shapes, nothing to interpret, nothing pickled.

What comes in is believed only after its keys, types, shapes and lengths were compared with each other; whether it is
the model's is for :func:`fedfields.federation.validate` to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fedfields.runtime import offline as offline  # isort: split

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedfields.runtime.desk import Letter
from fedfields.types import Params

TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
}
"""What may travel."""

MOST_AXES, LARGEST = 16, 2**40
"""Axes of a leaf, and its entries, those of an empty one counted as if each axis had at least one: torch multiplies."""

INFO, TREE, RAW = "info", "tree.", "raw"


class Malformed(ValueError):
    """Something that was received is not what it says it is."""


def pack(trees: Mapping[str, Params], info: Mapping[str, Any] | None = None) -> RecordDict:
    """Trees and values as a record; values are bool, int, float, str, bytes, or lists of one of these.

    Names of trees hold no double slash, and do not end with one slash: what is before the first "//" is a tree's name.
    """
    order = [f"{name}//{key}" for name, tree in trees.items() for key in tree]
    records: dict[str, Any] = {INFO: ConfigRecord({"order": order, "trees": list(trees), **(info or {})})}
    for name, tree in trees.items():
        records[TREE + name] = ArrayRecord({key: _array(leaf) for key, leaf in tree.items()})
    return RecordDict(records)


def unpack(record: RecordDict) -> Letter:
    """The inverse of :func:`pack`.

    Raises:
        Malformed: the record was made by something else, or changed on the way.
    """
    try:
        info = dict(record.config_records[INFO])
        order, names = _words(info.pop("order")), _words(info.pop("trees"))
        found = {name: dict(record.array_records[TREE + name]) for name in names}
    except KeyError as error:
        raise Malformed(f"a message lacks its {error}") from error
    trees: dict[str, Params] = {name: {} for name in names}
    for place in order:
        name, _, key = place.partition("//")
        if name not in found or key not in found[name]:
            raise Malformed("a message has other leaves than it says")
        trees[name][key] = _tensor(found[name].pop(key))
    if any(found.values()):
        raise Malformed("a message has more leaves than it says")
    return Letter(trees, info)


def _words(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise Malformed("a message has no list of what is in it")
    return value


def nbytes(record: RecordDict) -> int:
    """Bytes of a record's arrays and byte strings: what it weighs, but for names."""
    arrays = sum(len(array.data) for part in record.array_records.values() for array in part.values())
    values = (value for part in record.config_records.values() for value in part.values())
    return arrays + sum(len(value) for value in values if isinstance(value, bytes))


def _array(leaf: torch.Tensor) -> Array:
    flat = leaf.detach().to("cpu").contiguous().reshape(-1)
    name = str(leaf.dtype).removeprefix("torch.")
    return Array(name, tuple(leaf.shape), RAW, flat.view(torch.uint8).numpy().tobytes())


def _tensor(array: Array) -> torch.Tensor:
    dtype = TYPES.get(array.dtype)
    if dtype is None or array.stype != RAW:
        raise Malformed(f"a leaf is of type {array.dtype!r} in {array.stype!r}, which is none of ours")
    shape, data = tuple(array.shape), array.data
    odd = len(shape) > MOST_AXES or any(type(size) is not int or size < 0 for size in shape)
    if odd or math.prod(shape) * dtype.itemsize != len(data) or math.prod(size or 1 for size in shape) > LARGEST:
        shape = shape[:MOST_AXES]
        raise Malformed(f"a leaf of shape {list(shape)} and type {array.dtype} has {len(data)} bytes")
    if not data:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
