"""Learned aggregation weights: eq. 1 and 2 of DecentNeRF against finite differences, and laws."""

import dataclasses
import itertools

import pytest
import torch

from fedfields import tree
from fedfields.federation import Local, Method, close_round, expected, start_server
from fedfields.objectives import Fit
from fedfields.privacy import Noise, SecAgg
from fedfields.runtime.inprocess import Context, Settings, run_rounds, train
from fedfields.runtime.pool import Pool
from fedfields.strategies import FedAvg, Learned
from fedfields.strategies.base import Outcome, scalar
from fedfields.strategies.learned import LARGEST, alpha_gradient, cosine
from tests.helpers import LOSS, clients_of, params_of


def somewhere(seed):
    random = torch.Generator().manual_seed(seed)
    start = params_of()
    return {key: torch.randn(leaf.shape, generator=random, dtype=torch.float64) for key, leaf in start.items()}


def mixed(alphas, parts):
    """``sum a_k g_k / sum a_k``, differentiable."""
    return {key: sum(a * part[key] for a, part in zip(alphas, parts, strict=True)) / alphas.sum() for key in parts[0]}


def test_the_gradient_of_alpha_is_that_of_finite_differences():
    parts, batch = [somewhere(i) for i in range(4)], clients_of(1)[0].train[0].query.everything()
    batch = batch._replace(inputs=batch.inputs.double(), targets=batch.targets.double())
    alphas = torch.tensor([0.3, 0.2, 0.9, 0.6], dtype=torch.float64)
    mean = tree.leaves_of(mixed(alphas, parts))
    grads = dict(zip(mean, torch.autograd.grad(LOSS(mean, batch), list(mean.values())), strict=True))
    for k in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = 1e-6
        up, down = (float(LOSS(mixed(alphas + sign * step, parts), batch)) for sign in (1, -1))
        found = float(alpha_gradient(grads, parts[k], tree.detach(mean), float(alphas.sum())))
        assert found == pytest.approx((up - down) / 2e-6, rel=1e-5)


class Played:
    """Clients that move as told, with gradients as told; the server is real."""

    def __init__(self, strategy, moves, gradients):
        self.method = Method(Fit(), Local(), strategy)
        self.moves, self.gradients = moves, gradients
        self.state = start_server(strategy, params_of())
        self.memories = [{} for _ in moves]
        self.reports = []

    def round(self, who=None):
        strategy = self.method.strategy
        received = strategy.broadcast(self.state.params, self.state.memory)
        self.reports, start = {}, received["params"]
        for k in range(len(self.moves)) if who is None else who:
            final = tree.add(start, self.moves[k]) if strategy.steps(1, received) else start
            outcome = Outcome(start, final, 1, 1.0, 1.0, self.gradients[k])
            self.reports[k], self.memories[k] = strategy.report(outcome, received, self.memories[k])
        self.state, metrics = close_round(self.method, self.state, self.reports.values(), len(self.moves))
        return metrics

    @property
    def alphas(self):
        return [float(memory["learned"]["alpha"]) for memory in self.memories]


MOVES = [tree.scale(somewhere(10 + k), 0.01 * (1 + k)) for k in range(3)]
GRADIENTS = [somewhere(20 + k) for k in range(3)]


def test_one_phase_learns_two_rounds_later_from_the_summed_gradient():
    game = Played(Learned(rate=0.7), MOVES, GRADIENTS)
    game.round()
    first = {key: leaf.clone() for key, leaf in game.state.params.items()}
    start = params_of()
    game.round()
    assert game.alphas == [1, 1, 1]
    game.round()
    total = {key: sum(g[key] for g in GRADIENTS) for key in first}
    for k, alpha in enumerate(game.alphas):
        away = tree.sub(tree.add(start, MOVES[k]), first)
        up, size = tree.dot(total, away), tree.sqnorm(total).sqrt() * tree.sqnorm(away).sqrt()
        assert alpha == pytest.approx(float(torch.exp(-0.7 * up / size)), rel=1e-6)


def test_two_phases_ask_first_and_train_then():
    """The gradient at g is there before the next weights leave: eq. 1 as it is written."""
    game = Played(Learned(rate=0.7, phases="two"), MOVES, GRADIENTS)
    game.round()
    after = tree.clone(game.state.params)
    game.round()
    assert all(torch.equal(after[key], leaf) for key, leaf in game.state.params.items())
    assert game.alphas == [1, 1, 1]
    game.round()
    one = Played(Learned(rate=0.7), MOVES, GRADIENTS)
    for _ in range(3):
        one.round()
    assert game.alphas == pytest.approx(one.alphas, rel=1e-6)


def test_the_weights_make_the_weighted_mean():
    game = Played(Learned(rate=2.0), MOVES, GRADIENTS)
    for _ in range(3):
        before = game.state.params
        game.round()
    alphas = torch.tensor(game.alphas, dtype=torch.float64)
    wanted = mixed(alphas, [tree.add(before, move) for move in MOVES])
    for key, leaf in wanted.items():
        torch.testing.assert_close(game.state.params[key], leaf, rtol=1e-9, atol=1e-12)


def test_shares_sum_to_one_and_weights_stay_near_their_mean():
    game = Played(Learned(rate=5.0), MOVES, GRADIENTS)
    for _ in range(12):
        metrics = game.round()
    weights = [float(report["stats"]["weight"]) for report in game.reports.values()]
    assert sum(weight / sum(weights) for weight in weights) == pytest.approx(1)
    assert all(1 / LARGEST <= alpha <= LARGEST for alpha in game.alphas)
    assert metrics["alpha_mean"] == pytest.approx(sum(game.alphas) / 3)


def test_equal_users_stay_equal():
    game = Played(Learned(rate=3.0), [MOVES[0]] * 3, GRADIENTS)
    for _ in range(6):
        game.round()
    assert game.alphas == pytest.approx([game.alphas[0]] * 3)


def test_who_helps_counts_more():
    """A client that moves down the summed gradient gains on one that moves up."""
    gradient = somewhere(30)
    moves = [tree.scale(gradient, -0.01), tree.scale(gradient, 0.005)]
    game = Played(Learned(), moves, [gradient, gradient])
    for _ in range(4):
        game.round()
    assert game.alphas[0] > 1 > game.alphas[1]


def test_who_was_away_keeps_its_weight():
    game = Played(Learned(rate=0.7), MOVES, GRADIENTS)
    game.round()
    game.round([0, 1])
    game.round()
    assert game.alphas[2] == 1 and game.alphas[0] != 1


def test_rate_zero_is_fedavg():
    clients, start = clients_of(4), params_of(dtype=torch.float32)
    runs = [
        train(Method(Fit(batch=8), Local(3, lr=0.01), strategy), clients, LOSS, start, rounds=4, cohort=3)
        for strategy in (Learned(rate=0.0), FedAvg())
    ]
    assert all(torch.equal(runs[0][key], leaf) for key, leaf in runs[1].items())


def test_the_gradient_that_travels_is_the_one_at_the_received_weights():
    clients, start = clients_of(2), params_of(dtype=torch.float32)
    method = Method(Fit(batch=0), Local(3, lr=0.01), Learned())
    context = Context(method, tuple(clients), LOSS)
    with Pool(context, 1) as pool:
        (step,) = run_rounds(context, Settings(1, 2), start_server(method.strategy, start), {}, pool)
    for i, reply in step.replies.items():
        leaves = tree.leaves_of(start)
        batch = clients[i].train[0].query.everything()
        wanted = torch.autograd.grad(LOSS(leaves, batch), list(leaves.values()))
        for key, grad in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(reply.report["gradient"][key], grad)


def test_three_sums_and_nothing_else_under_secure_aggregation():
    """Weights, gradients and alpha are summed in secret, to the same end."""
    start, clients = params_of(dtype=torch.float32), clients_of(4)
    base = Method(Fit(batch=8), Local(2, lr=0.01), Learned())
    secret = dataclasses.replace(base, privacy=(SecAgg(bits=64),))
    plain, masked = (train(m, clients, LOSS, start, rounds=4, cohort=4) for m in (base, secret))
    assert list(expected(secret, start)) == ["delta", "stats", "gradient"]
    for key, leaf in plain.items():
        torch.testing.assert_close(masked[key], leaf, rtol=0, atol=1e-6)


def test_alpha_is_bounded_whatever_the_gradient():
    received = {"params": params_of(), "gradient": somewhere(1), "learned": {"round": scalar(5), "mean": scalar(1)}}
    away = tree.scale(received["gradient"], -1.0)
    memory = {"away": away, "learned": {"alpha": scalar(12.0), "about": scalar(5.0), "trained": scalar(1.0)}}
    outcome = Outcome(received["params"], received["params"], 1, 1.0, 1.0, somewhere(2))
    report, _ = Learned(rate=9.0).report(outcome, received, memory)
    assert float(report["stats"]["weight"]) == LARGEST


@pytest.mark.parametrize("bad", [{"rate": -1.0}, {"phases": "three"}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Learned(**bad)


def test_cosine_of_nothing_is_nothing():
    assert cosine(tree.zeros(somewhere(1)), somewhere(2)) == 0
    assert cosine(somewhere(2), somewhere(2)) == pytest.approx(1)
    assert [round(cosine(a, b), 6) for a, b in itertools.pairwise([somewhere(1), tree.scale(somewhere(1), -2)])] == [-1]


def test_noise_and_learned_weights_do_not_go_together():
    """The weights depend on the data, and travel beside what is clipped and noised."""
    with pytest.raises(ValueError, match="noise hides a client only among equals, and Learned"):
        Method(Fit(), Local(), Learned(), (Noise(),))
