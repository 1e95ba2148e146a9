"""Bad captures through the command line, and files changed at random: one line each, never a traceback."""

import copy
import io
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.scenes.check import check_place
from fedfields.scenes.scene import Scene
from tests.scenes.ball import write_capture
from tests.scenes.test_captures import (
    POSE,
    frame,
    model_of,
    picture,
    pose_with,
    write_json,
    write_llff,
    write_meganerf,
    write_model,
)  # fmt: skip

AROUND = [pose_with(0, 3, 1.0 - 0.1 * i) for i in range(3)]
"""Three places from which one looks along +X."""


def command(capsys, *words):
    """Exit code and what was said: on the screen, and as errors."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    said = capsys.readouterr()
    return stop.value.code, " ".join(said.out.split()), said.err


def refused_everywhere(capsys, folder, words):
    """A run says it in one line and leaves nothing behind; a check says the same."""
    out = folder.parent / "out"
    code, _, errors = command(capsys, "run", "nerf", "--rounds", 0, "--data", folder, "--out", out)
    assert code == 2 and not out.exists()
    assert errors.count("\n") == 1 and errors.startswith("fedfields: ") and words in errors
    code, said, errors = command(capsys, "check", folder)
    assert code == 1 and not errors
    assert words.replace(" ", "") in said.replace(" ", "")  # A narrow console breaks long names.


def capture_of(folder, *frames, **meta):
    """Three pictures in ``folder/images`` and a transforms.json; ``frames`` change those of the three."""
    changes = [*frames, {}, {}, {}]
    found = []
    for name, pose, change in zip("abc", AROUND, changes, strict=False):
        picture(folder / "images" / f"{name}.png")
        found.append(frame(f"images/{name}.png", transform_matrix=pose) | change)
    return write_json(folder, found, **({"near": 1.0, "far": 4.0} | meta))


@pytest.mark.parametrize(
    ("change", "meta", "words"),
    [
        ({}, {"w": 12}, "is 8 x 6 pixels but its camera was made for 12 x 6"),
        ({"transform_matrix": pose_with(0, 0, 0.1)}, {}, "has no rotation in its first three columns (not orthogonal"),
        ({"transform_matrix": pose_with(1, 3, math.nan)}, {}, "frame images/a.png: the pose holds NaN or infinity"),
        ({"transform_matrix": pose_with(1, 3, 1e300)}, {}, "the pose stands further than 1e+12 from the origin"),
        ({"fl_x": 0}, {}, "frame images/a.png: focal length fx is 0.0; it must be positive and finite"),
        ({"camera_model": "OPENCV"}, {}, "has a camera_model of its own"),
        ({}, {"camera_model": "EQUIRECTANGULAR"}, "camera_model EQUIRECTANGULAR is not supported"),
        ({}, {"fl_x": "4.0"}, "fl_x is '4.0' and not a number"),
        ({}, {"w": 2**70}, "no picture is so large"),
        ({"mask_path": "images/b.png"}, {}, "2 of 3 pictures have no mask though the others have one"),
        ({}, {"train_filenames": [], "test_filenames": ["images/a.png"]}, "training photographs, too few"),
    ],
)
def test_bad_transforms_are_refused_alike_by_run_and_check(capsys, tmp_path, change, meta, words):
    folder = capture_of(tmp_path / "capture", change, **meta)
    if "too few" in words:
        code, _, errors = command(capsys, "run", "nerf", "--data", folder, "--out", tmp_path / "out")
        assert code == 2 and "has 0 training photographs, too few for 1 clients" in errors
        assert "has no view to train on" in command(capsys, "check", folder)[1]
    else:
        refused_everywhere(capsys, folder, words)


def test_missing_pictures_are_refused_if_all_and_else_noted(capsys, tmp_path):
    folder = capture_of(tmp_path / "capture")
    (folder / "images" / "a.png").unlink()
    code, _, errors = command(capsys, "run", "nerf", "--rounds", 0, "--data", folder, "--out", tmp_path / "out")
    assert code == 0 and "missing pictures, 1 of 3: images/a.png" in errors
    code, said, _ = command(capsys, "check", folder)
    assert code == 0 and "missing pictures, 1 of 3: images/a.png" in said
    (tmp_path / "later").mkdir()
    for file in (folder / "images").iterdir():
        file.rename(tmp_path / "later" / file.name)
    refused_everywhere(capsys, folder.rename(tmp_path / "later" / "capture"), "missing pictures, 3 of 3: images/a.png")


@pytest.mark.parametrize("what", ["text", "cut", "empty", "mask"])
def test_pictures_that_are_none_are_refused_alike(capsys, tmp_path, what):
    folder = capture_of(tmp_path / "capture")
    file = folder / "images" / "b.png"
    words = {"text": "holds no picture", "cut": "cannot be decoded", "empty": "is empty"}.get(what, "leaves nothing of")
    if what == "mask":
        picture(folder / "masks" / "m.png", colour=0, mode="L")
        folder = write_json(folder, [frame("images/a.png", mask_path="masks/m.png")], near=1.0, far=4.0)
    elif what == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).save(file, "JPEG")
        file.write_bytes(file.read_bytes()[:-200])
    else:
        file.write_text("dear diary" if what == "text" else "")
    refused_everywhere(capsys, folder, words)


@pytest.mark.parametrize(
    "content",
    [b"[" * 10_000_000, b"\x89PNG\r\n\x1a\n\0\0", b'{"frames": [' + b'{"a":' * 100_000, b"1" * 10_000, b"{}", b""],
    ids=["brackets", "binary", "nested", "digits", "nothing", "empty"],
)
def test_what_is_no_json_is_refused_alike(capsys, tmp_path, content):
    folder = capture_of(tmp_path / "capture")
    (folder / "transforms.json").write_bytes(content)
    refused_everywhere(capsys, folder, "transforms.json")


def test_unregistered_pictures_are_named_and_the_others_used(capsys, tmp_path):
    write_model(model_of(), tmp_path / "c" / "sparse", tmp_path / "c" / "images")
    picture(tmp_path / "c" / "images" / "stray.JPG", (64, 48))
    words = "pictures without a pose (COLMAP could not place them), 1 of 13: stray.JPG"
    code, said, _ = command(capsys, "check", tmp_path / "c")
    assert code == 0 and words in said
    out = tmp_path / "out"
    code, _, errors = command(
        capsys, "run", "nerf", "--rounds", 0, "--tests", 1, "--data", tmp_path / "c", "--out", out
    )
    assert code == 0 and words in errors


def test_folders_that_hold_nothing_or_may_not_be_read(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, errors = command(capsys, "run", "nerf", "--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2 and "holds no poses (transforms.json, " in errors and errors.count("\n") == 1
    code, said, _ = command(capsys, "check", tmp_path / "empty")
    assert code == 1 and "holds no picture or clip" in said
    folder = capture_of(tmp_path / "capture")
    for locked, words in ((folder / "transforms.json", "cannot be read"), (folder, "cannot be read")):
        locked.chmod(0)
        try:
            if os.access(locked, os.R_OK):
                pytest.skip("this user may read everything")
            refused = command(capsys, "run", "nerf", "--data", folder, "--out", tmp_path / "out")
            assert refused[0] == 2 and words in refused[2] and refused[2].count("\n") == 1
            assert command(capsys, "check", folder)[0] in (1, 2)  # Not a traceback.
        finally:
            locked.chmod(0o755)


def test_check_compares_with_the_frame_of_a_federation(capsys, tmp_path):
    folder = capture_of(tmp_path / "capture")
    out = tmp_path / "out"
    assert command(capsys, "run", "nerf", "--rounds", 0, "--data", folder, "--out", out)[0] == 0
    assert command(capsys, "check", folder, "--frame", out / "scene.json")[0] == 0
    elsewhere = capture_of(tmp_path / "elsewhere", applied_scale=0.1)
    code, said, _ = command(capsys, "check", elsewhere, "--frame", out / "scene.json")
    assert code == 1 and "its applied_transform or applied_scale is not that of the federation" in said
    code, _, errors = command(
        capsys, "run", "nerf", "--data", elsewhere, "--data.frame", out / "scene.json", "--out", tmp_path / "no"
    )
    assert code == 2 and "nobody may normalise poses alone" in errors and not (tmp_path / "no").exists()
    code, _, errors = command(capsys, "check", folder / "images", "--frame", out / "scene.json")
    assert code == 2 and "is no capture of a place" in errors


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["run", "nerf", "--secnds", "3"], "there is no setting --secnds; did you mean --seconds?"),
        (["run", "nerf", "--seconds", "abc"], "--seconds is abc; it must be a number or None"),
        (["run", "nerf", "--rounds", "1.5"], "--rounds is 1.5; it must be a whole number"),
        (["run", "noised", "--ratio", "much"], "--privacy.0.ratio is much; it must be a number"),
        (["run", "nrf"], "there is no preset 'nrf'; did you mean"),
        (["render", "runs/none", "--frames", "x"], "--frames is x; it must be a whole number"),
    ],
)
def test_typing_errors_are_one_clear_line(capsys, words, answer):
    code, _, errors = command(capsys, *words)
    assert code == 2 and answer in errors and errors.count("\n") == 1


def start(*words, **options):
    arguments = [sys.executable, "-m", "fedfields", *map(str, words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_interrupting_a_run_on_a_place_is_one_line_and_it_goes_on(tmp_path):
    write_capture(tmp_path / "ball")
    out = tmp_path / "out"
    small = ("--rounds", 9999, "--local.steps", 1, "--objective.batch", 64)
    process = start("run", "nerf", "--data", tmp_path / "ball", *small, "--out", out)
    until = time.monotonic() + 100
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with: fedfields run --resume" in errors and "Traceback" not in errors


def test_a_full_disk_is_one_line(tmp_path):
    """Files may not grow beyond 100 kB here, as on a disk that is full; the weights need 4 MB."""
    write_capture(tmp_path / "ball")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = ("run", "nerf", "--data", tmp_path / "ball", "--rounds", 1, "--local.steps", 1, "--out", tmp_path / "out")
    process = start(*words, preexec_fn=limit, env=os.environ | {"NUMBA_DISABLE_JIT": "0"})
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2 and "Traceback" not in errors
    assert [line for line in errors.splitlines() if "cannot write" in line and "free some space" in line]


# ---- Nothing that a camera wrote beside the pixels goes further.


def test_place_and_comments_of_photographs_stay_where_they_are(capsys, tmp_path):
    """A run folder is what people hand on: nothing that the camera wrote beside the pixels may be in it."""
    folder = capture_of(tmp_path / "capture")
    exif = Image.Exif()
    exif[0x010E], exif[0x0110] = "CANARY-description", "CANARY-model"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.34), 3: "E", 4: (13.0, 24.0, 18.0), 29: "CANARY-date"})
    for name in "abc":
        (folder / "images" / f"{name}.png").unlink()
        picture(folder / "images" / f"{name}.jpg", (64, 48), exif=exif, comment=b"CANARY-comment")
    assert b"CANARY-date" in (folder / "images" / "a.jpg").read_bytes()
    frames = [frame(f"images/{name}.jpg", transform_matrix=pose) for name, pose in zip("abc", AROUND, strict=True)]
    write_json(folder, frames, near=1.0, far=4.0, w=64, h=48, fl_x=40.0, fl_y=40.0)
    out = tmp_path / "out"
    code, said, errors = command(capsys, "run", "nerf", "--rounds", 0, "--data", folder, "--out", out)
    assert code == 0 and "CANARY" not in said + errors
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {"report.html", "scene.json", "model.safetensors"} <= {file.name for file in files}
    for file in files:
        assert b"CANARY" not in file.read_bytes(), file
        if file.suffix == ".png":
            assert not Image.open(file).getexif()


# ---- Files changed at random.

VALUES = [
    None, True, 0, -1, 3.5, 1e308, -1e308, math.nan, math.inf, 10**30, 10**400, 2**63, "", "a", "1", "\0", "\ud800",
    "x" * 5000, "../../etc/passwd", "images/a.png", "OPENCV_FISHEYE", [], {}, [[]], [None], [1, 2, 3], [[1, 2], [3]],
    [[math.nan] * 4] * 4, POSE,
]  # fmt: skip
KEYS = [
    "k1", "k2", "k3", "k4", "p1", "camera_model", "distortion_params", "is_fisheye", "fisheye_crop_radius", "near",
    "applied_transform", "applied_scale", "far", "train_filenames", "test_filenames", "mask_path", "depth_file_path",
    "ply_file_path", "camera_angle_x", "w", "cx", "fl_y",
]  # fmt: skip


def places(value, path=()):
    """The ways to everything in nested lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, each in inner for place in places(each, (*path, key))]


def changed(dice, value):
    """JSON with one to three parts removed, added or replaced."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 2, 3))):
        *path, last = dice.choice(places(value)[1:] or [(None,)])
        home = value
        for key in path:
            home = home[key]
        action = dice.random()
        if last is None:
            return value
        if action < 0.15:
            del home[last]
        elif action < 0.3 and isinstance(home, dict):
            home[dice.choice(KEYS)] = dice.choice(VALUES)
        else:
            home[last] = copy.deepcopy(dice.choice(VALUES))
    return json.dumps(value).encode("utf-8", "surrogatepass")


def damaged(dice, content):
    """Bytes with some replaced, removed, put in or cut off."""
    content = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at, action = dice.randrange(len(content)), dice.random()
        if action < 0.5:
            content[at] = dice.randrange(256)
        elif action < 0.7:
            del content[at : at + dice.randrange(1, 20)]
        elif action < 0.9:
            content[at:at] = dice.randbytes(dice.randrange(1, 9))
        else:
            content = content[: at + 1]
        if not content:
            break
    return bytes(content)


def survives(dice, file, make, use, times):
    """Whatever the file holds, ``use`` works or says one line; both happen."""
    outcomes = set()
    for _ in range(times):
        file.write_bytes(make(dice))
        try:
            use()
            outcomes.add("used")
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    return outcomes


def run_and_check(folder):
    """What the command line does with a capture, without training."""
    check_place(folder, Console(file=io.StringIO(), width=200))
    Scene(folder).load()


def test_transforms_changed_at_random(tmp_path):
    folder = capture_of(tmp_path, camera_model="OPENCV", k1=0.01, cx=4.0, cy=3.0)
    file = folder / "transforms.json"
    original = file.read_bytes()

    def make(dice):
        return damaged(dice, original) if dice.random() < 0.3 else changed(dice, json.loads(original))

    assert survives(random.Random(0), file, make, lambda: run_and_check(folder), 200) == {"used", "refused"}


def test_scene_files_changed_at_random(tmp_path):
    folder, file = capture_of(tmp_path), tmp_path / "scene.json"
    applied = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    original = {"centre": [5.0, 2.0, 3.0], "half": 4.0, "background": "none", "applied": applied}

    def make(dice):
        return damaged(dice, json.dumps(original).encode()) if dice.random() < 0.3 else changed(dice, original)

    use = Scene(folder, frame=file).load
    assert survives(random.Random(0), file, make, use, 150) == {"used", "refused"}


def test_llff_changed_at_random(tmp_path):
    file = write_llff(tmp_path) / "poses_bounds.npy"
    rows, original = np.load(file), file.read_bytes()

    def make(dice):
        if dice.random() < 0.5:
            return damaged(dice, original)
        values, buffer = rows.copy(), io.BytesIO()
        values[dice.randrange(3), dice.randrange(17)] = dice.choice([0, -1, math.nan, math.inf, 1e300, 1e-300, 0.5, 7])
        with np.errstate(over="ignore"):
            np.save(buffer, values.astype(dice.choice(["f8", "f8", "f4", "c16", "U9", "V8"])))
        return buffer.getvalue()

    assert survives(random.Random(0), file, make, lambda: run_and_check(tmp_path), 150) == {"used", "refused"}


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "frames", "rigs"])
@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
def test_colmap_models_changed_at_random(tmp_path, name, text):
    write_model(model_of(rigs=1, points=12), tmp_path / "sparse", tmp_path / "images", text)
    file = tmp_path / "sparse" / f"{name}.{'txt' if text else 'bin'}"
    original = file.read_bytes()
    use = lambda: run_and_check(tmp_path)  # noqa: E731
    assert "refused" in survives(random.Random(0), file, lambda dice: damaged(dice, original), use, 40)


def test_meganerf_changed_at_random(tmp_path):
    file = write_meganerf(tmp_path) / "train" / "metadata" / "000002.pt"
    original = file.read_bytes()
    use = lambda: Scene(tmp_path).load()  # noqa: E731
    assert "refused" in survives(random.Random(0), file, lambda dice: damaged(dice, original), use, 60)
