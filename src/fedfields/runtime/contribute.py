"""A client of the map: a field trained on its own photographs, where they are (Suzuki 2023, section 3.1).

What photographs from the air show beside the client's cube would be explained by something inside of it, and with that
the map would be damaged. So a client uses the pixels of which the ray leaves the cube through its floor, below the
ground: what they show is in the cube.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.federation import Local as LocalTraining
from fedfields.federation import Method
from fedfields.fields import HashGrid
from fedfields.lazy import torch
from fedfields.losses import CODES, MarchedLoss
from fedfields.mapping.bake import Local, cells_of, seen_cells, with_neighbours
from fedfields.objectives import Fit
from fedfields.optim import Adam
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame
from fedfields.scenes.views import Photo, RaySignal, in_cube, photo_rays
from fedfields.seeds import generator
from fedfields.types import Client, Params, Task

if TYPE_CHECKING:
    from torch import Generator

RAYS = 16
"""About so many rays for each cell of a side of the cube, through a client's photographs, say what was seen. With a
quarter of them, a field of 26.5 dB gave a map of 16.3 dB: fewer than three met many a cell of the ground."""


@dataclass(frozen=True)
class Training:
    """How a client trains the field that it contributes."""

    field: HashGrid = dataclasses.field(default_factory=HashGrid)
    """The hash grid."""

    rays: Marching = dataclasses.field(default_factory=lambda: Marching(distortion=0.01))
    """How it is rendered."""

    batch: int = 2048
    """Rays in a batch."""

    steps: int = 1000
    """Steps of Adam."""

    lr: float = 1e-2
    """Its first step size."""

    final: float = 0.03
    """Share of the step size that is left at the end; it falls along half a cosine."""

    gloss: float = 0.1
    """Weight of the penalty on colours that depend on the direction of view (see `MarchedLoss`). Few photographs are
    explained as well by haze that looks different from everywhere as by surfaces; 0 lets them."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; there must be at least 1")
        if not 0 <= self.gloss < math.inf:
            raise ValueError(f"gloss is {self.gloss}; it must not be negative")

    @property
    def method(self) -> Method:
        """The same as a method of `federation`."""
        local = LocalTraining(
            self.rays.refresh, lr=self.lr, clip=0.0, optimizer=Adam(0.9, 0.99, 1e-15), final=self.final
        )
        return Method(Fit(batch=self.batch), local)


def train_field(
    name: str, photos: Sequence[Photo], frame: Frame, training: Training, seed: int, advance: Callable[[int, int], None]
) -> tuple[Params, Params]:
    """The weights of a field of some photographs, and the leaves that are their own (appearance codes).

    Args:
        name: of the client; the stream of chance depends on it.
        photos: in the frame.
        frame: its background says whether it is known.
        training: how.
        seed: of the weights and of the batches.
        advance: called with (done, total).

    Raises:
        UserError: the training diverged.
    """
    from fedfields.runtime.start import trained_alone

    signal = RaySignal(tuple(photos), 1, frame.background == "white")
    client = Client(name, (Task(signal, signal, name),))
    loss = MarchedLoss(training.field, training.rays, gloss=training.gloss)
    start = training.field.init(generator(seed, "init", name))
    what, steps = f"training of {name}", training.steps
    params, memory = trained_alone(what, training.method, client, loss, start, steps, seed=seed, advance=advance)
    return params, memory.get("own", {})


def as_local(
    name: str,
    field: HashGrid,
    params: Params,
    photos: Sequence[Photo],
    frame: Frame,
    voxel: float,
    own: Params | None = None,
    margin: float = 0.0,
) -> Local:
    """A trained field as a client contributes it: with what of its cube the photographs have seen.

    Args:
        name: what nobody else's is called.
        field: the hash grid.
        params: its weights.
        photos: that it was trained on, in its frame.
        frame: the client's cube, in metres of its own axes.
        voxel: edge of the map's voxels, in metres; what was seen is found on cells of about this size.
        own: the photographs' own leaves: the field is baked in the mean of their lights.
        margin: metres along the four sides of the cube that do not count as seen: cameras look at them from one side.

    Raises:
        UserError: the cube is too large for such voxels.
    """
    cells = cells_of(frame, voxel)
    rays = _through(photos, RAYS * cells**2, generator(0, "seen", name))
    seen = with_neighbours(seen_cells(partial(field.density, params), rays, cells))
    edge = math.ceil(margin / (2 * frame.half) * cells)
    inside = np.zeros_like(seen)
    inside[edge : cells - edge, edge : cells - edge] = True
    code = own[CODES].mean(0) if own and CODES in own else None
    return Local(name, field, params, frame, seen & inside, len(photos), code)


def _through(photos: Sequence[Photo], count: int, random: Generator) -> Rays:
    """About so many rays through random places in the usable pixels.

    Pixels are areas: of a photograph that is coarser than the voxels, rays through the middles would miss most of them.
    """
    shots = [torch.arange(p.camera.width * p.camera.height) if p.usable is None else p.usable for p in photos]
    pixels, parts = sum(len(shot) for shot in shots), []
    for photo, shot in zip(photos, shots, strict=True):
        index = shot[:: -(-pixels // count)].repeat_interleave(max(1, count // pixels))
        places = photo.camera.pixels()[index] + torch.rand(len(index), 2, generator=random) - 0.5
        local = photo.camera.directions(places).float()
        parts.append(in_cube(photo.pose[:, 3].expand(len(local), 3), local @ photo.pose[:, :3].T, photo.top))
    return Rays(*(torch.cat(columns) for columns in zip(*(part[:4] for part in parts), strict=True)))


def through_floor(photos: Sequence[Photo], top: float = 1.0) -> tuple[Photo, ...]:
    """Photographs with the pixels of which the ray leaves the cube through its floor, z = -1; others are left out.

    Rays begin below z = ``top``, above which there is nothing.
    """
    found = []
    for photo in photos:
        rays: Rays = photo_rays(photo.pose, photo.camera, top)
        end = rays.origins[:, 2] + rays.far * rays.directions[:, 2]
        good = (rays.far > rays.near) & (end < -1 + 1e-4)
        if photo.usable is not None:
            good &= torch.zeros_like(good).index_fill(0, photo.usable, True)
        if bool(good.any()):
            found.append(photo._replace(usable=None if bool(good.all()) else good.nonzero()[:, 0], top=top))
    return tuple(found)


def in_metres(photos: Sequence[Photo], frame: Frame) -> NDArray[np.float64]:
    """Camera poses ``[V, 3, 4]`` of photographs of a frame, in its world's metres."""
    poses = torch.stack([photo.pose for photo in photos]).double().numpy().copy()
    poses[:, :, 3] = poses[:, :, 3] * frame.half + np.array(frame.centre)
    return poses


def reframed(photos: Sequence[Photo], poses: NDArray[np.float64], frame: Frame) -> tuple[Photo, ...]:
    """Photographs with other camera poses ``[V, 3, 4]``, in metres, in another frame."""
    own = [frame.pose(torch.from_numpy(pose)).float() for pose in poses]
    return tuple(photo._replace(pose=pose) for photo, pose in zip(photos, own, strict=True))


def cube_below(poses: NDArray[np.float64], floor: float, reach: float) -> Frame:
    """The cube of photographs from the air: as wide as the cameras are spread, and ``reach`` metres more on every side.

    What is behind it is not known: rays that leave it through its floor have ended before.

    Args:
        poses: ``[V, 3, 4]``, metres, z upwards.
        floor: height of the cube's floor, below all ground that it holds.
        reach: metres.

    Raises:
        UserError: the cube has no size.
    """
    low, high = poses[:, :2, 3].min(0), poses[:, :2, 3].max(0)
    half = float((high - low).max()) / 2 + reach
    if not half > 0:
        raise UserError(f"the cameras reach {reach:g} m beyond where they stand; give them some")
    x, y = ((low + high) / 2).tolist()
    return Frame((x, y, floor + half), half)
