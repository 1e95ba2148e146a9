"""Runs whose reports are summed in secret: the same results, nothing of a single report, and what happens on faults."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fedfields import tree
from fedfields.audit import AuditSettings, Observation, audit, load_observations
from fedfields.audit.simulate import simulate
from fedfields.audit.target import Cohort, target_of
from fedfields.config import STRATEGIES, Experiment, choose, preset
from fedfields.errors import UserError
from fedfields.federation import Local, Method, start_server
from fedfields.losses import render
from fedfields.metrics import psnr
from fedfields.objectives import Fit, Inner, Maml
from fedfields.privacy import Noise, SecAgg
from fedfields.privacy.secure import Abandoned
from fedfields.runtime import inprocess
from fedfields.runtime.audit_run import audit_run
from fedfields.runtime.evaluation import seen
from fedfields.runtime.inprocess import AllFailed, Context, Settings, expected, run_rounds, train
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import load_experiment, run, set_up_run
from fedfields.runtime.secure import encoding, session_of, settings_of, sum_reports
from fedfields.seeds import generator
from fedfields.strategies import FedAvg, FedNova
from tests.helpers import LOSS, clients_of, params_of
from tests.runtime.test_run import experiment_of, pictures  # noqa: F401

SUMMED = {name: strategy for name, strategy in STRATEGIES.items() if strategy.sums_only}
START = tree.to(params_of(), torch.float32)
QUICKLY = AuditSettings(matching_steps=2, newton_products=2, polish_steps=2)
OBJECTIVE = Maml(Inner(steps=2, lr=0.05, batch=8), outer_batch=8)


def method_of(strategy=None, **changes):
    return Method(OBJECTIVE, Local(steps=2, lr=0.05), strategy or FedAvg(), **changes)


def trained(method, *, clients=6, cohort=5, rounds=2, **kwargs):
    return train(method, clients_of(clients), LOSS, START, rounds=rounds, cohort=cohort, **kwargs)


@pytest.mark.parametrize("name", list(SUMMED))
def test_every_strategy_that_sums_ends_where_it_ends_in_the_open(name):
    """Up to the rounding to integers, whose step is below 1e-7 of the range."""
    plain = trained(method_of(SUMMED[name]))
    secret = trained(method_of(SUMMED[name], privacy=(SecAgg(bits=64),)))
    # Adaptive servers divide by the square root of tiny second moments: they magnify what rounding leaves.
    tolerance = 1e-3 if name in ("fedadam", "fedyogi", "fedadagrad") else 1e-6
    for key, leaf in plain.items():
        torch.testing.assert_close(secret[key], leaf, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_the_integer_sum_of_the_reports(bits):
    """Against Python's integers, for the very vectors that clients encode."""
    method = method_of(FedNova())
    form = expected(method, START)
    privacy = SecAgg(bits=bits)
    plan = encoding(privacy, form, 5)
    random = torch.Generator().manual_seed(0)
    sent = [
        {
            "delta": {key: torch.randn(leaf.shape, generator=random) for key, leaf in form["delta"].items()},
            "stats": {key: torch.rand((), generator=random, dtype=torch.float64) for key in form["stats"]},
        }
        for _ in range(5)
    ]
    seed, rules = 7, settings_of(privacy, plan, session_of(7), 1, 0)
    found = sum_reports(plan, rules, range(5), lambda: iter(sent), seed)
    vectors = [plan.encode(one, generator(seed, "round", rules.round, i)).vector for i, one in enumerate(sent)]
    total = sum(vector.astype(object) for vector in vectors)
    modulus = 2**bits
    signed = [((int(x) % modulus) ^ (modulus // 2)) - modulus // 2 for x in total]
    flat = torch.cat([found.total[name][key].reshape(-1) for name, key, _ in plan.leaves])
    scales = [plan.scale(name) for name, _, shape in plan.leaves for _ in range(math.prod(shape))]
    assert flat.tolist() == [x / s for x, s in zip(signed, scales, strict=True)]
    assert found.clients == (0, 1, 2, 3, 4) and found.scaled == 0 and not found.dropped


def test_nobody_sees_a_single_report():
    """What the server has of a client is as good as noise: it fills the modulus, and differs when only masks differ."""
    method = method_of(privacy=(SecAgg(),))
    context = Context(method, tuple(clients_of(5)), LOSS)
    seen = []
    for _ in range(2):
        with Pool(context, 1) as pool:
            (step,) = run_rounds(context, Settings(1, 5), start_server(method.strategy, START), {}, pool)
        seen.append({i: tree.flatten(reply.report["delta"]) for i, reply in step.replies.items()})
    limit = 2**31 / encoding(SecAgg(), expected(method, START), 5).scale("delta")
    sent = torch.cat([leaf for one in seen for leaf in one.values()])
    # Uniform over the whole modulus: mean 0, variance limit^2 / 3. Of one report of 123 numbers, a quarter more or less
    # is three standard deviations: the variance is that of all ten.
    assert all(float(leaf.abs().max()) > 0.9 * limit for one in seen for leaf in one.values())
    assert float(sent.var()) == pytest.approx(limit**2 / 3, rel=6 * (0.8 / len(sent)) ** 0.5)
    for i, first in seen[0].items():
        second = seen[1][i]
        correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
        assert abs(correlation) < 5 / len(first) ** 0.5
    context = Context(method_of(), tuple(clients_of(5)), LOSS)
    with Pool(context, 1) as pool:
        (step,) = run_rounds(context, Settings(1, 5), start_server(FedAvg(), START), {}, pool)
    plain = {i: tree.flatten(reply.report["delta"]) for i, reply in step.replies.items()}
    for i, first in seen[0].items():
        assert abs(float(torch.corrcoef(torch.stack([first.float(), plain[i]]))[0, 1])) < 5 / len(first) ** 0.5


def test_the_result_does_not_depend_on_the_masks_nor_on_workers():
    method = method_of(privacy=(SecAgg(),))
    first, second = trained(method), trained(method, workers=2)
    assert all(torch.equal(first[key], second[key]) for key in first)


def failing(monkeypatch, names, text="its training diverged"):
    """Clients of these names come back from their visits with nothing."""
    real = inprocess.visit_job

    def job(context, index, *args):
        if context.clients[index].name in names:
            raise RuntimeError(text)
        return real(context, index, *args)

    monkeypatch.setattr(inprocess, "visit_job", job)


@pytest.mark.parametrize("clients", [4, 5, 6])
def test_who_drops_out_is_not_in_the_sum_and_the_others_are_exact(monkeypatch, clients):
    failing(monkeypatch, {"client-2"})
    steps = []
    secret = trained(method_of(privacy=(SecAgg(),)), clients=clients, cohort=clients, rounds=1, on_round=steps.append)
    plain = trained(method_of(), clients=clients, cohort=clients, rounds=1)
    assert [one["client"] for one in steps[0].record["dropped"]] == ["client-2"]
    assert sorted(steps[0].replies) == [0, 1, 3, 4, 5][: clients - 1]
    for key, leaf in plain.items():
        torch.testing.assert_close(secret[key], leaf, rtol=0, atol=1e-6)


def test_a_round_that_is_given_up_is_tried_with_another_cohort(monkeypatch):
    """Two of nine always fail: a cohort of five that has both of them cannot be summed, and another one is asked."""
    failing(monkeypatch, {"client-0", "client-1"})
    steps = []
    method = method_of(privacy=(SecAgg(threshold=1.0, tries=30),))
    trained(method, clients=9, cohort=5, rounds=12, on_round=steps.append)
    retried = [step for step in steps if "abandoned" in step.record]
    assert len(steps) == 12 and retried
    for step in retried:
        assert not {"client-0", "client-1"} & set(step.record["cohort"])
        assert all("neighbours" in why or "clients" in why for why in step.record["abandoned"])


def test_a_run_stops_in_words_if_no_cohort_gives_a_sum(monkeypatch):
    failing(monkeypatch, {f"client-{i}" for i in range(4)}, "no memory")
    with pytest.raises(AllFailed, match="no sum came of 3 cohorts of 5") as caught:
        trained(method_of(privacy=(SecAgg(),)))
    assert "no memory" in str(caught.value) and "\n" not in str(caught.value)


def test_reports_out_of_reach_are_scaled_down_whole_and_counted():
    steps = []
    trained(method_of(privacy=(SecAgg(reach=1e-3),)), rounds=1, on_round=steps.append)
    (step,) = steps
    assert step.record["scaled"] == 5
    assert max(float(leaf.abs().max()) for leaf in tree.sub(step.state.params, START).values()) <= 1.001e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SecAgg(minimum=2), "fewer than 3"),
        (lambda: SecAgg(neighbours=3), "even"),
        (lambda: SecAgg(threshold=0.5), "more than a half"),
        (lambda: SecAgg(reach=0.0), "positive"),
        (lambda: method_of(privacy=(SecAgg(), Noise())), "last"),
        (lambda: method_of(privacy=(SecAgg(), SecAgg())), "once"),
        (lambda: method_of(STRATEGIES["median"], privacy=(SecAgg(),)), "single reports"),
        (lambda: Experiment(privacy=(SecAgg(minimum=6),), cohort=5), "cohort is 5"),
    ],
)
def test_what_cannot_be_protected_is_refused_when_it_is_put_together(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_on_the_command_line_its_place_does_not_matter():
    chosen = choose(choose(preset("maml"), "privacy", "sec-agg"), "privacy", "noise")
    assert [type(part) for part in chosen.privacy] == [Noise, SecAgg]


def test_attacks_on_a_single_masked_upload_are_at_the_floor():
    """Each client's own, as the server has it. The best contrast of noise gains a little over the constant picture."""
    method, clients = method_of(privacy=(SecAgg(),)), clients_of(5)
    context = Context(method, tuple(clients), LOSS)
    with Pool(context, 1) as pool:
        (step,) = run_rounds(context, Settings(1, 5), start_server(method.strategy, START), {}, pool)
    observed = [
        Observation((clients[i].name,), 1, START, method.strategy.uploaded(START, reply.report, reply.steps))
        for i, reply in step.replies.items()
    ]
    result = audit(observed, {one.name: one.train[0] for one in clients}, LOSS, method)
    assert len(result.worst) == 5 and result.leak["worst"] < max(result.floor.values()) + 1.0


def test_with_the_draws_known_the_sum_of_a_round_is_simulated_to_its_rounding():
    """What the protocol decodes is the mean of the updates that the audit computes from the owners' pictures."""
    method, clients = method_of(privacy=(SecAgg(bits=64),)), clients_of(4)
    steps = []
    train(method, clients, LOSS, START, rounds=1, cohort=4, on_round=steps.append)
    weights = method.strategy.uploaded(START, steps[0].total, 2)
    cohort = Cohort({one.name: target_of(one.train[0]) for one in clients})

    def simulated(name, task):
        return simulate(method, task, START, LOSS, generator(0, "visit", 1, name))

    for key, leaf in cohort.update(simulated, cohort.unknown).items():
        torch.testing.assert_close(weights[key] - START[key], leaf.detach(), rtol=0, atol=1e-6)


def test_too_few_owners_are_one_line():
    with pytest.raises(UserError, match="only 2 clients"):
        trained(method_of(privacy=(SecAgg(),)), clients=2)


def test_a_masked_run_resumes_to_the_bit_and_is_judged_by_its_sums(pictures, tmp_path):  # noqa: F811
    experiment = experiment_of(pictures, privacy=(SecAgg(),), objective=Fit(batch=32), cohort=4)
    run(experiment, tmp_path / "whole")
    run(dataclasses.replace(experiment, rounds=5), tmp_path / "parts")
    for file in (tmp_path / "parts" / "checkpoints").iterdir():
        if "000002" not in file.name:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    run(load_experiment(tmp_path / "parts"), tmp_path / "parts", resume=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    # With FedAvg the mean of a round's uploads is what the next round starts from, here the final model.
    (last,) = load_observations(tmp_path / "whole" / "observations" / "round-000005.safetensors")
    assert len(last.clients) == 4
    for key, leaf in first.items():
        torch.testing.assert_close(last.upload[key], leaf, rtol=0, atol=1e-6)
    setup = set_up_run(tmp_path / "whole")
    owners = {client.name: seen(client.train[0].query) for client in setup.federation.clients}
    naive = [psnr(render(setup.loss, last.upload, owners[name]), owners[name].values) for name in last.clients]
    content = audit_run(tmp_path / "whole", QUICKLY)
    assert content["rounds"]["5"]["attacks"]["direct"] == pytest.approx(sum(naive) / 4)
    assert content["summed"] == 4 and {"newton_known", "polished_unknown"} <= set(content["attacks"])
    assert all(len(attack["per_client"]) == 4 for attack in content["attacks"].values())
    only_looked = audit_run(tmp_path / "whole", dataclasses.replace(QUICKLY, summed=3))
    assert not {"matching_unknown", "newton_unknown"} & set(only_looked["attacks"]) and "ntk" in only_looked["attacks"]
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    size = sum(leaf.numel() for leaf in first.values())
    assert all(record["bytes_up"] > 4 * 4 * size for record in records)


def test_the_exceptions_of_the_protocol_are_words_for_users():
    assert issubclass(Abandoned, UserError)
