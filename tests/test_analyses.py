"""DecentNeRF's table and analyses (benchmarks/decent.py): what is compared, what is averaged, and what is seen."""

import argparse
import json
import math

import decent
import pytest
import torch
from decent import CASES, Case, as_summed, averaged, costs, draw, finished, measure, share

from fedfields.federation import start_server
from fedfields.runtime.inprocess import run_rounds
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import run, set_up
from fedfields.runtime.seen import given_away
from fedfields.scenes.scene import Scene
from tests.runtime.test_monument import experiment

FULL = argparse.Namespace(size=0, rounds=0, steps=0, join=0, weight=0.0, quick=False, data=None)
QUICK = argparse.Namespace(size=0, rounds=0, steps=0, join=0, weight=0.0, quick=True, data=None)


def row(name, *evaluations):
    return {
        "name": name,
        "evaluated": [
            {
                "round": number,
                "psnr": value,
                "ssim": 0.5,
                "content": {"psnr": 9.0, "floor": 8.0, "leak": 0.1, "leak_worst": 0.2},
                "alpha": {"0": 0.5, "1": 1.5, "2": 0.7, "3": 1.3},
            }
            for number, value in evaluations
        ],
    }


def test_a_run_has_the_figures_that_fedfields_run_gives(tmp_path):
    one = experiment(rounds=2, evaluate_every=2)
    summary, found = run(one, tmp_path / "run"), measure(Case("x", one))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [each["round"] for each in found["evaluated"]] == [1, 2]
    assert found["evaluated"][-1]["psnr"] == summary["psnr"]["held_out"]["0"]
    assert [each["content"] for each in found["evaluated"]] == [each["content"] for each in records]
    assert found["flops"] == summary["flops"]
    assert (found["bytes_up"], found["bytes_down"]) == (summary["bytes_up"], summary["bytes_down"])


def test_the_mean_that_is_taken_in_the_open_is_what_fedavg_makes():
    setup = set_up(experiment(privacy=(), rounds=1))
    start = start_server(setup.experiment.strategy, setup.params)
    with Pool(setup.context, 1) as pool:
        (step,) = run_rounds(setup.context, setup.settings, start, {}, pool)
    seen = given_away(setup.experiment.strategy, as_summed(step))
    assert len(seen) == 3
    for _, weights in seen.values():
        for key, leaf in step.state.params.items():
            torch.testing.assert_close(weights[key], leaf, rtol=0, atol=1e-6)


def test_owners_stand_as_the_analyses_say():
    learned = CASES["learned"](FULL)[-1].experiment
    assert (learned.rounds, learned.cohort, learned.data.visitors) == (30, 8, "mixed")
    assert math.degrees(learned.data.width) == pytest.approx(90)  # Half of it also the next one's, eight around.
    users = [case.experiment.data for case in CASES["users"](FULL)]
    assert [one.users for one in users] == [1, 2, 4, 8, 16, 20]
    assert {round(math.degrees(one.turn(1))) for one in users} == {18}
    apart = [math.degrees(case.experiment.data.turn(1)) for case in CASES["overlap"](FULL)]
    assert apart == pytest.approx([90, 67.5, 45, 22.5, 0], abs=1e-6)
    assert all(case.summed for case in CASES["overlap"](FULL))


def test_a_capture_takes_the_place_of_the_monument(tmp_path, capsys):
    there = argparse.Namespace(**vars(QUICK) | {"data": tmp_path, "size": 24})
    one = CASES["learned"](there)[0].experiment.data
    assert one == Scene(tmp_path, size=24, clients=8, partition="separate", tests=2, visitors="mixed")
    with pytest.raises(SystemExit, match="leave out --data"):
        CASES["overlap"](there)


def test_figures_are_means_over_seeds_round_by_round():
    rows = [row("a", (1, 10.0), (4, 20.0)), row("b", (1, 5.0)), row("a", (1, 12.0), (4, 23.0))]
    assert averaged(rows, lambda one: one["psnr"]) == {"a": [(1, 11.0), (4, 21.5)], "b": [(1, 5.0)]}
    assert averaged(rows[:1], share(0)) == {"a": [(1, 0.6), (4, 0.6)]}
    assert averaged(rows[:1], share(1)) == {"a": [(1, 1.4), (4, 1.4)]}


def test_training_in_one_place_is_the_servers_work_and_sends_nothing():
    spent = {"flops": {"server": 5e6, "clients": 2e12}, "bytes_up": 3e6, "bytes_down": 4.25e6}
    assert costs({"name": "DecentNeRF", **spent}) == ["5 MFLOP", "2 TFLOP", "3.0", "4.2"]
    assert costs({"name": "NeRF-W", **spent}) == ["2 TFLOP", "–", "–", "–"]
    assert costs({"name": "one owner alone", **spent}) == ["–", "2 TFLOP", "–", "–"]


def test_finished_runs_are_not_run_again_unless_something_changed(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(decent, "measure", lambda case: ran.append(case.name) or row(case.name, (1, 9.0)))
    cases = [Case("a", experiment()), Case("b", experiment(rounds=2)), Case("c", experiment(), summed=True)]
    first = finished("table", cases, 2, tmp_path)
    assert finished("table", cases, 2, tmp_path) == first and ran == ["a", "b", "c"] * 2
    finished("table", [Case("a", experiment(cohort=4))], 1, tmp_path)
    assert ran[-1] == "a" and len(ran) == 7


@pytest.mark.parametrize("command", CASES)
def test_every_command_has_cases_and_pictures(command, tmp_path):
    """All that a command does, but for the training itself."""
    rows = [row(case.name, (1, 9.0), (2, 11.0)) for case in CASES[command](QUICK)]
    paths = draw(command, rows, tmp_path)
    assert {"psnr", "leak", "masked"} <= {path.stem.split("-")[-1] for path in paths}
    for path in paths:
        assert path.read_text().startswith("<svg") and "</svg>" in path.read_text()
    assert (tmp_path / "decent-learned-alpha.svg").exists() == (command == "learned")
