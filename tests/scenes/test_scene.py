"""Photographs of one place in one frame, and how they are shared out."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from fedfields.errors import UserError
from fedfields.rendering.cameras import Camera, rays
from fedfields.scenes.captures import load_capture
from fedfields.scenes.frame import Frame, frame_of, load_frame, looks_away
from fedfields.scenes.posed import Capture, View
from fedfields.scenes.scene import Scene, check_frame, frame_notes
from fedfields.scenes.tour import Tour, load_tour, tour_of
from fedfields.scenes.views import Photo, RaySignal, drawn, in_cube, photo_rays, shared_out
from tests.scenes.ball import pixels_of, write_capture


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ball")
    write_capture(folder)
    return folder


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(camera=None, turn=0.3, usable=None):
    camera = camera or Camera("pinhole", 6, 4, 5.0, 5.0, 3.0, 2.0)
    values = torch.arange(camera.width * camera.height * 3) % 251
    colours = values.reshape(camera.height, camera.width, 3).to(torch.uint8)
    return Photo(f"photo-{turn}", Tour().pose(turn), camera, colours, usable)


def test_rays_of_a_signal_are_those_of_the_cameras():
    other = Camera("opencv", 5, 3, 4.0, 4.0, 2.5, 1.5, (0.1, 0.01, 0.0, 0.0, 0.0))
    photos = (photo(), photo(other, 1.0), photo(turn=2.0))
    batch = RaySignal(photos).everything()
    found = [rays(one.camera, one.pose.double(), one.camera.pixels()) for one in photos]
    expected = [(origin.double(), way.double()) for origin, way in found]
    assert torch.allclose(batch.inputs.origins.double(), torch.cat([origin for origin, _ in expected]), atol=1e-6)
    assert torch.allclose(batch.inputs.directions.double(), torch.cat([way for _, way in expected]), atol=1e-6)
    assert torch.equal(batch.targets, torch.cat([one.colours.reshape(-1, 3) for one in photos]).float() / 255)


def test_samples_are_pixels_with_their_own_colours_and_masked_ones_never_come():
    usable = torch.tensor([3, 4, 20])
    signal = RaySignal((photo(), photo(turn=1.0, usable=usable)))
    assert len(signal) == 24 + 3
    everything, batch = signal.everything(), signal.sample(20, random())
    for direction, origin, colour in zip(batch.inputs.directions, batch.inputs.origins, batch.targets, strict=True):
        same = (everything.inputs.directions == direction).all(1) & (everything.inputs.origins == origin).all(1)
        assert (everything.targets[same] == colour).all() and same.sum() == 1
    assert batch.inputs.jitter.shape == (20, 1) and batch.inputs.background is None
    again = signal.sample(20, random())
    assert torch.equal(batch.inputs.directions, again.inputs.directions)
    unknown = RaySignal((photo(),), jitters=7, known_background=False).sample(5, random())
    assert unknown.inputs.jitter.shape == (5, 7) and unknown.inputs.background.shape == (5, 3)


def test_rays_are_cut_to_the_cube():
    origins = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0], [0.0, 5.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -2.0], [1.0, 0.0, 0.0], [-1.0, -1.0, -1.0], [1.0, 0.0, 0.0]])
    found = in_cube(origins, directions)
    assert found.near.tolist() == pytest.approx([4.0, 0.0, 2 * math.sqrt(3), float(found.near[3])])
    assert found.far.tolist()[:3] == pytest.approx([6.0, 1.0, 4 * math.sqrt(3)])
    assert found.far[3] <= found.near[3]  # It misses.
    assert torch.allclose(found.directions.norm(dim=1), torch.ones(4))


def test_rays_begin_below_the_top_of_what_there_is():
    """From above, from below it, level above it, and each with a top of its own."""
    origins = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, -0.5], [0.5, 0.0, 0.5]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found = in_cube(origins, directions, 0.25)
    assert found.near.tolist()[:2] == pytest.approx([4.75, 0.0]) and found.far.tolist()[:2] == pytest.approx(
        [6.0, 0.75]
    )
    assert found.far[2] <= found.near[2]
    assert in_cube(origins, directions, torch.tensor([-0.9, 0.0, 1.0])).near.tolist() == pytest.approx([5.9, 0.0, 0.0])
    low = photo()._replace(top=-0.5)
    ours, signal = photo_rays(low.pose, low.camera, low.top), RaySignal((photo(), low)).everything().inputs
    assert torch.allclose(signal.near[len(ours.near) :], ours.near, atol=1e-6)
    assert not torch.allclose(ours.near, photo_rays(low.pose, low.camera).near, atol=1e-3)


def test_heights_in_a_frame():
    frame = Frame((3.0, 4.0, 10.0), 20.0)
    assert (frame.height(15.0), frame.height(0.0), frame.height(50.0), frame.height(math.inf)) == (0.25, -0.5, 1.0, 1.0)


@pytest.mark.parametrize("partition", ["interleave", "separate"])
@pytest.mark.parametrize("clients", [1, 3, 5])
def test_sharing_out_is_an_exact_partition_by_azimuth(partition, clients):
    photos = [photo(turn=0.5 * i) for i in range(11)]
    shares = shared_out(photos, clients, partition)
    assert sorted(one.name for share in shares for one in share) == sorted(one.name for one in photos)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def azimuth(one):
        return math.atan2(one.pose[1, 3], one.pose[0, 3])

    if partition == "separate":
        edges = [(min(map(azimuth, share)), max(map(azimuth, share))) for share in shares]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("partition", ["interleave", "separate"])
def test_every_number_of_photographs_is_shared_out_exactly_among_every_number_of_clients(partition):
    photos = [photo(turn=0.7 * i) for i in range(13)]
    for count, public in itertools.product(range(1, 14), range(4)):
        for clients in range(1, count - public + 1):
            common, private = drawn(photos[:count], public, random(count))
            shares = shared_out(private, clients, partition)
            names = [one.name for share in (common, *shares) for one in share]
            assert sorted(names) == sorted(one.name for one in photos[:count])
            assert len(common) == public and min(map(len, shares)) >= 1
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_public_photographs_belong_to_no_client(capture):
    place = Scene(capture, clients=3, public=4).load(seed=7)

    def names(*clients):
        return {one.name for client in clients for one in client.train[0].support.photos}

    assert place.public is not None and len(names(place.public)) == 4
    assert len(names(*place.clients)) == 8 and not names(place.public) & names(*place.clients)
    same = Scene(capture, clients=1, public=4, partition="separate").load(seed=7)
    assert names(same.public) == names(place.public) and names(*same.clients) == names(*place.clients)
    assert names(Scene(capture, public=4).load(seed=8).public) != names(place.public)
    assert Scene(capture).load().public is None
    with pytest.raises(UserError, match="12 training photographs, too few for 3 clients and 10 public ones"):
        Scene(capture, clients=3, public=10).load()
    with pytest.raises(ValueError, match="public is -1"):
        Scene(public=-1)


def test_a_blender_capture_becomes_clients_and_tests(capture):
    place = Scene(capture, clients=3).load()
    assert [client.name for client in place.clients] == ["client-0", "client-1", "client-2"]
    assert len(place.tests) == 3 and place.frame == Frame((0.0, 0.0, 0.0), 1.5, "white")
    test = place.tests[0]
    world = test.pose.clone()
    world[:, 3] *= 1.5
    truth = pixels_of(world, test.camera)
    composited = truth[..., :3] + 1 - truth[..., 3:]
    assert (test.colours / 255 - composited).abs().max() < 0.003  # Two roundings to 8 bits.
    small = Scene(capture, size=12, tests=1).load()
    assert len(small.tests) == 1 and small.tests[0].colours.shape == (12, 12, 3)


def test_the_frame_travels_and_disagreement_is_noticed(capture, tmp_path):
    published = Frame((0.25, 0.0, -0.5), 2.0, "white")
    published.save(tmp_path / "scene.json")
    assert load_frame(tmp_path / "scene.json") == published
    place = Scene(capture, frame=tmp_path / "scene.json").load()
    assert place.frame == published
    # The same world point is the same point of the frame, and the cameras stand where they stood.
    plain = Scene(capture).load()
    moved, before = place.tests[0].pose[:, 3], plain.tests[0].pose[:, 3]
    assert torch.allclose(moved * 2.0 + torch.tensor([0.25, 0.0, -0.5]), before * 1.5, atol=1e-5)
    Frame((400.0, 0.0, 0.0), 1.0).save(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="its frame disagree"):
        Scene(capture, frame=tmp_path / "elsewhere.json").load()


def test_a_scale_that_somebody_applied_alone_is_refused(capture, tmp_path):
    """Both directions: an owner who normalised in a federation that did not, and one who did not where all did."""
    frame_of(load_capture(capture)).save(tmp_path / "scene.json")
    scaled = tmp_path / "scaled"
    shutil.copytree(capture, scaled)
    for file in scaled.glob("*.json"):
        meta = json.loads(file.read_text())
        file.write_text(json.dumps(meta | {"applied_scale": 0.5}))
    with pytest.raises(UserError, match="applied_scale is not that of the federation; nobody may normalise"):
        Scene(scaled, frame=tmp_path / "scene.json").load()
    frame_of(load_capture(scaled)).save(tmp_path / "scaled.json")
    assert Scene(scaled, frame=tmp_path / "scaled.json").load().frame.applied[0] == 0.5
    with pytest.raises(UserError, match="its frame disagree"):
        Scene(capture, frame=tmp_path / "scaled.json").load()


def test_points_outside_of_the_frame_are_refused_and_a_tiny_part_of_it_is_noted():
    """All cameras stand in the cube and so look into it, whatever the scale: only the points tell."""
    cloud = torch.rand(100, 3, generator=random(), dtype=torch.float64) * 2 - 1
    inside = Capture(views_of(Tour(radius=0.5).orbit(8)), points=cloud)
    check_frame(Path("here"), inside, Frame((0.0, 0.0, 0.0), 1.0))
    assert frame_notes(Path("here"), inside, Frame((0.0, 0.0, 0.0), 1.0)) == ()
    far = dataclasses.replace(inside, points=cloud + 10)
    with pytest.raises(UserError, match=r"only 0% of its points lie in the frame's cube"):
        check_frame(Path("here"), far, Frame((0.0, 0.0, 0.0), 1.0))
    check_frame(Path("here"), inside, Frame((0.0, 0.0, 0.0), 50.0))
    (note,) = frame_notes(Path("here"), inside, Frame((0.0, 0.0, 0.0), 50.0))
    assert re.search(r"here fills only (1\.9|2\.0)% of the frame's cube", note)


def test_cameras_with_their_backs_to_the_scene_are_noticed(capture, tmp_path):
    """The poses of OpenCV, +Y down and looking along +Z, in a file of the other convention."""
    turn = torch.tensor([1.0, -1, -1, 1])
    poses = Tour(radius=3.0).orbit(8)
    assert not looks_away(Capture(views_of(poses))) and looks_away(Capture(views_of([pose * turn for pose in poses])))
    cloud = torch.rand(100, 3, generator=random(), dtype=torch.float64) - 0.5
    assert not looks_away(Capture(views_of(poses), points=cloud))
    assert looks_away(Capture(views_of([pose * turn for pose in poses]), points=cloud))
    wrong = tmp_path / "wrong"
    shutil.copytree(capture, wrong)
    for file in wrong.glob("*.json"):
        meta = json.loads(file.read_text())
        for one in meta["frames"]:
            one["transform_matrix"] = (torch.tensor(one["transform_matrix"]) * turn).tolist()
        file.write_text(json.dumps(meta))
    assert load_capture(capture).problems == ()
    assert "have their backs to what they show" in load_capture(wrong).problems[0]


def test_parallel_cameras_have_a_frame_only_if_something_says_how_far_away_things_are():
    """Two cameras side by side look down on what is between 2 and 4 under them; each sees 4 x 4 at that depth."""
    pose = torch.cat([torch.eye(3), torch.zeros(3, 1)], 1)
    beside = pose + torch.tensor([0.0, 0, 0, 1]) * torch.tensor([[6.0], [0], [0]])
    views = views_of([pose, beside])
    frame = frame_of(Capture(views, near=2.0, far=4.0))
    assert frame.centre == pytest.approx([3.0, 0.0, -3.0]) and frame.half == pytest.approx(5.0)
    assert not looks_away(Capture(views))
    with pytest.raises(UserError, match="give near and far in transforms"):
        frame_of(Capture(views))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "7",
        '{"centre": [0, 0], "half": 1}',
        '{"centre": [0, 0, 0], "half": -1}',
        '{"centre": 3, "half": 1}',
        '{"centre": [0, 0, 0], "half": {}}',
        '{"centre": [0, 0, 0], "half": 1e999}',
        f'{{"centre": [0, 0, 0], "half": 1{"0" * 400}}}',
        '{"centre": [0, 0, 0], "half": 1, "background": "pink"}',
        '{"centre": [0, 0, 0], "half": 1, "applied": [1]}',
        "[" * 100_000,
        "",
    ],
)
def test_a_damaged_scene_json_is_one_clear_line(tmp_path, text):
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(UserError, match=r"scene\.json"):
        load_frame(tmp_path / "scene.json")


def test_too_many_clients_and_no_path():
    with pytest.raises(UserError, match="--data"):
        Scene().load()
    with pytest.raises(ValueError, match="at least 1"):
        Scene(clients=0)


def test_more_clients_than_photographs(capture):
    with pytest.raises(UserError, match="12 training photographs, too few for 13 clients"):
        Scene(capture, clients=13).load()


def views_of(poses):
    camera = Camera("pinhole", 4, 4, 4.0, 4.0, 2.0, 2.0)
    return tuple(View(str(i), None, camera, pose.double(), "train") for i, pose in enumerate(poses))  # pyright: ignore


def test_the_frame_lies_where_cameras_look():
    """Cameras on a circle around a point: the frame's middle is that point, its size their distance."""
    point = torch.tensor([3.0, -2.0, 1.0])
    poses = [torch.cat([pose[:, :3], (pose[:, 3] + point)[:, None]], 1) for pose in Tour(radius=2.0).orbit(8)]
    frame = frame_of(Capture(views_of(poses)))
    assert frame.centre == pytest.approx(point.tolist(), abs=1e-4) and frame.half == pytest.approx(2.0, rel=1e-4)


def test_the_frame_lies_around_the_points_and_shrugs_off_strays():
    cloud = torch.rand(2000, 3, generator=random(), dtype=torch.float64) * torch.tensor([4.0, 2.0, 1.0])
    cloud[:5] = 1e4
    frame = frame_of(Capture(views_of(Tour().orbit(3)), points=cloud))
    assert frame.centre == pytest.approx([2.0, 1.0, 0.5], abs=0.05) and frame.half == pytest.approx(2.2, abs=0.1)


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (0.6, 0.0, 0.8)])
def test_a_tour_looks_at_the_middle_and_keeps_upright(up):
    tour = Tour(up, 2.5, 0.4)
    for pose in [*tour.orbit(7), *tour.spiral(7)]:
        rotation, place = pose[:, :3], pose[:, 3]
        assert torch.allclose(rotation.T @ rotation, torch.eye(3), atol=1e-5) and torch.linalg.det(rotation) > 0
        assert torch.allclose(-rotation[:, 2], -place / place.norm(), atol=1e-5)
        assert rotation[:, 1] @ torch.tensor(up) > 0 and abs(rotation[:, 0] @ torch.tensor(up)) < 1e-5


def test_a_tour_is_made_from_its_own_cameras_and_survives_the_journey(tmp_path):
    tour = Tour((0.0, 0.0, 1.0), 3.0, 0.6, 0.9)
    found = tour_of(tour.orbit(12), [tour.camera(20)] * 12)
    for name, value in dataclasses.asdict(tour).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-4), name
    found.save(tmp_path / "tour.json")
    assert load_tour(tmp_path / "tour.json") == found


def test_photo_rays_are_the_signal_s_rays():
    one = photo()
    ours, signal = photo_rays(one.pose, one.camera), RaySignal((one,)).everything().inputs
    for a, b in zip(ours[:4], signal[:4], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
