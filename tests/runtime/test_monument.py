"""Runs on the built-in monument: out of the box, and with what the server sees of the people in front."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fedfields import demo
from fedfields.audit.content import content_of, over_owners
from fedfields.cli import main
from fedfields.config import DATA, choose, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import own_leaves
from fedfields.fields import HashGrid, Personal
from fedfields.objectives import Fit
from fedfields.privacy import SecAgg
from fedfields.rendering.marching import Marching
from fedfields.report import write_report
from fedfields.runtime.checkpoint import load, load_weights
from fedfields.runtime.places import ORBIT_FRAMES, Viewer
from fedfields.runtime.remote import set_up_remote
from fedfields.runtime.run import run, set_up
from fedfields.scenes.monument import Monument
from fedfields.scenes.scene import Scene
from fedfields.strategies import FedAvg
from tests.scenes.ball import write_capture

GRID = HashGrid(levels=4, log2_rows=9, coarsest=4, finest=24, width=16, latent=7)


def experiment(**changes):
    base = preset("decentnerf")
    settings = {
        "data": Monument(users=3, views=2, size=20, tests=2),
        "field": GRID,
        "rays": Marching(steps=48, samples=4096, cells=16, refresh=10),
        "objective": Fit(batch=128),
        "local": dataclasses.replace(base.local, steps=6),
        "strategy": FedAvg(),
        "rounds": 3,
        "cohort": 3,
        "evaluate_every": 1,
        "checkpoint_every": 1,
        "workers": 1,
    }
    return dataclasses.replace(base, **(settings | changes))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "summed"
    run(experiment(), folder)
    return folder


def test_of_a_secure_sum_the_server_sees_the_mean_alone(summed):
    """With FedAvg that is the new model; what of it shows people is computed here once more."""
    setup = set_up(experiment())
    see = Viewer(setup.context.loss, load_weights(summed / "model.safetensors"), 0)
    wanted = over_owners([content_of(see.colours, shots) for shots in setup.federation.occluded])
    found = json.loads((summed / "summary.json").read_text())["content"]
    assert found.pop("of") == "sum" and found["owners"] == 3
    # Sums travel as integers: the model is rounded to a step of the encoding.
    assert found == pytest.approx(wanted, abs=0.02)
    assert [sorted(one["content"]) for one in records(summed)] == [sorted([*found, "of"])] * 3


def test_without_secure_sums_it_sees_every_upload(tmp_path):
    """The last upload of each owner, one of whom was not asked in the last round."""
    one = experiment(privacy=(), rounds=2, cohort=2)
    summary = run(one, tmp_path / "r")
    setup, last = set_up(one), load(tmp_path / "r" / "checkpoints").uploads.last
    assert {number for number, _ in last.values()} <= {1, 2} and len(last) >= 2
    contents = []
    for i, (_, weights) in sorted(last.items()):
        see = Viewer(setup.context.loss, weights, 0)
        contents.append(content_of(see.colours, setup.federation.occluded[i]))
    assert summary["content"].pop("of") == "upload"
    assert summary["content"] == pytest.approx(over_owners(contents))


def test_a_resumed_run_reports_the_same(tmp_path):
    """Also of owners who were last asked before it was interrupted."""
    local = dataclasses.replace(preset("decentnerf").local, steps=4, final=1.0)
    one = experiment(privacy=(), cohort=1, rounds=4, local=local, personal=Personal(GRID, after=0.0))
    whole = run(one, tmp_path / "whole")
    run(dataclasses.replace(one, rounds=2), tmp_path / "broken")
    assert run(one, tmp_path / "broken", resume=True)["content"] == whole["content"]
    last = load(tmp_path / "whole" / "checkpoints").uploads.last
    assert min(number for number, _ in last.values()) <= 2 < max(number for number, _ in last.values())


def test_pictures_and_page_tell_of_the_people(summed):
    page = write_report([summed], summed / "report.html").read_text()
    assert "People leak" in page and "Server's work" in page and "People in what the server can render" in page
    assert "for the worst owner" in page and "has not been measured" not in page
    assert "People leak" in write_report([summed, summed], summed / "two.html").read_text()


def test_the_page_begins_with_what_owners_photographed_and_what_became_of_it(summed):
    page = write_report([summed], summed / "report.html").read_text()
    places = [page.index(f'id="{name}"') for name in ("look", "growth", "pictures")]
    assert places == sorted(places) and places[0] < page.index('class="tiles"')
    first, rest = page[places[0] : places[1]], page[places[2] :]
    assert first.count("<img") == 3 * 4 + 1 + 1 and "one upload on its way" in first and "film" not in rest
    assert "http" not in first and "before: a photograph" not in rest


def sheet(folder, row):
    """The cells of one row of the sheet about people, with their pictures ``[H, W, 3]`` in 0 to 255."""
    rows = json.loads((folder / "images" / "sheets.json").read_text())["content"]["rows"]
    cells = next(one["cells"] for one in rows if one["client"] == row)
    return [cell and np.asarray(Image.open(folder / "images" / cell["file"])).astype(float) for cell in cells]


def test_pictures_of_people_are_the_owners_photographs_and_what_is_behind(summed):
    shots = [max(mine, key=lambda one: one.mask.sum()) for mine in set_up(experiment()).federation.occluded]
    for row, wanted in (
        ("before: a photograph", [one.photo.colours for one in shots]),
        ("the truth", [one.clean for one in shots]),
    ):
        for found, colours in zip(sheet(summed, row), wanted, strict=True):
            assert (found == colours.numpy()).all()


def test_a_single_upload_on_its_way_to_a_secure_sum_is_noise(summed):
    """Masked, all integers are equally likely: read as weights, values are uniform over their range."""
    masked = load(summed / "checkpoints").uploads.masked
    assert masked is not None and masked[0] == 0
    for leaf in masked[1].values():
        values = leaf / leaf.abs().max()
        enough = 4 / len(values.flatten()) ** 0.5
        assert abs(values.mean()) < enough and values.std() == pytest.approx(3**-0.5, abs=enough)
    first, *others = sheet(summed, "one upload on its way")
    assert first is not None and others == [None, None]


def test_the_film_goes_around_once(summed):
    with Image.open(summed / "images" / "orbit-x-x.png") as film:
        assert (film.n_frames, film.size) == (ORBIT_FRAMES, (40, 40))


def test_without_secure_sums_no_upload_is_masked(tmp_path):
    run(experiment(privacy=(), rounds=1), tmp_path / "r")
    assert load(tmp_path / "r" / "checkpoints").uploads.masked is None
    rows = json.loads((tmp_path / "r" / "images" / "sheets.json").read_text())["content"]["rows"]
    assert [row["client"] for row in rows][-1] == "the owner's last upload"


def test_the_demonstration_ends_with_the_page_to_open(tmp_path, capsys):
    small = {"one": experiment(rounds=1), "other": experiment(rounds=1, privacy=(), personal=None)}
    assert demo.demo(small, tmp_path) == 0
    last = " ".join(capsys.readouterr().out.split("open this page:")[-1].split())
    assert last.replace(" ", "") == str(tmp_path / "report.html")
    assert "Before, after" in (tmp_path / "report.html").read_text()


def test_the_demonstration_compares_on_the_same_photographs_and_steps():
    ready, plain = demo.place(3).values()
    assert ready.data == plain.data and ready.cohort == plain.cohort == ready.data.users
    assert ready.seed == plain.seed == 3
    assert (ready.rounds, ready.local, ready.field) == (plain.rounds, plain.local, plain.field)
    assert ready.method.sums is not None and plain.method.sums is None and plain.personal is None


def test_the_summary_counts_operations(summed):
    summary = json.loads((summed / "summary.json").read_text())
    weights, entries = summary["parameters"], summary["parameters"] + 1
    assert summary["flops"]["server"] == 3 * (3 * entries + 2 * weights + 2 * entries * 3)
    assert summary["flops"]["clients"] > summary["flops"]["server"]


def test_no_people_no_figures(tmp_path):
    summary = run(
        experiment(data=Monument(users=3, views=2, size=16, tests=1, visitors="none"), rounds=1), tmp_path / "r"
    )
    assert summary["content"] is None and summary["psnr"]["held_out"]["0"] > 0


def test_masks_leave_no_trace_on_disk(summed):
    """What only a simulation knows is in no file but the contact sheet."""
    for file in ("summary.json", "metrics.jsonl", "experiment.json"):
        assert "mask" not in (summed / file).read_text()


def test_places_are_chosen_by_name():
    assert isinstance(preset("decentnerf").data, Monument)
    there = choose(preset("fedavg-ngp"), "data", "monument")
    assert there.data == Monument() and from_json(json.loads(json.dumps(to_json(there)))) == there


def test_baselines_differ_from_decentnerf_in_what_they_say():
    """Data, budget and fields are the same; all steps of all owners together are those of centralised training."""
    whole = preset("decentnerf")
    plain = dataclasses.replace(whole, strategy=whole.strategy.base)
    assert preset("decentnerf-l") == plain and isinstance(plain.strategy, FedAvg)
    assert preset("fednerf-ngp") == dataclasses.replace(plain, privacy=(), personal=None)
    for name, sharing, share in (
        ("nerf-w", "pooled", 20),
        ("nerf-owners", "grouped", 20),
        ("nerf-pooled", "pooled", 20),
        ("nerf-alone", "alone", 1),
    ):
        one = preset(name)
        assert one.data == dataclasses.replace(whole.data, sharing=sharing)
        assert one.rounds * one.cohort * one.local.steps == whole.rounds * share * whole.local.steps
        others = ("data", "rays", "local", "personal", "cohort", "strategy", "privacy")
        same = {key: getattr(whole, key) for key in others}
        assert one.rays == dataclasses.replace(whole.rays, refresh=one.rays.refresh)
        assert dataclasses.replace(one, **same) == whole and one.privacy == () and one.strategy == FedAvg()
        assert (one.personal is None) == (name in ("nerf-pooled", "nerf-alone"))
    assert preset("nerf-owners").personal == dataclasses.replace(whole.personal, after=0.0)
    own = preset("nerf-w").personal
    assert own is not None and own.codes and own.beta
    assert choose(preset("nerf-w"), "data", "capture").data == dataclasses.replace(DATA["capture"], sharing="pooled")


@pytest.mark.parametrize("name, photos", [("nerf-w", 6), ("nerf-owners", 6), ("nerf-pooled", 6), ("nerf-alone", 2)])
def test_one_client_trains_on_what_it_was_given(tmp_path, name, photos):
    """What can be seen of the people is judged in all of its photographs."""
    base, small = preset(name), experiment()
    parts = {key: getattr(small, key) for key in ("field", "rays", "objective", "local", "rounds", "workers")}
    one = dataclasses.replace(base, **parts, data=dataclasses.replace(small.data, sharing=base.data.sharing))
    summary, setup = run(one, tmp_path / "r"), set_up(one)
    assert len(setup.federation.clients) == 1 and len(setup.federation.occluded[0]) == photos
    see = Viewer(setup.context.loss, load_weights(tmp_path / "r" / "model.safetensors"), 0)
    wanted = content_of(see.colours, setup.federation.occluded[0])
    assert summary["content"]["owners"] == 1 and summary["content"]["leak"] == pytest.approx(wanted.leak, abs=1e-6)
    with pytest.raises(UserError, match="there are only 1 clients"):
        run(dataclasses.replace(one, cohort=3, privacy=(SecAgg(),)), tmp_path / "sums")


def test_an_own_part_for_each_owner_is_trained_by_that_owner_s_photographs(tmp_path):
    """One client with the tasks of all owners: every part moves, and codes, which it cannot number, are refused."""
    small = experiment()
    data = dataclasses.replace(small.data, sharing="grouped")
    one = dataclasses.replace(small, data=data, cohort=1, privacy=(), personal=Personal(after=0.0))
    one = dataclasses.replace(one, local=dataclasses.replace(small.local, steps=20))
    run(one, tmp_path / "r")
    own = load(tmp_path / "r" / "checkpoints").memories[0]["own"]
    fresh = own_leaves(set_up(one).context.loss, set_up(one).federation.clients[0], one.seed)
    assert {key: leaf.shape for key, leaf in own.items()} == {key: leaf.shape for key, leaf in fresh.items()}
    assert all(leaf.shape[0] == 3 for leaf in own.values())
    assert all(float((own[key][i] - fresh[key][i]).abs().max()) > 0 for key in own for i in range(3))
    with pytest.raises(UserError, match=r"codes of photographs go with --data\.sharing pooled"):
        run(dataclasses.replace(one, personal=Personal(codes=2)), tmp_path / "codes")


def test_the_command_line_reaches_both(tmp_path, capsys):
    small = ["--rounds", "1", "--cohort", "3", "--local.steps", "2", "--workers", "1", "--no-report"]
    with pytest.raises(SystemExit) as stop:
        main(["run", "decentnerf", "--data", str(tmp_path)])
    assert stop.value.code == 2 and "data:capture --data DIR" in capsys.readouterr().err
    write_capture(tmp_path / "ball")
    line = [
        "run",
        "decentnerf",
        "data:capture",
        "--data",
        str(tmp_path / "ball"),
        "--clients",
        "3",
        "--visitors",
        "heavy",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*line, *small, "--out", str(tmp_path / "one")])
    assert stop.value.code == 0 and "worst" in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / "summary.json").read_text())["content"]["of"] == "sum"
    line = [
        "run",
        "fedavg-ngp",
        "data:monument",
        "--users",
        "3",
        "--views",
        "1",
        "--data.size",
        "16",
        "--data.tests",
        "1",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*line, *small, "--out", str(tmp_path / "two")])
    assert stop.value.code == 0
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["content"]["of"] == "upload"


def test_owners_on_other_machines_have_no_monument():
    with pytest.raises(UserError, match="data:capture"):
        set_up_remote(experiment(), ("a", "b", "c"), None)
    visited = Scene(clients=3, partition="separate", visitors="light")
    with pytest.raises(UserError, match=r"leave out --data\.visitors"):
        set_up_remote(experiment(data=visited), ("a", "b", "c"), None)
    with pytest.raises(UserError, match=r"leave out --data\.sharing pooled"):
        set_up_remote(experiment(data=Scene(clients=3, sharing="pooled")), ("a", "b", "c"), None)
