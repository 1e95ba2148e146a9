"""What comes out of a run on a place or object: films along a path, meshes, points and grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.gallery import save_picture
from fedfields.rendering.cameras import check_pose
from fedfields.runtime.checkpoint import load_weights
from fedfields.runtime.maps import Mapped, as_grid, dense_voxels, is_map, load_map
from fedfields.runtime.places import RadianceFieldLoss, Viewer, depth_picture, loss_for
from fedfields.runtime.pool import one_thread
from fedfields.runtime.run import load_experiment
from fedfields.scenes.data import Data
from fedfields.scenes.frame import Frame, load_frame
from fedfields.scenes.tour import Tour, load_tour
from fedfields.scenes.views import photo_rays
from fedfields.store import read_json, writing
from fedfields.types import Advance, Params


class Trained(NamedTuple):
    """A finished run on a place, without its photographs: what it learned, and where that is.

    Attributes:
        experiment: its configuration.
        params: the weights.
        loss: the field with its way of rendering.
        frame: the shared frame.
        tour: a way around.
    """

    experiment: Experiment
    params: Params
    loss: RadianceFieldLoss
    frame: Frame
    tour: Tour

    def viewer(self) -> Viewer:
        """Rays to what is seen along them."""
        return Viewer(self.loss, self.params, self.experiment.seed)


def load_trained(run: Path, weights: Path | None = None) -> Trained:
    """Reads a run on a place or on objects.

    Args:
        run: its folder.
        weights: other weights than the run's, such as those that ``fedfields adapt`` made of them for one object.

    Raises:
        UserError: no such run, it is not finished, or it is one on pictures; or the weights are another field's.
    """
    experiment = load_experiment(run)
    if isinstance(experiment.data, Data):
        raise UserError(f"{run} is a run on pictures or clips; this is for runs on a place or on objects (nerf, ...)")
    frame, tour = load_frame(run / "scene.json"), load_tour(run / "tour.json")
    params = own = load_weights(run / "model.safetensors")
    if weights is not None:
        params = load_weights(weights)
        if {key: leaf.shape for key, leaf in params.items()} != {key: leaf.shape for key, leaf in own.items()}:
            raise UserError(f"{weights} are weights of another field than that of {run}; take some adapted from it")
    return Trained(experiment, params, loss_for(experiment), frame, tour)


def load_place(where: str | Path, weights: Path | None = None) -> Trained | Mapped:
    """What can be shown: the place that a run learned, or a map.

    Args:
        where: the folder of either, or as text the address of a map, as fsspec knows it.
        weights: see `load_trained`.

    Raises:
        UserError: see `load_trained` and `load_map`; or there are weights for a map.
    """
    if isinstance(where, Path) and not is_map(where):
        return load_trained(where, weights)
    if weights is not None:
        raise UserError(f"{where} is a map of voxels and has no weights; leave out --weights")
    return load_map(where)


def film(
    trained: Trained | Mapped, path: str, out: Path, *, frames: int, size: int, fps: int, depth: bool, advance: Advance
) -> Path:
    """Renders a path to a video or a folder of pictures.

    Args:
        trained: the run, or a map.
        path: "orbit", "spiral", "top" (one picture from above), or a JSON file with ``frames``, each with a
            camera-to-world ``transform_matrix``.
        out: an .mp4 file, a .png file for a single picture, or a folder.
        frames: number of frames of orbit and spiral.
        size: pixels along an edge of the square pictures.
        fps: frames in a second.
        depth: show nearness beside the colour.
        advance: called with (what, done, total).

    Raises:
        UserError: the path cannot be read, or the place to write to is no good.
    """
    poses, camera = _poses(trained, path, frames), trained.tour.camera(size)
    see = trained.viewer()

    def picture(pose: Tensor) -> Tensor:
        shown = see(photo_rays(pose, camera))
        colour = shown.colour.reshape(size, size, 3).clamp(0, 1)
        if not depth:
            return colour
        return torch.cat([colour, depth_picture(shown).reshape(size, size, 1).expand(-1, -1, 3)], 1)

    shown = []
    with one_thread():
        for i, pose in enumerate(poses):
            advance("render", i, len(poses))
            shown.append(picture(pose))
    if out.suffix.lower() == ".mp4":
        _write_video(out, shown, fps)
    elif out.suffix.lower() == ".png" and len(shown) == 1:
        save_picture(out, shown[0])
    else:
        for i, one in enumerate(shown):
            save_picture(out / f"frame-{i:04d}.png", one)
    return out


def _poses(trained: Trained | Mapped, path: str, frames: int) -> list[Tensor]:
    if path == "top":
        return [trained.tour.pose(0.0, math.pi / 2 - 1e-3)]
    if path in ("orbit", "spiral"):
        return getattr(trained.tour, path)(frames)
    file = Path(path)
    if file.suffix.lower() != ".json" or not file.exists():
        raise UserError(f"--path is {path}; choose orbit, spiral, top, or a JSON file of camera poses that exists")
    try:
        matrices = [frame["transform_matrix"] for frame in read_json(file)["frames"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} holds no frames with a transform_matrix; write it as transforms.json has it"
        ) from error
    found = [check_pose(_matrix(one, f"{file}, frame {i}"), f"{file}, frame {i}") for i, one in enumerate(matrices)]
    if not found:
        raise UserError(f"{file} has no frames; give at least one")
    return [trained.frame.pose(pose).float() for pose in found]


def _matrix(value: object, where: str) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{where}: the transform_matrix is no matrix of numbers; write 4 rows of 4") from error


def _write_video(path: Path, pictures: Sequence[Tensor], fps: int) -> None:
    """H.264 in MP4, as every browser plays it; sides are cut to even numbers."""
    import av

    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    with writing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"  # pyright: ignore
        stream.options = {"crf": "16"}  # pyright: ignore
        for one in pictures:
            pixels = (one[:height, :width] * 255).round().to(torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))  # pyright: ignore
        container.mux(stream.encode())  # pyright: ignore


class Volume(NamedTuple):
    """A field on a regular grid of world points.

    Attributes:
        density: ``[X, Y, Z]``, per world unit.
        colour: ``[X, Y, Z, 3]``, mean over six directions of view.
        low: ``[3]``, the first point, in world units.
        spacing: distance of neighbours, in world units.
    """

    density: Tensor
    colour: Tensor
    low: Tensor
    spacing: float


def volume(trained: Trained | Mapped, resolution: int, advance: Advance) -> Volume:
    """Asks the field on ``resolution ** 3`` points of the frame's cube; a map gives its own voxels.

    Raises:
        UserError: the map is too large for a regular grid.
    """
    if isinstance(trained, Mapped):
        density, colour, first = as_grid(trained.view)
        tensors = torch.from_numpy(density), torch.from_numpy(colour), torch.from_numpy(first)
        return Volume(*tensors, trained.view.map.settings.voxel)
    field, params, half = trained.loss.field, trained.params, trained.frame.half
    axis = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    six = torch.cat([torch.eye(3), -torch.eye(3)])
    densities, colours = [], []
    with one_thread(), torch.no_grad():
        for i, x in enumerate(axis):
            advance("grid", i, resolution)
            y, z = torch.meshgrid(axis, axis, indexing="ij")
            points = torch.stack([x.expand_as(y), y, z], -1).reshape(-1, 3)
            seen = [field(params, points, way.expand_as(points)) for way in six]
            densities.append(seen[0][0].reshape(resolution, resolution) / half)
            colours.append(torch.stack([colour for _, colour in seen]).mean(0).reshape(resolution, resolution, 3))
    low = torch.tensor(trained.frame.centre) + half * float(axis[0])
    return Volume(torch.stack(densities), torch.stack(colours), low, 2 * half / resolution)


def opaque_density(grid: Volume) -> float:
    """The density at which a voxel of the grid lets half the light through."""
    return math.log(2) / grid.spacing


def save_mesh(grid: Volume, path: Path, level: float) -> int:
    """Marching cubes (Lewiner et al. 2003, by scikit-image) to a coloured PLY; returns the number of triangles.

    Raises:
        UserError: nothing is as dense as ``level``.
    """
    from scipy.ndimage import map_coordinates
    from skimage.measure import marching_cubes

    values = torch.nn.functional.pad(grid.density, (1,) * 6).numpy()  # Surfaces close where the cube ends.
    if not values.min() < level < values.max():
        raise UserError(
            f"the densest point has {values.max():.3g}, the surface is wanted at {level:.3g}; lower --level"
        )
    corners, faces, _, _ = marching_cubes(values, level)
    shades = np.stack(
        [map_coordinates(grid.colour[..., c].numpy(), corners.T - 1, order=1, mode="nearest") for c in range(3)], 1
    )
    _write_ply(path, grid.low.numpy() + (corners - 1) * grid.spacing, shades, faces[:, ::-1])
    return len(faces)


def save_points(grid: Volume, path: Path, level: float) -> int:
    """The centres of all voxels at least as dense as ``level``, coloured, as PLY; returns their number.

    Raises:
        UserError: there are none.
    """
    dense = (grid.density >= level).nonzero()
    if not len(dense):
        raise UserError(f"no voxel has a density of {level:.3g}; lower --level")
    colours = grid.colour[tuple(dense.T)].numpy()
    _write_ply(path, grid.low.numpy() + dense.numpy() * grid.spacing, colours, np.empty((0, 3), np.int64))
    return len(dense)


def save_voxels(place: Mapped, path: Path, level: float | None) -> int:
    """The centres of a map's voxels at least as dense as ``level``, as `save_points`, however large the map is.

    Raises:
        UserError: there are none.
    """
    points, colours = dense_voxels(place.view, level)
    _write_ply(path, points, colours, np.empty((0, 3), np.int64))
    return len(points)


def save_grid(grid: Volume, path: Path) -> None:
    """Density, colour, first point and spacing as ``.npz``."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            density=grid.density.numpy(),
            colour=grid.colour.numpy(),
            low=grid.low.numpy(),
            spacing=np.float64(grid.spacing),
        )


def _write_ply(path: Path, points: np.ndarray, colours: np.ndarray, faces: np.ndarray) -> None:
    """Binary PLY with colours at the corners."""
    corners = np.empty(len(points), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    corners["xyz"], corners["rgb"] = points, (colours.clip(0, 1) * 255).round()
    triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    if len(faces):
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with writing(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode())
        file.write(corners.tobytes())
        file.write(triangles.tobytes())
