"""Rounds in one process and in several: deterministic, and robust against clients that fail."""

import dataclasses

import pytest
import torch

from fedfields import tree
from fedfields.errors import UserError
from fedfields.federation import Local, Method, close_round, start_server
from fedfields.objectives import Fit, Inner, Maml, Objective, Proximal
from fedfields.privacy import Noise
from fedfields.runtime.inprocess import Context, Settings, run_rounds, train
from fedfields.runtime.pool import Pool
from fedfields.strategies import FedAvg, Robust, Scaffold
from fedfields.types import Client
from tests.helpers import LOSS, clients_of, params_of

METHOD = Method(Maml(Inner(steps=2, lr=0.05, batch=8), outer_batch=8), Local(2, lr=0.05), Scaffold())


def weights(method=METHOD, clients=None, **kwargs):
    settings = {"rounds": 3, "cohort": 3, "seed": 4} | kwargs
    return train(method, clients or clients_of(5), LOSS, params_of(dtype=torch.float32), **settings)


def assert_same_bits(a, b):
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    assert_same_bits(weights(), weights())
    assert not torch.equal(weights()["last_layer.bias"], weights(seed=5)["last_layer.bias"])


def test_worker_processes_give_the_same_bits():
    assert_same_bits(weights(workers=1), weights(workers=2))


def test_client_order_in_memory_does_not_matter_to_a_clients_randomness():
    """A client's draws depend on its name and the round, not on who else is there."""
    alone = weights(clients=clients_of(1), cohort=1, rounds=1)
    records = []
    train(
        METHOD,
        clients_of(3),
        LOSS,
        params_of(dtype=torch.float32),
        rounds=1,
        cohort=3,
        seed=4,
        on_round=records.append,
    )
    reply = records[0].replies[0]
    moved = tree.sub(params_of(dtype=torch.float32), alone)
    for key in moved:
        torch.testing.assert_close(reply.report["delta"][key], moved[key], rtol=1e-5, atol=1e-7)


def test_one_client_with_all_its_samples_is_gradient_descent():
    method = Method(Fit(batch=0), Local(steps=4, lr=0.1, clip=0.0), FedAvg())
    clients = clients_of(1, dtype=torch.float64)
    found = train(method, clients, LOSS, params_of(), rounds=3, cohort=1)
    reference = [leaf.clone().requires_grad_() for leaf in params_of().values()]
    optimiser = torch.optim.SGD(reference, lr=0.1)
    for _ in range(12):
        optimiser.zero_grad()
        LOSS(dict(zip(found, reference, strict=True)), clients[0].train[0].query.everything()).backward()
        optimiser.step()
    for leaf, wanted in zip(found.values(), reference, strict=True):
        torch.testing.assert_close(leaf, wanted.detach(), rtol=1e-10, atol=1e-12)


def test_fedprox_with_mu_zero_is_fedavg_and_differs_otherwise():
    def method(objective):
        return dataclasses.replace(METHOD, objective=objective, strategy=FedAvg())

    base = weights(method(METHOD.objective))
    assert_same_bits(base, weights(method(Proximal(METHOD.objective, mu=0.0))))
    assert not torch.equal(
        base["last_layer.bias"], weights(method(Proximal(METHOD.objective, mu=1.0)))["last_layer.bias"]
    )


@dataclasses.dataclass(frozen=True)
class Saboteur(Objective):
    """Honest for all clients but the named one."""

    victim: str
    how: str

    def estimate(self, params, task, loss, visit):
        estimate = METHOD.objective.estimate(params, task, loss, visit)
        if task.name != self.victim:
            return estimate
        if self.how == "raises":
            raise RuntimeError("out of memory")
        bad = {"nan": float("nan"), "inf": float("inf")}[self.how]
        return estimate._replace(grads=tree.scale(estimate.grads, bad))


@pytest.mark.parametrize("how, reason", [("raises", "out of memory"), ("nan", "not finite"), ("inf", "not finite")])
@pytest.mark.parametrize("strategy", [FedAvg(), Scaffold(), Robust("median")], ids=lambda s: type(s).__name__)
def test_a_failing_client_is_dropped_and_the_others_go_on(how, reason, strategy):
    clients = clients_of(4)
    method = dataclasses.replace(METHOD, objective=Saboteur("picture-2", how), strategy=strategy)
    records = []
    train(method, clients, LOSS, params_of(dtype=torch.float32), rounds=2, cohort=4, on_round=records.append)
    for one in records:
        assert [drop["client"] for drop in one.record["dropped"]] == ["client-2"]
        assert reason in one.record["dropped"][0]["reason"]
        assert sorted(one.replies) == [0, 1, 3]
    # The result is that of the federation without the client's reports.
    honest = dataclasses.replace(method, objective=METHOD.objective)
    state = start_server(strategy, params_of(dtype=torch.float32))
    first = records[0]
    state, _ = close_round(honest, state, [first.replies[i].report for i in (0, 1, 3)], 4)
    assert_same_bits(state.params, first.state.params)


def test_a_round_in_which_all_fail_is_one_clear_line():
    method = dataclasses.replace(METHOD, objective=Saboteur("picture-0", "raises"))
    with pytest.raises(UserError, match="all 1 clients of the round failed; client-0: RuntimeError: out of memory"):
        weights(method, clients=clients_of(1), cohort=1)


def test_weights_count():
    """A client of weight 3 counts as three clients of weight 1 with the same update."""
    heavy = weights(dataclasses.replace(METHOD, strategy=FedAvg()), weights=[1, 1, 3, 1, 1], rounds=1, cohort=5)
    equal = weights(dataclasses.replace(METHOD, strategy=FedAvg()), rounds=1, cohort=5)
    assert not torch.equal(heavy["last_layer.bias"], equal["last_layer.bias"])


def test_cohort_is_sampled_without_replacement_and_covers_everybody():
    records = []
    weights(clients=clients_of(5), cohort=2, rounds=20, on_round=records.append)
    names = [one.record["cohort"] for one in records]
    assert all(len(set(cohort)) == 2 for cohort in names)
    assert set().union(*names) == {f"client-{i}" for i in range(5)}
    assert len(set(map(tuple, names))) > 3


def test_bytes_are_counted():
    records = []
    weights(dataclasses.replace(METHOD, strategy=FedAvg()), rounds=1, on_round=records.append)
    size = tree.size(params_of())
    assert records[0].record["bytes_down"] == 3 * 4 * size
    assert records[0].record["bytes_up"] == 3 * (4 * size + 8)


def test_noise_has_the_promised_norm_and_clips_jointly():
    transform = Noise(clip=0.5, ratio=4.0)
    report = {
        "delta": {"x": torch.full((40_000,), 3.0)},
        "variate": {"x": torch.full((10_000,), -2.0)},
        "stats": {"weight": torch.tensor(1.0, dtype=torch.float64)},
    }
    found = transform.client(report, torch.Generator().manual_seed(0))
    assert float(found["stats"]["weight"]) == 1.0
    original = (40_000 * 9 + 10_000 * 4) ** 0.5
    noise = {name: found[name]["x"] - report[name]["x"] * 0.5 / original for name in ("delta", "variate")}
    assert sum(float((part**2).sum()) for part in noise.values()) ** 0.5 == pytest.approx(2.0, rel=0.02)
    assert float(noise["delta"].std()) == pytest.approx(float(noise["variate"].std()), rel=0.05)


def test_resuming_from_any_round_gives_the_same_bits():
    clients, start = clients_of(5), params_of(dtype=torch.float32)
    settings, context = Settings(4, 3, seed=1), Context(METHOD, tuple(clients), LOSS)
    with Pool(context, workers=1) as pool:
        whole = list(run_rounds(context, settings, start_server(METHOD.strategy, start), {}, pool))
        for cut in (0, 1, 2):
            rest = list(run_rounds(context, settings, whole[cut].state, whole[cut].memories, pool))
            assert_same_bits(rest[-1].state.params, whole[-1].state.params)
            assert_same_bits(rest[-1].state.memory["variate"], whole[-1].state.memory["variate"])


def test_a_client_without_tasks_is_dropped():
    clients = [*clients_of(2), Client("empty", ())]
    records = []
    train(METHOD, clients, LOSS, params_of(dtype=torch.float32), rounds=1, cohort=3, on_round=records.append)
    assert [drop["client"] for drop in records[0].record["dropped"]] == ["empty"]
