"""Matching of points against its twin, and with several threads."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedfields.kernels.matching import matched, plain


@pytest.mark.parametrize("threads", [1, 2])
def test_motions_are_scored_like_the_twin(threads):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 7, 11, 4)).astype(np.float32)
    points = rng.normal(size=(50, 6)).astype(np.float32)
    turns = 3 * Rotation.random(600, rng=rng).as_matrix()
    shifts = rng.uniform(-4, 12, (600, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = matched(values, points, turns, shifts)
    finally:
        torch.set_num_threads(before)
    theirs = plain(values, points, turns.astype(np.float32), shifts.astype(np.float32))
    assert np.mean(np.abs(ours - theirs) < 1e-5) > 0.99  # The rest: a point on a wall of cells.
    assert theirs.std() > 0.05


def test_points_outside_and_far_away_count_for_nothing():
    values, points = np.ones((2, 2, 2, 4), np.float32), np.zeros((3, 6), np.float32)
    shifts = np.array([[0.5, 0.5, 0.5], [-0.1, 0.5, 0.5], [0.5, 2.0, 0.5], [1e30, 0.5, 0.5], [np.nan, 0.5, 0.5]])
    assert matched(values, points, np.stack([np.eye(3)] * 5), shifts).tolist() == [1.0, 0, 0, 0, 0]
