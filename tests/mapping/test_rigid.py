"""Rigid motions against scipy's rotations, and against what they must do."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedfields.mapping.rigid import about, after, apart, between, exp, inverse, log, moved


def random_motions(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([Rotation.random(count, rng=rng).as_matrix(), 50 * rng.normal(size=(count, 3, 1))], 2)


@pytest.mark.parametrize("length", [0.0, 1e-12, 1e-5, 1e-4, 0.3, 2.0, 3.0, np.pi - 1e-4, np.pi - 1e-9])
def test_exp_and_log_are_those_of_scipy(length):
    axes = np.random.default_rng(1).normal(size=(20, 3))
    vectors = length * axes / np.linalg.norm(axes, axis=1, keepdims=True)
    turns = exp(torch.from_numpy(vectors)).numpy()
    assert np.allclose(turns, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-14)
    for vector, turn in zip(vectors, turns, strict=True):
        assert np.allclose(log(turn), vector, rtol=1e-7, atol=1e-14)


def test_half_a_turn_has_either_axis():
    for axis in (np.eye(3)[1], np.array([0.6, 0.0, -0.8])):
        turn = Rotation.from_rotvec(np.pi * axis).as_matrix()
        assert np.allclose(np.abs(log(turn)), np.pi * np.abs(axis), atol=1e-7)


@pytest.mark.parametrize("length", [0.0, 1e-6, 0.7])
def test_exp_has_the_derivative_of_finite_differences(length):
    vector = (length * torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(exp, vector)


def test_motions_compose_invert_and_compare():
    one, two, many = *random_motions(2), random_motions(4, 1)
    points = np.random.default_rng(2).normal(size=(5, 3))
    assert np.allclose(moved(after(one, two), points), moved(one, moved(two, points)))
    assert np.allclose(moved(inverse(one), moved(one, points)), points)
    assert np.allclose(after(one, many), np.stack([after(one, each) for each in many]))
    turn, centre = Rotation.from_euler("z", 7, degrees=True).as_matrix(), np.array([3.0, -2.0, 9.0])
    noise = about(turn, np.array([3.0, 0, 4.0]), centre)
    assert apart(after(noise, one), one, moved(inverse(one), centre)) == pytest.approx((7, 5))


def test_the_median_of_camera_poses_finds_the_frame_although_some_cameras_lie():
    truth, own = random_motions(1, 3)[0], random_motions(11, 4)
    told = after(truth, own)
    for camera in (2, 5, 6):  # Told half a turn about its view, as some drones store their pictures, and far away.
        told[camera, :, :2] *= -1
        told[camera, :, 3] += 100
    degrees, metres = apart(between(own, told), truth, np.zeros(3))
    assert degrees < 1e-5
    assert metres < 1e-4
