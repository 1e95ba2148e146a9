"""Compositing against closed forms, numbers by hand and another library."""

import math

import pytest
import torch

from fedfields.rendering.compositing import composite, distortion, weights_of

DOUBLE = torch.float64


def evenly(near, far, count, rays=1):
    edges = torch.linspace(near, far, count + 1, dtype=DOUBLE).expand(rays, -1)
    return edges[:, :-1], edges[:, 1:]


def random_rays(seed=0, rays=5, count=7, density=3.0):
    """Densities, colours, starts and ends; the intervals have no gaps."""
    generator = torch.Generator().manual_seed(seed)
    widths = 0.1 + torch.rand(rays, count + 1, generator=generator, dtype=DOUBLE)
    edges = widths.cumsum(-1)
    densities = density * torch.rand(rays, count, generator=generator, dtype=DOUBLE)
    colours = torch.rand(rays, count, 3, generator=generator, dtype=DOUBLE)
    return densities, colours, edges[:, :-1], edges[:, 1:]


def test_two_samples_by_hand():
    """Each halves the light: weights 1/2 and 1/4, and 1/4 of the background."""
    densities = torch.full((1, 2), math.log(2), dtype=DOUBLE)
    colours = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=DOUBLE)
    starts, ends = torch.tensor([[0.5, 1.5]], dtype=DOUBLE), torch.tensor([[1.5, 2.5]], dtype=DOUBLE)
    seen = composite(densities, colours, starts, ends, "white")
    assert seen.weights.tolist() == [pytest.approx([0.5, 0.25])]
    assert seen.colour.tolist() == [pytest.approx([0.75, 0.5, 0.25])]
    assert float(seen.opacity) == pytest.approx(0.75)
    assert float(seen.depth) == pytest.approx(0.5 * 1 + 0.25 * 2)
    assert float(seen.distortion) == pytest.approx(2 * 0.5 * 0.25 * 1 + (0.25 + 0.0625) / 3)
    nearer = composite(densities, colours, starts, ends, "white", normalise_depth=True)
    assert float(nearer.depth) == pytest.approx(1 / 0.75)
    placed = composite(densities, colours, starts, ends, at=starts)
    assert float(placed.depth) == pytest.approx(0.5 * 0.5 + 0.25 * 1.5)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_opacity_of_a_slab_does_not_depend_on_the_samples(count):
    starts, ends = evenly(2.0, 5.0, count)
    seen = composite(torch.full((1, count), 0.7, dtype=DOUBLE), torch.zeros(1, count, 3, dtype=DOUBLE), starts, ends)
    assert float(seen.opacity) == pytest.approx(1 - math.exp(-0.7 * 3), abs=1e-13)


def test_the_depth_of_a_slab_converges_with_the_square_of_the_samples():
    near, far, sigma = 2.0, 5.0, 0.7
    through = math.exp(-sigma * (far - near))
    exact = near + 1 / sigma - through * (far + 1 / sigma)
    errors = []
    for count in (50, 100, 200):
        starts, ends = evenly(near, far, count)
        colours = torch.zeros(1, count, 3, dtype=DOUBLE)
        seen = composite(torch.full((1, count), sigma, dtype=DOUBLE), colours, starts, ends)
        errors.append(abs(float(seen.depth) - exact))
    assert errors[-1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01) == errors[1] / errors[2]


def test_an_opaque_wall_hides_what_is_behind():
    densities, colours, starts, ends = random_rays()
    densities = torch.zeros_like(densities)
    densities[:, 3:] = 1e6
    seen = composite(densities, colours, starts, ends, "white")
    torch.testing.assert_close(seen.colour, colours[:, 3])
    torch.testing.assert_close(seen.depth, (starts + ends)[:, 3] / 2)
    torch.testing.assert_close(seen.opacity, torch.ones_like(seen.opacity))


def test_empty_space_shows_the_background():
    densities, colours, starts, ends = random_rays()
    each = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for background, wanted in [
        ("white", [1, 1, 1]),
        ("black", [0, 0, 0]),
        ((0.1, 0.2, 0.3), [0.1, 0.2, 0.3]),
        (each[0], each[0].tolist()),
        (each, each.tolist()),
    ]:
        seen = composite(torch.zeros_like(densities), colours, starts, ends, background)
        assert torch.equal(seen.colour, torch.tensor(wanted, dtype=DOUBLE).expand(5, 3))
        assert not seen.depth.any() and not seen.opacity.any() and not seen.distortion.any()


def test_the_back_half_of_a_ray_is_the_background_of_the_front_half():
    densities, colours, starts, ends = rays = random_rays()
    whole = composite(densities, colours, starts, ends, "white")
    back = composite(*(part[:, 4:] for part in rays), "white")
    front = composite(*(part[:, :4] for part in rays), back.colour)
    torch.testing.assert_close(front.colour, whole.colour, rtol=0, atol=1e-14)
    torch.testing.assert_close((1 - front.opacity) * (1 - back.opacity), 1 - whole.opacity, rtol=0, atol=1e-14)
    torch.testing.assert_close(front.depth + (1 - front.opacity) * back.depth, whole.depth, rtol=0, atol=1e-14)


@pytest.mark.parametrize("density", [1e-9, 1.0, 50.0, 1e9])
def test_no_light_is_lost(density):
    densities, colours, starts, ends = random_rays(count=200, density=density)
    through = (-(densities * (ends - starts)).sum(-1)).exp()
    weights = weights_of(densities, ends - starts)
    assert float((weights.sum(-1) + through - 1).abs().max()) < 1e-12
    white = composite(densities, torch.ones_like(colours), starts, ends, "white")
    assert float((white.colour - 1).abs().max()) < 1e-12


def test_thin_fog_keeps_its_digits():
    """In single precision 1 - exp(-1e-9) is zero."""
    weights = weights_of(torch.full((1, 1), 1e-9), torch.ones(1, 1))
    assert float(weights) == pytest.approx(1e-9, rel=1e-6)


def test_the_last_interval_can_be_given_a_length_of_its_own():
    starts, ends = evenly(0.0, 2.0, 2)
    densities, colours = torch.ones(1, 2, dtype=DOUBLE), torch.zeros(1, 2, 3, dtype=DOUBLE)
    endless = composite(densities, colours, starts, ends, last_delta=1e10)
    assert endless.weights.tolist() == [pytest.approx([1 - math.exp(-1), math.exp(-1)])]
    assert float(endless.distortion) < 1
    short = composite(densities, colours, starts, ends, last_delta=1e-3)
    assert short.weights.tolist() == [pytest.approx([1 - math.exp(-1), math.exp(-1) * (1 - math.exp(-1e-3))])]


def test_distortion_equals_the_double_sum():
    densities, _, starts, ends = random_rays()
    weights, middles = weights_of(densities, ends - starts), (starts + ends) / 2
    pairs = weights[:, :, None] * weights[:, None] * (middles[:, :, None] - middles[:, None]).abs()
    wanted = pairs.sum((1, 2)) + (weights**2 * (ends - starts)).sum(-1) / 3
    torch.testing.assert_close(distortion(weights, starts, ends), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_distortion_of_an_even_weight_is_a_third_of_its_length(count):
    """The mean distance of two points of an interval, whatever the intervals that it is cut into."""
    starts, ends = evenly(1.0, 5.0, count)
    weights = torch.full((1, count), 1 / count, dtype=DOUBLE)
    assert float(distortion(weights, starts, ends)) == pytest.approx(4 / 3, abs=1e-14)


@pytest.mark.parametrize("last_delta", [None, 0.3])
@pytest.mark.parametrize("normalise", [False, True])
def test_first_and_second_derivatives(last_delta, normalise):
    densities, colours, starts, ends = random_rays(rays=2, count=3)
    densities[0, 1] = 0.0

    def everything(densities, colours, starts, ends):
        return tuple(
            composite(densities, colours, starts, ends, "white", last_delta=last_delta, normalise_depth=normalise)
        )

    leaves = tuple(leaf.clone().requires_grad_() for leaf in (densities, colours, starts, ends))
    assert torch.autograd.gradcheck(everything, leaves)
    assert torch.autograd.gradgradcheck(everything, leaves)


@pytest.mark.parametrize("density", [0.0, 1e-38, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("last_delta", [None, 1e-3, 1e10])
def test_nothing_overflows_in_single_precision(density, last_delta):
    densities = torch.full((2, 4), density)
    densities[1, 0] = 0.0
    densities.requires_grad_()
    starts, ends = (part.float() for part in evenly(2.0, 6.0, 4, rays=2))
    seen = composite(
        densities, torch.full((2, 4, 3), 0.5), starts, ends, "white", last_delta=last_delta, normalise_depth=True
    )
    assert all(part.isfinite().all() for part in seen)
    (first,) = torch.autograd.grad(seen.colour.sum() + seen.opacity.sum(), densities, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), densities)
    assert first.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("background", ["grey", (1.0, 2.0), 0.5])
def test_a_background_that_is_no_colour_is_refused(background):
    with pytest.raises(ValueError, match="background"):
        composite(*random_rays(), background)


def test_weights_equal_those_of_nerfacc():
    nerfacc = pytest.importorskip("nerfacc")
    densities, colours, starts, ends = random_rays(rays=9, count=33)
    weights, _, _ = nerfacc.render_weight_from_density(starts, ends, densities)
    seen = composite(densities, colours, starts, ends)
    torch.testing.assert_close(seen.weights, weights, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(seen.colour, nerfacc.accumulate_along_rays(weights, colours), rtol=1e-10, atol=0)
    middles = ((starts + ends) / 2)[..., None]
    depth = nerfacc.accumulate_along_rays(weights, middles)[..., 0]
    torch.testing.assert_close(seen.depth, depth, rtol=1e-10, atol=0)
