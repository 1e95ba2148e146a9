"""A search for settings: whom it sees, what it finds, how it goes on."""

import dataclasses
import json
import os
import signal
import sys
import tomllib

import numpy as np
import pytest

from fedfields.cli import main
from fedfields.config import preset
from fedfields.datasets import Samples, Sinusoids
from fedfields.errors import UserError
from fedfields.models import Mlp
from fedfields.runtime import tune as tuning
from fedfields.runtime.run import load_experiment, run
from fedfields.runtime.space import Searched, applied, default_space, read_space, with_following
from fedfields.runtime.tune import RECORD, Search, best_of, load_search, read_trial, start, tune
from tests.runtime.crashes import Killer, in_child


def experiment_of(data, **changes):
    base = dataclasses.replace(
        preset("fedmeta-fomaml"),
        data=data,
        field=Mlp(width=6, depth=1),
        rounds=4,
        cohort=3,
        evaluate_every=1,
        workers=1,
    )
    return dataclasses.replace(base, **changes)


def search_of(data, *specs, trials=4, **changes):
    experiment = experiment_of(data, **changes)
    space = read_space(specs or default_space(experiment), experiment)
    return Search(experiment, space, "fedmeta-fomaml", trials=trials)


def searched(search, folder):
    start(search, folder)
    return tune(search, folder)


def content(folder):
    """Everything that a search leaves, without the clock and the folder's name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.relative_to(folder)] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.is_file() and path.name not in ("summary.json", "experiment.json"):
            found[path.relative_to(folder)] = path.read_bytes()
    return found


# Whom it sees.


def write_clients(folder, poisoned=()):
    """Clients with names that occur nowhere else; the inputs of poisoned ones spoil whatever they touch."""
    folder.mkdir()
    for client in range(12):
        random = np.random.default_rng(client)
        x = random.normal(size=(10, 2)).astype(np.float32)
        y = np.arange(10) % 2
        name = f"person-{client:02d}"
        np.savez(folder / f"{name}.npz", x=3e38 * np.sign(x) if name in poisoned else x, y=y)
    return folder


def test_the_search_never_sees_a_test_client(tmp_path):
    """Whatever their data are, the search is the same to the bit, and their names are in none of its files."""
    data = Samples(write_clients(tmp_path / "data"), unseen=0.25)
    unseen = [client.name for client in data.load(0).unseen]
    assert len(unseen) == 3
    searched(search_of(data), tmp_path / "search")
    poisoned = Samples(write_clients(tmp_path / "poisoned", unseen), unseen=0.25)
    searched(search_of(poisoned), tmp_path / "other")
    one, other = content(tmp_path / "search"), content(tmp_path / "other")
    assert one.keys() == other.keys() and len(one) > 20
    assert all(one[name] == other[name] for name in one)
    files = [path for path in (tmp_path / "search").rglob("*") if path.is_file()]
    assert not any(name.encode() in path.read_bytes() for name in unseen for path in files)
    assert any(b"person-" in path.read_bytes() for path in files), "others are named"
    # The poison works: a run that does judge by them has no figure of theirs.
    whole = run(experiment_of(poisoned), tmp_path / "run")
    assert whole["scores"]["loss"]["validation"]["8"] > 0 and not whole["scores"]["loss"]["unseen"]["8"] < 1e9


def test_curves_of_test_clients_may_be_nan(tmp_path, monkeypatch):
    data, real = Sinusoids(clients=10), Sinusoids._curve
    unseen = {int(client.name.removeprefix("curve-")) for client in data.load(0).unseen}
    whole = searched(search_of(data, trials=2), tmp_path / "search")

    def spoiled(self, seed, number):
        rows = real(self, seed, number)
        return rows._replace(inputs=rows.inputs * np.nan) if number in unseen else rows

    monkeypatch.setattr(Sinusoids, "_curve", spoiled)
    again = searched(search_of(data, trials=2), tmp_path / "other")
    assert unseen and [one._replace(seconds=0.0) for one in whole] == [one._replace(seconds=0.0) for one in again]


# What it finds.


def test_it_finds_a_better_inner_rate_than_a_bad_one(tmp_path):
    """Sinusoids from 50 points each, with an inner rate of 1e-4, at which nothing adapts in 32 steps."""
    data = Sinusoids(clients=30, shots=50)
    bad = experiment_of(data, rounds=3, evaluate_every=3, field=Mlp(width=40))
    bad = applied(bad, {"inner.lr": "1e-4", "adaptation.lr": "1e-4", "adaptation.steps": "32"})
    search = Search(bad, read_space(["inner.lr=1e-4..0.1"], bad), "fedmeta-fomaml", trials=8)
    trials = searched(search, tmp_path / "s")
    best = best_of(trials)
    assert trials[0].values == {"objective.inner.lr": "0.0001"}, "first the settings as they stand"
    assert float(best.values["objective.inner.lr"]) > 0.01 and best.value < 0.6 * trials[0].value
    assert best.value == min(best.curve.values())
    known = json.loads((tmp_path / "s" / "trials" / f"{best.number:04d}" / "summary.json").read_text())
    assert known["clients"]["unseen"] == 0 and "unseen" not in known["scores"]["error"]


def test_the_best_experiment_is_a_file_that_runs_and_judges_by_test_clients(tmp_path, capsys):
    line = ["fedmeta-fomaml", "data:sinusoids", "--data.clients", "10", "--field.width=8", "--rounds", "3"]
    line += ["--workers", "1", "--evaluate-every", "1", "--no-report", "--trials", "2", "--out", str(tmp_path / "s")]
    assert call("tune", *line, "--search", "inner.lr=0.01..0.1", "--search", "local-optimizer.x=1..2") == 2
    assert "no setting" in capsys.readouterr().err
    assert call("tune", *line, "--search", "inner.lr=0.01..0.1", "--search", "inner.steps=1,2") == 0
    said = capsys.readouterr()
    assert "best.toml" in said.out and "trial 1:" in said.err
    best = best_of([read_trial(one) for one in (tmp_path / "s" / RECORD).read_text().splitlines()])
    told = tomllib.loads((tmp_path / "s" / "best.toml").read_text())
    assert told["preset"] == "fedmeta-fomaml" and told["parts"] == ["data:sinusoids"] and told["rounds"] == 3
    assert call("run", str(tmp_path / "s" / "best.toml"), "--out", str(tmp_path / "r"), "--no-report") == 0
    experiment = load_experiment(tmp_path / "r")
    assert experiment.objective.inner.lr == experiment.adaptation.lr == float(best.values["objective.inner.lr"])
    assert experiment.field.width == 8 and not experiment.data.sealed
    trial = load_experiment(tmp_path / "s" / "trials" / f"{best.number:04d}")
    assert trial == dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, sealed=True))
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["clients"]["unseen"] == 1 and "unseen" in summary["scores"]["error"]


def test_a_trial_that_is_behind_is_pruned_and_one_that_diverges_does_not_end_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "STARTUP", 1)
    search = search_of(Sinusoids(clients=10), "strategy.lr=1e30,0.003,1e-9,2e30", trials=8, rounds=12)
    trials = searched(search, tmp_path / "s")
    assert len(trials) == 8 and {trial.state for trial in trials} == {"complete", "pruned", "failed"}
    for trial in trials:
        rate = trial.values["strategy.lr"]
        assert (trial.state == "failed") == (rate in ("1e30", "2e30"))
        if trial.state == "failed":
            assert trial.value is None and "diverged" in trial.reason
        if trial.state == "pruned":
            assert rate == "1e-9" and trial.rounds < 12 and "worse than the median" in trial.reason
    assert best_of(trials).values == {"strategy.lr": "0.003"}


def test_the_pruner_compares_with_the_median_at_the_same_round(tmp_path):
    """By hand: five complete trials with figures 1 to 5 in round 2; a sixth at 3.5 there is behind, one at 2.5 not."""
    search = search_of(Sinusoids(clients=10), "strategy.lr=0.001..0.1", trials=6)
    done = [
        tuning.Trial(i, "complete", float(i), {"strategy.lr": "0.01"}, {1: 9.0, 2: i + 1.0}, 2, 1.0) for i in range(5)
    ]
    for value, behind in ((3.5, True), (2.5, False)):
        proposed = tuning._proposed(search, done, 5)
        follower = tuning._Follower(proposed, 4, lambda at: None)
        record = {"round": 2, "scores": {"error": {"validation": {"0": 9.0, "8": value}}}}
        if behind:
            with pytest.raises(tuning._Behind, match="after 2 rounds"):
                follower.look(record)
        else:
            follower.look(record)
        assert follower.best == value


# How it goes on.


@pytest.mark.parametrize("fatal", [5, 23, 40, 61])
def test_a_search_that_was_killed_goes_on_as_if_nothing_had_been(tmp_path, fatal, whole):
    search, wanted = whole
    folder = tmp_path / "s"
    start(search, folder)

    def work():
        Killer(folder, fatal)
        tune(search, folder)

    assert os.WIFSIGNALED(in_child(work)), "it was killed"
    before = (folder / RECORD).read_text() if (folder / RECORD).exists() else ""
    assert before.count("\n") < search.trials
    assert load_search(folder) == search
    tune(load_search(folder), folder)
    assert content(folder) == wanted and (folder / RECORD).read_text().startswith(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "s"
    search = search_of(Sinusoids(clients=10), trials=3, rounds=3, checkpoint_every=2)
    searched(search, folder)
    return search, content(folder)


def test_ctrl_c_says_how_to_go_on_and_more_trials_go_on_from_the_same(tmp_path, monkeypatch, capsys, whole):
    search, wanted = whole
    folder = tmp_path / "s"
    start(dataclasses.replace(search, trials=2), folder)

    def strike(trial):
        if trial.number == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tune(search, folder, strike)
    assert call("tune", "--resume", "--out", str(folder), "--no-report") == 0
    assert len((folder / RECORD).read_text().splitlines()) == 2
    assert call("tune", "--resume", "--out", str(folder), "--trials", "3", "--no-report") == 0
    assert content(folder) == wanted
    assert call("tune", "--resume", "--out", str(folder), "--rounds", "9") == 2
    assert "other settings" in capsys.readouterr().err

    def interrupted(*_, **__):
        raise tuning.Interrupted("interrupted after round 1 of 3; go on with: fedfields run")

    monkeypatch.setattr(tuning, "run", interrupted)
    assert call("tune", "--resume", "--out", str(folder), "--trials", "4") == 130
    assert f"interrupted in trial 3 of 4; go on with: fedfields tune --resume --out {folder}" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_damaged_record_is_run_again_from_there(tmp_path, whole):
    search, wanted = whole
    folder = tmp_path / "s"
    searched(search, folder)
    lines = (folder / RECORD).read_text().splitlines()
    for spoiled in ("", lines[1][:40], lines[0], lines[1].replace('"complete"', '"perfect"'), "[1, 2]"):
        (folder / RECORD).write_text("\n".join([lines[0], spoiled, lines[2]]))
        assert len(tuning._read(folder / RECORD, search.space)) == 1
    assert len(tune(search, folder)) == 3 and content(folder) == wanted


# What is tried.


def test_the_usual_ranges_are_around_the_settings_and_adaptation_follows_the_inner_rate():
    def usual(name):
        return {one.name: one.text for one in read_space(default_space(preset(name)), preset(name))}

    inner = {"objective.inner.lr": "0.01..1.0"}
    assert usual("fedmeta-maml") == inner | {"objective.inner.steps": "1..9", "strategy.lr": "0.0003..0.03"}
    assert usual("per-fedavg") == inner | {"objective.inner.steps": "1..3", "local.lr": "0.005..0.5"}
    assert usual("fedavg-tuned") == {"adaptation.lr": "0.01..1.0", "local.lr": "0.005..0.5"}
    values = {"objective.inner.lr": "0.03"}
    experiment = preset("fedmeta-maml")
    assert with_following(experiment, values) == values | {"adaptation.lr": "0.03"}
    assert with_following(experiment, values | {"adaptation.lr": "1"})["adaptation.lr"] == "1"
    apart = applied(experiment, {"adaptation.lr": "0.5"})
    assert with_following(apart, values) == values


def test_values_stay_in_their_range_and_are_read_back():
    one = Searched("x", 0.033333, 0.0444449)
    assert [one.spelled(value) for value in (0.033333, 0.04, 0.0444449)] == ["0.033333", "0.04", "0.04444"]
    assert one.logarithmic and not Searched("x", 0.0, 1.0).logarithmic
    assert Searched("n", 1, 9, whole=True).spelled(4) == "4"
    assert [one.holds(text) for text in ("0.034", "0.05", "x")] == [True, False, False]


BAD = {
    "inner.lr": "not NAME=LOW..HIGH",
    "inner.lr=1..0.1": "the first end must be below the second",
    "inner.lr=0.1..inf": "both finite",
    "inner.lr=a..b": "two numbers",
    "inner.steps=1.5..3": "two whole numbers",
    "inner.step=1..3": "did you mean --objective.inner.steps",
    "lr=1..2": "write more of its name",
    "inner.steps=-1..3": "neither may be negative",
    "inner.lr=low,high": "must be a number",
    "inner.lr=1..2 inner.lr=2..3": "twice",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_ranges_are_one_line_before_anything_is_written(tmp_path, capsys, spec):
    assert call("tune", "fedmeta-maml", "data:sinusoids", "--search", spec, "--out", str(tmp_path / "s")) == 2
    error = capsys.readouterr().err
    assert BAD[spec] in error and error.count("\n") == 1 and not (tmp_path / "s").exists()


def test_what_cannot_be_tuned_is_one_line(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "s")]
    sinusoids = ["fedmeta-maml", "data:sinusoids", "--data.clients", "9", "--rounds", "1", *out]
    run_there = tmp_path / "run"
    run(experiment_of(Sinusoids(clients=9), rounds=1), run_there)
    for line, said in (
        (["fedmenf", *out], "needs validation clients, which runs on samples have"),
        (["fedmeta-maml", "--rounds", "0", *out], "nothing to tune"),
        (["fedmeta-maml", "--trials", "0", *out], "at least one"),
        (["fedmeta-maml", *out, "--search"], "--search needs a value"),
        (["--resume"], "needs --out"),
        ([*sinusoids, "--data.validation", "0", "--patience", "0"], "keep some back with --data.validation"),
        (sinusoids, "is not empty"),
        (["--resume", "--out", str(run_there)], "no search that could be resumed"),
    ):
        assert call("tune", *line) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert call("tune", *sinusoids[:-1], str(tmp_path / "t")) == 2
    assert 'pip install "fedfields[tune]"' in capsys.readouterr().err
    with pytest.raises(UserError, match="validation clients"):
        Search(preset("fedmenf"), (), "fedmenf")


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code
