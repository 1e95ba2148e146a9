"""Fixed point: exact sums, unbiased rounding, no overflow at the edge, no silent clipping."""

import math

import numpy as np
import pytest
import torch

from fedfields.privacy.secure import FixedPoint, Refused


def report_of(*values, weight=1.0, dtype=torch.float32):
    return {
        "delta": {"b": torch.tensor(values, dtype=dtype), "a": torch.zeros(2, 3, dtype=dtype)},
        "stats": {"weight": torch.tensor(weight, dtype=torch.float64)},
    }


def fixed_of(report, delta=1.0, stats=1000.0, clients=10, **kwargs):
    return FixedPoint.of(report, {"delta": delta, "stats": stats}, clients, **kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signed(vector):
    return vector.view(f"i{vector.itemsize}").astype(object)


@pytest.mark.parametrize("bits", [32, 64])
def test_what_fits_the_grid_comes_back_exactly(bits):
    report = report_of(0.5, -0.25, 1.0, -1.0, weight=37.0)
    fixed = fixed_of(report, bits=bits)
    vector, factor = fixed.encode(report, generator())
    assert (factor, vector.dtype.itemsize, len(vector)) == (1.0, bits // 8, fixed.length)
    back = fixed.decode(vector, 1)
    for name, part in report.items():
        for key, leaf in part.items():
            assert back[name][key].dtype == torch.float64
            assert torch.equal(back[name][key], leaf.double())


def test_scales_by_hand():
    fixed = fixed_of(report_of(0.0), delta=3.0, stats=1000.0, clients=10)
    assert fixed.largest == 214748364  # (2^31 - 1) // 10
    assert fixed.scale("delta") == 2**26  # 214748364 / 3 is between 2^26 and 2^27.
    assert fixed.scale("stats") == 2**17
    wide = fixed_of(report_of(0.0), delta=1.0, bits=64)
    assert wide.scale("delta") == 2**52


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clients", [1, 2, 3, 100, 1000])
@pytest.mark.parametrize("limit", [1.0, 0.02, 3.0, 1e-30, 1e9])
def test_no_sum_overflows_even_if_all_send_the_largest(bits, clients, limit):
    edge = float(np.nextafter(limit, 0))
    report = report_of(limit, -limit, edge, -edge, dtype=torch.float64)
    fixed = fixed_of(report, delta=limit, clients=clients, bits=bits)
    integers = [signed(fixed.encode(report, generator(i)).vector) for i in range(2)]
    assert max(abs(q) for vector in integers for q in vector) <= fixed.largest
    assert clients * fixed.largest < 2 ** (bits - 1)
    total = np.zeros(fixed.length, fixed.dtype)
    for _ in range(clients):
        total += fixed.encode(report, generator()).vector
    sums = fixed.decode(total, clients)["delta"]["b"]
    assert torch.allclose(sums, clients * report["delta"]["b"], rtol=0, atol=clients / fixed.scale("delta"))


def test_rounding_is_random_and_unbiased():
    report = report_of(*([0.3] * 20000), *([-0.7] * 20000), dtype=torch.float64)
    fixed = fixed_of(report, delta=2**28, clients=1)  # Steps of 1/4.
    assert fixed.scale("delta") == 4
    low, high = fixed.decode(fixed.encode(report, generator()).vector, 1)["delta"]["b"].chunk(2)
    assert set(low.tolist()) == {0.25, 0.5}
    assert set(high.tolist()) == {-0.75, -0.5}
    for values, mean in ((low, 0.3), (high, -0.7)):
        share = 4 * mean - math.floor(4 * mean)
        spread = math.sqrt(share * (1 - share) / 20000) / 4
        assert abs(float(values.mean()) - mean) < 4 * spread


def test_same_generator_same_integers():
    report = report_of(*[0.1] * 100, dtype=torch.float64)
    fixed = fixed_of(report)
    a, b, c = (fixed.encode(report, generator(seed)).vector for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_tree_out_of_range_takes_all_data_trees_along():
    report = report_of(4.0, -2.0, weight=3.0) | {"extra": {"x": torch.tensor([0.5])}}
    fixed = FixedPoint.of(report, {"delta": 1.0, "extra": 1.0, "stats": 10.0}, 4, bits=64)
    vector, factor = fixed.encode(report, generator())
    back = fixed.decode(vector, 1)
    assert factor == pytest.approx(0.25)
    assert back["delta"]["b"].tolist() == pytest.approx([1.0, -0.5])
    assert back["extra"]["x"].tolist() == pytest.approx([0.125])
    assert back["stats"]["weight"] == 3.0  # Not data.


def test_out_of_range_can_be_refused():
    report = report_of(4.0)
    with pytest.raises(Refused, match="delta reaches 4, beyond the agreed 1"):
        fixed_of(report, refuse=True).encode(report, generator())


def test_a_weight_out_of_range_is_always_refused():
    report = report_of(0.0, weight=1001.0)
    with pytest.raises(Refused, match="stats reaches 1001, beyond the agreed 1000"):
        fixed_of(report).encode(report, generator())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["delta", "stats"])
def test_what_is_not_finite_never_leaves(value, where):
    report = report_of(0.0, value) if where == "delta" else report_of(0.0, 0.0, weight=value)
    with pytest.raises(Refused, match="not finite"):
        fixed_of(report).encode(report, generator())


@pytest.mark.parametrize("change", ["tree", "key", "shape"])
def test_a_report_of_another_model_is_refused_and_hashes_otherwise(change):
    report = report_of(0.0, 0.0)
    other = report_of(0.0, 0.0)
    if change == "tree":
        other["more"] = {"x": torch.zeros(1)}
    elif change == "key":
        other["delta"]["c"] = other["delta"].pop("b")
    else:
        other["delta"]["a"] = torch.zeros(3, 2)
    fixed = fixed_of(report)
    with pytest.raises(Refused, match="not shaped as agreed"):
        fixed.encode(other, generator())
    limits = {name: 1.0 for name in other}
    assert FixedPoint.of(other, limits, 10).digest != FixedPoint.of(report, {"delta": 1.0, "stats": 1.0}, 10).digest


def test_the_hash_covers_ranges_cohort_and_modulus():
    report = report_of(0.0)
    variants = [fixed_of(report), fixed_of(report, delta=2.0), fixed_of(report, clients=11), fixed_of(report, bits=64)]
    assert len({fixed.digest for fixed in variants}) == 4
    assert fixed_of(report).digest == fixed_of({"stats": report["stats"], "delta": report["delta"]}).digest


def test_a_sum_out_of_reach_is_refused():
    fixed = fixed_of(report_of(0.0), clients=10)
    vector = np.full(fixed.length, 3 * fixed.largest + 1, fixed.dtype)
    fixed.decode(vector, 4)
    with pytest.raises(Refused, match="out of reach of 3 clients"):
        fixed.decode(vector, 3)
    for wrong, clients in ((vector[:-1], 3), (vector.astype("<u8"), 3), (vector, 0), (vector, 11)):
        with pytest.raises(Refused, match="none of this session"):
            fixed.decode(wrong, clients)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"bits": 16}, "modulus"),
        ({"clients": 0}, "clients"),
        ({"delta": 0.0}, "limit of delta"),
        ({"delta": math.inf}, "limit of delta"),
        ({"delta": math.nan}, "limit of delta"),
        ({"delta": 1e300}, "limit of delta"),
    ],
)
def test_what_cannot_be_agreed_on(kwargs, text):
    with pytest.raises(ValueError, match=text):
        fixed_of(report_of(0.0), **kwargs)


def test_every_tree_needs_a_limit():
    with pytest.raises(ValueError, match="one limit"):
        FixedPoint.of(report_of(0.0), {"delta": 1.0}, 10)


def test_an_empty_leaf_is_nothing():
    report = {"delta": {"x": torch.zeros(0), "y": torch.ones(2)}, "stats": {"weight": torch.tensor(1.0)}}
    fixed = fixed_of(report)
    back = fixed.decode(fixed.encode(report, generator()).vector, 1)
    assert back["delta"]["x"].shape == (0,)
    assert back["delta"]["y"].tolist() == [1.0, 1.0]


def test_a_scaled_report_does_not_leave_its_range_by_rounding():
    """Where the limit is the largest integer to the bit, and no room is left above it."""
    for top in np.random.default_rng(0).uniform(1, 10, 300):
        limit = (2**31 - 1) // 3 / 2**20
        report = report_of(limit * top, -limit * top, dtype=torch.float64)
        fixed = fixed_of(report, delta=limit, clients=3)
        assert fixed.scale("delta") * limit == fixed.largest
        vector, factor = fixed.encode(report, generator())
        assert limit * top * factor <= limit
        assert max(abs(q) for q in signed(vector)) <= fixed.largest
