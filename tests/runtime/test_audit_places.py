"""The audit of a run on a place: what it keeps, what is attacked, and what files, terminal and page say of it."""

import json

import pytest

from fedfields.audit import AuditSettings, load_observations, people
from fedfields.audit.content import content_of
from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.fields import LowRank
from fedfields.metrics import psnr
from fedfields.runtime.audit_run import audit_run
from fedfields.runtime.places import Viewer
from fedfields.runtime.run import run, set_up
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import photo_rays
from tests.runtime.test_monument import experiment, summed  # noqa: F401
from tests.runtime.test_places import capture  # noqa: F401
from tests.runtime.test_places import experiment as of_ball

ALL = AuditSettings(rounds=3, clients=20)


def test_the_first_and_the_last_round_are_kept(summed):  # noqa: F811
    kept = sorted(file.name for file in (summed / "observations").iterdir())
    assert kept == ["round-000001.safetensors", "round-000003.safetensors"]
    (seen,) = load_observations(summed / "observations" / kept[-1])
    assert seen.clients == ("client-0", "client-1", "client-2") and seen.round == 3


def test_figures_are_those_of_what_the_server_has(summed):  # noqa: F811
    """Floor, direct render and what they show of the people, computed here once more; every owner, every round."""
    content, setup = audit_run(summed, ALL), set_up(experiment())
    (seen,) = load_observations(summed / "observations" / f"round-{content['round']:06d}.safetensors")
    public, upload = (Viewer(setup.context.loss, weights, 0) for weights in (seen.start, seen.upload))
    shots = [max(mine, key=lambda one: int(one.mask.sum())) for mine in setup.federation.occluded]
    for name, see, figures in (
        ("public", public, None),
        ("direct", upload, content["attacks"]["direct"]["per_client"]),
    ):
        values = []
        for i, shot in enumerate(shots):
            truth = shot.photo.colours.float() / 255
            shown = see.colours(photo_rays(shot.photo.pose, shot.photo.camera)).reshape(truth.shape)
            values.append(psnr(shown, truth))
            assert figures is None or figures[f"client-{i}"] == pytest.approx(values[-1], abs=0.01)
        mean = sum(values) / 3
        assert (content["floor"] | {"direct": content["attacks"]["direct"]["psnr"]})[name] == pytest.approx(
            mean, abs=0.01
        )
        leaks = [content_of(see.colours, [shot]).leak for shot in shots]
        found = content["people"]["public"] if name == "public" else content["people"]["attacks"][name]
        assert found["leak"] == pytest.approx(sum(leaks) / 3, abs=0.01) and found["owners"] == 3
    assert set(content["rounds"]) == {"1", "3"} and content["summed"] == 3
    for one in content["rounds"].values():
        assert set(one["per_client"]) == {"client-0", "client-1", "client-2"}
        assert all(one["per_client"][owner] >= one["attacks"]["direct"] - 5 for owner in one["per_client"])
        assert one["people"]["worst"]["psnr"] == max(each["psnr"] for each in one["people"]["attacks"].values())


def test_terminal_pictures_and_page_tell_of_it(summed, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(summed), "--clients", "2"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for words in ("floor: public", "people leak", "Not tried: inverting local training", "the secure sum of 3 uploads"):
        assert words in said
    assert "--summed" not in said
    sheet = json.loads((summed / "images" / "sheets.json").read_text())["server"]
    assert sheet["columns"][:5] == ["truth", "public", "direct", "scaled", "picture"] and len(sheet["rows"]) == 2
    page = (summed / "report.html").read_text()
    for words in ("render of the public model", "extrapolated change of the render", "Not tried", "People leak"):
        assert words in page, words
    assert "has not been measured" not in page


@pytest.mark.parametrize("installed, words", [(False, 'pip install "fedfields[people]"'), (True, "finds none")])
def test_where_no_face_can_be_looked_for_a_line_says_so(summed, monkeypatch, installed, words):  # noqa: F811
    """Figures of capsules and spheres have no face for a detector."""
    if installed and not people.available():
        pytest.skip("needs fedfields[people]")
    monkeypatch.setattr(people, "available", lambda: installed)
    content = audit_run(summed, AuditSettings(rounds=1, clients=1))
    assert words in content["notes"][-1] and "faces" not in content


def test_uploads_of_single_owners_and_frozen_factors(capture, tmp_path):  # noqa: F811
    """Low-rank weights: the server knows the shared factors. Another owner comes first in the second round."""
    data = Scene(capture, clients=3, partition="photographer", public=4)
    one = of_ball(capture, data=data, warm_up=10, cohort=3, rounds=2, evaluate_every=1, compression=LowRank())
    run(one, tmp_path / "run")
    content = audit_run(tmp_path / "run", AuditSettings(clients=1))
    assert content["summed"] == 1 and "people" not in content
    assert [list(each["per_client"]) for each in content["rounds"].values()] == [["client-0"], ["client-1"]]
    setup = set_up(one).begin(tmp_path / "run", lambda what, done, total: None)
    seen = load_observations(tmp_path / "run" / "observations" / "round-000001.safetensors")
    photo = setup.federation.clients[0].train[0].support.photos[0]
    see = Viewer(setup.context.loss, seen[0].upload, 0)
    shown, truth = see.colours(photo_rays(photo.pose, photo.camera)), photo.colours.reshape(-1, 3).float() / 255
    assert content["rounds"]["1"]["attacks"]["direct"] == pytest.approx(psnr(shown, truth), abs=0.01)


def test_training_alone_leaves_nothing_to_attack(capture, tmp_path):  # noqa: F811
    run(of_ball(capture, rounds=1), tmp_path / "run")
    assert not (tmp_path / "run" / "observations").exists()
    with pytest.raises(UserError, match="on a place with one owner"):
        audit_run(tmp_path / "run", ALL)
