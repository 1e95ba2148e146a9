"""What owners are told before a run."""

import io
import json
import shutil

import pytest
from rich.console import Console

from fedfields.cli import main
from fedfields.scenes.check import check, check_place, is_place
from fedfields.scenes.data import Data
from tests.scenes.ball import write_capture
from tests.scenes.test_captures import model_of, write_model
from tests.scenes.test_clips import greys, write_folder
from tests.scenes.test_data import owners, write_pictures
from tests.scenes.test_images import refusal


def report(data, width=200):
    out = io.StringIO()
    problems = check(data, Console(file=out, width=width))
    return problems, out.getvalue()


def line_of(text, name):
    return next(line for line in text.splitlines() if name in line)


def test_all_well(tmp_path):
    problems, text = report(Data(owners(tmp_path, 4, 4), size=8))
    assert problems == 0
    assert "used" in line_of(text, "owner0/0.png")
    assert "8 × 8" in line_of(text, "owner0/0.png")
    assert "one client per sub-folder" in text
    assert "clients: 3; their signals: 9 to train on, 3 held out" in text
    assert "unseen clients: 1; their signals: 4" in text


def test_every_problem_is_counted_and_explained(tmp_path):
    write_pictures(tmp_path, ["a.png", "[red]b[/red].png"])
    (tmp_path / "c.jpg").write_text("dear diary")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    problems, text = report(Data(tmp_path, size=8))
    assert problems == 2
    assert "[red]b[/red].png" in text
    assert "holds no picture that can be read" in line_of(text, "c.jpg")
    assert "mend or remove it" in line_of(text, "gone.png")
    assert "ignored" in line_of(text, "notes.txt")


def test_a_folder_that_no_run_can_use(tmp_path):
    problems, text = report(Data(write_pictures(tmp_path, ["a.png"])))
    assert problems == 1
    assert "a federation needs two" in text
    (tmp_path / "empty").mkdir()
    problems, text = report(Data(tmp_path / "empty"))
    assert problems == 1
    assert "holds no picture or clip" in text


def test_folders_of_frames(tmp_path):
    for name in ("walk", "run"):
        write_folder(tmp_path / name, greys(5))
    problems, text = report(Data(tmp_path, kind="video", size=8, frames=3))
    assert problems == 0
    assert "5 files" in line_of(text, "walk")
    assert "3 × 8 × 8" in line_of(text, "walk")


def test_a_narrow_console_hides_nothing(tmp_path):
    write_pictures(tmp_path, ["a" * 60 + ".png", "b.png"])
    _, text = report(Data(tmp_path), width=60)
    assert text.count("a") >= 60


def test_a_missing_folder_is_refused(tmp_path):
    assert "does not exist" in refusal(report, Data(tmp_path / "none"))


# ---- Places.


def place_report(path):
    out, steps = io.StringIO(), []
    problems = check_place(path, Console(file=out, width=200), lambda *step: steps.append(step))
    return problems, out.getvalue(), steps


def test_a_place_where_all_is_well(tmp_path):
    write_capture(tmp_path)
    assert is_place(Data(tmp_path))
    assert not is_place(Data(tmp_path, kind="image"))
    problems, text, steps = place_report(tmp_path)
    assert problems == 0
    assert "is a capture of a place: Blender's transforms_train.json" in text
    row = line_of(text, "train │").split("│")
    assert [cell.strip() for cell in row] == ["train", "12", "pinhole", "24 × 24", "52°"]
    assert "views: 12 train, 1 val, 3 test" in text
    assert "frame: a cube around (0, 0, 0), half its edge 1.5 world units; background white" in text
    assert "16 pictures; a run can use this" in text
    assert steps == [("decoding", i, 16) for i in range(16)]


def test_points_and_depths_of_a_place(tmp_path):
    write_model(model_of(), tmp_path / "sparse" / "0", tmp_path / "images")
    problems, text, _ = place_report(tmp_path)
    assert problems == 0
    assert "a COLMAP model" in text
    assert "points: 40 of structure from motion" in text
    assert "depth: from " in text
    assert "opencv" in line_of(text, "train │")


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-60])


def test_damaged_pictures_of_a_place(tmp_path, capsys):
    write_capture(tmp_path)
    meta = json.loads((tmp_path / "transforms_val.json").read_text())
    meta["frames"].append(meta["frames"][0] | {"file_path": "val/r_1"})
    (tmp_path / "transforms_val.json").write_text(json.dumps(meta))
    shutil.copy(tmp_path / "val" / "r_0.png", tmp_path / "val" / "r_1.png")
    cut_short(tmp_path / "val" / "r_1.png")
    problems, text, _ = place_report(tmp_path)
    assert problems == 0  # No run opens it.
    assert "r_1.png: cannot be decoded" in text
    cut_short(tmp_path / "train" / "r_3.png")
    (tmp_path / "train" / "r_4.png").unlink()
    problems, text, _ = place_report(tmp_path)
    assert problems == 1
    assert "r_3.png: cannot be decoded" in text
    assert "missing pictures, 1 of 17" in text
    assert "1 problem: no run can use this until they are put right" in text
    with pytest.raises(SystemExit) as stop:
        main(["check", str(tmp_path)])
    assert stop.value.code == 1


def test_places_that_no_run_can_use(tmp_path):
    write_capture(tmp_path)
    (tmp_path / "transforms_train.json").unlink()
    problems, text, _ = place_report(tmp_path)
    assert problems == 1
    assert "has no view to train on" in text
    (tmp_path / "transforms_test.json").write_text(json.dumps({"frames": [{}]}))
    problems, text, _ = place_report(tmp_path)
    assert problems == 1
    assert "frame 0 has no file_path" in text
