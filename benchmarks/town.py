"""A town on one map: photographs of drones by one model, by a grid of models, and by many small ones merged.

    python benchmarks/town.py [--quick] [--json] [--out DIR] [--keep DIR]

The table of Suzuki, *Federated Learning for Large-Scale Scene Modeling with Neural Radiance Fields*, 2023, on a made-up
town (data:town): "one model" trains on all photographs; "4 x 4 grid" is a model for each cell of a grid, trained on the
pixels of which the ray meets the ground in the cell or 15 % beyond, and each ray is rendered by the model in whose cell
it meets the ground; "map" is one small model per client, baked and merged as they come (eq. 4, eta 0.9, on logarithms
of densities, and on densities, as in the paper). All take as many steps for a pixel. PSNR is that of photographs that
nobody trained on. Seconds are processor time of one core: of the parallel ones, of the slowest model. Bytes are those
of the weights; of the map, what all clients send, and what lies on the disk.

"rough poses" is the map with every client's pose off by up to 2 m and 2 degrees, and nothing done about it; then
aligned as they come, to the first, whose pose is surveyed. Two rows say where the map's error comes from: the one model
baked into voxels, and the one model with its view dependence taken away.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from fedfields.fields import HashGrid
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import MarchedLoss
from fedfields.mapping.bake import Local, bake
from fedfields.mapping.commits import merge
from fedfields.mapping.intake import Aligner, Queue, Rules
from fedfields.mapping.merge import Contribution, Mixing
from fedfields.mapping.store import Map, MapSettings, create_map
from fedfields.mapping.upload import Upload, upload_as_bytes
from fedfields.metrics import psnr
from fedfields.rendering.cameras import Camera
from fedfields.rendering.marching import Marched, Marching
from fedfields.rendering.rays import Rays
from fedfields.runtime.contribute import (
    Training,
    as_local,
    cube_below,
    in_metres,
    reframed,
    through_floor,
    train_field,
)
from fedfields.runtime.maps import MapViewer
from fedfields.runtime.places import Viewer
from fedfields.scenes.frame import Frame
from fedfields.scenes.scene import Place
from fedfields.scenes.town import Town
from fedfields.scenes.views import Photo, photo_rays, photos_of
from fedfields.store import read_tensors, write_tensors
from fedfields.types import Client, Params

MARCHING = Marching(steps=192, samples=32768, cells=64, refresh=50, distortion=0.01)
"""How all fields are rendered: a step is 1.1 m in the town's cube."""

CELLS = 4
"""Of the grid, along an axis."""

BEYOND = 0.15
"""Part of a cell's width by which it reaches into the next ones."""

FLOOR, CEILING = -7.0, 18.0
"""Heights in metres between which the town lies: what structure from motion would tell everybody."""

MIXING = Mixing(density="log")
"""Eq. 4 on logarithms of densities."""

ROUGH = (2.0, 2.0)
"""Largest error of a rough pose: metres along each axis, degrees about each axis."""

See = Callable[[Rays], Marched]


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
        town: photographs, clients.
        field: of everybody; a client's finest cells are two voxels wide, whatever its cube.
        batch: rays of a step.
        passes: how often a pixel is drawn in training, on average.
        voxel: metres.
        reach: metres that a client's cube is wider than where its cameras stand, on every side.
        margin: how many of them it does not contribute.
    """

    town: Town
    field: HashGrid
    batch: int
    passes: float
    voxel: float
    reach: float
    margin: float

    def field_in(self, cube: Frame) -> HashGrid:
        """A client's."""
        return dataclasses.replace(self.field, finest=max(self.field.coarsest, round(cube.half / self.voxel)))

    def training(self, field: HashGrid, photos: Sequence[Photo]) -> Training:
        """As many steps as these photographs have pixels for."""
        pixels = sum(p.camera.width * p.camera.height if p.usable is None else len(p.usable) for p in photos)
        steps = max(1, round(pixels * self.passes / self.batch))
        return Training(field, MARCHING, self.batch, steps)


FULL = Sizes(
    Town(120, photos=400, clients=16, least=60, most=100, width=48, height=36, lowest=40, highest=70, tests=20),
    HashGrid(levels=8, log2_rows=15, finest=128),
    512,
    5,
    0.5,
    20.0,
    12.0,
)
QUICK = Sizes(
    Town(extent=80, photos=20, clients=4, least=6, most=8, width=32, height=24, tests=4),
    HashGrid(levels=8, log2_rows=13, finest=128),
    512,
    4,
    2.0,
    20.0,
    5.0,
)


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        method: its name.
        psnr: of the test photographs, mean in dB.
        seconds: of training, of one core, of the slowest model.
        pixels: rendered in a second of one core.
        sent: bytes that clients send in all; None where photographs would have to be sent.
        stored: bytes of what is rendered.
    """

    method: str
    psnr: float
    seconds: float
    pixels: float
    sent: int | None
    stored: int


class Trained(NamedTuple):
    """A field, and the seconds that it took."""

    params: Params
    seconds: float


def judged(see: See, tests: Sequence[Photo]) -> tuple[float, float]:
    """Mean PSNR of test photographs, and pixels rendered in a second."""
    rays = [photo_rays(photo.pose, photo.camera, photo.top) for photo in tests]
    see(rays[0])  # Compiles what has to be.
    before = time.process_time()
    shown = [see(each).colour for each in rays]
    pixels = sum(len(each.near) for each in rays) / (time.process_time() - before)
    scores = [
        psnr(colours.reshape(photo.colours.shape), photo.colours / 255)
        for colours, photo in zip(shown, tests, strict=True)
    ]
    return sum(scores) / len(scores), pixels


def size_of(params: Params) -> int:
    return sum(4 * leaf.numel() for leaf in params.values())


class Desk(NamedTuple):
    """Where fields are trained, and kept if there is a folder."""

    sizes: Sizes
    keep: Path | None

    def fitted(self, name: str, field: HashGrid, photos: Sequence[Photo], frame: Frame) -> Trained:
        """The weights of a field of photographs in a frame."""
        path = self.keep and self.keep / f"{name}.safetensors"
        if path and path.exists():
            params, told = read_tensors(path)
            return Trained(params, told["seconds"])
        before = time.process_time()
        params, _ = train_field(name, photos, frame, self.sizes.training(field, photos), 0, lambda done, total: None)
        seconds = time.process_time() - before
        if path:
            write_tensors(path, params, {"seconds": seconds})
        return Trained(params, seconds)


def viewer(sizes: Sizes, params: Params) -> Viewer:
    return Viewer(MarchedLoss(sizes.field, MARCHING), params, 0)


def cells_of(rays: Rays, frame: Frame) -> Tensor:
    """Where rays meet the mean ground, in cells of the grid: ``[R, 2]``, 0 to 4 within the town."""
    ground = -frame.centre[2] / frame.half
    way = (ground - rays.origins[:, 2]) / rays.directions[:, 2].clamp_max(-1e-3)
    return (rays.origins + way[:, None] * rays.directions)[:, :2].add(1) / 2 * CELLS


def grid_of(photos: Sequence[Photo], frame: Frame, desk: Desk) -> dict[tuple[int, int], Trained]:
    """A model for each cell, of the pixels that show it."""
    found = {}
    for cell in np.ndindex(CELLS, CELLS):
        mine = []
        for photo in photos:
            at = cells_of(photo_rays(photo.pose, photo.camera), frame).clamp(0, CELLS - 1e-4)
            inside = ((at - torch.tensor(cell) - 0.5).abs() <= 0.5 + BEYOND).all(1)
            if bool(inside.any()):
                mine.append(photo._replace(usable=inside.nonzero()[:, 0]))
        found[cell] = desk.fitted(f"cell-{cell[0]}-{cell[1]}", desk.sizes.field, mine, frame)
    return found


def by_cell(models: dict[tuple[int, int], See], frame: Frame) -> See:
    """Each ray is rendered by the model of the cell in which it meets the ground, or of the nearest."""

    def see(rays: Rays) -> Marched:
        cell = cells_of(rays, frame).clamp(0, CELLS - 1e-4).long()
        found = Marched(*(torch.zeros(len(cell), *shape) for shape in ((3,), (), (), ())))
        for (x, y), model in models.items():
            mine = ((cell[:, 0] == x) & (cell[:, 1] == y)).nonzero()[:, 0]
            if len(mine):
                for whole, part in zip(found, model(rays.chosen(mine)), strict=True):
                    whole[mine] = part
        return found

    return see


def motion_of(random: np.random.Generator, metres: float, degrees: float) -> np.ndarray:
    """A small rigid motion ``[3, 4]``, uniform along and about each axis."""
    turn = Rotation.from_rotvec(np.radians(random.uniform(-degrees, degrees, 3))).as_matrix()
    return np.concatenate([turn, random.uniform(-metres, metres, (3, 1))], 1)


class Drone(NamedTuple):
    """What a client has made: its field, where it is and where it believes to be, and the seconds of training."""

    upload: Upload
    true: np.ndarray
    seconds: float


def fly(client: Client, frame: Frame, desk: Desk, random: np.random.Generator) -> Drone:
    """A client trains in axes of its own: turned about the vertical, and around where it flew."""
    photos, sizes = photos_of([client]), desk.sizes
    world = in_metres(photos, frame)
    middle, angle = world[:, :, 3].mean(0) * (1, 1, 0), random.uniform(-np.pi, np.pi)
    turn = Rotation.from_euler("z", angle).as_matrix()
    own = np.concatenate([turn.T @ world[:, :, :3], (turn.T @ (world[:, :, 3] - middle).T).T[:, :, None]], 2)
    cube = cube_below(own, FLOOR, sizes.reach)
    mine = through_floor(reframed(photos, own, cube), cube.height(CEILING))
    field = sizes.field_in(cube)
    trained = desk.fitted(client.name, field, mine, cube)
    local = as_local(client.name, field, trained.params, mine, cube, sizes.voxel, margin=sizes.margin)
    off = motion_of(random, *ROUGH)
    rough = np.concatenate([off[:, :3] @ turn, (middle + off[:, 3])[:, None]], 1)  # About where it flew.
    return Drone(Upload(local, rough, ROUGH, own), np.concatenate([turn, middle[:, None]], 1), trained.seconds)


def map_of(folder: Path, contributions: Sequence[Contribution], voxel: float, mixing: Mixing = MIXING) -> Map:
    store = create_map(folder, MapSettings(voxel, "float16", mixing, keep=0))
    for contribution in contributions:
        merge(store, contribution)
    return store


def aligned_map(folder: Path, drones: Sequence[Drone], voxel: float) -> Map:
    """The map of a server that aligns what comes; the first client's pose is surveyed, or nothing would be anywhere."""
    store = create_map(folder, MapSettings(voxel, "float16", MIXING, keep=0))
    queue = Queue(store)
    for number, drone in enumerate(drones):
        first = drone.upload._replace(pose=drone.true, error=(0.0, 0.0))
        queue.put(upload_as_bytes(drone.upload if number else first))
        queue.work(Rules(), Aligner(), lambda note: print(f"{note.name}: {note.state} {note.why}", file=sys.stderr))
    return store


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def flat(local: Local) -> Local:
    """A field whose colours are the same from everywhere: the spherical harmonics of degree 0 alone."""
    last = local.params["colour.1.weight"].clone()
    last.view(3, 9, -1)[:, 1:] = 0
    return local._replace(params={**local.params, "colour.1.weight": last})


class Table:
    """Rows as they come, told on the way."""

    def __init__(self, tests: Sequence[Photo]) -> None:
        self.rows: list[Row] = []
        self._tests = tests

    def add(self, method: str, see: See, seconds: float, sent: int | None, stored: int) -> None:
        score, pixels = judged(see, self._tests)
        self.rows.append(Row(method, score, seconds, pixels, sent, stored))
        print(f"{method}: {score:.2f} dB, {seconds:.0f} s, {pixels:,.0f} px/s", file=sys.stderr, flush=True)


def table(place: Place, desk: Desk, folder: Path) -> tuple[list[Row], dict[str, See]]:
    """All rows, and what can be looked at."""
    frame, sizes, random = place.frame, desk.sizes, np.random.default_rng(0)
    photos, tests = _each_once(photos_of(place.clients), frame), _each_once(place.tests, frame)
    made = Table(tests)
    one = desk.fitted("all", sizes.field, photos, frame)
    shown: dict[str, See] = {"one model": viewer(sizes, one.params)}
    made.add("one model", shown["one model"], one.seconds, None, size_of(one.params))
    drones = [fly(client, frame, desk, random) for client in place.clients]
    sent = sum(len(upload_as_bytes(drone.upload)) for drone in drones)
    slowest = max(drone.seconds for drone in drones)
    true, rough = [d.true for d in drones], [d.upload.pose for d in drones]
    ways = {
        "map": (true, MIXING),
        "map, densities averaged as they are": (true, Mixing()),
        "map, rough poses": (rough, MIXING),
    }
    for name, (where, mixing) in ways.items():
        given = [bake(d.upload.local, pose, sizes.voxel) for d, pose in zip(drones, where, strict=True)]
        store = map_of(folder / name, given, sizes.voxel, mixing)
        shown[name] = MapViewer(store.view(), frame)
        made.add(name, shown[name], slowest, sent, on_disk(folder / name))
    store = aligned_map(folder / "aligned", drones, sizes.voxel)
    shown["map, rough poses aligned"] = MapViewer(store.view(), frame)
    made.add("map, rough poses aligned", shown["map, rough poses aligned"], slowest, sent, on_disk(folder / "aligned"))
    whole = as_local("one model", sizes.field, one.params, photos, frame, sizes.voxel)
    for name, local in {"one model, baked": whole, "one model, baked, no view dependence": flat(whole)}.items():
        store = map_of(folder / name, [bake(local, np.eye(3, 4), sizes.voxel)], sizes.voxel)
        made.add(name, MapViewer(store.view(), frame), one.seconds, None, on_disk(folder / name))
    grid = grid_of(photos, frame, desk)
    see = by_cell({cell: viewer(sizes, each.params) for cell, each in grid.items()}, frame)
    seconds, stored = max(each.seconds for each in grid.values()), sum(size_of(each.params) for each in grid.values())
    made.add("4 x 4 grid", see, seconds, None, stored)
    return made.rows, shown


def _each_once(photos: Sequence[Photo], frame: Frame) -> list[Photo]:
    """Photographs of several hands, of which the rays begin below the ceiling."""
    return [photo._replace(top=frame.height(CEILING)) for photo in {photo.name: photo for photo in photos}.values()]


def from_above(see: See, town: Town, pixels: int = 220) -> Tensor:
    """What a camera high above the town sees, ``[H, W, 3]``."""
    height = 4 * town.extent
    focal = pixels * height / (1.02 * town.extent)
    pose = torch.eye(3, 4)
    pose[2, 3] = height / town.frame.half
    camera = Camera("pinhole", pixels, pixels, focal, focal, pixels / 2, pixels / 2)
    return see(photo_rays(pose, camera, town.frame.height(CEILING))).colour.reshape(pixels, pixels, 3).clamp(0, 1)


def truth_of(town: Town) -> See:
    """The town itself."""
    from fedfields.scenes.townscape import photograph

    scene = town.scene(0)

    def see(rays: Rays) -> Marched:
        colour, depth = photograph(scene, rays.origins.double() * town.frame.half, rays.directions.double())
        return Marched(colour, depth.float() / town.frame.half, depth.isfinite().float(), torch.zeros_like(depth))

    return see


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hamlet: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=Path, help="folder for a picture of the map beside the truth")
    parser.add_argument("--keep", type=Path, help="folder for the fields; those in it are not trained again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else FULL
    place = sizes.town.load(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        rows, shown = table(place, Desk(sizes, options.keep), Path(folder))
        if options.out:
            shown = {"truth": truth_of(sizes.town)} | shown
            cells: dict[str, list[Cell | None]] = {"": [Cell(from_above(see, sizes.town)) for see in shown.values()]}
            save_sheet(options.out, "town", "A town from above", list(shown), cells)
    if options.json:
        print(json.dumps({"rows": [row._asdict() for row in rows]}))
        return
    print("| method | PSNR | slowest model | pixels/s | sent | stored |\n|---|--:|--:|--:|--:|--:|")
    for row in rows:
        sent = "–" if row.sent is None else f"{row.sent / 1e6:.1f} MB"
        cells = (
            f"{row.psnr:.2f} dB | {row.seconds:.0f} s | {row.pixels / 1e3:.1f} k | {sent} | {row.stored / 1e6:.1f} MB"
        )
        print(f"| {row.method} | {cells} |")


if __name__ == "__main__":
    main()
