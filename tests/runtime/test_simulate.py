"""Simulations on Flower's engine with Ray: the same run as in process, to the bit."""

import dataclasses
import json

import pytest

pytest.importorskip("ray")

from fedfields.config import choose
from fedfields.runtime.run import Interrupted, run
from tests.runtime.test_run import experiment_of, pictures  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")  # Flower's and Ray's, about themselves and each other.


def weights_and_figures(folder):
    """A run's weights, and its figures but for times and masks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    random = ("seconds", "psnr_p", "ssim_p", "leak", "floor")  # What the server sees of masked reports is noise.
    return (folder / "model.safetensors").read_bytes(), [line | dict.fromkeys(random) for line in lines]


def test_a_run_begun_on_ray_ends_here_as_if_it_had_never_been_there(pictures, tmp_path):  # noqa: F811
    """With a strategy that has memory, with secure sums, and stopped half-way."""
    experiment = experiment_of(pictures, rounds=4, workers=2, cohort=4, checkpoint_every=1)
    experiment = choose(choose(experiment, "strategy", "scaffold"), "privacy", "sec-agg")
    run(experiment, tmp_path / "here")

    def stop(record, total):
        if record["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="interrupted after round 2"):
        run(dataclasses.replace(experiment, runtime="flower"), tmp_path / "there", on_round=stop)
    run(experiment, tmp_path / "there", resume=True)
    assert weights_and_figures(tmp_path / "there") == weights_and_figures(tmp_path / "here")
