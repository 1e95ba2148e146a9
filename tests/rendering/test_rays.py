"""Rendering through any callable, whole pictures, and the loss."""

import math

import pytest
import torch

from fedfields.fields import Nerf, SimpleNerf
from fedfields.losses import RadianceLoss
from fedfields.rendering.rays import Rays, RenderSettings, march, render_image, render_rays
from fedfields.rendering.sampling import fedmenf_points
from fedfields.types import Batch

DOUBLE = torch.float64
FIELDS = [
    SimpleNerf(width=5, depth=3, frequencies=3, octaves=2.0),
    SimpleNerf(width=5, depth=3, frequencies=3, octaves=2.0, train_frequencies=True),
    Nerf(width=4, depth=3, skip=1, octaves=2, direction_octaves=1),
]
NAMES = ["simple", "simple-trained-frequencies", "nerf"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rays_of(count, samples=0, seed=0, dtype=DOUBLE):
    """Rays from about (0, 0, 4), with jitter for so many samples; some miss the unit ball at the origin."""
    spread = torch.rand(count, 3, generator=generator(seed), dtype=dtype) - 0.5
    directions = torch.nn.functional.normalize(torch.tensor([0.0, 0, -1], dtype=dtype) + 0.8 * spread, dim=-1)
    origins = torch.tensor([0.0, 0, 4], dtype=dtype) + 0.1 * spread
    jitter = torch.rand(count, samples, generator=generator(seed + 1), dtype=dtype) if samples else None
    near = torch.full((count,), 2.0, dtype=dtype)
    return Rays(origins, directions, near, near + 4, jitter)


def weights_of(field, dtype=DOUBLE):
    return {key: leaf.to(dtype) for key, leaf in field.init(generator()).items()}


def ball(positions, directions):
    """Opaque, of radius 1; its colour is that of its normal."""
    radius = positions.norm(dim=-1)
    return 1e6 * (radius < 1).to(positions), 0.5 + 0.5 * positions / radius[:, None]


@pytest.mark.parametrize("convention", ["strata", "fedmenf"])
def test_a_ball_is_seen_where_it_is(convention):
    rays = rays_of(50)
    along = (rays.origins * rays.directions).sum(-1)
    hit = -along - (along**2 - rays.origins.square().sum(-1) + 1).sqrt()  # Where the ray meets the unit sphere.
    seen = march(ball, rays, RenderSettings(samples=2000, convention=convention))
    touched = hit.isfinite()
    assert touched.any() and not touched.all() and not seen.opacity[~touched].any()
    torch.testing.assert_close(seen.depth[touched], hit[touched], rtol=0, atol=4 / 2000)
    points = rays.origins + hit[:, None] * rays.directions
    torch.testing.assert_close(seen.colour[touched], 0.5 + 0.5 * points[touched], rtol=0, atol=4 / 2000)


def test_rays_that_miss_show_what_is_behind_them():
    rays = rays_of(4)
    rays = rays._replace(directions=-rays.directions)
    assert torch.equal(march(ball, rays, RenderSettings(8)).colour, torch.ones(4, 3, dtype=DOUBLE))
    grey = march(ball, rays, RenderSettings(8, background=(0.5, 0.5, 0.5))).colour
    assert torch.equal(grey, torch.full((4, 3), 0.5, dtype=DOUBLE))
    behind = torch.rand(4, 3, generator=generator(), dtype=DOUBLE)
    assert torch.equal(march(ball, rays._replace(background=behind), RenderSettings(8)).colour, behind)


def test_directions_come_to_the_field_with_their_points():
    def looking(positions, directions):
        return torch.full_like(positions[:, 0], 1e6), directions

    rays = rays_of(3)
    torch.testing.assert_close(march(looking, rays, RenderSettings(5)).colour, rays.directions)


def test_the_official_convention_equals_its_formula():
    """Products of 1 - alpha, differences of points, and 1e-3 or 1e10 at the end."""
    field, rays = FIELDS[0], rays_of(6, samples=9)
    params = weights_of(field)
    at = fedmenf_points(rays.near, rays.far, 9, rays.jitter).at
    points = rays.origins[:, None] + at[..., None] * rays.directions[:, None]
    density, colour = (part.reshape(6, 9, -1) for part in field(params, points.reshape(-1, 3), points.reshape(-1, 3)))
    for background, last in [("white", 1e-3), ("black", 1e10), ((0.0, 0.5, 1.0), 1e10)]:
        deltas = torch.cat([at.diff(dim=-1), torch.full((6, 1), last, dtype=DOUBLE)], -1)
        alpha = 1 - (-density[..., 0] * deltas).exp()
        through = torch.cat([torch.ones(6, 1, dtype=DOUBLE), (1 - alpha).cumprod(-1)[:, :-1]], -1)
        weights = alpha * through
        behind = {"white": torch.ones(3), "black": torch.zeros(3)}.get(background, torch.tensor([0.0, 0.5, 1.0]))
        wanted = (weights[..., None] * colour).sum(1) + (1 - weights.sum(-1, keepdim=True)) * behind
        seen = render_rays(field, params, rays, RenderSettings(9, background, "fedmenf"))
        torch.testing.assert_close(seen.colour, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [1, 7 * 5, 10**6])
@pytest.mark.parametrize("jittered", [False, True])
def test_a_picture_does_not_depend_on_its_pieces(points, jittered):
    field, rays = FIELDS[2], rays_of(12, samples=7 if jittered else 0)
    params = {key: leaf.requires_grad_() for key, leaf in weights_of(field).items()}
    settings = RenderSettings(7)
    picture = render_image(field, params, rays, settings, (3, 4), points)
    wanted = render_rays(field, params, rays, settings)
    torch.testing.assert_close(picture.colour.reshape(-1, 3), wanted.colour.detach())
    torch.testing.assert_close(picture.depth.reshape(-1), wanted.depth.detach())
    assert picture.opacity.shape == (3, 4) and not picture.colour.requires_grad


def test_a_picture_needs_a_ray_for_each_pixel():
    with pytest.raises(ValueError, match="12 rays for 3 x 5 pixels"):
        render_image(FIELDS[0], weights_of(FIELDS[0]), rays_of(12), RenderSettings(2), (3, 5))


def test_chosen_rays_keep_their_parts_together():
    rays = rays_of(5, samples=2)
    some = rays.chosen(torch.tensor([3, 0]))
    assert torch.equal(some.origins, rays.origins[[3, 0]]) and torch.equal(some.far, rays.far[[3, 0]])
    assert some.jitter is not None and torch.equal(some.jitter, rays.jitter[[3, 0]]) and some.background is None


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_the_loss_is_the_mean_over_rays_and_channels(field):
    params, rays, loss = weights_of(field), rays_of(3, samples=4), RadianceLoss(field, RenderSettings(4))
    shown = render_rays(field, params, rays, RenderSettings(4)).colour
    assert float(loss(params, Batch(rays, shown))) == 0
    assert float(loss(params, Batch(rays, shown + 0.25))) == pytest.approx(0.0625)
    batch = Batch(rays, shown + torch.arange(9).reshape(3, 3))
    mirrored = loss.mirror(params, batch)
    torch.testing.assert_close(shown - mirrored.targets, batch.targets - shown)


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
@pytest.mark.parametrize("convention", ["strata", "fedmenf"])
def test_double_backward_works(field, convention):
    params = {key: leaf.requires_grad_() for key, leaf in weights_of(field).items()}
    batch = Batch(rays_of(2, samples=3), torch.rand(2, 3, generator=generator(3), dtype=DOUBLE))
    loss = RadianceLoss(field, RenderSettings(3, "white", convention))

    def value(*leaves):
        return loss(dict(zip(params, leaves, strict=True)), batch)

    leaves = tuple(params.values())
    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, leaves, fast_mode=True)


def test_training_brings_the_loss_down():
    """A field learns a ball of density from pictures of it, to better than the best single colour."""
    field = SimpleNerf(width=32, depth=3, frequencies=6, octaves=2.0)
    settings, rays = RenderSettings(24), rays_of(256, samples=24, dtype=torch.float32)
    batch = Batch(rays, march(ball, rays, settings).colour)
    params = {key: leaf.requires_grad_() for key, leaf in field.init(generator()).items()}
    optimiser, loss = torch.optim.Adam(params.values(), lr=1e-2), RadianceLoss(field, settings)
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(params, batch)
        value.backward()
        optimiser.step()
    assert value.item() < 0.3 * float(batch.targets.var(0, correction=0).mean())


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="0 samples"):
        RenderSettings(0)
    with pytest.raises(ValueError, match="convention"):
        RenderSettings(convention="nerf")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="jitter for 3 samples"):
        march(ball, rays_of(2, samples=3), RenderSettings(4))


def test_the_opacity_along_a_ray_is_in_world_units():
    def fog(positions, directions):
        return torch.full_like(positions[:, 0], 0.3), torch.zeros_like(positions)

    seen = march(fog, rays_of(2), RenderSettings(5, "black"))
    assert seen.opacity.tolist() == pytest.approx([1 - math.exp(-0.3 * 4)] * 2)
