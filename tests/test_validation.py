"""What must not touch a sum: every way in which a report can be wrong, alone and in a round."""

import dataclasses
import re

import pytest
import torch

from fedfields.federation import Local, Method, Rejected, validate
from fedfields.objectives import Fit
from fedfields.privacy import SecAgg
from fedfields.runtime import inprocess
from fedfields.runtime.inprocess import Context, Settings, expected, run_rounds, start_server
from fedfields.runtime.pool import Pool
from fedfields.strategies import FedAvg
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
    assert "\n" not in str(caught.value)


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
