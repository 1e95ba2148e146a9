"""All that a report, a broadcast and a run's log hold: a new field is added here on purpose or not at all."""

import pytest
import torch

from fedfields.config import PRIVACY, STRATEGIES
from fedfields.federation import Local, Method, Reply, broadcast, expected, start_server
from fedfields.objectives import Fit
from tests.helpers import params_of
from tests.runtime.test_run import finished, pictures, records  # noqa: F401

PARAMS = params_of(dtype=torch.float32)
WEIGHTS = tuple(PARAMS)
PLAIN = {"delta": WEIGHTS, "stats": ("weight",)}

REPORTS = dict.fromkeys(STRATEGIES, PLAIN) | {
    "fednova": {"delta": WEIGHTS, "stats": ("weight", "steps")},
    "fedexp": PLAIN | {"moments": ("sqnorm",)},
    "scaffold": {"delta": WEIGHTS, "variate": WEIGHTS, "stats": ("weight",)},
    "learned": {"delta": WEIGHTS, "gradient": WEIGHTS, "stats": ("weight", "alpha", "count")},
}
"""By strategy: trees the size of the model, and single numbers."""

PROTECTED = dict.fromkeys(PRIVACY, PLAIN) | {"adaptive-noise": PLAIN | {"below": ("count",)}}


def form(strategy, *privacy):
    method = Method(Fit(batch=4), Local(1, 0.1), strategy, privacy)
    return {name: tuple(part) for name, part in expected(method, PARAMS).items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_that_a_report_holds(name):
    assert form(STRATEGIES[name]) == REPORTS[name]


@pytest.mark.parametrize("name", PRIVACY)
def test_all_that_a_protected_report_holds(name):
    assert form(STRATEGIES["fedavg"], PRIVACY[name]) == PROTECTED[name]


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_that_a_broadcast_holds(name):
    method = Method(Fit(batch=4), Local(1, 0.1), STRATEGIES[name])
    sent = broadcast(method, start_server(method.strategy, PARAMS))
    more = {"scaffold": {"variate": WEIGHTS}, "learned": {"gradient": WEIGHTS, "learned": ("round", "mean")}}
    assert {key: tuple(part) for key, part in sent.items()} == {"params": WEIGHTS} | more.get(name, {})


def test_all_that_comes_back_from_a_visit():
    """Only the report and its round travel; the log of a simulation has means of the metrics over the cohort."""
    assert Reply._fields == ("report", "memory", "metrics", "steps", "round")


def test_all_that_the_log_of_a_run_holds(finished):  # noqa: F811
    """Who took part, means of training, sizes and times; in rounds that are judged, quality and leakage."""
    always = {"round", "cohort", "dropped", "bytes_down", "bytes_up"}
    training = {"loss", "loss_before", "inner_loss", "gradient_norm", "update_norm", "step_norm", "gamma"}
    judged = {"psnr", "ssim", "psnr_p", "ssim_p", "leak", "floor"}
    for record in records(finished):
        assert always <= record.keys() <= always | training | judged
        assert bool(record.keys() & judged) == (record["round"] in (1, 2, 4, 5))
