"""A small village whose distance and colours are known everywhere, as sparse voxels."""

from typing import NamedTuple

import numpy as np

from fedfields.mapping.voxels import CELLS, HARMONICS, Bricks, centres, sorted_coords


class Village(NamedTuple):
    """Houses ``[K, 3]`` (middles) of half sizes ``[K, 3]`` and colours ``[K, 3]`` on flat, patchy ground."""

    middles: np.ndarray
    sizes: np.ndarray
    colours: np.ndarray


def village(seed=0, houses=24, reach=40.0):
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.uniform(2, 5, houses), rng.uniform(2, 5, houses), rng.uniform(1.5, 5, houses)], 1)
    places = np.concatenate([rng.uniform(-reach, reach, (houses, 2)), sizes[:, 2:]], 1)
    return Village(places, sizes, rng.uniform(0.1, 0.9, (houses, 3)))


def look(place, points):
    """Signed distance ``[...]`` in metres, at least near the surface, and colour ``[..., 3]``."""
    ground, nearest, which = points[..., 2], np.full(points.shape[:-1], np.inf), np.zeros(points.shape[:-1], int)
    for k, (middle, size) in enumerate(zip(place.middles, place.sizes, strict=True)):
        x, y, z = np.moveaxis(np.abs(points - middle) - size, -1, 0)
        house = np.sqrt(sum(np.maximum(way, 0) ** 2 for way in (x, y, z))) + np.minimum(
            np.maximum(np.maximum(x, y), z), 0
        )
        which, nearest = np.where(house < nearest, k, which), np.minimum(house, nearest)
    x, y = points[..., 0], points[..., 1]
    patch = 0.5 + 0.2 * np.sin(0.31 * x + 0.9) * np.sin(0.23 * y) + 0.15 * np.sin(0.11 * x - 0.17 * y)
    grass = np.stack([0.7 * patch, patch, 0.5 * patch], -1)
    return np.minimum(nearest, ground), np.where((nearest < ground)[..., None], place.colours[which], grass)


def baked(place, low, high, voxel, seed=0, noise=0.0, offset=(0.0, 0.0, 0.0), thick=4.0):
    """What a field of the village would bake to, seen within ``thick`` metres of surfaces, with errors."""
    rng = np.random.default_rng(seed)
    edges = [
        np.arange(np.floor(a / voxel / 8), np.ceil(b / voxel / 8)).astype(np.int32)
        for a, b in zip(low, high, strict=True)
    ]
    coords = sorted_coords(np.stack(np.meshgrid(*edges, indexing="ij"), -1))
    distance, colour = look(place, centres(coords, voxel) + np.array(offset))
    distance += noise * voxel * rng.normal(size=distance.shape)
    colour = np.clip(colour + noise * 0.1 * rng.normal(size=colour.shape), 0.02, 0.98)
    seen = (distance > -2 * voxel) & (distance < thick)
    density = np.where(seen, 4 / voxel / (1 + np.exp(np.clip(4 * distance / voxel, -50, 50))), 0)
    sh = np.zeros((len(coords), CELLS, HARMONICS), np.float32)
    sh[..., ::9] = np.where(seen[..., None], np.log(colour / (1 - colour)) / 0.28209479, 0)
    some = seen.any(1)
    found = Bricks(coords, density.astype(np.float32), sh, seen.astype(np.uint16))
    return found.chosen(some)
