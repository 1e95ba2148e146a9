"""Pictures: pixel values worked out by hand, and everything that can be wrong with a file."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedfields.errors import UserError
from fedfields.scenes.clips import load_clip
from fedfields.scenes.images import IMAGE_SUFFIXES, load_image, printable

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(np.array(pixels, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def refusal(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert text.isprintable()  # One line, that is.
    return text


def test_values_shape_and_type(tmp_path):
    image = load_image(save(tmp_path / "a.png", [[RED, GREEN], [BLUE, (51, 102, 153)]]), 0)
    assert image.dtype == torch.float32
    assert image.shape == (2, 2, 3)
    assert torch.equal(image[0, 1], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(image[1, 1], torch.tensor([0.2, 0.4, 0.6]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = np.array([[RED, GREEN, BLUE], [WHITE, WHITE, WHITE]])
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),  # The camera was turned; the picture must turn clockwise.
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(save(tmp_path / "a.png", stored, exif=exif), None, crop=False)
    assert torch.equal(image, torch.tensor(upright / 255, dtype=torch.float32))


def test_orientation_6_by_hand(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(save(tmp_path / "a.png", [[RED, GREEN, BLUE]], exif=exif), None, crop=False)
    assert image.shape == (3, 1, 3)
    assert image[:, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_transparency_lies_on_white(tmp_path):
    image = load_image(save(tmp_path / "a.png", [[(255, 0, 0, 0), (255, 0, 0, 51)], [(0, 0, 0, 255)] * 2]), 0)
    torch.testing.assert_close(image[0, 0], torch.tensor([1.0, 1.0, 1.0]))
    torch.testing.assert_close(image[0, 1], torch.tensor([1.0, 0.8, 0.8]))
    torch.testing.assert_close(image[1, 0], torch.zeros(3))


def test_a_transparent_palette_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    values = load_image(tmp_path / "a.png", 0)
    assert values[0, 0].tolist() == [1, 1, 1]
    assert values[1, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.array([[0, 32768], [65535, 1]], dtype=np.uint16)).save(path)
    image = load_image(path, 0)
    assert image.shape == (2, 2, 3)
    torch.testing.assert_close(image[0, 1], torch.full((3,), 32768 / 65535))
    torch.testing.assert_close(image[..., 0], torch.tensor([[0, 32768], [65535, 1]]) / 65535)


def test_16_bit_colour(tmp_path):
    pixel = struct.pack(">3H", 65535, 32768, 0)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + pixel))
        + chunk(b"IEND", b"")
    )
    torch.testing.assert_close(
        load_image(tmp_path / "a.png", 0)[0, 0], torch.tensor([1.0, 0.5, 0.0]), atol=1 / 255, rtol=0
    )


def test_float_grey_must_lie_in_0_to_1(tmp_path):
    Image.fromarray(np.array([[0.25, 1.0]] * 2, dtype=np.float32)).save(tmp_path / "a.tif")
    torch.testing.assert_close(load_image(tmp_path / "a.tif", 0)[0, 0], torch.full((3,), 0.25))
    Image.fromarray(np.array([[0.25, 7.0]] * 2, dtype=np.float32)).save(tmp_path / "b.tif")
    assert "grey values from 0.25 to 7" in refusal(load_image, tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", ".png"), ("1", ".png"), ("P", ".png"), ("CMYK", ".jpg"), ("LA", ".png")]
)
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    image = load_image(save(tmp_path / f"a{suffix}", [[WHITE] * 8] * 8, mode), 0)
    assert image.shape == (8, 8, 3)
    assert image.min() > 0.98


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".hif"}))
def test_every_suffix_in_either_case(tmp_path, suffix):
    import pillow_heif

    pillow_heif.register_heif_opener()
    path = save(tmp_path / f"a{suffix}", [[(200, 100, 50)] * 16] * 16)
    path = path.rename(tmp_path / f"b{suffix.upper()}")
    torch.testing.assert_close(
        load_image(path, 8), (torch.tensor([200, 100, 50]) / 255).expand(8, 8, 3), atol=0.02, rtol=0
    )


def test_heic_is_turned_once(tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.heic", [[RED] * 64 + [BLUE] * 64] * 64, exif=exif.tobytes(), quality=95)
    image = load_image(tmp_path / "a.heic", 0, crop=False)
    assert image.shape == (128, 64, 3)  # Red, on the left as stored, comes to the top.
    assert image[10, 32, 0] > 0.9
    assert image[110, 32, 2] > 0.9


def test_crop_is_central_and_resizing_takes_means(tmp_path):
    path = save(tmp_path / "a.png", [[RED, (0, 0, 0), WHITE, (0, 0, 0), WHITE, BLUE]] * 4)
    assert load_image(path, 0).tolist() == [[[0] * 3, [1] * 3, [0] * 3, [1] * 3]] * 4
    torch.testing.assert_close(load_image(path, 2), torch.full((2, 2, 3), 0.5), atol=1 / 255, rtol=0)
    assert load_image(path, 3, crop=False).shape == (2, 3, 3)
    assert load_image(path, 12, crop=False).shape == (8, 12, 3)
    assert load_image(path, 1, crop=False).shape == (1, 1, 3)


def test_content_decides_not_suffix(tmp_path):
    save(tmp_path / "a.png", [[RED] * 4] * 4)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", 0)[0, 0].tolist() == [1, 0, 0]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    for side in (10_100, 14_000, 20_000):  # Pillow itself is silent, warns, refuses.
        packer = zlib.compressobj(9)
        row = bytes(1 + (side + 7) // 8)
        data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
        assert refusal(load_image, path) == f"{path}: has more than 100 megapixels; make it smaller or remove it"


def test_a_truncated_jpeg_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    path = save(tmp_path / "a.jpg", noise)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be decoded (image file is truncated" in refusal(load_image, path)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "text.jpg").write_text("dear diary")
    assert "holds no picture that can be read (PNG, JPEG" in refusal(load_image, tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(load_image, tmp_path / "empty.png")
    assert "does not exist" in refusal(load_image, tmp_path / "none.png")
    assert "is not a regular file" in refusal(load_image, tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a regular file" in refusal(load_image, tmp_path / "pipe.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path):
    path = save(tmp_path / "a.png", [[RED]])
    path.chmod(0)
    assert "permission denied" in refusal(load_image, path)


def test_a_refused_permission(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", [[RED]])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert refusal(load_image, path) == f"{path}: cannot be read (permission denied); change its permissions"


def test_odd_names_make_one_printable_line(tmp_path):
    assert printable("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"
    assert "\\n" in refusal(load_image, tmp_path / "a\nb.png")


BEGINNINGS = {
    ".png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    ".jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    ".webp": b"RIFF\x40\0\0\0WEBPVP8 ",
    ".heic": b"\0\0\0\x18ftypheic",
    ".tif": b"II*\0\x08\0\0\0",
    ".bmp": b"BM",
    ".gif": b"GIF89a\x02\0\x02\0",
    ".npz": b"PK\x03\x04",
    ".mp4": b"\0\0\0\x18ftypisom",
    ".webm": b"\x1aE\xdf\xa3",
}


@pytest.mark.parametrize("suffix", BEGINNINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.booleans(), rest=st.binary(max_size=300))
def test_random_bytes_are_only_ever_refused(tmp_path, suffix, start, rest):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(start * BEGINNINGS[suffix] + rest)
    refusal(load_image if suffix in IMAGE_SUFFIXES else load_clip, path)


def test_what_pillow_logs_stays_off_the_screen(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HHI", 277, 3, 1)) + 8  # The tag with the number of samples in a pixel.
    data[place : place + 2] = struct.pack("<H", 2048)
    path.write_bytes(data)
    code = f"import pathlib, fedfields.scenes.images as i; i.load_image(pathlib.Path({str(path)!r}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert printed.splitlines()[-1].startswith("fedfields.errors.UserError")
    assert not any(line.startswith("More samples") for line in printed.splitlines())
