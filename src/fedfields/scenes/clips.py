"""Clips read from GIFs, videos, folders of frames and ``.npz`` files: a few evenly spread frames of each."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedfields.lazy import torch
from fedfields.scenes.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    check_pixels,
    fit,
    load_image,
    open_picture,
    prepared,
    reading,
    to_values,
    unusable,
)

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from torch import Tensor

CLIP_SUFFIXES = frozenset({".gif", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".npz"})
"""Suffixes of clips, in lower case. A folder of pictures is a clip too."""

MAX_CLIP_PIXELS = 20_000_000_000
"""Most pixels in all frames of a GIF or video, five minutes of 1080p: every frame up to the last is decoded."""

MAX_ARRAY_BYTES = 2**30
"""Largest array read from an ``.npz`` file: compressed, a small file can announce any size."""

_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
"""What may be read as a video; other kinds, such as playlists, would open further files and addresses."""


def load_clip(path: Path, size: int | None = 64, frames: int = 8, crop: bool = True) -> Tensor:
    """Reads ``frames`` frames, evenly spread from the first to the last; all of them where there are fewer.

    Args:
        path: a GIF; an MP4, MOV, MKV or WebM file, turned as its metadata says; a folder of pictures, in the
            natural order of their names; or an ``.npz`` file with an array ``[T, H, W, 3]`` of bytes, or of
            floats in [0, 1]: the one named ``frames``, else of those named ``framesNN`` the smallest whose
            sides reach ``size``, else the only one.
        size: length of the longer side after resizing; None or 0 keeps the frames as they are.
        frames: how many frames, at least 1.
        crop: whether to cut out the central square of each frame first.

    Returns:
        ``[T, H, W, 3]``, float32 in [0, 1].

    Raises:
        UserError: the file is missing, unreadable, damaged, not a clip, or too large.
    """
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        clip = _read_folder(path, size, frames, crop)
    elif suffix == ".npz":
        clip = _read_npz(path, size, frames, crop)
    elif suffix == ".gif":
        clip = _read_gif(path, size, frames, crop)
    else:
        clip = _read_video(path, size, frames, crop)
    if len({frame.shape for frame in clip}) > 1:
        raise unusable(path, "has frames of different shapes", "make them equal, or let them be cropped")
    return torch.stack(clip)


def evenly_spread(total: int, count: int) -> list[int]:
    """``min(total, count)`` indices from 0 to ``total`` - 1, both included; the middle one if ``count`` is 1."""
    if total <= count:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``frame_2`` before ``frame_10``."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _read_folder(folder: Path, size: int | None, frames: int, crop: bool) -> list[Tensor]:
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    except OSError as error:
        raise unusable(folder, f"cannot be listed ({error.strerror})", "change its permissions") from error
    if not files:
        raise unusable(folder, "holds no pictures", "put the frames of one clip there")
    files.sort(key=lambda file: natural_order(file.name))
    return [load_image(files[i], size, crop) for i in evenly_spread(len(files), frames)]


def _read_gif(path: Path, size: int | None, frames: int, crop: bool) -> list[Tensor]:
    clip = []
    with reading(path) as file, open_picture(path, file, ("GIF",)) as image:
        total: int = getattr(image, "n_frames", 1)
        _check_length(path, total, image.width * image.height)
        for index in evenly_spread(total, frames):
            image.seek(index)
            clip.append(prepared(image, size, crop))
    return clip


def _read_video(path: Path, size: int | None, frames: int, crop: bool) -> list[Tensor]:
    wanted = evenly_spread(_count_packets(path), frames)
    clip, seen = _decode_video(path, wanted, size, crop)
    if len(clip) < len(wanted):  # Some packets hold no picture of their own: hidden VP8 frames, a cut-off end.
        clip, _ = _decode_video(path, evenly_spread(seen, frames), size, crop)
    if not clip:
        raise unusable(path, "holds no frames", "export it again or remove it")
    return clip


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and the first of its video streams."""
    import av

    with reading(path) as file, av.open(file, "r", options={"format_whitelist": _DEMUXERS}) as container:
        if not container.streams.video:
            raise unusable(path, "holds no video", "export it again or remove it")
        stream = container.streams.video[0]
        check_pixels(path, stream.width * stream.height)
        yield container, stream


def _count_packets(path: Path) -> int:
    """Compressed frames in a video, counted without decoding any."""
    total = 0
    with _opened_video(path) as (container, stream):
        for packet in container.demux(stream):
            total += packet.size > 0
            _check_length(path, total, stream.width * stream.height)
    return total


def _decode_video(path: Path, wanted: list[int], size: int | None, crop: bool) -> tuple[list[Tensor], int]:
    """The wanted frames, and how many frames were decoded to reach the last of them."""
    clip: list[Tensor] = []
    seen = 0
    with _opened_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # Frames may outgrow the header.
        for frame in container.decode(stream):
            if seen in wanted:
                upright = frame.to_image().rotate(frame.rotation, expand=True)  # Both count anticlockwise.
                clip.append(prepared(upright, size, crop))
            seen += 1
            if len(clip) == len(wanted):
                break
    return clip, seen


def _check_length(path: Path, frames: int, pixels: int) -> None:
    if frames * pixels > MAX_CLIP_PIXELS:
        found = f"has more than {MAX_CLIP_PIXELS / 1e9:g} billion pixels in its frames"
        raise unusable(path, found, "cut out the part that matters")


class _Header(NamedTuple):
    """What an array in an ``.npz`` file announces."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_clip(self) -> bool:
        readable = self.dtype == "uint8" or self.dtype.kind == "f"
        return readable and len(self.shape) == 4 and min(self.shape) > 0 and self.shape[-1] == 3

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def _read_npz(path: Path, size: int | None, frames: int, crop: bool) -> list[Tensor]:
    import numpy as np

    with reading(path) as file:
        if not zipfile.is_zipfile(file):
            raise unusable(path, "is not an .npz file", "save it again with numpy.savez")
        with zipfile.ZipFile(file) as archive:
            headers = _read_headers(archive)
            key = _choose(path, headers, size)
            if headers[key].bytes > MAX_ARRAY_BYTES:
                found = f"announces {headers[key].bytes / 2**30:.1f} GiB in '{key}'"
                raise unusable(path, found, f"keep it under {MAX_ARRAY_BYTES / 2**30:g} GiB")
            with archive.open(f"{key}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        return [_array_frame(array[i], size, crop) for i in evenly_spread(len(array), frames)]


def _read_headers(archive: zipfile.ZipFile) -> dict[str, _Header]:
    import numpy as np

    headers = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as member:
                # Only version 1, which any array of plain numbers has, bounds its header (to 64 kB).
                if np.lib.format.read_magic(member) == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                    headers[name.removesuffix(".npy")] = _Header(shape, dtype)
    return headers


def _choose(path: Path, headers: dict[str, _Header], size: int | None) -> str:
    """The key of the array to read."""
    clips = {key: header for key, header in headers.items() if header.is_clip}
    if "frames" in clips:
        return "frames"
    sides = {key: min(clips[key].shape[1:3]) for key in clips if re.fullmatch(r"frames[0-9]+", key)}
    if sides:
        enough = [key for key, side in sides.items() if size and side >= size]
        return min(enough, key=lambda key: sides[key]) if enough else max(sides, key=lambda key: sides[key])
    if len(clips) == 1:
        return next(iter(clips))
    arrays = ", ".join(f"'{key}' {list(header.shape)} {header.dtype}" for key, header in headers.items())
    found = f"holds {len(clips) or 'no'} clips among its arrays ({arrays[:200] or 'none'})"
    raise unusable(path, found, "save one as 'frames', [frames, height, width, 3], bytes or floats in [0, 1]")


def _array_frame(frame: np.ndarray, size: int | None, crop: bool) -> Tensor:
    """``[H, W, 3]`` bytes, or floats in [0, 1], brought to ``size``."""
    import numpy as np
    from PIL import Image

    if frame.dtype == np.uint8:
        return prepared(Image.fromarray(frame), size, crop)
    if not (frame.min() >= 0 and frame.max() <= 1):  # Also true of NaN.
        raise ValueError(f"values from {frame.min():g} to {frame.max():g}; floats must lie in [0, 1]")
    bands = np.moveaxis(frame.astype(np.float32) * 255, -1, 0)  # Pillow resizes floats one band at a time.
    resized = [to_values(fit(Image.fromarray(band), size, crop))[..., 0] for band in bands]
    return torch.stack(resized, dim=-1)
