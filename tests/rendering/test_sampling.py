"""Samples along rays against their definitions."""

import numpy as np
import pytest
import torch

from fedfields.rendering.sampling import fedmenf_points, importance, stratified, up_to_next

DOUBLE = torch.float64
NEAR, FAR = torch.tensor([2.0, 0.5], dtype=DOUBLE), torch.tensor([6.0, 1.0], dtype=DOUBLE)


def uniforms(*shape, seed=0, dtype=DOUBLE):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_strata_without_jitter_by_hand():
    samples = stratified(NEAR, FAR, 4)
    assert samples.starts.tolist() == [[2, 3, 4, 5], [0.5, 0.625, 0.75, 0.875]]
    assert samples.ends.tolist() == [[3, 4, 5, 6], [0.625, 0.75, 0.875, 1]]
    assert samples.at.tolist() == [[2.5, 3.5, 4.5, 5.5], [0.5625, 0.6875, 0.8125, 0.9375]]


def test_jittered_points_stay_inside_their_strata():
    near, far = (part.float().repeat(500) for part in (NEAR, FAR))
    jitter = uniforms(1000, 64, dtype=torch.float32)
    jitter[0], jitter[1] = 0.0, 1 - 2**-24
    samples = stratified(near, far, 64, jitter)
    assert (samples.starts <= samples.at).all() and (samples.at <= samples.ends).all()
    assert torch.equal(samples.ends[:, :-1], samples.starts[:, 1:])
    assert torch.equal(samples.starts[:, 0], near) and torch.equal(samples.ends[:, -1], far)
    place = (samples.at - samples.starts) / (samples.ends - samples.starts)
    torch.testing.assert_close(place, jitter, rtol=0, atol=1e-3)


def test_points_of_the_official_code_by_hand():
    jitter = torch.tensor([[0.0, 0.5, 1.0], [0, 0, 0]], dtype=DOUBLE)
    samples = fedmenf_points(NEAR, FAR, 3, jitter)
    first = [2, 4 + 2 / 3, 6 + 4 / 3]
    assert samples.at[0].tolist() == pytest.approx(first)
    assert samples.at[1].tolist() == [0.5, 0.75, 1.0]
    assert samples.starts is samples.at
    assert samples.ends[0].tolist() == pytest.approx([*first[1:], 6 + 4 / 3])
    assert torch.equal(fedmenf_points(NEAR, FAR, 3).at[1], samples.at[1])


def test_points_reach_up_to_the_next():
    samples = up_to_next(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([5.0]))
    assert (samples.ends - samples.starts).tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("place", [stratified, fedmenf_points])
def test_wrong_counts_are_refused(place):
    with pytest.raises(ValueError, match="at least 1"):
        place(NEAR, FAR, 0)
    with pytest.raises(ValueError, match="jitter for 3 samples on a ray, but 4"):
        place(NEAR, FAR, 4, torch.zeros(2, 3, dtype=DOUBLE))


def test_importance_by_hand():
    """A quarter of the mass lies in [0, 1] and the rest in [1, 3]."""
    edges, weights = torch.tensor([[0.0, 1, 3]]), torch.tensor([[1.0, 3]])
    points = importance(edges, weights, torch.tensor([[0.0, 0.125, 0.25, 0.625, 1.0]]))
    assert points.tolist() == [pytest.approx([0, 0.5, 1, 2, 3])]


def test_importance_inverts_the_distribution_function():
    edges = uniforms(6, 12).cumsum(-1)
    weights = uniforms(6, 11, seed=1) ** 3
    where = uniforms(6, 200, seed=2)
    points = importance(edges, weights, where)
    for ray in range(6):
        reached = np.concatenate([[0], np.cumsum(weights[ray].numpy())])
        wanted = np.interp(where[ray].numpy(), reached / reached[-1], edges[ray].numpy())
        np.testing.assert_allclose(points[ray].numpy(), wanted, rtol=0, atol=1e-12)


def test_no_point_falls_where_there_is_no_mass():
    edges = torch.arange(7.0).expand(2, -1)
    weights = torch.tensor([[0, 1e-3, 0, 0, 1, 0], [0, 0, 0, 1e-30, 0, 0]])
    where = torch.cat([torch.tensor([0.0, 1 - 2**-24, 1.0]), uniforms(10_000, dtype=torch.float32)]).expand(2, -1)
    points = importance(edges, weights, where)
    inside = ((points[0] >= 1) & (points[0] <= 2)) | ((points[0] >= 4) & (points[0] <= 5))
    assert inside.all()
    assert ((points[1] >= 3) & (points[1] <= 4)).all()
    assert points[1, :3].tolist() == pytest.approx([3, 4, 4])


def test_a_ray_without_mass_is_sampled_evenly():
    edges = torch.tensor([[0.0, 1, 4]])
    assert importance(edges, torch.zeros(1, 2), torch.tensor([[0.125, 0.5]])).tolist() == [[0.5, 2.0]]


def test_sorted_numbers_give_sorted_points():
    edges, weights = uniforms(50, 33).cumsum(-1).float(), uniforms(50, 32, seed=1).float()
    points = importance(edges, weights, uniforms(50, 100, seed=2).float().sort(-1).values)
    assert (points.diff(dim=-1) >= 0).all()
