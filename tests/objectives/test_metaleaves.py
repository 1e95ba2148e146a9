"""Learned step sizes and noise, and dropout in the inner loop: derivatives, hand-made numbers, and who sees what."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from fedfields import tree
from fedfields.adaptation import Adaptation, adapt, adapting
from fedfields.federation import Local, Method, visit
from fedfields.losses import ModelLoss, ModuleLoss
from fedfields.losses import params_of as weights_of
from fedfields.models import Mlp
from fedfields.objectives import HessianFree, Inner, Maml, MeNF, Proximal, Reptile
from fedfields.optim import Adam, Sgd
from fedfields.runtime.inprocess import train
from fedfields.seeds import generator
from fedfields.types import Batch, Client, Task
from tests.helpers import LOSS, params_of, task_of, visit_of

MODEL = Mlp(width=6, depth=2)
INNER = Inner(steps=3, lr=0.05, batch=0, clip=0.0)


class Samples:
    """Inputs and targets as a signal."""

    def __init__(self, inputs, targets):
        self.batch = Batch(inputs, targets)

    def __len__(self):
        return len(self.batch.targets)

    def sample(self, count, generator):
        index = torch.randint(len(self), (count,), generator=generator)
        return Batch(self.batch.inputs[index], self.batch.targets[index])

    def everything(self):
        return self.batch


def numbers(seed=0):
    random = torch.Generator().manual_seed(seed)
    support, query = (torch.randn(8, 2, generator=random, dtype=torch.float64) for _ in range(2))
    return Task(Samples(support, support.sin()), Samples(query, query.sin()), f"task-{seed}")


def weights(objective, loss=None):
    """Weights of the model and the meta leaves of the objective, some way from where they start."""
    params = tree.to(MODEL.init((2,), 2, torch.Generator().manual_seed(0)), torch.float64)
    leaves = tree.to(objective.leaves(params, loss or ModelLoss(MODEL, "numbers")), torch.float64)
    random = torch.Generator().manual_seed(1)
    return params | {key: leaf + 0.02 * torch.randn(leaf.shape, generator=random) for key, leaf in leaves.items()}


OBJECTIVES = {
    "rates": Maml(dataclasses.replace(INNER, learn_rates=True)),
    "rates-decay-pull": Maml(dataclasses.replace(INNER, learn_rates=True, weight_decay=0.4, proximal=0.6)),
    "decay-pull": Maml(dataclasses.replace(INNER, weight_decay=0.4, proximal=0.6)),
    "noise": Maml(dataclasses.replace(INNER, learn_noise=True)),
    "dropout": Maml(dataclasses.replace(INNER, dropout=0.3)),
    "all": Maml(dataclasses.replace(INNER, learn_noise=True, learn_rates=True, dropout=0.3)),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_gradient_of_every_leaf_equals_finite_differences(name):
    """The outer loss as a function of weights and meta leaves, with the same draws, leaf by leaf."""
    objective, loss, task = OBJECTIVES[name], ModelLoss(MODEL, "numbers"), numbers()
    params, h = weights(objective), 1e-6
    found = objective.estimate(params, task, loss, visit_of(params)).grads
    assert list(found) == list(params)

    def outer(at):
        random = torch.Generator().manual_seed(0)
        phi, _ = objective.inner.adapt(at, task.support, loss, random, second_order=False)
        return float(loss(phi, task.query.everything()).detach())

    for key, leaf in params.items():
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=leaf.dtype)
        ahead, behind = (outer(params | {key: leaf + sign * h * direction}) for sign in (1, -1))
        wanted = (ahead - behind) / (2 * h)
        assert abs(wanted) > 1e-7, f"{key} must matter"
        assert float((found[key] * direction).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-9), key


def test_with_constant_rates_the_weights_follow_maml():
    plain, learning = Maml(INNER), Maml(dataclasses.replace(INNER, learn_rates=True))
    params, task = params_of(), task_of()
    leaves = learning.leaves(params, LOSS)
    assert set(leaves) == {f"meta.rate.{key}" for key in params}
    assert all(bool((leaf == INNER.lr).all()) and leaf.shape == params[key[10:]].shape for key, leaf in leaves.items())
    wanted = plain.estimate(params, task, LOSS, visit_of(params)).grads
    found = learning.estimate(params | leaves, task, LOSS, visit_of(params)).grads
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-15)


def test_one_step_of_meta_sgd_by_hand():
    """phi = w - a g with g = w - 1: the query gradient phi - 3 gives (1 - a)(phi - 3) for w and -g (phi - 3) for a."""

    def loss(params, batch):
        return (params["x"] - batch.targets).square().sum() / 2

    x, a = torch.tensor([2.0, 5.0]).double(), torch.tensor([0.1, 0.5]).double()
    task = Task(Samples(None, torch.tensor(1.0)), Samples(None, torch.tensor(3.0)))
    objective = Maml(Inner(steps=1, lr=9.0, batch=0, clip=0.0, learn_rates=True))
    params = {"x": x, "meta.rate.x": a}
    found = objective.estimate(params, task, loss, visit_of(params)).grads
    phi = x - a * (x - 1)
    torch.testing.assert_close(found["x"], (1 - a) * (phi - 3))
    torch.testing.assert_close(found["meta.rate.x"], -(x - 1) * (phi - 3))


@pytest.mark.parametrize("second_order", [False, True])
def test_the_inner_loop_moves_no_meta_leaf(second_order):
    objective = OBJECTIVES["all"]
    params = tree.leaves_of(weights(objective))
    loss, random = ModelLoss(MODEL, "numbers"), torch.Generator().manual_seed(0)
    phi, _ = objective.inner.adapt(params, numbers().support, loss, random, second_order=second_order)
    assert set(phi) == set(params)
    for key, leaf in phi.items():
        assert torch.equal(leaf, params[key]) == key.startswith("meta."), key


def test_adaptation_takes_learned_steps_and_moves_no_meta_leaf():
    params, task = params_of(), task_of()
    rates = {f"meta.rate.{key}": torch.full_like(leaf, 0.03) for key, leaf in params.items()}
    given = {"steps": 4, "batch": 7, "clip": 0.01}
    for momentum in (0.0, 0.9):
        optimizer = Sgd(momentum)
        wanted = adapt(
            params, task, LOSS, Adaptation(lr=0.03, optimizer=optimizer, **given), visit_of(params).generator
        )
        settings = Adaptation(lr=77.0, optimizer=optimizer, **given)
        for _, found in adapting(params | rates, task.support, LOSS, settings, visit_of(params).generator):
            assert all(torch.equal(found[key], leaf) for key, leaf in rates.items())
        for key, leaf in wanted.items():
            torch.testing.assert_close(found[key], leaf, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="learned step sizes, which are for SGD"):
        adapt(params | rates, task, LOSS, Adaptation(optimizer=Adam()), torch.Generator())


class Watched:
    """A loss that notes with what noise it was asked."""

    def __init__(self, loss, seen, noise=None):
        self.loss, self.seen, self.noise = loss, seen, noise

    def __call__(self, params, batch):
        if self.noise is None:
            self.seen.append(None)
            return self.loss(params, batch)
        masks = {}

        def noise(name, hidden):
            masks[name] = self.noise(name, torch.ones_like(hidden)).detach()
            return hidden

        self.seen.append(masks)
        return self.loss.noisy(noise)(params, batch)

    def noisy(self, noise):
        return Watched(self.loss, self.seen, noise)


@pytest.mark.parametrize(
    "make", [Maml, Reptile, HessianFree, lambda inner: MeNF(Maml(inner)), lambda i: Proximal(Maml(i))]
)
def test_dropout_is_fresh_in_every_inner_step_and_off_in_the_query_pass(make):
    seen = []
    loss, wide = ModelLoss(Mlp(width=500), "numbers"), Mlp(width=500)
    params = tree.to(wide.init((2,), 2, torch.Generator()), torch.float64)
    objective = make(dataclasses.replace(INNER, dropout=0.3))
    objective.estimate(params, numbers(), Watched(loss, seen), visit_of(params))
    steps, rest = seen[: INNER.steps], seen[INNER.steps :]
    for masks in steps:
        assert set(masks) == {"layers.0", "layers.1"}
        for mask in masks.values():
            assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
            assert float((mask == 0).double().mean()) == pytest.approx(0.3, abs=0.03)
            assert float(mask.mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(steps[0]["layers.0"], steps[1]["layers.0"])
    outer = [masks for masks in rest if masks is None]
    assert len(rest) == {"Reptile": 0, "HessianFree": 1 + 2 * INNER.steps, "MeNF": 2}.get(type(objective).__name__, 1)
    assert len(outer) == {"Reptile": 0, "MeNF": 2}.get(type(objective).__name__, 1)
    for ahead, behind in zip(rest[1::2], rest[2::2], strict=False):
        if ahead is not None:  # Both halves of a difference are of the same loss.
            assert all(torch.equal(ahead[name], behind[name]) for name in ahead)


def test_learned_noise_is_softplus_of_a_normal_about_mu():
    """Its mean and spread by quadrature; off in the query pass, on while somebody adapts, by one draw per step."""
    inner, seen = dataclasses.replace(INNER, learn_noise=True), []
    model = Mlp(width=2000, depth=1)
    loss = ModelLoss(model, "numbers")
    params = tree.to(model.init((2,), 2, torch.Generator()), torch.float64)
    params |= tree.to(inner.leaves(params, loss), torch.float64)
    assert float(torch.nn.functional.softplus(params["meta.noise.layers.0.bias"])[0]) == pytest.approx(1)
    Maml(inner).estimate(params, numbers(), Watched(loss, seen), visit_of(params))
    assert seen[-1] is None and len(seen) == INNER.steps + 1
    e = torch.linspace(-9, 9, 10_001).double()
    density = torch.exp(-(e**2) / 2) / math.sqrt(2 * math.pi) * (e[1] - e[0])
    values = torch.nn.functional.softplus(math.log(math.e - 1) + e)
    mean = float((values * density).sum())
    std = math.sqrt(float((values**2 * density).sum()) - mean**2)
    for masks in seen[:-1]:
        mask = masks["layers.0"]
        assert float(mask.mean()) == pytest.approx(mean, abs=4 * std / mask.numel() ** 0.5)
        assert float(mask.std()) == pytest.approx(std, rel=0.05)
    seen.clear()
    settings = Adaptation(steps=2, batch=0)
    *_, (_, adapted) = adapting(params, numbers().support, Watched(loss, seen), settings, visit_of(params).generator)
    assert len(seen) == 2 and None not in seen
    assert all(torch.equal(adapted[key], leaf) for key, leaf in params.items() if key.startswith("meta."))


class Net(nn.Module):
    """A module with dropout, and with batch normalisation whose statistics nobody may touch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 400), nn.ReLU(), nn.Dropout(0.9), nn.BatchNorm1d(400), nn.Linear(400, 2)
        )

    def forward(self, x):
        return self.layers(x)


def test_a_modules_dropout_is_on_in_inner_steps_alone():
    module, task = Net().double(), numbers()
    loss, params = ModuleLoss(module, nn.functional.mse_loss), weights_of(module)
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    plain = loss(params, task.query.everything())
    assert torch.equal(plain, loss(params, task.query.everything())), "no dropout of the module's own"
    shares = []
    loss.noisy(lambda name, hidden: shares.append((name, hidden.shape)) or hidden)(params, task.query.everything())
    assert shares == [("layers.2", (8, 400))]
    still = Inner(steps=1, lr=0.0, batch=0, dropout=0.5)  # A step of no length: its loss has dropout, the outer none.
    found = Maml(still).estimate(params, Task(task.query, task.query), loss, visit_of(params))
    assert found.metrics["loss"] == float(plain) != found.metrics["inner_loss"]
    again = Maml(still).estimate(params, Task(task.query, task.query), loss, visit_of(params))
    other = Maml(still).estimate(params, Task(task.query, task.query), loss, visit_of(params, seed=1))
    assert again.metrics == found.metrics and other.metrics["inner_loss"] != found.metrics["inner_loss"]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks for part in module.modules())
    assert torch.equal(state, torch.get_rng_state()), "nothing comes from the global generator"


@pytest.mark.parametrize(
    "inner, loss, words",
    [
        (Inner(dropout=0.1), LOSS, "FieldLoss has no hidden layers"),
        (Inner(dropout=0.1), ModuleLoss(nn.Linear(2, 2), nn.functional.mse_loss), "Linear has no dropout layer"),
        (
            Inner(learn_noise=True),
            ModuleLoss(Net(), nn.functional.mse_loss),
            "ModuleLoss does not name its hidden layers",
        ),
        (Inner(learn_noise=True), LOSS, "FieldLoss does not name its hidden layers"),
    ],
)
def test_a_loss_without_hidden_layers_is_refused_at_the_start(inner, loss, words):
    task = numbers()
    with pytest.raises(ValueError, match=words):
        train(Method(Proximal(Maml(inner))), [Client("a", (task,))], loss, params_of(), rounds=1, cohort=1)


@pytest.mark.parametrize("make", [Reptile, HessianFree, lambda inner: Maml(inner, first_order=True)])
@pytest.mark.parametrize("what", ["learn_rates", "learn_noise"])
def test_what_is_not_differentiated_cannot_learn(make, what):
    with pytest.raises(ValueError, match="cannot learn step sizes or noise"):
        make(Inner(**{what: True}))


@pytest.mark.parametrize("what", ["learn_rates", "learn_noise"])
def test_weights_without_the_leaves_that_are_to_be_learned_are_refused(what):
    with pytest.raises(ValueError, match="there are no meta"):
        Maml(Inner(**{what: True})).estimate(params_of(), task_of(), LOSS, visit_of(params_of()))


def test_what_travels_is_the_meta_gradient():
    """FedMeta: with one step of SGD, rate 1 and no clip, the report is the gradient at what was received."""
    objective = OBJECTIVES["rates"]
    params, loss, client = weights(objective), ModelLoss(MODEL, "numbers"), Client("a", (numbers(),))
    method = Method(objective, Local(steps=1, lr=1.0, clip=0.0))
    reply = visit(method, client, loss, {"params": params}, {}, seed=0, round=1)
    grads = objective.estimate(
        params, client.train[0], loss, visit_of(params)._replace(generator=generator(0, "visit", 1, "a"))
    ).grads
    assert set(reply.report["delta"]) == set(params)
    for key, value in reply.report["delta"].items():
        torch.testing.assert_close(value, grads[key], rtol=1e-9, atol=1e-12)


def test_learned_step_sizes_beat_the_fixed_one():
    """Tasks with a linear model; one small step is too little, and with the same rounds Meta-SGD learns larger ones."""
    clients = [Client(f"client-{seed}", (numbers(seed),)) for seed in range(6)]
    model = Mlp(depth=0)
    loss, start = ModelLoss(model, "numbers"), tree.to(model.init((2,), 2, torch.Generator()), torch.float64)
    inner, error = Inner(steps=1, lr=0.01, batch=0, clip=0.0), {}
    for learns in (False, True):
        objective = Maml(dataclasses.replace(inner, learn_rates=learns))
        found = train(Method(objective, Local(steps=1, lr=0.1)), clients, loss, start, rounds=60, cohort=6)
        assert learns == any(key.startswith("meta.") for key in found)
        settings = Adaptation(steps=1, lr=0.01, batch=0)
        error[learns] = sum(
            float(
                loss(
                    adapt(found, client.train[0], loss, settings, torch.Generator()), client.train[0].query.everything()
                )
            )
            for client in clients
        )
    assert float(found["meta.rate.last_layer.weight"].mean()) > 0.05
    assert error[True] < 0.95 * error[False]
