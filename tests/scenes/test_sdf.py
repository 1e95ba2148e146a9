"""Signed distances against closed forms, and what sphere tracing may never do."""

import math

import pytest
import torch

from fedfields.rendering.rays import Rays
from fedfields.scenes import sdf
from fedfields.scenes.monument import temple
from fedfields.scenes.sdf import Bounded, Box, Capsule, Checker, Convex, Cylinder, Light, Part, Plain, Sphere, Stripes

SHAPES = {
    "sphere": (Sphere((0.1, -0.2, 0.3), 0.5), [((0.1, -0.2, 1.3), 0.5), ((0.1, -0.2, 0.3), -0.5)]),
    "box": (Box((0, 0, 1), (1, 2, 3)), [((4, 6, 1), 5.0), ((0, 0, 1), -1.0), ((0, 0, 6), 2.0), ((2, 3, 5), 3**0.5)]),
    "capsule": (Capsule((0, 0, 0), (0, 0, 2), 0.5), [((1, 0, 1), 0.5), ((0, 3, 6), 4.5), ((0, 0, 0.3), -0.5)]),
    "cylinder": (Cylinder((0, 0, 0), 1, 2), [((3, 4, 0), 4.0), ((0, 0, 3), 1.0), ((4, 0, 6), 5.0), ((0, 0, 0), -1.0)]),
    "half-spaces": (Convex((((0, 0, 1), (0, 0, 2)), ((1, 0, 0), (3, 4, 0)))), [((1, 0, 3), 2.0), ((6, 0, 0), 3.0)]),
}


def points(count, scale, seed=0):
    return (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1) * scale


@pytest.mark.parametrize("name", SHAPES)
def test_distances_by_hand(name):
    shape, known = SHAPES[name]
    at, wanted = (torch.tensor(each) for each in zip(*known, strict=True))
    assert torch.allclose(shape(at.float()), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["sphere", "box", "capsule", "cylinder"])
def test_a_distance_has_a_gradient_of_length_one_outside(name):
    """The eikonal equation, which exact distances solve."""
    shape, at = SHAPES[name][0], points(2000, 4.0).requires_grad_()
    distance = shape(at)
    (gradient,) = torch.autograd.grad(distance.sum(), at)
    assert torch.allclose(gradient[distance > 1e-3].norm(dim=1), torch.tensor(1.0), atol=1e-4)


def test_a_step_of_the_distance_never_enters_the_temple():
    """What sphere tracing relies on, for repetition, smooth unions and shapes in balls as well."""
    shape, at = temple().shape, points(20000, 1.3)
    distance = shape(at)
    outside = distance > 0
    ways = torch.nn.functional.normalize(torch.randn(at.shape, generator=torch.Generator().manual_seed(1)), dim=1)
    assert float(shape(at + 0.999 * distance[:, None] * ways)[outside].min()) > -2e-3


def test_a_shape_in_a_ball_is_the_same_surface():
    inner = Box((0.2, 0.1, 0.0), (0.3, 0.2, 0.1))
    outer, at = Bounded(inner, (0.2, 0.1, 0.0), 0.4), points(5000, 1.0)
    assert torch.equal(outer(at) < 0, inner(at) < 0)
    assert bool((outer(at) <= inner(at).clamp_min(0) + 1e-6)[inner(at) > 0].all())


def test_a_repeated_shape_is_a_union_of_copies():
    found = sdf.Repeated(Sphere((0, 0, 0), 0.1), (0.5, 0.7, 1.0), (2, 1, 0))
    copies = sdf.Union(tuple(Sphere((0.5 * i, 0.7 * j, 0), 0.1) for i in range(-2, 3) for j in range(-1, 2)))
    at = points(5000, 2.0)
    assert torch.allclose(found(at), copies(at), atol=1e-6)


def test_a_smooth_union_lies_around_the_union_and_is_it_far_from_joints():
    """Quilez: at most a quarter of the width below, where both are equally near."""
    balls, at = (Sphere((-0.2, 0, 0), 0.3), Sphere((0.2, 0, 0), 0.3)), points(5000, 1.0)
    sharp, soft = sdf.Union(balls)(at), sdf.SmoothUnion(balls, 0.1)(at)
    far = (balls[0](at) - balls[1](at)).abs() > 0.1
    assert torch.equal(soft[far], sharp[far]) and bool((soft <= sharp).all())
    assert sdf.SmoothUnion(balls, 0.1)(torch.zeros(1, 3)).item() == pytest.approx(-0.1 - 0.025)


def rays_to(target, origins):
    directions = torch.nn.functional.normalize(target - origins, dim=1)
    return Rays(origins, directions, torch.zeros(len(origins)), torch.full((len(origins),), 10.0))


def test_rays_meet_a_ball_where_the_quadratic_equation_says():
    origins = torch.nn.functional.normalize(points(2000, 1.0), dim=1) * 3
    rays = rays_to(points(2000, 0.8, seed=1), origins)
    middle = (rays.origins * rays.directions).sum(1).double()
    under = middle.square() - rays.origins.double().square().sum(1) + 0.25
    wanted = torch.where(under > 0, -middle - under.clamp_min(0).sqrt(), torch.inf)
    found, clear = sdf.trace(Sphere((0, 0, 0), 0.5), rays), under.abs() > 0.01
    assert torch.equal(found[clear].isfinite(), wanted[clear].isfinite())
    both = clear & wanted.isfinite()
    # It stops a thousandth before the surface, which a slanting ray meets later.
    assert float((found - wanted)[both].abs().max()) < 1e-3 / 0.1
    assert 300 < int(both.sum()) < 1900


def test_rays_start_at_near_and_end_at_far():
    rays = Rays(
        torch.tensor([[0.0, 0, 3]] * 3), torch.tensor([[0.0, 0, -1]] * 3), *torch.tensor([[0, 0, 0], [5, 1, 0]]).float()
    )
    assert sdf.trace(Sphere((0, 0, 0), 1.0), rays).isfinite().tolist() == [True, False, False]


def test_light_by_hand():
    """On the side of a ball that faces the first lamp: no corner, no shadow, and both lamps by Lambert's law."""
    light = Light()
    key, fill = (torch.nn.functional.normalize(torch.tensor(way), dim=0) for way in (light.key, light.fill))
    normal = torch.stack([key, -key])
    found = sdf.lighting(Sphere((0, 0, 0), 1.0), normal, light)
    other = light.fill_share * (normal @ fill).clamp_min(0)
    assert torch.allclose(found, light.ambient + torch.tensor([light.key_share, 0.0]) + other, atol=1e-4)


def test_what_stands_between_a_surface_and_the_lamp_casts_a_shadow():
    light = Light(key=(0.0, 0.0, 1.0))
    floor, ball = Box((0, 0, -0.5), (2, 2, 0.5)), Sphere((0, 0, 1), 0.3)
    under, aside = sdf.lighting(sdf.Union((floor, ball)), torch.tensor([[0.0, 0, 0], [1, 1, 0]]), light).tolist()
    assert aside - under == pytest.approx(light.key_share, abs=1e-3)


def test_normals_of_a_ball_point_outwards():
    at = torch.nn.functional.normalize(points(100, 1.0), dim=1)
    assert torch.allclose(sdf.normals(Sphere((0, 0, 0), 1.0), at), at, atol=2e-3)


def test_paint_by_hand():
    at = torch.tensor([[0.05, 0.05, 0.0], [0.15, 0.05, 0.25], [-0.05, 0.15, -0.05]])
    white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    assert Checker(white, black, 0.1)(at)[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert Stripes(white, black, 0.1)(at)[:, 0].tolist() == [1.0, 1.0, 0.0]
    parts = (Part(Sphere((0, 0, 0), 0.1), Plain(white)), Part(Sphere((1, 0, 0), 0.1), Plain(black)))
    assert sdf.joined(parts).paint(torch.tensor([[0.1, 0, 0], [0.9, 0, 0]]))[:, 0].tolist() == [1.0, 0.0]


def test_what_is_seen_has_the_paint_times_the_light_and_white_behind():
    part = Part(Sphere((0, 0, 0), 0.5), Plain((0.2, 0.4, 0.6)))
    rays = rays_to(torch.zeros(1, 3), torch.tensor([[0.0, 0, 3], [0, 0, 3]]))
    rays = rays._replace(directions=torch.tensor([[0.0, 0, -1], [0, 0, 1]]))
    seen = sdf.look(part, rays)
    assert seen.depth[0].item() == pytest.approx(2.5, abs=2e-3) and math.isinf(seen.depth[1])
    assert seen.colour[1].tolist() == [1.0, 1.0, 1.0]
    assert torch.allclose(seen.colour[0] / seen.colour[0, 0], torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)
