"""Differential privacy: sensitivities by brute force, noise by its statistics, the adaptive clip by its limit."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedfields.config import OBJECTIVES, STRATEGIES, Experiment, choose, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import (
    Local,
    Method,
    ServerState,
    close_round,
    expected,
    sample_cohort,
    start_server,
    visit,
)
from fedfields.objectives import Fit
from fedfields.privacy import AdaptiveNoise, CentralNoise, DistributedNoise, Noise, SecAgg, clip_report
from fedfields.privacy.base import PUBLIC, private_norm
from fedfields.privacy.secure.fixed import FixedPoint
from fedfields.privacy.sources import Secure, add_normal, discrete_normal, uniform
from fedfields.runtime.inprocess import train
from fedfields.strategies import FedAvg, FedNova, Outcome, Robust, Scaffold
from tests.helpers import LOSS, clients_of, params_of
from tests.table import small

SUMS = {name: strategy for name, strategy in STRATEGIES.items() if strategy.sums_only and strategy.heaviest == 1}
NOISES = [Noise(), CentralNoise(), AdaptiveNoise(), DistributedNoise()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def report_of(norm, weights=100, seed=0):
    """A report of this norm in a random direction, over two trees."""
    direction = torch.randn(weights, generator=seeded(seed), dtype=torch.float64)
    values = (direction * norm / direction.norm()).float()
    half = weights // 2
    stats_tree = {"weight": torch.tensor(1.0, dtype=torch.float64)}
    return {"delta": {"x": values[:half]}, "variate": {"x": values[half:]}, "stats": stats_tree}


def private(report):
    return torch.cat(
        [leaf.double().reshape(-1) for name in report if name not in PUBLIC for leaf in report[name].values()]
    )


# Sensitivity.


def reports_of(strategy, moves, transform, params):
    """What clients that moved by ``moves`` send, as a strategy and a transform make it of them, without noise."""
    received = strategy.broadcast(params, strategy.init(params))
    received |= {"variate": {key: torch.full_like(leaf, 3.0) for key, leaf in params.items()}}
    found = []
    for move in moves:
        final = {key: leaf + move[key] for key, leaf in received["params"].items()}
        memory = strategy.client_init(params)
        report, _ = strategy.report(Outcome(received["params"], final, 2, 0.01, 1.0), received, memory)
        found.append(transform.client(report, seeded()))
    return found


@pytest.mark.parametrize("name", list(SUMS))
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4], ids=["small", "ordinary", "huge"])
def test_one_client_changes_the_sum_by_at_most_the_clip(name, size):
    """Neighbouring cohorts, brute force: what the server adds its noise to, and everything else that it uses."""
    strategy, transform, params = SUMS[name], CentralNoise(clip=0.5), params_of(dtype=torch.float32)
    moves = [{k: size * torch.randn(v.shape, generator=seeded(i)) for k, v in params.items()} for i in range(6)]
    reports = reports_of(strategy, moves, transform, params)

    def total(kept):
        return sum(private(reports[i]) for i in kept)

    everybody = list(range(6))
    for left_out in everybody:
        rest = [i for i in everybody if i != left_out]
        assert float((total(everybody) - total(rest)).norm()) <= 0.5 * (1 + 1e-12)
    assert all(private_norm(report) <= 0.5 for report in reports)
    # The rest of a report is the same whoever sends it.
    assert all(set(report) - PUBLIC == set(reports[0]) - PUBLIC for report in reports)
    for report in reports:
        assert all(torch.equal(report["stats"][key], leaf) for key, leaf in reports[0]["stats"].items())


@pytest.mark.parametrize("name", list(SUMS))
def test_the_number_of_reports_does_not_show(name):
    """With no noise at all, a client that moved nowhere can stay away: the denominator is fixed."""
    method = Method(Fit(), Local(steps=2, lr=0.01), SUMS[name], (CentralNoise(clip=0.5, multiplier=0.0),))
    params = params_of(dtype=torch.float32)
    moves = [{k: torch.randn(v.shape, generator=seeded(i)) for k, v in params.items()} for i in range(2)]
    still = {name: {k: torch.zeros_like(v) for k, v in params.items()} for name in ("delta", "variate")}
    state = start_server(method.strategy, params)
    received = method.strategy.broadcast(params, state.memory)
    reports = []
    for move in moves:
        final = {key: leaf + move[key] for key, leaf in received["params"].items()}
        outcome = Outcome(received["params"], final, 2, 0.01, 1.0)
        report, _ = method.strategy.report(outcome, received, method.client_init(params))
        reports.append(method.privacy[0].client(report, seeded()))
    absent = {part: still.get(part, {k: 0 * v for k, v in leaves.items()}) for part, leaves in reports[0].items()}
    absent["stats"] = reports[0]["stats"]
    (a, _), (b, _) = (close_round(method, state, some, 9, cohort=4) for some in (reports, [*reports, absent]))
    for key in params:
        assert torch.equal(a.params[key], b.params[key])


def test_fednova_by_hand_with_a_fixed_denominator():
    """Two of four expected clients, unclipped, no noise: (2 + 4) / 2 steps each, over four clients, times two steps."""
    method = Method(Fit(), Local(steps=2), FedNova(), (CentralNoise(clip=100.0, multiplier=0.0),))
    start = {"x": torch.zeros(1)}
    outcomes = [Outcome(start, {"x": torch.tensor([move])}, 2, 0.1, 1.0) for move in (2.0, 4.0)]
    reports = [method.strategy.report(outcome, {"params": start}, {})[0] for outcome in outcomes]
    state, metrics = close_round(method, ServerState(start, {}), reports, 9, cohort=4)
    assert metrics["effective_steps"] == 2
    assert float(state.params["x"]) == pytest.approx(1.5)


def test_a_round_to_which_nobody_came_is_noised_like_any_other():
    method = Method(strategy=FedAvg(), privacy=(CentralNoise(clip=1.0, multiplier=2.0),))
    start = {"x": torch.zeros(20_000)}
    state, _ = close_round(method, ServerState(start, {}), [], 10, cohort=4, source=seeded())
    assert float(state.params["x"].std()) == pytest.approx(2.0 * 1.0 / 4, rel=0.02)
    unprotected, _ = close_round(Method(), ServerState(start, {}), [], 10)
    assert torch.equal(unprotected.params["x"], start["x"])


@pytest.mark.parametrize("norm", [1e-6, 0.3, 0.5, 0.5000001, 7.0, 1e12])
def test_every_clipped_report_has_at_most_the_norm(norm):
    """As the float32 numbers are stored, summed in float64, for a hundred directions."""
    for seed in range(100):
        found = clip_report(report_of(norm, seed=seed), 0.5)
        assert private_norm(found) <= 0.5
        assert private_norm(found) == pytest.approx(min(0.5, norm), rel=1e-6)


def test_clipping_keeps_what_is_short_and_the_direction_of_what_is_not():
    short, long = report_of(0.4), report_of(40.0)
    assert clip_report(short, 0.5) is short
    torch.testing.assert_close(private(clip_report(long, 0.4)), private(short), rtol=1e-5, atol=0)


def test_a_report_with_no_numbers_left_is_not_let_through_by_the_clip():
    broken = report_of(1.0) | {"delta": {"x": torch.full((50,), float("inf"))}}
    assert not torch.isfinite(private(clip_report(broken, 0.5))).all()


# Noise.


@pytest.mark.parametrize("source", [seeded(1), Secure()], ids=["seed", "secure"])
def test_normal_draws_are_normal(source):
    drawn = add_normal({"x": torch.zeros(200_001, dtype=torch.float64)}, 3.0, source)["x"].numpy()
    assert stats.kstest(drawn, "norm", args=(0, 3.0)).pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / 200_000**0.5


@pytest.mark.parametrize("source", [seeded(1), Secure()], ids=["seed", "secure"])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 7.3, 1000.5])
def test_discrete_draws_have_the_discrete_gaussian_law(source, sigma):
    """Chi-square against exp(-k^2 / 2 sigma^2), normalised by summing it."""
    drawn = discrete_normal(200_000, sigma, source).numpy()
    assert drawn.shape == (200_000,) and np.array_equal(drawn, np.rint(drawn))
    grid = np.arange(-math.ceil(12 * sigma), math.ceil(12 * sigma) + 1)
    law = np.exp(-(grid.astype(float) ** 2) / (2 * sigma**2))
    law /= law.sum()
    edges = np.unique(np.searchsorted(law.cumsum(), np.linspace(0.001, 0.999, 41)))
    wanted = np.diff([0, *law.cumsum()[edges], 1])
    counted = np.diff([0, *np.searchsorted(np.sort(drawn), grid[edges], side="right"), len(drawn)])
    kept = wanted * len(drawn) > 5
    other = max(1e-12, 1 - wanted[kept].sum())
    seen, law_of = [*counted[kept], counted[~kept].sum()], [*wanted[kept], other]
    if law_of[-1] * len(drawn) < 5:
        seen, law_of = seen[:-1], law_of[:-1]
        law_of = list(np.array(law_of) / sum(law_of))
    assert stats.chisquare(seen, np.array(law_of) * sum(seen)).pvalue > 1e-6


def test_discrete_noise_of_no_width_is_none():
    assert not discrete_normal(5, 0.0, seeded()).any()


def test_secure_draws_never_repeat_and_lie_inside_the_interval():
    first, second = Secure().uniform(100_000), Secure().uniform(100_000)
    assert not torch.equal(first, second)
    for draws in (first, uniform(100_000, seeded())):
        assert float(draws.min()) > 0 and float(draws.max()) < 1
        assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize(
    "transform, wanted",
    [
        (Noise(0.5, ratio=4.0), 4.0 * 0.5 / 40_000**0.5),
        (Noise(0.5, multiplier=0.7), 0.7 * 0.5),
        (DistributedNoise(0.5, multiplier=0.7, honest=4), 0.7 * 0.5 / 2),
        (CentralNoise(0.5), 0.0),
        (AdaptiveNoise(0.5), 0.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_noise_on_one_report_is_as_wide_as_promised(transform, wanted):
    report = report_of(3.0, weights=40_000)
    found = {name: part for name, part in transform.client(report, seeded()).items() if name != "below"}
    noise = private(found) - private(clip_report(report, 0.5))
    assert transform.std(40_000) == pytest.approx(wanted)
    assert float(noise.std()) == pytest.approx(wanted, rel=0.02, abs=1e-5)
    assert all(torch.equal(found["stats"][key], leaf) for key, leaf in report["stats"].items())


def test_the_server_adds_noise_of_z_times_the_clip_to_the_sum():
    total = {"delta": {"x": torch.zeros(40_000).double()}, "stats": {"weight": torch.tensor(5.0).double()}}
    found = CentralNoise(0.5, multiplier=3.0).server(total, seeded(), 5)
    assert float(found["delta"]["x"].std()) == pytest.approx(1.5, rel=0.02)
    assert float(found["stats"]["weight"]) == 5


def test_distributed_noise_is_on_a_grid_that_secure_sums_carry_exactly():
    """Sums of integers equal sums of floats to the bit, and hold the noise of the honest clients."""
    transform, weights, clients = DistributedNoise(0.5, multiplier=1.0, honest=8), 20_000, 8
    grid = transform.grid(weights)
    assert math.log2(grid).is_integer() and grid <= 0.5 / (512 * weights**0.5)
    reports = [transform.client(report_of(3.0, weights, seed=k), seeded(k)) for k in range(clients)]
    for report in reports:
        assert torch.equal((private(report) / grid).round(), private(report) / grid)
    fixed = FixedPoint.of(reports[0], {"delta": 2.0, "variate": 2.0, "stats": 1.0}, clients)
    assert fixed.scale("delta") >= 1 / grid
    vectors = [fixed.encode(report, seeded(99)).vector for report in reports]
    found = private(fixed.decode(np.add.reduce(vectors, dtype=fixed.dtype), clients))
    wanted = sum(private(report) for report in reports)
    assert torch.equal(found, wanted)
    updates = sum(private(clip_report(report_of(3.0, weights, seed=k), 0.5)) for k in range(clients))
    assert float((found - updates).std()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("weights", [1, 2, 100, 20_000])
@pytest.mark.parametrize("norm", [0.4999, 0.5, 3.0])
def test_rounding_to_the_grid_does_not_lift_a_report_over_the_clip(weights, norm):
    transform = DistributedNoise(0.5, multiplier=0.0)
    for seed in range(20):
        assert private_norm(transform.client(report_of(norm, weights, seed), seeded())) <= 0.5


# The adaptive clip.


def test_the_adaptive_clip_finds_the_median_norm():
    """Reports with log-normal norms: their median is known. The clip starts a thousand times too low, or too high."""
    norms = torch.exp(0.5 * torch.randn(200, 60, generator=seeded(3), dtype=torch.float64)) * 2.0
    for start in (0.002, 2000.0):
        method = Method(privacy=(AdaptiveNoise(start, multiplier=0.5),))
        state, clips = ServerState({"x": torch.zeros(30)}, {}), []
        for number, row in enumerate(norms.tolist()):
            told = state.memory.get("privacy.0", {})
            transform = method.privacy[0].at(told)
            reports = [
                {k: v for k, v in report_of(norm, 30, seed).items() if k != "variate"} for seed, norm in enumerate(row)
            ]
            scaled = [
                {
                    "delta": {"x": (r["delta"]["x"] * norm / r["delta"]["x"].norm()).repeat(2) / 2**0.5},
                    "stats": r["stats"],
                }
                for r, norm in zip(reports, row, strict=True)
            ]
            sent = [transform.client(report, seeded(number)) for report in scaled]
            state, metrics = close_round(method, state, sent, 60, cohort=60, source=seeded(number))
            assert all(private_norm({"delta": one["delta"]}) <= transform.clip for one in sent)
            clips.append(metrics["clip"])
        assert np.exp(np.mean(np.log(clips[-50:]))) == pytest.approx(2.0, rel=0.08)


def test_the_adaptive_step_is_that_of_the_paper():
    """C exp(-0.2 (3/4 - 1/2)) when three of four reports are below the clip, by hand and without noise."""
    transform = AdaptiveNoise(1.0, multiplier=0.0)
    total = {"below": {"count": torch.tensor(3 * 0.5 - 0.5, dtype=torch.float64)}}
    assert float(transform.after(total, 4)["clip"]) == pytest.approx(math.exp(-0.05))
    assert transform.at(transform.after(total, 4)).clip == pytest.approx(math.exp(-0.05))
    assert transform.at({}) is transform


@pytest.mark.parametrize("cohort, z", [(5, 1.0), (100, 1.0), (1000, 0.3), (40, 4.0)])
def test_counting_and_updates_together_cost_as_much_as_the_multiplier_says(cohort, z):
    """Theorem 1 of Andrew et al.: z^-2 is the sum of both parts' squared sensitivity over variance."""
    transform = AdaptiveNoise(1.0, multiplier=z)
    weights, many = {"x": torch.zeros(20_000).double()}, 3000
    sums = transform.server({"delta": weights, "below": {"count": torch.zeros(())}}, seeded(), cohort)
    of_updates = float(sums["delta"]["x"].std())
    counts = [
        float(transform.server({"below": {"count": torch.zeros(()).double()}}, seeded(i), cohort)["below"]["count"])
        for i in range(many)
    ]
    assert np.std(counts) == pytest.approx(max(cohort / 20, z), rel=0.06)
    assert (1 / of_updates**2 + 0.25 / np.std(counts) ** 2) ** -0.5 == pytest.approx(z, rel=0.03)


def test_the_clip_is_told_to_the_clients_and_survives_a_resumed_run():
    method = Method(Fit(batch=8), Local(2, lr=0.05), Scaffold(), (AdaptiveNoise(1.0, multiplier=0.1),))
    rounds = []
    start, clients = params_of(dtype=torch.float32), clients_of(4)
    train(method, clients, LOSS, start, rounds=3, cohort=3, on_round=rounds.append)
    assert "privacy.0" not in rounds[0].received
    for before, after in itertools.pairwise(rounds):
        assert float(after.received["privacy.0"]["clip"]) == before.record["clip"] != 1.0
    assert set(rounds[-1].state.memory) == {"variate", "privacy.0"}


# Where noise comes from, and who is there.


@pytest.mark.parametrize("transform", NOISES, ids=lambda t: type(t).__name__)
def test_seeded_runs_repeat_to_the_bit_and_secret_ones_never(transform):
    method = Method(Fit(batch=8), Local(1, lr=0.05), FedAvg(), (transform,))

    def bits(**how):
        found = train(method, clients_of(4), LOSS, params_of(dtype=torch.float32), rounds=2, cohort=4, **how)
        return torch.cat([leaf.reshape(-1) for leaf in found.values()])

    assert torch.equal(bits(), bits())
    assert not torch.equal(bits(), bits(seed=1))
    assert not torch.equal(bits(secret=True), bits(secret=True))


def test_a_visit_that_names_no_source_draws_noise_that_nobody_can_repeat():
    method = Method(Fit(batch=0), Local(1, lr=0.05), FedAvg(), (Noise(),))
    start, client = params_of(dtype=torch.float32), clients_of(1)[0]
    first, second = (visit(method, client, LOSS, {"params": start}, {}, seed=0, round=1) for _ in range(2))
    assert not torch.equal(private(first.report), private(second.report))
    again = [visit(method, client, LOSS, {"params": start}, {}, seed=0, round=1, source=seeded()) for _ in range(2)]
    assert torch.equal(private(again[0].report), private(again[1].report))


def test_poisson_cohorts_are_binomial_and_clients_independent():
    cohorts = [sample_cohort(20, 5, source=seeded(i), poisson=True) for i in range(4000)]
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert sizes.mean() == pytest.approx(5, abs=0.15) and sizes.var() == pytest.approx(20 * 0.25 * 0.75, rel=0.1)
    there = np.array([[i in cohort for i in range(20)] for cohort in cohorts], float)
    assert np.abs(there.mean(0) - 0.25).max() < 0.03
    assert np.abs(np.corrcoef(there.T) - np.eye(20)).max() < 0.08
    assert sample_cohort(3, 7, source=Secure(), poisson=True) == [0, 1, 2]


def test_secret_cohorts_have_their_size_and_reach_everybody():
    cohorts = [sample_cohort(6, 2, source=Secure()) for _ in range(300)]
    assert all(len(set(cohort)) == 2 and cohort == sorted(cohort) for cohort in cohorts)
    assert set().union(*cohorts) == set(range(6))


def test_poisson_rounds_in_which_nobody_comes_go_on():
    method = Method(Fit(batch=8), Local(1, lr=0.05), FedAvg(), (CentralNoise(),))
    rounds = []
    start = params_of(dtype=torch.float32)
    train(method, clients_of(3), LOSS, start, rounds=12, cohort=1, on_round=rounds.append, poisson=True)
    empty = [one for one in rounds if not one.record["cohort"]]
    assert empty and all(one.record["step_norm"] > 0 for one in empty)
    plain = []
    train(Method(Fit(batch=8), Local(1, lr=0.05)), clients_of(3), LOSS, start, rounds=12, cohort=1, poisson=True,
          on_round=plain.append)  # fmt: skip
    assert [one.record["cohort"] for one in plain] == [one.record["cohort"] for one in rounds]


# In secure sums.


@pytest.mark.parametrize("transform", NOISES, ids=lambda t: type(t).__name__)
def test_every_noise_goes_into_secure_sums(transform):
    """The weights are those without secure sums, up to the random rounding of the integers.

    But for noise of the server, which is drawn in the order of the leaves, and theirs is another in a secure sum."""
    if transform.trust == "server":
        transform = dataclasses.replace(transform, multiplier=0.0)
    ends = {}
    for sums in ((), (SecAgg(),)):
        method = Method(Fit(batch=8), Local(1, lr=0.05), FedAvg(), (transform, *sums))
        rounds = []
        found = train(
            method, clients_of(4), LOSS, params_of(dtype=torch.float32), rounds=1, cohort=4, on_round=rounds.append
        )
        assert not rounds[0].record["dropped"] and rounds[0].record.get("scaled", 0) == 0
        ends[sums] = torch.cat([leaf.reshape(-1) for leaf in found.values()])
    plain, summed = ends.values()
    exact = isinstance(transform, DistributedNoise)
    torch.testing.assert_close(summed, plain, rtol=0, atol=0 if exact else 1e-6)


def test_sums_of_fewer_than_add_noise_are_refused():
    with pytest.raises(ValueError, match="counts on 5 honest clients, and sec-agg sums as few as 3"):
        Method(privacy=(DistributedNoise(honest=5), SecAgg()))
    Method(privacy=(DistributedNoise(honest=5), SecAgg(minimum=5)))


# What does not go together.


@pytest.mark.parametrize("transform", [CentralNoise(), AdaptiveNoise(), DistributedNoise()])
def test_noise_on_sums_is_refused_where_single_reports_are_looked_at(transform):
    with pytest.raises(ValueError, match="Robust looks at single reports, and this noise only protects their sum"):
        Method(strategy=Robust("median"), privacy=(transform,))
    Method(strategy=Robust("median"), privacy=(Noise(),))


def test_two_kinds_of_noise_are_refused():
    with pytest.raises(ValueError, match=r"more than one kind of noise \(Noise and CentralNoise\)"):
        Method(privacy=(Noise(), CentralNoise()))
    with pytest.raises(UserError, match="privacy has more than one kind of noise"):
        choose(preset("noised"), "privacy", "central-noise")


@pytest.mark.parametrize("transform", NOISES, ids=lambda t: type(t).__name__)
def test_counts_that_tell_about_data_are_refused(transform):
    with pytest.raises(ValueError, match="how many signals an owner has"):
        Method(strategy=FedNova(), local=Local(per_task=True), privacy=(transform,))
    with pytest.raises(ValueError, match="only among equals"):
        Experiment(weighting="size", privacy=(transform,))
    with pytest.raises(ValueError, match="only among equals"):
        method = Method(Fit(batch=8), privacy=(transform,))
        train(method, clients_of(2), LOSS, params_of(dtype=torch.float32), rounds=1, cohort=2, weights=[1.0, 2.0])


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: Noise(clip=0), "the clip is 0"),
        (lambda: CentralNoise(clip=math.nan), "the clip is nan"),
        (lambda: Noise(ratio=-1), "noise ratio is -1"),
        (lambda: Noise(multiplier=-1), "noise multiplier is -1"),
        (lambda: CentralNoise(multiplier=math.inf), "noise multiplier is inf"),
        (lambda: AdaptiveNoise(quantile=1), "a quantile lies in"),
        (lambda: AdaptiveNoise(rate=0), "a rate above 0"),
        (lambda: DistributedNoise(honest=0), "0 honest clients"),
        (lambda: Experiment(delta=1.0), "delta is 1.0"),
        (lambda: Experiment(cohort=2, privacy=(DistributedNoise(),)), "counts on 3 honest clients"),
        (lambda: Experiment(sampling="poisson", privacy=(DistributedNoise(),)), "use --sampling fixed"),
        (lambda: Experiment(sampling="poisson", strategy=Robust("median")), "needs a known number of clients"),
    ],
)
def test_bad_values_are_refused_in_words(make, line):
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize("transform", NOISES, ids=lambda t: type(t).__name__)
def test_every_noise_survives_the_file_of_a_run(transform):
    experiment = Experiment(privacy=(transform,), noise="secure", delta=1e-3)
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize("name", list(SUMS))
@pytest.mark.parametrize("transform", NOISES, ids=lambda t: type(t).__name__)
def test_every_sum_goes_with_every_noise(name, transform):
    method = Method(
        small(OBJECTIVES["reptile"]), Local(1, lr=0.05), SUMS[name], (dataclasses.replace(transform, clip=1e-3),)
    )
    start, rounds = params_of(dtype=torch.float32), []
    found = train(method, clients_of(4), LOSS, start, rounds=2, cohort=3, on_round=rounds.append)
    assert not any(one.record["dropped"] for one in rounds)
    assert all(torch.isfinite(leaf).all() for leaf in found.values())
    form = expected(method, start)
    for one in rounds:
        for reply in one.replies.values():
            assert {name: set(part) for name, part in reply.report.items()} == {n: set(p) for n, p in form.items()}
