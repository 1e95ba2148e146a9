"""The models against torch's own modules with the same weights, and their derivatives against finite differences."""

import itertools

import pytest
import torch
from torch import nn

from fedfields import tree
from fedfields.models import ConvNet, Mlp, Recurrent


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def doubled(model, inputs, outputs):
    return tree.to(model.init(inputs, outputs, random()), torch.float64)


MODELS = {
    "mlp": (Mlp(width=5, depth=2), (2, 3), torch.randn(4, 2, 3, generator=random(1), dtype=torch.float64)),
    "convnet": (ConvNet(4, 2, 2), (1, 6, 7), torch.randn(3, 1, 6, 7, generator=random(1), dtype=torch.float64)),
    "convnet-batch": (
        ConvNet(4, 1, norm="batch"),
        (1, 6, 7),
        torch.randn(3, 1, 6, 7, generator=random(1), dtype=torch.float64),
    ),
    "recurrent": (Recurrent(3, 4), (5,), torch.randint(6, (2, 5), generator=random(1))),
}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_mlp_equals_torch(depth):
    model = Mlp(width=5, depth=depth)
    params = doubled(model, (2, 3), 4)
    sizes = [6] + [5] * depth
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    twin = nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 4)).double()
    twin.load_state_dict(dict(zip(twin.state_dict(), params.values(), strict=True)))
    x = torch.randn(7, 2, 3, generator=random(), dtype=torch.float64)
    torch.testing.assert_close(model(params, x), twin(x))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_convnet_equals_torch(norm):
    model = ConvNet(filters=6, blocks=3, groups=2, norm=norm)
    params = doubled(model, (2, 17, 9), 5)
    params = {key: leaf + 0.1 * torch.randn(leaf.shape, generator=random(2)) for key, leaf in params.items()}
    blocks, channels = [], 2
    for _ in range(3):
        layer = nn.GroupNorm(2, 6) if norm == "group" else nn.BatchNorm2d(6, track_running_stats=False)
        blocks += [nn.Conv2d(channels, 6, 3, padding=1), layer, nn.ReLU(), nn.MaxPool2d(2)]
        channels = 6
    twin = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * 2 * 1, 5)).double()
    twin.load_state_dict(dict(zip(twin.state_dict(), params.values(), strict=True)))
    x = torch.randn(3, 2, 17, 9, generator=random(), dtype=torch.float64)
    torch.testing.assert_close(model(params, x), twin(x))


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch():
    model = ConvNet(8, 2)
    params, x = doubled(model, (1, 8, 8), 3), torch.randn(5, 1, 8, 8, generator=random(), dtype=torch.float64)
    torch.testing.assert_close(model(params, x)[2:3], model(params, x[2:3]))


def test_recurrent_equals_torch():
    model = Recurrent(embedding=3, hidden=4)
    params = doubled(model, (6,), 7)
    embedding, unit, last = (
        nn.Embedding(7, 3).double(),
        nn.GRU(3, 4, batch_first=True).double(),
        nn.Linear(4, 7).double(),
    )
    values = iter(params.values())
    with torch.no_grad():
        embedding.weight.copy_(next(values))
        for name in ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"):
            getattr(unit, name).copy_(next(values))
        last.weight.copy_(next(values))
        last.bias.copy_(next(values))
    tokens = torch.randint(7, (2, 6), generator=random())
    wanted = last(unit(embedding(tokens))[0])
    assert wanted.shape == (2, 6, 7)
    torch.testing.assert_close(model(params, tokens), wanted)


@pytest.mark.parametrize("name", list(MODELS))
def test_second_derivatives_equal_finite_differences(name):
    """The Hessian of the mean square of the outputs, along a direction, by central differences of the gradient."""
    model, inputs, x = MODELS[name]
    params = doubled(model, inputs, 6)
    direction = tree.randn_like(params, random(3))

    def slope(at, create_graph=False):
        at = at if create_graph else tree.leaves_of(at)
        grads = torch.autograd.grad(model(at, x).square().mean(), list(at.values()), create_graph=create_graph)
        return dict(zip(at, grads, strict=True))

    leaves, h = tree.leaves_of(params), 1e-6
    along = tree.dot(slope(leaves, create_graph=True), direction)
    exact = dict(zip(params, torch.autograd.grad(along, list(leaves.values())), strict=True))
    ahead, behind = (slope(tree.add(params, direction, sign * h)) for sign in (1, -1))
    found = tree.scale(tree.sub(ahead, behind), 1 / (2 * h))
    assert float(tree.norm(exact)) > 0.1
    assert float(tree.norm(tree.sub(found, exact))) < 1e-6 * float(tree.norm(exact))


@pytest.mark.parametrize("name", list(MODELS))
def test_noise_sees_every_hidden_layer_once(name):
    model, inputs, x = MODELS[name]
    params, seen = doubled(model, inputs, 6), {}

    def noise(layer, hidden):
        assert layer not in seen
        seen[layer] = hidden.shape[1]
        return 0 * hidden

    silent = model(params, x, noise)
    assert seen == model.widths
    torch.testing.assert_close(silent, params["last_layer.bias"].expand_as(silent))


@pytest.mark.parametrize("name", list(MODELS))
def test_the_first_weights_come_from_the_generator(name):
    model, inputs, _ = MODELS[name]
    a, b, other = (model.init(inputs, 6, random(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["last_layer.weight"], other["last_layer.weight"])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Mlp(width=0), "an MLP with width 0"),
        (lambda: Mlp(depth=-1), "depth -1"),
        (lambda: ConvNet(filters=6, groups=4), "6 filters in 4 groups"),
        (lambda: ConvNet(norm="none"), "norm 'none'"),
        (lambda: ConvNet().init((64,), 5, random()), r"samples \[C, H, W\], these are \[64\]"),
        (lambda: ConvNet(blocks=4).init((1, 8, 8), 5, random()), "8 x 8 cannot be halved 4 times; use 3 blocks"),
        (lambda: Recurrent(hidden=0), "hidden 0"),
        (lambda: Recurrent().init((3, 4), 5, random()), r"samples \[L\]"),
    ],
)
def test_nonsense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
