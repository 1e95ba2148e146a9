"""Robust rules against closed forms, scipy, the bounds of their papers, and the attacks of benchmarks/robust.py."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from attacks import ATTACKS, furthest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfields import tree
from fedfields.federation import Method, Rejected, close_round, start_server, validate
from fedfields.objectives import Fit
from fedfields.privacy import SecAgg
from fedfields.strategies import Robust
from tests.helpers import params_of

RULES = get_args(get_type_hints(Robust)["rule"])


def report_of(row):
    """A report of one leaf in float64."""
    return {
        "delta": {"x": torch.as_tensor(row, dtype=torch.float64)},
        "stats": {"weight": torch.tensor(1.0, dtype=torch.float64)},
    }


def centre(rule, rows, tolerate=1):
    return Robust(rule, tolerate).combine([report_of(row) for row in rows])["delta"]["x"].numpy()


def test_multi_krum_is_the_mean_of_the_best_n_minus_f():
    """Six points on a line, f = 1: sums of squared distances to the n - f - 2 = 3 nearest others."""
    rows = [[0.0], [1.0], [2.0], [3.0], [4.0], [1e6]]
    # 0: 1+4+9 = 14; 1: 1+1+4 = 6; 2: 1+1+4 = 6; 3: 1+1+4 = 6; 4: 1+4+9 = 14; the sixth is left out.
    np.testing.assert_allclose(centre("krum", rows), [1.0])
    np.testing.assert_allclose(centre("multi-krum", rows), [2.0])


def test_the_clipped_mean_shortens_what_is_longer_than_the_median():
    """Norms 5, 10, 20: the third counts for half."""
    np.testing.assert_allclose(centre("clipped-mean", [[3.0, 4.0], [10.0, 0.0], [0.0, 20.0]]), [13 / 3, 14 / 3])
    np.testing.assert_allclose(centre("clipped-mean", [[0.0, 0.0], [0.0, 0.0], [0.0, 1e9]]), [0.0, 0.0])


@pytest.mark.parametrize(
    "rows, wanted",
    [
        ([[0, 0], [4, 0], [0, 4], [4, 4]], [2, 2]),  # Where the diagonals cross.
        ([[0, 0], [10, 0], [0, 10], [1, 1]], [1, 1]),  # A point in the triangle of the others, which is one of them.
        ([[0, 0], [2, 0], [1, 3**0.5]], [1, 3**-0.5]),  # Fermat's point of an equilateral triangle.
        ([[0, 0], [1, 0], [7, 0], [8, 0], [1e9, 0]], [7, 0]),  # The median, on a line.
        ([[5, 5], [5, 5], [5, 5], [1e9, 0], [0, -1e9]], [5, 5]),  # More than half of them are equal.
    ],
)
def test_the_geometric_median_in_closed_form(rows, wanted):
    np.testing.assert_allclose(centre("geometric-median", rows), wanted, atol=1e-3)


def test_the_geometric_median_has_the_smallest_sum_of_distances():
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(9, 3)) * [1, 10, 0.1]
        found = optimize.minimize(
            lambda x, rows=rows: np.linalg.norm(rows - x, axis=1).sum(),
            rows.mean(axis=0),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 10_000},
        )
        ours = centre("geometric-median", rows)
        assert np.linalg.norm(rows - ours, axis=1).sum() <= found.fun * (1 + 1e-6)
        np.testing.assert_allclose(ours, found.x, atol=1e-3)


FLOATS = st.floats(-1e30, 1e30)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), tolerate=st.integers(0, 3), rule=st.sampled_from(RULES))
def test_hostile_reports_move_a_centre_no_further_than_the_papers_say(data, tolerate, rule):
    """Any values from k <= f hostile clients of n >= 2 f + 3, each at its own place of the cohort."""
    n = data.draw(st.integers(2 * tolerate + 3, 12), "reports")
    k = data.draw(st.integers(0, tolerate), "hostile ones")
    honest = np.random.default_rng(data.draw(st.integers(0, 999))).normal(size=(n - k, 4))
    hostile = np.array(data.draw(st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=k, max_size=k)))
    rows = np.concatenate([honest, hostile.reshape(k, 4)])[data.draw(st.permutations(range(n)))]
    found = centre(rule, rows, tolerate)
    gaps = np.linalg.norm(honest - found, axis=1)
    widest = np.linalg.norm(honest[:, None] - honest[None], axis=2).max()
    if rule in ("median", "trimmed-mean"):  # Between honest values in every coordinate (Yin et al.).
        assert (found >= honest.min(axis=0) - 1e-9).all() and (found <= honest.max(axis=0) + 1e-9).all()
    elif (
        rule == "geometric-median"
    ):  # Breakdown at a half: Lemma 2.1 of Cohen et al., STOC 2016, about the honest mean.
        far = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
        assert np.linalg.norm(found - honest.mean(axis=0)) <= 2 * (n - k) / (n - 2 * k) * far * (1 + 1e-3)
    elif rule == "clipped-mean":  # No longer than the longest honest update.
        assert np.linalg.norm(found) <= np.linalg.norm(honest, axis=1).max() * (1 + 1e-9)
    else:  # What Krum takes has a score no worse than an honest one's, and an honest update among its nearest.
        assert gaps.min() <= (n - tolerate - 2) ** 0.5 * widest * (1 + 1e-9)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "NaN and Inf"])
@pytest.mark.parametrize("rule", RULES)
def test_centres_under_the_attacks_of_the_benchmark(rule, attack):
    """Two of nine are hostile; the honest updates agree up to a tenth: the centre still points where they do."""
    random = torch.Generator().manual_seed(0)
    rows = 1 + 0.1 * torch.randn(9, 50, generator=random, dtype=torch.float64)
    reports = [report_of(row) for row in rows]
    sent = ATTACKS[attack](reports[:2], reports[2:], 1e9)
    found = Robust(rule, 2).combine([*sent, *reports[2:]])["delta"]["x"]
    assert float(torch.cosine_similarity(found, torch.ones_like(found), dim=0)) > 0.9
    plain = torch.stack([one["delta"]["x"] for one in [*sent, *reports[2:]]]).mean(dim=0)
    if attack == "times 1e6":
        assert float(plain.norm()) > 1e5 * float(found.norm())


def test_what_is_not_finite_does_not_pass_the_door():
    reports = [report_of(row) for row in torch.randn(4, 3)]
    for bad in ATTACKS["NaN and Inf"](reports[:2], reports[2:], 1.0):
        with pytest.raises(Rejected, match="not finite"):
            validate(bad, reports[3], 1.0)


def test_hidden_reports_are_as_far_off_as_they_may():
    """On the edge: at the largest distance between two honest updates from one of them, or at the norm bound."""
    rows = torch.randn(7, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1
    honest, widest = [report_of(row) for row in rows], float(torch.cdist(rows, rows).max())
    for name in ("little is enough", "against the mean"):
        (wide,) = ATTACKS[name](honest[:1], honest, 1e9)
        assert float((rows - wide["delta"]["x"]).norm(dim=1).max()) == pytest.approx(widest)
        (narrow,) = ATTACKS[name](honest[:1], honest, float(rows.mean(dim=0).norm()) + 0.01)
        assert float(tree.norm(narrow["delta"])) <= float(rows.mean(dim=0).norm()) + 0.01
    start, direction = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([1.0, 0.0]).double()
    assert furthest(direction, start, torch.tensor([5.0]).double()).tolist() == [8.0]


@pytest.mark.parametrize("rule", RULES)
def test_dropped_reports_lower_what_is_tolerated_and_never_stop_a_round(rule):
    """f = 4 of 12; then one by one fails to report."""
    strategy = Robust(rule, 4)
    method, start = Method(Fit(), strategy=strategy), {"x": torch.zeros(3)}
    spare = 3 if "krum" in rule else 1
    assert strategy.least == 8 + spare
    for n in range(12, -1, -1):
        reports = [report_of([1.0, 2.0, 3.0 + 1e-3 * i]) for i in range(n)]
        state, metrics = close_round(method, start_server(strategy, start), reports, 12)
        if n < spare:
            assert torch.equal(state.params["x"], start["x"]) and state.round == 1
            continue
        assert metrics["tolerated"] == min(4, (n - spare) // 2)
        # However many of the twelve dropped out, f less their number are still tolerated.
        assert metrics["tolerated"] >= 4 - (12 - n)
        torch.testing.assert_close(state.params["x"], -torch.tensor([1.0, 2.0, 3.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_a_report_s_keys_means_nothing(rule):
    params = params_of()
    reports = [
        {"delta": params_of(seed), "stats": {"weight": torch.tensor(1.0, dtype=torch.float64)}} for seed in range(5)
    ]
    shuffled = [one | {"delta": dict(reversed(one["delta"].items()))} for one in reports]
    strategy = Robust(rule)
    wanted = strategy.combine(reports)["delta"]
    found = strategy.combine([reports[0], *shuffled[1:]])["delta"]
    assert all(torch.equal(wanted[key], found[key]) for key in params)


def test_rules_that_look_at_single_reports_are_refused_under_secure_sums():
    for rule in RULES:
        with pytest.raises(ValueError, match="looks at single reports") as caught:
            Method(strategy=Robust(rule), privacy=(SecAgg(),))
        assert "\n" not in str(caught.value)
