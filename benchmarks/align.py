"""Contributions to a map with a wrong pose: how often, how well and how fast the right one is found.

    python benchmarks/align.py [--trials N] [--few N] [--out DIR] [--quick] [--json]

A made-up town of 120 m, of which all poses are known exactly. Two clients have photographs of two flights over parts of
it that overlap by about half, and each trains a hash grid of its own. As in the paper, one of them, baked into voxels,
plays the map and the other one the contribution; then they change places. So both sides are learned, each with errors
of its own, and neither is a copy of the other.

A trial turns the true pose of a contribution by up to 20 degrees about each axis and shifts it by up to 20 m along
each. It succeeds if the pose that comes out is within 1 m and 1 degree; errors are those of the contribution's middle,
and seconds are processor time of one core. Contributions that do not belong: one of another town, one trained on noise,
and good ones that start 60 to 80 m away. The threshold is the middle between the good and the bad of one half of the
trials, with "east" as the contribution, and is judged by the other half, with "west".
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from fedfields.errors import UserError
from fedfields.fields import HashGrid
from fedfields.mapping.align import Alignment, Brought, Target, fitted, target
from fedfields.mapping.bake import Local, bake, local_as_bytes, local_from_bytes
from fedfields.mapping.register import Search, register, surface_of
from fedfields.mapping.rigid import about, apart
from fedfields.rendering.marching import Marching
from fedfields.report.figures import Line, over_rounds, save_chart
from fedfields.runtime.contribute import Training, as_local, through_floor, train_field
from fedfields.scenes.frame import Frame
from fedfields.scenes.town import Town
from fedfields.scenes.views import Photo
from fedfields.seeds import generator

FLOOR, CEILING = -7.0, 18.0
"""Heights in metres between which the town lies: what structure from motion would tell a client."""

MARCHING = Marching(steps=192, samples=32768, refresh=50, distortion=0.01)
"""How fields are rendered."""

METRES, DEGREES = 20.0, 20.0
"""Largest errors of a start along and about each axis."""

TRUTH = np.eye(3, 4)
"""The pose of all contributions: their frames are the world's."""


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
        town: photographs and their size.
        kept: photographs of a contribution, the nearest to the middle of its part.
        voxel: metres.
        half: half the edge of the part that a contribution covers, in metres.
        steps: of training; noise takes half as many.
        base: how poses are found.
    """

    town: Town
    kept: int
    voxel: float
    half: float
    steps: int
    base: Alignment


FAST = Alignment(Search(hypotheses=4096, kept=64, points=512), rays=1024, steps=5)
FULL = Sizes(Town(120, photos=240, width=60, height=45, lowest=40, highest=70), 100, 0.5, 40.0, 1500, Alignment())
QUICK = Sizes(Town(extent=100, photos=24, least=1, most=1, width=48, height=36, highest=70.0), 16, 1.0, 45.0, 200, FAST)


class Part(NamedTuple):
    """A client: which flight its photographs are of, over which town and around which place; whether they are noise."""

    flight: str
    seed: int = 0
    around: tuple[float, float] = (0.0, 0.0)
    noise: bool = False


PARTS = {
    "east": Part("east", 0, (12.0, 8.0)),
    "west": Part("west", 0, (-15.0, -10.0)),
    "elsewhere": Part("elsewhere", 1, (12.0, 8.0)),
    "noise": Part("noise", 0, (-15.0, -10.0), True),
}


class Ready(NamedTuple):
    """A contribution: what is brought, but for its start; and its middle."""

    brought: Brought
    middle: NDArray[np.float64]


class Trial(NamedTuple):
    """One alignment. Errors before and after in degrees and metres; ``fits`` if the contribution belongs to the map."""

    part: str
    kind: str
    fits: bool
    before: tuple[float, float]
    after: tuple[float, float]
    confidence: float
    overlap: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the right pose was found."""
        return self.fits and self.after[0] < 1 and self.after[1] < 1


def middle_of(sizes: Sizes, part: Part) -> tuple[float, float]:
    """The middle of a part in metres; in a smaller town everything is nearer."""
    scale = sizes.town.extent / FULL.town.extent
    return scale * part.around[0], scale * part.around[1]


def photographs(sizes: Sizes, part: Part) -> tuple[Tensor, Tensor]:
    """Poses ``[V, 3, 4]`` in metres and pictures of a client."""
    poses = sizes.town.flight(sizes.town.photos, part.seed, part.flight)
    away = (poses[:, :2, 3] - torch.tensor(middle_of(sizes, part)).double()).norm(dim=1)
    poses = poses[away.argsort()[: sizes.kept]]
    return poses, sizes.town.shoot(poses, part.seed).colours


def trained(name: str, part: Part, sizes: Sizes) -> Local:
    """A hash grid that has learned a client's photographs, and the cells that it saw."""
    poses, colours = photographs(sizes, part)
    chance = generator(part.seed, "train", name)
    if part.noise:
        colours = torch.randint(0, 256, colours.shape, dtype=torch.uint8, generator=chance)
    frame = Frame((*middle_of(sizes, part), FLOOR + sizes.half), sizes.half)
    photos = [
        Photo(f"{i}", frame.pose(pose).float(), sizes.town.camera, one)
        for i, (pose, one) in enumerate(zip(poses, colours, strict=True))
    ]
    mine, steps = through_floor(photos, frame.height(CEILING)), sizes.steps // (2 if part.noise else 1)
    field = HashGrid(levels=8, finest=round(frame.half / sizes.voxel))
    training = Training(field, MARCHING, batch=512, steps=steps)
    weights, _ = train_field(name, mine, frame, training, part.seed, lambda done, total: None)
    return as_local(name, field, weights, mine, frame, sizes.voxel)


def ready(name: str, sizes: Sizes, folder: Path) -> Ready:
    """A client's field as voxels, from the folder if it was trained before."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        before = time.process_time()
        path.write_bytes(local_as_bytes(trained(name, PARTS[name], sizes)))
        print(f"{name}: trained in {time.process_time() - before:.0f} s", file=sys.stderr, flush=True)
    bricks = bake(local_from_bytes(path.read_bytes()), TRUTH, sizes.voxel).bricks
    cameras = photographs(sizes._replace(town=dataclasses.replace(sizes.town, width=1, height=1)), PARTS[name])[0]
    return Ready(Brought(name, bricks, cameras.numpy(), TRUTH), surface_of(bricks, sizes.voxel).places.mean(0))


def noise(middle: NDArray, seed: int, far: bool) -> NDArray[np.float64]:
    """A wrong pose; a far one is 60 to 80 m away in the plane."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-DEGREES, DEGREES, 3), degrees=True).as_matrix()
    shift = rng.uniform(-METRES, METRES, 3)
    if far:
        angle, way = rng.uniform(0, math.tau), rng.uniform(60, 80)
        shift = np.array([way * math.cos(angle), way * math.sin(angle), shift[2]])
    return about(turn, shift, middle)


def trial(to: Target, given: Ready, kind: str, fits: bool, seed: int, settings: Alignment) -> Trial:
    """One alignment from a wrong start."""
    start = noise(given.middle, seed, kind == "far")
    before = time.process_time()
    try:
        found = fitted(to, given.brought._replace(start=start), settings, generator(seed, "align"))
        pose, confidence, overlap = found.pose, found.confidence, found.overlap
    except UserError:  # It does not even overlap.
        pose, confidence, overlap = start, 0.0, 0.0
    seconds = time.process_time() - before
    errors = [apart(each, TRUTH, given.middle) for each in (start, pose)]
    return Trial(given.brought.name, kind, fits, errors[0], errors[1], confidence, overlap, seconds)


def figures(trials: Sequence[Trial]) -> dict:
    """Share of successes, and medians."""
    after = np.array([one.after for one in trials])
    return {
        "trials": len(trials),
        "success": float(np.mean([one.good for one in trials])),
        "degrees": float(np.median(after[:, 0])),
        "metres": float(np.median(after[:, 1])),
        "seconds": float(np.median([one.seconds for one in trials])),
        "confidence": float(np.median([one.confidence for one in trials])),
    }


def threshold(trials: Sequence[Trial]) -> float:
    """The middle between what should be accepted and what should not; the best cut where they overlap."""
    cuts = sorted({0.0, *(one.confidence for one in trials)})
    wrong = [sum(one.good != (one.confidence > cut) for one in trials) for cut in cuts]
    best = [i for i, count in enumerate(wrong) if count == min(wrong)]
    return (cuts[best[0]] + cuts[min(best[-1] + 1, len(cuts) - 1)]) / 2


def refusals(trials: Sequence[Trial], cut: float) -> dict:
    """What a threshold accepts wrongly (a wrong pose, whatever the reason) and what it refuses wrongly."""
    good, bad = [one for one in trials if one.good], [one for one in trials if not one.good]
    return {
        "threshold": cut,
        "good": len(good),
        "refused_wrongly": sum(one.confidence <= cut for one in good),
        "bad": len(bad),
        "accepted_wrongly": sum(one.confidence > cut for one in bad),
        "least_good": min((one.confidence for one in good), default=None),
        "most_bad": max((one.confidence for one in bad), default=None),
    }


def table(to: Target, given: Ready, few: int, base: Alignment, values: dict[str, dict]) -> dict[str, dict]:
    """Other settings of the fine stage, on the same starts."""
    return {
        name: figures([trial(to, given, "near", True, 900 + i, dataclasses.replace(base, **other)) for i in range(few)])
        for name, other in values.items()
    }


def voxels_only(to: Target, given: Ready, few: int, base: Alignment) -> dict:
    """The rough stage without the fine one."""
    found = []
    for seed in range(900, 900 + few):
        chance, start, before = generator(seed, "align"), noise(given.middle, seed, False), time.process_time()
        tried = register(to.levels, surface_of(given.brought.bricks, to.voxel), start, base.search, chance)
        seconds = time.process_time() - before
        errors = [apart(each, TRUTH, given.middle) for each in (start, tried[0])]
        found.append(Trial(given.brought.name, "near", True, errors[0], errors[1], 0.0, 0.0, seconds))
    return figures(found)


def draw(trials: Sequence[Trial], path: Path) -> None:
    """Final error over initial error, in metres."""
    points = sorted((one.before[1], one.after[1]) for one in trials)
    save_chart(over_rounds("final error by initial error", [Line(points, 1)], "m", (), "m off at first"), path)


def measured(sizes: Sizes, folder: Path, trials: int, few: int) -> dict:
    """All figures of one run; the picture lies in the folder."""
    east, west, elsewhere, blind = (ready(name, sizes, folder) for name in PARTS)
    base, before = sizes.base, time.process_time()
    pairs = [(target(there.brought.bricks, sizes.voxel, base), here) for here, there in ((east, west), (west, east))]
    preparing = (time.process_time() - before) / 2
    halves = [half(pair, 1000 * k, trials // 2, base) for k, pair in enumerate(pairs)]
    near = halves[0] + halves[1]
    draw(near, folder / "align.svg")
    for k, (to, given) in enumerate(pairs):
        for kind, bad in (("elsewhere", elsewhere), ("noise", blind), ("far", given)):
            halves[k] += [trial(to, bad, kind, False, 2000 + 100 * k + i, base) for i in range(few)]
    cut = threshold(halves[0])
    return {
        "voxel": sizes.voxel,
        "seconds_to_prepare_the_map": preparing,
        "trials": figures(near),
        "voxels only": voxels_only(*pairs[0], few, base),
        "lambda": table(*pairs[0], few, base, {f"{x:g}": {"colour": x} for x in (0.0, 0.25, 0.5, 0.75, 1.0)}),
        "views": table(*pairs[0], few, base, {f"{count}": {"views": count} for count in (1, 2, 4, 8)}),
        "chosen on east": refusals(halves[0], cut),
        "tested on west": refusals(halves[1], cut),
        "with the default": refusals(halves[0] + halves[1], base.confidence),
        "pairs": [[*one.before, *one.after, one.confidence, one.overlap, one.seconds] for one in near],
        "picture": str(folder / "align.svg"),
    }


def half(pair: tuple[Target, Ready], first: int, count: int, base: Alignment) -> list[Trial]:
    """Trials of one contribution, of which the right pose is in reach."""
    return [trial(*pair, "near", True, first + i, base) for i in range(count)]


def show(found: dict) -> None:
    """The tables."""
    print(f"{'':24}{'trials':>8}{'success':>9}{'degrees':>9}{'metres':>8}{'seconds':>9}{'confidence':>12}")
    rows = {"all": found["trials"], "voxels only": found["voxels only"]}
    rows |= {f"{kind} {name}": row for kind in ("lambda", "views") for name, row in found[kind].items()}
    for name, row in rows.items():
        print(
            f"{name:24}{row['trials']:>8}{row['success']:>9.0%}{row['degrees']:>9.3f}{row['metres']:>8.3f}"
            f"{row['seconds']:>9.2f}{row['confidence']:>12.2f}"
        )
    for name in ("chosen on east", "tested on west", "with the default"):
        row = found[name]
        print(
            f"{name}, {row['threshold']:.2f}: {row['refused_wrongly']} of {row['good']} good ones refused, "
            f"{row['accepted_wrongly']} of {row['bad']} bad ones accepted"
        )
    print(found["picture"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100, help="alignments from wrong starts")
    parser.add_argument("--few", type=int, default=10, help="alignments for each other row and each kind of bad one")
    parser.add_argument("--out", type=Path, help="folder of fields and picture; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="align-"))
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    counts = (2, 1) if options.quick else (options.trials, options.few)
    found = measured(QUICK if options.quick else FULL, folder, *counts)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
