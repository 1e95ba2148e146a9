"""What rays see of a townscape: closed-form intersections, found cell by cell. Compiled when first needed."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from fedfields.kernels.compiled import compiled

NOTHING, GROUND = -1, -2
_CLOSE = 1e-6
"""Metres, or what of a direction counts as none."""

_SUN = (0.4332, -0.5295, 0.7294)
_AMBIENT, _KEY = 0.45, 0.62


@numba.njit(inline="always")
def _terrain(scene: Any, x: Any, y: Any, i: Any, j: Any) -> Any:
    """Height and slopes of the bilinear patch (i, j) at a place."""
    u, v = (x + scene.half) / scene.cell - i, (y + scene.half) / scene.cell - j
    a, b, c, d = scene.heights[i, j], scene.heights[i + 1, j], scene.heights[i, j + 1], scene.heights[i + 1, j + 1]
    height = a * (1 - u) * (1 - v) + b * u * (1 - v) + c * (1 - u) * v + d * u * v
    return height, ((b - a) * (1 - v) + (d - c) * v) / scene.cell, ((c - a) * (1 - u) + (d - b) * u) / scene.cell


@numba.njit(inline="always")
def _meets_ground(scene: Any, o: Any, d: Any, i: Any, j: Any, start: Any, end: Any) -> Any:
    """Distance in [start, end] at which a ray goes under a patch, or infinity: along it the height is quadratic."""
    middle = 0.5 * (start + end)
    f0 = o[2] + start * d[2] - _terrain(scene, o[0] + start * d[0], o[1] + start * d[1], i, j)[0]
    f1 = o[2] + middle * d[2] - _terrain(scene, o[0] + middle * d[0], o[1] + middle * d[1], i, j)[0]
    f2 = o[2] + end * d[2] - _terrain(scene, o[0] + end * d[0], o[1] + end * d[1], i, j)[0]
    if f0 <= 0:
        return start
    a, b = 2 * (f0 + f2) - 4 * f1, 4 * f1 - 3 * f0 - f2  # f = a s^2 + b s + f0 with s in [0, 1].
    root = b * b - 4 * a * f0
    if root < 0:
        return np.inf
    q = -0.5 * (b + math.copysign(math.sqrt(root), b))
    best = np.inf
    if q != 0 and 0 <= f0 / q <= 1:
        best = f0 / q
    if a != 0 and 0 <= q / a <= 1:
        best = min(best, q / a)
    return start + best * (end - start)


@numba.njit(inline="always")
def _meets_house(planes: Any, o: Any, d: Any) -> Any:
    """Distance at which a ray enters a convex body, and by which plane."""
    enter, leave, face = 0.0, np.inf, -1
    for k in range(planes.shape[0]):
        speed = planes[k, 0] * d[0] + planes[k, 1] * d[1] + planes[k, 2] * d[2]
        room = planes[k, 3] - planes[k, 0] * o[0] - planes[k, 1] * o[1] - planes[k, 2] * o[2]
        if abs(speed) < 1e-12:
            if room < 0:
                return np.inf, -1
        elif speed < 0:
            if room / speed > enter:
                enter, face = room / speed, k
        else:
            leave = min(leave, room / speed)
        if enter > leave:
            return np.inf, -1
    return (enter, face) if face >= 0 else (np.inf, -1)


@numba.njit(inline="always")
def _meets_crown(crown: Any, o: Any, d: Any) -> Any:
    """Distance at which a ray enters an ellipsoid along the axes."""
    x, y, z = (o[0] - crown[0]) / crown[3], (o[1] - crown[1]) / crown[3], (o[2] - crown[2]) / crown[4]
    u, v, w = d[0] / crown[3], d[1] / crown[3], d[2] / crown[4]
    a, b, c = u * u + v * v + w * w, x * u + y * v + z * w, x * x + y * y + z * z - 1
    root = b * b - a * c
    if root < 0 or b > 0:
        return np.inf
    return (-b - math.sqrt(root)) / a


@numba.njit(nogil=True)
def _first(scene: Any, o: Any, d: Any) -> Any:
    """Distance to the first thing on a ray, what it is (a house, a crown behind the houses, `GROUND`), and the face."""
    start, end = 0.0, np.inf
    for k in range(2):
        if abs(d[k]) > 1e-12:
            a, b = (-scene.half - o[k]) / d[k], (scene.half - o[k]) / d[k]
            start, end = max(start, min(a, b)), min(end, max(a, b))
        elif abs(o[k]) > scene.half:
            return np.inf, NOTHING, -1
    count, houses = scene.tops.shape[0], scene.planes.shape[0]
    best, what, face = np.inf, NOTHING, -1
    x, y = o[0] + (start + _CLOSE) * d[0] + scene.half, o[1] + (start + _CLOSE) * d[1] + scene.half
    i, j = np.int64(math.floor(x / scene.cell)), np.int64(math.floor(y / scene.cell))
    if start >= end or not (0 <= i < count and 0 <= j < count):
        return best, what, face
    while 0 <= i < count and 0 <= j < count and start < end:
        across = (((i + (d[0] > 0)) * scene.cell - scene.half) - o[0]) / d[0] if abs(d[0]) > 1e-12 else np.inf
        along = (((j + (d[1] > 0)) * scene.cell - scene.half) - o[1]) / d[1] if abs(d[1]) > 1e-12 else np.inf
        leave = min(end, max(start, min(across, along)))
        if leave == np.inf:  # Straight down.
            leave = start + (abs(o[2]) + 1e4)
        if min(o[2] + start * d[2], o[2] + leave * d[2]) <= scene.tops[i, j]:
            t = _meets_ground(scene, o, d, i, j, start, leave)
            if t < best:
                best, what, face = t, GROUND, -1
            for at in range(scene.offsets[i * count + j], scene.offsets[i * count + j + 1]):
                item = scene.items[at]
                if item < houses:
                    t, side = _meets_house(scene.planes[item], o, d)
                else:
                    t, side = _meets_crown(scene.crowns[item - houses], o, d), -1
                if t < best:
                    best, what, face = t, item, side
            if best <= leave + _CLOSE:
                return best, what, face
        if across < along:
            i += 1 if d[0] > 0 else -1
        else:
            j += 1 if d[1] > 0 else -1
        start = leave
    return best, what, face


@numba.njit(inline="always")
def _random(i: Any, j: Any, seed: Any) -> Any:
    """A number in [0, 1) for a pair of integers: two rounds of a multiplicative hash."""
    h = (np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(j) * np.uint64(0xC2B2AE3D27D4EB4F))
    h = (h ^ np.uint64(seed)) * np.uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> np.uint64(32))) * np.uint64(0xC4CEB9FE1A85EC53)
    return np.float64(h >> np.uint64(40)) / 16777216.0


@numba.njit(nogil=True)
def _noise(x: Any, y: Any, seed: Any) -> Any:
    """Smooth noise in [0, 1] on the unit lattice."""
    i, j = np.int64(math.floor(x)), np.int64(math.floor(y))
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    below = _random(i, j, seed) * (1 - u) + _random(i + 1, j, seed) * u
    above = _random(i, j + 1, seed) * (1 - u) + _random(i + 1, j + 1, seed) * u
    return below * (1 - v) + above * v


@numba.njit(nogil=True)
def _nearest(lines: Any, x: Any) -> Any:
    """Distance to the nearest of some sorted numbers, and how many of them are smaller."""
    low, high = 0, lines.size
    while low < high:
        middle = (low + high) >> 1
        if lines[middle] < x:
            low = middle + 1
        else:
            high = middle
    best = np.inf
    if low < lines.size:
        best = lines[low] - x
    if low > 0:
        best = min(best, x - lines[low - 1])
    return best, low


@numba.njit(nogil=True)
def _paint_ground(scene: Any, x: Any, y: Any, colour: Any) -> None:
    """Streets with a dashed line and pavements, and between them gardens and fields, a tone for each block."""
    b = scene.bends
    u, v = x + b[0] * math.sin(y / b[1] + b[2]), y + b[3] * math.sin(x / b[4] + b[5])
    (across, i), (along, j) = _nearest(scene.avenues, u), _nearest(scene.streets, v)
    away, way = (across, v) if across < along else (along, u)
    grain = _noise(x / 0.9, y / 0.9, 11) - 0.5
    if away < 3.2:
        tone = 0.36 + 0.10 * grain + 0.10 * (_noise(x / 14, y / 14, 12) - 0.5)
        if away < 0.16 and way % 6.0 < 3.0:
            tone = 0.92
        colour[0], colour[1], colour[2] = tone, tone, 1.04 * tone
        return
    if away < 4.8:
        tone = 0.68 + 0.10 * grain
        colour[0], colour[1], colour[2] = tone, 0.97 * tone, 0.92 * tone
        return
    kind, patch = _random(i, j, 13), _noise(x / 7, y / 7, 14) + 0.5 * _noise(x / 2.3, y / 2.3, 15) - 0.75
    dry = 0.5 * kind + 0.9 * (_noise(x / 31, y / 31, 16) - 0.5)
    light = 1 + 0.35 * patch + 0.30 * grain
    if kind > 0.86:  # A ploughed field.
        light *= 0.90 + 0.16 * ((u * math.cos(9 * kind) + v * math.sin(9 * kind)) % 1.8 < 0.9)
        dry += 0.5
    colour[0] = light * (0.28 + 0.30 * dry)
    colour[1] = light * (0.45 + 0.06 * dry)
    colour[2] = light * (0.20 + 0.10 * dry)


@numba.njit(nogil=True)
def _paint_house(scene: Any, house: Any, face: Any, p: Any, colour: Any) -> None:
    """Walls with windows, roofs with courses of tiles, both weathered."""
    n, base = scene.planes[house, face], scene.bases[house]
    along = -n[1] * p[0] + n[0] * p[1]
    seed = 100 + house
    if face < 4:
        light = 0.94 + 0.14 * _noise(along / 1.3, p[2] / 1.3, seed)
        for k in range(3):
            colour[k] = light * scene.walls[house, k]
        up, side = (p[2] - base) / 2.9, along / scene.windows[house]
        i, j = math.floor(up), math.floor(side)
        if 0.30 < up - i < 0.78 and 0.28 < side - j < 0.74 and 0 <= i < scene.storeys[house]:
            glass = 0.12 + 0.45 * _random(i, j, seed)
            colour[0], colour[1], colour[2] = 0.8 * glass, 0.95 * glass, 1.1 * glass
        return
    down = n[0] * p[0] + n[1] * p[1]
    light = 0.80 + 0.30 * _noise(along / 1.7, down / 1.7, seed) + 0.14 * _noise(along / 0.5, down / 0.5, seed)
    light *= 0.94 + 0.10 * (p[2] % 0.7 < 0.35)
    if n[2] > 0.99:
        light = 0.85 + 0.30 * _noise(p[0] / 2.1, p[1] / 2.1, seed)
    for k in range(3):
        colour[k] = light * scene.roofs[house, k]


@compiled
def look(scene: Any, origins: np.ndarray, directions: np.ndarray, colours: np.ndarray, depth: np.ndarray,
         first: int, last: int) -> None:  # fmt: skip
    """``colours [R, 3]`` in [0, 1], white where nothing is, and ``depth [R]`` in metres, infinite there."""
    houses, colour, p, n, sun = scene.planes.shape[0], np.empty(3), np.empty(3), np.empty(3), np.array(_SUN)
    for r in range(first, last):
        t, what, face = _first(scene, origins[r], directions[r])
        depth[r] = t
        if what == NOTHING:
            colours[r, 0] = colours[r, 1] = colours[r, 2] = 1
            continue
        for k in range(3):
            p[k] = origins[r, k] + t * directions[r, k]
        if what == GROUND:
            most = scene.tops.shape[0] - 1
            i = min(max(np.int64(math.floor((p[0] + scene.half) / scene.cell)), 0), most)
            j = min(max(np.int64(math.floor((p[1] + scene.half) / scene.cell)), 0), most)
            _, across, along = _terrain(scene, p[0], p[1], i, j)
            n[0], n[1], n[2] = -across, -along, 1.0
            _paint_ground(scene, p[0], p[1], colour)
        elif what < houses:
            n[:] = scene.planes[what, face, :3]
            _paint_house(scene, what, face, p, colour)
        else:
            crown = scene.crowns[what - houses]
            for k in range(3):
                n[k] = (p[k] - crown[k]) / crown[4 if k == 2 else 3] ** 2
            light = 0.65 + 0.7 * _noise((p[0] + p[2]) / 0.8, (p[1] - p[2]) / 0.8, 17)
            colour[0], colour[1], colour[2] = light * crown[5], light * crown[6], light * crown[7]
        length = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
        key = max(0.0, (n[0] * sun[0] + n[1] * sun[1] + n[2] * sun[2]) / length)
        if key > 0:
            for k in range(3):
                p[k] += 0.02 * n[k] / length
            if _first(scene, p, sun)[1] != NOTHING:
                key = 0.0
        light = _AMBIENT * (0.8 + 0.2 * n[2] / length) + _KEY * key
        for k in range(3):
            colours[r, k] = min(1.0, max(0.0, light * colour[k]))
