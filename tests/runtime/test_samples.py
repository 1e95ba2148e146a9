"""Runs on samples: classifiers and regressors, with everything that pictures have."""

import contextlib
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedfields.adaptation import Adaptation
from fedfields.cli import main
from fedfields.config import choose, from_json, preset, to_json
from fedfields.datasets import Samples, Sinusoids
from fedfields.errors import UserError
from fedfields.losses import ModelLoss
from fedfields.models import Mlp, Recurrent
from fedfields.objectives import Fit, Inner, Maml
from fedfields.report import write_report
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import Interrupted, load_experiment, run
from fedfields.runtime.samples import deciding, figures, scored, set_up_samples
from fedfields.strategies import FedOpt
from fedfields.types import Batch
from tests.runtime.deployment import federation


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def small(**changes):
    """FOMAML on a few sinusoids, seconds in all."""
    usual = {
        "data": Sinusoids(clients=24, queries=20),
        "field": Mlp(width=16, depth=2),
        "rounds": 4,
        "cohort": 3,
        "evaluate_every": 1,
        "patience": 0,
        "workers": 1,
    }
    return dataclasses.replace(preset("fedmeta-fomaml"), **usual | changes)


def test_digits_split_by_class_are_learned_and_told_apart_by_clients_who_never_took_part(tmp_path):
    pytest.importorskip("sklearn")
    experiment = dataclasses.replace(preset("fedmeta-maml"), rounds=80, evaluate_every=40, patience=0, workers=1)
    scores = run(experiment, tmp_path / "run")["scores"]["accuracy"]
    before, after = scores["unseen"]["0"], scores["unseen"]["8"]
    assert after > 0.9 and after > before + 0.2  # Chance is a tenth, and a half among one's own two digits.
    assert "never took part" in write_report([tmp_path / "run"], tmp_path / "report.html").read_text()


def test_test_clients_are_looked_at_once(tmp_path):
    summary = run(small(), tmp_path / "run")
    groups = [set(line["scores"]["error"]) for line in lines(tmp_path / "run")]
    assert groups == [{"validation"}] * 3 + [{"validation", "unseen"}]
    assert list(summary["scores"]["error"]["unseen"]) == ["0", "1", "2", "4", "8"]


def stuck(**changes):
    """A step so large that things get worse before long."""
    return small(strategy=FedOpt("adam", lr=0.3), rounds=40, patience=3, **changes)


def test_training_stops_when_validation_clients_no_longer_gain_and_keeps_the_best(tmp_path):
    experiment = stuck()
    summary = run(experiment, tmp_path / "run")
    values = [deciding(line) for line in lines(tmp_path / "run")]
    assert len(values) < 40 and min(values) == values[summary["best_round"] - 1]
    assert len(values) - summary["best_round"] == 3  # Three evaluations that were no better.
    setup = set_up_samples(experiment)
    with Pool(setup.context, 1) as pool:
        kept = load_file(tmp_path / "run" / "model.safetensors")
        groups = {"validation": setup.federation.validation}
        again = scored(pool, kept, groups, experiment.adaptation, experiment.seed)
    assert list(again["error"]["validation"].values())[-1] == min(values)


def test_a_run_that_was_interrupted_stops_where_an_unbroken_one_does(tmp_path):
    whole = run(stuck(), tmp_path / "whole")

    def stop(record, total):
        if record["round"] == whole["best_round"] + 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(stuck(), tmp_path / "parts", on_round=stop)
    parts = run(stuck(), tmp_path / "parts", resume=True)
    assert parts["scores"] == whole["scores"] and parts["best_round"] == whole["best_round"]
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert same[0] == same[1]
    assert run(stuck(), tmp_path / "parts", resume=True)["rounds"] == whole["rounds"]  # Nothing is left to do.


def test_nobody_waits_for_validation_clients_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="validation clients"):
        run(small(patience=2, data=Sinusoids(clients=24, validation=0.0)), tmp_path / "run")
    with pytest.raises(UserError, match="patience"):
        run(dataclasses.replace(preset("maml"), patience=2), tmp_path / "other")


METHODS = ("fedavg-tuned", "fedreptile", "per-fedavg", "per-fedavg-hf", "fedmeta-fomaml", "fedmeta-maml", "fedmeta-sgd")


@pytest.mark.parametrize("name", METHODS)
def test_secure_sums_change_nothing_but_the_last_digits(name, tmp_path):
    """Meta-gradients, models and learned step sizes: with any weighting, the sum is that of the open run."""
    experiment = small(**{part: getattr(preset(name), part) for part in ("objective", "local", "strategy")})
    experiment = dataclasses.replace(experiment, rounds=2, weighting="loss")
    run(experiment, tmp_path / "open")
    run(choose(experiment, "privacy", "sec-agg"), tmp_path / "sums")
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("open", "sums"))
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key], two[key], atol=2e-4), key


def test_differential_privacy_comes_with_its_epsilon(tmp_path):
    summary = run(choose(small(), "privacy", "central-noise"), tmp_path / "run")
    assert summary["privacy"]["epsilon"] > 0 and all("epsilon" in line for line in lines(tmp_path / "run"))
    with pytest.raises(ValueError, match="only among equals"):
        dataclasses.replace(choose(small(), "privacy", "noise"), weighting="size")


def test_weights_by_size_are_shares_of_the_largest_query(tmp_path):
    for client, rows in enumerate((10, 20, 40)):
        np.savez(tmp_path / f"c{client}.npz", x=np.ones((rows, 2)), y=np.zeros(rows))
    data = Samples(tmp_path, support=0.5, validation=0.0, unseen=0.0)
    setup = set_up_samples(small(data=data, weighting="size"))
    assert setup.settings.weights == [0.25, 0.5, 1.0]


def test_a_joint_fit_knows_the_mean_and_maml_knows_how_to_adapt(tmp_path):
    """The regression of MAML's paper, in short: a fifth of the error of a joint fit, and half of it fine-tuned."""
    inner = Inner(steps=1, lr=0.01, batch=0, clip=0.0)
    errors = []
    for name, objective in (("joint", Fit()), ("maml", Maml(inner))):
        experiment = small(
            data=Sinusoids(clients=300),
            field=Mlp(width=40, depth=2),
            objective=objective,
            strategy=FedOpt("adam", lr=0.01),
            adaptation=Adaptation(steps=10, lr=0.01, batch=0, clip=0.0),
            rounds=250,
            cohort=16,
            evaluate_every=250,
        )
        errors.append(run(experiment, tmp_path / name)["scores"]["error"]["unseen"])
    joint, maml = errors
    assert maml["10"] < joint["0"] / 5 and maml["10"] < joint["10"] / 2


@pytest.mark.parametrize("name", METHODS)
def test_an_experiment_on_samples_survives_its_file(name):
    assert from_json(json.loads(json.dumps(to_json(preset(name))))) == preset(name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "fedmeta-maml", "field:siren"], "not a model of samples"),
        (["run", "fedmeta-maml", "field:conv-net"], "cannot be halved 4 times"),
        (["run", "fedmeta-maml", "data:sinusoids", "field:conv-net"], "needs samples [C, H, W]"),
        (["run", "maml", "field:mlp"], "Mlp is a field of places, not of pictures"),
        (["run", "fedmeta-maml", "--data", "nothing"], "does not exist"),
        (["run", "fedmeta-maml", "data:sinusoids", "--data.shots", "0"], "at least one point"),
        (["run", "fedmeta-maml", "compression:low-rank"], "for places"),
        (["run", "nerf", "data:monument", "rays:dense", "objective:meta-sgd"], "a place is one"),
        (["run", "nerf", "field:mlp"], "no radiance field"),
        (["run", "maml", "--objective.inner.dropout", "0.1"], "FieldLoss"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and said.count("\n") == 1, said


def test_owners_of_rows_weigh_themselves_and_tell_nobody_how_many_they_have(tmp_path):
    """Three real owners with 10, 20 and 40 rows: the model of a simulation with these weights, and no count sent."""
    place = federation(tmp_path, "anna bert cleo", "fedmeta-fomaml", plain=True)
    text = 'preset = "fedmeta-fomaml"\nparts = ["data:samples", "privacy:sec-agg"]\nrounds = 2\npatience = 0\n'
    text += 'weighting = "size"\n[data]\nshape = "2"\noutputs = 3\nkind = "classes"\nsupport = 0.5\nlargest = 16\n'
    (tmp_path / "experiment.toml").write_text(text)
    for i, name in enumerate(place.names):
        random = np.random.default_rng(i)
        count = 10 * 2**i
        folder = place.folder / "data" / name
        shutil.rmtree(folder)
        folder.mkdir()
        np.savez(folder / "rows.npz", x=random.normal(size=(count, 2)), y=random.integers(0, 3, count))
    server = place.serve()
    owners = [place.join(name) for name in place.names]
    assert server.end() == 0, server.said
    assert [owner.end() for owner in owners] == [0] * 3, [owner.said for owner in owners]
    for i, name in enumerate(place.names):
        shutil.copy(place.folder / "data" / name / "rows.npz", tmp_path / f"{name}.npz")
        assert b"size" not in (place.out(name) / "sent.jsonl").read_bytes(), i
    (tmp_path / "all").mkdir()
    for name in place.names:
        (tmp_path / f"{name}.npz").rename(tmp_path / "all" / f"{name}.npz")
    where = ["--data", tmp_path / "all", "--data.unseen", 0, "--data.validation", 0, "--workers", 1]
    with contextlib.suppress(SystemExit):
        main([str(w) for w in ("run", tmp_path / "experiment.toml", *where, "--out", tmp_path / "sim", "--no-report")])
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "sim"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    weights = [min(1.0, rows / 2 / 16) for rows in (10, 20, 40)]
    setup = set_up_samples(load_experiment(tmp_path / "sim"))
    assert setup.settings.weights == weights


def test_the_next_character_is_learned_from_many_texts(tmp_path):
    """Each owner's text repeats a word of its own: after adaptation most of its characters are known."""
    words = ("harbour ", "meadows ", "village ", "station ", "library ", "windows ", "gardens ", "bridges ", "markets ")
    (tmp_path / "texts").mkdir()
    for i, word in enumerate(words):
        (tmp_path / "texts" / f"{i}.txt").write_text(word * 20)
    experiment = small(
        data=Samples(tmp_path / "texts", length=16),
        field=Recurrent(embedding=4, hidden=24),
        strategy=FedOpt("adam", lr=0.03),
        objective=Maml(Inner(steps=2, lr=1.0, batch=0, clip=0.0), first_order=True),
        adaptation=Adaptation(steps=8, lr=2.0, batch=0, clip=0.0),
        rounds=60,
        evaluate_every=60,
    )
    accuracy = run(experiment, tmp_path / "run")["scores"]["accuracy"]["unseen"]
    assert accuracy["8"] > 0.4 and accuracy["8"] > accuracy["0"] + 0.1


def test_figures_are_what_one_counts_by_hand():
    loss = ModelLoss(Mlp(width=1, depth=1))
    params = {  # relu(x) into logits 0 and relu(x) - 1
        "layers.0.weight": torch.ones(1, 1),
        "layers.0.bias": torch.zeros(1),
        "last_layer.weight": torch.tensor([[0.0], [1.0]]),
        "last_layer.bias": torch.tensor([0.0, -1.0]),
    }
    form = loss.model.init((1,), 2, torch.Generator())
    assert {key: leaf.shape for key, leaf in form.items()} == {key: leaf.shape for key, leaf in params.items()}
    batch = Batch(torch.tensor([[-3.0], [0.5], [3.0], [5.0]]), torch.tensor([0, 1, 1, 1]))
    found = figures(loss, params, batch)
    logits = [(-1, 0), (-0.5, 1), (2, 1), (4, 1)]  # Of class 1, and what is right.
    wanted = [math.log(1 + math.exp(-z if right else z)) for z, right in logits]
    assert found["accuracy"] == 0.75 and found["loss"] == pytest.approx(sum(wanted) / 4)
    numbers = figures(ModelLoss(Mlp(width=1, depth=1), "numbers"), params, Batch(batch.inputs, torch.zeros(4, 2)))
    assert numbers == {"error": pytest.approx((1 + 0.25 + 4 + 16) / 8)}
