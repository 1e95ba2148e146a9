"""The renderer of the map: pixels a second, beside torch's sampler of dense volumes and the memory of the same run.

    python benchmarks/map_render.py [--quick] [--json]

A shell of 5.8 % of 256^3 voxels around a bumpy ball, in bricks of 8^3, with random coefficients of degree 2; its
optical depth is at most 4 a voxel. A camera before it sees it in 400 x 400 pixels; rays that miss the cube are left
out, of the others two fifths end on the ball. 512 samples a ray. Times are those of the process, medians, one thread.

"grid_sample" takes all samples of some of these rays from a dense volume of 28 channels, and composites none: it is
only the sampling. "channels last" is the same in the layout that suits it better. "memory" is how many pixels a second
there would be if a picture cost no more than reading the map once, at the speed of a copy of 256 MB.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
from measure import bandwidth, median
from torch.nn.functional import grid_sample

from fedfields.kernels.bricks import Volume
from fedfields.mapping.render import MapRays, render, volume
from fedfields.mapping.voxels import Bricks
from fedfields.rendering.rays import Rays
from fedfields.scenes.views import in_cube

SIZE, SAMPLES, WIDTH = 256, 512, 400
DENSITY = 500.0
"""At most, in a cube of edge 2: an optical depth of 4 a voxel."""


def shell() -> np.ndarray:
    """Density ``[256, 256, 256]``."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    x, y, z = axis[:, None, None], axis[:, None], axis
    surface = 0.7 + 0.06 * np.sin(9 * x) * np.sin(8 * y) * np.sin(7 * z)
    return DENSITY * np.maximum(0, 1 - np.abs(np.sqrt(x * x + y * y + z * z) - surface) / 0.0375)


def bricks_of(density: np.ndarray) -> Bricks:
    """The bricks of a dense volume, with random coefficients where density is positive."""
    count = SIZE // 8
    parts = density.reshape(count, 8, count, 8, count, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 512)
    there = (parts > 0).any(1)
    coords = np.argwhere(there.reshape(count, count, count)).astype(np.int32)
    visits = (parts[there] > 0).astype(np.uint16)
    sh = np.random.default_rng(0).standard_normal((len(coords), 512, 27), np.float32) * visits[..., None]
    return Bricks(coords, parts[there], sh, visits)


def rays_of(width: int) -> Rays:
    """Of a camera beside the cube [0, 2]^3, those that meet it."""
    turn, focal = 0.5, 1.2 * width
    x, y = np.meshgrid(*[(np.arange(width) + 0.5 - width / 2) / focal] * 2)
    back = np.array([[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]])
    directions = np.stack([x, -y, -np.ones_like(x)], -1).reshape(-1, 3) @ back.T
    origins = np.broadcast_to(back @ (0.3, 0.2, 2.8), directions.shape)
    rays = in_cube(torch.from_numpy(origins.copy()), torch.from_numpy(directions))
    rays = rays._replace(origins=rays.origins + 1)
    return rays.chosen(rays.far > rays.near)


def sampled(dense: torch.Tensor, rays: Rays) -> torch.Tensor:
    """All samples of all channels, by torch."""
    at = rays.near[:, None] + (torch.arange(SAMPLES) + 0.5) * ((rays.far - rays.near) / SAMPLES)[:, None]
    places = (rays.origins[:, None] + at[..., None] * rays.directions[:, None] - 1).float()
    return grid_sample(dense, places.flip(-1)[None, :, :, None], align_corners=False)


def rendering_rows(quick: bool) -> list[dict]:
    """The renderer, torch's sampler in two layouts, and the memory."""
    repeats, density, rays = 3 if quick else 9, shell(), rays_of(WIDTH)
    found = volume(bricks_of(density), 2 / SIZE)
    count = len(rays.near)
    rates = {"render": count / median(lambda: render(found, rays, MapRays(SAMPLES)), repeats, clock=time.process_time)}
    dense = torch.zeros(1, 28, SIZE, SIZE, SIZE)
    dense[0, 0] = torch.from_numpy(density)
    few = rays.chosen(slice(0, count, count // (64 if quick else 256)))
    rates["grid_sample"] = len(few.near) / median(
        lambda: sampled(dense, few), 1 if quick else 3, clock=time.process_time
    )
    dense = dense.contiguous(memory_format=torch.channels_last_3d)
    rates["channels last"] = len(few.near) / median(
        lambda: sampled(dense, few), 1 if quick else 3, clock=time.process_time
    )
    rates["memory"] = count * bandwidth(repeats) / found.bytes
    error = worst(found, rays)
    rows = [{"row": name, "pixels_per_s": rate, "over": rates["render"] / rate} for name, rate in rates.items()]
    rows[0] |= {"error": error, "occupied": float((density > 0).mean()), "MB": found.bytes / 1e6}
    return rows


def worst(found: Volume, rays: Rays) -> float:
    """Largest error in a colour against all samples and all their colours."""
    exact = render(found, rays, MapRays(SAMPLES, stop=0.0, least=0.0))
    return float((render(found, rays, MapRays(SAMPLES)).colour - exact.colour).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, shorter medians")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = rendering_rows(options.quick)
    if options.json:
        print(json.dumps({"rendering": rows}))
        return
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if key != "row" else f"{value:14}" for key, value in row.items()))


if __name__ == "__main__":
    main()
