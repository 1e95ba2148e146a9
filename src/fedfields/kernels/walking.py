"""The loops of rays through bricks, compiled like those in ``compiled.py``; what they work on is in ``bricks.py``.

Lengths here are voxels, counted so that the value of voxel i belongs to the point i: ``x / voxel - 0.5`` of metres.
The loops are generic: arrays of float64 make everything float64.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from fedfields.kernels.compiled import compiled

INDEX, PASSED, WAITING, RED, DEPTH, STATE = 0, 1, 2, 3, 6, 7
"""What is kept of a ray between two walks, by column, and the number of columns: the next sample, the light that passes
so far, the weight that waits for a colour, colour (three) and depth."""

DONE, ELSEWHERE = -1, -2
_FAR = 1e18


@numba.njit(nogil=True)
def _at(origin: Any, way: Any, t: Any) -> Any:
    """Place on a ray. Never contracted: every loop must find the same sample in the same cell."""
    return origin + t * way


@numba.njit(inline="always")
def _packed(x: Any, y: Any, z: Any) -> Any:
    """`packed` of ``bricks.py``, which says what it is."""
    return ((x + 1048576) << 42) | ((y + 1048576) << 21) | (z + 1048576)


@numba.njit(inline="always")
def _row(keys: Any, key: Any) -> Any:
    """Row of a key in sorted keys, or -1."""
    low, high = 0, keys.size
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low if low < keys.size and keys[low] == key else -1


@numba.njit(inline="always")
def _left(x: Any, pace: Any, low: Any, edge: Any) -> Any:
    """Samples until a ray at x, which moves by ``pace`` from one to the next, leaves [low, low + edge)."""
    if abs(pace) < 1e-15:
        return _FAR
    return ((low + edge if pace > 0 else low) - x) / pace


@numba.njit(inline="always")
def _skip(x: Any, y: Any, z: Any, px: Any, py: Any, pz: Any, cx: Any, cy: Any, cz: Any, edge: Any) -> Any:
    """How many samples on the first one beyond a cube is; never more, for its walls may belong to what comes next."""
    left = min(_left(x, px, cx * edge, edge), _left(y, py, cy * edge, edge), _left(z, pz, cz * edge, edge))
    return max(1, np.int64(min(left, 1e9) + (1 - 1e-6)))


@numba.njit(inline="always")
def _seek(i: Any, count: Any, near: Any, step: Any, o: Any, d: Any, volume: Any, tile: Any, place: Any) -> Any:
    """The next sample from i on that may have density, and its cell, `DONE`, or `ELSEWHERE` in a tile that is not here.

    ``tile [3]`` remembers the tile that was looked at last: packed, its row and its slot; ``place [3]`` becomes the
    place of the sample.
    """
    ox, oy, oz, dx, dy, dz = o[0], o[1], o[2], d[0], d[1], d[2]
    px, py, pz = dx * step, dy * step, dz * step
    while i < count:
        t = near + (i + 0.5) * step
        x, y, z = _at(ox, dx, t), _at(oy, dy, t), _at(oz, dz, t)
        ix, iy, iz = np.int64(math.floor(x)), np.int64(math.floor(y)), np.int64(math.floor(z))
        key = _packed(ix >> 6, iy >> 6, iz >> 6)
        if key != tile[0]:
            tile[0], tile[1] = key, _row(volume.tiles, key)
            tile[2] = volume.slots[tile[1]] if tile[1] >= 0 else -1
        if tile[1] < 0:
            i += _skip(x, y, z, px, py, pz, ix >> 6, iy >> 6, iz >> 6, 64)
            continue
        if tile[2] < 0:
            return i, ELSEWHERE
        cell = np.int64(volume.cells[tile[2], (((ix >> 3) & 7) << 6) | (((iy >> 3) & 7) << 3) | ((iz >> 3) & 7)])
        if cell < 0:
            i += _skip(x, y, z, px, py, pz, ix >> 3, iy >> 3, iz >> 3, 8)
            continue
        block = (((ix & 7) >> 1) << 4) | (((iy & 7) >> 1) << 2) | ((iz & 7) >> 1)
        if (volume.blocks[cell] >> np.uint64(block)) & np.uint64(1):
            place[0], place[1], place[2] = x, y, z
            return i, cell
        i += 1
    return i, DONE


@numba.njit(inline="always")
def _weights(place: Any, weights: Any) -> Any:
    """Weights of the eight corners, z first, and the voxel below in its cell along each axis."""
    fx, fy, fz = math.floor(place[0]), math.floor(place[1]), math.floor(place[2])
    u, v, w = place[0] - fx, place[1] - fy, place[2] - fz
    p, q, r = 1 - u, 1 - v, 1 - w
    qr, qw, vr, vw = q * r, q * w, v * r, v * w
    weights[0], weights[1], weights[2], weights[3] = p * qr, p * qw, p * vr, p * vw
    weights[4], weights[5], weights[6], weights[7] = u * qr, u * qw, u * vr, u * vw
    return np.int64(fx) & 7, np.int64(fy) & 7, np.int64(fz) & 7


@numba.njit(inline="always")
def _density(values: Any, base: Any, weights: Any) -> Any:
    """Interpolated in a cell ``[729]``, of which ``base`` is the corner that lies lowest."""
    below = weights[0] * values[base] + weights[1] * values[base + 1]
    below += weights[2] * values[base + 9] + weights[3] * values[base + 10]
    above = weights[4] * values[base + 81] + weights[5] * values[base + 82]
    return below + (above + weights[6] * values[base + 90] + weights[7] * values[base + 91])


@numba.njit(inline="always")
def _corners(volume: Any, cell: Any, x: Any, y: Any, z: Any, weights: Any, rows: Any, shares: Any) -> Any:
    """Rows in ``sh`` of the eight corners of voxel (x, y, z) of a cell and their weights, 0 where nothing was seen.

    Returns:
        The sum of these weights.
    """
    total = 0.0
    for corner in range(8):
        cx, cy, cz = x + (corner >> 2), y + ((corner >> 1) & 1), z + (corner & 1)
        brick = np.int64(volume.bricks[cell, ((cx >> 3) << 2) | ((cy >> 3) << 1) | (cz >> 3)])
        row = (brick << 9) | ((cx & 7) << 6) | ((cy & 7) << 3) | (cz & 7)
        known = brick >= 0 and volume.seen[row]
        rows[corner] = np.uint64(27) * np.uint64(row if known else 0)
        shares[corner] = weights[corner] if known else 0
        total += shares[corner]
    return total


@numba.njit(inline="always")
def _shade(sh: Any, rows: Any, shares: Any, mixed: Any) -> None:
    """``mixed [27]``: interpolated coefficients, not yet divided by the sum of the shares."""
    a, b, c, d, e, f, g, h = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    wa, wb, wc, wd, we, wf, wg, wh = (
        shares[0], shares[1], shares[2], shares[3], shares[4], shares[5], shares[6], shares[7],
    )  # fmt: skip
    k = np.uint64(0)
    while k < np.uint64(27):
        below = wa * sh[a + k] + wb * sh[b + k] + wc * sh[c + k] + wd * sh[d + k]
        above = we * sh[e + k] + wf * sh[f + k] + wg * sh[g + k] + wh * sh[h + k]
        mixed[k] = below + above
        k += np.uint64(1)


@numba.njit(inline="always")
def _dot(values: Any, a: Any, basis: Any) -> Any:
    """Of the nine numbers from a on with the basis."""
    total = values[a] * basis[0]
    for k in range(1, 9):
        total += values[a + k] * basis[k]
    return total


@compiled
def walk(
    rays: Any, which: np.ndarray, volume: Any, stop: float, least: float,
    state: np.ndarray, wanted: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Carries rays ``which[first:last]`` on until they end or meet a tile that is not in the volume: ``wanted``."""
    kind, sh = volume.sh.dtype, volume.sh.reshape(-1)
    place, tile = np.empty(3), np.empty(3, np.int64)
    weights, shares, mixed = np.empty(8, kind), np.empty(8, kind), np.empty(27, kind)
    basis, rows = np.empty(9, kind), np.empty(8, np.uint64)
    for j in range(first, last):
        r = which[j]
        for k in range(9):
            basis[k] = rays.basis[r, k]
        i, passed, waiting = np.int64(state[r, INDEX]), state[r, PASSED], state[r, WAITING]
        red, green, blue, depth = state[r, RED], state[r, RED + 1], state[r, RED + 2], state[r, DEPTH]
        near, step, count = rays.near[r], rays.step[r], rays.counts[r]
        tile[0], wanted[r] = -1, DONE
        while passed >= stop:
            i, cell = _seek(i, count, near, step, rays.origins[r], rays.ways[r], volume, tile, place)
            if cell < 0:
                wanted[r] = tile[1] if cell == ELSEWHERE else DONE
                break
            x, y, z = _weights(place, weights)
            density = _density(volume.density[cell], (x * 9 + y) * 9 + z, weights)
            if density > 0:
                stays = math.exp(-density * step)
                w = passed * (1 - stays)
                passed *= stays
                depth += w * (near + (i + 0.5) * step)
                waiting += w
                if waiting > least:
                    total = _corners(volume, cell, x, y, z, weights, rows, shares)
                    _shade(sh, rows, shares, mixed)
                    red += waiting / (1 + math.exp(-_dot(mixed, 0, basis) / total))
                    green += waiting / (1 + math.exp(-_dot(mixed, 9, basis) / total))
                    blue += waiting / (1 + math.exp(-_dot(mixed, 18, basis) / total))
                    waiting = 0.0
            i += 1
        state[r, INDEX], state[r, PASSED], state[r, WAITING] = i, passed, waiting
        state[r, RED], state[r, RED + 1], state[r, RED + 2], state[r, DEPTH] = red, green, blue, depth


@numba.njit(inline="always")
def _slopes(place: Any, weights: Any, slopes: Any) -> Any:
    """`_weights`, and their derivatives ``slopes [3, 8]`` by the place."""
    u, v, w = (
        place[0] - math.floor(place[0]), place[1] - math.floor(place[1]), place[2] - math.floor(place[2])
    )  # fmt: skip
    for corner in range(8):
        a, b, c = corner >> 2, (corner >> 1) & 1, corner & 1
        x, y, z = (u if a else 1 - u), (v if b else 1 - v), (w if c else 1 - w)
        slopes[0, corner] = (2 * a - 1) * y * z
        slopes[1, corner] = (2 * b - 1) * x * z
        slopes[2, corner] = (2 * c - 1) * x * y
    return _weights(place, weights)


@numba.njit(inline="always")
def _pull_of_density(values: Any, base: Any, slopes: Any, factor: Any, pull: Any) -> None:
    """Adds ``factor`` times the gradient of `_density`."""
    for corner in range(8):
        value = factor * values[base + 81 * (corner >> 2) + 9 * ((corner >> 1) & 1) + (corner & 1)]
        for k in range(3):
            pull[k] += slopes[k, corner] * value


@numba.njit(inline="always")
def _pull_of_colour(
    sh: Any, rows: Any, shares: Any, slopes: Any, basis: Any, raw: Any, factors: Any, pull: Any
) -> None:  # fmt: skip
    """Adds that of three interpolated shades ``raw``, times ``factors``; corners without a share have none."""
    for corner in range(8):
        if shares[corner] == 0:
            continue
        value = 0.0
        for channel in range(3):
            shade = 0.0
            for k in range(9):
                shade += sh[rows[corner] + np.uint64(9 * channel + k)] * basis[k]
            value += factors[channel] * (shade - raw[channel])
        for k in range(3):
            pull[k] += slopes[k, corner] * value


@compiled
def walk_back(
    rays: Any, begin: np.ndarray, volume: Any, stop: float, state: np.ndarray, above: np.ndarray,
    of_origin: np.ndarray, of_way: np.ndarray, of_basis: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Gradients ``[R, 3]``, ``[R, 3]`` and ``[R, 9]`` (zeros before) from ``above [R, 5]``: colour, depth, opacity.

    ``dL/dsigma_i = step (T_(i+1) q_i - sum_(j>i) w_j q_j)``, q_i the gradient of w_i; the sum over all j is known from
    what was seen, ``state``, so that one pass from front to back is enough.
    """
    kind, sh = volume.sh.dtype, volume.sh.reshape(-1)
    place, tile, pull, slopes = np.empty(3), np.empty(3, np.int64), np.empty(3), np.empty((3, 8))
    weights, shares, mixed, rows = np.empty(8, kind), np.empty(8, kind), np.empty(27, kind), np.empty(8, np.uint64)
    raw, factors = np.empty(3), np.empty(3)
    for r in range(first, last):
        basis, i, passed, tile[0] = rays.basis[r], begin[r], 1.0, -1
        near, step, count = rays.near[r], rays.step[r], rays.counts[r]
        behind = above[r, 3] * state[r, DEPTH] + above[r, 4] * (1 - state[r, PASSED])
        for channel in range(3):
            behind += above[r, channel] * state[r, RED + channel]
        while passed >= stop:
            i, cell = _seek(i, count, near, step, rays.origins[r], rays.ways[r], volume, tile, place)
            if cell < 0:
                break
            x, y, z = _slopes(place, weights, slopes)
            base = (x * 9 + y) * 9 + z
            density = _density(volume.density[cell], base, weights)
            if density > 0:
                s, stays = near + (i + 0.5) * step, math.exp(-density * step)
                w = passed * (1 - stays)
                passed *= stays
                total = _corners(volume, cell, x, y, z, weights, rows, shares)
                _shade(sh, rows, shares, mixed)
                q = above[r, 3] * s + above[r, 4]
                for channel in range(3):
                    raw[channel] = _dot(mixed, 9 * channel, basis) / total
                    colour = 1 / (1 + math.exp(-raw[channel]))
                    q += above[r, channel] * colour
                    factors[channel] = w * above[r, channel] * colour * (1 - colour) / total
                    for k in range(9):
                        of_basis[r, k] += factors[channel] * mixed[9 * channel + k]
                behind -= w * q
                pull[:] = 0
                _pull_of_density(volume.density[cell], base, slopes, step * (passed * q - behind), pull)
                _pull_of_colour(sh, rows, shares, slopes, basis, raw, factors, pull)
                for k in range(3):
                    of_origin[r, k] += pull[k]
                    of_way[r, k] += s * pull[k]
            i += 1
