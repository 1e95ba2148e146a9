"""What was written by others, or damaged: it is used, or refused in one line, in little time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("FEDFIELDS_CASES", "40"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
def test_readers_never_crash_hang_or_balloon(tmp_path):
    """Every input: no crash, at most 700 MB more (the largest picture that is allowed), nothing outside its folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.parsers", str(folder), str(CASES)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300 + CASES)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, one in found.items():
        print(name, one)
    assert not [name for name, one in found.items() if "crashed" in one], done.stderr
    assert max(one["grown"] for one in found.values()) < 700
    assert max(one["seconds"] for one in found.values()) < 30
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert sum(one.get("refused", 0) for one in found.values()) > 10 * CASES
    for name, one in found.items():
        used = ("90 MB", "99 megapixels", "two million points", "behind a small clip", "leave the folder")
        if ": " in name:
            assert one.keys() & {"used", "refused"} == ({"used"} if name.endswith(used) else {"refused"}), name
