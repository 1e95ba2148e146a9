"""Photographs of a textured box on a textured floor, seen by cameras that are known."""

from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = (480, 360)
FOCAL = 32 / np.hypot(36, 24) * np.hypot(*SIZE)
"""In pixels: that of 32 mm on 35 mm film."""


class Face(NamedTuple):
    """A parallelogram with a picture on it."""

    corner: np.ndarray
    across: np.ndarray
    along: np.ndarray
    texture: np.ndarray


def texture(seed, size=512):
    """Random blots of many sizes, in colour."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells, weight in ((8, 0.6), (24, 0.8), (64, 1.0), (128, 0.9), (256, 0.5)):
        blots = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * (np.asarray(blots.resize((size, size), Image.Resampling.BICUBIC), float) - 127.5)
    return np.clip(127.5 + total / 1.6, 0, 255)


def faces(seed=0):
    """A floor of 6 x 6 and a box of 1.6 x 1.2 x 1 on it; z is up."""
    x, y, z = np.eye(3)
    a, b, c = 1.6 * x, 1.2 * y, 1.0 * z
    low = -(a + b) / 2
    rest = [(low, a, c), (low + b, a, c), (low, b, c), (low + a, b, c), (low + c, a, b)]
    sides = [(-3 * x - 3 * y, 6 * x, 6 * y), *rest]
    return [Face(*side, texture(100 * seed + i)) for i, side in enumerate(sides)]


def camera(angle, radius=4.2, height=2.2):
    """Rotation ``[3, 3]`` (rows are the axes of a camera that looks along +Z with +Y down) and its place."""
    place = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
    ahead = np.array([0, 0, 0.3]) - place
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(ahead, right), ahead]), place


def photograph(rotation, place, scene):
    """What a pinhole camera sees: the nearest face along each ray."""
    width, height = SIZE
    u, v = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack([u / FOCAL, v / FOCAL, np.ones_like(u)], -1) @ rotation
    nearest, colours = np.full(u.shape, np.inf), np.full((*u.shape, 3), 200.0)
    for face in scene:
        normal = np.cross(face.across, face.along)
        depth = (face.corner - place) @ normal / (rays @ normal)
        hit = place + depth[..., None] * rays - face.corner
        s, t = (hit @ edge / (edge @ edge) for edge in (face.across, face.along))
        seen = (s >= 0) & (s < 1) & (t >= 0) & (t < 1) & (depth > 0) & (depth < nearest)
        nearest[seen] = depth[seen]
        colours[seen] = sample(face.texture, s[seen], t[seen])
    return Image.fromarray(colours.round().astype(np.uint8))


def sample(picture, s, t):
    """Bilinear."""
    rows, columns = (np.clip(w * size - 0.5, 0, size - 1.001) for w, size in zip((t, s), picture.shape, strict=False))
    r, c = rows.astype(int), columns.astype(int)
    p, q = (rows - r)[:, None], (columns - c)[:, None]
    upper = picture[r, c] * (1 - q) + picture[r, c + 1] * q
    lower = picture[r + 1, c] * (1 - q) + picture[r + 1, c + 1] * q
    return upper * (1 - p) + lower * p
