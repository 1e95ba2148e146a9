"""Real drone photographs on one map: two halves as two clients, one of which starts where GPS and gimbal say.

    python benchmarks/drone.py [--quick] [--json] [--out DIR]

18 photographs of a beach from 40 m, straight down (``drone`` in the folder FEDFIELDS_DATA), with poses in metres by
structure from motion, fitted to GPS; these count as surveyed. Three are held out, one of each line of flight. The first
client has the first line and half of the second, the other client the rest; both train in axes of their own. The first
is merged under its surveyed pose. The second one starts where GPS (EXIF) and gimbal (XMP) put its cameras; both come
from the data's gps_raw.json, since the reduced pictures have lost their XMP. Then, once each way around, the second is
merged under that start, under the pose that alignment finds (eq. 5), and under the surveyed one; the map is rendered at
the held-out cameras, at the pixels of which rays end in the clients' cubes. Degrees and metres are those between the
pose and the surveyed one, at the middle of what the client saw; a server refuses what has a confidence below 0.26.
"rough" are starts made worse by up to 5 m and 5 degrees.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from town import motion_of

from fedfields.fields import HashGrid
from fedfields.losses import MarchedLoss
from fedfields.mapping.align import Aligned, Alignment, Brought, around, fitted, target
from fedfields.mapping.bake import bake
from fedfields.mapping.commits import merge
from fedfields.mapping.merge import Mixing
from fedfields.mapping.rigid import about, after, apart, between, moved
from fedfields.mapping.store import Map, MapSettings, create_map
from fedfields.mapping.upload import Upload
from fedfields.rendering.marching import Marched
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
from fedfields.scenes.drones import Told, poses_of
from fedfields.scenes.frame import Frame
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import Photo, photo_rays, photos_of
from fedfields.seeds import generator

MARCHING = {"steps": 256, "samples": 8192, "cells": 64}
"""How fields are rendered: a step is 0.6 m."""

HELD_OUT = ("DJI_0021", "DJI_0026", "DJI_0032")
"""One photograph from the middle of each line of flight."""

FIRST = ("DJI_0018", "DJI_0019", "DJI_0020", "DJI_0022", "DJI_0023", "DJI_0024", "DJI_0025", "DJI_0027")
"""Those of the first client: the first line, and part of the second."""

FLOOR, REACH = -43.0, 30.0
"""Metres: below the ground, which is at -39 and nearly flat; and how much wider than the flight a client's cube is."""

CEILING = -25.0
"""Metres: above the trees."""

ERROR = (3.0, 5.0)
"""How far off GPS and gimbal may be, as a client tells the server: metres, degrees."""

ROUGH = (5.0, 5.0)
"""Of starts that are made worse."""


class Sizes(NamedTuple):
    """How large everything is: pixels along a photograph, field, steps, voxel (metres), rough starts."""

    pixels: int
    field: HashGrid
    steps: int
    voxel: float
    trials: int

    @property
    def training(self) -> Training:
        base = Training()
        return replace(base, field=self.field, rays=replace(base.rays, **MARCHING), batch=512, steps=self.steps)


FULL = Sizes(120, HashGrid(levels=8, log2_rows=14, finest=256), 1500, 0.75, 5)
QUICK = Sizes(60, HashGrid(levels=8, log2_rows=13, finest=128), 150, 1.0, 1)


class Flight(NamedTuple):
    """A client: its field as it was sent, with GPS and gimbal as the start; its true pose, its photographs, seconds."""

    upload: Upload
    true: NDArray[np.float64]
    photos: tuple[Photo, ...]
    seconds: float

    @property
    def middle(self) -> NDArray[np.float64]:
        """Of what it saw, in its own axes, metres."""
        x, y, _ = self.upload.local.frame.centre
        return np.array([x, y, FLOOR + 4])


def shots_of(folder: Path, pixels: int) -> tuple[dict[str, Photo], Frame]:
    """The photographs with their surveyed poses, by name, and the frame that holds them all."""
    with tempfile.TemporaryDirectory() as capture:
        (Path(capture) / "images").symlink_to((folder / "images").resolve())
        (Path(capture) / "transforms.json").write_bytes((folder / "transforms_enu.json").read_bytes())
        place = Scene(Path(capture), size=pixels).load()
    found = {Path(photo.name).stem: photo for photo in (*photos_of(place.clients), *place.tests)}
    return dict(sorted(found.items())), place.frame


def told_poses(folder: Path, names: Sequence[str]) -> NDArray[np.float64]:
    """Camera poses ``[V, 3, 4]`` as GPS and gimbal have them, in the survey's metres."""
    raw = json.loads((folder / "gps_raw.json").read_text())
    origin = json.loads((folder / "gps_fit.json").read_text())["origin"]
    told = []
    for name in names:
        one = raw[f"{name}.JPG"]
        gimbal = tuple(one[f"xmp_Gimbal{part}Degree"] for part in ("Yaw", "Pitch", "Roll"))
        told.append(Told((one["lat"], one["lon"], one["alt"]), gimbal))
    return poses_of(told, np.array([origin[key] for key in ("lat", "lon", "alt")]))


def fly(name: str, shots: dict[str, Photo], frame: Frame, told: NDArray[np.float64], sizes: Sizes) -> Flight:
    """A client trains in axes of its own: turned about the vertical by half a radian, around where it flew."""
    world = in_metres([*shots.values()], frame)
    turn = np.array([[np.cos(0.5), -np.sin(0.5), 0], [np.sin(0.5), np.cos(0.5), 0], [0, 0, 1]])
    true = np.concatenate([turn, world[:, :, 3].mean(0)[:, None] * [[1], [1], [0]]], 1)
    own = np.concatenate([turn.T @ world[:, :, :3], ((world[:, :, 3] - true[:, 3]) @ turn)[:, :, None]], 2)
    cube = cube_below(own, FLOOR, REACH)
    mine = through_floor(reframed([*shots.values()], own, cube), cube.height(CEILING))
    before = time.process_time()
    params, _ = train_field(name, mine, cube, sizes.training, 0, lambda done, total: None)
    seconds = time.process_time() - before
    local = as_local(name, sizes.field, params, mine, cube, sizes.voxel)
    return Flight(Upload(local, between(own, told), ERROR, own), true, mine, seconds)


def usable(photo: Photo, colours: torch.Tensor) -> torch.Tensor:
    """Of colours of all pixels of a photograph, those that count, ``[P, 3]``."""
    return colours.reshape(-1, 3)[slice(None) if photo.usable is None else photo.usable]


def psnr_of(see: Callable[[Rays], Marched], photos: Sequence[Photo]) -> float:
    """Of the pixels that count in each photograph, in dB."""
    shown = [usable(photo, see(photo_rays(photo.pose, photo.camera, photo.top)).colour) for photo in photos]
    errors = [(one - usable(photo, photo.colours / 255)).square() for one, photo in zip(shown, photos, strict=True)]
    return -10 * float(torch.cat(errors).mean().log10())


def floor_of(photos: Sequence[Photo]) -> float:
    """PSNR of showing each photograph's mean colour and nothing else."""
    colours = [usable(photo, photo.colours / 255) for photo in photos]
    return -10 * float(torch.cat([(one - one.mean(0)).square() for one in colours]).mean().log10())


def in_cubes(tests: Sequence[Photo], frame: Frame, flights: Sequence[Flight]) -> tuple[Photo, ...]:
    """Test photographs with the pixels that show ground in the cube of either client."""
    poses, found = in_metres(tests, frame), []
    for i, photo in enumerate(tests):
        pixels = set[int]()
        for flight in flights:
            turn, cube = flight.true, flight.upload.local.frame
            own = np.concatenate([turn[:, :3].T @ poses[i, :, :3], turn[:, :3].T @ (poses[i, :, 3:] - turn[:, 3:])], 1)
            for one in through_floor(reframed([photo], own[None], cube)):
                whole = range(photo.camera.width * photo.camera.height)
                pixels |= set(whole if one.usable is None else one.usable.tolist())
        found.append(photo._replace(usable=torch.tensor(sorted(pixels)), top=frame.height(CEILING)))
    return tuple(found)


def map_of(folder: str, voxel: float, *given: tuple[Flight, NDArray[np.float64]]) -> Map:
    """A map of clients, each under a pose."""
    store = create_map(Path(folder) / "map", MapSettings(voxel, mixing=Mixing(density="log"), keep=0))
    for flight, pose in given:
        merge(store, bake(flight.upload.local, pose, voxel))
    return store


class Judge(NamedTuple):
    """Looks at maps where the held-out cameras are."""

    tests: tuple[Photo, ...]
    frame: Frame
    voxel: float

    def score(self, *given: tuple[Flight, NDArray[np.float64]]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return psnr_of(MapViewer(map_of(folder, self.voxel, *given).view(), self.frame), self.tests)


def aligned(store: Map, upload: Upload, seed: int) -> Aligned:
    """Where an upload fits best in a map, however badly, searched for as far as its pose may be off."""
    (metres, degrees), voxel, base = upload.error, store.settings.voxel, Alignment()
    settings = replace(base, search=replace(base.search, metres=metres, degrees=degrees))
    brought = Brought(upload.name, bake(upload.local, np.eye(3, 4), voxel).bricks, upload.cameras, upload.pose)
    area = store.view().area(*around(brought, voxel, settings.search))
    return fitted(target(area, voxel, settings), brought, settings, generator(seed, "align"))


def row(name: str, flight: Flight, pose: NDArray[np.float64], **more: float) -> dict:
    """A line of the table: how far a pose is off, and more."""
    degrees, metres = apart(pose, flight.true, flight.middle)
    return {"row": name, "degrees": degrees, "metres": metres, **more}


def one_way(name: str, first: Flight, second: Flight, judge: Judge) -> list[dict]:
    """The second is merged after the first, under three poses."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store, before = map_of(folder, judge.voxel, (first, first.true)), time.process_time()
        found = aligned(store, second.upload, 0)
        seconds = time.process_time() - before
    for kind, pose in {"GPS and gimbal": second.upload.pose, "aligned": found.pose, "surveyed": second.true}.items():
        rows.append(row(f"{name}, {kind}", second, pose, psnr=judge.score((first, first.true), (second, pose))))
    rows[1] |= {"confidence": found.confidence, "seconds": seconds}
    return rows


def rough_rows(first: Flight, second: Flight, sizes: Sizes) -> list[dict]:
    """Starts that are worse than GPS, and what becomes of them."""
    random, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        store = map_of(folder, sizes.voxel, (first, first.true))
        for i in range(sizes.trials):
            rows.append(rough_row(f"rough {i}", store, second, random, i))
    return rows


def rough_row(name: str, store: Map, second: Flight, random: np.random.Generator, seed: int) -> dict:
    """One start that is worse than GPS, and what becomes of it."""
    off = motion_of(random, *ROUGH)
    middle = moved(second.upload.pose, second.middle)
    start = after(about(off[:, :3], off[:, 3], middle), second.upload.pose)
    degrees, metres = apart(start, second.true, second.middle)
    found = aligned(store, second.upload._replace(pose=start, error=ROUGH), seed)
    more = {"confidence": found.confidence, "start_degrees": degrees, "start_metres": metres}
    return row(name, second, found.pose, **more)


def results(folder: Path, sizes: Sizes, out: Path | None) -> dict:
    """All rows, and what is needed to read them."""
    shots, frame = shots_of(folder, sizes.pixels)
    names = [[n for n in shots if n not in HELD_OUT and (n in FIRST) == half] for half in (True, False)]
    flights = [
        fly(f"half {i}", {n: shots[n] for n in each}, frame, told_poses(folder, each), sizes)
        for i, each in enumerate(names)
    ]
    judge = Judge(in_cubes([shots[name] for name in HELD_OUT], frame, flights), frame, sizes.voxel)
    rows: list[dict] = [{"row": "each photograph's mean colour", "psnr": floor_of(judge.tests)}]
    for flight in flights:
        see = Viewer(MarchedLoss(sizes.field, sizes.training.rays), flight.upload.local.params, 0)
        name, count = flight.upload.name, len(flight.photos)
        rows.append({"row": f"{name} alone, its own photographs", "psnr": psnr_of(see, flight.photos), "photos": count})
        rows[-1] |= {"seconds": flight.seconds}
        rows.append({"row": f"{name} alone, held out, baked", "psnr": judge.score((flight, flight.true))})
    rows += one_way("second to first", *flights, judge) + one_way("first to second", *flights[::-1], judge)
    gps = [(flight, flight.upload.pose) for flight in flights]
    rows.append({"row": "both as GPS and gimbal say", "psnr": judge.score(*gps)})
    if out is not None:
        draw(out, judge, flights)
    return {"rows": rows, "rough": rough_rows(*flights, sizes), "pixels": [len(t.usable) for t in judge.tests]}  # pyright: ignore


def draw(out: Path, judge: Judge, flights: Sequence[Flight]) -> None:
    """The held-out photographs, and beside each what the map of surveyed poses shows."""
    with tempfile.TemporaryDirectory() as folder:
        given = [(flight, flight.true) for flight in flights]
        see = MapViewer(map_of(folder, judge.voxel, *given).view(), judge.frame)
        for photo in judge.tests:
            shown = see.picture(photo.pose, photo.camera).clamp(0, 1)
            both = torch.cat([photo.colours / 255, shown], 1)
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * both).byte().numpy()).save(out / f"{Path(photo.name).stem}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less than a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=Path, help="folder for pictures")
    options = parser.parse_args()
    folder = Path(os.environ.get("FEDFIELDS_DATA", "../shared/data")) / "drone"
    if not folder.exists():
        raise SystemExit(f"{folder} does not exist; set FEDFIELDS_DATA to the folder that holds drone")
    torch.set_num_threads(1)
    found = results(folder, QUICK if options.quick else FULL, options.out)
    if options.json:
        print(json.dumps(found))
        return
    for line in (*found["rows"], *found["rough"]):
        told = {key: value for key, value in line.items() if key != "row"}
        print(f"{line['row']:36} " + "  ".join(f"{key} {value:,.4g}" for key, value in told.items()))


if __name__ == "__main__":
    main()
