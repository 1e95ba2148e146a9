"""Weights by the query loss: hand-made numbers, what a client may do, and the same result from secure sums."""

import pytest
import torch

from fedfields import tree
from fedfields.config import Experiment
from fedfields.federation import Door, Local, Method, Rejected, close_round, expected, start_server, visit
from fedfields.objectives import Inner, Maml
from fedfields.privacy import Noise, SecAgg
from fedfields.runtime.inprocess import train
from fedfields.strategies import FedAvg, FedNova, FedOpt, Learned, LossWeighted, Outcome, Robust, Scaffold
from tests.helpers import LOSS, clients_of, params_of, visit_of


def vector(*values):
    return {"x": torch.tensor(values, dtype=torch.float64)}


class Played:
    """Clients that move as told with losses as told; the server is real."""

    def __init__(self, strategy):
        self.method = Method(strategy=strategy, local=Local(lr=1.0))
        self.state = start_server(strategy, vector(0.0))

    def round(self, moves, losses, weights=None):
        strategy = self.method.strategy
        received = strategy.broadcast(self.state.params, self.state.memory)
        start, reports = received["params"], []
        for move, loss, weight in zip(moves, losses, weights or [1.0] * len(moves), strict=True):
            outcome = Outcome(start, {"x": start["x"] + move}, 1, 1.0, weight, loss=loss)
            reports.append(strategy.report(outcome, received, {})[0])
        before = float(self.state.params["x"])
        self.state, metrics = close_round(self.method, self.state, reports, len(moves))
        return float(self.state.params["x"]) - before, metrics


def test_the_second_round_weighs_by_the_mean_loss_of_the_first():
    """Losses 1, 2, 3, 10: mean 4. Then losses 2, 4, 1/2, 40 count 4/2 = 2, 1, 8 -> 5 and 1/10 -> 1/5."""
    game = Played(LossWeighted())
    moved, metrics = game.round([1, 2, 3, 6], [1, 2, 3, 10])
    assert moved == pytest.approx(3) and metrics["query_loss"] == pytest.approx(4)
    moved, metrics = game.round([1, 2, 3, 6], [2, 4, 0.5, 40])
    assert moved == pytest.approx((2 * 1 + 1 * 2 + 5 * 3 + 0.2 * 6) / 8.2)
    assert metrics["query_loss"] == pytest.approx(46.5 / 4)


def test_it_multiplies_the_weight_of_the_client():
    game = Played(LossWeighted(FedAvg(lr=0.5)))
    game.round([1, 1], [3, 3])
    moved, _ = game.round([1, 2], [1, 6], weights=[0.5, 1.0])
    assert moved == pytest.approx(0.5 * (3 * 0.5 * 1 + 0.5 * 1.0 * 2) / (3 * 0.5 + 0.5))


@pytest.mark.parametrize("base", [FedAvg(momentum=0.9), FedNova(), FedOpt("yogi")])
def test_with_equal_losses_it_is_its_base(base):
    weighted, plain = Played(LossWeighted(base)), Played(base)
    for _ in range(3):
        assert weighted.round([1, 4], [7, 7])[0] == pytest.approx(plain.round([1, 4], [7, 7])[0], rel=1e-12)


def test_a_client_weighs_itself_by_the_loss_of_what_it_received():
    """Not by that after its visit: the weight is mean / L(phi_K(theta); Q), for theta as received."""
    params, client = params_of(), clients_of(1, torch.float64)[0]
    objective = Maml(Inner(steps=2, lr=0.05, batch=0))
    method = Method(objective, Local(steps=5, lr=0.1), LossWeighted())
    loss = objective.estimate(params, client.train[0], LOSS, visit_of(params)).metrics["loss"]
    received = method.strategy.broadcast(params, {"quality": {"loss": torch.tensor(1.7 * loss).double()}})
    report = visit(method, client, LOSS, received, {}, seed=0, round=1).report
    assert float(report["stats"]["weight"]) == pytest.approx(1.7)
    assert float(report["stats"]["loss"]) == pytest.approx(loss)


def test_the_door_lets_in_what_the_clip_allows_and_no_more():
    method = Method(strategy=LossWeighted())
    form = expected(method, vector(0.0))

    def admit(weight):
        report = {"delta": vector(1.0), "stats": {name: torch.tensor(1.0).double() for name in form["stats"]}}
        report["stats"]["weight"] = torch.tensor(weight).double()
        Door(1, ["a"], form, heaviest=method.strategy.heaviest).admit("a", report, 1)

    admit(5.0)
    with pytest.raises(Rejected, match="its weight is"):
        admit(5.1)


def test_secure_sums_give_the_same_model():
    """Rounds in the open and in secure sums, with weights by size on top, differ by the rounding of the sums alone."""
    clients, start, sizes = clients_of(4), params_of(dtype=torch.float32), [1.0, 0.01, 0.2, 0.5]
    found = {}
    for privacy in ((), (SecAgg(bits=64),)):
        method = Method(Maml(Inner(steps=1, batch=0)), Local(steps=1, lr=0.1), LossWeighted(), privacy)
        found[privacy] = train(method, clients, LOSS, start, rounds=3, cohort=4, weights=sizes)
    (a, b) = found.values()
    assert float(tree.norm(tree.sub(a, start))) > 1e-2
    assert float(tree.norm(tree.sub(a, b))) < 1e-5 * float(tree.norm(tree.sub(a, start)))


@pytest.mark.parametrize("base", [Robust(), Scaffold(), Learned()])
def test_strategies_with_weights_of_their_own_are_refused(base):
    with pytest.raises(ValueError, match="choose a strategy that averages"):
        Experiment(weighting="loss", strategy=base)


def test_noise_needs_equals():
    assert Experiment(weighting="loss").method.strategy == LossWeighted()
    with pytest.raises(ValueError, match="among equals"):
        Experiment(weighting="loss", privacy=(Noise(),))
    with pytest.raises(ValueError, match="LossWeighted gives them weights that depend on their data"):
        Method(strategy=LossWeighted(), privacy=(Noise(),))
