"""Fields against their published formulas."""

import math

import pytest
import torch
from torch import nn

from fedfields.fields import FourierMlp, Siren
from fedfields.scenes.grid import grid_coordinates


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_siren_equals_a_module_written_from_the_paper():
    field = Siren(width=7, depth=3, w0=12.0)
    params = field.init(2, 3, generator())
    x = torch.rand(11, 2, generator=generator(1)) * 2 - 1
    hidden = x
    for i in range(3):
        layer = nn.Linear(*reversed(params[f"layers.{i}.weight"].shape))
        layer.load_state_dict({"weight": params[f"layers.{i}.weight"], "bias": params[f"layers.{i}.bias"]})
        hidden = torch.sin(12.0 * layer(hidden))
    last = hidden @ params["last_layer.weight"].T + params["last_layer.bias"] + 0.5
    torch.testing.assert_close(field(params, x), last, rtol=1e-5, atol=1e-6)


def test_siren_starts_in_the_official_ranges():
    params = Siren(width=256, depth=4).init(3, 3, generator())
    for key, leaf in params.items():
        bound = 1 / 3 if key.startswith("layers.0") else math.sqrt(6 / 256) / 30
        assert float(leaf.abs().max()) <= bound
        if leaf.numel() > 500:
            assert float(leaf.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert sum(leaf.numel() for leaf in Siren(256, 6).init(3, 3, generator()).values()) == 330_755


def test_siren_activations_keep_their_spread_through_the_layers():
    """Sitzmann et al., theorem 1.8: the input of every sine after the first is about standard normal."""
    field = Siren(width=1024, depth=5)
    params = field.init(2, 3, generator())
    hidden = torch.rand(500, 2, generator=generator(1)) * 2 - 1
    for i in range(5):
        before = 30 * (hidden @ params[f"layers.{i}.weight"].T + params[f"layers.{i}.bias"])
        if i > 1:
            assert float(before.std()) == pytest.approx(1.0, abs=0.1)
        hidden = before.sin()


def test_fourier_features_are_stationary():
    """The kernel of the features depends on the difference of the coordinates alone (Tancik et al., eq. 6)."""
    field = FourierMlp(features=64, scale=3.0)
    angles = 2 * math.pi * torch.tensor([[0.1, 0.2], [0.3, -0.4], [0.6, 0.1], [0.8, -0.5]]) @ field.frequencies(2).T
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    gram = features @ features.T
    torch.testing.assert_close(gram[0, 1], gram[2, 3])
    torch.testing.assert_close(gram.diagonal(), torch.full((4,), 64.0))


def test_fourier_matrix_is_the_same_for_everybody_and_not_among_the_weights():
    field = FourierMlp(width=8, depth=1, features=4)
    assert torch.equal(field.frequencies(2), FourierMlp(width=99, features=4).frequencies(2))
    params = field.init(2, 3, generator())
    assert sum(leaf.numel() for leaf in params.values()) == (8 * 8 + 8) + (8 * 3 + 3)


def test_coordinates_are_those_of_the_official_code():
    grid = grid_coordinates((1, 2, 3))
    assert grid.tolist() == [[-1, -1, -1], [-1, -1, 0], [-1, -1, 1], [-1, 1, -1], [-1, 1, 0], [-1, 1, 1]]


@pytest.mark.parametrize("field", [Siren(8, 2), FourierMlp(8, 2)], ids=["siren", "fourier"])
def test_double_backward_works(field):
    params = {k: v.double().requires_grad_() for k, v in field.init(2, 3, generator()).items()}
    x = torch.rand(5, 2, generator=generator(1), dtype=torch.float64)

    def value(*leaves):
        return field(dict(zip(params, leaves, strict=True)), x).square().mean()

    assert torch.autograd.gradgradcheck(value, tuple(params.values()))
