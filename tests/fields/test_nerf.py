"""Radiance fields against their published shapes and formulas."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from fedfields.fields import Nerf, SimpleNerf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count, seed=1):
    return torch.rand(count, 3, generator=generator(seed)) * 2 - 1


def filled(layer, params, name):
    layer.load_state_dict({"weight": params[f"{name}.weight"], "bias": params[f"{name}.bias"]})
    return layer


@pytest.mark.parametrize(("field", "count"), [(SimpleNerf(), 295_172), (Nerf(), 595_844)], ids=["simple", "nerf"])
def test_the_defaults_have_the_published_size(field, count):
    assert sum(leaf.numel() for leaf in field.init(generator()).values()) == count


def test_a_simple_nerf_equals_a_module_made_by_hand():
    field = SimpleNerf(width=7, depth=3, frequencies=4, octaves=3.0)
    params = field.init(generator())
    x = points(11)
    waves = [[f * c for f in (1, 2, 4, 8) for c in row] for row in x.tolist()]
    features = torch.tensor([[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in waves])
    layers = [filled(nn.Linear(*sizes), params, f"layers.{i}") for i, sizes in enumerate([(24, 7), (7, 7), (7, 4)])]
    last = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])(features)
    density, colour = field(params, x, points(11, seed=2))
    torch.testing.assert_close(density, softplus(last[:, 3]))
    torch.testing.assert_close(colour, last[:, :3].sigmoid())


def test_frequencies_are_weights_only_if_they_are_trained():
    fixed, trained = SimpleNerf(width=4, depth=2), SimpleNerf(width=4, depth=2, train_frequencies=True)
    assert "frequencies" not in fixed.init(generator())
    params = trained.init(generator())
    bands = params["frequencies"]
    assert bands.shape == (20,) and float(bands[0]) == 1 and float(bands[-1]) == 256
    torch.testing.assert_close(bands[1:] / bands[:-1], torch.full((19,), 2 ** (8 / 19)))
    x = points(5)
    torch.testing.assert_close(fixed(params, x, x), trained(params, x, x))
    params["frequencies"] = bands * 1.1
    assert not torch.allclose(fixed(params, x, x)[0], trained(params, x, x)[0])


def test_a_nerf_equals_a_module_made_from_the_figure():
    field = Nerf(width=6, depth=4, skip=2, octaves=2, direction_octaves=1)
    params = field.init(generator())
    x, d = points(9), nn.functional.normalize(points(9, seed=2), dim=-1)
    at_x = torch.cat([x, x.sin(), (2 * x).sin(), x.cos(), (2 * x).cos()], -1)
    at_d = torch.cat([d, d.sin(), d.cos()], -1)
    layers = [filled(nn.Linear(n, 6), params, f"layers.{i}") for i, n in enumerate((15, 6, 21, 6))]
    hidden = layers[1](layers[0](at_x).relu()).relu()
    hidden = layers[3](layers[2](torch.cat([at_x, hidden], -1)).relu()).relu()
    feature = filled(nn.Linear(6, 6), params, "feature")(hidden)
    head = filled(nn.Linear(15, 3), params, "head")(torch.cat([feature, at_d], -1)).relu()
    density, colour = field(params, x, d)
    torch.testing.assert_close(density, softplus(filled(nn.Linear(6, 1), params, "density")(hidden)[:, 0]))
    torch.testing.assert_close(colour, filled(nn.Linear(3, 3), params, "colour")(head).sigmoid())


def test_only_the_colour_of_a_nerf_depends_on_the_direction():
    field = Nerf(width=16, depth=2)
    params, x = field.init(generator()), points(20)
    one, other = field(params, x, points(20, seed=2)), field(params, x, points(20, seed=3))
    assert torch.equal(one[0], other[0]) and not torch.allclose(one[1], other[1])


def test_the_initial_weights_lie_in_their_ranges():
    for key, leaf in SimpleNerf(width=64).init(generator()).items():
        bound = (120 if key.startswith("layers.0") else 64) ** -0.5
        assert 0.9 * bound < float(leaf.abs().max()) <= bound or leaf.numel() < 20
    params = Nerf(width=64).init(generator())
    assert float(params["layers.5.weight"].abs().max()) == pytest.approx(math.sqrt(6 / (64 + 63 + 64)), rel=0.01)
    assert not any(leaf.any() for key, leaf in params.items() if key.endswith("bias"))


@pytest.mark.parametrize("field", [SimpleNerf(8, 2), Nerf(8, 2)], ids=["simple", "nerf"])
def test_the_same_generator_gives_the_same_weights(field):
    one, same, other = (field.init(generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_fields_work(depth):
    x = points(3)
    for field in (SimpleNerf(4, depth), Nerf(4, depth)):
        density, colour = field(field.init(generator()), x, x)
        assert density.shape == (3,) and colour.shape == (3, 3) and (density > 0).all()


def test_sizes_that_make_no_sense_are_refused():
    for wrong in (lambda: SimpleNerf(0), lambda: SimpleNerf(depth=0), lambda: SimpleNerf(frequencies=0)):
        with pytest.raises(ValueError, match="at least 1"):
            wrong()
    for wrong in (lambda: Nerf(1), lambda: Nerf(depth=0), lambda: Nerf(octaves=-1)):
        with pytest.raises(ValueError, match=r"at least|negative"):
            wrong()
