"""Cameras: numbers worked out by hand, round trips, and COLMAP's own projections."""

import math

import numpy as np
import pytest
import torch

from fedfields.errors import UserError
from fedfields.rendering.cameras import Camera, check_pose, from_llff, from_opencv, inverted, rays, to_opencv

BROWN = (-0.21, 0.08, 0.0013, -0.0021, 0.011)
PINHOLE = Camera("pinhole", 8, 6, 4.0, 5.0, 4.0, 3.0)
OPENCV = Camera("opencv", 640, 480, 500.0, 510.0, 321.0, 238.0, BROWN)
FISHEYE = Camera("fisheye", 640, 480, 300.0, 305.0, 318.0, 244.0, (0.03, -0.011, 0.004, -0.0007))
CAMERAS = {"pinhole": PINHOLE, "opencv": OPENCV, "fisheye": FISHEYE}


def rotation_of(seed):
    """A random rotation."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * q.det().sign()


def pose_of(seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.cat((rotation_of(seed), torch.randn(3, 1, generator=generator, dtype=torch.float64)), 1)


def test_pixel_centres_by_hand():
    directions = PINHOLE.directions(torch.tensor([[0, 0], [5, 7], [2, 3]]))
    assert directions.dtype == torch.float32
    wanted = [[-3.5 / 4, 2.5 / 5, -1], [3.5 / 4, -2.5 / 5, -1], [-0.5 / 4, 0.5 / 5, -1]]
    torch.testing.assert_close(directions, torch.tensor(wanted))


def test_corners_is_the_convention_of_the_official_code():
    directions = PINHOLE.directions(torch.tensor([[0, 0], [3, 4]]), corners=True)
    torch.testing.assert_close(directions, torch.tensor([[-1.0, 0.6, -1.0], [0.0, 0.0, -1.0]]))


def test_fisheye_by_hand():
    camera = Camera("fisheye", 10, 10, 2.0, 2.0, 5.0, 5.0)
    edge = 5 - 0.5 + 2 * math.pi / 2  # The angle is the radius over the focal length: a right angle.
    directions = camera.directions(torch.tensor([[4.5, 4.5], [4.5, edge], [edge, 4.5]], dtype=torch.float64))
    wanted = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    torch.testing.assert_close(directions, wanted, rtol=0, atol=1e-12)


def test_distortion_by_hand():
    camera = Camera("opencv", 100, 100, 10.0, 10.0, 50.0, 50.0, (0.5, 0.25, 0.1, 0.2, 0.125))
    # x = 1, y = 0 (radius 1): 1 + 0.5 + 0.25 + 0.125 + 0.2 * 3 across, 0.1 down.
    got = camera.project(torch.tensor([[2.0, 0.0, -2.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([[50 + 24.75, 51.0]], dtype=torch.float64))


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_projection_undoes_directions(camera):
    pixels = camera.pixels()[:: 97 if camera.width > 8 else 1].double()
    directions = camera.directions(pixels)
    torch.testing.assert_close(camera.project(3 * directions), pixels.flip(1) + 0.5, rtol=0, atol=1e-9)
    if camera.model == "fisheye":
        torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(pixels), dtype=torch.float64))
    else:
        assert (directions[:, 2] == -1).all()


@pytest.mark.parametrize("model", ["opencv", "fisheye"])
def test_undistortion_of_random_lenses(model):
    """Wherever a lens sends farther places farther out, however strong it is."""
    generator = torch.Generator().manual_seed(0)
    radius = torch.linspace(0, 1.2, 50, dtype=torch.float64)
    angle = 6.283 * torch.rand(50, generator=generator, dtype=torch.float64)
    points = torch.stack((radius * angle.cos(), radius * angle.sin(), -torch.ones_like(radius)), 1)
    tried = 0
    for _ in range(150):
        drawn = (2 * torch.rand(3, generator=generator) - 1) * torch.tensor([0.5, 0.3, 0.1])
        k1, k2, k3 = drawn.tolist()
        through = radius if model == "opencv" else radius.atan()
        if (1 + 3 * k1 * through**2 + 5 * k2 * through**4 + 7 * k3 * through**6).min() < 0.15:
            continue
        tried += 1
        camera = Camera(model, 9, 9, 5, 5, 4, 4, (k1, k2, 2e-3, -3e-3, k3) if model == "opencv" else (k1, k2, k3, 0))
        pixels = camera.project(points).flip(1) - 0.5
        wanted = points if model == "opencv" else torch.nn.functional.normalize(points, dim=1)
        torch.testing.assert_close(camera.directions(pixels), wanted, rtol=0, atol=1e-8)
    assert tried > 50


def test_pixels_are_row_by_row():
    camera = Camera("pinhole", 3, 2, 1.0, 1.0, 1.0, 1.0)
    assert camera.pixels().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_what_is_behind_is_not_seen():
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    assert PINHOLE.project(points).isnan().all(1).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("name", "params", "camera"),
    [
        ("PINHOLE", [500, 510, 321, 238], Camera("pinhole", 640, 480, 500, 510, 321, 238)),
        ("OPENCV", [500, 510, 321, 238, *BROWN[:4]], Camera("opencv", 640, 480, 500, 510, 321, 238, (*BROWN[:4], 0))),
        ("FULL_OPENCV", [500, 510, 321, 238, *BROWN, 0, 0, 0], OPENCV),
        ("OPENCV_FISHEYE", [300, 305, 318, 244, *FISHEYE.distortion], FISHEYE),
    ],
)
def test_the_same_as_colmap(name, params, camera):
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Camera(model=name, width=640, height=480, params=params)
    rows, columns = torch.meshgrid(torch.arange(0, 480.0, 23), torch.arange(0, 640.0, 31), indexing="ij")
    pixels = torch.stack((rows.flatten(), columns.flatten()), 1).double()
    looks = camera.directions(pixels)
    wanted = torch.from_numpy(theirs.cam_from_img((pixels.flip(1) + 0.5).numpy()))
    ours = torch.stack((looks[:, 0], -looks[:, 1]), 1) / -looks[:, 2:]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
    points = looks * torch.linspace(0.5, 9, len(looks), dtype=torch.float64)[:, None]
    seen = torch.from_numpy(theirs.img_from_cam(points.numpy() * np.array([1.0, -1.0, -1.0])))
    torch.testing.assert_close(camera.project(points), seen, rtol=0, atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_scaling_keeps_every_place(camera):
    half = camera.scaled(0.5)
    assert (half.width, half.height) == (camera.width // 2, camera.height // 2)
    points = camera.directions(camera.pixels()[::7].double())
    torch.testing.assert_close(half.project(points), camera.project(points) / 2)
    # The centre of a pixel of the half-sized picture is the corner that four pixels share.
    centre = half.directions(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    shared = camera.directions(torch.tensor([[2.5, 4.5]], dtype=torch.float64))
    torch.testing.assert_close(centre, shared)


def test_scaling_with_rounding_keeps_the_field_of_view():
    odd = Camera("pinhole", 7, 5, 4.0, 4.0, 3.5, 2.5).scaled(0.5)
    assert (odd.width, odd.height) == (4, 2)
    assert (odd.cx, odd.cy) == (2.0, 1.0)
    assert (odd.fx, odd.fy) == (4 * 4 / 7, 4 * 2 / 5)
    with pytest.raises(ValueError, match="factor is 0"):
        odd.scaled(0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "EQUIRECTANGULAR"}, "camera model EQUIRECTANGULAR is not known"),
        ({"width": 0}, "0 x 6 pixels"),
        ({"fx": 0.0}, "focal length fx is 0.0"),
        ({"fy": -3.0}, "focal length fy is -3.0"),
        ({"fx": math.nan}, "focal length fx is nan"),
        ({"cx": math.inf}, "principal point"),
        ({"distortion": (0.1,)}, "1 distortion coefficients for model pinhole"),
        ({"model": "opencv", "distortion": (0.1,) * 4}, "it has k1 k2 p1 p2 k3"),
        ({"model": "opencv", "distortion": (math.nan,) * 5}, "must be finite"),
    ],
)
def test_impossible_cameras_are_refused(changes, words):
    values = {"model": "pinhole", "width": 8, "height": 6, "fx": 4.0, "fy": 4.0, "cx": 4.0, "cy": 3.0}
    with pytest.raises(ValueError) as caught:
        Camera(**(values | changes))
    assert words in str(caught.value)


def test_rays_by_hand():
    # The camera at (1, 2, 3) looks along world +X; world +Z is up.
    pose = torch.tensor([[0.0, 0, -1, 1], [-1, 0, 0, 2], [0, 1, 0, 3]], dtype=torch.float64)
    origins, directions = rays(PINHOLE, pose, torch.tensor([[2.5, 3.5], [2.5, 7.5], [-2.5, 3.5]], dtype=torch.float64))
    half = math.sqrt(0.5)
    assert origins.tolist() == [[1, 2, 3]] * 3
    wanted = torch.tensor([[1.0, 0, 0], [half, -half, 0], [half, 0, half]], dtype=torch.float64)
    torch.testing.assert_close(directions, wanted)
    assert rays(PINHOLE, pose, torch.tensor([[0, 0]]))[1].dtype == torch.float32


def test_rays_meet_the_points_that_project_to_them():
    pose = pose_of(3)
    pixels = FISHEYE.pixels()[::1001].double()
    origins, directions = rays(FISHEYE, pose, pixels)
    world = inverted(pose)
    points = (origins + 4 * directions) @ world[:, :3].T + world[:, 3]
    torch.testing.assert_close(FISHEYE.project(points), pixels.flip(1) + 0.5)


def test_conversions():
    pose = pose_of(1)
    torch.testing.assert_close(to_opencv(from_opencv(pose)), pose)
    torch.testing.assert_close(inverted(inverted(pose)), pose)
    assert from_opencv(torch.eye(3, 4)).tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0]]
    right, up, back, position = (
        torch.tensor(column) for column in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [7.0, 8, 9])
    )
    assert torch.equal(from_llff(torch.stack((-up, right, back, position), 1))[:, :3], torch.eye(3))
    stacked = torch.stack((pose, pose_of(2)))
    torch.testing.assert_close(inverted(stacked)[1], inverted(pose_of(2)))


def test_good_poses_pass():
    pose = pose_of(5)
    assert torch.equal(check_pose(pose, "a"), pose)
    square = torch.cat((pose, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)))
    assert torch.equal(check_pose(square.float(), "a"), pose.float().double())


def spoiled(row, column, value):
    pose = torch.eye(4)
    pose[row, column] = value
    return pose


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (spoiled(0, 3, math.nan), "holds NaN"),
        (spoiled(1, 1, math.inf), "holds NaN or infinity"),
        (spoiled(0, 1, 0.01), "not orthogonal"),
        (torch.eye(3, 4) * 0.1, "0.1 0.1 0.1"),
        (spoiled(2, 2, -1.0), "left-handed"),
        (spoiled(3, 0, 2.0), "ends with the row 2 0 0 1"),
        (torch.eye(3), "shape [3, 3]"),
    ],
)
def test_bad_poses_are_refused(pose, words):
    with pytest.raises(UserError) as caught:
        check_pose(pose, "frame 7")
    assert str(caught.value).startswith("frame 7: the pose ")
    assert words in str(caught.value)
