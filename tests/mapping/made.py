"""Made-up contributions."""

import numpy as np

from fedfields.mapping.merge import Contribution
from fedfields.mapping.voxels import CELLS, HARMONICS, Bricks, sorted_coords

POSE = np.eye(3, 4)


def bricks_of(coords, seed=0, seen=0.3):
    """Random voxels of the bricks, a share of them seen."""
    random = np.random.default_rng(seed)
    coords = sorted_coords(np.asarray(coords, np.int32))
    count = len(coords)
    visits = (random.random((count, CELLS)) < seen).astype(np.uint16)
    density = random.random((count, CELLS), np.float32) * 10 * visits
    sh = random.standard_normal((count, CELLS, HARMONICS), np.float32) * visits[..., None]
    return Bricks(coords, density, sh, visits)


def box_of(low, high):
    """Bricks of a box, the upper end left out."""
    axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def contribution_of(name="one", coords=((0, 0, 0), (-1, 2, 3)), seed=0, **options):
    return Contribution(name, bricks_of(coords, seed), 0.25, POSE, **options)
