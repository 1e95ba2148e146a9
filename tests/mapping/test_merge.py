"""The moving average by hand, and everything that is refused."""

import math

import numpy as np
import pytest

from fedfields.errors import UserError
from fedfields.mapping.merge import Mixing, blank, check_contribution, merged
from fedfields.mapping.voxels import Bricks, sorted_coords
from tests.mapping.made import POSE, bricks_of, contribution_of

HERE = sorted_coords(np.array([[0, 0, 0], [1, -3, 2]], np.int32))


def one_voxel(density, colour, cell=5):
    bricks = bricks_of(HERE, seen=0.0)
    bricks.density[1, cell], bricks.sh[1, cell], bricks.visits[1, cell] = density, colour, 1
    return bricks


def test_three_contributions_to_a_voxel_by_hand():
    """0.9 (0.9 (0.9 0 + 0.1 10) + 0.1 20) + 0.1 30 = 5.61, of weight 1 - 0.9^3 = 0.271."""
    layer = blank(HERE)
    for value in (10.0, 20.0, 30.0):
        layer = merged(layer, one_voxel(value, -value), kept=0.9)
    assert layer.bricks.density[1, 5] == pytest.approx(5.61, rel=1e-6)
    assert layer.bricks.sh[1, 5] == pytest.approx(-5.61, rel=1e-6)
    assert layer.weight[1, 5] == pytest.approx(0.271, rel=1e-6)
    assert layer.bricks.visits[1, 5] == 3
    assert layer.shown().density[1, 5] == pytest.approx(5.61 / 0.271, rel=1e-6)


@pytest.mark.parametrize(("first", "once", "twice"), [("debias", 8.0, (0.9 * 8 + 12) / 1.9), ("zero", 0.8, 1.92),
                                                      ("replace", 8.0, 8.4)])  # fmt: skip
def test_what_the_first_contribution_finds(first, once, twice):
    """Of 8 and then 12: their debiased average, 0.1 8 and 0.9 0.8 + 1.2, and 8 and 0.9 8 + 1.2."""
    layer = merged(blank(HERE), one_voxel(8.0, 8.0), 0.9, first)
    assert layer.shown().density[1, 5] == pytest.approx(once, rel=1e-6)
    layer = merged(layer, one_voxel(12.0, 12.0), 0.9, first)
    assert layer.shown().density[1, 5] == pytest.approx(twice, rel=1e-6)
    assert layer.shown().sh[1, 5, 26] == pytest.approx(twice, rel=1e-6)


def test_logarithms_of_densities_by_hand():
    """Of 10 and then 0.5: exp((0.9 log(10.001) + log(0.501)) / 1.9) - 0.001; colours are averaged as they are."""
    mixing, layer = Mixing(density="log"), blank(HERE)
    for value in (10.0, 0.5):
        layer = merged(layer, mixing.taken(one_voxel(value, value)), 0.9)
    found = mixing.given(layer.shown())
    log = (0.9 * math.log(10.001) + math.log(0.501)) / 1.9
    assert found.density[1, 5] == pytest.approx(math.exp(log) - 0.001, rel=1e-4)
    assert found.sh[1, 5] == pytest.approx((0.9 * 10 + 0.5) / 1.9, rel=1e-6)
    assert found.density[1, 4] == 0 and found.density[0].max() == 0  # What nobody saw stays empty.


@pytest.mark.parametrize("first", ["debias", "zero", "replace"])
def test_one_cloud_among_clear_skies_is_gone_and_a_wall_that_all_saw_stays(first):
    mixing, shown = Mixing(density="log", first=first), {}
    for name, values in {"cloud": (0.0, 20.0, 0.0, 0.0), "wall": (20.0,) * 4}.items():
        for one in (mixing, Mixing(first=first)):
            layer = blank(HERE)
            for value in values:
                layer = merged(layer, one.taken(one_voxel(value, 0.0)), 0.9, first)
            shown[name, one.density] = float(one.given(layer.shown()).density[1, 5])
    assert shown["cloud", "log"] < 0.05 and shown["cloud", "linear"] > 1
    if first != "zero":
        assert shown["wall", "log"] == pytest.approx(20, rel=1e-4) == shown["wall", "linear"]


def test_equation_4_to_the_last_digit_and_nothing_else_by_a_bit():
    before = merged(blank(HERE), bricks_of(HERE, 1), 0.9)
    brought = bricks_of([[1, -3, 2], [7, 7, 7]], 2)
    old = [array.copy() for array in (*before.bricks[1:], before.weight)]
    after = merged(before, brought, 0.9)
    touched = brought.visits[0] > 0  # The common brick is the second of the old and of the new ones.
    exact = 0.9 * old[0][1].astype(np.float64) + 0.1 * brought.density[0]
    assert np.abs(after.bricks.density[1] - exact)[touched].max() <= 2**-23 * exact.max()
    exact = 0.9 * old[1][1].astype(np.float64) + 0.1 * brought.sh[0]
    assert np.abs(after.bricks.sh[1] - exact)[touched].max() <= 2**-23 * np.abs(exact).max()
    for now, then in zip((*after.bricks[1:], after.weight), old, strict=True):
        assert now[0].tobytes() == then[0].tobytes()
        assert now[1][~touched].tobytes() == then[1][~touched].tobytes()


def test_bricks_that_are_new_get_their_place_in_the_order():
    layer = merged(blank(HERE), bricks_of(HERE, 1), 0.9)
    layer = merged(layer, bricks_of([[-5, 0, 0], [0, 0, 1], [9, 0, 0]], 2), 0.9)
    assert layer.bricks.coords.tolist() == [[-5, 0, 0], [0, 0, 0], [0, 0, 1], [1, -3, 2], [9, 0, 0]]
    for brick, source in [(1, bricks_of(HERE, 1)), (3, bricks_of(HERE, 1))]:
        row = source.coords.tolist().index(layer.bricks.coords[brick].tolist())
        assert np.array_equal(layer.bricks.density[brick], np.float32(0.1) * source.density[row])


def test_the_weight_of_a_contribution():
    assert Mixing().kept(views=50, age=7) == 0.9
    assert Mixing(views=10).kept(20, 0) == pytest.approx(0.9**2)
    assert Mixing(staleness=1.0).kept(1, 3) == pytest.approx(0.9**0.25)
    twice = merged(merged(blank(HERE), one_voxel(3.0, 1.0), 0.9), one_voxel(3.0, 1.0), 0.9)
    double = merged(blank(HERE), one_voxel(3.0, 1.0), Mixing(views=10).kept(20, 0))
    assert double.bricks.density[1, 5] == pytest.approx(twice.bricks.density[1, 5], rel=1e-6)


@pytest.mark.parametrize(
    "options", [{"eta": 1.0}, {"eta": -0.1}, {"first": "copy"}, {"views": -1}, {"staleness": -1.0}]
)
def test_mixing_that_makes_no_sense(options):
    with pytest.raises(ValueError, match="must"):
        Mixing(**options)


def changed(**parts):
    whole = contribution_of()
    return whole._replace(bricks=whole.bricks._replace(**parts))


def spoiled(name, value):
    array = getattr(contribution_of().bricks, name).copy()
    array.flat[3] = value
    return changed(**{name: array})


def posed(change):
    pose = POSE.copy()
    change(pose)
    return contribution_of()._replace(pose=pose)


BAD = {
    "nan in its density": (lambda: spoiled("density", np.nan), "density has nan"),
    "inf in its colours": (lambda: spoiled("sh", -np.inf), "sh has inf"),
    "too large for halves": (lambda: spoiled("sh", 1e5), "at most 65504"),
    "negative density": (lambda: spoiled("density", -0.5), "falls to -0.5"),
    "a pose of nans": (lambda: posed(lambda pose: pose.fill(np.nan)), "NaN"),
    "a pose that scales": (lambda: posed(lambda pose: np.multiply(pose, 2, out=pose)), "no rotation"),
    "a mirror": (lambda: posed(lambda pose: pose.__setitem__((0, 0), -1.0)), "left-handed"),
    "a huge box": (lambda: contribution_of(coords=[[0, 0, 0], [100_000, 0, 0]]), "200,002 m wide"),
    "out of the world": (lambda: contribution_of(coords=[[2**27, 0, 0]]), "m away"),
    "another voxel": (lambda: contribution_of()._replace(voxel=0.5), "0.5 m wide and the map's 0.25"),
    "another degree": (lambda: changed(sh=np.zeros((2, 512, 12), np.float32)), r"sh is float32 \[2, 512, 12\]"),
    "doubles": (lambda: changed(density=np.zeros((2, 512))), "float64"),
    "nothing": (lambda: changed(visits=np.zeros((2, 512), np.uint16)), "saw nothing"),
    "out of order": (lambda: changed(coords=np.array([[1, 0, 0], [0, 0, 0]], np.int32)), "not sorted"),
    "a brick twice": (lambda: changed(coords=np.zeros((2, 3), np.int32)), "twice"),
    "no name": (lambda: contribution_of(""), "1 to 200"),
    "a name of two lines": (lambda: contribution_of("a\nb"), "printable"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    make, why = BAD[case]
    with pytest.raises(UserError, match=why) as told:
        check_contribution(make(), 0.25, 2000.0, 65504.0)
    assert "\n" not in str(told.value) and "the map is as it was" in str(told.value)


def test_a_good_contribution_is_not_refused():
    check_contribution(contribution_of(), 0.25, 2000.0, 65504.0)
    assert isinstance(contribution_of().bricks, Bricks)
