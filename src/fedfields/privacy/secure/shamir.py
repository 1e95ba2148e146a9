"""Shamir's secret sharing (Comm. ACM 1979) over GF(2^128): t shares give the secret, fewer give nothing.

The field is that of pycryptodome's ``Crypto.Protocol.SecretSharing.Shamir`` (modulo x^128 + x^7 + x^2 + x + 1, elements
as big-endian bytes), so that its shares of 16 bytes are ours. Longer secrets are cut into pieces of 16 bytes that share
their indices; Python's integers carry all pieces at once, one in each lane. Nothing here runs in constant time: who can
measure a client's or the server's nanoseconds is on that machine already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

PIECE = 16
"""Bytes of an element."""

LARGEST = 2**16 - 1
"""Largest index; small ones are multiplied with fast."""

_WIDE = 256
"""Bits of a lane: room for the product of two elements."""

_FULL = (1 << 128) - 1
_MODULUS = 1 << 128 | 0x87


def split(secret: bytes, indices: Sequence[int], threshold: int, random: Callable[[int], bytes]) -> list[bytes]:
    """One share, as long as the secret, for every index.

    Args:
        secret: a multiple of 16 bytes.
        indices: distinct, in [1, 65535].
        threshold: t, how many shares give the secret, in [1, len(indices)].
        random: gives that many secret random bytes.
    """
    _check(indices)
    if not 1 <= threshold <= len(indices) or len(secret) % PIECE or not secret:
        raise ValueError(f"{threshold} of {len(indices)} shares of {len(secret)} bytes: no such sharing")
    lanes = len(secret) // PIECE
    powers = [_spread(random(len(secret))) for _ in range(threshold - 1)] + [_spread(secret)]
    ones = _ones(lanes)
    shares = []
    for index in indices:
        value = 0
        for coefficient in powers:  # Horner's rule, from the highest power to the secret.
            value = _times(value, index, ones) ^ coefficient
        shares.append(_gather(value, lanes))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly its threshold of shares by index. Wrong or too few shares give other bytes, no error."""
    _check(list(shares))
    lanes = len(next(iter(shares.values()))) // PIECE
    ones, total = _ones(lanes), 0
    for (_, share), weight in zip(sorted(shares.items()), _weights(tuple(sorted(shares))), strict=True):
        total ^= _times(_spread(share), weight, ones)
    return _gather(total, lanes)


def _check(indices: Sequence[int]) -> None:
    if not indices or len(set(indices)) != len(indices) or not all(0 < index <= LARGEST for index in indices):
        raise ValueError("indices of shares must be distinct and lie in [1, 65535], and there must be some")


@lru_cache(maxsize=256)
def _weights(indices: tuple[int, ...]) -> list[int]:
    """Lagrange's weights at zero, ``prod_{m != j} x_m / (x_m - x_j)``; the indices are public."""
    everything = 1
    for index in indices:
        everything = _times(everything, index, 1)
    below = []
    for mine in indices:
        product = mine
        for other in indices:
            if other != mine:
                product = _times(product, mine ^ other, 1)
        below.append(product)
    return [_times(everything, inverse, 1) for inverse in _inverses(below)]


def _inverses(elements: list[int]) -> list[int]:
    """Inverses of all by one inversion (Montgomery, Math. Comp. 1987)."""
    before = [1]
    for element in elements:
        before.append(_times(before[-1], element, 1))
    rest, found = _inverse(before[-1]), []
    for element, product in zip(reversed(elements), reversed(before[:-1]), strict=True):
        found.append(_times(rest, product, 1))
        rest = _times(rest, element, 1)
    return found[::-1]


def _inverse(element: int) -> int:
    """By Euclid's algorithm for polynomials (Hankerson, Menezes and Vanstone 2004, algorithm 2.48)."""
    u, v, g, h = element, _MODULUS, 1, 0
    while u != 1:
        shift = u.bit_length() - v.bit_length()
        if shift < 0:
            u, v, g, h, shift = v, u, h, g, -shift
        u ^= v << shift
        g ^= h << shift
    return g


def _times(value: int, element: int, ones: int) -> int:
    """Every lane of ``value`` times ``element``; ``ones`` has the lowest bit of every lane."""
    product = 0
    while element:
        bit = element.bit_length() - 1
        product ^= value << bit
        element ^= 1 << bit
    low = ones * _FULL
    while over := (product >> 128) & low:
        product = (product & low) ^ over ^ (over << 1) ^ (over << 2) ^ (over << 7)
    return product


def _ones(lanes: int) -> int:
    return sum(1 << (_WIDE * lane) for lane in range(lanes))


def _spread(data: bytes) -> int:
    """Pieces to lanes, the last piece lowest."""
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    return int.from_bytes(b"".join(bytes(PIECE) + piece for piece in pieces), "big")


def _gather(value: int, lanes: int) -> bytes:
    """The inverse of :func:`_spread`."""
    data = value.to_bytes(2 * PIECE * lanes, "big")
    return b"".join(data[start + PIECE : start + 2 * PIECE] for start in range(0, len(data), 2 * PIECE))
