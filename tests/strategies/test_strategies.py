"""Every strategy against hand-computed numbers, torch.optim, or another strategy with which it must coincide."""

import itertools

import numpy as np
import pytest
import torch

from fedfields.federation import Local, Method, close_round, start_server
from fedfields.objectives import Fit
from fedfields.runtime.inprocess import train
from fedfields.strategies import FedAcg, FedAvg, FedExp, FedNova, FedOpt, Outcome, Robust, Scaffold
from tests.helpers import clients_of


def vector(*values):
    return {"x": torch.tensor(values, dtype=torch.float64)}


def rounds(strategy, finals, weights=None, steps=None, start=(0.0, 0.0), repeat=1):
    """Runs ``repeat`` rounds in which client i always ends at received + finals[i]; returns the states."""
    state = start_server(strategy, vector(*start))
    method = Method(strategy=strategy)
    memories = [strategy.client_init(state.params) for _ in finals]
    states = []
    for _ in range(repeat):
        received = strategy.broadcast(state.params, state.memory)
        reports = []
        for i, move in enumerate(finals):
            final = {"x": received["params"]["x"] + torch.tensor(move, dtype=torch.float64)}
            weight, count = (weights or [1.0] * len(finals))[i], (steps or [1] * len(finals))[i]
            outcome = Outcome(received["params"], final, count, 0.1, weight)
            report, memories[i] = strategy.report(outcome, received, memories[i])
            reports.append(report)
        state, metrics = close_round(method, state, reports, len(finals))
        states.append((state.params["x"], metrics))
    return states


def test_fedavg_is_the_weighted_mean():
    ((params, _),) = rounds(FedAvg(), [(4.0, 0.0), (0.0, 8.0)], weights=[1.0, 3.0])
    torch.testing.assert_close(params, torch.tensor([1.0, 6.0], dtype=torch.float64))


def test_server_clip_scales_the_mean_to_the_norm():
    ((params, _),) = rounds(FedAvg(clip=5.0), [(30.0, 40.0)])
    torch.testing.assert_close(params, torch.tensor([3.0, 4.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_server_momentum_equals_torch_sgd():
    moves = [(1.0, -2.0), (3.0, 0.5)]
    states = rounds(FedAvg(lr=0.7, momentum=0.9), moves, repeat=5)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([x], lr=0.7, momentum=0.9)
    for params, _ in states:
        x.grad = -torch.tensor(moves, dtype=torch.float64).mean(0)
        optimiser.step()
        torch.testing.assert_close(params, x.detach())


def test_fednova_with_equal_steps_is_fedavg():
    moves, weights = [(4.0, 1.0), (-2.0, 8.0)], [2.0, 5.0]
    (a, _), (b, _) = rounds(FedAvg(), moves, weights)[0], rounds(FedNova(), moves, weights, steps=[3, 3])[0]
    torch.testing.assert_close(a, b)


def test_fednova_by_hand():
    # tau = (1, 4), p = (1/2, 1/2): mean of moves per step (2, 0) and (0, 1), halves, times 2.5 steps.
    ((params, metrics),) = rounds(FedNova(), [(2.0, 0.0), (0.0, 4.0)], steps=[1, 4])
    assert metrics["effective_steps"] == pytest.approx(2.5)
    torch.testing.assert_close(params, torch.tensor([2.5, 1.25], dtype=torch.float64))


def test_fedexp_by_hand():
    # Updates (1, 0) and (0, 1): mean (.5, .5), squared .5; mean squared norm 1; 1 / (2 (.5 + .001)) < 1, so 1.
    ((params, metrics),) = rounds(FedExp(), [(1.0, 0.0), (0.0, 1.0)])
    assert metrics["server_lr"] == 1.0
    # Updates (1, .1) and (-1, .1): mean (0, .1), squared .01; mean squared norm 1.01; 1.01 / (2 * .011).
    ((params, metrics),) = rounds(FedExp(), [(1.0, 0.1), (-1.0, 0.1)])
    assert metrics["server_lr"] == pytest.approx(1.01 / 0.022)
    torch.testing.assert_close(params, torch.tensor([0.0, 0.1 * 1.01 / 0.022], dtype=torch.float64))


def test_fedacg_by_hand():
    # Round 1: m = delta = 1, theta = 1. Round 2 starts at 1 + .5 * 1; m = .5 + 1 = 1.5, theta = 2.5.
    states = rounds(FedAcg(momentum=0.5), [(1.0, 1.0)], repeat=2)
    assert [float(p[0]) for p, _ in states] == [1.0, 2.5]


def test_fedacg_without_momentum_is_fedavg():
    moves = [(4.0, 1.0), (-2.0, 8.0)]
    for (a, _), (b, _) in zip(
        rounds(FedAvg(), moves, repeat=3), rounds(FedAcg(momentum=0.0), moves, repeat=3), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_fedadagrad_equals_torch():
    tau = 1e-3
    states = rounds(FedOpt("adagrad", lr=0.1, beta1=0.0, tau=tau), [(1.0, -2.0)], repeat=4)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adagrad([x], lr=0.1, initial_accumulator_value=tau**2, eps=tau)
    for params, _ in states:
        x.grad = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        optimiser.step()
        torch.testing.assert_close(params, x.detach())


@pytest.mark.parametrize("rule", ["adam", "yogi"])
def test_fedadam_and_fedyogi_by_the_formulas(rule):
    # Reddi et al. 2021, algorithm 2, in numpy.
    lr, b1, b2, tau, move = 0.1, 0.9, 0.99, 1e-3, np.array([1.0, -2.0])
    m, v, x = np.zeros(2), np.full(2, tau**2), np.zeros(2)
    states = rounds(FedOpt(rule, lr=lr, beta1=b1, beta2=b2, tau=tau), [tuple(move)], repeat=5)
    for params, _ in states:
        m = b1 * m + (1 - b1) * move
        square = move**2
        v = b2 * v + (1 - b2) * square if rule == "adam" else v - (1 - b2) * square * np.sign(v - square)
        x = x + lr * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(params.numpy(), x, rtol=1e-12)


def test_fedadam_without_bias_correction_follows_torch_adam_with_it_undone():
    # torch's Adam corrects both moments; with its step size scaled back they coincide where v0 and eps vanish.
    lr, b1, b2 = 0.1, 0.9, 0.99
    states = rounds(FedOpt("adam", lr=lr, beta1=b1, beta2=b2, tau=1e-12), [(1.0, -2.0)], repeat=4)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for t, (params, _) in enumerate(states, start=1):
        if t == 1:
            optimiser = torch.optim.Adam([x], lr=lr, betas=(b1, b2), eps=0)
        optimiser.param_groups[0]["lr"] = lr * (1 - b1**t) / (1 - b2**t) ** 0.5
        x.grad = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        optimiser.step()
        torch.testing.assert_close(params, x.detach(), rtol=1e-9, atol=0)


def test_scaffold_finds_the_optimum_that_fedavg_misses():
    """Two quadratics a (x - c)^2 / 2 with unlike curvature: the sum's minimum is the curvature-weighted mean of c.

    FedAvg with E exact local steps drifts to another fixed point (known in closed form); SCAFFOLD does not.
    """
    curvature, centre, lr, steps = np.array([1.0, 10.0]), np.array([0.0, 1.0]), 0.05, 20
    optimum = (curvature * centre).sum() / curvature.sum()
    contraction = (1 - lr * curvature) ** steps
    drifted = ((1 - contraction) * centre).sum() / (1 - contraction).sum()
    assert abs(drifted - optimum) > 0.1

    def fixed_point(strategy):
        state = start_server(strategy, vector(0.3))
        memories = [strategy.client_init(state.params)] * 2
        for _ in range(400):
            received = strategy.broadcast(state.params, state.memory)
            reports = []
            for k in range(2):
                params = received["params"]
                for _ in range(steps):
                    grads = {"x": curvature[k] * (params["x"] - centre[k])}
                    grads = strategy.correct(grads, received, memories[k])
                    params = {"x": params["x"] - lr * grads["x"]}
                outcome = Outcome(received["params"], params, steps, lr, 1.0)
                report, memories[k] = strategy.report(outcome, received, memories[k])
                reports.append(report)
            state, _ = close_round(Method(local=Local(steps, lr=lr), strategy=strategy), state, reports, 2)
        return float(state.params["x"]), memories, state

    assert fixed_point(FedAvg())[0] == pytest.approx(drifted, abs=1e-9)
    found, memories, state = fixed_point(Scaffold())
    assert found == pytest.approx(optimum, abs=1e-9)
    # At the optimum each variate is its client's own gradient, and the server's is their mean: zero.
    for k in range(2):
        assert float(memories[k]["variate"]["x"]) == pytest.approx(curvature[k] * (optimum - centre[k]), abs=1e-7)
    assert float(state.memory["variate"]["x"]) == pytest.approx(0.0, abs=1e-7)


def test_median_and_trimmed_mean_equal_numpy_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    moves = np.random.default_rng(0).normal(size=(8, 2))
    ((median, _),) = rounds(Robust("median"), moves.tolist())
    np.testing.assert_allclose(median.numpy(), np.median(moves, axis=0))
    ((trimmed, _),) = rounds(Robust("trimmed-mean", tolerate=2), moves.tolist())
    np.testing.assert_allclose(trimmed.numpy(), stats.trim_mean(moves, 0.25, axis=0))


def test_krum_takes_a_point_of_the_crowd_and_scaling_does_not_buy_influence():
    moves = [(1.0, 1.0), (1.1, 1.0), (1.0, 1.1), (0.9, 1.0), (1e6, -1e6)]
    ((params, _),) = rounds(Robust("krum", tolerate=1), moves, weights=[1, 1, 1, 1, 1e3])
    # Squared distances to the two nearest others: .01 + .01 = .02 for the first, more for the rest.
    torch.testing.assert_close(params, torch.tensor([1.0, 1.0], dtype=torch.float64))


def test_sums_do_not_drift():
    """A hundred rounds of +1 in float32 give exactly 100."""
    strategy = FedAvg()
    state = start_server(strategy, {"x": torch.zeros(1)})
    for _ in range(100):
        final = {"x": state.params["x"] + 1}
        reports = [strategy.report(Outcome(state.params, final, 1, 1.0, w), {}, {})[0] for w in (0.1, 0.2, 0.7)]
        state, _ = close_round(Method(strategy=strategy), state, reports, 3)
    assert float(state.params["x"]) == pytest.approx(100.0, abs=1e-5)


@pytest.mark.parametrize("progress, share", [(0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (1.0, 0.0), (2.0, 0.0)])
def test_the_servers_step_falls_along_half_a_cosine(progress, share):
    """cos(pi / 3) = 1/2, so three quarters are left after a third of the run."""
    for strategy in (FedAvg(lr=0.8, final=0.0), Robust("median", tolerate=0, base=FedAvg(lr=0.8, final=0.0))):
        method, state = Method(strategy=strategy), start_server(strategy, vector(1.0))
        report = {"delta": vector(2.0), "stats": {"weight": torch.tensor(1.0).double()}}
        state, _ = close_round(method, state, [report], 1, progress=progress)
        assert float(state.params["x"]) == pytest.approx(1 - 0.8 * share * 2, abs=1e-12)
    half = FedOpt(lr=0.3, final=0.2).at(progress).lr
    assert half == pytest.approx(0.3 * (0.2 + 0.8 * share))


def test_fedreptile_takes_smaller_steps_in_later_rounds():
    """Four clients that each want +1 a round, four rounds: 1, (2 + sqrt 2) / 4, 1/2 and (2 - sqrt 2) / 4 of it."""

    def loss(params, batch):
        return -params["x"].sum() + 0 * batch.targets.sum()

    method, seen = Method(Fit(), Local(steps=1, lr=1.0, clip=0.0), FedAvg(final=0.0)), [0.0]
    train(
        method, clients_of(4), loss, vector(0.0), rounds=4, cohort=4,
        on_round=lambda one: seen.append(float(one.state.params["x"])),
    )  # fmt: skip
    steps = [b - a for a, b in itertools.pairwise(seen)]
    assert steps == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])


@pytest.mark.parametrize("strategy", [FedAvg, FedOpt])
@pytest.mark.parametrize("final", [-0.1, 1.1])
def test_a_step_that_ends_nowhere_is_refused(strategy, final):
    with pytest.raises(ValueError, match=r"strategy\.final is"):
        strategy(final=final)
