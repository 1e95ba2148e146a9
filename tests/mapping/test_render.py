"""Rays through a map: against all samples one by one, closed forms, finite differences, and with little memory."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fedfields.fields.hashgrid import harmonics
from fedfields.kernels import bricks as kernel
from fedfields.mapping import render as module
from fedfields.mapping.render import MapRays, render, stream, volume
from fedfields.mapping.voxels import Bricks, centres
from fedfields.rendering.rays import Rays

VOXEL = 0.25
EXACT = MapRays(samples=200, stop=0.0, least=0.0)


def cloud(count=400, seed=0, spread=8):
    """Bricks here and there on both sides of the origin, of which half of the voxels were seen."""
    random = np.random.default_rng(seed)
    coords = np.unique(random.integers(-spread, spread, (count, 3)), axis=0).astype(np.int32)
    visits = random.integers(0, 2, (len(coords), 512)).astype(np.uint16)
    density = (visits * random.exponential(1.5, visits.shape)).astype(np.float32)
    sh = visits[..., None] * random.standard_normal((*visits.shape, 27))
    return Bricks(coords, density, sh.astype(np.float32), visits)


def rays_of(count=120, seed=1, reach=30.0):
    """Rays from anywhere to anywhere near the cloud, in metres."""
    random = torch.Generator().manual_seed(seed)
    start = reach * (2 * torch.rand(count, 3, generator=random, dtype=torch.float64) - 1)
    end = 0.4 * reach * (2 * torch.rand(count, 3, generator=random, dtype=torch.float64) - 1)
    far = 1.5 * (end - start).norm(dim=1)
    return Rays(start, normalize(end - start, dim=1), torch.zeros_like(far), far)


def twin(found, rays, samples):
    values = [torch.from_numpy(leaf.astype(np.float64)) for leaf in (found.density, found.sh)]
    step = (rays.far - rays.near) / samples
    bricks = (torch.from_numpy(found.coords), *values, torch.from_numpy(found.visits.astype(np.int32)))
    basis = harmonics(rays.directions)
    return kernel.plain(*bricks, VOXEL, rays.origins, rays.directions, basis, rays.near, step, samples)


def as_doubles(found):
    return Bricks(found.coords, found.density.astype(np.float64), found.sh.astype(np.float64), found.visits)


def test_rays_see_what_all_samples_together_show():
    found, rays = cloud(), rays_of()
    exact = twin(found, rays, 200)
    assert exact.opacity.max() > 0.99 and (exact.opacity > 0.05).sum() > 50  # It is no empty picture.
    for ours, want in zip(render(volume(as_doubles(found), VOXEL), rays, EXACT), exact, strict=True):
        assert (ours - want).abs().max() < 1e-9 * max(1.0, float(want.abs().max()))
    single = render(volume(found, VOXEL), rays, EXACT)
    for ours, want in zip(single, exact, strict=True):
        assert (ours - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))


def test_ending_early_costs_a_thousandth():
    found, rays = cloud(), rays_of()
    exact, ours = twin(found, rays, 200), render(volume(found, VOXEL), rays, MapRays(samples=200))
    assert (ours.colour - exact.colour).abs().max() < 1e-3
    assert (ours.opacity - exact.opacity).abs().max() < 1e-3
    assert ((ours.depth - exact.depth).abs() < 1e-3 * rays.far).all()


class Shelf:
    """A map that counts how much of it was read."""

    def __init__(self, found):
        self.found, self.reads = found, 0

    def tiles(self):
        return {tuple(tile) for tile in (self.found.coords >> 3).tolist()}

    def bricks(self, tile):
        self.reads += 1
        return self.found.chosen((self.found.coords >> 3 == tile).all(1))


@pytest.mark.parametrize("budget", [0, 2**21, 2**40])
def test_a_small_budget_shows_the_same_picture_to_the_bit(budget):
    found, rays = cloud(500, spread=16), rays_of(60, reach=40.0)
    settings, shelf = MapRays(step=0.2), Shelf(found)
    whole, streamed = render(volume(found, VOXEL), rays, settings), stream(shelf, VOXEL, rays, settings, budget)
    assert whole.opacity.max() > 0.9
    for a, b in zip(whole, streamed, strict=True):
        assert torch.equal(a, b)
    if budget == 2**40:
        assert shelf.reads <= len(shelf.tiles())  # None twice.


def test_no_more_is_held_than_the_budget_allows():
    cache = module._Cache(100, len)
    made = [cache.get(name, lambda name=name: name * 30) for name in "abcab"]
    assert made == [name * 30 for name in "abcab"] and list(cache.held) == ["c", "a", "b"]
    cache.get("c", lambda: pytest.fail("it is held"))
    cache.get("d", lambda: "d" * 40)  # Drops a, which was not used for longest.
    assert list(cache.held) == ["b", "c", "d"]
    cache.get("e", lambda: "e" * 1000)  # Too large for the budget, and held alone.
    assert list(cache.held) == ["e"]
    cache.get("f", lambda: "f")
    assert list(cache.held) == ["f"]


def objective(seen, seed=2):
    """A number that depends on everything that is seen, with weights that vary."""
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(leaf.shape, generator=random, dtype=torch.float64) for leaf in seen]
    return sum((leaf * weight).sum() for leaf, weight in zip(seen, weights, strict=True))


def gradients(see, rays):
    leaves = [leaf.clone().requires_grad_() for leaf in (rays.origins, rays.directions)]
    value = objective(see(rays._replace(origins=leaves[0], directions=leaves[1])))
    return torch.autograd.grad(value, leaves)


def test_gradients_by_the_pose_are_those_of_the_twin():
    found, rays = cloud(), rays_of(60)
    ours = gradients(lambda moved: render(volume(as_doubles(found), VOXEL), moved, EXACT), rays)
    exact = gradients(lambda moved: twin(found, moved, 200), rays)
    single = gradients(lambda moved: render(volume(found, VOXEL), moved, EXACT), rays)
    for a, b, c in zip(ours, exact, single, strict=True):
        assert b.abs().max() > 0.1
        assert (a - b).abs().max() < 1e-9 * b.abs().max() and (c - b).abs().max() < 1e-4 * b.abs().max()


def test_gradients_by_the_pose_are_finite_differences():
    """Along random shifts and turns; steps so small that hardly a sample passes a voxel's face, where slopes jump."""
    found, rays, width = volume(as_doubles(cloud()), VOXEL), rays_of(40), 1e-7
    random = torch.Generator().manual_seed(4)
    slopes = gradients(lambda moved: render(found, moved, EXACT), rays)
    for k, name in enumerate(("origins", "directions")):
        way = torch.randn(40, 3, generator=random, dtype=torch.float64)
        ahead, back = (
            render(found, rays._replace(**{name: getattr(rays, name) + sign * width * way}), EXACT) for sign in (1, -1)
        )
        measured = float((objective(ahead) - objective(back)) / (2 * width))
        assert float((slopes[k] * way).sum()) == pytest.approx(measured, rel=1e-5)


def slab(density=0.8, bricks=4):
    """A full block of one density and grey, from 0 to 8 m along every axis."""
    coords = np.stack(np.meshgrid(*[np.arange(bricks)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    shape = (len(coords), 512)
    return Bricks(
        coords, np.full(shape, density, np.float32), np.zeros((*shape, 27), np.float32), np.ones(shape, np.uint16)
    )


def test_a_slab_is_the_law_of_beer_and_lambert():
    """Between its outer centres a block is homogeneous; beyond, density falls linearly to zero at the next centre,
    which is worth half a voxel on either side: the optical depth is that of 8 m."""
    rays = Rays(*torch.tensor([[[4.1, 3.9, -1.0]], [[0.0, 0.0, 1.0]]]).double(), torch.zeros(1), torch.tensor([10.0]))
    seen = render(volume(slab(), VOXEL), rays, MapRays(samples=20000, stop=0.0))
    assert float(seen.opacity) == pytest.approx(1 - math.exp(-0.8 * 8), abs=1e-6)
    assert seen.colour.flatten().tolist() == pytest.approx([0.5 * float(seen.opacity)] * 3, abs=1e-4)


def test_a_voxel_is_seen_where_its_centre_is():
    coords, visits = np.array([[-1, 0, 2]], np.int32), np.zeros((1, 512), np.uint16)
    visits[0, 64 * 3 + 8 * 5 + 7] = 1
    density = 1000.0 * visits.astype(np.float32)
    place = torch.from_numpy(centres(coords, VOXEL)[0, 64 * 3 + 8 * 5 + 7])
    assert place.tolist() == [(-8 + 3.5) * VOXEL, 5.5 * VOXEL, (16 + 7.5) * VOXEL]
    sh = np.zeros((1, 512, 27), np.float32)
    away = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]]).double()
    origins = place + 5 * away + 0.9 * VOXEL * away.roll(1, 1)  # Off by nearly as much as its influence reaches.
    rays = Rays(origins, -away, torch.zeros(4), torch.full((4,), 10.0))
    near = render(volume(Bricks(coords, density, sh, visits), VOXEL), rays, MapRays(step=0.01))
    assert (near.opacity > 0.9).all()
    past = rays._replace(origins=place + 5 * away + 1.1 * VOXEL * away.roll(1, 1))
    assert not render(volume(Bricks(coords, density, sh, visits), VOXEL), past, MapRays(step=0.01)).opacity.any()


def test_a_map_may_be_anywhere_and_rays_too():
    """The same picture a thousand kilometres away; rays that miss, point nowhere or are no numbers see nothing."""
    found, rays = cloud(), rays_of()
    shift = np.array([500_000, -400_000, 3000], np.int32)
    far = found._replace(coords=found.coords + shift)
    moved = rays._replace(origins=rays.origins + torch.from_numpy(8 * VOXEL * shift))
    for a, b in zip(render(volume(found, VOXEL), rays, EXACT), render(volume(far, VOXEL), moved, EXACT), strict=True):
        assert (a - b).abs().max() < 1e-5
    assert not render(volume(far, VOXEL), rays, EXACT).opacity.any()
    rays.origins[0], rays.directions[1] = torch.nan, torch.inf
    rays = rays._replace(far=torch.where(torch.arange(120) == 2, -1.0, rays.far))
    seen = render(volume(found, VOXEL), rays, EXACT)
    assert not seen.opacity[:3].any() and torch.isfinite(seen.colour).all()
    with pytest.raises(ValueError, match="too far from the origin"):
        volume(found._replace(coords=found.coords + np.array([2**26, 0, 0], np.int32)), VOXEL)


def test_an_empty_map_shows_nothing():
    none = cloud().chosen(slice(0, 0))
    assert not render(volume(none, VOXEL), rays_of(), MapRays()).opacity.any()
    assert not stream(Shelf(none), VOXEL, rays_of(), MapRays(), 0).opacity.any()


def test_threads_do_not_change_a_bit():
    found, rays, pictures = volume(cloud(), VOXEL), rays_of(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        pictures.append(render(found, rays, MapRays()))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in pictures[1:] for a, b in zip(pictures[0], other, strict=True))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"step": -1.0}, {"step": math.nan}, {"stop": 1.0}, {"least": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        MapRays(**wrong)
