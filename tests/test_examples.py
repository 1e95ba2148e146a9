"""The examples run as they are and say what their texts promise."""

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedfields.cli import main
from tests.scenes import room

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name):
    command = [sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def test_federating_photographs_adapts_faster_than_a_random_start():
    lines = run("01_fedmenf_on_photographs.py").splitlines()
    start, federated = (
        {int(k): float(v) for k, v in re.findall(r"'(\d+)': ([\d.]+)", line)} for line in lines if "{" in line
    )
    assert federated[8] > start[8]


def test_the_same_seam_personalises_a_classifier():
    pytest.importorskip("sklearn")
    lines = run("02_any_torch_model.py").splitlines()
    start, federated = ([float(x) for x in re.findall(r"[\d.]+", line.split(":")[1])] for line in lines[1:])
    assert federated[1] > start[1] + 0.1 and federated[2] > start[2] + 0.1


def three_commands(folder, seconds):
    spec = importlib.util.spec_from_file_location("photos_to_viewer", EXAMPLES / "03_photos_to_viewer.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.commands(folder, seconds)


def test_photographs_become_a_place_to_walk_around_in(tmp_path, capsys):
    """The three commands of the example and the README, with small settings, on photographs of a made-up room."""
    pytest.importorskip("pycolmap")
    pytest.importorskip("viser")
    scene, folder = room.faces(), tmp_path / "room"
    folder.mkdir()
    for i in range(10):
        room.photograph(*room.camera(0.2 * i), scene).save(folder / f"IMG_{i}.jpg", quality=95)
    photos, train, view = three_commands(folder, 1)
    for words in (
        [*photos, "--threads", "1", "--features", "800"],
        [*train, "--data.size", "60", "--local.steps", "5", "--objective.batch", "256"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0, capsys.readouterr().err
    assert (
        tmp_path / "room-run" / "report.html"
    ).exists() and "go on with: fedfields run nerf" in capsys.readouterr().out
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "fedfields", *view, "--port", port, "--size", "32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
        try:
            assert viewer.stdout and any(f"open http://127.0.0.1:{port}" in line for line in viewer.stdout)
        finally:
            viewer.send_signal(signal.SIGINT)
        assert viewer.wait(60) == 0


def test_the_example_says_what_the_readme_says(tmp_path):
    script = EXAMPLES / "03_photos_to_viewer.py"
    words = [sys.executable, str(script), str(tmp_path / "square"), "--print"]
    said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    readme = (EXAMPLES.parent / "README.md").read_text()
    plain = [re.sub(r"\S*/square", "~/square", line) for line in said]
    assert len(plain) == 3 and all(line in readme for line in plain)


def test_every_example_is_tested():
    names = {"01_fedmenf_on_photographs.py", "02_any_torch_model.py", "03_photos_to_viewer.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names
