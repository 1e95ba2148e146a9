"""Rotations of spherical harmonics against what they must do, and against a rotation of quadratic forms by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedfields.fields.hashgrid import harmonics
from fedfields.mapping.harmonics import rotated, rotation_of_harmonics


def rotations(count=5):
    return Rotation.random(count, rng=np.random.default_rng(0)).as_matrix()


def directions(count=50):
    found = np.random.default_rng(1).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("turn", [*rotations(), np.eye(3), np.diag([-1.0, -1.0, 1.0])])
def test_what_was_seen_along_a_direction_is_seen_along_the_turned_one(turn):
    coefficients = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 27)))
    before = coefficients.view(4, 3, 9) @ harmonics(torch.from_numpy(directions())).T
    after = rotated(coefficients, turn).view(4, 3, 9) @ harmonics(torch.from_numpy(directions() @ turn.T)).T
    assert (after - before).abs().max() < 1e-13


def test_composition_inverse_and_orthogonality():
    a, b = rotations(2)
    of = rotation_of_harmonics
    assert np.allclose(of(a @ b), of(a) @ of(b), atol=1e-14)
    assert np.allclose(of(a.T), np.linalg.inv(of(a)), atol=1e-13)
    assert np.allclose(of(a) @ of(a).T, np.eye(9), atol=1e-14)
    assert np.allclose(of(np.eye(3)), np.eye(9), atol=1e-15)


def test_degrees_are_turned_as_a_number_a_vector_and_a_quadratic_form():
    """Degree 1 is ``v . d`` and becomes R v; degree 2 is ``d^T A d``, A symmetric and traceless: R A R^T."""
    turn = rotations(1)[0]
    one, (xy, yz, zz, xz, xx) = 0.4886025119029199, (1.0925484305920792, -1.0925484305920792, 0.31539156525252005,
                                                     -1.0925484305920792, 0.5462742152960396)  # fmt: skip

    def parts(k):
        vector = one * np.array([-k[3], -k[1], k[2]])
        form = np.diag([-zz * k[6] + xx * k[8], -zz * k[6] - xx * k[8], 2 * zz * k[6]])
        for (i, j), value in {(0, 1): xy * k[4], (1, 2): yz * k[5], (0, 2): xz * k[7]}.items():
            form[i, j] = form[j, i] = value / 2
        return k[0], vector, form

    before = np.random.default_rng(3).normal(size=9)
    after = rotation_of_harmonics(turn) @ before
    number, vector, form = parts(before)
    for ours, hand in zip(parts(after), (number, turn @ vector, turn @ form @ turn.T), strict=True):
        assert np.allclose(ours, hand, atol=1e-14)
