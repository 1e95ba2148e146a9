"""What owners are told before a run."""

import io

from rich.console import Console

from fedfields.scenes.check import check
from fedfields.scenes.data import Data
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
