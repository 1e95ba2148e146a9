"""The report: what it says, what it leaves out, and that nothing from disk reaches the page unescaped."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from fedfields.errors import UserError
from fedfields.report import pictures, write_report
from fedfields.report.figures import swatch
from fedfields.report.runs import read_run
from fedfields.report.text import db, duration, size
from fedfields.report.words import headline_steps

HOSTILE = "<script>alert('x')</script>\"&\u202e$a^b$@0@"
LEAK = {"direct": 13.8, "affine": 18.6, "worst": 18.6}
FLOOR = {"constant": 14.7, "affine_public": 15.1}
PSNR = {"held_out": {"0": 11.2, "8": 24.9, "32": 30.4}, "unseen": {"0": 11.1, "8": 24.3, "32": 29.9, "512": 40.2}}


def round_of(index, **more):
    return {"round": index, "loss": 0.05 / index, "update_norm": 1.0 + index, "cohort": ["a", "b"], "dropped": [],
            "bytes_up": 1000, "bytes_down": 2000, "seconds": 1.5, **more}  # fmt: skip


def evaluated(index, **more):
    return round_of(index, psnr_p=13.2 + index, psnr=PSNR, leak=LEAK, floor=FLOOR, **more)


def summary_of(**more):
    return {"rounds": 3, "seconds": 4.5, "clients": {"train": 20, "unseen": 10, "per_round": 5}, "dropped": 0,
            "bytes_up": 3000, "bytes_down": 6000, "psnr": PSNR, "ssim": {"unseen": {"8": 0.71}}, "psnr_p": 13.9,
            "leak": LEAK, "floor": FLOOR, "warnings": [], **more}  # fmt: skip


def audit_of(worst=18.9, **more):
    attacks = {
        "affine": {"psnr": 17.5, "oracle": True, "level": "cheap", "note": "three channels"},
        "gradient_matching": {
            "psnr": worst, "per_client": {"a": worst - 2, "b": worst + 2}, "oracle": False, "level": "full",
        },
    }  # fmt: skip
    return {"attacks": attacks, "worst": {"attack": "gradient_matching", "psnr": worst}, "floor": FLOOR, **more}


def make(folder, name="maml", preset="maml", rounds=None, summary=None, audit=None, experiment=None):
    folder.mkdir(parents=True)
    settings = experiment or {"rounds": 3, "objective": {"kind": "Maml", "inner": {"steps": 8}}}
    manifest = {"preset": preset, "name": name, "version": "0.1.0", "seed": 0, "experiment": settings}
    (folder / "experiment.json").write_text(json.dumps(manifest))
    lines = rounds if rounds is not None else [evaluated(1), round_of(2), evaluated(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file, value in (("summary.json", summary), ("audit.json", audit)):
        if value is not None:
            (folder / file).write_text(json.dumps(value))
    return folder


def make_sheet(run, *cells, title="What the owner reconstructs", client="cat_1"):
    columns = [f"column {index}" for index in range(len(cells))]
    sheet = {"title": title, "columns": columns, "rows": [{"client": client, "cells": list(cells)}]}
    (run / "images").mkdir(exist_ok=True)
    (run / "images" / "sheets.json").write_text(json.dumps({"owner": sheet}))


def page_of(tmp_path, *runs):
    return write_report(list(runs), tmp_path / "out" / "report.html").read_text()


def text_of(page):
    """What a reader sees: no style, no tags."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body))


class Elements(HTMLParser):
    """Collects tags, attributes and ids; every opened tag must be closed in order."""

    VOID = frozenset(("meta", "img", "br", "path", "use", "rect"))

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check_page(page):
    """What holds for every page, whatever the runs say."""
    elements = Elements(page)
    assert not elements.open
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(elements.tags)
    for name, value in elements.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert re.match(r"#|data:image/(png|gif|jpeg|webp);base64,", value)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    ids = [value for name, value in elements.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value[1:] for name, value in elements.attributes if name == "href" and value.startswith("#")]
    links += re.findall(r"url\(#([^)]+)\)", page)
    assert set(links) <= set(ids)
    return elements


# What it says.


def test_verdict_gives_quality_worst_attack_and_distance_to_the_floor(tmp_path):
    run = make(tmp_path / "run", summary=summary_of(), audit=audit_of(18.9))
    text = text_of(page_of(tmp_path, run))
    assert (
        "After 8 steps an unseen owner gets 24.3 dB on average; the worst attack tried on one upload "
        "(gradient matching) recovers 18.9 dB on average, 4.2 dB above the floor (best constant image, 14.7 dB)."
    ) in text


def test_of_summed_runs_it_says_that_the_sum_was_attacked(tmp_path):
    experiment = {"rounds": 3, "privacy": [{"type": "Noise"}, {"type": "SecAgg", "minimum": 3}]}
    audit = audit_of(18.9, round=1, summed=5)
    summed = make(tmp_path / "summed", "summed", summary=summary_of(), audit=audit, experiment=experiment)
    text = text_of(page_of(tmp_path, summed))
    assert "the worst attack tried on the secure sum of a round (gradient matching) recovers 18.9 dB" in text
    assert "Reports were summed in secret" in text and "the sum of 5 uploads of round 1" in text
    assert "Attacks are on the secure sum of a round" in text and "tried on one upload" not in text
    plain = make(tmp_path / "plain", "plain", summary=summary_of(), audit=audit_of(20.9))
    text = text_of(page_of(tmp_path, summed, plain))
    assert "the attacks tried on the secure sum of a round or one upload recover least from summed" in text


def test_faces_that_attacks_recover_are_told(tmp_path):
    faces = {
        "truth": {"per_hundred": 100.0},
        "affine": {"per_hundred": 0.0},
        "gradient_matching": {"per_hundred": 50.0},
    }
    text = text_of(page_of(tmp_path, make(tmp_path / "a", summary=summary_of(), audit=audit_of(faces=faces))))
    assert "pictures and 50 in a hundred recovered by one attack (gradient matching)" in text
    faces["gradient_matching"] = {"per_hundred": 0.0}
    text = text_of(page_of(tmp_path, make(tmp_path / "b", summary=summary_of(), audit=audit_of(faces=faces))))
    assert "and none in what the attacks recovered of them" in text


def test_page_is_well_formed_and_self_contained(tmp_path):
    one = make(tmp_path / "one", summary=summary_of(), audit=audit_of())
    two = make(tmp_path / "two", name="two", summary=summary_of(), audit=audit_of(16.0))
    check_page(page_of(tmp_path, one))
    page = page_of(tmp_path, one, two)
    assert check_page(page).tags.count("svg") > 6
    assert 'name="viewport"' in page and "prefers-color-scheme:dark" in page


def test_numbers_of_the_run_appear(tmp_path):
    run = make(tmp_path / "run", summary=summary_of(), audit=audit_of())
    text = text_of(page_of(tmp_path, run))
    for figure in (
        "29.9 dB",
        "SSIM 0.71",
        "13.9 dB",
        "3.0 kB",
        "6.0 kB",
        "4.5 s",
        "15.1",
        "20.9",
        "20 training owners",
    ):
        assert figure in text
    assert "objective.inner.steps8" in text.replace(" ", "")


def test_oracle_attacks_are_marked_as_upper_bounds(tmp_path):
    audit = audit_of(16.0) | {"worst": {"attack": "affine", "psnr": 17.5}}
    text = text_of(page_of(tmp_path, make(tmp_path / "run", summary=summary_of(), audit=audit)))
    assert "(affine fit of the render, an upper bound) recovers 17.5 dB" in text
    assert "upper bound · quick" in text and "realisable · full" in text


def test_low_psnr_p_is_never_called_private(tmp_path):
    run = make(tmp_path / "run", summary=summary_of(psnr_p=5.7), audit=audit_of(27.9))
    text = text_of(page_of(tmp_path, run))
    assert "A low PSNR_p alone says nothing about privacy." in text and "5.7 dB against 27.9 dB" in text


def test_psnr_p_alone_is_no_measurement_of_privacy(tmp_path):
    rounds = [round_of(1, psnr=PSNR, psnr_p=5.0)]
    text = text_of(page_of(tmp_path, make(tmp_path / "run", rounds=rounds)))
    assert "has not been measured (PSNR_p, 5.0 dB, is one naive attack and cannot say)" in text
    assert "private" not in text


def test_quick_attacks_alone_are_said_to_be_quick(tmp_path):
    text = text_of(page_of(tmp_path, make(tmp_path / "run", summary=summary_of())))
    assert "recovers 18.6 dB on average, 3.9 dB above the floor" in text
    assert "Only quick attacks ran: a stronger one may recover more." in text


def test_an_attack_at_the_floor_is_no_proof(tmp_path):
    text = text_of(page_of(tmp_path, make(tmp_path / "run", summary=summary_of(), audit=audit_of(14.5))))
    assert "0.2 dB below the floor" in text and "no proof" in text


def test_a_round_that_revealed_more_is_named(tmp_path):
    rounds = [evaluated(1) | {"leak": {"worst": 26.8}}, evaluated(2)]
    text = text_of(page_of(tmp_path, make(tmp_path / "run", rounds=rounds, summary=summary_of())))
    assert "in round 1 it was 26.8 dB" in text


def test_comparison_names_first_and_last_of_runs_measured_alike(tmp_path):
    good = make(tmp_path / "a", name="noised", summary=summary_of(), audit=audit_of(15.0))
    sharp = {"unseen": {"8": 28.0}}
    bad = make(tmp_path / "b", name="reptile", rounds=[], summary=summary_of(psnr=sharp), audit=audit_of(26.8))
    text = text_of(page_of(tmp_path, good, bad))
    assert "After 8 steps the sharpest is reptile (28.0 dB)" in text.replace("up to ", "")
    assert "recover least from noised (+0.3 dB over the floor) and most from reptile (+12.1 dB)" in text


def test_no_order_among_runs_attacked_differently(tmp_path):
    audited = make(tmp_path / "a", name="a", summary=summary_of(), audit=audit_of(15.0))
    quick = make(tmp_path / "b", name="b", summary=summary_of())
    text = text_of(page_of(tmp_path, audited, quick))
    assert "recover least" not in text
    assert "Not every run was attacked in the same way" in text


def test_runs_that_lie_close_are_named_together(tmp_path):
    runs = [make(tmp_path / name, name=name, summary=summary_of()) for name in "ab"]
    assert "the sharpest is a or b" in text_of(page_of(tmp_path, *runs))


def test_local_run_is_the_baseline(tmp_path):
    plain = {"unseen": {"0": 6.0, "8": 25.0, "32": 30.0}}
    nothing = {"psnr_p": None, "leak": None, "floor": None, "bytes_up": 0, "bytes_down": 0, "rounds": 0}
    local = make(tmp_path / "l", "local", "local", [], summary_of(psnr=plain, **nothing))
    text = text_of(page_of(tmp_path, local, make(tmp_path / "m", summary=summary_of(), audit=audit_of())))
    assert "After 8 steps from a random initialisation an unseen owner gets 25.0 dB on average. Nothing was" in text
    assert "it is no better than the random initialisation (24.3 dB against 25.0)" in text
    assert "random initialisation" in page_of(tmp_path, local)


def test_run_in_progress_is_built_from_the_rounds(tmp_path):
    run = make(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "loss": 0.0')
    text = text_of(page_of(tmp_path, run))
    assert "3 of 3 rounds so far and no summary yet" in text
    assert "24.3 dB" in text and "3.0 kB" in text
    assert "could not be read" not in text


def test_damaged_lines_are_counted_and_repeated_rounds_replaced(tmp_path):
    run = make(tmp_path / "run", rounds=[])
    lines = [json.dumps(round_of(1)), "garbage", "[1]", json.dumps(round_of(1, loss=9.0)), json.dumps(round_of(2))]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = read_run(run)
    assert [entry["loss"] for entry in found.rounds] == [9.0, 0.025]
    assert "2 lines of metrics.jsonl" in text_of(page_of(tmp_path, run))


def test_divergence_dropped_owners_and_warnings_are_told(tmp_path):
    drop = {"client": "cat_7", "reason": "update was not finite"}
    rounds = [round_of(1), round_of(2, loss=None, dropped=[drop]), round_of(3, loss=None, dropped=[drop])]
    run = make(tmp_path / "run", rounds=rounds, summary=summary_of(warnings=["beware of the dog"]))
    text = text_of(page_of(tmp_path, run))
    assert "stopped being a number in round 2" in text
    assert "2 updates dropped" in text and "cat_7" in text and "2, 3" in text
    assert "beware of the dog" in text


def test_settings_that_differ_stand_apart(tmp_path):
    one = make(tmp_path / "a", name="a", experiment={"privacy": {"noise": 1.0}, "rounds": 3})
    two = make(tmp_path / "b", name="b", experiment={"privacy": {"noise": 10.0}, "rounds": 3})
    text = text_of(page_of(tmp_path, one, two))
    assert "What differs" in text and "All 2 settings" in text


def test_runs_of_one_name_get_labels_of_their_own(tmp_path):
    runs = [make(tmp_path / part / "run", name="same", summary=summary_of()) for part in "ab"]
    text = text_of(page_of(tmp_path, *runs))
    assert "same · run" in text and "same · run (2)" in text


def test_two_calls_give_the_same_bytes(tmp_path):
    run = make(tmp_path / "run", summary=summary_of(), audit=audit_of())
    other = make(tmp_path / "other", name="other", summary=summary_of(), audit=audit_of(16.0))
    assert page_of(tmp_path, run, other) == page_of(tmp_path, run, other)


# What it must not do.


def test_hostile_text_is_escaped_everywhere(tmp_path):
    drops = [{"client": HOSTILE, "reason": HOSTILE}]
    rounds = [evaluated(1, dropped=drops, **{HOSTILE: 1.0}), evaluated(2, dropped=drops, **{HOSTILE: 2.0})]
    audit = audit_of() | {"worst": {"attack": HOSTILE, "psnr": 20.0}}
    audit["attacks"][HOSTILE] = {"psnr": 20.0, "oracle": HOSTILE, "level": HOSTILE, "note": HOSTILE}
    summary = summary_of(warnings=[HOSTILE, {"a": HOSTILE}])
    experiment = {HOSTILE: HOSTILE, "deep": {"list": [HOSTILE]}}
    runs = [make(tmp_path / name, HOSTILE, HOSTILE, rounds, summary, audit, experiment) for name in "ab"]
    for run in runs:
        Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
        make_sheet(run, {"file": HOSTILE, "label": HOSTILE}, None, title=HOSTILE, client=HOSTILE)
        Image.new("RGB", (4, 4)).save(run / "images" / "good.png")
    for page in (page_of(tmp_path, runs[0]), page_of(tmp_path, *runs)):
        check_page(page)
        assert "<script" not in page and "\u202e" not in page
        assert "&lt;script&gt;" in page and "@0@" in page


def test_lone_surrogates_can_be_written(tmp_path):
    run = make(tmp_path / "run", name="\ud800name", summary=summary_of(warnings=["\udfff"]))
    assert "name" in page_of(tmp_path, run)


@pytest.mark.parametrize(
    "key", ["psnr", "ssim", "psnr_p", "leak", "floor", "clients", "rounds", "warnings", "bytes_up"]
)
@pytest.mark.parametrize("value", [None, "text", [], {}, 0, {"unseen": None}, {"unseen": {"x": 1, "8": None}}])
def test_missing_or_strange_values_do_not_stop_the_page(tmp_path, key, value):
    summary = summary_of(**{key: value})
    rounds = [round_of(1, **{key: value}), evaluated(2) | {key: value}]
    run = make(tmp_path / "run", rounds=rounds, summary=summary, audit={"attacks": value, "floor": value})
    check_page(page_of(tmp_path, run))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308, -1e59, 10**400, 1e-300, 0])
def test_numbers_that_cannot_be_drawn_do_not_stop_the_page(tmp_path, number):
    psnr = {"unseen": {"0": number, "8": number, "32": 20.0}}
    rounds = [evaluated(1, gamma=number), evaluated(2, gamma=1.0) | {"loss": number, "psnr_p": number, "psnr": psnr}]
    rounds[0]["leak"] = {"worst": number, "direct": number}
    audit = audit_of(number, rounds={"1": {"worst": number}, "x": {"worst": 3}, "2": 7})
    runs = [make(tmp_path / name, name, rounds=rounds, summary=summary_of(psnr=psnr), audit=audit) for name in "ab"]
    check_page(page_of(tmp_path, runs[0]))
    check_page(page_of(tmp_path, *runs))


def test_a_run_that_has_just_started(tmp_path):
    run = make(tmp_path / "run", rounds=[])
    (run / "metrics.jsonl").unlink()
    page = page_of(tmp_path, run)
    check_page(page)
    assert "No adapted picture has been measured yet." in page and "0 of 3 rounds" in text_of(page)


def test_many_runs_are_told_apart(tmp_path):
    runs = [make(tmp_path / f"r{index}", f"run-{index}", summary=summary_of(), audit=audit_of(15 + index / 9))
            for index in range(9)]  # fmt: skip
    assert len({swatch(look) for look in range(43)}) == 43
    check_page(page_of(tmp_path, *runs))


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = make(tmp_path / "broken")
    (broken / "summary.json").write_text("[]")
    deep = make(tmp_path / "deep")
    (deep / "audit.json").write_text('{"attacks": ' + "[" * 100_000 + "]" * 100_000 + "}")
    for runs in ([], [tmp_path / "empty"], [tmp_path / "none"], [broken], [deep]):
        with pytest.raises(UserError) as caught:
            write_report(runs, tmp_path / "report.html")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="cannot write"):
        write_report([make(tmp_path / "run")], tmp_path / "empty")


def test_report_does_not_need_torch():
    code = "import sys, fedfields.report; assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Pictures.


def test_pictures_are_embedded_and_labelled(tmp_path):
    run = make(tmp_path / "run", summary=summary_of())
    (run / "images").mkdir()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(run / "images" / "truth.png")
    frames[0].save(run / "images" / "clip.gif", save_all=True, append_images=frames[1:])
    make_sheet(run, {"file": "truth.png", "label": ""}, {"file": "clip.gif", "label": "24.1 dB"}, None)
    page = page_of(tmp_path, run)
    check_page(page)
    assert page.count("data:image/png;base64,") == 1 and page.count("data:image/gif;base64,") == 1
    assert "24.1 dB" in page and "column 2" in page and 'class="px"' in page


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{absolute}", "link.png", "\0", "", "."])
def test_a_picture_outside_the_images_folder_is_refused(tmp_path, name):
    run = make(tmp_path / "run", summary=summary_of())
    secret = run / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    make_sheet(run, {"file": name.format(absolute=secret), "label": "24.1 dB"})
    (run / "images" / "link.png").symlink_to(secret)
    page = page_of(tmp_path, run)
    assert "data:image" not in page and ("not shown" in page or not name)


def test_an_images_folder_that_points_elsewhere_is_refused(tmp_path):
    other, run = (make(tmp_path / name, summary=summary_of()) for name in ("other", "run"))
    make_sheet(other, {"file": "a.png", "label": ""})
    Image.new("RGB", (4, 4)).save(other / "images" / "a.png")
    (run / "images").symlink_to(other / "images")
    assert "data:image" in page_of(tmp_path, other)
    assert "data:image" not in page_of(tmp_path, run)


def test_damaged_huge_and_foreign_pictures_are_skipped_with_a_note(tmp_path, monkeypatch):
    run = make(tmp_path / "run", summary=summary_of())
    images = run / "images"
    images.mkdir()
    Image.effect_noise((64, 64), 50).save(images / "whole.png")
    whole = (images / "whole.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("<svg onload='alert(1)'/>")
    (images / "large.png").write_bytes(whole + bytes(9000))
    monkeypatch.setattr(pictures, "IMAGE_BYTES", len(whole) + 100)
    names = ("cut.png", "text.png", "large.png", "gone.png", "whole.png")
    make_sheet(run, *({"file": name, "label": "x"} for name in names))
    page = page_of(tmp_path, run)
    assert page.count("damaged picture") == 2 and "file too large" in page and "file missing" in page
    assert page.count("data:image") == 1
    monkeypatch.setattr(pictures, "IMAGE_PIXELS", 100)
    assert "too many pixels" in page_of(tmp_path, run)
    monkeypatch.setattr(pictures, "PAGE_BYTES", 10)
    assert "the page is full" in page_of(tmp_path, run)


@pytest.mark.parametrize("text", ["{", "[]", '{"owner": 3}', '{"owner": {"rows": [1, {"cells": 2}], "columns": {}}}'])
def test_damaged_sheets_do_not_stop_the_page(tmp_path, text):
    run = make(tmp_path / "run", summary=summary_of())
    (run / "images").mkdir()
    (run / "images" / "sheets.json").write_text(text)
    check_page(page_of(tmp_path, run))


# Small parts.


def test_units():
    assert [db(value) for value in (None, 0.04, -0.04, -3.21)] == ["–", "0.0", "0.0", "−3.2"]
    assert db(2.0, sign=True) == "+2.0"
    sizes = [size(value) for value in (None, 0, 999, 1000, 174_000, 17_400_000, 3e12)]
    assert sizes == ["–", "0 B", "999 B", "1.0 kB", "174 kB", "17.4 MB", "3.0 TB"]
    times = [duration(value) for value in (None, 4.12, 195.2, 7260)]
    assert times == ["–", "4.1 s", "3 min 15 s", "2 h 1 min"]


def test_headline_steps_fall_back_to_what_was_measured(tmp_path):
    for index, (steps, wanted) in enumerate(
        [(("0", "8", "32", "512"), (8, 32)), (("0", "4", "16"), (16, None)), (("0",), (0, None)), ((), (None, None))]
    ):
        psnr = {"unseen": dict.fromkeys(steps, 20.0)}
        run = read_run(make(tmp_path / str(index), rounds=[], summary=summary_of(psnr=psnr)))
        assert headline_steps([run]) == wanted


def test_names_in_a_chart_do_not_touch(tmp_path):
    runs = [make(tmp_path / f"r{index}", f"run-{index}", summary=summary_of(), audit=audit_of()) for index in range(5)]
    labels = re.findall(r'y="([\d.]+)"[^>]*>run-\d</text>', page_of(tmp_path, *runs))
    heights = sorted(map(float, labels))
    assert len(heights) == 5 and all(high - low > 11 for low, high in pairwise(heights))


# Places.


def views_of(**psnr):
    return {name: {"psnr": value, "ssim": value / 40} for name, value in psnr.items()}


def place(folder, name="garden", owners=1, views=None, mean=24.0):
    """Two evaluations on two photographs and, at the end, one on all four."""
    few = [views_of(a=10.0, c=20.0), views_of(a=12.0, c=22.0)]
    last = views or views_of(a=14.0, b=31.0, c=24.0, d=27.0)
    rounds = [round_of(index, views=one) for index, one in enumerate([few[0], few[1], last], 1)]
    people = {"train": owners, "unseen": 0, "per_round": owners}
    nothing = {"psnr_p": None, "leak": None, "floor": None, "ssim": {"held_out": {"0": 0.6}}}
    summary = summary_of(psnr={"held_out": {"0": mean}}, clients=people, views=last, **nothing)
    return make(folder, name, "nerf", rounds, summary)


def test_a_place_is_judged_on_photographs_and_not_after_steps(tmp_path):
    page = page_of(tmp_path, place(tmp_path / "run"))
    check_page(page)
    text = text_of(page)
    assert "On 4 photographs that nobody trained on the field reaches 24.0 dB after 3 rounds and 4.5 s" in text
    assert "There is one owner, so this is training in one place." in text
    assert "mean of 4 test photographsSSIM 0.600" in text and "Worst photograph14.0 dBa" in text
    for word in ("step", "held-out", "Floor", "PSNR_p", "Worst attack", "LPIPS"):
        assert word not in text.split("Configuration")[0], word
    federated = text_of(page_of(tmp_path, place(tmp_path / "four", owners=4)))
    assert "the field of 4 owners reaches" in federated
    assert "What an upload reveals of the photographs has not been measured." in federated


def test_photographs_are_listed_with_the_worst_first(tmp_path):
    run = place(tmp_path / "run")
    text = text_of(page_of(tmp_path, run)).split("Test photographs")[1]
    assert re.search(r"a14\.00\.350 c24\.00\.600 d27\.00\.675 b31\.00\.775", text)
    bars = re.findall(r'class="bar" style="width:(\d+)%', page_of(tmp_path, run))
    assert list(map(int, bars)) == [45, 77, 87, 100]  # Of 31 dB.
    views = {f"p{i}": {"psnr": 40.0 - i, "ssim": 0.5, "lpips": 0.25} for i in range(14)}
    page = page_of(tmp_path, place(tmp_path / "many", views=views))
    check_page(page)
    assert "The other 2 photographs" in page and "LPIPS is a distance: lower is better." in page
    assert text_of(page).index("p1327.00.5000.250") < text_of(page).index("p040.00.5000.250")


def test_curves_of_a_place_are_over_the_photographs_rendered_each_time(tmp_path):
    """The last evaluation is on more photographs: their mean cannot be compared with the earlier ones."""
    run = read_run(place(tmp_path / "run"))
    assert run.same_views == [(1, 1.5, 15.0), (2, 3.0, 17.0), (3, 4.5, 19.0)]
    text = text_of(page_of(tmp_path, run.folder))
    assert "PSNR over rounds" in text and "PSNR over training time" in text
    assert text.count("Mean over the 2 photographs rendered in every evaluation") == 2


def test_places_side_by_side(tmp_path):
    figures = views_of(a=13.0, b=20.0, c=22.0, d=25.0)
    runs = [place(tmp_path / "a", "alone"), place(tmp_path / "b", "shared", 4, figures, 20.0)]
    page = page_of(tmp_path, *runs)
    check_page(page)
    text = text_of(page)
    assert "On test photographs the sharpest is alone (up to 24.0 dB)." in text
    assert "alone24.00.60014.0413" in text and "shared20.00.50013.0443" in text
    mixed = page_of(tmp_path, runs[0], make(tmp_path / "m", summary=summary_of()))
    check_page(mixed)
    assert "After 8 steps an unseen owner" in mixed and "Test photographs" in mixed


@pytest.mark.parametrize("views", [7, [1], {"a": None}, {"a": {"psnr": "x"}}, {HOSTILE: {"psnr": -5.0, "ssim": 1e99}}])
def test_strange_figures_of_photographs_do_not_stop_the_page(tmp_path, views):
    check_page(page_of(tmp_path, place(tmp_path / "run", "strange", views=views)))
    check_page(page_of(tmp_path, *(place(tmp_path / name, name, views=views) for name in "xy")))


def test_a_run_between_machines_shows_rounds_failures_and_bytes_and_no_quality(tmp_path):
    """The server has no picture: nothing is said of quality or attacks but why there is none."""
    lost = [{"client": "bert <b>", "reason": "it has gone away"}]
    blank = {"psnr": {}, "ssim": {}}
    rounds = [round_of(index, epsilon=0.1 * index, **blank, **({"dropped": lost} if index == 2 else {}))
              for index in range(1, 16)]  # fmt: skip
    nothing = dict.fromkeys(("psnr_p", "leak", "floor"))
    make(tmp_path / "run", rounds=rounds, summary=summary_of(rounds=15, dropped=1, **blank, **nothing))
    simulated = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    assert "The rounds" not in simulated and "their own machines" not in simulated
    path = tmp_path / "run" / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"served": True}))
    text = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    assert "20 owners trained on their own machines, and in 15 rounds 1 update did not come" in text
    assert "<dt>Failures</dt><dd><strong>1</strong><small>of 30 updates asked for" in text
    assert "bert &lt;b&gt;: it has gone away" in text and "<b>" not in text
    body = text.split('id="course"')[1].split("</section>")[0]
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', body)
    assert [int(number) for number, _ in rows] == [*range(4, 16), 1, 2, 3], "the last first, the others folded away"
    cells = {int(number): re.findall(r"<td[^>]*>(.*?)</td>", row) for number, row in rows}
    assert cells[1] == ["2 of 2", "1.0 kB", "2.0 kB", "1.5 s", "0.1", ""]
    assert cells[2] == ["1 of 2", "1.0 kB", "2.0 kB", "1.5 s", "0.2", "bert &lt;b&gt;"]
    assert "PSNR" not in text and "No adapted picture" not in text
