"""Posed photographs: a picture file, the camera that took it and where that stood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.lazy import torch
from fedfields.rendering.cameras import Camera
from fedfields.scenes.images import FORMATS, check_pixels, open_picture, reading, to_rgb, to_values, unusable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Split = Literal["train", "val", "test"]

AS_POSED = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform of poses that nobody has changed since they were estimated: the identity, 3 x 4, row by row."""


@dataclass(frozen=True, eq=False)
class View:
    """A photograph and its camera.

    Attributes:
        name: what the capture calls it.
        file: the picture.
        camera: for the picture in the size that the capture was made with; the file may be of another.
        pose: ``[3, 4]``, float64, camera-to-world, OpenGL axes, in the units of the capture.
        split: what the view is for.
        mask: a picture whose dark pixels are not to be used.
        circle: radius, in pixels of the camera, around the middle of the picture outside of which nothing is to be
            used, as fisheye lenses need it.
    """

    name: str
    file: Path
    camera: Camera
    pose: Tensor
    split: Split
    mask: Path | None = None
    circle: float | None = None

    def scale_to(self, size: int) -> float:
        """Factor that brings the longer side of the picture down to ``size`` pixels; 1 for 0, and never more."""
        return min(1.0, size / max(self.camera.width, self.camera.height)) if size else 1.0


@dataclass(frozen=True, eq=False)
class Capture:
    """Photographs of one place in one world frame.

    Attributes:
        views: at least one.
        near: depth (along the viewing axis, not along a ray) from which on something is seen, in world units, if
            known. Rays are not cut there but at the frame: such depths come from points of structure from motion, and
            much that a photograph shows has no point.
        far: depth up to which something is seen, likewise.
        points: ``[P, 3]``, float64, points of structure from motion, if there are any.
        background: what lies behind everything: white, or nothing that is known.
        problems: what the user should know, a line each: pictures that are missing or left out.
        applied: the transform, 3 x 4 row by row, that led from the world in which the cameras were estimated to that
            of the poses, as far as the file says (``applied_transform`` times ``applied_scale`` of nerfstudio).
    """

    views: tuple[View, ...]
    near: float | None = None
    far: float | None = None
    points: Tensor | None = None
    background: Literal["white", "none"] = "none"
    problems: tuple[str, ...] = ()
    applied: tuple[float, ...] = AS_POSED


class Header(NamedTuple):
    """What a picture says of itself before it is decoded: its size once upright, and whether it has transparency."""

    width: int
    height: int
    transparent: bool


class Picture(NamedTuple):
    """A photograph, ready to be sampled.

    Attributes:
        colours: ``[h, w, 3]``, float32 in [0, 1].
        weight: ``[h, w]``, float32: 1 for pixels to be used, 0 for the others.
        camera: for this size.
    """

    colours: Tensor
    weight: Tensor
    camera: Camera


def load_colours(view: View, scale: float = 1.0) -> Picture:
    """Reads the picture of a view, upright, transparency on white.

    Args:
        view: the view; the picture may have another resolution than its camera, but not another shape.
        scale: size wanted, relative to the camera's; the picture is averaged down to it, or interpolated.

    Returns:
        The colours, which of them to use, and the camera for them. Of a mask or circle only pixels whose whole area
        may be used count.

    Raises:
        UserError: picture or mask cannot be read or has another shape than the camera, or mask and circle leave
            nothing.
    """
    camera = view.camera.scaled(scale)
    check_pixels(view.file, camera.width * camera.height)
    colours = _load_sized(view.file, view.camera, camera)
    weight = colours.new_ones(camera.height, camera.width)
    if view.mask is not None:
        weight = _load_sized(view.mask, view.camera, camera, mask=True)[..., 0]
        if not weight.any():
            raise unusable(view.mask, f"this mask leaves nothing of {view.file.name}", "black means: do not use")
    if view.circle is not None:
        weight = weight * _inside(view.circle, view.camera, camera).to(weight)
        if not weight.any():
            found = f"nothing is left of it inside fisheye_crop_radius, {view.circle:g} pixels"
            raise unusable(view.file, found, "correct the radius" if view.mask is None else "correct radius or mask")
    return Picture(colours, weight, camera)


def read_header(path: Path) -> Header:
    """What a picture says of itself.

    Raises:
        UserError: as `load_image`, except for damage that shows only in decoding.
    """
    with reading(path) as file, open_picture(path, file, FORMATS) as image:
        width, height = upright_size(image)
        return Header(width, height, image.has_transparency_data)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture once it is turned as its EXIF orientation says."""
    sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else (image.width, image.height)


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) are those of one picture at two resolutions, rounded up, down or to the nearest."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= max(*size, *other)


def _load_sized(path: Path, calibrated: Camera, wanted: Camera, mask: bool = False) -> Tensor:
    """``[h, w, 3]`` in the size of ``wanted``; in a mask, 1 where all of a pixel is light and else 0."""
    from PIL import ImageOps

    with reading(path) as file, open_picture(path, file, FORMATS) as image:
        _check_shape(path, image, calibrated)
        picture = to_rgb(ImageOps.exif_transpose(image))
        if mask:
            picture = picture.convert("L").point([0] * 128 + [255] * 128)
        values = to_values(_resize(picture, wanted))
    return (values == 1).float() if mask else values


def _inside(radius: float, calibrated: Camera, wanted: Camera) -> Tensor:
    """``[h, w]``: which pixels of ``wanted`` lie with all corners in the circle of ``calibrated`` around its middle."""
    rows, columns = ((wanted.pixels() + 0.5) / torch.tensor([wanted.height, wanted.width]) - 0.5).abs().unbind(1)
    down, across = (rows + 0.5 / wanted.height) * calibrated.height, (columns + 0.5 / wanted.width) * calibrated.width
    return (torch.hypot(down, across) <= radius).view(wanted.height, wanted.width)


def _resize(image: Image.Image, camera: Camera) -> Image.Image:
    from PIL.Image import Resampling

    size = (camera.width, camera.height)
    smaller = size[0] <= image.width and size[1] <= image.height
    return image.resize(size, Resampling.BOX if smaller else Resampling.BILINEAR)


def _check_shape(path: Path, image: Image.Image, camera: Camera) -> None:
    size, wanted = upright_size(image), (camera.width, camera.height)
    if same_shape(size, wanted):
        return
    found = f"is {size[0]} x {size[1]} pixels but its camera was made for {wanted[0]} x {wanted[1]}"
    if size != image.size and same_shape(image.size, wanted):
        found += ", which it is before the rotation in its EXIF data"
        raise unusable(path, found, "rotate the pixels and estimate the poses again, or remove its EXIF orientation")
    raise unusable(path, found, "give the picture that was posed, neither cropped nor rotated")
