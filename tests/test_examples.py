"""The examples run as they are and say what their texts promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"01_fedmenf_on_photographs.py", "02_any_torch_model.py"}
