"""Epsilon against published tables, a second library, closed forms and laws; and what a run says about it."""

import json
import math

import pytest
import torch

from fedfields.adaptation import Adaptation
from fedfields.config import Experiment, preset
from fedfields.errors import UserError
from fedfields.fields import Siren
from fedfields.objectives import Fit
from fedfields.privacy import AdaptiveNoise, CentralNoise, DistributedNoise, Noise, SecAgg, Surrogate
from fedfields.privacy.accounting import Accountant, Sampled
from fedfields.privacy.base import PUBLIC
from fedfields.report import write_report
from fedfields.runtime.checkpoint import load_weights
from fedfields.runtime.run import run
from fedfields.scenes.data import Data
from fedfields.strategies import Robust

TABLE = [
    ((1, 10), 1, 100, 1e-3, 5.6551, 4.7844),
    ((1, 10), 1, 3000, 1e-3, 55.415, 43.358),
    ((1, 10), 5, 3000, 1e-3, 4.0193, 3.5698),
    ((1, 1), 1, 1, 1e-5, 4.7285, 4.3772),
    ((1, 1), 10, 300, 1e-3, 6.9991, 6.2839),
    ((1, 100), 1, 1000, 1e-5, 2.1014, 1.8282),
]
"""Cohort and clients, z, rounds, delta: epsilon by RDP and by PLD, computed once with dp-accounting by itself."""


def sampled(rate, z):
    return Sampled(z, "none" if rate[0] == rate[1] else "poisson", *rate)


@pytest.mark.parametrize("rate, z, rounds, delta, rdp, pld", TABLE)
def test_the_table_of_known_values(rate, z, rounds, delta, rdp, pld):
    mechanism = sampled(rate, z)
    assert float(f"{mechanism.rdp(rounds, delta):.5g}") == rdp
    assert float(f"{mechanism.pld(rounds, delta):.5g}") == pld


@pytest.mark.filterwarnings("ignore")  # Its own: divisions by zero without subsampling, and an order at the edge.
@pytest.mark.parametrize("rate, z, rounds, delta, rdp, pld", TABLE)
def test_opacus_agrees_within_one_percent(rate, z, rounds, delta, rdp, pld):
    """Loss distributions always. Renyi, too, but where its best order is one of those near 1 whose series
    dp-accounting gives up on: there it is the higher of two upper bounds."""
    accountants = pytest.importorskip("opacus.accountants")
    theirs = []
    for kind in (accountants.RDPAccountant, accountants.PRVAccountant):
        accountant = kind()
        accountant.history = [(float(z), rate[0] / rate[1], rounds)]
        theirs.append(accountant.get_epsilon(delta))
    assert theirs[1] == pytest.approx(pld, rel=0.01)
    if rdp > 50:
        assert pld < theirs[0] < rdp
    else:
        assert theirs[0] == pytest.approx(rdp, rel=0.01)


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("z, rounds, delta", [(1, 1, 1e-5), (10, 300, 1e-3), (3, 7, 0.01), (0.5, 1, 1e-6)])
def test_unsampled_rounds_are_one_gaussian_mechanism(z, rounds, delta):
    """Balle and Wang, theorem 8, by hand: delta as a function of epsilon must give delta back."""
    epsilon, mean = Sampled(z).unsampled(rounds, delta), rounds**0.5 / z
    found = normal_cdf(mean / 2 - epsilon / mean) - math.exp(epsilon) * normal_cdf(-mean / 2 - epsilon / mean)
    assert found == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("z, rate", [(1.0, (2, 20)), (4.0, (5, 50)), (8.0, (25, 50))])
def test_one_round_without_replacement_is_bounded_from_below_by_distinguishing(z, rate):
    """No accountant may be below the truth: the best test between two data sets 2 C apart, at this sampling rate."""
    q, delta = rate[0] / rate[1], 1e-3
    epsilon = Sampled(z / 2, "fixed", *rate).epsilon(1, delta)
    # With probability q the outcome is normal around +1 or around -1 (in C), else around 0.
    worst = max(
        q * (normal_cdf(-(t - 1) / z) - math.exp(epsilon) * normal_cdf(-(t + 1) / z))
        + (1 - q) * (1 - math.exp(epsilon)) * normal_cdf(-t / z)
        for t in [0.1 * step for step in range(-100, 400)]
    )
    assert worst <= delta


LAWS = [Sampled(2.0), Sampled(2.0, "poisson", 3, 30), Sampled(2.0, "fixed", 3, 30)]


@pytest.mark.parametrize("mechanism", LAWS, ids=lambda one: one.sampling)
def test_epsilon_grows_with_rounds_and_falls_with_noise_and_delta(mechanism):
    def at(rounds=50, delta=1e-3, multiplier=2.0, cohort=3):
        changed = Sampled(multiplier, mechanism.sampling, cohort, 30)
        return changed.epsilon(rounds, delta)

    assert at(0) == 0 < at(1) < at(10) < at(100)
    assert at(multiplier=1.0) > at(multiplier=2.0) > at(multiplier=4.0)
    assert at(delta=1e-5) > at(delta=1e-3) > at(delta=1e-2)
    if mechanism.sampling != "none":
        assert at(cohort=1) < at(cohort=3) < at(cohort=9) < Sampled(2.0).epsilon(50, 1e-3)


@pytest.mark.parametrize("mechanism", LAWS, ids=lambda one: one.sampling)
def test_composing_in_two_parts_cannot_beat_composing_at_once(mechanism):
    whole, half = mechanism.epsilon(20, 1e-3), mechanism.epsilon(10, 5e-4)
    assert whole <= 2 * half


def test_too_little_noise_still_has_a_number():
    """Far beyond where a loss distribution fits into memory."""
    tiny = Sampled(0.01, "poisson", 1, 10)
    assert tiny.pld(100, 1e-3) is None
    assert 1e5 < tiny.epsilon(100, 1e-3) < 1e6


# Which mechanism a configuration is.


def accountant(*privacy, cohort=5, clients=50, poisson=False, delta=None, weights=10_000):
    return Accountant.of(privacy, weights=weights, cohort=cohort, clients=clients, poisson=poisson, delta=delta)


@pytest.mark.parametrize(
    "privacy, poisson, wanted, trust",
    [
        ([CentralNoise(0.1, multiplier=3.0)], True, Sampled(3.0, "poisson", 5, 50), "server"),
        ([AdaptiveNoise(0.1, multiplier=3.0)], True, Sampled(3.0, "poisson", 5, 50), "server"),
        ([CentralNoise(0.1, multiplier=3.0)], False, Sampled(1.5, "fixed", 5, 50), "server"),
        ([Noise(0.1, multiplier=3.0)], True, Sampled(1.5), "nobody"),
        ([Noise(0.1, ratio=50.0)], False, Sampled(0.25), "nobody"),
        ([Surrogate(), DistributedNoise(0.1, 3.0, honest=4), SecAgg()], False, Sampled(1.5), "sum"),
        ([DistributedNoise(0.1, 3.0, honest=4), SecAgg()], True, Sampled(0.75), "nobody"),
        ([DistributedNoise(0.1, 3.0, honest=9), SecAgg()], False, Sampled(0.5), "nobody"),
        ([DistributedNoise(0.1, 3.0, honest=4)], True, Sampled(0.75), "nobody"),
    ],
)
def test_each_configuration_is_accounted_for_by_its_own_mechanism(privacy, poisson, wanted, trust):
    found = accountant(*privacy, poisson=poisson)
    assert found is not None and found.trust == trust
    assert (found.mechanism.sampling, found.mechanism.cohort) == (wanted.sampling, wanted.cohort)
    assert found.mechanism.multiplier == pytest.approx(wanted.multiplier)
    assert found.delta == pytest.approx(50**-1.1)


def test_everybody_in_every_round_is_no_sample():
    for poisson in (False, True):
        found = accountant(CentralNoise(multiplier=3.0), cohort=80, poisson=poisson)
        assert found is not None and found.mechanism == Sampled(3.0)


def test_without_noise_there_is_no_guarantee():
    assert accountant() is None and accountant(Surrogate()) is None
    assert accountant(CentralNoise(multiplier=0.0)) is None and accountant(Noise(ratio=0.0)) is None


def test_local_noise_counts_the_rounds_of_the_owner_who_came_most_often():
    cohorts = [["ann", "bob"], ["ann", "eve"], ["ann"], []]
    local, central = accountant(Noise(multiplier=3.0)), accountant(CentralNoise(multiplier=3.0))
    assert local is not None and local.counted(cohorts) == 3 and local.counted([]) == 0
    assert central is not None and central.counted(cohorts) == 4
    assert local.epsilon(cohorts) == Sampled(1.5).epsilon(3, 50**-1.1)


def test_small_federations_have_a_delta_that_means_something():
    assert accountant(Noise(), clients=2).delta == 0.1
    assert accountant(Noise(), clients=2, delta=1e-6).delta == 1e-6


# What a run says.


def experiment(**changes):
    base = {"data": Data(size=12), "objective": Fit(batch=16), "rounds": 4, "cohort": 3, "workers": 1}
    base |= {"evaluate_every": 4, "checkpoint_every": 1, "adaptation": Adaptation(steps=1), "field": Siren(8, 2)}
    return Experiment(**base | changes)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_epsilon_into_every_round_the_summary_and_the_page(tmp_path):
    chosen = experiment(privacy=(CentralNoise(0.1, multiplier=2.0),), sampling="poisson")
    summary = run(chosen, tmp_path / "a")
    clients = summary["clients"]["train"]
    mechanism, delta = Sampled(2.0, "poisson", 3, clients), min(0.1, clients**-1.1)
    told = [record["epsilon"] for record in records(tmp_path / "a")]
    assert told == [mechanism.epsilon(count, delta) for count in (1, 2, 3, 4)]
    privacy = summary["privacy"]
    assert privacy["epsilon"] == privacy["epsilon_pld"] == mechanism.pld(4, delta) < told[-1]
    assert privacy["noise"] == "seed" and "published weights" in privacy["protects"]
    page = write_report([tmp_path / "a"], tmp_path / "report.html").read_text()
    assert f"{privacy['epsilon']:.3g}" in page and "published weights" in page
    assert "The noise came from the seed" in page


def test_local_epsilon_goes_on_where_a_resumed_run_left_it(tmp_path):
    chosen = experiment(privacy=(Noise(0.1, multiplier=8.0),))
    whole = run(chosen, tmp_path / "whole")
    run(experiment(privacy=chosen.privacy, rounds=2), tmp_path / "cut")
    assert run(chosen, tmp_path / "cut", resume=True)["privacy"] == whole["privacy"]
    told = [[record["epsilon"] for record in records(tmp_path / name)] for name in ("whole", "cut")]
    assert told[0] == told[1] and told[0] == sorted(told[0])
    taken = [sum(name in record["cohort"] for record in records(tmp_path / "whole")) for name in _everybody(tmp_path)]
    assert told[0][-1] == Sampled(4.0).epsilon(max(taken), whole["privacy"]["delta"])


@pytest.mark.parametrize(
    "change", [{"privacy": ()}, {"privacy": (Noise(0.1, multiplier=9.0),)}, {"cohort": 4}, {"noise": "secure"}]
)
def test_a_resumed_run_cannot_change_what_earlier_noise_was_worth(tmp_path, change):
    chosen = {"privacy": (Noise(0.1, multiplier=8.0),), "rounds": 1}
    run(experiment(**chosen), tmp_path / "a")
    with pytest.raises(UserError, match=f"started with another {next(iter(change))}; resume it without"):
        run(experiment(**chosen | {"rounds": 2} | change), tmp_path / "a", resume=True)


def test_a_resumed_run_goes_on_with_its_clip_to_the_bit(tmp_path):
    chosen = {"privacy": (AdaptiveNoise(0.1, multiplier=0.5),), "sampling": "poisson"}
    run(experiment(**chosen), tmp_path / "whole")
    run(experiment(**chosen, rounds=2), tmp_path / "cut")
    run(experiment(**chosen), tmp_path / "cut", resume=True)
    whole, cut = (load_weights(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    clips = [[record["clip"] for record in records(tmp_path / name)] for name in ("whole", "cut")]
    assert clips[0] == clips[1] and len(set(clips[0])) == 4


def _everybody(folder):
    return {name for record in records(folder / "whole") for name in record["cohort"]}


def test_secure_noise_is_not_called_seeded_and_no_noise_has_no_epsilon(tmp_path):
    secure = run(experiment(privacy=(CentralNoise(0.1),), noise="secure", rounds=1), tmp_path / "a")
    assert secure["privacy"]["noise"] == "secure"
    page = write_report([tmp_path / "a"], tmp_path / "report.html").read_text()
    assert "The noise came from the seed" not in page
    plain = run(experiment(rounds=1), tmp_path / "b")
    assert plain["privacy"] is None and "epsilon" not in records(tmp_path / "b")[0]


def test_the_preset_runs_and_its_file_says_what_it_is(tmp_path):
    chosen = preset("dp-fedavg")
    assert isinstance(chosen.privacy[0], CentralNoise) and chosen.sampling == "poisson"
    assert chosen.strategy.sums_only and {"stats"} == PUBLIC
    with pytest.raises(ValueError, match="single reports"):
        experiment(privacy=chosen.privacy, strategy=Robust("median"))
