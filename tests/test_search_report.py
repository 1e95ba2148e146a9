"""The page of a search: what it says of trials, and that nothing from disk reaches it unescaped."""

import json
import math
import re

import pytest

from fedfields.errors import UserError
from fedfields.report import write_report
from fedfields.report.figures import Dot, scatter
from fedfields.runtime.trials import RECORD, Trial, best_of, line_of, read_trial
from tests.test_report import HOSTILE, check_page, make, text_of

SPACE = {"objective.inner.lr": "0.01..1.0", "objective.inner.steps": "1,3"}


def trial(number, state, value, lr, steps="1", **more):
    curve = {} if value is None else {1: 2 * value, 5: value}
    return Trial(number, state, value, dict(zip(SPACE, (lr, steps), strict=True)), curve, 5, 1.5, **more)


TRIALS = [
    trial(0, "complete", 0.5, "0.1"),
    trial(1, "complete", 0.2, "0.98", "3"),
    trial(2, "pruned", 0.9, "0.02", reason="after 1 round worse than the median"),
    trial(3, "failed", None, "1.0", reason="round 2: the client's training diverged"),
    trial(4, "complete", 0.3, "0.3"),
]


def search(folder, lines, space=SPACE):
    make(folder, "mine", "fedmeta-maml", rounds=[])
    path = folder / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"search": {"space": space}}))
    (folder / RECORD).write_text("\n".join(lines))
    return folder


def page_of(folder):
    return write_report([folder], folder / "report.html").read_text()


def test_the_page_names_the_best_trial_and_marks_the_others(tmp_path):
    folder = search(tmp_path / "s", map(line_of, TRIALS))
    best = folder / "trials" / "0001"
    scores = {"accuracy": {"validation": {"0": 0.3, "8": 0.9}}, "loss": {"validation": {"0": 2.0, "8": 0.2}}}
    make(best, "0001", rounds=[], summary={"rounds": 5, "scores": scores})
    page = page_of(folder)
    elements, text = check_page(page), text_of(page)
    assert (
        "Trial 1 leaves validation clients with the smallest loss, 0.2; the first trial came to 0.5. Test clients"
        in text
    )
    assert "inner.lr of the best trial, 0.98, lies at the end of what was searched (0.01 to 1.0)" in text
    assert "Failed, trial 3: round 2: the client&#x27;s training diverged." in text
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', page, re.DOTALL)
    cells = {int(number): re.findall(r"<td[^>]*>(.*?)</td>", row) for number, row in rows}
    assert list(cells) == [1, 4, 0, 2, 3], "the best first"
    assert cells[1] == ["<strong>0.2</strong>", "0.98", "3", "5", "1.5 s", "best"]
    assert cells[2][-1] == "pruned" and cells[3][0] == "–" and "diverged" in cells[3][-1]
    assert elements.tags.count("svg") >= 2 + 2 + 1 and "Accuracy by adaptation step: validation clients" in page
    # Loss by trial: three complete ones, a pruned one, and none for the one that failed.
    first = page.split("Best loss of each trial</h3>")[1].split("</svg>")[0]
    assert first.count("transform=") == 4


def test_a_search_without_a_completed_trial_says_so(tmp_path):
    for name, lines in {"empty": [], "failed": [line_of(TRIALS[3])], "pruned": [line_of(TRIALS[2])]}.items():
        page = page_of(search(tmp_path / name, lines))
        check_page(page)
        assert "No trial has been completed yet." in page


def test_nothing_of_a_record_reaches_the_page_as_it_is(tmp_path):
    strange = TRIALS[0]._replace(values={HOSTILE: HOSTILE, "objective.inner.lr": "1e999"}, reason=HOSTILE)
    lines = [line_of(strange), line_of(TRIALS[3]._replace(reason=HOSTILE)), line_of(TRIALS[1]), "{}", "[", '"x"', "7"]
    page = page_of(search(tmp_path / "s", lines, {HOSTILE: HOSTILE, "objective.inner.lr": "0..1", "x": "1..y"}))
    check_page(page)
    assert "<script>" not in page and "\u202e" not in page
    folder = search(tmp_path / "t", map(line_of, TRIALS), space=[1])
    check_page(page_of(folder))


def test_a_search_has_a_page_of_its_own(tmp_path):
    runs = [search(tmp_path / "s", map(line_of, TRIALS)), make(tmp_path / "run")]
    with pytest.raises(UserError, match="page of its own"):
        write_report(runs, tmp_path / "r.html")


def test_lines_are_read_back_and_what_is_no_trial_is_none():
    odd = TRIALS[2]._replace(curve={1: math.inf, 2: 0.25})
    assert [read_trial(line_of(one)) for one in (*TRIALS, odd)] == [*TRIALS, odd]
    assert best_of(TRIALS) is TRIALS[1] and best_of(TRIALS[2:4]) is None
    good = json.loads(line_of(TRIALS[0]))
    for change in (
        {"state": "won"},
        {"value": None},
        {"value": "NaN"},
        {"value": [1]},
        {"curve": {"a": 1}},
        {"curve": 3},
        {"values": 1},
        {"number": None},
    ):
        assert read_trial(json.dumps(good | change)) is None


def test_a_logarithmic_axis_puts_decades_at_equal_distances():
    svg = scatter("x", [Dot(10.0**i, 1.0 + i, 1) for i in range(3)], "loss", "rate", wide=True)
    places = [float(x) for x in re.findall(r'transform="translate\(([\d.]+) ', svg)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.11) and places[0] < places[1]
    narrow = scatter("x", [Dot(0.02, 1, 1), Dot(0.05, 2, 1)], "loss", "rate", wide=True)
    assert all(f">{tick}<" in narrow for tick in ("0.02", "0.05"))
    chosen = scatter("x", [Dot(1, 1, 1)], "loss", "rate", choices=["a", "b<"])
    assert ">a<" in chosen and ">b&lt;<" in chosen
