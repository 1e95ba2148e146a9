"""The viewer in a real browser."""

import math
import shutil
import socket
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from fedfields.errors import UserError
from fedfields.runtime.run import run
from fedfields.scenes.tour import Tour
from fedfields.viewer import open_viewer, pose_of, quaternion_of
from tests.runtime.test_places import experiment
from tests.scenes.ball import write_capture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_cameras_of_the_browser_are_poses_and_back():
    for pose in Tour((0.6, 0.0, 0.8)).orbit(5):
        turned = pose[:, :3] * torch.tensor([1.0, -1.0, -1.0])
        assert torch.allclose(pose_of(quaternion_of(turned), pose[:, 3]), pose, atol=1e-6)
    # A quarter turn about z takes x to y.
    half = math.sqrt(0.5)
    assert torch.allclose(pose_of((half, 0, 0, half), (0, 0, 0))[:, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    write_capture(folder / "ball")
    run(experiment(folder / "ball", rounds=8), folder / "run")
    return folder / "run"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_one_clear_line(trained):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken; choose another with --port"):
            open_viewer(trained, port=taken.getsockname()[1])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_sees_the_ball(trained, tmp_path):
    port = free_port()
    server = open_viewer(trained, port=port, size=64)
    try:
        times = enumerate((1, 2, 4, 4, 8, 8))
        shots = (screenshot(port, tmp_path / f"{i}", 30_000 * longer) for i, longer in times)
        assert any(map(shows_something, shots))  # A busy machine may need longer.
    finally:
        server.stop()


def screenshot(port, folder, milliseconds):
    """``[480, 640, 3]``, as a browser shows the page after some virtual time."""
    folder.mkdir()
    subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-background-networking",
            "--no-first-run", f"--virtual-time-budget={milliseconds}", "--window-size=640,480",
            f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'shot.png'}",
            f"http://127.0.0.1:{port}/",
        ],
        check=True, capture_output=True, timeout=180,
    )  # fmt: skip
    return np.asarray(Image.open(folder / "shot.png").convert("RGB")).astype(int)


def shows_something(pixels):
    """The ball in the middle has a strong colour (a page that shows nothing has none); what is around it is white."""
    centre, corner = pixels[230:250, 310:330].reshape(-1, 3).mean(0), pixels[440:470, 560:630].reshape(-1, 3).mean(0)
    return centre.max() - centre.min() > 50 and corner.min() > 225
