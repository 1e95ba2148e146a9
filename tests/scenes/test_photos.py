"""Cameras for somebody's own photographs: rendered ones, whose cameras are known, and real ones."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageFilter, PngImagePlugin
from rich.console import Console

from fedfields import terminal
from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.scenes.captures import load_capture
from fedfields.scenes.copies import copy_names, copy_photo
from fedfields.scenes.photos import PhotoSettings, Placement, place_photos
from fedfields.scenes.posed import load_colours
from fedfields.scenes.unplaced import Links, reason
from tests.scenes import room

pycolmap = pytest.importorskip("pycolmap")
pillow_heif.register_heif_opener()

SHARED = Path(os.environ.get("FEDFIELDS_DATA", Path(__file__).parents[3] / "shared" / "data"))
FAST = PhotoSettings(threads=1, features=1500)
ANGLES = [0.22 * i for i in range(12)]


def exif_of(orientation=1, focal=32):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Fujinon", "Pocket 3", orientation
    details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    if focal:
        details[0xA405] = focal
    place[1], place[2], place[3], place[4] = "N", (48.0, 53.0, 12.0), "E", (2.0, 20.0, 35.0)
    return exif


def tilted(image):
    """The pixels as a camera on its side stores them; orientation 6 turns them upright."""
    return image.transpose(Image.Transpose.ROTATE_90)


def save_as(image, path, index):
    """A photograph in one of the formats that people have."""
    if path.suffix == ".HEIC":
        image.save(path, quality=95, exif=exif_of())
    elif index % 4 == 1:
        tilted(image).save(path, quality=97, exif=exif_of(orientation=6))
    elif path.suffix in (".JPG", ".jpg", ".WEBP"):
        image.save(path, quality=97, exif=exif_of(), comment=b"at home") if path.suffix != ".WEBP" else image.save(
            path, quality=97
        )
    else:
        image.save(path)


class Trip(NamedTuple):
    folder: Path
    placement: Placement
    truth: dict
    steps: list


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """Twelve photographs and four that cannot be placed, and what was made of them."""
    folder = tmp_path_factory.mktemp("holiday")
    scene, truth = room.faces(), {}
    suffixes = (".JPG", ".jpg", ".HEIC", ".png", ".WEBP", ".jpg", ".jpeg", ".TIFF", ".jpg", ".jpg", ".bmp", ".jpg")
    for i, (angle, suffix) in enumerate(zip(ANGLES, suffixes, strict=True)):
        pose = room.camera(angle)
        image = room.photograph(*pose, scene)
        save_as(image, folder / f"IMG {i:02d}{suffix}", i)
        truth[f"IMG_{i:02d}.jpg"] = pose
    room.photograph(*room.camera(0.1), scene).filter(ImageFilter.GaussianBlur(14)).save(folder / "blurred.jpg")
    Image.new("RGB", room.SIZE, (90, 120, 60)).save(folder / "pocket.jpg")
    Image.fromarray(room.texture(999).astype(np.uint8)).resize((400, 300)).save(folder / "poster.png")
    (folder / "broken.jpg").write_text("dear diary")
    (folder / "notes.txt").write_text("not a photo")
    steps = []
    made = place_photos(folder, folder.parent / "made", FAST, lambda *step: steps.append(step))
    return Trip(folder, made, truth, steps)


def outcome(trip, name):
    return next(photo for photo in trip.placement.photos if photo.name == name)


def test_poses_are_true_up_to_a_similarity(trip):
    views = load_capture(trip.placement.folder).views
    assert {view.name.removeprefix("images/") for view in views} == trip.truth.keys()
    truth = [trip.truth[Path(view.name).name] for view in views]
    ours = np.stack([view.pose[:, 3].numpy() for view in views])
    theirs = np.stack([place for _, place in truth])
    similarity = pycolmap.estimate_sim3d(ours, theirs)
    away = np.linalg.norm(np.stack([similarity * place for place in ours]) - theirs, axis=1)
    assert away.max() < 0.01 * 4.2
    turn = similarity.rotation.matrix()
    for view, (rotation, _) in zip(views, truth, strict=True):
        found = turn @ view.pose[:, :3].numpy() @ np.diag([1, -1, -1])
        angle = np.degrees(np.arccos(np.clip((np.trace(found @ rotation) - 1) / 2, -1, 1)))
        assert angle < 1
        assert view.camera.fx == pytest.approx(room.FOCAL, rel=0.03)
    assert trip.placement.points > 300
    assert trip.placement.error < 1


def test_both_layouts_are_one_capture(trip):
    json, colmap = (load_capture(trip.placement.folder, layout) for layout in ("transforms", "colmap"))
    assert json.points is not None and colmap.points is not None
    assert len(json.points) == trip.placement.points
    torch.testing.assert_close(json.points.mean(0), colmap.points.mean(0), rtol=1e-5, atol=1e-5)
    assert (json.near, json.far) == (colmap.near, colmap.far)
    for one, other in zip(json.views, colmap.views, strict=True):
        assert one.file == other.file
        assert one.camera == other.camera
        torch.testing.assert_close(one.pose, other.pose, rtol=0, atol=1e-12)
        assert load_colours(one).colours.shape == (one.camera.height, one.camera.width, 3)


def test_each_that_is_not_placed_is_named_with_its_reason(trip):
    assert {photo.name for photo in trip.placement.photos if photo.status == "placed"} == {
        path.name for path in trip.folder.glob("IMG*")
    }
    assert "no features" in outcome(trip, "blurred.jpg").reason
    assert outcome(trip, "pocket.jpg").reason.startswith("no features (0 found): blurred, dark or plain")
    assert "too few matches with any other" in outcome(trip, "poster.png").reason
    broken = outcome(trip, "broken.jpg")
    assert broken.status == "unreadable"
    assert "holds no picture that can be read" in broken.reason
    assert "notes.txt" not in {photo.name for photo in trip.placement.photos}
    assert all(photo.points > 20 for photo in trip.placement.photos if photo.status == "placed")


def test_copies_hold_nothing_but_pixels(trip):
    for file in (trip.placement.folder / "images").iterdir():
        with Image.open(file) as image:
            assert image.format == "JPEG"
            assert not image.getexif()
            assert not {"exif", "xmp", "comment", "icc_profile"} & image.info.keys()
            assert image.size in (room.SIZE, (400, 300))
        assert b"Exif" not in file.read_bytes()
    # Those from the same device at the same zoom share a camera; the others have one each.
    model = pycolmap.Reconstruction(str(trip.placement.folder / "sparse" / "0"))
    shared = {image.camera_id for image in model.images.values() if image.name in ("IMG_00.jpg", "IMG_01.jpg")}
    assert len(shared) == 1
    assert len(model.cameras) > 1


def test_only_the_result_is_left(trip):
    assert {path.name for path in trip.placement.folder.iterdir()} == {
        "images",
        "sparse",
        "transforms.json",
        "points.ply",
    }
    assert not [path for path in trip.folder.parent.iterdir() if path.name.startswith(".made")]
    stages = list(dict.fromkeys(what for what, _, _ in trip.steps))
    assert stages == ["copying", "finding features", "matching", "placing"]
    assert all(0 <= done < total for _, done, total in trip.steps)


def test_the_table_says_why(trip, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=text, width=200))
    terminal.show_placement(trip.placement)
    assert "12 of 16 photos are placed" in text.getvalue()
    line = next(line for line in text.getvalue().splitlines() if "poster.png" in line)
    assert "not placed" in line and "too few matches" in line


def test_a_video_is_matched_in_time_and_ends_the_same_twice(tmp_path):
    scene, frames = room.faces(1), tmp_path / "frames"
    frames.mkdir()
    for i in range(11):
        room.photograph(*room.camera(0.2 * i), scene).save(frames / f"f{i}.jpg", quality=95)
    settings = PhotoSettings(order="video", threads=1, features=500)
    first = place_photos(frames, tmp_path / "a", settings)
    assert [photo.status for photo in first.photos] == ["placed"] * 11
    assert [photo.name for photo in first.photos][:2] == ["f0.jpg", "f1.jpg"]
    names = sorted(path.name for path in (tmp_path / "a" / "images").iterdir())
    assert names[2] == "00002_f2.jpg" and names[10] == "00010_f10.jpg"
    assert len({view.camera for view in load_capture(tmp_path / "a").views}) == 1
    place_photos(frames, tmp_path / "b", settings)
    assert (tmp_path / "a" / "transforms.json").read_bytes() == (tmp_path / "b" / "transforms.json").read_bytes()


@pytest.mark.skipif(not (SHARED / "sacre_coeur").is_dir(), reason="FEDFIELDS_DATA is not there")
def test_photographs_by_ten_strangers(tmp_path):
    made = place_photos(SHARED / "sacre_coeur" / "images", tmp_path / "made", PhotoSettings(threads=1))
    placed = [photo.name for photo in made.photos if photo.status == "placed"]
    assert len(placed) >= 6, made.photos
    assert len(load_capture(tmp_path / "made").views) == len(placed)


# ---- What is refused.


def refused(folder, out, match, settings=FAST):
    with pytest.raises(UserError, match=match) as caught:
        place_photos(folder, out, settings)
    assert "\n" not in str(caught.value)


def plain(folder, count, suffix=".jpg"):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (120, 90), (20 * i, 90, 60)).save(folder / f"{i}{suffix}")
    return folder


def test_too_few_photos(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "out", "does not exist; give the folder that your photos are in")
    refused(plain(tmp_path / "a", 2), tmp_path / "out", "holds 2 photos .* at least 3 are needed")
    for i in range(4):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(b"")
    refused(tmp_path / "a", tmp_path / "out", "4 of the 4 photos in .* cannot be read, such as 0.jpg: is empty")
    assert not (tmp_path / "out").exists()


def test_nothing_placed_leaves_nothing(tmp_path):
    refused(
        plain(tmp_path / "a", 4), tmp_path / "out", r"no 3 of the 4 photos could be placed together \(no features: 4"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused(plain(tmp_path / "a", 3), tmp_path / "out", "out is not empty; choose a new folder with --out")
    refused(tmp_path / "a", tmp_path / "a" / "0.jpg", "is a file; choose a new folder with --out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_interruption_leaves_nothing(tmp_path):
    def interrupt(what, done, total):
        if what == "finding features":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_photos(plain(tmp_path / "a", 3), tmp_path / "out", FAST, interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_without_pycolmap(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    refused(plain(tmp_path / "a", 3), tmp_path / "out", r'pip install "fedfields\[photos\]"')


@pytest.mark.parametrize("wrong", [{"size": 10}, {"features": 1}, {"threads": -1}, {"seed": -1}])
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhotoSettings(**wrong)


def test_the_command(tmp_path, capsys):
    plain(tmp_path / "a", 3)
    for words, said in (
        (["photos"], "needs one DIR, found 0"),
        (["photos", str(tmp_path / "a"), "--size", "3"], "must be at least 64 pixels"),
        (["photos", str(tmp_path / "a"), "--threads", "1"], "take sharp photos of things with texture"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_help_answers_without_torch_and_pycolmap():
    code = (
        "import sys; from fedfields.cli import main\n"
        "try: main(['photos', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pycolmap', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# ---- Copies.


def test_focal_lengths_from_exif(tmp_path):
    image, diagonal = Image.new("RGB", (400, 300)), 500
    image.save(tmp_path / "a.jpg", exif=exif_of(focal=26))
    copy = copy_photo(tmp_path / "a.jpg", tmp_path / "copy.jpg", 200)
    assert (copy.width, copy.height) == (200, 150)
    assert copy.focal == pytest.approx(26 / np.hypot(36, 24) * diagonal / 2)
    assert copy.device.startswith("Fujinon Pocket 3 at ")
    # By the density of pixels on the sensor: 1000 of them in a cm, so a sensor of 4 x 3 mm.
    exif = exif_of(focal=0)
    details = exif.get_ifd(0x8769)
    details[0x920A], details[0xA20E], details[0xA210], details[0xA002], details[0xA003] = 5.0, 1000.0, 3, 400, 300
    image.save(tmp_path / "b.jpg", exif=exif)
    assert copy_photo(tmp_path / "b.jpg", tmp_path / "copy.jpg", 400).focal == pytest.approx(500)
    # The same picture cropped: its EXIF is no longer true.
    image.crop((0, 0, 200, 300)).save(tmp_path / "c.jpg", exif=exif)
    assert copy_photo(tmp_path / "c.jpg", tmp_path / "copy.jpg", 400)[3:] == (None, "")
    image.rotate(90, expand=True).save(tmp_path / "c.heic", exif=exif)  # Stored upright, which EXIF does not say.
    assert copy_photo(tmp_path / "c.heic", tmp_path / "copy.jpg", 400).focal == pytest.approx(500)
    image.save(tmp_path / "d.jpg")
    assert copy_photo(tmp_path / "d.jpg", tmp_path / "copy.jpg", 400)[3:] == (None, "")


def test_copies_are_upright_and_small_and_bare(tmp_path):
    image = Image.new("RGB", (300, 200), "white")
    image.paste((255, 0, 0), (0, 0, 300, 40))
    tilted(image).save(tmp_path / "a.jpg", exif=exif_of(orientation=6), comment=b"12 Home Street", quality=95)
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "<x>48.88 N</x>")
    image.convert("RGBA").save(tmp_path / "b.png", pnginfo=notes, exif=exif_of())
    Image.fromarray(np.full((200, 300), 40000, np.uint16)).save(tmp_path / "c.tif")
    for name in ("a.jpg", "b.png", "c.tif"):
        copy_photo(tmp_path / name, tmp_path / "copy.jpg", 150)
        with Image.open(tmp_path / "copy.jpg") as copy:
            assert copy.size == (150, 100)
            assert copy.mode == "RGB"
            assert not copy.getexif()
            assert copy.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            red = copy.getpixel((75, 8))
            assert (red[0] > 200 and red[1] < 60) or name == "c.tif"
        raw = (tmp_path / "copy.jpg").read_bytes()
        assert not any(word in raw for word in (b"Home", b"48.88", b"Fujinon"))


def test_names_of_copies():
    sources = [Path(name) for name in ("IMG_1.HEIC", "img_1.jpg", "mé &\n.png", "..odd.JPG", "é.png")]
    assert copy_names(sources, False) == ["IMG_1.jpg", "img_1-2.jpg", "m_.jpg", "odd.jpg", "_.jpg"]
    assert copy_names(sources[:2], True) == ["00000_IMG_1.jpg", "00001_img_1.jpg"]


# ---- Reasons.


def test_reasons():
    features = {"a": 900, "b": 800, "c": 700, "d": 600, "e": 500, "f": 9, "g": 400}
    matches = {("a", "b"): 100, ("a", "c"): 40, ("c", "d"): 5, ("d", "e"): 60, ("e", "g"): 14}
    links, placed = Links(features, matches), {"a", "b"}
    called = {name: name.upper() for name in features}
    assert reason("c", links, placed, (), called).startswith("matched but not placed (40 matches with A)")
    assert reason("d", links, placed).startswith("another component, with e;")
    assert reason("e", links, placed, {"d", "e"}, called).startswith("another component, with D;")
    assert reason("c", links, placed, {"c"}).startswith("another component, alone;")
    assert reason("f", links, placed).startswith("no features (9 found)")
    assert reason("g", links, placed, (), called).startswith("too few matches with any other (at most 14, with E)")
    assert "any other (none)" in reason("b", Links({"b": 99}, {}), placed)
