"""Attacks on what a server renders of a place, where the answer is known: weights are here the picture itself."""

import math

import pytest
import torch

from fedfields.audit import Observation
from fedfields.audit.places import contents, farthest, readouts, rendered
from fedfields.metrics import psnr
from fedfields.rendering.cameras import Camera
from fedfields.scenes.tour import Tour
from fedfields.scenes.views import Photo, photo_rays
from fedfields.scenes.visitors import Occluded
from fedfields.seeds import generator

CAMERA = Camera("pinhole", 20, 16, 20.0, 20.0, 10.0, 8.0)
PEOPLE = ("direct", "picture", "picture_best", "extrapolation")


@pytest.fixture(scope="module")
def shot():
    """A photograph with a bright and a dark figure in front of a grey place."""
    clean = torch.randint(90, 160, (16, 20, 3), generator=generator(1), dtype=torch.uint8)
    mask = torch.zeros(16, 20, dtype=torch.bool)
    mask[4:12, 3:7] = mask[4:12, 11:15] = True
    image = clean.clone()
    image[4:12, 3:7], image[4:12, 11:15] = 255, 0
    return Occluded(Photo("a", Tour().pose(0.3), CAMERA, image, None), clean, mask)


def colours(values):
    return values.reshape(-1, 3).float() / 255


def looked_at(shot, upload, start=None, owners=1):
    """What the server renders if its weights are the clean place, or ``start``."""
    start = colours(shot.clean) if start is None else start
    names = tuple(f"owner-{i}" for i in range(owners))
    one = Observation(names, 1, {"w": start}, {"w": upload})
    return rendered(lambda weights, rays: weights["w"], one, photo_rays(shot.photo.pose, shot.photo.camera))


def test_an_upload_that_is_what_was_sent_leaks_nothing(shot):
    start = 0.8 * colours(shot.clean)
    seen, truth = looked_at(shot, start, start), colours(shot.photo.colours)
    found = contents(seen, shot)
    assert all(found[name] == pytest.approx(found["public"]) for name in PEOPLE)
    floor = psnr(start, truth)
    for name in PEOPLE:
        assert psnr(readouts(seen, truth)[name].values, truth) == pytest.approx(floor)
    clean = contents(looked_at(shot, colours(shot.clean)), shot)
    assert all(clean[name].leak == pytest.approx(0, abs=1e-6) for name in PEOPLE)
    assert all(clean[name].psnr == pytest.approx(clean[name].floor, abs=1e-4) for name in PEOPLE)


def test_a_field_that_shows_the_photograph_leaks_all(shot):
    truth = colours(shot.photo.colours)
    seen = looked_at(shot, truth)
    found, tried = contents(seen, shot), readouts(seen, truth)
    for name in PEOPLE:
        assert found[name].leak == pytest.approx(1, abs=1e-5) and found[name].psnr > 100, name
        assert psnr(tried[name].values, truth) > 100
    assert not any(tried[name].oracle for name in ("direct", "picture")) and "scaled" not in tried
    assert found["public"].leak == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_between_pictures_a_step_is_extrapolated_exactly(shot, share):
    """The upload has gone a share of the way to the photograph; its figures are as bright and dark as can be."""
    clean, truth = colours(shot.clean), colours(shot.photo.colours)
    seen = looked_at(shot, clean + share * (truth - clean))
    found, tried = contents(seen, shot), readouts(seen, truth)
    assert farthest(seen.public, seen.upload - seen.public) == pytest.approx(1 / share, rel=1e-3)
    for name in ("picture", "picture_best"):
        assert found[name].leak == pytest.approx(1, abs=1e-3) and psnr(tried[name].values, truth) > 60
    assert found["direct"].leak == pytest.approx(share, abs=1e-4)
    assert found["direct"].psnr == pytest.approx(found["direct"].floor - 20 * math.log10(1 - share), abs=1e-2)


def test_the_factors_of_weights_undo_the_averaging_of_a_sum(shot):
    """Of four owners three sent back what they got; and a step of a tenth is among the factors that are tried."""
    clean, truth = colours(shot.clean), colours(shot.photo.colours)
    tried = readouts(looked_at(shot, clean + (truth - clean) / 4, owners=4), truth)
    assert psnr(tried["scaled"].values, truth) > 100 and not tried["scaled"].oracle
    assert psnr(tried["direct"].values, truth) < 30
    tenth = readouts(looked_at(shot, clean + (truth - clean) / 10), truth)
    assert psnr(tenth["extrapolation"].values, truth) > 80 and tenth["extrapolation"].oracle


def test_how_far_a_picture_stays_a_picture():
    """By hand: from 0.5, a step of 0.1 up is possible five times, of 0.05 down ten times."""
    public = torch.full((100, 3), 0.5)
    assert farthest(public, torch.full((100, 3), 0.1)) == pytest.approx(5)
    step = torch.full((100, 3), -0.05)
    assert farthest(public, step) == pytest.approx(10)
    step[0, :2] = 0.4  # Two of 300 values may become impossible, four may not.
    assert farthest(public, step) == pytest.approx(10)
    step[1, :2] = 0.25
    assert farthest(public, step) == pytest.approx(2)
    assert farthest(public, torch.full((100, 3), 0.9)) == 1.0 == farthest(public, torch.zeros(100, 3))


def test_broken_weights_are_grey_and_photographs_without_people_say_nothing_of_them(shot):
    truth = colours(shot.photo.colours)
    seen = looked_at(shot, torch.full_like(truth, torch.nan))
    assert torch.equal(seen.upload, torch.full_like(truth, 0.5))
    assert all(bool(one.values.isfinite().all()) for one in readouts(seen, truth).values())
    assert contents(seen, shot._replace(mask=torch.zeros_like(shot.mask))) == {}


def test_several_photographs_are_rendered_at_once_and_taken_apart(shot):
    seen = looked_at(shot, colours(shot.photo.colours), owners=2)
    first, second = seen.split([100, 220])
    for whole, *parts in zip(seen, first, second, strict=True):
        assert torch.equal(torch.cat(parts, dim=whole.dim() - 2), whole)
