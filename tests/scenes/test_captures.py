"""Posed photographs: each layout by hand, against COLMAP itself, on real data, and everything that can be wrong."""

import json
import math
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedfields.rendering.cameras import Camera, from_opencv, inverted, rays
from fedfields.scenes.captures import load_capture
from fedfields.scenes.images import FORMATS
from fedfields.scenes.posed import View, load_colours, same_shape
from tests.scenes.test_images import refusal

SHARED = Path(os.environ.get("FEDFIELDS_DATA", Path(__file__).parents[3] / "shared" / "data"))
POSE = [[0.0, 0, -1, 1], [-1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
"""At (1, 2, 3), looking along +X, with +Z up."""


def shared(name):
    folder = SHARED / name
    return pytest.param(folder, id=name, marks=pytest.mark.skipif(not folder.is_dir(), reason=f"{name} is not there"))


def picture(path, size=(8, 6), colour=(255, 0, 0), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def frame(name="images/a.png", **others):
    return {"file_path": name, "transform_matrix": POSE} | others


def write_json(folder, frames=None, name="transforms.json", **meta):
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"fl_x": 4.0, "fl_y": 5.0, "w": 8, "h": 6} | meta
    meta = {key: value for key, value in meta.items() if value is not None}
    (folder / name).write_text(json.dumps(meta | {"frames": [frame()] if frames is None else frames}))
    return folder


def refused(folder, *words, layout="auto"):
    text = refusal(load_capture, folder, layout)
    for word in words:
        assert word in text
    return text


def view_of(file, camera=None, **others):
    camera = camera or Camera("pinhole", 8, 6, 4.0, 5.0, 4.0, 3.0)
    return View("a", file, camera, torch.eye(3, 4).double(), "train", **others)


# ---- Pictures of views.


def test_colours_and_camera_at_the_size_of_the_camera(tmp_path):
    colours, weight, camera = load_colours(view_of(picture(tmp_path / "a.png")))
    assert colours.shape == (6, 8, 3)
    assert colours.dtype == weight.dtype == torch.float32
    assert (colours == torch.tensor([1.0, 0, 0])).all()
    assert weight.shape == (6, 8)
    assert weight.all()
    assert camera == view_of(tmp_path).camera


def test_halving_takes_means(tmp_path):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, 0] = 204
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colours, _, camera = load_colours(view_of(tmp_path / "a.png"), 0.5)
    assert colours.shape == (3, 4, 3)
    torch.testing.assert_close(colours[0, 0], torch.full((3,), 0.2))
    assert (camera.fx, camera.cx, camera.width) == (2, 2, 4)


@pytest.mark.parametrize("size", [(16, 12), (4, 3), (7, 5), (80, 61)])
def test_another_resolution_is_brought_to_the_camera(tmp_path, size):
    colours, _, camera = load_colours(view_of(picture(tmp_path / "a.png", size)))
    assert colours.shape == (6, 8, 3)
    assert camera.width == 8


def test_another_shape_is_refused(tmp_path):
    text = refusal(load_colours, view_of(picture(tmp_path / "a.png", (60, 60))))
    assert "is 60 x 60 pixels but its camera was made for 8 x 6" in text


def test_shapes():
    assert same_shape((4000, 3000), (4000, 3000))
    assert same_shape((4000, 3000), (333, 250))
    assert same_shape((504, 378), (4032, 3024))
    assert not same_shape((4000, 3000), (3000, 4000))
    assert not same_shape((4000, 3000), (4000, 2250))


def test_exif_rotation_is_applied_and_a_posed_unrotated_picture_is_refused(tmp_path):
    file = picture(tmp_path / "a.jpg", (60, 80), exif=rotated(6))
    colours, _, _ = load_colours(view_of(file, Camera("pinhole", 80, 60, 50, 50, 40, 30)))
    assert colours.shape == (60, 80, 3)
    text = refusal(load_colours, view_of(file, Camera("pinhole", 60, 80, 50, 50, 30, 40)))
    assert "is 80 x 60 pixels but its camera was made for 60 x 80, which it is before the rotation in its EXIF" in text


def test_transparency_lies_on_white(tmp_path):
    file = picture(tmp_path / "a.png", colour=(255, 0, 0, 51), mode="RGBA")
    colours, _, _ = load_colours(view_of(file))
    torch.testing.assert_close(colours[0, 0], torch.tensor([1.0, 0.8, 0.8]))


def test_heic(tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    picture(tmp_path / "images" / "a.HEIC", (64, 48), format="HEIF")
    capture = load_capture(write_json(tmp_path, [frame("images/a.heic")], w=64, h=48))
    assert load_colours(capture.views[0]).colours.shape == (48, 64, 3)
    assert "HEIF" in FORMATS


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no")
    assert "holds no picture" in refusal(load_colours, view_of(tmp_path / "a.png"))
    assert "does not exist" in refusal(load_colours, view_of(tmp_path / "b.png"))


def test_more_pixels_than_the_cap_are_refused(tmp_path):
    assert "megapixels" in refusal(load_colours, view_of(picture(tmp_path / "a.png")), 1e4)


def test_a_mask_counts_where_it_is_light_all_over(tmp_path):
    pixels = np.full((6, 8), 255, np.uint8)
    pixels[:, :3] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    view = view_of(picture(tmp_path / "a.png"), mask=tmp_path / "m.png")
    assert load_colours(view).weight[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert load_colours(view, 0.5).weight[0].tolist() == [0, 0, 1, 1]


def test_a_mask_that_leaves_nothing_is_refused(tmp_path):
    mask = picture(tmp_path / "m.png", colour=90, mode="L")
    text = refusal(load_colours, view_of(picture(tmp_path / "a.png"), mask=mask))
    assert "m.png: this mask leaves nothing of a.png" in text


def test_outside_the_circle_of_a_fisheye_nothing_counts(tmp_path):
    """A picture of 8 x 6 and a radius of 3: the far corner of a pixel may lie at (2, 2), (1, 2) ... but not (3, 1)."""
    view = view_of(picture(tmp_path / "a.png"), circle=3.0)
    inner = [0, 0, 1, 1, 1, 1, 0, 0]
    assert load_colours(view).weight.tolist() == [[0] * 8, inner, inner, inner, inner, [0] * 8]
    assert load_colours(view, 2.0).weight.sum() == disc_of(6.0)
    assert load_colours(view, 0.5).weight.tolist() == [[0] * 4, [0, 1, 1, 0], [0] * 4]
    pixels = np.full((6, 8), 255, np.uint8)
    pixels[:, :4] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    both = load_colours(view_of(view.file, circle=3.0, mask=tmp_path / "m.png")).weight
    assert both[2].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert "a.png: nothing is left of it inside" in refusal(load_colours, view_of(view.file, circle=1.0))


def disc_of(radius):
    """Unit squares of a grid around the origin that lie in a disc."""
    return sum((abs(x) + 1) ** 2 + (abs(y) + 1) ** 2 <= radius**2 for x in range(9) for y in range(9)) * 4


def test_a_circle_is_global_or_of_a_frame(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    frames = [frame("a.png"), frame("b.png", fisheye_crop_radius=3)]
    views = load_capture(write_json(tmp_path, frames, fisheye_crop_radius=4.5, camera_model="OPENCV_FISHEYE")).views
    assert [view.circle for view in views] == [4.5, 3]


def test_a_mask_of_another_shape_is_refused(tmp_path):
    mask = picture(tmp_path / "m.png", (90, 6), 255, "L")
    assert "m.png: is 90 x 6 pixels" in refusal(load_colours, view_of(picture(tmp_path / "a.png"), mask=mask))


# ---- nerfstudio and instant-ngp.


def test_transforms_by_hand(tmp_path):
    picture(tmp_path / "images" / "a.png")
    capture = load_capture(write_json(tmp_path, cx=3.5))
    (view,) = capture.views
    assert view.name == "images/a.png"
    assert view.file == tmp_path / "images" / "a.png"
    assert view.camera == Camera("pinhole", 8, 6, 4.0, 5.0, 3.5, 3.0)
    assert view.pose.tolist() == POSE[:3]
    assert view.pose.dtype == torch.float64
    assert (view.split, view.mask) == ("train", None)
    assert (capture.near, capture.far, capture.points, capture.problems) == (None, None, None, ())
    assert capture.background == "none"
    origins, directions = rays(view.camera, view.pose, torch.tensor([[2.5, 3.0]]))
    assert origins.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(directions, torch.tensor([[1.0, 0, 0]]))


@pytest.mark.parametrize(
    ("changes", "camera"),
    [
        ({"k1": 0.1, "p2": 0.01}, Camera("opencv", 8, 6, 4, 5, 4, 3, (0.1, 0, 0, 0.01, 0))),
        (
            {"distortion_params": [0.1, 0, 0.02, 0, 0.03, 0.04]},
            Camera("opencv", 8, 6, 4, 5, 4, 3, (0.1, 0, 0.03, 0.04, 0.02)),
        ),
        ({"camera_model": "OPENCV_FISHEYE", "k4": 0.001}, Camera("fisheye", 8, 6, 4, 5, 4, 3, (0, 0, 0, 0.001))),
        ({"is_fisheye": True}, Camera("fisheye", 8, 6, 4, 5, 4, 3, (0, 0, 0, 0))),
        ({"camera_model": "SIMPLE_PINHOLE"}, Camera("pinhole", 8, 6, 4, 5, 4, 3)),
        ({"fl_y": None}, Camera("pinhole", 8, 6, 4, 4, 4, 3)),
        ({"w": None, "h": None}, Camera("pinhole", 8, 6, 4, 5, 4, 3)),
        ({"w": 16.0, "h": 12.0}, Camera("pinhole", 16, 12, 4, 5, 8, 6)),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2}, Camera("pinhole", 8, 6, 4, 4, 4, 3)),
        (
            {"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2, "camera_angle_y": math.pi / 2},
            Camera("pinhole", 8, 6, 4, 3, 4, 3),
        ),
    ],
)
def test_intrinsics(tmp_path, changes, camera):
    picture(tmp_path / "images" / "a.png")
    found = load_capture(write_json(tmp_path, **changes)).views[0].camera
    assert found.model == camera.model
    assert found.distortion == pytest.approx(camera.distortion)
    assert (found.width, found.height) == (camera.width, camera.height)
    assert (found.fx, found.fy, found.cx, found.cy) == pytest.approx((camera.fx, camera.fy, camera.cx, camera.cy))


def test_intrinsics_of_a_frame_go_before_the_global_ones(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png", (8, 6) if name != "c" else (12, 10))
    frames = [frame("a.png"), frame("b.png", fl_x=9.0), frame("c.png", fl_x=7.0, w=12, h=10)]
    views = load_capture(write_json(tmp_path, frames)).views
    assert [view.camera.fx for view in views] == [4, 9, 7]
    assert [view.camera.width for view in views] == [8, 8, 12]


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    picture(tmp_path / "images" / "a.jpg", (6, 8), exif=rotated(8))
    capture = load_capture(write_json(tmp_path, [frame("images/a.jpg")], w=None, h=None))
    assert (capture.views[0].camera.width, capture.views[0].camera.height) == (8, 6)
    assert load_colours(capture.views[0]).colours.shape == (6, 8, 3)


@pytest.mark.parametrize(
    "name",
    [
        "images/a.png",
        "./images/a.png",
        "images\\a.png",
        "images/a",
        "images/a.PNG",
        "scene/images/a.png",
        "data/scene/images/a.png",
        "/elsewhere/of/somebody/images/a.png",
        "C:\\photos\\images\\a.png",
    ],
)
def test_pictures_are_found_under_the_names_of_other_machines(tmp_path, name):
    file = picture(tmp_path / "scene" / "images" / "a.png")
    capture = load_capture(write_json(tmp_path / "scene", [frame(name)]))
    assert capture.views[0].file.samefile(file)


def test_pictures_are_found_by_absolute_paths_and_beside_the_folder(tmp_path):
    picture(tmp_path / "far" / "a.png")
    picture(tmp_path / "images" / "b.JPEG")
    frames = [frame(str(tmp_path / "far" / "a")), frame("images/b.jpeg")]
    files = [view.file for view in load_capture(write_json(tmp_path / "scene", frames)).views]
    assert files == [tmp_path / "far" / "a.png", tmp_path / "images" / "b.JPEG"]


def test_paths_relative_to_where_another_program_was_started(tmp_path, monkeypatch):
    """instant-ngp writes them so; a picture of another capture that lies where we are is not taken."""
    picture(tmp_path / "data" / "fox" / "images" / "a.png")
    write_json(tmp_path / "data" / "fox", [frame("data/fox/images/a.png")])
    picture(tmp_path / "other" / "images" / "b.png")
    for folder in (tmp_path, tmp_path / "other"):
        monkeypatch.chdir(folder)
        (view,) = load_capture(tmp_path / "data" / "fox").views
        assert view.file == tmp_path / "data" / "fox" / "images" / "a.png"
    write_json(tmp_path / "data" / "fox", [frame("data/fox/images/a.png"), frame("images/b.png")])
    assert load_capture(tmp_path / "data" / "fox").problems == ("missing pictures, 1 of 2: images/b.png",)


def test_two_frames_found_as_one_picture_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    frames = [frame("left/a.png"), frame("right/a.png")]
    refused(write_json(tmp_path, frames), "left/a.png and right/a.png are both found as")


def test_missing_pictures_are_counted_and_named(tmp_path):
    picture(tmp_path / "images" / "a.png")
    names = ["images/a.png", *(f"images/{i}.png" for i in range(10))]
    capture = load_capture(write_json(tmp_path, [frame(name) for name in names]))
    assert [view.name for view in capture.views] == ["images/a.png"]
    (problem,) = capture.problems
    assert problem.startswith("missing pictures, 10 of 11: images/0.png, images/1.png, ")
    assert problem.endswith("images/7.png and 2 more")


def test_no_picture_left(tmp_path):
    text = refused(write_json(tmp_path), "no picture can be used: missing pictures, 1 of 1: images/a.png")
    assert "add the pictures" in text


def test_masks(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    picture(tmp_path / "masks" / "a.png", colour=255, mode="L")
    frames = [frame(mask_path="masks/a.png"), frame("images/b.png", mask_path="masks/b.png")]
    capture = load_capture(write_json(tmp_path, frames))
    assert [view.mask for view in capture.views] == [tmp_path / "masks" / "a.png"]
    assert capture.problems == ("missing pictures, 1 of 2: masks/b.png",)
    frames[1].pop("mask_path")
    refused(write_json(tmp_path, frames), "1 of 2 pictures have no mask though the others have one: images/b.png; give")


def test_splits_that_are_listed(tmp_path):
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    lists = {"train_filenames": ["a.png"], "val_filenames": ["./b.png"], "test_filenames": ["c.png"]}
    capture = load_capture(write_json(tmp_path, [frame(f"{name}.png") for name in "abcd"], **lists))
    assert [view.split for view in capture.views] == ["train", "val", "test"]
    assert capture.problems == ("frames in no split of transforms.json, left out: d.png",)
    lists["val_filenames"] = ["a.png"]
    refused(write_json(tmp_path, **lists), "a.png is listed as train and as val")


def test_every_eighth_view_is_for_testing(tmp_path):
    names = [f"{i:02}.png" for i in range(17)]
    for name in names:
        picture(tmp_path / name)
    capture = load_capture(write_json(tmp_path, [frame(name) for name in reversed(names)]))
    assert [view.name for view in capture.views if view.split == "test"] == ["16.png", "08.png", "00.png"]
    assert {view.split for view in capture.views} == {"train", "test"}


def test_near_and_far_and_background(tmp_path):
    picture(tmp_path / "a.png", mode="RGBA", colour=(0, 0, 0, 0))
    picture(tmp_path / "b.png")
    frames = [frame("a.png", near=1.5, far=4), frame("b.png", near=1, far=3)]
    capture = load_capture(write_json(tmp_path, frames))
    assert (capture.near, capture.far, capture.background) == (1, 4, "white")
    refused(write_json(tmp_path, [frame("a.png", near=5, far=4)]), "near is 5 and far 4")


HEADER = """ply
format {} 1.0
comment by hand
element vertex 2
property float x
property float y
property double z
property uchar red
element face 0
property list uchar int vertex_indices
end_header
"""


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_points_beside_the_transforms(tmp_path, order):
    picture(tmp_path / "images" / "a.png")
    write_json(tmp_path, [frame()], ply_file_path="points.ply")
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert capture.problems == ("missing points: points.ply, which transforms.json names",)
    form = (">" if "big" in order else "<") + "ffdB"
    rows = [(1.5, -2.0, 3.25, 200), (0.0, 4.0, 8.0, 7)]
    text = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    body = text if order == "ascii" else b"".join(struct.pack(form, *row) for row in rows)
    file = tmp_path / "points.ply"
    file.write_bytes(HEADER.format(order).encode() + body)
    assert load_capture(tmp_path).points.tolist() == [list(row[:3]) for row in rows]
    file.write_bytes(HEADER.format(order).encode() + body[: len(body) // 2])
    refused(tmp_path, "does not hold the 2 points that it announces")
    file.write_bytes(HEADER.replace("float x", "list uchar int x").format(order).encode() + body)
    refused(tmp_path, "has a header that is not understood")
    file.write_bytes(b"dear diary")
    refused(tmp_path, "is no PLY file")


def test_another_json_file(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write_json(tmp_path, name="other.json")
    assert len(load_capture(tmp_path / "other.json").views) == 1
    refused(picture(tmp_path / "images" / "a.png"), "is a file but not .json")


def pose_with(row, column, value):
    pose = [list(line) for line in POSE]
    pose[row][column] = value
    return pose


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transform_matrix": pose_with(0, 3, math.nan)}, ["frame images/a.png", "NaN"]),
        ({"transform_matrix": pose_with(0, 0, 0.1)}, ["frame images/a.png", "not orthogonal"]),
        ({"transform_matrix": pose_with(0, 2, 1.0)}, ["left-handed"]),
        ({"transform_matrix": pose_with(3, 3, 2.0)}, ["0 0 0 1"]),
        ({"transform_matrix": [[1, 2], [3]]}, ["transform_matrix is missing or not 4 x 4"]),
        ({"transform_matrix": "none"}, ["transform_matrix is missing or not 4 x 4"]),
        ({"transform_matrix": None}, ["transform_matrix is missing or not 4 x 4"]),
        ({"transform_matrix": [1.0] * 16}, ["shape [16]"]),
        ({"fl_x": 0}, ["focal length fx is 0.0"]),
        ({"fl_x": -3}, ["focal length fx is -3.0"]),
        ({"fl_x": math.nan}, ["focal length fx is nan"]),
        ({"fl_y": "5"}, ["fl_y is '5' and not a number"]),
        ({"fl_x": 10**400}, ["fl_x is an integer of 401 digits"]),
        ({"w": 0}, ["0 x 6 pixels"]),
        ({"w": 8.5}, ["w and h are 8.5 and 6"]),
        ({"w": None}, ["w is missing"]),
        ({"camera_model": "PINHOLE"}, ["frame images/a.png", "has a camera_model of its own, 'PINHOLE'"]),
        ({"fisheye_crop_radius": 0}, ["fisheye_crop_radius is 0; it must be positive"]),
        ({"fisheye_crop_radius": "wide"}, ["fisheye_crop_radius is 'wide' and not a number"]),
        ({"k4": 0.1}, ["k4 is not 0"]),
        ({"k1": 90.0, "k2": -9999.0}, ["distortion cannot be undone at the edge"]),
        ({"distortion_params": [1, 2]}, ["distortion_params is not a list of 6"]),
        ({"file_path": ""}, ["frame 0 has no file_path"]),
        ({"file_path": 3}, ["frame 0 has no file_path"]),
    ],
)
def test_bad_frames_are_refused_by_name(tmp_path, changes, words):
    picture(tmp_path / "images" / "a.png")
    refused(write_json(tmp_path, [frame() | changes]), str(tmp_path), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"camera_model": name}, f"frame images/a.png: camera_model {name} is not supported; use one of SIMPLE_")
            for name in ("EQUIRECTANGULAR", "ORTHOPHOTO", "FISHEYE624", "VR180_L", "OMNIDIRECTIONALSTEREO_R", "opencv")
        ),
        ({"camera_model": ["PINHOLE"]}, "camera_model ['PINHOLE'] is not supported"),
        ({"camera_model": "PINHOLE", "k1": 0.1}, "has distortion though"),
        ({"applied_transform": [[1, 0], [0, 1]]}, "applied_transform is not 3 x 4 numbers"),
        ({"applied_transform": {"a": 1}}, "applied_transform is not 3 x 4 numbers"),
        ({"applied_transform": 1.0}, "applied_transform is not 3 x 4 numbers"),
        ({"applied_scale": 0}, "applied_scale not positive"),
        ({"applied_scale": "2"}, "applied_scale is '2' and not a number"),
    ],
)
def test_bad_global_values_are_refused_by_name(tmp_path, changes, words):
    picture(tmp_path / "images" / "a.png")
    refused(write_json(tmp_path, **changes), str(tmp_path), words)


def test_what_was_applied_is_remembered_and_nothing_is_turned(tmp_path):
    """nerfstudio's own value: COLMAP's axes in another order; then everything shrunk to a half."""
    picture(tmp_path / "images" / "a.png")
    swap = [[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    capture = load_capture(write_json(tmp_path, applied_transform=swap, applied_scale=0.5, orientation_override="none"))
    assert capture.applied == (0, 0.5, 0, 0, 0.5, 0, 0, 0, 0, 0, -0.5, 0)
    assert capture.views[0].pose.tolist() == POSE[:3]
    assert load_capture(write_json(tmp_path)).applied == (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)


def test_depth_maps_are_said_not_to_be_used(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    frames = [frame("a.png", depth_file_path="depth/a.png"), frame("b.png")]
    (problem,) = load_capture(write_json(tmp_path, frames)).problems
    assert problem == "depth maps (depth_file_path), 1: not used, fields are trained on colours alone"


def test_a_frame_without_focal_length(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    folder = write_json(tmp_path, [frame("a.png", fl_x=4.0), frame("b.png")], fl_x=None, fl_y=None)
    refused(folder, "frame b.png", "has no focal length; give fl_x or camera_angle_x")
    refused(write_json(tmp_path, [frame("a.png")], fl_x=None, camera_angle_x=60), "camera_angle_x is 60", "radians")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'frames': 1}", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "holds a list"),
        ("{}", "has no frames"),
        ('{"frames": []}', "has no frames"),
        ('{"frames": {}}', "has no frames"),
        ('{"frames": [3]}', "frame 0 is a int"),
        ('{"frames": [{}], "train_filenames": 3}', "train_filenames is not a list"),
    ],
)
def test_what_is_no_transforms_file_is_refused(tmp_path, text, words):
    (tmp_path / "transforms.json").write_text(text)
    refused(tmp_path, "transforms.json", words)


def test_odd_file_names_stay_on_one_line(tmp_path):
    picture(tmp_path / "images" / "a.png")
    names = ["images/a.png", "b\n.png", "c\0.png", "d" * 5000 + ".png"]
    capture = load_capture(write_json(tmp_path, [frame(name) for name in names]))
    assert len(capture.views) == 1
    assert capture.problems[0].isprintable()


def test_nothing_there(tmp_path):
    refused(tmp_path / "none", "does not exist")
    refused(tmp_path, "holds no poses (transforms.json, ", "estimate them with: fedfields photos")
    picture(tmp_path / "images" / "a.png")
    refused(write_json(tmp_path), "holds no poses in the layout llff", layout="llff")


# ---- Blender.


def write_blender(folder, **splits):
    for split, names in splits.items():
        for name in names:
            picture(folder / split / f"{name}.png", (10, 10), (0, 0, 255, 0), "RGBA")
        frames = [frame(f"./{split}/{name}") for name in names]
        meta = {"fl_x": None, "fl_y": None, "w": None, "h": None, "camera_angle_x": 2 * math.atan(0.5)}
        write_json(folder, frames, f"transforms_{split}.json", **meta)
    return folder


def test_blender_by_hand(tmp_path):
    capture = load_capture(write_blender(tmp_path, train=["r_0", "r_1"], val=["r_0"], test=["r_0", "r.5"]))
    assert [view.split for view in capture.views] == ["train", "train", "val", "test", "test"]
    assert capture.views[4].file == tmp_path / "test" / "r.5.png"
    assert capture.background == "white"
    camera = capture.views[0].camera
    assert (camera.width, camera.height, camera.cx, camera.cy) == (10, 10, 5, 5)
    assert camera.fx == camera.fy == pytest.approx(10)
    assert (load_colours(capture.views[0]).colours == 1).all()


def test_blender_with_train_only_holds_nothing_back(tmp_path):
    capture = load_capture(write_blender(tmp_path, train=["r_0", "r_1"]))
    assert [view.split for view in capture.views] == ["train", "train"]


def test_blender_with_missing_pictures(tmp_path):
    folder = write_blender(tmp_path, train=["r_0", "r_1"], test=["r_0"])
    (folder / "train" / "r_0.png").unlink()
    capture = load_capture(folder)
    assert capture.problems == ("missing pictures, 1 of 3: ./train/r_0",)
    assert len(capture.views) == 2


# ---- LLFF.


def write_llff(folder, count=3, **changes):
    # At (1, 2, 3), looking along +X, with +Z up: down, right, back, position, (height, width, focal).
    matrix = np.array([[0.0, 0, -1, 1, 6], [0, -1, 0, 2, 8], [-1, 0, 0, 3, 4]])
    rows = np.stack([np.append(matrix.ravel(), (1.0 + i, 9.0 + i)) for i in range(count)])
    for (row, column), value in changes.get("at", {}).items():
        rows[row, column] = value
    for i in range(changes.get("pictures", count)):
        picture(folder / changes.get("inside", "images") / f"{i}.JPG", format="JPEG")
    np.save(folder / "poses_bounds.npy", rows)
    return folder


def test_llff_by_hand(tmp_path):
    capture = load_capture(write_llff(tmp_path))
    assert [view.name for view in capture.views] == ["0.JPG", "1.JPG", "2.JPG"]
    assert capture.views[0].pose.tolist() == POSE[:3]
    assert capture.views[0].camera == Camera("pinhole", 8, 6, 4.0, 4.0, 4.0, 3.0)
    assert (capture.near, capture.far) == (1, 11)
    assert [view.split for view in capture.views] == ["test", "train", "train"]


def test_llff_with_small_pictures_only(tmp_path):
    capture = load_capture(write_llff(tmp_path, inside="images_4"))
    assert capture.views[0].file.parent.name == "images_4"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures": 2}, "has 3 poses but the pictures are 2 in images"),
        ({"pictures": 5}, "has 3 poses but the pictures are 5 in images, 0 in images_2"),
        ({"at": {(1, 3): math.nan}}, "row of 1.JPG: the pose holds NaN"),
        ({"at": {(1, 0): 0.5}}, "row of 1.JPG: the pose has no rotation"),
        ({"at": {(2, 14): 0.0}}, "row of 2.JPG: focal length fx is 0.0"),
        ({"at": {(2, 4): 0.5}}, "size is 0.5"),
        ({"at": {(2, 15): math.nan}}, "near is nan"),
    ],
)
def test_bad_llff_is_refused(tmp_path, changes, words):
    refused(write_llff(tmp_path, **changes), words)


def test_llff_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "poses_bounds.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(tmp_path, "is no array of numbers")
    (tmp_path / "poses_bounds.npy").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, "is no array of numbers")
    np.save(tmp_path / "poses_bounds.npy", np.zeros((3, 15)))
    refused(tmp_path, "has shape [3, 15]")
    assert not (tmp_path / "sprung").exists()


# ---- COLMAP.


def model_of(model="SIMPLE_RADIAL", params=(80, 32, 24, 0.05), rigs=2, frames=3, points=40):
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = rigs, 2, frames
    options.num_points3D = points
    options.camera_width, options.camera_height = 64, 48
    options.camera_model_id = getattr(pycolmap.CameraModelId, model)
    options.camera_params = list(params)
    return pycolmap.synthesize_dataset(options)


def write_model(model, folder, pictures=None, text=False):
    folder.mkdir(parents=True)
    (model.write_text if text else model.write_binary)(str(folder))
    if pictures is not None:
        for image in model.images.values():
            picture(pictures / image.name, (64, 48))


def check_views(capture, model):
    """Every point lies on the picture where COLMAP says, and every ray leads back to it."""
    images = {image.name: image for image in model.images.values()}
    assert [view.name for view in capture.views] == sorted(images)
    for view in capture.views:
        image = images[view.name]
        seen = list(image.get_observation_points2D())
        points = torch.tensor(np.array([model.points3D[point.point3D_id].xyz for point in seen]))
        places = torch.tensor(np.array([point.xy for point in seen]))
        world = inverted(view.pose)
        local = points @ world[:, :3].T + world[:, 3]
        torch.testing.assert_close(view.camera.project(local), places, rtol=0, atol=1e-6)
        origins, directions = rays(view.camera, view.pose, places.flip(1) - 0.5)
        wanted = torch.nn.functional.normalize(points - origins, dim=1)
        torch.testing.assert_close(directions, wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(view.pose[:, 3], image.projection_center(), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("SIMPLE_PINHOLE", (80, 31, 25)),
        ("PINHOLE", (80, 82, 31, 25)),
        ("SIMPLE_RADIAL", (80, 31, 25, -0.1)),
        ("RADIAL", (80, 31, 25, -0.1, 0.02)),
        ("OPENCV", (80, 82, 31, 25, -0.1, 0.02, 0.001, -0.002)),
        ("FULL_OPENCV", (80, 82, 31, 25, -0.1, 0.02, 0.001, -0.002, 0.01, 0, 0, 0)),
        ("OPENCV_FISHEYE", (40, 41, 31, 25, -0.01, 0.002, 0.001, -0.002)),
        ("SIMPLE_RADIAL_FISHEYE", (40, 31, 25, -0.01)),
        ("RADIAL_FISHEYE", (40, 31, 25, -0.01, 0.002)),
    ],
)
def test_colmap_models(tmp_path, name, params):
    model = model_of(name, params)
    write_model(model, tmp_path / "sparse" / "0", tmp_path / "images")
    capture = load_capture(tmp_path)
    check_views(capture, model)
    assert capture.points is not None
    assert capture.points.shape == (40, 3)
    assert capture.problems == ()


def test_an_image_id_is_no_camera_id(tmp_path):
    model = model_of(rigs=3)
    for camera in model.cameras.values():
        camera.params = [80 + camera.camera_id, 32, 24, 0.0]
    assert any(image.image_id != image.camera_id for image in model.images.values())
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    wanted = {image.name: 80 + image.camera_id for image in model.images.values()}
    assert {view.name: view.camera.fx for view in load_capture(tmp_path).views} == wanted


@pytest.mark.parametrize(
    ("sparse", "images"),
    [
        ("sparse/0", "images"),
        ("sparse", "images"),
        ("dense/sparse", "dense/images"),
        ("sparse_undistorted/0", "images"),
        ("colmap/sparse/0", "images"),
        (".", "images"),
        ("sparse/0", "."),
        ("sparse/0", "images_2"),
        ("sparse/0", "input"),
    ],
)
@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
def test_where_models_and_pictures_are(tmp_path, sparse, images, text):
    model = model_of()
    write_model(model, tmp_path / "scene" / sparse, tmp_path / "scene" / images, text)
    check_views(load_capture(tmp_path / "scene"), model)


def test_near_and_far_are_percentiles_of_depth(tmp_path):
    model = model_of()
    depths = []
    for image in model.images.values():
        world = image.cam_from_world().matrix()
        depths += [(world @ np.append(point.xyz, 1))[2] for point in model.points3D.values()]
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    capture = load_capture(tmp_path)
    assert (capture.near, capture.far) == pytest.approx(np.percentile(depths, [0.1, 99.9]))


def test_the_largest_of_several_models_is_used(tmp_path):
    small, large = model_of(rigs=1), model_of(rigs=3)
    write_model(small, tmp_path / "sparse" / "0", tmp_path / "images")
    write_model(large, tmp_path / "sparse" / "1", tmp_path / "images")
    capture = load_capture(tmp_path)
    check_views(capture, large)
    (problem,) = capture.problems
    assert "2 models that do not connect (sparse/0 with 6 images, sparse/1 with 18 images); the largest" in problem


def test_unregistered_and_missing_pictures(tmp_path):
    model = model_of()
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    names = sorted(image.name for image in model.images.values())
    (tmp_path / "images" / names[0]).rename(tmp_path / "images" / "extra.png")
    capture = load_capture(tmp_path)
    assert [view.name for view in capture.views] == names[1:]
    assert capture.problems == (
        f"missing pictures, 1 of 12: {names[0]}",
        "pictures without a pose (COLMAP could not place them), 1 of 12: extra.png",
    )
    shutil.rmtree(tmp_path / "images")
    refused(tmp_path, "no picture can be used: missing pictures, 12 of 12: ")


@pytest.mark.parametrize("form", ["{}.png", "{}"])
def test_masks_beside_a_model(tmp_path, form):
    """COLMAP appends .png to the whole name; others give the mask the picture's own name."""
    write_model(model_of(), tmp_path / "sparse" / "0", tmp_path / "images")
    pictures = sorted((tmp_path / "images").iterdir())
    for file in pictures:
        picture(tmp_path / "masks" / form.format(file.name), (64, 48), 255, "L")
    masks = [view.mask for view in load_capture(tmp_path).views]
    assert masks == [tmp_path / "masks" / form.format(file.name) for file in pictures]
    masks[3].unlink()
    refused(tmp_path, f"1 of 12 pictures have no mask though the others have one: {pictures[3].name}")


def test_images_without_pose_in_the_model_are_no_views(tmp_path):
    model = model_of()
    model.deregister_frame(1)
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    assert len(load_capture(tmp_path).views) == 10


def test_a_model_without_points_has_no_bounds(tmp_path):
    model = model_of()
    model.delete_all_points2D_and_points3D()
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    capture = load_capture(tmp_path)
    assert (capture.near, capture.far, capture.points) == (None, None, None)


def test_unsupported_colmap_cameras_are_refused_by_name(tmp_path):
    write_model(model_of("FOV", (80, 82, 31, 25, 0.1)), tmp_path / "sparse", tmp_path / "images")
    refused(tmp_path, "camera 1: its model, FOV, is not supported; undistort the pictures")


def test_full_opencv_with_a_denominator_is_refused(tmp_path):
    params = (80, 82, 31, 25, -0.1, 0.02, 0.001, -0.002, 0.01, 0.1, 0, 0)
    write_model(model_of("FULL_OPENCV", params), tmp_path / "sparse", tmp_path / "images")
    refused(tmp_path, "FULL_OPENCV with k4, k5 or k6 is not supported")


def test_a_zero_focal_length_is_refused(tmp_path):
    model = model_of()
    model.cameras[1].params = [0.0, 32, 24, 0.0]
    write_model(model, tmp_path / "sparse", tmp_path / "images")
    refused(tmp_path, "camera 1: focal length fx is 0.0")


@pytest.mark.parametrize("keep", [0, 4, 50, 2000])
def test_damaged_models_are_refused(tmp_path, keep):
    write_model(model_of(), tmp_path / "sparse", tmp_path / "images")
    file = tmp_path / "sparse" / "images.bin"
    file.write_bytes(file.read_bytes()[:keep])
    refused(tmp_path, "images.bin: is damaged: it ends before what it announces")


@pytest.mark.parametrize("name", ["images", "points3D", "frames", "rigs"])
def test_a_count_beyond_the_end_of_the_file_is_refused_at_once(tmp_path, name):
    """COLMAP's own reader goes on for hours, and points3D.bin fills the memory."""
    write_model(model_of(), tmp_path / "sparse", tmp_path / "images")
    file = tmp_path / "sparse" / f"{name}.bin"
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])
    refused(tmp_path, f"{name}.bin: is damaged: it ends before what it announces")


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    model = model_of()
    write_model(model, tmp_path / "sparse", tmp_path / "images", text=True)
    file, name = tmp_path / "sparse" / "images.txt", next(iter(model.images.values())).name.encode()
    file.write_bytes(file.read_bytes().replace(name, b"caf\xe9.png"))
    refused(tmp_path, "holds a picture's name that is not UTF-8")


def test_without_pycolmap(tmp_path, monkeypatch):
    write_model(model_of(), tmp_path / "sparse", tmp_path / "images")
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    refused(tmp_path, 'pip install "fedfields[photos]"')


# ---- Photo Tourism.


def write_split(folder, rows, heading="filename\tid\tsplit\tdataset"):
    (folder / "place.tsv").write_text("\n".join([heading, *("\t".join(row) for row in rows)]))


def test_phototourism_splits(tmp_path):
    model = model_of(rigs=1, frames=2)
    write_model(model, tmp_path / "dense" / "sparse", tmp_path / "dense" / "images")
    names = sorted(image.name for image in model.images.values())
    rows = [(names[0], "1", "train", "p"), (names[1], "2", "test", "p"), (names[2], "", "", "p")]
    write_split(tmp_path, [*rows, ("elsewhere.jpg", "9", "train", "p")])
    capture = load_capture(tmp_path)
    assert [(view.name, view.split) for view in capture.views] == [(names[0], "train"), (names[1], "test")]
    assert capture.problems == (f"pictures in no split of place.tsv, left out, 2 of 4: {names[2]}, {names[3]}",)


def test_bad_split_files_are_refused(tmp_path):
    write_model(model_of(), tmp_path / "sparse", tmp_path / "images")
    write_split(tmp_path, [("a.jpg", "train")], "file\tsplit")
    refused(tmp_path, "place.tsv: has no columns filename and split")
    write_split(tmp_path, [("a.jpg", "1", "practice", "p")])
    refused(tmp_path, "the split of a.jpg is practice")
    write_split(tmp_path, [("a.jpg", "1", "train", "p")])
    refused(tmp_path, "no picture can be used: pictures in no split of place.tsv")


# ---- Mega-NeRF.

ORIGIN, SCALE = torch.tensor([-300.0, 4.0e5, 5.0e6], dtype=torch.float64), 80.0


def write_meganerf(folder, **changes):
    """Three cameras over flat ground, each looking straight down with the top of the picture to the north.

    The world is down, right (east), back (south): at height 100 the first number is -100. A drone that looks down has
    its right to the east (0, 1, 0), its up to the north (0, 0, -1), its back to the sky (-1, 0, 0).
    """
    rotation = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
    for i, split in enumerate(("train", "val", "train")):
        picture(folder / split / "rgbs" / f"00000{i}.jpg")
        place = (torch.tensor([-400.0, 4.0e5 + 20 * i, 5.0e6], dtype=torch.float64) - ORIGIN) / SCALE
        c2w = torch.cat([rotation, place[:, None].float()], 1)
        values = {"H": 6, "W": 8, "c2w": c2w, "intrinsics": torch.tensor([4.0, 5, 4, 3]), "distortion": torch.ones(4)}
        values |= changes if i == 2 else {}
        (folder / split / "metadata").mkdir(exist_ok=True)
        torch.save(values, folder / split / "metadata" / f"00000{i}.pt")
    torch.save({"origin_drb": ORIGIN, "pose_scale_factor": SCALE}, folder / "coordinates.pt")
    (folder / "mappings.txt").write_text("".join(f"DJI_{i}.JPG,00000{i}.pt\n" for i in range(3)))
    return folder


def test_meganerf_by_hand(tmp_path):
    capture = load_capture(write_meganerf(tmp_path))
    found = {view.name: view.split for view in capture.views}
    assert found == {"train/rgbs/000000.jpg": "train", "train/rgbs/000002.jpg": "train", "val/rgbs/000001.jpg": "test"}
    assert capture.views[0].camera == Camera("pinhole", 8, 6, 4.0, 5.0, 4.0, 3.0)
    # 100 under the second camera is the ground; a pixel above the middle sees what lies to the north of it.
    view = capture.views[1]
    torch.testing.assert_close(view.pose[:, 3], torch.tensor([-400.0, 400040, 5e6]).double(), rtol=0, atol=1e-3)
    origins, ways = rays(view.camera, view.pose, torch.tensor([[2.5, 3.5], [-2.5, 3.5]], dtype=torch.float64))
    ground = origins - ways / ways[:, :1] * -100
    wanted = torch.tensor([[-300.0, 400040, 5e6], [-300, 400040, 5e6 - 100]]).double()
    torch.testing.assert_close(ground, wanted, rtol=0, atol=1e-3)
    (tmp_path / "train" / "rgbs" / "000000.jpg").unlink()
    assert load_capture(tmp_path).problems == ("missing pictures, 1 of 3: train/rgbs/000000",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c2w": torch.zeros(3, 4)}, "has no rotation"),
        ({"c2w": torch.zeros(4, 4)}, "c2w has shape [4, 4] where [3, 4] was expected"),
        ({"c2w": "none"}, "c2w is missing or no number"),
        ({"intrinsics": torch.zeros(4)}, "focal length fx is 0.0"),
        ({"W": 8.5}, "W and H are 8.5 and 6"),
        ({"H": None}, "H is missing or no number"),
        ({"W": 2**70}, "000002.pt"),
    ],
)
def test_bad_meganerf_is_refused(tmp_path, changes, words):
    refused(write_meganerf(tmp_path, **changes), "000002.pt", words)


def test_meganerf_is_read_as_tensors_only(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    file = write_meganerf(tmp_path) / "train" / "metadata" / "000002.pt"
    torch.save({"c2w": Trap()}, file)
    refused(tmp_path, "000002.pt: is no file of tensors that can be read safely")
    file.write_bytes(b"dear diary")
    refused(tmp_path, "000002.pt: is no file of tensors that can be read safely")
    torch.save([1], file)
    refused(tmp_path, "000002.pt: holds a list")
    torch.save({"origin_drb": ORIGIN, "pose_scale_factor": 0.0}, tmp_path / "coordinates.pt")
    refused(tmp_path, "pose_scale_factor not positive")
    assert not (tmp_path / "sprung").exists()


# ---- Real data.


@pytest.mark.parametrize("folder", [shared("lego100")])
def test_lego(folder):
    capture = load_capture(folder)
    assert [[view.split for view in capture.views].count(split) for split in ("train", "val", "test")] == [100, 25, 25]
    assert capture.problems == ()
    camera = capture.views[0].camera
    assert (camera.width, camera.height) == (100, 100)
    assert camera.fx == pytest.approx(138.8889, abs=1e-4)  # 0.5 * 100 / tan(0.5 * 0.6911112)
    colours, weight, _ = load_colours(capture.views[0], 0.5)
    assert colours.shape == (50, 50, 3)
    assert (colours[0, 0] == 1).all()  # The ground.
    assert weight.all()
    # All cameras look at the model, about 4 units away.
    for view in capture.views:
        _, direction = rays(camera, view.pose, torch.tensor([[49.5, 49.5]], dtype=torch.float64))
        assert view.pose[:, 3].norm() == pytest.approx(4.0311, abs=1e-3)
        torch.testing.assert_close(direction[0], -view.pose[:, 3] / 4.0311, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("folder", "count", "points"),
    [
        pytest.param(*shared("sacre_coeur").values, 10, 2686, id="sacre_coeur", marks=shared("sacre_coeur").marks),
        pytest.param(*shared("drone").values, 18, 4313, id="drone", marks=shared("drone").marks),
    ],
)
def test_one_scene_from_colmap_and_from_json(folder, count, points):
    pytest.importorskip("pycolmap")
    ours, theirs = load_capture(folder, "transforms"), load_capture(folder, "colmap")
    assert len(ours.views) == len(theirs.views) == count
    assert theirs.points is not None
    assert theirs.points.shape == (points, 3)
    assert theirs.problems == ours.problems == ()
    views = {view.name: view for view in theirs.views}
    for view in ours.views:
        twin = views[Path(view.name).name]
        assert view.file == twin.file
        assert view.split == twin.split
        pixels = view.camera.pixels()[::5003].double()
        pairs = zip(rays(view.camera, view.pose, pixels), rays(twin.camera, twin.pose, pixels), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
        assert load_colours(view, 0.1).camera == view.camera.scaled(0.1)
    # The bounds agree as far as percentiles over frames and over all points can.
    assert theirs.near == pytest.approx(ours.near, rel=0.1)
    assert theirs.far == pytest.approx(ours.far, rel=0.1)


def test_opencv_axes_by_hand():
    # COLMAP's identity looks along +Z with +Y down; ours, at the same place, must look there too.
    camera = Camera("pinhole", 8, 6, 4, 4, 4, 3)
    pixels = torch.tensor([[2.5, 3.5], [2.5, 7.5], [6.5, 3.5]])
    _, directions = rays(camera, from_opencv(torch.eye(3, 4)), pixels)
    half = math.sqrt(0.5)
    torch.testing.assert_close(directions, torch.tensor([[0.0, 0, 1], [half, 0, half], [0, half, half]]))
