"""Alignment: eq. 5 against finite differences and by hand, known offsets found again, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedfields.errors import UserError
from fedfields.mapping.align import (
    Alignment,
    Brought,
    Views,
    _equations,
    _shown,
    align,
    around,
    changed,
    fitted,
    judged_at,
    mismatch,
    refined,
    target,
    views_of,
    weighed,
)
from fedfields.mapping.register import Search, levels_of, register, surface_of
from fedfields.mapping.rigid import about, after, apart, moved
from fedfields.mapping.voxels import Bricks
from tests.mapping.places import baked, village

VOXEL, OFFSET = 0.5, np.array([0.2, 0.13, 0.07])
TRUTH = np.concatenate([np.eye(3), OFFSET[:, None]], 1)
SETTINGS = Alignment(search=Search(metres=8, degrees=15, hypotheses=8192), steps=20, rays=2048)
HOUSES = village(0, 14, 20)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def cameras(count=12):
    """Looking down from 25 m, some of them aslant."""
    rng = np.random.default_rng(3)
    turns = Rotation.from_euler("zx", rng.uniform([0, -10], [360, 40], (count, 2)), degrees=True).as_matrix()
    places = np.concatenate([rng.uniform([-8, -15], [20, 12], (count, 2)), np.full((count, 1), 25.0)], 1)
    return np.concatenate([turns, places[..., None]], 2)


@pytest.fixture(scope="module")
def world():
    return target(baked(HOUSES, (-24, -24, -2), (24, 24, 12), VOXEL, 1, 0.5), VOXEL, SETTINGS)


@pytest.fixture(scope="module")
def part():
    """The same village by another lattice, of another part, with other errors."""
    return baked(HOUSES, (-12, -20, -2), (24, 16, 12), VOXEL, 2, 0.5, OFFSET)


def wrong(seed, bricks, metres=8.0, degrees=15.0):
    """The true pose, turned about the middle by angles about each axis, and shifted."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    return after(about(turn, rng.uniform(-metres, metres, 3), surface_of(bricks, VOXEL).places.mean(0)), TRUTH)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_pose_is_put_right(world, part, seed):
    start, middle = wrong(seed, part), surface_of(part, VOXEL).places.mean(0)
    assert min(apart(start, TRUTH, middle)) > 4
    found = align(world, Brought("drone 7", part, cameras(), start), SETTINGS, chance(seed))
    degrees, metres = apart(found.pose, TRUTH, middle)
    assert degrees < 0.6
    assert metres < 0.2
    assert found.confidence > 0.9
    assert found.overlap > 0.9
    again = align(world, Brought("drone 7", part, cameras(), start), SETTINGS, chance(seed))
    assert np.array_equal(again.pose, found.pose)


def test_eq_5_improves_on_voxels(world, part):
    views = views_of(Brought("drone 7", part, cameras(), TRUTH), VOXEL, SETTINGS, chance())
    middle = surface_of(part, VOXEL).places.mean(0)
    near = after(
        about(Rotation.from_rotvec([0.01, -0.01, 0.01]).as_matrix(), np.array([0.3, -0.2, 0.2]), middle), TRUTH
    )
    found = refined(world, views, near[None], SETTINGS)
    assert found.loss < 0.8 * judged_at(world, views, near, SETTINGS).loss
    assert all(a < 0.5 * b for a, b in zip(apart(found.pose, TRUTH, middle), apart(near, TRUTH, middle), strict=True))


def test_hypotheses_on_voxels_come_within_a_voxel(world, part):
    start, surface = wrong(4, part), surface_of(part, VOXEL)
    found = register(world.levels, surface, start, SETTINGS.search, chance())
    assert len(found) <= SETTINGS.search.candidates
    degrees, metres = apart(found[0], TRUTH, surface.places.mean(0))
    assert degrees < 2
    assert metres < VOXEL


def test_what_is_read_of_a_map_holds_all_poses_of_the_search(part):
    start, search = wrong(5, part), SETTINGS.search
    low, high = around(Brought("drone 7", part, cameras(), start), VOXEL, search)
    for seed in range(20):
        rng, places = np.random.default_rng(seed), surface_of(part, VOXEL).places
        centre, shift = moved(start, places).mean(0), rng.uniform(-search.metres, search.metres, 3)
        small = Rotation.from_rotvec(rng.uniform(-0.01, 0.01, 3)).as_matrix()
        there = moved(after(about(small, shift, centre), start), places)
        assert (there > low).all() and (there < high).all()
    assert (high - low).max() < 2 * (40 + 8)


def in_double(bricks):
    return Bricks(bricks.coords, bricks.density.astype(np.float64), bricks.sh.astype(np.float64), bricks.visits)


def test_the_gradient_of_eq_5_is_that_of_finite_differences(part):
    """In float64, by differences so small that next to no sample crosses a wall of voxels."""
    bricks = in_double(baked(HOUSES, (-12, -20, -2), (24, 16, 12), VOXEL, 5, 0.2))
    to = target(bricks, VOXEL, SETTINGS)
    views = views_of(Brought("drone 7", part, cameras(), TRUTH), VOXEL, SETTINGS, chance())
    views = views.chosen(torch.arange(0, len(views.rays.near), 16))
    pose, centre = torch.from_numpy(TRUTH), torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)

    def loss(step):
        return mismatch(to, views, changed(pose, step, centre, 25.0), Alignment(depth=10.0))

    step = torch.tensor([0.01, -0.006, 0.004, 0.003, 0.005, -0.002], dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(loss(step), step)
    with torch.no_grad():
        small = 1e-7 * torch.eye(6, dtype=torch.float64)
        theirs = torch.stack([(loss(step + e) - loss(step - e)) / 2e-7 for e in small])
    assert ours.abs().min() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


def test_the_equations_of_a_step_are_those_of_finite_differences(part):
    """Jacobians of all rays by differences; weighted by one over the residuals, of which small ones count as 0.01."""
    bricks = in_double(baked(HOUSES, (-12, -20, -2), (24, 16, 12), VOXEL, 5, 0.2))
    to, settings = target(bricks, VOXEL, SETTINGS), Alignment(colour=0.6, depth=10.0)
    views = views_of(Brought("drone 7", part, cameras(), TRUTH), VOXEL, SETTINGS, chance())
    views = views.chosen(torch.arange(0, len(views.rays.near), 16))
    pose, centre = torch.from_numpy(TRUTH), torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)

    def residuals(step):
        with torch.no_grad():
            shown, both = _shown(to, views, changed(pose, step, centre, 25.0))
        off = torch.cat([shown.colour - views.seen.colour, (shown.depth - views.seen.depth)[:, None]], 1)
        return off * torch.tensor([0.2, 0.2, 0.2, 0.04]) * both[:, None]

    small = 1e-7 * torch.eye(6, dtype=torch.float64)
    jacobian = torch.stack([(residuals(e) - residuals(-e)) / 2e-7 for e in small], -1).flatten(0, 1)
    off = residuals(torch.zeros(6, dtype=torch.float64)).flatten()
    weight = 1 / off.abs().clamp_min(0.01)
    normal, slope = _equations(to, views, pose, settings, centre, 25.0)
    assert normal.diag().min() > 1e-3
    torch.testing.assert_close(
        normal, (jacobian * weight[:, None]).T @ jacobian, rtol=5e-3, atol=1e-3 * float(normal.max())
    )
    torch.testing.assert_close(slope, jacobian.T @ (weight * off), rtol=5e-3, atol=1e-3 * float(slope.abs().max()))


def test_depth_counts_as_much_as_it_is_worth(world, part):
    """Colours 0.1 and depths 2 m wrong everywhere: 20 m are as bad as black for white."""
    views = views_of(Brought("drone 7", part, cameras(), TRUTH), VOXEL, SETTINGS, chance())
    shown, _ = _shown(world, views, torch.from_numpy(TRUTH))
    other = Views(views.rays, shown._replace(colour=shown.colour - 0.1, depth=shown.depth + 2.0))
    assert weighed(world, other, TRUTH, SETTINGS).depth == pytest.approx(20.0)
    assert weighed(world, other, TRUTH, Alignment(depth=3.0)).depth == 3.0
    assert judged_at(world, other, TRUTH, SETTINGS).loss == pytest.approx(0.1)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_eq_5_by_hand(world, part, weight):
    """Own colours 0.1 darker, depths a metre longer than what the map shows: 0.1 lambda + 1 / 10 (1 - lambda)."""
    settings = Alignment(colour=weight, depth=10.0)
    views = views_of(Brought("drone 7", part, cameras(), TRUTH), VOXEL, SETTINGS, chance())
    pose = torch.from_numpy(TRUTH)
    shown, both = _shown(world, views, pose)
    assert 500 < both.sum() <= len(both)
    other = Views(views.rays, shown._replace(colour=shown.colour - 0.1, depth=shown.depth + 1.0))
    value = mismatch(world, other, pose, settings)
    assert float(value) == pytest.approx(0.1 * weight + 0.1 * (1 - weight))


def test_a_change_turns_about_what_is_seen():
    pose = torch.from_numpy(
        after(about(Rotation.from_euler("z", 30, degrees=True).as_matrix(), np.ones(3), OFFSET), TRUTH)
    )
    centre = torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    step = torch.tensor([0.3, -0.2, 0.1, 0.01, 0.02, 0.03], dtype=torch.float64)
    ours = changed(pose, step, centre, 40.0).numpy()
    middle = moved(pose.numpy(), centre.numpy())
    turn = Rotation.from_rotvec(step[:3].numpy()).as_matrix()
    assert np.allclose(ours, after(about(turn, 40 * step[3:].numpy(), middle), pose.numpy()), atol=1e-12)


def refusal(*given, settings=SETTINGS):
    with pytest.raises(UserError) as caught:
        align(*given, settings, chance())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_pose_is_refused_in_one_line(world, part):
    broken = TRUTH.copy()
    broken[0, 3] = np.nan
    assert "NaN" in refusal(world, Brought("drone 7", part, cameras(), broken))
    assert "no rotation" in refusal(world, Brought("drone 7", part, cameras(), TRUTH * 1.5))
    assert "left-handed" in refusal(world, Brought("drone 7", part, cameras(), TRUTH * [[1.0], [1.0], [-1.0]]))
    assert "camera of contribution 'drone 7'" in refusal(world, Brought("drone 7", part, cameras() + np.inf, TRUTH))
    assert "no cameras" in refusal(world, Brought("drone 7", part, cameras()[:0], TRUTH))
    assert "no surfaces" in refusal(
        world, Brought("drone 7", part._replace(density=0 * part.density), cameras(), TRUTH)
    )


def test_what_does_not_overlap_is_refused_in_one_line(world, part):
    start = TRUTH + np.array([[0, 0, 0, 500.0]] * 3)
    assert "does not overlap the map" in refusal(world, Brought("drone 7", part, cameras(), start))


def test_another_village_is_refused_in_one_line(world):
    other = baked(village(9, 14, 20), (-12, -20, -2), (24, 16, 12), VOXEL, 2, 0.5, OFFSET)
    said = refusal(world, Brought("drone 8", other, cameras(), TRUTH), settings=SETTINGS)
    assert "contribution 'drone 8' is refused" in said
    assert (
        fitted(world, Brought("drone 8", other, cameras(), TRUTH), SETTINGS, chance()).confidence < SETTINGS.confidence
    )


def test_an_empty_map_is_refused_in_one_line(part):
    with pytest.raises(UserError, match="the map has no surfaces here"):
        target(part._replace(density=0 * part.density), VOXEL, SETTINGS)


def test_levels_hold_surface_colour_and_what_was_seen_to_be_empty():
    """A floor of two colours: full at its height, taken away above it, nothing where nobody looked."""
    bricks = baked(
        village(0, 1, 0.0)._replace(middles=np.full((1, 3), 99.0)), (-16, -16, -2), (16, 16, 8), 0.5, thick=3.0
    )
    level = levels_of(bricks, 0.5, Search(metres=10))[1]
    assert level.cell == 1.0

    def at(*place):
        return level.values[tuple(((np.array(place) - level.low) / level.cell).astype(int))]

    assert at(0.5, 0.5, -0.5)[0] > 0.2 > 0 > at(0.5, 0.5, 2.5)[0]
    assert at(0.5, 0.5, 2.5)[0] == pytest.approx(-0.3 + 1 / 16)  # Twice 1/4, 1/2, 1/4 of the cell two below.
    assert not at(0.5, 0.5, 4.5).any()


@pytest.mark.parametrize("broken", [{"colour": 1.5}, {"depth": -1.0}, {"steps": 0}, {"angle": 200.0}])
def test_impossible_settings_are_refused(broken):
    with pytest.raises(ValueError, match=r"colour|impossible|at least 1"):
        Alignment(**broken)
    with pytest.raises(ValueError, match="impossible"):
        Search(metres=float("nan"))
