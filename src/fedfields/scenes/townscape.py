"""A made-up town: a height field, streets, houses that differ in everything, and trees. All lengths are metres.

The x axis points east, y north and z up. Houses are convex bodies and trees are ellipsoids, so that depth is exact; no
pattern repeats, or photographs of two places could be taken for one another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedfields.kernels.threads import over
from fedfields.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

CELL = 5.0
"""Edge of a patch of terrain, and of the cells in which houses and trees are looked for."""

ROOFS = ((0.62, 0.27, 0.18), (0.45, 0.22, 0.18), (0.36, 0.36, 0.40), (0.52, 0.44, 0.36), (0.70, 0.42, 0.26))
WALLS = ((0.92, 0.88, 0.78), (0.84, 0.70, 0.52), (0.72, 0.42, 0.32), (0.78, 0.80, 0.82), (0.90, 0.80, 0.50))
_PLANES = 9


class Townscape(NamedTuple):
    """What rays are intersected with.

    Attributes:
        half: half the edge of the square that the town fills, around the origin; nothing is beyond.
        cell: edge of a patch.
        heights: ``[G + 1, G + 1]``, terrain at the corners of the patches, bilinear between them.
        tops: ``[G, G]``, nothing in a cell is higher.
        offsets: ``[G * G + 1]``, where in ``items`` those of each cell begin.
        items: houses by number, and trees by number behind the houses.
        planes: ``[H, 9, 4]``, a house is where ``n x <= d`` for all: four walls first; (0, 0, 0, 1) for none.
        bases: ``[H]``, height of the floor.
        storeys: ``[H]``, rows of windows.
        windows: ``[H]``, from one window to the next.
        walls: ``[H, 3]``, colours.
        roofs: ``[H, 3]``, colours.
        crowns: ``[E, 8]``, centre, level and upright radius, colour.
        avenues: sorted, lines of constant u that are streets.
        streets: sorted, lines of constant v that are.
        bends: six numbers: ``u = x + b0 sin(y / b1 + b2)``, ``v = y + b3 sin(x / b4 + b5)``.
    """

    half: float
    cell: float
    heights: np.ndarray
    tops: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    planes: np.ndarray
    bases: np.ndarray
    storeys: np.ndarray
    windows: np.ndarray
    walls: np.ndarray
    roofs: np.ndarray
    crowns: np.ndarray
    avenues: np.ndarray
    streets: np.ndarray
    bends: np.ndarray


class House(NamedTuple):
    """What one house is made of: the columns of a `Townscape`, and half the diagonal of its floor."""

    planes: np.ndarray
    base: float
    storeys: int
    window: float
    wall: np.ndarray
    roof: np.ndarray
    place: tuple[float, float]
    reach: float
    top: float


def townscape(extent: float, generator: Generator) -> Townscape:
    """A town that fills a square of edge ``extent``."""
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    count = math.ceil(extent / CELL)
    half = count * CELL / 2
    heights = _terrain(count, random)
    bends = np.array([9.0, 61.0, 0.0, 11.0, 83.0, 0.0]) * random.uniform(0.8, 1.2, 6) + random.uniform(0, 6, 6)
    avenues, streets = (np.cumsum(random.uniform(34, 66, 2 + int(extent / 34))) - half - 40 for _ in range(2))
    lines = [each[(each > -half) & (each < half)] for each in (avenues, streets)]
    houses = _houses(lines, bends, half, heights, random)
    crowns = _crowns(houses, lines, bends, half, heights, random)
    reaches = [(*h.place, h.reach, h.top) for h in houses] + [(c[0], c[1], c[3], c[2] + c[4]) for c in crowns]
    tops, offsets, items = _cells(reaches, heights, half)
    shapes = ((_PLANES, 4), (), (), (), (3,), (3,))  # A small town may have no house.
    columns = [
        np.array([getattr(house, name) for house in houses], int if name == "storeys" else float).reshape(-1, *shape)
        for name, shape in zip(House._fields, shapes, strict=False)
    ]
    parts: list[Any] = [half, CELL, heights, tops, offsets, items, *columns, crowns, *lines, bends]
    return Townscape(*parts)


def photograph(scene: Townscape, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Colours ``[R, 3]`` (float32, in [0, 1]) and distances ``[R]`` (metres, infinite for the sky) along rays."""
    from fedfields.scenes.townscape_rays import look

    start, way = (leaf.double().contiguous().numpy() for leaf in (origins, directions))
    colours, depth = np.empty((len(start), 3), np.float32), np.empty(len(start))
    over(len(start), lambda a, b: look(scene, start, way, colours, depth, a, b), 1024)
    return torch.from_numpy(colours), torch.from_numpy(depth)


def _terrain(count: int, random: np.random.Generator) -> np.ndarray:
    """Hills: waves of random direction, the longer the higher."""
    x, y = np.meshgrid(*[CELL * np.arange(count + 1)] * 2, indexing="ij")
    heights = np.zeros_like(x)
    for length, height in ((640.0, 5.0), (260.0, 2.4), (110.0, 0.8), (47.0, 0.25)):
        for _ in range(3):
            turn, phase = random.uniform(0, 2 * math.pi, 2)
            heights += height * np.sin((x * math.cos(turn) + y * math.sin(turn)) * 2 * math.pi / length + phase)
    return heights - heights.mean()


def _height(heights: np.ndarray, half: float, x: float, y: float) -> float:
    """Of the terrain at a place."""
    u, v = (x + half) / CELL, (y + half) / CELL
    i, j = (min(max(int(each), 0), len(heights) - 2) for each in (u, v))
    u, v = u - i, v - j
    low, high = heights[i : i + 2, j] @ (1 - u, u), heights[i : i + 2, j + 1] @ (1 - u, u)
    return float(low * (1 - v) + high * v)


def _unbent(u: float, v: float, bends: np.ndarray) -> tuple[float, float]:
    """The place whose bent coordinates these are, by iteration: bends are gentle."""
    x, y = u, v
    for _ in range(20):
        x, y = u - bends[0] * math.sin(y / bends[1] + bends[2]), v - bends[3] * math.sin(x / bends[4] + bends[5])
    return x, y


def _houses(
    lines: list[np.ndarray], bends: np.ndarray, half: float, heights: np.ndarray, random: np.random.Generator
) -> list[House]:
    """Houses on both sides of the streets of every block, where they do not touch one another."""
    houses: list[House] = []
    edges = [np.concatenate([[-half], each, [half]]) for each in lines]
    for a, b in zip(edges[0], edges[0][1:], strict=False):
        for c, d in zip(edges[1], edges[1][1:], strict=False):
            if random.random() < 0.12:
                continue  # A park or a field.
            block: list[House] = []
            for u, v, turn in _lots((a, b), (c, d), random):
                x, y = _unbent(u, v, bends)
                if max(abs(x), abs(y)) > half - 14:
                    continue
                house = _house(x, y, turn + random.normal(0, 0.06), heights, half, random)
                if all(math.dist(house.place, each.place) > house.reach + each.reach - 1.5 for each in block):
                    block.append(house)
            houses += block
    return houses


def _lots(us: tuple[float, float], vs: tuple[float, float], random: np.random.Generator) -> list[tuple[float, ...]]:
    """Places in bent coordinates along the four sides of a block, and which way a house there is turned."""
    found = []
    for (a, b), (c, d), turned in ((us, vs, False), (vs, us, True)):
        for side, sign in ((c, 1), (d, -1)):
            at = a + 13 + random.uniform(0, 4)
            while at < b - 12:
                back = side + sign * (5 + random.uniform(7, 10))
                if abs(back - side) < (d - c) / 2:
                    found.append((back, at, math.pi / 2) if turned else (at, back, 0.0))
                at += random.uniform(13, 21)
    return found


def _house(x: float, y: float, turn: float, heights: np.ndarray, half: float, random: np.random.Generator) -> House:
    """A house about a place: a gable, a hipped or a flat roof on one to four storeys."""
    length, width = random.uniform(4.2, 8.0), random.uniform(3.4, 5.0)
    storeys = int(random.choice([1, 2, 2, 3, 4], p=[0.35, 0.3, 0.15, 0.12, 0.08]))
    flat = storeys == 4 or random.random() < 0.15
    corners = [(x + s * length, y + t * length) for s in (-1, 1) for t in (-1, 1)]
    ground = [_height(heights, half, *corner) for corner in corners]
    base, eaves = max(ground) + 0.3, max(ground) + 0.3 + 2.9 * storeys + random.uniform(0.1, 0.6)
    ahead, aside = np.array([math.cos(turn), math.sin(turn), 0]), np.array([-math.sin(turn), math.cos(turn), 0])
    sides = [(ahead, length), (-ahead, length), (aside, width), (-aside, width)]
    rows = [(*n, float(n @ (x, y, 0)) + reach) for n, reach in sides]
    top, up = eaves, np.array([0.0, 0.0, 1.0])
    if flat:
        rows.append((*up, eaves))
    else:
        pitch = random.uniform(0.45, 0.95)
        top = eaves + pitch * width
        slopes = sides if random.random() < 0.35 else sides[2:]
        for n, reach in slopes:
            normal = (up + pitch * n) / math.hypot(1, pitch)
            rows.append((*normal, float(normal @ (np.array([x, y, eaves]) + reach * n))))
    rows.append((*-up, 2.0 - min(ground)))
    planes = np.array(rows + [(0.0, 0.0, 0.0, 1.0)] * (_PLANES - len(rows)))
    wall = np.clip(np.array(WALLS[random.integers(len(WALLS))]) + random.normal(0, 0.05, 3), 0.1, 1)
    roof = np.clip(np.array(ROOFS[random.integers(len(ROOFS))]) + random.normal(0, 0.05, 3), 0.08, 1)
    roof = np.full(3, random.uniform(0.45, 0.8)) if flat else roof
    return House(planes, base, storeys, random.uniform(1.9, 3.1), wall, roof, (x, y), math.hypot(length, width), top)


def _crowns(
    houses: list[House], lines: list[np.ndarray], bends: np.ndarray, half: float, heights: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Trees of one or two ellipsoids, off the streets and the houses: gardens, rows and small woods."""
    places = np.array([house.place for house in houses]).reshape(-1, 2)
    reaches = np.array([house.reach for house in houses])
    rows = []
    for _ in range(int((2 * half) ** 2 / 170)):
        x, y = random.uniform(4 - half, half - 4, 2)
        u = x + bends[0] * math.sin(y / bends[1] + bends[2])
        v = y + bends[3] * math.sin(x / bends[4] + bends[5])
        if any(np.abs(each - at).min(initial=np.inf) < 6.5 for each, at in zip(lines, (u, v), strict=True)):
            continue
        radius, height = random.uniform(1.2, 3.4), random.uniform(1.0, 1.6)
        if (np.hypot(*(places - (x, y)).T) < reaches + radius - 1).any():
            continue
        green = np.array([0.24, 0.40, 0.17]) * random.uniform(0.7, 1.25) + random.normal(0, 0.03, 3)
        ground = _height(heights, half, x, y)
        rows.append((x, y, ground + 0.9 * radius * height, radius, radius * height, *green))
        if random.random() < 0.5:
            dx, dy = 0.6 * radius * random.uniform(-1, 1, 2)
            rows.append((x + dx, y + dy, ground + 1.7 * radius * height, 0.65 * radius, 0.65 * radius, *green))
    return np.array(rows).reshape(-1, 8)


def _cells(
    reaches: list[tuple[float, ...]], heights: np.ndarray, half: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tops of all cells, and the items (x, y, radius, top) that may lie in each."""
    tops = np.max([heights[a : len(heights) - 1 + a, b : len(heights) - 1 + b] for a in (0, 1) for b in (0, 1)], 0)
    count, inside = len(tops), [[] for _ in range(tops.size)]
    for item, (x, y, radius, top) in enumerate(reaches):
        low = [max(0, int((each - radius + half) / CELL)) for each in (x, y)]
        high = [min(count - 1, int((each + radius + half) / CELL)) for each in (x, y)]
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                inside[i * count + j].append(item)
                tops[i, j] = max(tops[i, j], top)
    offsets = np.cumsum([0, *map(len, inside)])
    return tops + 1e-6, offsets, np.array([item for each in inside for item in each], np.int64)
