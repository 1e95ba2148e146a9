"""The loops themselves. Imported when first needed: numba takes half a second, and compiles into its cache once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fedfields.kernels.pairs import add_to_pair, plus_pair

_F = np.float32
BLOCK = 256
"""Points of a hash encoding whose corners are found together, in vector registers."""


def compiled(function: Callable[..., None]) -> Any:
    """numba's compiler, with a cache on disk where there is a place to write one.

    Sums may be contracted and divisions by constants multiplied, but never reordered: the same result everywhere.
    """
    options = {"fastmath": {"contract", "nsz", "arcp"}, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # No folder to cache in.
        return numba.njit(**options)(function)


@compiled
def sincos(x: np.ndarray, w0: float, sin: np.ndarray, slope: np.ndarray) -> None:
    """``sin = sin(w0 x)`` and ``slope = w0 cos(w0 x)``: all ``[N]`` float32.

    The argument is reduced to [-pi/4, pi/4] by Cody and Waite's three-part pi/2; the two polynomials are the minimax
    ones of the Cephes library (Moshier).
    """
    w = _F(w0)
    for i in range(x.size):
        angle = w0 * x[i]
        quarter = np.rint(angle * (2 / math.pi))
        turn = np.int64(quarter)
        r = _F(angle - quarter * (math.pi / 2))
        z = r * r
        s = ((_F(-1.9515295891e-4) * z + _F(8.3321608736e-3)) * z - _F(1.6666654611e-1)) * z * r + r
        c = ((_F(2.443315711809948e-5) * z - _F(1.388731625493765e-3)) * z + _F(4.166664568298827e-2)) * z * z
        c = c - _F(0.5) * z + _F(1)
        odd = (turn & 1) != 0
        a = c if odd else s
        b = s if odd else c
        sin[i] = -a if (turn & 2) != 0 else a
        slope[i] = -(w * b) if ((turn + 1) & 2) != 0 else w * b


@numba.njit(inline="always")
def _corner(x: Any, count: Any) -> Any:
    """Lower cell index, in range even for what is not a number, and the part beyond it along one axis."""
    scaled = min(max(x, _F(0)), _F(1)) * _F(count)
    low = min(np.int64(np.uint32(scaled)), count - 1)
    return low, scaled - _F(low)


@numba.njit(inline="always")
def _cells(x: Any, n: Any, factor: Any, low: Any, part: Any) -> None:
    """Lower cells times ``factor`` and the parts beyond them, along one axis; in range even for what is no number."""
    most, cells = np.int32(n - 1), _F(n)
    for i in range(x.size):
        scaled = min(max(x[i], _F(0)), _F(1)) * cells
        cell = min(max(np.int32(scaled), np.int32(0)), most)
        low[i] = np.uint32(cell) * factor
        part[i] = scaled - _F(cell)


@numba.njit(inline="always")
def _dense(low: Any, y: Any, z: Any, count: Any, rows: Any) -> None:
    """Rows of the eight corners of ``count`` cells, x first, where all corners of a level have a row of their own."""
    for i in range(count):
        row = low[i] + low[i + BLOCK] + low[i + 2 * BLOCK]
        rows[i] = row
        rows[i + BLOCK] = row + np.uint32(1)
        rows[i + 2 * BLOCK] = row + y
        rows[i + 3 * BLOCK] = row + y + np.uint32(1)
        rows[i + 4 * BLOCK] = row + z
        rows[i + 5 * BLOCK] = row + z + np.uint32(1)
        rows[i + 6 * BLOCK] = row + z + y
        rows[i + 7 * BLOCK] = row + z + y + np.uint32(1)


@numba.njit(inline="always")
def _hashed(low: Any, y: Any, z: Any, count: Any, mask: Any, rows: Any) -> None:
    """The same where the corners' rows are hashed."""
    for i in range(count):
        x0, y0, z0 = low[i], low[i + BLOCK], low[i + 2 * BLOCK]
        x1, y1, z1 = x0 + np.uint32(1), y0 + y, z0 + z
        rows[i] = (x0 ^ y0 ^ z0) & mask
        rows[i + BLOCK] = (x1 ^ y0 ^ z0) & mask
        rows[i + 2 * BLOCK] = (x0 ^ y1 ^ z0) & mask
        rows[i + 3 * BLOCK] = (x1 ^ y1 ^ z0) & mask
        rows[i + 4 * BLOCK] = (x0 ^ y0 ^ z1) & mask
        rows[i + 5 * BLOCK] = (x1 ^ y0 ^ z1) & mask
        rows[i + 6 * BLOCK] = (x0 ^ y1 ^ z1) & mask
        rows[i + 7 * BLOCK] = (x1 ^ y1 ^ z1) & mask


@numba.njit(inline="always")
def _weights(part: Any, count: Any, weights: Any) -> None:
    """Weights of the eight corners in the order of their rows."""
    for i in range(count):
        u, v, w = part[i], part[i + BLOCK], part[i + 2 * BLOCK]
        p, q, r = _F(1) - u, _F(1) - v, _F(1) - w
        qr, vr, qw, vw = q * r, v * r, q * w, v * w
        weights[i] = p * qr
        weights[i + BLOCK] = u * qr
        weights[i + 2 * BLOCK] = p * vr
        weights[i + 3 * BLOCK] = u * vr
        weights[i + 4 * BLOCK] = p * qw
        weights[i + 5 * BLOCK] = u * qw
        weights[i + 6 * BLOCK] = p * vw
        weights[i + 7 * BLOCK] = u * vw


@compiled
def _corners(
    points: np.ndarray, start: int, end: int, n: int, size: int,
    low: np.ndarray, part: np.ndarray, rows: np.ndarray, weights: np.ndarray,
) -> None:  # fmt: skip
    """Rows and weights ``[8 BLOCK]``, corner by corner, of ``points [3, start:end]``: loops without branches."""
    count, m = end - start, n + 1
    dense = m * m * m <= size
    y, z = (np.uint32(m), np.uint32(m * m)) if dense else (np.uint32(2654435761), np.uint32(805459861))
    _cells(points[0, start:end], n, np.uint32(1), low[:count], part[:count])
    _cells(points[1, start:end], n, y, low[BLOCK : BLOCK + count], part[BLOCK : BLOCK + count])
    _cells(points[2, start:end], n, z, low[2 * BLOCK : 2 * BLOCK + count], part[2 * BLOCK : 2 * BLOCK + count])
    if dense:
        _dense(low, y, z, count, rows)
    else:
        _hashed(low, y, z, count, np.uint32(size - 1), rows)
    _weights(part, count, weights)


@compiled
def encode(points: np.ndarray, table: np.ndarray, cells: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """``out [N, 2 L]`` of points [first, last) from ``points [3, N]`` and ``table [L, T, 2]``.

    T / 2 points go through a level before the next: on average four of its rows are read from each of their lines in
    the cache, and their features still fit beside it.
    """
    levels, size, _ = table.shape
    low, part = np.empty(3 * BLOCK, np.uint32), np.empty(3 * BLOCK, _F)
    rows, weights = np.empty(8 * BLOCK, np.uint32), np.empty(8 * BLOCK, _F)
    flat, to, one = table.reshape(-1), out.reshape(-1), np.uint64(1)
    many = max(BLOCK, size // 2)
    for begin in range(first, last, many):
        for level in range(levels):
            values = flat[2 * level * size : 2 * (level + 1) * size]
            for start in range(begin, min(begin + many, last), BLOCK):
                end = min(start + BLOCK, begin + many, last)
                _corners(points, start, end, cells[level], size, low, part, rows, weights)
                for i in range(end - start):
                    pair = np.complex64(0)
                    for k in range(8):
                        j = np.uint64(i + k * BLOCK)  # Unsigned: numba looks twice at indices that may be negative.
                        pair = plus_pair(pair, weights[j], values, np.uint64(2 * rows[j]))
                    at = np.uint64(2 * ((start + i) * levels + level))
                    to[at], to[at + one] = pair.real, pair.imag


@compiled
def scatter(
    points: np.ndarray, features: np.ndarray, cells: np.ndarray, table: np.ndarray, first: int, last: int
) -> None:
    """Adds ``features [N, 2 L]`` to the corners in levels [first, last) of ``table [L, T, 2]``: `encode` transposed."""
    count, levels, size = points.shape[1], table.shape[0], table.shape[1]
    low, part = np.empty(3 * BLOCK, np.uint32), np.empty(3 * BLOCK, _F)
    rows, weights = np.empty(8 * BLOCK, np.uint32), np.empty(8 * BLOCK, _F)
    flat, given, one = table.reshape(-1), features.reshape(-1), np.uint64(1)
    for level in range(first, last):
        to = flat[2 * level * size : 2 * (level + 1) * size]
        for start in range(0, count, BLOCK):
            end = min(start + BLOCK, count)
            _corners(points, start, end, cells[level], size, low, part, rows, weights)
            for i in range(end - start):
                at = np.uint64(2 * ((start + i) * levels + level))
                x, y = given[at], given[at + one]
                if x == 0 and y == 0:
                    continue
                for k in range(8):
                    j = np.uint64(i + k * BLOCK)
                    add_to_pair(to, np.uint64(2 * rows[j]), weights[j], x, y)


@numba.njit(inline="always")
def _along(x: Any, size: Any, stride: Any) -> Any:
    """Voxel below along one axis, the part beyond it, and the way to the next one: none if the axis has one voxel."""
    low, part = _corner(x, max(size - 1, 1))
    return low, part, np.uint64(stride if size > 1 else 0)


@compiled
def voxels_sample(grid: np.ndarray, points: np.ndarray, out: np.ndarray) -> None:
    """``out [N, C]`` from ``grid [X, Y, Z, C]`` and ``points [N, 3]``; the channel loop fills vector registers."""
    nx, ny, nz, channels = grid.shape
    values, to, one, count = grid.reshape(-1), out.reshape(-1), np.uint64(1), np.uint64(channels)
    for i in range(points.shape[0]):
        x, u, dx = _along(points[i, 0], nx, ny * nz * channels)
        y, v, dy = _along(points[i, 1], ny, nz * channels)
        z, w, dz = _along(points[i, 2], nz, channels)
        p, q, r = _F(1) - u, _F(1) - v, _F(1) - w
        qr, qw, vr, vw = q * r, q * w, v * r, v * w
        wa, wb, wc, wd, we, wf, wg, wh = p * qr, p * qw, p * vr, p * vw, u * qr, u * qw, u * vr, u * vw
        a, o = np.uint64(((x * ny + y) * nz + z) * channels), np.uint64(i) * count
        b, c, d = a + dz, a + dy, a + dy + dz
        e, f, g, h = a + dx, b + dx, c + dx, d + dx
        k = np.uint64(0)
        while k < count:
            below = wa * values[a + k] + wb * values[b + k] + wc * values[c + k] + wd * values[d + k]
            above = we * values[e + k] + wf * values[f + k] + wg * values[g + k] + wh * values[h + k]
            to[o + k] = below + above
            k += one


@numba.njit(inline="always")
def _add(to: Any, at: Any, given: Any, row: Any, count: Any, weight: Any) -> None:
    """``to[at:] += weight given[row:]``, ``count`` numbers."""
    k = np.uint64(0)
    while k < count:
        to[at + k] += weight * given[row + k]
        k += np.uint64(1)


@compiled
def voxels_scatter(features: np.ndarray, points: np.ndarray, grid: np.ndarray, first: int, last: int) -> None:
    """Adds ``features [N, C]`` to voxels whose x is in [first, last): there, the transpose of `voxels_sample`."""
    nx, ny, nz, channels = grid.shape
    given, to, count = features.reshape(-1), grid.reshape(-1), np.uint64(channels)
    for i in range(points.shape[0]):
        x, u, dx = _along(points[i, 0], nx, ny * nz * channels)
        if x + 1 < first or x >= last:
            continue
        y, v, dy = _along(points[i, 1], ny, nz * channels)
        z, w, dz = _along(points[i, 2], nz, channels)
        q, r = _F(1) - v, _F(1) - w
        a, o = np.uint64(((x * ny + y) * nz + z) * channels), np.uint64(i) * count
        for side in range(2):
            if first <= x + (side if dx else 0) < last:
                s, b = (u, a + dx) if side else (_F(1) - u, a)
                _add(to, b, given, o, count, s * q * r)
                _add(to, b + dz, given, o, count, s * q * w)
                _add(to, b + dy, given, o, count, s * v * r)
                _add(to, b + dy + dz, given, o, count, s * v * w)


@numba.njit(inline="always")
def _next(t: Any, step: Any, origin: Any, direction: Any, cell: Any, size: Any) -> Any:
    """Samples that may be skipped before the ray leaves a cell along one axis; a large number if it never does."""
    if direction == 0:
        return _F(1e9)
    wall = (_F(cell) + (_F(1) if direction > 0 else _F(0))) / _F(size)
    return ((wall - origin) / direction - t) / step


@numba.njit(inline="always")
def _walk(o: Any, d: Any, near: Any, far: Any, jitter: Any, occupied: Any, step: Any, to: Any, start: Any) -> Any:
    """Samples of one ray in occupied cells; their distances go to ``to[start:]`` if it has room."""
    size, found, i = occupied.shape[0], 0, 0
    write = to.size > 0
    while True:
        t = near + (_F(i) + jitter) * step
        if not t < far:
            return found
        x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
        cx = min(max(np.int64(np.floor(x * _F(size))), 0), size - 1)
        cy = min(max(np.int64(np.floor(y * _F(size))), 0), size - 1)
        cz = min(max(np.int64(np.floor(z * _F(size))), 0), size - 1)
        if occupied[cx, cy, cz]:
            if write:
                to[start + found] = t
            found += 1
            i += 1
            continue
        skip = min(
            _next(t, step, o[0], d[0], cx, size),
            min(_next(t, step, o[1], d[1], cy, size), _next(t, step, o[2], d[2], cz, size)),
        )
        i += max(1, np.int64(np.floor(skip)))  # Never past the wall: a sample there may lie in the next cell.


@compiled
def march_count(
    origins: np.ndarray, directions: np.ndarray, near: np.ndarray, far: np.ndarray, jitter: np.ndarray,
    occupied: np.ndarray, step: float, counts: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """``counts[r + 1]``: samples of ray r."""
    nowhere = np.empty(0, np.float32)
    for r in range(first, last):
        counts[r + 1] = _walk(
            origins[r], directions[r], near[r], far[r], jitter[r], occupied, _F(step), nowhere, np.int64(0)
        )


@compiled
def march_fill(
    origins: np.ndarray, directions: np.ndarray, near: np.ndarray, far: np.ndarray, jitter: np.ndarray,
    occupied: np.ndarray, step: float, offsets: np.ndarray, ray: np.ndarray, middle: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Distances of all samples, and whose they are."""
    for r in range(first, last):
        if offsets[r + 1] > offsets[r]:
            ray[offsets[r] : offsets[r + 1]] = r
            _walk(origins[r], directions[r], near[r], far[r], jitter[r], occupied, _F(step), middle, offsets[r])


@compiled
def composite_forward(
    density: np.ndarray, colour: np.ndarray, middle: np.ndarray, delta: np.ndarray, offsets: np.ndarray,
    out: np.ndarray, weights: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """``out [R, 6]``: colour, opacity, depth, distortion; and the weights ``[M]``."""
    for r in range(first, last):
        passed = 1.0
        mass = moment = spread = 0.0  # Sums of w, of w t, and of the distortion up to here.
        for i in range(offsets[r], offsets[r + 1]):
            stays = math.exp(-density[i] * delta[i])
            w = _F(passed * (1.0 - stays))
            passed *= stays
            weights[i] = w
            out[r, 0] += w * colour[i, 0]
            out[r, 1] += w * colour[i, 1]
            out[r, 2] += w * colour[i, 2]
            spread += w * (2.0 * (middle[i] * mass - moment) + w * delta[i] / 3.0)
            mass += w
            moment += w * middle[i]
        out[r, 3], out[r, 4], out[r, 5] = mass, moment, spread


@compiled
def composite_backward(
    density: np.ndarray, colour: np.ndarray, middle: np.ndarray, delta: np.ndarray, offsets: np.ndarray,
    out: np.ndarray, weights: np.ndarray, above: np.ndarray, of_density: np.ndarray, of_colour: np.ndarray,
    first: int, last: int,
) -> None:  # fmt: skip
    """From ``above [R, 6]``: ``dL/dsigma_i = delta_i (T_(i+1) q_i - sum_(j>i) w_j q_j)``, q_i the gradient of w_i.

    That of the distortion is ``2 sum_j w_j |t_i - t_j| + 2 w_i delta_i / 3``, by sums before and behind i.
    """
    for r in range(first, last):
        passed = 1.0
        behind = 0.0
        mass = moment = 0.0  # Twice the sums of w and of w t before i, without their totals.
        for i in range(offsets[r], offsets[r + 1]):
            w = weights[i]
            q = above[r, 0] * colour[i, 0] + above[r, 1] * colour[i, 1] + above[r, 2] * colour[i, 2]
            q = q + above[r, 3] + above[r, 4] * middle[i]
            mass += 2.0 * w
            moment += 2.0 * w * middle[i]
            if above[r, 5] != 0:
                apart = middle[i] * (mass - w - out[r, 3]) - (moment - w * middle[i] - out[r, 4])
                q += _F(above[r, 5] * (2.0 * apart + 2.0 * w * delta[i] / 3.0))
            of_density[i] = _F(q)
            behind += w * q
            of_colour[i, 0] = w * above[r, 0]
            of_colour[i, 1] = w * above[r, 1]
            of_colour[i, 2] = w * above[r, 2]
        for i in range(offsets[r], offsets[r + 1]):
            q = of_density[i]
            passed *= math.exp(-density[i] * delta[i])
            behind -= weights[i] * q
            of_density[i] = _F(delta[i] * (passed * q - behind))


@compiled
def average_voxels(
    density: np.ndarray, sh: np.ndarray, visits: np.ndarray, weight: np.ndarray, rows: np.ndarray,
    new_density: np.ndarray, new_sh: np.ndarray, new_visits: np.ndarray,
    kept: float, replace: bool, debias: bool, first: int, last: int,
) -> None:  # fmt: skip
    """``V <- kept V + (1 - kept) V~`` (Suzuki 2023, eq. 4), in place, where bricks first to last of V~ were visited.

    Brick b of V~ goes to brick ``rows[b]`` of V; ``[N, 512]``, sh ``[N, 512, 27]``. ``weight`` is what the weights of
    contributions in V sum up to; see `fedfields.mapping.merge.Mixing` for the first one.
    """
    for b in range(first, last):
        n = rows[b]
        for i in range(new_visits.shape[1]):
            if new_visits[b, i] == 0:
                continue
            fresh = visits[n, i] == 0
            old, new = (_F(0), _F(1)) if fresh and replace else (_F(kept), _F(1.0 - kept))
            density[n, i] = old * density[n, i] + new * new_density[b, i]
            for k in range(sh.shape[2]):
                sh[n, i, k] = old * sh[n, i, k] + new * new_sh[b, i, k]
            weight[n, i] = _F(1) if fresh and not debias else _F(kept * weight[n, i] + (1.0 - kept))
            if visits[n, i] < 65535:
                visits[n, i] += 1


@compiled
def match_points(
    values: np.ndarray, points: np.ndarray, turns: np.ndarray, shifts: np.ndarray,
    found: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Rows ``found[first:last]`` of `fedfields.kernels.matching.matched`."""
    nx, ny, nz = values.shape[0], values.shape[1], values.shape[2]
    for h in range(first, last):
        r, t, total = turns[h], shifts[h], 0.0
        for p in range(len(points)):
            a, b, c = points[p, 0], points[p, 1], points[p, 2]
            x = math.floor(r[0, 0] * a + r[0, 1] * b + r[0, 2] * c + t[0])
            y = math.floor(r[1, 0] * a + r[1, 1] * b + r[1, 2] * c + t[1])
            z = math.floor(r[2, 0] * a + r[2, 1] * b + r[2, 2] * c + t[2])
            if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
                v = values[np.int64(x), np.int64(y), np.int64(z)]
                total += v[0] + points[p, 3] * v[1] + points[p, 4] * v[2] + points[p, 5] * v[3]
        found[h] = total / len(points)


@compiled
def count_rays(
    origins: np.ndarray, directions: np.ndarray, near: np.ndarray, far: np.ndarray, density: np.ndarray,
    least: float, counts: np.ndarray,
) -> None:  # fmt: skip
    """Adds to ``counts [G, G, G]`` the rays that reach a cell of the unit cube with a transmittance above ``least``.

    From wall to wall of the cells (Amanatides and Woo, 1987), each of one ``density [G, G, G]``.
    """
    size = density.shape[0]
    cell, step = np.zeros(3, np.int64), np.zeros(3, np.int64)
    wall, apart = np.zeros(3, np.float64), np.zeros(3, np.float64)
    for r in range(len(origins)):
        t, end, passed = np.float64(near[r]), np.float64(far[r]), 1.0
        for a in range(3):
            o, d = np.float64(origins[r, a]) * size, np.float64(directions[r, a]) * size
            cell[a] = min(max(np.int64(math.floor(o + t * d)), 0), size - 1)
            step[a] = 1 if d > 0 else -1
            apart[a] = abs(1.0 / d) if d != 0 else math.inf
            wall[a] = (cell[a] + (1 if d > 0 else 0) - o) / d if d != 0 else math.inf
        while t < end and passed > least:
            counts[cell[0], cell[1], cell[2]] += 1
            a = 0 if wall[0] <= wall[1] and wall[0] <= wall[2] else (1 if wall[1] <= wall[2] else 2)
            out = min(max(wall[a], t), end)
            passed *= math.exp(-density[cell[0], cell[1], cell[2]] * (out - t))
            t = out
            cell[a] += step[a]
            wall[a] += apart[a]
            if cell[a] < 0 or cell[a] >= size:
                break
