"""Clips: frame ``i`` of every test clip is a known grey, so that each frame can be told by its value."""

import io
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fedfields.scenes import clips
from fedfields.scenes.clips import evenly_spread, load_clip, natural_order
from tests.scenes.test_images import refusal


def greys(count, height=32, width=32):
    """``[count, height, width, 3]`` bytes; frame i has the value 10 i."""
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * 10
    return np.broadcast_to(frames, (count, height, width, 3)).copy()


def write_video(path, frames, codec="mpeg4", rotation=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_gif(path, frames):
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest)
    return path


def write_folder(path, frames):
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{i}.png")
    return path


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


WRITERS = {
    "a.gif": write_gif,
    "a.MP4": write_video,
    "a.mov": write_video,
    "a.mkv": write_video,
    "a.webm": lambda path, frames: write_video(path, frames, "libvpx-vp9"),
    "a": write_folder,
    "a.npz": lambda path, frames: write_npz(path, frames=frames),
}


@pytest.mark.parametrize("name", WRITERS)
def test_evenly_spread_frames_of_every_kind(tmp_path, name):
    WRITERS[name](path := tmp_path / name, greys(12, 32, 48))
    clip = load_clip(path, 16, 4)
    assert clip.shape == (4, 16, 16, 3)
    assert clip.dtype == torch.float32
    expected = torch.tensor([0.0, 40.0, 70.0, 110.0]) / 255
    torch.testing.assert_close(clip.mean(dim=(1, 2, 3)), expected, atol=0.015, rtol=0)
    assert load_clip(path, 16, 1).mean().item() == pytest.approx(60 / 255, abs=0.015)
    assert load_clip(path, None, 99, crop=False).shape == (12, 32, 48, 3)


def test_indices():
    assert evenly_spread(5, 9) == [0, 1, 2, 3, 4]
    assert evenly_spread(9, 3) == [0, 4, 8]
    assert evenly_spread(9, 1) == [4]
    for total in range(1, 40):
        for count in range(2, total + 1):
            chosen = evenly_spread(total, count)
            assert (chosen[0], chosen[-1], len(set(chosen))) == (0, total - 1, count)


def test_natural_order():
    names = ["b", "frame_10", "frame_2", "Frame_1", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "b", "Frame_1", "frame_2", "frame_10"]


def test_a_turned_video_is_shown_upright(tmp_path):
    frames = greys(3, 32, 64)
    frames[:, :, :32] = 255  # The left half is white.
    clip = load_clip(write_video(tmp_path / "a.mp4", frames, rotation=90), 0, crop=False)  # Anticlockwise.
    assert clip.shape == (3, 64, 32, 3)
    assert clip[0, 48, 16].min() > 0.9  # Left has come to the bottom.
    assert clip[0, 16, 16].max() < 0.1


def test_packets_without_a_picture_are_made_up_for(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", greys(8))
    monkeypatch.setattr(clips, "_count_packets", lambda _: 20)
    clip = load_clip(path, 16, 3)
    torch.testing.assert_close(clip.mean(dim=(1, 2, 3)) * 255, torch.tensor([0.0, 40.0, 70.0]), atol=4, rtol=0)


def test_npz_takes_the_smallest_that_reaches_the_size(tmp_path):
    arrays = {f"frames{side}": np.full((2, side, side, 3), side, dtype=np.uint8) for side in (16, 32, 64)}
    path = write_npz(tmp_path / "a.npz", fps=np.array(30.0), **arrays)
    for size, side in {8: 16, 16: 16, 20: 32, 64: 64, 200: 64, 0: 64}.items():
        assert load_clip(path, size).mean().item() * 255 == pytest.approx(side)


def test_npz_floats(tmp_path):
    path = write_npz(tmp_path / "a.npz", movie=np.full((2, 4, 4, 3), 0.123, dtype=np.float64))
    torch.testing.assert_close(load_clip(path, 2), torch.full((2, 2, 2, 3), 0.123))
    for value in (1.5, -0.1, np.nan):
        path = write_npz(tmp_path / "b.npz", movie=np.full((2, 4, 4, 3), value))
        assert "floats must lie in [0, 1]" in refusal(load_clip, path)


def test_npz_without_a_clear_clip(tmp_path):
    path = write_npz(tmp_path / "a.npz", left=greys(2), right=greys(2), label=np.zeros(3))
    assert "holds 2 clips among its arrays ('left' [2, 32, 32, 3] uint8, 'right'" in refusal(load_clip, path)
    path = write_npz(tmp_path / "b.npz", frames=np.zeros((4, 4)))
    assert "holds no clips among its arrays ('frames' [4, 4] float64); save one as 'frames'" in refusal(load_clip, path)
    path = write_npz(tmp_path / "c.npz", frames=np.array([{"a": 1}], dtype=object))
    assert "'frames' [1] object" in refusal(load_clip, path)


def test_an_npz_that_announces_too_much_is_refused_unread(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 3)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("frames.npy", header.getvalue())
    assert "announces 2794.0 GiB in 'frames'; keep it under 1 GiB" in refusal(load_clip, tmp_path / "bomb.npz")


def test_too_long_clips_are_refused_undecoded(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 5 * 32 * 32)
    for name in ("a.gif", "a.MP4"):
        WRITERS[name](tmp_path / name, greys(6))
        assert "cut out the part that matters" in refusal(load_clip, tmp_path / name)


def test_too_large_frames_are_refused_undecoded(tmp_path, monkeypatch):
    import fedfields.scenes.images

    monkeypatch.setattr(fedfields.scenes.images, "MAX_PIXELS", 1000)
    for name in ("a.gif", "a.MP4"):
        WRITERS[name](tmp_path / name, greys(6))
        assert "megapixels" in refusal(load_clip, tmp_path / name)


def test_frames_that_outgrow_their_header_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "MAX_PIXELS", 1000)
    monkeypatch.setattr(clips, "check_pixels", lambda *_: None)
    assert "cannot be decoded" in refusal(load_clip, write_video(tmp_path / "a.mp4", greys(6)))


def test_a_playlist_is_not_followed(tmp_path):
    write_video(tmp_path / "real.mp4", greys(6))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/real.mp4\n")
    assert "cannot be decoded" in refusal(load_clip, tmp_path / "list.mp4")


def test_sound_alone_is_no_clip(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "holds no video" in refusal(load_clip, tmp_path / "a.mp4")


@pytest.mark.parametrize("name", [name for name in WRITERS if "." in name])
def test_a_cut_off_file_loads_or_is_refused(tmp_path, name):
    WRITERS[name](path := tmp_path / name, greys(12))
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            assert load_clip(path, 16, 4).shape[1:] == (16, 16, 3)
        except Exception as error:
            assert type(error).__name__ == "UserError"
            assert str(error).isprintable()


def test_folders(tmp_path):
    folder = write_folder(tmp_path / "a", greys(12))
    (folder / ".hidden.png").write_text("no picture")
    (folder / "notes.txt").write_text("nor this")
    assert load_clip(folder, 16, 12).mean(dim=(1, 2, 3)).mul(25.5).tolist() == pytest.approx(list(range(12)), abs=1e-4)
    (folder / "frame_3.png").write_text("damaged")
    assert "frame_3.png: holds no picture" in refusal(load_clip, folder, 16, 12)
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refusal(load_clip, tmp_path / "empty")
    other = write_folder(tmp_path / "b", greys(2))
    Image.new("RGB", (10, 20)).save(other / "frame_1.png")
    assert "frames of different shapes" in refusal(load_clip, other, 16, 2, False)
    assert load_clip(other, 16, 2, True).shape == (2, 16, 16, 3)


def test_a_name_without_a_file(tmp_path):
    for name in ("a.gif", "a.mp4", "a.npz", "a"):
        assert "does not exist" in refusal(load_clip, tmp_path / name)
