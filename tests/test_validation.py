"""What must not touch a sum: every way in which a report can be wrong, alone and in a round."""

import dataclasses
import os
import re
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfields.errors import UserError
from fedfields.federation import Door, Local, Method, Rejected, close_round, validate
from fedfields.objectives import Fit
from fedfields.privacy import SecAgg
from fedfields.runtime import inprocess
from fedfields.runtime.inprocess import Context, Settings, expected, run_rounds, start_server
from fedfields.runtime.pool import Pool
from fedfields.strategies import FedAvg, FedNova, Robust
from tests.helpers import LOSS, clients_of, params_of

START = {key: leaf.float() for key, leaf in params_of().items()}
METHOD = Method(Fit(batch=8), Local(steps=2, lr=0.05), FedAvg())
FORM = expected(METHOD, START)
KEY = next(iter(START))


def report(**changes):
    """A good report (deltas of 0.01), with parts replaced."""
    delta = {key: torch.full_like(leaf, 0.01) for key, leaf in FORM["delta"].items()}
    return {"delta": delta, "stats": {"weight": torch.tensor(1.0, dtype=torch.float64)}} | changes


def delta(value, key=KEY):
    return report()["delta"] | {key: value}


def weight(value, dtype=torch.float64):
    return {"weight": torch.tensor(value, dtype=dtype)}


BAD = {
    "an extra tree": (report(more={}), "its parts"),
    "a missing tree": ({"delta": report()["delta"]}, "its parts"),
    "an extra key": (report(delta=report()["delta"] | {"x": torch.ones(1)}), "keys of its delta"),
    "a missing key": (report(delta={k: v for k, v in report()["delta"].items() if k != KEY}), "keys of its delta"),
    "another shape": (report(delta=delta(torch.zeros(3))), r"is \[3\]"),
    "another dtype": (report(delta=delta(FORM["delta"][KEY].double())), "float64"),
    "a NaN": (report(delta=delta(torch.full_like(START[KEY], float("nan")))), "not finite"),
    "an infinity": (report(delta=delta(torch.full_like(START[KEY], float("inf")))), "not finite"),
    "opposite infinities": (
        report(delta=delta(torch.full_like(START[KEY], float("inf")) * torch.ones_like(START[KEY]).flatten().cumsum(0)
        .remainder(2).mul(2).sub(1).view_as(START[KEY]))), "not finite"),
    "no dict at all": (None, "its parts are None"),
    "a tree that is a list": (report(delta=[1, 2]), "keys of its delta are .1, 2., not a dict"),
    "numbers without a tensor": (report(delta=delta([0.0])), "is list, not"),
    "names of several types": (report(**{}) | {3: {}}, "its parts are"),
    "a name without end": (report() | {"x" * 10**6: {}}, "its parts are"),
    "a sparse tensor": (report(delta=delta(torch.zeros_like(START[KEY]).to_sparse())), "sparse"),
    "a tensor without values": (report(delta=delta(torch.zeros_like(START[KEY], device="meta"))), "meta"),
    "a weight of zero": (report(stats=weight(0.0)), "its weight is 0"),
    "a negative weight": (report(stats=weight(-50.0)), "its weight is -50"),
    "a huge weight": (report(stats=weight(1e9)), "its weight is 1e"),
    "a weight that is no number": (report(stats=weight(float("nan"))), "not finite"),
    "a norm of a million": (report(delta=delta(torch.full_like(START[KEY], 1e6))), "beyond the bound 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_report_is_rejected_in_words(name):
    bad, words = BAD[name]
    with pytest.raises(Rejected, match=words) as caught:
        validate(bad, FORM, max_weight=1.0, max_norm=1.0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_good_report_passes_and_the_norm_counts_per_unit_of_weight():
    validate(report(), FORM, max_weight=1.0, max_norm=1.0)
    size = float(torch.cat([leaf.flatten() for leaf in report()["delta"].values()]).norm())
    half = report(stats=weight(0.5))
    validate(half, FORM, max_weight=1.0, max_norm=2.001 * size)
    with pytest.raises(Rejected, match="beyond the bound"):
        validate(half, FORM, max_weight=1.0, max_norm=1.999 * size)


@pytest.mark.parametrize("privacy", [(), (SecAgg(),)], ids=["open", "sec-agg"])
@pytest.mark.parametrize("name", list(BAD))
def test_the_round_goes_on_without_the_bad_client(name, privacy, monkeypatch):
    """Five good clients and a bad one give to the bit (in the open) what the five give alone."""
    real, (bad, words) = inprocess.visit_job, BAD[name]
    method = dataclasses.replace(METHOD, privacy=privacy)

    def job(context, index, *args):
        reply = real(context, index, *args)
        return reply._replace(report=bad) if index == 3 else reply

    def failing(context, index, *args):
        if index == 3:
            raise RuntimeError("gone")
        return real(context, index, *args)

    found = []
    for visit_job in (job, failing):
        monkeypatch.setattr(inprocess, "visit_job", visit_job)
        context = Context(method, tuple(clients_of(6)), LOSS)
        with Pool(context, 1) as pool:
            (step,) = run_rounds(context, Settings(1, 6, max_norm=1e3), start_server(FedAvg(), START), {}, pool)
        found.append(step)
    assert all(torch.equal(found[0].state.params[key], found[1].state.params[key]) for key in START)
    (dropped,) = found[0].record["dropped"]
    assert dropped["client"] == "client-3" and re.search(words, dropped["reason"]) and 3 not in found[0].replies
    assert all(bool(torch.isfinite(leaf).all()) for leaf in found[0].state.params.values())


def mutated(data):
    """A report that somebody changed: each tree, leaf and number may be anything."""
    good = report(delta={key: torch.randn_like(leaf) for key, leaf in FORM["delta"].items()})
    name, key = data.draw(st.sampled_from([(name, key) for name, part in good.items() for key in part]))
    leaf, part = good[name][key], good[name]
    number = data.draw(st.floats(width=32), "number")
    places = torch.tensor(data.draw(st.lists(st.integers(0, leaf.numel() - 1), min_size=1, max_size=3), "places"))
    return data.draw(
        st.sampled_from(
            [
                good,
                {name: dict(reversed(part.items())) for name, part in reversed(good.items())},
                good | {name: part | {key: leaf.t().contiguous().t() if leaf.dim() == 2 else leaf.clone()}},
                good | {name: part | {key: leaf.flatten().index_fill(0, places, number).view_as(leaf)}},
                good | {name: part | {key: leaf * number}},
                good | {name: part | {key: torch.full_like(leaf, number)}},
                good | {name: part | {key: leaf[None]}},
                good | {name: part | {key: leaf.flatten()[:1].expand(2, 3)}},
                good | {name: part | {key: leaf.to(data.draw(st.sampled_from(DTYPES), "dtype"))}},
                good | {name: part | {key: data.draw(THINGS, "leaf")}},
                good | {name: part | {data.draw(NAMES, "name"): leaf}},
                good | {name: {other: leaf for other, leaf in part.items() if other != key}},
                good | {name: data.draw(THINGS, "tree")},
                good | {data.draw(NAMES, "name"): part},
                {other: part for other, part in good.items() if other != name},
                data.draw(THINGS, "report"),
            ]
        ),
        "mutation",
    )


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float32]
NAMES = st.one_of(st.text(max_size=9), st.integers(), st.none(), st.sampled_from(["delta", "stats", "weight", KEY]))
THINGS = st.one_of(
    st.none(),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.floats(width=32), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.just(np.zeros(3)),
)


def numbers_of(sent):
    """The report as numpy arrays if it is what a client may send, found by other means than ours; None if not."""
    shapes = {"delta": {key: tuple(leaf.shape) for key, leaf in START.items()}, "stats": {"weight": ()}}
    dtypes = {"delta": np.dtype("float32"), "stats": np.dtype("float64")}
    try:
        arrays = {name: {key: leaf.numpy() for key, leaf in part.items()} for name, part in sent.items()}
        if {name: {key: leaf.shape for key, leaf in part.items()} for name, part in arrays.items()} != shapes:
            return None
        flat = [(dtypes[name], leaf) for name, part in arrays.items() for leaf in part.values()]
    except (AttributeError, TypeError, RuntimeError):
        return None
    weight = arrays["stats"]["weight"]
    if any(leaf.dtype != dtype or not np.isfinite(leaf).all() for dtype, leaf in flat) or not 0 < weight <= 1:
        return None
    size = np.sqrt(sum(np.square(leaf.astype(np.longdouble)).sum() for leaf in arrays["delta"].values()))
    return arrays if size <= 100 * weight else None


CASES = int(os.environ.get("FEDFIELDS_CASES", "300"))


def test_any_mutation_is_dropped_and_named_or_counts_as_what_it_is(capsys):
    """One of four reports is changed. The run goes on, and its weights are those that numpy gets from the good ones."""
    counted, context = Counter(), Context(METHOD, tuple(clients_of(4)), LOSS)
    real, visits = inprocess.visit_job, {}

    @settings(max_examples=CASES, deadline=None, database=None, derandomize=CASES <= 300,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def check(data):
        torch.manual_seed(0)
        sent = mutated(data)

        def job(context, index, *args):
            reply = visits.setdefault(index, None) or real(context, index, *args)
            visits[index] = reply
            return reply._replace(report=sent) if index == 2 else reply

        with mock.patch.object(inprocess, "visit_job", job), Pool(context, 1) as pool:
            (step,) = run_rounds(context, Settings(1, 4, max_norm=100.0), start_server(FedAvg(), START), {}, pool)
        arrays = numbers_of(sent)
        counted["accepted" if arrays else "dropped"] += 1
        assert [drop["client"] for drop in step.record["dropped"]] == ([] if arrays else ["client-2"])
        assert all("\n" not in drop["reason"] and len(drop["reason"]) < 400 for drop in step.record["dropped"])
        taken = [numbers_of(visits[i].report) for i in (0, 1, 3)] + ([arrays] if arrays else [])
        total = sum(float(one["stats"]["weight"]) for one in taken)
        for key, leaf in step.state.params.items():
            mean = sum(one["delta"][key].astype(np.float64) for one in taken) / total
            np.testing.assert_allclose(leaf.numpy(), START[key].numpy() - mean, rtol=1e-5, atol=1e-6)

    check()
    with capsys.disabled():
        print(f" {sum(counted.values())} changed reports: {dict(counted)}; bad ones accepted 0, runs aborted 0")
    assert counted["accepted"] > CASES // 20 and counted["dropped"] > CASES // 4


@pytest.mark.parametrize("rule", ["median", "krum"])
def test_robust_rounds_go_on_when_bad_reports_leave_too_few(rule, monkeypatch):
    """Krum that tolerates 2 needs 7 reports; of 7 clients two send NaN: the round closes with what five allow."""
    real = inprocess.visit_job

    def job(context, index, *args):
        reply = real(context, index, *args)
        return reply._replace(report=BAD["a NaN"][0]) if index in (1, 4) else reply

    monkeypatch.setattr(inprocess, "visit_job", job)
    context = Context(dataclasses.replace(METHOD, strategy=Robust(rule, 2)), tuple(clients_of(7)), LOSS)
    with Pool(context, 1) as pool:
        steps = list(run_rounds(context, Settings(3, 7), start_server(FedAvg(), START), {}, pool))
    assert [len(step.record["dropped"]) for step in steps] == [2, 2, 2]
    assert steps[-1].record["tolerated"] == (2 if rule == "median" else 1) and steps[-1].record["step_norm"] > 0


def test_too_few_clients_for_what_is_to_be_tolerated_are_refused_before_round_one():
    context = Context(dataclasses.replace(METHOD, strategy=Robust("krum", 2)), tuple(clients_of(5)), LOSS)
    with Pool(context, 1) as pool, pytest.raises(UserError, match=r"at least 7 clients in a round .* only 5") as caught:
        next(run_rounds(context, Settings(1, 7), start_server(FedAvg(), START), {}, pool))
    assert "\n" not in str(caught.value)


def test_when_every_report_is_bad_a_robust_run_stops_in_one_line(monkeypatch):
    real = inprocess.visit_job
    monkeypatch.setattr(inprocess, "visit_job", lambda *args: real(*args)._replace(report=BAD["a NaN"][0]))
    context = Context(dataclasses.replace(METHOD, strategy=Robust("median")), tuple(clients_of(5)), LOSS)
    with (
        Pool(context, 1) as pool,
        pytest.raises(UserError, match="all 5 clients of the round failed; client-0") as stop,
    ):
        next(run_rounds(context, Settings(1, 5), start_server(FedAvg(), START), {}, pool))
    assert "\n" not in str(stop.value)


def test_steps_below_zero_would_turn_fednova_around():
    form = expected(dataclasses.replace(METHOD, strategy=FedNova()), START)
    turned = form | {"stats": form["stats"] | {"steps": torch.tensor(-1e6, dtype=torch.float64)}}
    with pytest.raises(Rejected, match="steps must be positive"):
        validate(turned, form, max_weight=1.0)


def test_a_door_lets_in_one_report_of_each_client_of_this_round():
    """Every order of 3 clients' reports of rounds 1 to 3, twice each: exactly the three of round 2 get in."""
    admitted, refused, replays = 0, Counter(), [(client, round) for client in "abcx" for round in (1, 2, 3)] * 2
    for seed in range(50):
        door, passed = Door(2, "abc", FORM), []
        for i in torch.randperm(len(replays), generator=torch.Generator().manual_seed(seed)).tolist():
            client, round = replays[i]
            try:
                door.admit(client, report(), round)
                passed.append(replays[i])
            except Rejected as reason:
                refused[re.sub("round [13]", "another round", str(reason))] += 1
        assert sorted(passed) == [("a", 2), ("b", 2), ("c", 2)]
        admitted += len(passed)
    assert admitted == 150 and refused == {
        "it was made for another round, and this is round 2": 50 * 16,
        "it has reported already": 50 * 3,
        "it was not asked in this round": 50 * 2,
    }


def test_whose_report_was_refused_does_not_get_another_try():
    door = Door(1, ["a"], FORM)
    with pytest.raises(Rejected, match="not finite"):
        door.admit("a", BAD["a NaN"][0], 1)
    with pytest.raises(Rejected, match="reported already"):
        door.admit("a", report(), 1)


@pytest.mark.parametrize("age", [1, 2])
def test_a_replayed_report_of_an_earlier_round_changes_nothing(age, monkeypatch):
    """One client always answers with its reply of some rounds ago: it counts as one that does not answer."""
    real, kept = inprocess.visit_job, {}

    def job(context, index, *args):
        number = args[3]
        kept[index, number] = real(context, index, *args)
        return kept.get((index, number - age), kept[index, number]) if index == 1 else kept[index, number]

    monkeypatch.setattr(inprocess, "visit_job", job)
    context = Context(METHOD, tuple(clients_of(4)), LOSS)
    with Pool(context, 1) as pool:
        steps = list(run_rounds(context, Settings(4, 4), start_server(FedAvg(), START), {}, pool))
    for step in steps[age:]:
        (dropped,) = step.record["dropped"]
        number = step.record["round"]
        assert dropped == {
            "client": "client-1",
            "reason": f"it was made for round {number - age}, and this is round {number}",
        }
        others = [kept[i, number].report for i in (0, 2, 3)]
        alone, _ = close_round(METHOD, steps[number - 2].state, others, 4)
        assert all(torch.equal(alone.params[key], step.state.params[key]) for key in START)
