"""The compiled kernels, each beside its plain-torch twin and under the memory bandwidth of the same run.

    python benchmarks/kernels.py [--quick] [--json] [--threads N]

Columns: millions of points (or rays) a second, forward and forward with backward (medians); how many times as fast as
the twin and as another way to do it in torch: for voxels torch.nn.functional.grid_sample, for the hash encoding all
levels and corners at once, where the twin goes through them one by one; and the share of the copy bandwidth that the
necessary traffic stands for. Necessary are: every input read once and every output written once by each pass, and of
tables and grids the 64-byte lines that the points touch, once in the forward pass; the backward pass writes the
gradient of the whole table or grid once. Whatever a cache makes cheaper or dearer is not counted: a share far below 1
says that the kernel is bound by arithmetic or by the latency of single accesses. Bandwidth is that of a copy of 256 MB,
read and written. On one thread, time is that of the process, which leaves out other work on the machine; on several
threads it is that of the wall, and the threads of torch need OMP_WAIT_POLICY=PASSIVE if other work shares the cores.

"C++" is the time of ours in terms of a C++ prototype's: below 1 we are faster. Its figures were measured elsewhere, on
another day, on one idle core of a similar machine; the goal is at most 1.5, and 30 times the eager hash encoding.

The last line is one training step (loss, gradients, Adam) of the hash-grid field on rays that begin anywhere in the
cube and go anywhere, with matter in a ball; its share is that of the sgemm ceiling, with matrix products alone counted.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import measure
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize
from torch.utils.flop_counter import FlopCounterMode

from fedfields import tree
from fedfields.fields import HashGrid
from fedfields.kernels import hashing, packed, voxels
from fedfields.losses import MarchedLoss
from fedfields.optim import Adam
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import Rays
from fedfields.types import Batch

POINTS, RAYS = 65536, 4096
CELLS = hashing.resolutions(16, 16, 512)
HASH_GOAL, CPP_GOAL = 30.0, 1.5
CPP = {"hash 2^15": (7.8, 3.6), "hash 2^19": (1.7, 0.7), "voxels x 4": (10.0, 3.4), "voxels x 28": (4.7, 0.48)}
"""Million points a second, forward and forward with backward, of a C++ prototype; measured elsewhere."""


class Effort(NamedTuple):
    """How long to measure: seconds for each median, and the fewest calls."""

    seconds: float
    least: int

    def median(self, step: Callable[[], object]) -> float:
        """Median seconds of a call, after one warm-up."""
        return measure.median(step, self.least, self.seconds, self.clock)

    @property
    def clock(self) -> Callable[[], float]:
        """That of the process, if it has one thread."""
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


class Passes(NamedTuple):
    """What is measured of one function: seconds (or bytes) forward and with backward (nan if there is none)."""

    forward: float
    both: float


def passes(function: Callable[..., Tensor], leaves: list[Tensor], effort: Effort) -> Passes:
    """Seconds of ``function(*leaves)``, and with the gradients of all leaves."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    above = torch.ones_like(function(*leaves))

    def forward() -> None:
        with torch.no_grad():
            function(*leaves)

    return Passes(effort.median(forward), effort.median(lambda: torch.autograd.grad(function(*leaves), leaves, above)))


def row(name: str, count: int, ours: Passes, traffic: Passes, copied: float, **others: Passes) -> dict:
    """One line of the table; ``others`` are what it is compared with."""
    found = {"kernel": name, "count": count}
    for key, seconds, size in zip(Passes._fields, ours, traffic, strict=True):
        if seconds == seconds:
            found[key] = count / seconds
            found[f"{key}_of_copy"] = size / seconds / 1e9 / copied
        found |= {f"{key}_over_{other}": getattr(times, key) / seconds for other, times in others.items()}
    for key, figure in zip(Passes._fields, CPP.get(name, ()), strict=False):
        found[f"{key}_cpp"] = figure * 1e6 / found[key]
    return {key: value for key, value in found.items() if value == value}


def linear(name: str, ours: Callable, others: dict[str, Callable], weights: Tensor, copied: float, effort: Effort):
    """A kernel that is linear in a table or grid of weights."""
    leaf = weights.detach().requires_grad_()
    out = ours(leaf)
    (grad,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    lines = 64 * int((grad.view(-1, 16) != 0).any(1).sum())
    once, dense = 12 * len(out) + 4 * out.numel(), 4 * weights.numel()
    traffic = Passes(once + lines, 2 * once + lines + dense)
    times = {key: passes(other, [weights], effort) for key, other in others.items()}
    return row(name, len(out), passes(ours, [weights], effort), traffic, copied, **times)


def at_once(points: Tensor, table: Tensor, cells: list[int]) -> Tensor:
    """The hash encoding in torch without a loop: points, levels and corners are axes."""
    levels, size, _ = table.shape
    count = torch.tensor(cells)[:, None]
    scaled = points[:, None] * count
    low = torch.minimum(scaled.long(), count - 1)
    offsets = torch.tensor([[corner & 1, corner >> 1 & 1, corner >> 2] for corner in range(8)])
    weights = torch.where(offsets.bool(), (scaled - low)[:, :, None], 1 - (scaled - low)[:, :, None]).prod(-1)
    x, y, z = (low[:, :, None] + offsets).unbind(-1)
    hashed = (x ^ y * hashing.PRIMES[1] ^ z * hashing.PRIMES[2]) & (size - 1)
    rows = torch.where((count + 1) ** 3 <= size, (z * (count + 1) + y) * (count + 1) + x, hashed)
    return (weights[..., None] * table[torch.arange(levels)[:, None], rows]).sum(2).flatten(1)


def hash_rows(copied: float, effort: Effort, generator: torch.Generator) -> list[dict]:
    rows = []
    for log2_rows in (15, 19):
        points = torch.rand(POINTS, 3, generator=generator)
        table = torch.randn(len(CELLS), 2**log2_rows, 2, generator=generator)

        def ours(table: Tensor, points: Tensor = points) -> Tensor:
            return hashing.hash_encode(points, table, CELLS)

        def twin(table: Tensor, points: Tensor = points) -> Tensor:
            return hashing.plain(points, table, CELLS)

        def other(table: Tensor, points: Tensor = points) -> Tensor:
            return at_once(points, table, CELLS)

        assert torch.allclose(ours(table), other(table), atol=1e-4)
        others = {"twin": twin, "torch": other}
        rows.append(linear(f"hash 2^{log2_rows}", ours, others, table, copied, effort))
    return rows


def voxel_rows(copied: float, effort: Effort, generator: torch.Generator) -> list[dict]:
    rows = []
    for channels in (4, 28):
        points = torch.rand(POINTS, 3, generator=generator)
        grid = torch.randn(128, 128, 128, channels, generator=generator)

        def ours(grid: Tensor, points: Tensor = points) -> Tensor:
            return voxels.sample_voxels(grid, points)

        def twin(grid: Tensor, points: Tensor = points) -> Tensor:
            return voxels.plain(grid, points)

        def of_torch(volume: Tensor, points: Tensor = points) -> Tensor:
            places = 2 * points.view(1, -1, 1, 1, 3) - 1
            return grid_sample(volume, places, align_corners=True, padding_mode="border")

        rows.append(linear(f"voxels x {channels}", ours, {"twin": twin}, grid, copied, effort))
        volume = grid.permute(3, 2, 1, 0)[None].contiguous()  # The layout that torch is made for.
        times = passes(of_torch, [volume], effort)
        for key, seconds in zip(Passes._fields, times, strict=True):
            rows[-1][f"{key}_over_torch"] = seconds * rows[-1][key] / POINTS
    return rows


def ball(cells: int) -> Tensor:
    """Which cells of the cube ``[G, G, G]`` lie in a ball of half its radius."""
    axis = (2 * torch.arange(cells) + 1) / cells - 1
    return axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.25


def random_rays(count: int, generator: torch.Generator) -> Rays:
    """Rays that begin anywhere in [-1, 1]^3, go anywhere, and end at its border."""
    origins = 2 * torch.rand(count, 3, generator=generator) - 1
    directions = normalize(torch.randn(count, 3, generator=generator), dim=1)
    far = ((directions.sign() - origins) / directions).amin(1)
    return Rays(origins, directions, torch.zeros(count), far, torch.rand(count, 1, generator=generator))


def marched(rays: Rays, occupied: Tensor, step: float, function: Callable = packed.march) -> packed.Packed:
    """Samples of rays in the cube [-1, 1]^3, as `rendering.marching` takes them."""
    assert rays.jitter is not None
    origins, directions = (rays.origins + 1) / 2, rays.directions / 2
    return function(origins, directions, rays.near, rays.far, rays.jitter[:, 0], occupied, step)


def packed_rows(copied: float, effort: Effort, generator: torch.Generator) -> list[dict]:
    """Marching, which has no gradient, and compositing of what it found."""
    rays, occupied, step = random_rays(RAYS, generator), ball(64), Marching().step
    samples = marched(rays, occupied, step)
    count, none = len(samples.ray), float("nan")
    found = [
        Passes(effort.median(lambda f=f: marched(rays, occupied, step, f)), none)
        for f in (packed.march, packed.march_plain)
    ]
    traffic = Passes(36 * RAYS + occupied.numel() + 8 * (RAYS + 1) + 16 * count, none)
    rows = [row("marching", RAYS, found[0], traffic, copied, twin=found[1])]

    def ours(density: Tensor, colour: Tensor) -> Tensor:
        return packed.composite(density, colour, samples)[0]

    def twin(density: Tensor, colour: Tensor) -> Tensor:
        return packed.composite_plain(density, colour, samples)[0]

    leaves = [20 * torch.rand(count, generator=generator), torch.rand(count, 3, generator=generator)]
    times = [passes(function, leaves, effort) for function in (ours, twin)]
    once = 24 * count + 8 * (RAYS + 1) + 20 * RAYS  # Density, colour, middle and delta; offsets; five sums a ray.
    traffic = Passes(once, 2 * once + 16 * count)
    rows.append(row("compositing", RAYS, times[0], traffic, copied, twin=times[1]))
    return [{**each, "samples_per_ray": count / RAYS} for each in rows]


def training(effort: Effort, generator: torch.Generator) -> dict:
    """One training step of the hash-grid field on as many rays as a batch may hold."""
    field, settings, rays = HashGrid(), Marching(), random_rays(RAYS, generator)
    batch = Batch(rays, torch.rand(RAYS, 3, generator=generator))
    loss = MarchedLoss(field, settings, 100.0 * ball(settings.cells))
    samples = marched(rays, loss.occupied, settings.step)
    count = int((samples.offsets[1:] <= settings.samples).sum())
    params = tree.leaves_of(field.init(generator))
    optimizer = Adam()
    state = optimizer.init(tree.detach(params))

    def step() -> None:
        grads = torch.autograd.grad(loss(params, batch), list(params.values()))
        optimizer.step(tree.detach(params), dict(zip(params, grads, strict=True)), state, 1e-2)

    counter = FlopCounterMode(display=False)
    with counter:
        step()
    seconds = effort.median(step)
    return {
        "rays": count / seconds,
        "samples": int(samples.offsets[count]) / seconds,
        "ms": 1e3 * seconds,
        "of_sgemm": counter.get_total_flops() / seconds / measure.sgemm(effort.least, effort.seconds, effort.clock),
    }


def show(result: dict) -> None:
    print(
        f"copy {result['copy_gb_per_second']:.1f} GB/s, {result['threads']} thread(s), torch {torch.__version__}; "
        f"M/s are points, of marching and compositing rays"
    )
    print(f"{'kernel':13}{'pass':>10}{'M/s':>8}{'/twin':>8}{'/torch':>8}{'of copy':>9}{'C++':>7}")
    for each in result["kernels"]:
        for key, name in (("forward", "forward"), ("both", "+backward")):
            if key not in each:
                continue
            ratios = [each.get(f"{key}_over_{other}") for other in ("twin", "torch")]
            print(
                f"{each['kernel']:13}{name:>10}{each[key] / 1e6:8.2f}"
                + "".join(f"{'':8}" if ratio is None else f"{ratio:8.1f}" for ratio in ratios)
                + f"{each[f'{key}_of_copy']:9.0%}"
                + (f"{each[f'{key}_cpp']:7.2f}" if f"{key}_cpp" in each else "")
            )
    print(
        f"goals: hash forward and backward {HASH_GOAL:.0f} times its twin; C++ at most {CPP_GOAL}, against figures "
        "measured elsewhere, on another day, on one idle core"
    )
    step = result["training"]
    print(
        f"hash-grid field, one training step: {step['ms']:.1f} ms, {step['rays'] / 1e3:.1f} k rays/s, "
        f"{step['samples'] / 1e3:.0f} k samples/s, {step['of_sgemm']:.0%} of the sgemm ceiling"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, shorter medians")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch and of the kernels")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    effort = Effort(0.3, 1) if options.quick else Effort(2.0, 5)
    generator = torch.Generator().manual_seed(0)
    copied = measure.bandwidth(effort.least, effort.seconds, effort.clock) / 1e9
    result = {
        "threads": options.threads,
        "copy_gb_per_second": copied,
        "kernels": [line for rows in (hash_rows, voxel_rows, packed_rows) for line in rows(copied, effort, generator)],
        "training": training(effort, generator),
    }
    if options.json:
        json.dump(result, sys.stdout)
        print()
    else:
        show(result)


if __name__ == "__main__":
    main()
