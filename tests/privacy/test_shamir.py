"""Shares against pycryptodome's, and what fewer than the threshold of them say: nothing."""

import itertools
import random
import time

import pytest
from scipy import stats

from fedfields.privacy.secure import shamir

reference = pytest.importorskip("Crypto.Protocol.SecretSharing").Shamir
PICK = random.Random(7)


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 3), (3, 3), (5, 9), (67, 100)])
def test_shares_of_one_are_combined_by_the_other(threshold, count):
    secret = PICK.randbytes(32)
    ours = shamir.split(secret, range(1, count + 1), threshold, PICK.randbytes)
    chosen = PICK.sample(range(count), threshold)
    halves = [reference.combine([(i + 1, ours[i][16 * h : 16 * h + 16]) for i in chosen]) for h in (0, 1)]
    assert b"".join(halves) == secret
    theirs = dict(reference.split(threshold, count, secret[:16]))
    assert shamir.combine({i + 1: theirs[i + 1] for i in chosen}) == secret[:16]


def test_every_threshold_of_shares_gives_the_secret():
    secret, indices = PICK.randbytes(48), [3, 1, 65535, 200, 77]
    shares = dict(zip(indices, shamir.split(secret, indices, 3, PICK.randbytes), strict=True))
    for chosen in itertools.combinations(indices, 3):
        assert shamir.combine({i: shares[i] for i in chosen}) == secret
    for chosen in itertools.combinations(indices, 2):
        assert shamir.combine({i: shares[i] for i in chosen}) != secret


def test_fewer_shares_fit_every_secret():
    """Two shares of three: whatever secret one supposes, some third share would give just that."""
    indices = [1, 2, 3]
    shares = dict(zip(indices, shamir.split(PICK.randbytes(16), indices, 3, PICK.randbytes), strict=True))
    for _ in range(50):
        supposed = PICK.randbytes(16)
        through = {0: supposed, 1: shares[1], 2: shares[2]}  # The parabola through the supposed secret ...
        third = shamir.combine({index ^ 3: share for index, share in through.items()})  # ... at 3, moved to zero.
        assert shamir.combine({1: shares[1], 2: shares[2], 3: third}) == supposed


def test_single_shares_are_uniform_whatever_the_secret():
    octets = [0] * 256
    for _ in range(400):
        for share in shamir.split(bytes(16), range(1, 5), 2, PICK.randbytes):
            for octet in share:
                octets[octet] += 1
    assert stats.chisquare(octets).pvalue > 1e-3


@pytest.mark.parametrize(
    ("length", "indices", "threshold"),
    [
        (15, [1, 2], 2),
        (0, [1, 2], 2),
        (16, [1, 2], 3),
        (16, [1, 2], 0),
        (16, [0, 1], 2),
        (16, [1, 1], 2),
        (16, [65536], 1),
    ],
)
def test_what_is_no_sharing_is_refused(length, indices, threshold):
    with pytest.raises(ValueError, match=r"indices|sharing"):
        shamir.split(bytes(length), indices, threshold, PICK.randbytes)


@pytest.mark.parametrize("shares", [{}, {0: bytes(16), 1: bytes(16)}, {-1: bytes(16)}, {65536: bytes(16)}])
def test_shares_with_impossible_indices_are_refused(shares):
    with pytest.raises(ValueError, match="indices"):
        shamir.combine(shares)


def test_fast_enough_for_a_hundred_clients():
    begun = time.process_time()
    secret = PICK.randbytes(64)  # Two secrets of 32 bytes.
    shares = shamir.split(secret, range(1, 101), 67, PICK.randbytes)
    shared = time.process_time()
    for first in range(10):
        assert shamir.combine({i + 1: shares[i] for i in range(first, first + 67)}) == secret
    assert shared - begun < 0.5
    assert time.process_time() - shared < 0.5
