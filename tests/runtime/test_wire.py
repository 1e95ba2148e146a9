"""Trees as Flower's records and back, and records that were made or changed by somebody else."""

import tracemalloc

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfields.runtime.wire import RAW, TREE, TYPES, Malformed, nbytes, pack, unpack

NAMES = st.text("abc./_-0ä", min_size=1, max_size=6)
TREES = NAMES.filter(lambda name: "//" not in f"{name}/")
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=9),
    st.binary(max_size=9),
)


@st.composite
def leaves(draw):
    shape, dtype = draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from(list(TYPES.values())))
    size = torch.Size(shape).numel() * dtype.itemsize
    return (
        torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size)) + b"\0" * 8), dtype=torch.uint8)[:size]
        .view(dtype)
        .reshape(shape)
    )


def bits(tree):
    """A tree to the bit, in its order: values that are no numbers, too, are equal to themselves."""
    return [
        (key, leaf.dtype, leaf.shape, bytes(leaf.reshape(-1).view(torch.uint8).numpy())) for key, leaf in tree.items()
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(TREES, st.dictionaries(NAMES, leaves(), max_size=3), max_size=3),
    st.dictionaries(NAMES.filter(lambda name: name not in ("order", "trees")), VALUES, max_size=3),
)
def test_what_is_packed_comes_out_to_the_bit_and_in_order(trees, info):
    found = unpack(pack(trees, info))
    assert list(found.trees) == list(trees)
    assert all(bits(found.trees[name]) == bits(tree) for name, tree in trees.items())
    assert found.info == info and all(type(found.info[key]) is type(value) for key, value in info.items())


def test_the_weight_is_that_of_numbers_and_byte_strings():
    record = pack(
        {"a": {"w": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}}, {"letter": b"12345", "n": 7}
    )
    assert nbytes(record) == 24 + 32 + 5


def record_of(**changes):
    """A record with one leaf of six floats, changed."""
    record = pack({"a": {"w": torch.arange(6.0).reshape(2, 3)}}, {"number": 1})
    for name, value in changes.items():
        setattr(record.array_records[TREE + "a"]["w"], name, value)
    return record


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b"\0" * 23},
        {"data": b"\0" * 25},
        {"data": b""},
        {"shape": (2, 4)},
        {"shape": (-2, -3)},
        {"shape": (2**40, 2**40)},
        {"shape": (2**62, 2, 2)},
        {"shape": (2.0, 3)},
        {"shape": (True, 6)},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": "complex64"},
        {"dtype": "float32 "},
        {"stype": "numpy.ndarray"},
        {"stype": "torch.tensor.pickle"},
    ],
    ids=str,
)
def test_a_leaf_that_is_not_what_it_says_is_refused(changes):
    tracemalloc.start()
    with pytest.raises(Malformed):
        unpack(record_of(**changes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    "shape", [(0, 2**70), (2**70, 0), (0, *(2**31,) * 3), (0, -1), (1,) * 10_000 + (0,)], ids=lambda s: str(s[:4])
)
def test_nothing_has_no_odd_shape(shape):
    with pytest.raises(Malformed):
        unpack(record_of(data=b"", shape=shape))


def test_records_that_are_none_of_ours_are_refused():
    def changed(**info):
        record = pack({"a": {"w": torch.zeros(2)}})
        record.config_records["info"] = ConfigRecord({**record.config_records["info"], **info})
        return record

    extra = pack({"a": {"w": torch.zeros(2)}})
    extra.array_records[TREE + "a"]["more"] = Array("float32", (1,), RAW, b"\0" * 4)
    bare = RecordDict({TREE + "a": ArrayRecord({})})
    cases = [
        RecordDict(),
        bare,
        extra,
        changed(order=["a//w", "a//w"]),
        changed(order=["a//other"]),
        changed(order=["b//w"]),
        changed(order=["w"]),
        changed(order=[]),
        changed(order="a//w"),
        changed(trees=["a", "b"]),
        changed(trees=[1]),
        changed(trees=7),
    ]
    for record in cases:
        with pytest.raises(Malformed):
            unpack(record)
