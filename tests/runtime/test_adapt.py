"""``fedfields adapt`` on rows of one's own: figures before and after, and files that others can run."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from fedfields.adaptation import Adaptation, adapt
from fedfields.cli import main
from fedfields.config import choose, preset
from fedfields.datasets import Samples, Sinusoids
from fedfields.fields import Siren
from fedfields.losses import ModelLoss
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.objectives import Inner, Maml
from fedfields.runtime.checkpoint import load_weights
from fedfields.runtime.run import run
from fedfields.scenes.arrays import ArraySignal
from fedfields.scenes.data import Data
from fedfields.seeds import generator
from fedfields.types import META, Task


def rows_of(client, kind, rows=20):
    """Two clouds whose classes differ from client to client, or a line with a slope of its own."""
    random = np.random.default_rng(client)
    if kind == "numbers":
        x = random.uniform(-1, 1, (rows, 1)).astype(np.float32)
        return x, (1 + client) * x[:, 0] - 1
    y = np.arange(rows) % 2
    side = (1 if client % 2 else -1) * (2 * y - 1)
    if kind == "pictures":
        return (128 + 100 * side[:, None, None] * np.ones((8, 8)) + random.integers(0, 20, (rows, 8, 8))).astype(
            np.uint8
        ), y
    return (side[:, None] + 0.3 * random.normal(size=(rows, 2))).astype(np.float32), y


def write_rows(path, client, kind):
    x, y = rows_of(client, kind)
    if path.suffix == ".npz":
        np.savez(path, x=x, y=y)
    elif path.suffix == ".csv":
        head = [*(f"x{i}" for i in range(x.shape[1])), "y", "client"]
        cells = [[*map(str, one), str(target), "me"] for one, target in zip(x, y, strict=True)]
        path.write_text("\n".join(",".join(line) for line in [head, *cells]))
    else:
        path.write_text("abcd " * 60 if client % 2 else "dcba " * 60)
    return path


CASES = {
    "clouds": ("classes", ".npz", Mlp(width=8, depth=1), {}),
    "lines": ("numbers", ".csv", Mlp(width=8, depth=1), {}),
    "pictures": ("pictures", ".npz", ConvNet(filters=4, blocks=2, groups=2), {}),
    "episodes": ("classes", ".npz", Mlp(width=8, depth=1), {"ways": 2, "shots": 2, "queries": 3}),
    "texts": ("texts", ".txt", Recurrent(embedding=4, hidden=8), {"length": 8}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of Meta-SGD on the clients of each case, and a file of a client that it does not have."""
    made = {}
    for name, (kind, suffix, model, settings) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "data").mkdir()
        for client in range(6):
            write_rows(folder / "data" / f"c{client}{suffix}", client, kind)
        experiment = dataclasses.replace(
            preset("fedmeta-sgd"),
            data=Samples(folder / "data", **settings),
            field=model,
            objective=Maml(Inner(steps=1, lr=0.1, batch=0, learn_rates=True)),
            rounds=2,
            evaluate_every=1,
            workers=1,
            adaptation=Adaptation(steps=3, lr=0.1, batch=0),
        )
        run(experiment, folder / "run", name="fedmeta-sgd")
        made[name] = folder / "run", write_rows(folder / f"mine{suffix}", 7, kind)
    return made


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return stop.value.code


@pytest.mark.parametrize("name", list(CASES))
def test_what_adapt_writes_is_what_adaptation_gives_and_what_others_compute(runs, tmp_path, name, capsys):
    folder, file = runs[name]
    assert call("adapt", folder, file, "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "from a random start" in said and "model.onnx" in said
    assert {one.name for one in (tmp_path / "a").iterdir()} == {"model.safetensors", "model.onnx", "adapted.json"}

    kind, _, model, settings = CASES[name]
    kind = "numbers" if kind == "numbers" else "classes"
    support = 0.4 if "ways" in settings else 0.2
    told = {"kind": kind} if name != "texts" else {"length": 8}
    task = Samples(support=support, **told).own(file, "mine", 0).train[0]
    loss, start = ModelLoss(model, kind), load_weights(folder / "model.safetensors")
    weights = adapt(start, task, loss, Adaptation(steps=3, lr=0.1, batch=0), generator(0, "personal"))
    written = load_weights(tmp_path / "a" / "model.safetensors")
    assert weights.keys() == written.keys() and any(key.startswith(META) for key in written)

    query = task.query.everything()
    session = onnxruntime.InferenceSession(tmp_path / "a" / "model.onnx")
    outputs = torch.from_numpy(session.run(None, {"x": query.inputs.numpy()})[0])
    torch.testing.assert_close(outputs, loss.predict(written, query.inputs), atol=1e-5, rtol=1e-5)
    record = json.loads((tmp_path / "a" / "adapted.json").read_text())
    if kind == "numbers":
        after = float((outputs - query.targets).square().mean())
    else:
        after = float((outputs.argmax(-1) == query.targets).float().mean())
    assert record["after"] == pytest.approx(after, rel=1e-4) and record["figure"] in ("accuracy", "error")
    assert record["by_step"].keys() == record["from_random_start"].keys() == {"0", "1", "2", "3"}
    assert record["before"] == record["by_step"]["0"] and record["adaptation"]["steps"] == 3
    rows = 37 if name == "texts" else 20
    assert record["samples"] == {"support": round(support * rows), "query": rows - round(support * rows)}
    assert all(torch.allclose(weights[key], written[key], atol=1e-7) for key in weights)


def test_a_run_between_machines_has_no_scores_and_its_settings_tell_the_kind(runs, tmp_path):
    folder, file = runs["clouds"]
    shutil.copytree(folder, tmp_path / "run")
    for name, change in (("summary", {"scores": None}), ("experiment", {})):
        path = tmp_path / "run" / f"{name}.json"
        record = json.loads(path.read_text()) | change
        if name == "experiment":
            record["experiment"]["data"]["kind"] = "classes"
        path.write_text(json.dumps(record))
    assert call("adapt", tmp_path / "run", file, "--no-onnx", "--out", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "adapted.json").read_text())["figure"] == "accuracy"


def test_adapting_helps(runs, tmp_path):
    folder, file = runs["clouds"]
    assert call("adapt", folder, file, "--out", tmp_path / "a", "--steps", "60", "--no-onnx") == 0
    record = json.loads((tmp_path / "a" / "adapted.json").read_text())
    assert record["after"] > 0.9 and record["after"] >= record["before"]
    assert not (tmp_path / "a" / "model.onnx").exists()


def test_a_field_whose_step_sizes_were_learned_adapts_and_is_written_without_them(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        values = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(values).save(folder / f"p{i}.png")
    experiment = dataclasses.replace(
        choose(preset("maml"), "objective", "meta-sgd"),
        data=Data(path=folder, size=8),
        field=Siren(width=8, depth=2),
        rounds=1,
        workers=1,
        adaptation=Adaptation(steps=2),
    )
    run(experiment, tmp_path / "run")
    assert call("adapt", tmp_path / "run", folder / "p0.png") == 0
    made = tmp_path / "run" / "adapted" / "p0"
    written = load_weights(made / "field.safetensors")
    assert any(key.startswith(META) for key in written)
    x = 2 * torch.rand(11, 2, generator=torch.Generator().manual_seed(0)) - 1
    session = onnxruntime.InferenceSession(made / "field.onnx")
    assert not any(node.name.startswith(META) for node in session.get_inputs())
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], experiment.field(written, x), atol=1e-5)
    assert json.loads((made / "adapted.json").read_text())["figure"] == "psnr"


def test_without_the_extra_one_line_says_so_and_the_rest_is_written(runs, tmp_path, monkeypatch, capsys):
    folder, file = runs["clouds"]
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert call("adapt", folder, file, "--out", tmp_path / "a") == 0
    assert 'pip install "fedfields[onnx]"' in capsys.readouterr().err
    assert {one.name for one in (tmp_path / "a").iterdir()} == {"model.safetensors", "adapted.json"}


def test_a_run_on_sinusoids_adapts_to_a_table_of_points(tmp_path, capsys):
    experiment = dataclasses.replace(
        choose(preset("fedmeta-maml"), "data", "sinusoids"), data=Sinusoids(clients=10), rounds=1, workers=1
    )
    run(experiment, tmp_path / "run")
    x = np.linspace(-5, 5, 60)
    lines = ["x,y", *(f"{one:.6f},{3 * np.sin(one - 1):.6f}" for one in x)]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    assert call("adapt", tmp_path / "run", tmp_path / "mine.csv", "--no-onnx") == 0
    record = json.loads((tmp_path / "run" / "adapted" / "mine" / "adapted.json").read_text())
    assert record["figure"] == "error" and record["samples"] == {"support": 10, "query": 50}


def test_what_does_not_fit_the_run_is_one_line(runs, tmp_path, capsys):
    clouds, lines, texts = (runs[name][0] for name in ("clouds", "lines", "texts"))
    wide, words, many = tmp_path / "wide.npz", tmp_path / "words.csv", tmp_path / "many.npz"
    np.savez(wide, x=np.ones((9, 3)), y=np.arange(9) % 2)
    np.savez(many, x=np.ones((9, 2)), y=np.arange(9) % 3)
    words.write_text("a,b,y\n" + "1,2,cat\n3,4,dog\n" * 4)
    (tmp_path / "two.npz").write_bytes(b"")
    np.savez(tmp_path / "two.npz", x=np.ones((9, 1)), y=np.ones((9, 2)))
    for folder, file, said in (
        (clouds, wide, "not of the kind or shape"),
        (clouds, many, "has 3 classes"),
        (clouds, words, "number the classes from 0"),
        (clouds, runs["texts"][1], "reads rows of numbers"),
        (texts, runs["clouds"][1], "reads texts"),
        (lines, tmp_path / "two.npz", "2 classes or numbers"),
        (lines, tmp_path / "none.csv", "does not exist"),
    ):
        assert call("adapt", folder, file, "--out", tmp_path / "a") == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_any_module_of_yours_adapts_from_python():
    """What the command does is `fedfields.adaptation.adapt`, which takes any loss."""
    from fedfields.losses import ModuleLoss, params_of

    x, y = (torch.from_numpy(one) for one in rows_of(1, "classes"))
    task = Task(ArraySignal(x[:8], y[:8]), ArraySignal(x[8:], y[8:]))
    loss = ModuleLoss(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy)
    start = params_of(loss.module)
    weights = adapt(start, task, loss, Adaptation(steps=20, lr=0.5, batch=0), generator(0))
    assert float(loss(weights, task.query.everything())) < 0.5 * float(loss(start, task.query.everything()))
