"""Laws that the objectives obey, whatever the field."""

import dataclasses

import pytest
import torch

from fedfields import tree
from fedfields.objectives import Antithetic, Fit, Inner, Maml, MeNF, Projected, Proximal, Reptile
from fedfields.optim import Adam, Sgd
from tests.helpers import FIELD, LOSS, params_of, task_of, visit_of

INNER = Inner(steps=3, lr=0.05, batch=7)
MAML = Maml(INNER, outer_batch=9)


def estimate(objective, params=None, seed=0, **visit):
    params = params or params_of()
    return objective.estimate(params, task_of(), LOSS, visit_of(params, seed, **visit))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("first_order", [False, True])
def test_gamma_zero_is_maml_to_the_bit(first_order):
    maml = dataclasses.replace(MAML, first_order=first_order)
    assert_same_bits(estimate(MeNF(maml, gamma=0.0)).grads, estimate(maml).grads)


@pytest.mark.parametrize("gamma", [0.25, 0.75, 1.0])
def test_without_inner_steps_menf_is_a_share_of_the_plain_gradient(gamma):
    still = Maml(Inner(steps=0), outer_batch=9)
    plain = estimate(Fit(batch=9)).grads
    found = estimate(MeNF(still, gamma=gamma)).grads
    for key in plain:
        torch.testing.assert_close(found[key], (1 - gamma) * plain[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", [False, True])
def test_maml_without_inner_steps_is_plain_training(order):
    plain = estimate(Fit(batch=9)).grads
    assert_same_bits(estimate(Maml(Inner(steps=0), outer_batch=9, first_order=order)).grads, plain)


def outer_loss(objective, params, seed=0):
    """L_pp(w) of one draw, from the definition alone: L(phi_K(w), B) - gamma L(w, B)."""
    gamma, maml = (objective.gamma, objective.base) if isinstance(objective, MeNF) else (0.0, objective)
    random, signal, phi = torch.Generator().manual_seed(seed), task_of().support, params
    for _ in range(maml.inner.steps):
        batch = signal.sample(maml.inner.batch, random)
        leaves = tree.leaves_of(phi)
        grads = torch.autograd.grad(LOSS(leaves, batch), list(leaves.values()))
        phi = {key: phi[key] - maml.inner.lr * grad for key, grad in zip(phi, grads, strict=True)}
    batch = signal.sample(maml.outer_batch, random)
    return float(LOSS(phi, batch) - gamma * LOSS(params, batch))


@pytest.mark.parametrize("objective", [MAML, MeNF(MAML, gamma=0.6)], ids=["maml", "menf"])
def test_meta_gradient_equals_finite_differences(objective):
    params = params_of()
    unclipped = dataclasses.replace(INNER, clip=0.0)
    maml = dataclasses.replace(MAML, inner=unclipped)
    objective = maml if isinstance(objective, Maml) else dataclasses.replace(objective, base=maml)
    grads = estimate(objective, params).grads
    direction = tree.randn_like(params, torch.Generator().manual_seed(5))
    h = 1e-6
    ahead, behind = (outer_loss(objective, tree.add(params, direction, s)) for s in (h, -h))
    assert float(tree.dot(grads, direction)) == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)


def test_first_order_ignores_the_curvature():
    assert not torch.allclose(
        estimate(MAML).grads["layers.0.weight"],
        estimate(dataclasses.replace(MAML, first_order=True)).grads["layers.0.weight"],
        rtol=1e-3,
    )


def test_inner_clip_has_the_clipped_value_and_the_unclipped_derivative():
    """One inner step with clip factor c: value phi = w - lr c g, derivative I - lr H (and not I - lr c H)."""
    params, lr, limit = params_of(), 0.05, 1e-3
    objective = Maml(Inner(steps=1, lr=lr, batch=0, clip=limit))
    found = estimate(objective, params).grads
    w, batch = tree.leaves_of(params), task_of().support.everything()
    names = list(w)
    g = torch.autograd.grad(LOSS(w, batch), list(w.values()), create_graph=True)
    size = torch.sqrt(sum((x.detach() ** 2).sum() for x in g))
    c = limit / (float(size) + 1e-6)
    assert c < 1
    phi = {k: (w[k] - lr * c * x).detach().requires_grad_() for k, x in zip(names, g, strict=True)}
    v = torch.autograd.grad(LOSS(phi, batch), list(phi.values()))
    hv = torch.autograd.grad(sum((a * b).sum() for a, b in zip(g, v, strict=True)), list(w.values()))
    for key, a, b in zip(names, v, hv, strict=True):
        torch.testing.assert_close(found[key], a - lr * b, rtol=1e-9, atol=1e-12)


def test_clip_function_is_the_documented_one():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True) * 1
    clipped = tree.clip({"g": g}, 1.0)["g"]
    torch.testing.assert_close(clipped.detach(), g.detach() / (5 + 1e-6))
    (slope,) = torch.autograd.grad(clipped.sum(), g)
    torch.testing.assert_close(slope, torch.ones_like(slope))


def test_reptile_with_one_step_is_the_inner_gradient():
    inner = Inner(steps=1, lr=0.1, batch=0)
    plain = estimate(Fit(batch=0)).grads
    for key, value in estimate(Reptile(inner)).grads.items():
        torch.testing.assert_close(value, 0.1 * plain[key], rtol=1e-12, atol=1e-14)


def test_meta_nsgd_gradient_vanishes_where_the_proximal_problem_is_solved():
    """lambda (w - phi) with phi the minimiser of L + lambda/2 |phi - w|^2 equals grad L(phi)."""
    rho = 5.0
    objective = Reptile(Inner(steps=4000, lr=0.05, batch=0, proximal=rho, clip=0.0), scale=rho)
    params = params_of()
    found = estimate(objective, params).grads
    phi = {key: params[key] - found[key] / rho for key in params}
    leaves = tree.leaves_of(phi)
    grads = torch.autograd.grad(LOSS(leaves, task_of().support.everything()), list(leaves.values()))
    for key, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(found[key], grad, rtol=1e-6, atol=1e-9)


def test_inner_weight_decay_is_inside_the_differentiated_graph():
    """With a loss that is constant, phi = (1 - lr wd)^K w, and the meta-gradient carries the same factor."""

    def loss(params, batch):
        return (params["x"] * batch.targets.mean()).sum()

    params = {"x": torch.tensor([2.0], dtype=torch.float64)}
    inner = Inner(steps=2, lr=0.1, batch=0, weight_decay=0.5, clip=0.0)
    found = Maml(inner).estimate(params, task_of(), loss, visit_of(params)).grads["x"]
    wanted = (1 - 0.05) ** 2 * task_of().support.values.mean()
    torch.testing.assert_close(found, wanted.reshape(1))


def test_proximal_with_mu_zero_is_the_base_and_pulls_otherwise():
    params, anchor = params_of(0), params_of(1)
    visit = visit_of(params)._replace(anchor=anchor)
    base = MAML.estimate(params, task_of(), LOSS, visit_of(params)).grads
    assert_same_bits(Proximal(MAML, mu=0.0).estimate(params, task_of(), LOSS, visit).grads, base)
    visit = visit_of(params)._replace(anchor=anchor)
    pulled = Proximal(MAML, mu=0.3).estimate(params, task_of(), LOSS, visit).grads
    for key in params:
        torch.testing.assert_close(pulled[key], base[key] + 0.3 * (params[key] - anchor[key]))


def test_projected_gradient_is_orthogonal_to_the_memorising_one():
    params = params_of()
    base = estimate(MAML, params)
    leaves = tree.leaves_of(params)
    memorising = dict(zip(params, torch.autograd.grad(LOSS(leaves, base.query), list(leaves.values())), strict=True))
    found = estimate(Projected(MAML), params)
    assert abs(float(tree.dot(found.grads, memorising))) < 1e-12
    torch.testing.assert_close(
        found.grads["last_layer.bias"],
        base.grads["last_layer.bias"] - found.metrics["gamma"] * memorising["last_layer.bias"],
    )


def test_antithetic_gradient_does_not_see_the_sign_of_the_residual():
    params = params_of()
    task = task_of()
    batch = task.support.everything()
    with torch.no_grad():
        mirrored = (2 * FIELD(params, batch.inputs) - batch.targets).reshape(task.support.values.shape)
    other = type(task.support)(mirrored)
    objective = Antithetic(MAML)
    a = objective.estimate(params, task, LOSS, visit_of(params)).grads
    b = objective.estimate(params, type(task)(other, other), LOSS, visit_of(params)).grads
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-9, atol=1e-12)
    # For plain training everything is odd in the residual, so nothing is left.
    assert float(tree.norm(estimate(Antithetic(Fit(batch=0)), params).grads)) < 1e-12


@pytest.mark.parametrize("share, gamma", [(0.0, 1.0), (1e9, 0.0), (None, 0.4)])
def test_adaptive_gamma_spends_the_budget(share, gamma):
    """gamma = clip(1 - N zeta / (R E M lr |g_K|^2), 0, 1)."""
    params, zeta, lr = params_of(), 0.02, 0.05
    base = estimate(MAML, params)
    leaves = tree.leaves_of(params)
    g = torch.autograd.grad(LOSS(leaves, base.query), list(leaves.values()))
    squared = float(sum((x**2).sum() for x in g))
    share = (1 - 0.4) * lr * squared / zeta if share is None else share
    found = estimate(MeNF(MAML, budget=zeta), params, outer_lr=lr, step_share=share)
    assert found.metrics["gamma"] == pytest.approx(gamma, abs=1e-9)
    for key, value, grad in zip(params, found.grads.values(), g, strict=True):
        torch.testing.assert_close(value, base.grads[key] - gamma * grad, rtol=1e-6, atol=1e-9)


def test_leak_per_step_follows_the_first_order_formula():
    """Delta L = -lr (1 - gamma) |g_K|^2 + lr lambda_i <g_K, I_K> for small steps (K = 0: no second term)."""
    params, lr, gamma = params_of(), 1e-6, 0.7
    found = estimate(MeNF(Maml(Inner(steps=0)), gamma=gamma), params)
    batch = task_of().support.everything()
    before, after = LOSS(params, batch), LOSS(tree.add(params, found.grads, -lr), batch)
    g = estimate(Fit(batch=0), params).grads
    assert float(after - before) == pytest.approx(-lr * (1 - gamma) * float(tree.sqnorm(g)), rel=1e-4)


@pytest.mark.parametrize("wrapper", [MeNF, Projected])
def test_wrappers_that_need_an_outer_batch_say_so(wrapper):
    with pytest.raises(ValueError, match="Reptile has no outer batch"):
        wrapper(Reptile())


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (Sgd(), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Sgd(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (Adam(), lambda p: torch.optim.Adam(p, lr=0.1)),
        (Adam(0.8, 0.95, 1e-3), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-3)),
    ],
    ids=["sgd", "momentum", "adam", "adam-other"],
)
def test_optimisers_equal_torch(ours, theirs):
    params = params_of()
    reference = [leaf.clone().requires_grad_() for leaf in params.values()]
    optimiser, state = theirs(reference), ours.init(params)
    for seed in range(6):
        grads = tree.randn_like(params, torch.Generator().manual_seed(seed))
        for leaf, grad in zip(reference, grads.values(), strict=True):
            leaf.grad = grad.clone()
        optimiser.step()
        params, state = ours.step(params, grads, state, 0.1)
        for leaf, wanted in zip(params.values(), reference, strict=True):
            torch.testing.assert_close(leaf, wanted.detach(), rtol=1e-10, atol=1e-12)
