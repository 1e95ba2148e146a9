"""A folder of your own photographs, to a place that you can walk around in, in three commands.

python examples/03_photos_to_viewer.py ~/square            runs them; the last one opens a page on 127.0.0.1
python examples/03_photos_to_viewer.py ~/square --print    only says them, for copying

Needs ``pip install ".[photos,viewer]"``. Photographs, poses and weights stay on this machine.
"""

import shlex
import subprocess
import sys
from pathlib import Path


def commands(photographs: Path, seconds: int = 120) -> list[list[str]]:
    """Cameras by structure from motion; a field of the place; a viewer for it."""
    posed, run = photographs.with_name(f"{photographs.name}-posed"), photographs.with_name(f"{photographs.name}-run")
    return [
        ["photos", str(photographs), "--out", str(posed)],
        ["run", "nerf", "--data", str(posed), "--seconds", str(seconds), "--out", str(run)],
        ["view", str(run)],
    ]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python 03_photos_to_viewer.py FOLDER [--print]")
    for words in commands(Path(sys.argv[1]).expanduser().resolve()):
        print("fedfields", shlex.join(words), flush=True)
        if "--print" not in sys.argv:
            subprocess.run([sys.executable, "-m", "fedfields", *words], check=True)
