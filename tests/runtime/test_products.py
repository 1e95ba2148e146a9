"""Films, meshes, points and grids of a ball whose shape is known."""

import json
import math

import av
import numpy as np
import pytest
import torch

from fedfields.cli import main
from fedfields.config import preset
from fedfields.errors import UserError
from fedfields.losses import RadianceLoss
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.products import (
    Trained,
    film,
    load_trained,
    opaque_density,
    save_grid,
    save_mesh,
    save_points,
    volume,
)
from fedfields.runtime.run import run
from fedfields.scenes.frame import Frame
from fedfields.scenes.tour import Tour
from tests.runtime.test_places import experiment
from tests.scenes.ball import write_capture

FRAME = Frame((10.0, -4.0, 2.0), 3.0, "white")
"""The ball of radius 1.5 around this centre has radius 0.5 in the frame."""


def ball(params, positions, directions):
    """Dense inside, red where x is positive, with an edge soft enough for the grid."""
    density = 300 * torch.sigmoid((0.5 - positions.norm(dim=1)) * 60)
    red = (positions[:, :1] > 0).float()
    return density, torch.cat([red, 1 - red, torch.full_like(red, 0.5)], 1)


TRAINED = Trained(preset("nerf"), {}, RadianceLoss(ball, RenderSettings(samples=96)), FRAME, Tour())


def silent(what, done, total):
    assert 0 <= done < total


@pytest.fixture(scope="module")
def grid():
    return volume(TRAINED, 40, silent)


def read_ply(path):
    header, _, body = path.read_bytes().partition(b"end_header\n")
    words = header.decode().split()
    count = int(words[words.index("vertex") + 1])
    corners = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)], count)
    faces = np.frombuffer(body[corners.nbytes :], [("count", "u1"), ("corners", "<i4", 3)])
    return corners["xyz"], corners["rgb"], faces["corners"]


def test_the_mesh_is_a_closed_ball_in_world_units(grid, tmp_path):
    triangles = save_mesh(grid, tmp_path / "ball.ply", 50.0)
    points, colours, faces = read_ply(tmp_path / "ball.ply")
    radius = np.linalg.norm(points - np.array(FRAME.centre), axis=1)
    assert len(faces) == triangles > 500 and abs(radius - 1.5).max() < 0.1
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # Closed: two triangles at every edge.
    corner = points[faces].astype(float) - np.array(FRAME.centre)
    signed = np.einsum("fi,fi->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6
    assert signed == pytest.approx(4 / 3 * math.pi * 1.5**3, rel=0.06)  # Positive: triangles face outwards.
    right = points[:, 0] > FRAME.centre[0] + 0.2
    assert (colours[right, 0] > 250).all() and (colours[right, 1] < 5).all()


def test_points_lie_inside_the_ball(grid, tmp_path):
    count = save_points(grid, tmp_path / "ball.ply", 50.0)
    points, _, faces = read_ply(tmp_path / "ball.ply")
    assert len(points) == count and len(faces) == 0
    assert np.linalg.norm(points - np.array(FRAME.centre), axis=1).max() < 1.6
    assert count * grid.spacing**3 == pytest.approx(4 / 3 * math.pi * 1.5**3, rel=0.06)


def test_the_grid_knows_where_it_is(grid, tmp_path):
    save_grid(grid, tmp_path / "ball.npz")
    with np.load(tmp_path / "ball.npz") as found:
        i, j, k = np.unravel_index(found["density"].argmax(), found["density"].shape)
        place = found["low"] + np.array([i, j, k]) * found["spacing"]
        assert np.linalg.norm(place - np.array(FRAME.centre)) < 1.5
        assert found["density"].max() == pytest.approx(100.0, rel=1e-3)  # 300 in the frame, whose unit is 3.
    assert opaque_density(grid) * grid.spacing == pytest.approx(math.log(2))


def test_a_level_that_nothing_reaches_is_one_clear_line(grid, tmp_path):
    for save in (save_mesh, save_points):
        with pytest.raises(UserError, match="lower --level"):
            save(grid, tmp_path / "none.ply", 1e6)
    assert not list(tmp_path.iterdir())


def shoot(path, out, **changes):
    settings = {"frames": 6, "size": 20, "fps": 10, "depth": False} | changes
    return film(TRAINED, str(path), out, advance=silent, **settings)


def test_a_film_shows_the_ball_from_all_sides(tmp_path):
    shoot("orbit", tmp_path / "film.mp4", depth=True)
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6 and frames[0].shape == (20, 40, 3)
    red = [float(frame[7:13, 7:13, 0].mean()) for frame in frames]
    assert max(red) > 150 and min(red) < 60  # One half of the ball is red.
    assert frames[0][0, 0].min() > 240 and frames[0][10, 30].min() > 200 and frames[0][0, 22].max() < 15


def test_a_film_along_keyframes_as_pictures(tmp_path):
    pose = Tour(radius=2.0).pose(0.0)
    world = torch.cat([pose[:, :3], (3.0 * pose[:, 3] + torch.tensor(FRAME.centre))[:, None]], 1)
    matrix = [*world.tolist(), [0, 0, 0, 1]]
    (tmp_path / "keys.json").write_text(json.dumps({"frames": [{"transform_matrix": matrix}] * 2}))
    shoot(tmp_path / "keys.json", tmp_path / "film")
    assert sorted(one.name for one in (tmp_path / "film").iterdir()) == ["frame-0000.png", "frame-0001.png"]


@pytest.mark.parametrize("content", ["{}", '{"frames": []}', '{"frames": [{"transform_matrix": "x"}]}', "["])
def test_bad_keyframes_are_one_clear_line(tmp_path, content):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(UserError, match=r"keys\.json"):
        shoot(tmp_path / "keys.json", tmp_path / "film")
    with pytest.raises(UserError, match="choose orbit"):
        shoot("round", tmp_path / "film")
    assert not (tmp_path / "film").exists()


def test_from_a_run_by_the_command_line(tmp_path, capsys):
    write_capture(tmp_path / "ball")
    run(experiment(tmp_path / "ball", rounds=6), tmp_path / "run")
    assert load_trained(tmp_path / "run").frame.half == 1.5
    for line in (
        ["render", str(tmp_path / "run"), "--frames", "2", "--size", "16", "--depth"],
        ["export", str(tmp_path / "run"), "--grid", str(tmp_path / "g.npz"), "--resolution", "8"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert stop.value.code == 0
    assert (tmp_path / "run" / "orbit.mp4").exists() and (tmp_path / "g.npz").exists()
    for line, words in (
        (["export", str(tmp_path / "run")], "nothing to write"),
        (["render", str(tmp_path)], "experiment.json"),
        (["render", str(tmp_path / "run"), "--frames", "0"], "at least 1"),
        (["adapt", str(tmp_path / "run"), "x.png"], "run on a place"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert stop.value.code == 2 and words in capsys.readouterr().err
