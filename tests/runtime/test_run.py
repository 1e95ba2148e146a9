"""A run on disk: what it writes, resuming, and what happens when something is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedfields.cli import main
from fedfields.config import Experiment, choose, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.fields import Siren
from fedfields.objectives import Inner, Maml, MeNF
from fedfields.runtime.run import Interrupted, load_experiment, run
from fedfields.scenes.data import Data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Eight small pictures, one owner each."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        values = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(i))
        Image.fromarray((values * 255).byte().numpy()).resize((20, 20), Image.Resampling.BICUBIC).save(
            folder / f"p{i}.png"
        )
    return folder


def experiment_of(pictures, **changes):
    maml = Maml(Inner(steps=2, lr=0.05, batch=32), outer_batch=32)
    base = Experiment(
        data=Data(path=pictures, size=16),
        field=Siren(width=16, depth=2),
        objective=MeNF(maml, gamma=0.5),
        rounds=5,
        cohort=3,
        evaluate_every=2,
        checkpoint_every=2,
        workers=1,
    )
    base = dataclasses.replace(base, adaptation=dataclasses.replace(base.adaptation, steps=4, batch=32))
    return dataclasses.replace(base, **changes)


def records(folder):
    """The figures of every round, without the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """A finished run with control variates, so that there is client memory to resume."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    experiment = choose(experiment_of(pictures), "strategy", "scaffold")
    run(experiment, folder, name="fedmenf")
    return folder


def test_a_run_leaves_what_the_issue_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {
        "psnr",
        "psnr_p",
        "leak",
        "floor",
        "rounds",
        "seconds",
        "bytes_up",
        "bytes_down",
        "clients",
        "dropped",
    } <= set(summary)
    assert summary["rounds"] == 5 and summary["dropped"] == 0
    assert list(summary["psnr"]["unseen"]) == ["0", "1", "2", "4"]
    assert summary["leak"]["worst"] >= summary["leak"]["direct"]
    assert [one["round"] for one in records(finished)] == [1, 2, 3, 4, 5]
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {
        "round-000004.safetensors",
        "round-000005.safetensors",
    }
    assert load_experiment(finished).objective.gamma == 0.5
    for name in ("owner", "server"):
        sheet = json.loads((finished / "images" / "sheets.json").read_text())[name]
        files = [cell["file"] for row in sheet["rows"] for cell in row["cells"] if cell]
        assert files and all((finished / "images" / file).is_file() for file in files)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(finished, tmp_path, stop_after):
    folder, experiment = tmp_path / "broken", load_experiment(finished)

    def crash(record, _):
        if record["round"] == stop_after:
            raise Stop

    with pytest.raises(Stop):
        run(experiment, folder, name="fedmenf", on_round=crash)
    run(experiment, folder, name="fedmenf", resume=True)
    whole, resumed = load_file(finished / "model.safetensors"), load_file(folder / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert records(folder) == records(finished)


def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(finished, tmp_path):
    folder, experiment = tmp_path / "damaged", load_experiment(finished)
    run(experiment, folder, name="fedmenf")
    newest = folder / "checkpoints" / "round-000005.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    run(experiment, folder, name="fedmenf", resume=True)
    assert records(folder) == records(finished)
    (a, b) = (load_file(f / "model.safetensors") for f in (folder, finished))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_ctrl_c_leaves_a_checkpoint_of_the_last_whole_round(pictures, tmp_path):
    def press(record, _):
        if record["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="after round 3 of 5; go on with: fedfields run --resume --out"):
        run(experiment_of(pictures), tmp_path / "r", on_round=press)
    assert (tmp_path / "r" / "checkpoints" / "round-000003.safetensors").is_file()
    assert len(records(tmp_path / "r")) == 3


def test_a_real_ctrl_c_is_one_line_and_exit_code_130(pictures, tmp_path):
    command = [sys.executable, "-m", "fedfields", "run", "maml", "--data", str(pictures), "--data.size", "16"]
    command += ["--field.width", "16", "--rounds", "100000", "--out", str(tmp_path / "r"), "--workers", "1"]
    # A shell's background job ignores SIGINT and passes that on; the process under test must not.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    log = tmp_path / "r" / "metrics.jsonl"
    deadline = time.time() + 60
    while not (log.exists() and log.read_text().count("\n") > 3) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted after round" in errors.splitlines()[-1]
    assert not [p for p in (tmp_path / "r").rglob(".*")], "nothing half-written"


def fails(capsys, *arguments):
    """Runs the command line, which must fail with exactly one line; returns it."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fedfields: ")
    return lines[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["runn"], ["no command 'runn'", "did you mean 'run'"]),
        (["run"], ["which preset"]),
        (["run", "fedmnf"], ["no preset 'fedmnf'", "did you mean 'fedmenf'"]),
        (["run", "maml", "reptile"], ["one preset at a time"]),
        (["run", "maml", "strategy:fedmova"], ["no strategy 'fedmova'", "did you mean 'fednova'"]),
        (["run", "maml", "strateggy:fednova"], ["no axis 'strateggy'", "did you mean 'strategy'"]),
        (["run", "fedmenf", "--gama", "1"], ["no setting --gama", "--objective.gamma"]),
        (["run", "fedmenf", "--gamma", "much"], ["--objective.gamma", "much"]),
        (["run", "fedmenf", "--gamma"], ["--objective.gamma needs a value"]),
        (["run", "fedmenf", "--clip", "1"], ["could be", "--local.clip"]),
        (["run", "maml", "--rounds", "-1"], ["rounds", "-1"]),
        (["run", "maml", "--data", "/no/such/place"], ["/no/such/place"]),
        (["run", "maml", "privacy:noise", "--weighting", "size"], ["uniform"]),
        (["run", "maml", "privacy:sec-agg", "strategy:krum"], ["single reports", "strategy:fedavg"]),
        (["run", "maml", "privacy:sec-agg", "--cohort", "2"], ["at least 3 reports", "raise --cohort"]),
        (["run", "maml-3d", "--depth", "six"], ["depth is six", "whole number"]),
        (["run", "maml", "strategy:krum", "--cohort", "3"], ["at least 5 clients"]),
        (["run", "maml", "--warm-up", "5"], ["warm-up is 5", "--data.public"]),
        (["run", "nerf", "--warm-up", "5"], ["warm-up is 5", "--data.public"]),
        (["run", "maml", "compression:low-rank"], ["fields of places", "compression:low-rank"]),
        (["run", "fednerf", "compression:low-rank", "--energy", "0"], ["energy is 0", "(0, 1]"]),
        (["run", "nerf", "--compression", "low-rank"], ["choose it as compression:NAME", "low-rank"]),
        (["run", "--resume"], ["needs --out"]),
        (["run", "--resume", "--out", "/no/such/run"], ["/no/such/run"]),
        (["adapt", "/no/such/run", "x.png"], ["/no/such/run"]),
        (["adapt", "onlyone"], ["RUN and FILE"]),
        (["report"], ["at least one RUN"]),
        (["check", "/no/such/place"], ["/no/such/place"]),
        (["demo", "nerf"], ["nerf"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and " " not in value[0] else "",
)
def test_bad_command_lines_are_one_clear_line(capsys, arguments, words):
    line = fails(capsys, *arguments)
    assert all(word in line for word in words), line


def test_a_folder_that_is_not_empty_is_refused(capsys, pictures, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    assert "is not empty" in fails(capsys, "run", "maml", "--data", pictures, "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_an_empty_folder_and_a_folder_of_rubbish_are_refused(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    line = fails(capsys, "run", "maml", "--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert str(tmp_path / "empty") in line
    (tmp_path / "rubbish").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "rubbish" / name).write_text("not a picture")
    line = fails(capsys, "run", "maml", "--data", tmp_path / "rubbish", "--out", tmp_path / "out2")
    assert str(tmp_path / "rubbish") in line


def test_a_file_in_the_way_of_the_output_is_one_line(capsys, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails(
        capsys, "run", "maml", "--data", pictures, "--out", tmp_path / "file" / "run"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_one_line(capsys, pictures, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot write" in fails(capsys, "run", "maml", "--data", pictures, "--out", tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_keeps_the_older_checkpoint(pictures, tmp_path, monkeypatch):
    """The second checkpoint meets a full disk: one clear line, the first one intact, nothing half-written."""
    real = safetensors.torch.save_file

    def full(tensors, path, metadata):
        if (tmp_path / "r" / "checkpoints" / "round-000002.safetensors").exists():
            Path(path).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(experiment_of(pictures), tmp_path / "r")
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["round-000002.safetensors"]
    monkeypatch.undo()
    run(load_experiment(tmp_path / "r"), tmp_path / "r", resume=True)
    assert len(records(tmp_path / "r")) == 5


def test_every_preset_survives_the_journey_through_json():
    from fedfields.config import AXES, PRESETS

    for name in PRESETS:
        assert from_json(json.loads(json.dumps(to_json(preset(name))))) == preset(name)
    for axis, members in AXES.items():
        for member in members:
            experiment = choose(preset("maml"), axis, member)
            assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_an_experiment_of_unknown_kind_is_refused():
    with pytest.raises(UserError, match="unknown type 'Popen'"):
        from_json({"type": "Popen", "args": "id"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", "5"), ("cohort", 2.5), ("seed", None), ("seconds", True), ("weighting", "most"), ("privacy", [3]),
     ("field", {"type": "Sgd"}), ("delta", 10**400)],
)  # fmt: skip
def test_a_setting_of_the_wrong_type_is_refused(name, value):
    with pytest.raises(UserError, match=f"cannot be read: .*{name}"):
        from_json(to_json(preset("maml")) | {name: value})


def test_flags_reach_the_experiment(pictures, tmp_path, capsys):
    arguments = [
        "run",
        "fedmenf",
        "strategy:fedexp",
        "--data",
        pictures,
        "--size",
        "16",
        "--width=16",
        "--gamma",
        "0.3",
    ]
    arguments += [
        "--inner.steps",
        "2",
        "--rounds",
        "1",
        "--adaptation.steps",
        "1",
        "--out",
        tmp_path / "r",
        "--no-report",
    ]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 0
    found = load_experiment(tmp_path / "r")
    assert found.objective.gamma == 0.3 and found.objective.base.inner.steps == 2
    assert found.field.width == 16 and found.data.size == 16 and type(found.strategy).__name__ == "FedExp"


def test_help_answers_without_torch():
    code = (
        "import sys; from fedfields.cli import main\n"
        "try: main({!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    for arguments in (["--help"], ["run", "--help"], ["presets"], ["check", "--help"], ["audit", "--help"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, stdout=subprocess.DEVNULL)


def test_adapt_writes_pictures_and_compares_with_a_random_start(finished, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["adapt", str(finished), str(pictures / "p0.png"), "--out", str(tmp_path / "a"), "--steps", "4"])
    assert stop.value.code == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "field.safetensors",
        "field.onnx",
        "adapted.json",
        "adapted.png",
        "random-start.png",
        "truth.png",
    }
    assert "from a random start" in capsys.readouterr().out


def test_divergence_is_said_once_in_one_line(pictures, tmp_path):
    lines = []
    experiment = experiment_of(pictures)
    hot = dataclasses.replace(experiment.local, lr=2.0, clip=0.0)
    run(dataclasses.replace(experiment, local=hot, rounds=3), tmp_path / "r", warn=lines.append)
    warned = [line for line in lines if "diverges" in line]
    assert len(warned) == 1 and "\n" not in warned[0]
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["warnings"] == warned


def test_a_run_that_blows_up_stops_and_is_judged_where_it_stood(pictures, tmp_path):
    lines = []
    experiment = experiment_of(pictures, rounds=50)
    hot = dataclasses.replace(experiment.local, lr=1e4, clip=0.0)
    summary = run(dataclasses.replace(experiment, local=hot), tmp_path / "r", warn=lines.append)
    assert 1 <= summary["rounds"] < 50
    assert any("stopped early" in line for line in lines)
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["warnings"]
