"""Appearance codes in fields and renderers."""

import dataclasses

import pytest
import torch

from fedfields.fields import CoarseFine, HashGrid, Nerf
from fedfields.rendering.marching import Marching, march_rays
from fedfields.rendering.rays import RenderSettings, march
from fedfields.scenes.views import in_cube

GRID = HashGrid(levels=3, log2_rows=8, coarsest=4, finest=16, width=8, latent=5)
NERF = Nerf(width=12, depth=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=40, seed=1):
    return torch.rand(count, 3, generator=generator(seed)) * 2 - 1


def ways(count=40):
    return torch.nn.functional.normalize(points(count, 2), dim=1)


def codes(count=40, length=4):
    return torch.randn(count, length, generator=generator(3))


def with_length(field, length):
    if isinstance(field, CoarseFine):
        return CoarseFine(with_length(field.field, length))
    return dataclasses.replace(field, appearance=length)


FIELDS = pytest.mark.parametrize("field", [GRID, NERF, CoarseFine(NERF)], ids=["grid", "nerf", "pair"])


@FIELDS
def test_the_colour_reads_the_code_and_the_density_does_not(field):
    field = with_length(field, 4)
    params = field.init(generator())
    one, other = field(params, points(), ways(), codes()), field(params, points(), ways(), 2 * codes())
    assert torch.equal(one[0], other[0])
    assert ((one[1] - other[1]).abs().amax(1) > 1e-6).double().mean() > 0.9


@FIELDS
def test_no_code_is_a_code_of_zeros(field):
    field = with_length(field, 4)
    params = field.init(generator())
    for plain, zero in zip(field(params, points(), ways()), field(params, points(), ways(), 0 * codes()), strict=True):
        assert torch.equal(plain, zero)


@pytest.mark.parametrize(("field", "first"), [(GRID, "colour.0.weight"), (NERF, "head.weight")], ids=["grid", "nerf"])
def test_the_code_is_added_to_the_first_layer_of_the_colour(field, first):
    """A field without codes, whose bias of that layer is what its weights make of one code, shows the same."""
    with_codes = with_length(field, 4)
    params = with_codes.init(generator())
    without = params | {first: params[first][:, :-4]}
    neutral = with_codes(params, points(), ways())
    for a, b in zip(neutral, field(without, points(), ways()), strict=True):
        torch.testing.assert_close(a, b)
    if isinstance(field, Nerf):
        code = codes(1)
        shifted = without | {"head.bias": params["head.bias"] + params[first][:, -4:] @ code[0]}
        lit = with_codes(params, points(), ways(), code.expand(40, 4))
        torch.testing.assert_close(lit[1], field(shifted, points(), ways())[1])


def test_a_nerf_with_codes_has_the_size_of_nerf_pl_s():
    """601,988 weights in the static half of nerf_pl's fine network, with codes of 48."""
    assert sum(leaf.numel() for leaf in Nerf(appearance=48).init(generator()).values()) == 601_988


@pytest.mark.parametrize("field", [HashGrid, Nerf])
def test_a_negative_length_is_refused(field):
    with pytest.raises(ValueError, match="length -1"):
        field(appearance=-1)


def test_every_sample_gets_the_code_of_its_ray():
    """A thick fog that shows the code itself: each ray sees its own."""

    def fog(positions, directions, colours):
        return torch.full((len(positions),), 50.0), colours

    wanted = torch.rand(7, 3, generator=generator(5))
    rays = in_cube(points(7) * 0.5, ways(7))._replace(codes=wanted)
    dense = march(fog, rays, RenderSettings(samples=64)).colour
    marched = march_rays(fog, rays, Marching(steps=200, cells=2), torch.ones(2, 2, 2, dtype=torch.bool))[0].colour
    torch.testing.assert_close(dense, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(marched, wanted, atol=1e-4, rtol=0)
    backwards = torch.arange(6, -1, -1)
    assert torch.equal(rays.chosen(backwards).codes, wanted[backwards])
