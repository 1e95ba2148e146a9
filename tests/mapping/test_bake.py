"""Fields as voxels: asked at the right places, in the right axes, and only where rays have been."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedfields.errors import UserError
from fedfields.fields import HashGrid
from fedfields.fields.hashgrid import harmonics
from fedfields.mapping.bake import Local, bake, cells_of, local_as_bytes, local_from_bytes, seen_cells, with_neighbours
from fedfields.mapping.packing import contribution_as_bytes, contribution_from_bytes
from fedfields.mapping.voxels import centres
from fedfields.rendering.rays import Rays
from fedfields.scenes.frame import Frame

FIELD = HashGrid(levels=4, log2_rows=10, coarsest=4, finest=16, width=8, latent=3)
FRAME = Frame((3.0, -1.0, 0.5), 2.0)
VOXEL = 0.25


def pose_of(seed=0):
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    return np.concatenate([turn, [[100.3], [-40.2], [7.1]]], 1)


def local_of(field=FIELD, seen=None, code=None):
    params = field.init(torch.Generator().manual_seed(0))
    params = {name: 3e4 * leaf if name == "table" else leaf for name, leaf in params.items()}  # In (-3, 3).
    seen = np.ones((cells_of(FRAME, VOXEL),) * 3, bool) if seen is None else seen
    return Local("drone 7", field, params, FRAME, seen, 20, code)


def seen_of(contribution):
    """Global centres, densities and coefficients of the voxels that were seen."""
    bricks, at = contribution.bricks, contribution.bricks.visits > 0
    return centres(bricks.coords, VOXEL)[at], bricks.density[at], bricks.sh[at]


@pytest.mark.parametrize("pose", [np.eye(3, 4), pose_of(0), pose_of(1)], ids=["identity", "turned", "otherwise"])
def test_a_voxel_is_the_field_at_its_centre_seen_in_global_directions(pose):
    local = local_of()
    where, density, sh = seen_of(bake(local, pose, VOXEL))
    own = torch.from_numpy((pose[:, :3].T @ (where - pose[:, 3]).T).T)  # P = R^T (P_g - t), in metres.
    assert ((own - torch.tensor(FRAME.centre)).abs() <= FRAME.half + 1e-6).all()
    assert len(where) == pytest.approx((2 * FRAME.half / VOXEL) ** 3, rel=0.03)
    along = torch.nn.functional.normalize(torch.randn(len(where), 3, generator=torch.Generator().manual_seed(1)), dim=1)
    exact, colour = local.field(local.params, FRAME.points(own).float(), along)
    assert np.allclose(density, exact.numpy() / FRAME.half, rtol=1e-4, atol=1e-5)
    turned = along @ torch.from_numpy(pose[:, :3].T).float()  # R d.
    shown = (torch.from_numpy(sh).view(-1, 3, 9) @ harmonics(turned)[..., None])[..., 0].sigmoid()
    assert (shown - colour).abs().max() < 1e-3
    assert colour.std() > 0.01


def test_a_turn_and_its_inverse_bring_no_voxel_twice():
    found = bake(local_of(), pose_of(), VOXEL).bricks
    assert np.array_equal(found.coords, np.unique(found.coords, axis=0))
    assert found.visits.max() == 1 and found.visits.any(1).all()
    assert not found.density[found.visits == 0].any() and not found.sh[found.visits == 0].any()


def test_only_what_was_seen_is_baked():
    seen = np.zeros((16, 16, 16), bool)
    seen[:8] = True  # x from 1 to 3 m.
    where, _, _ = seen_of(bake(local_of(seen=seen), np.eye(3, 4), VOXEL))
    assert where[:, 0].min() == pytest.approx(1.125) and where[:, 0].max() == pytest.approx(2.875)
    assert len(where) == 8 * 16 * 16
    assert len(bake(local_of(seen=seen & False), np.eye(3, 4), VOXEL).bricks.coords) == 0


def test_server_and_client_bake_the_same():
    code = torch.randn(5, generator=torch.Generator().manual_seed(2))
    local = local_of(
        HashGrid(levels=4, log2_rows=10, coarsest=4, finest=16, width=8, latent=3, appearance=5), code=code
    )
    sent = local_as_bytes(local)
    at_client = contribution_as_bytes(bake(local, pose_of(), VOXEL, base=3))
    at_server = contribution_as_bytes(bake(local_from_bytes(sent), pose_of(), VOXEL, base=3))
    assert at_client == at_server
    received = contribution_from_bytes(at_client)
    assert (received.name, received.views, received.base, received.voxel) == ("drone 7", 20, 3, VOXEL)
    assert contribution_as_bytes(received) == at_client
    other = bake(local._replace(code=-code), pose_of(), VOXEL)
    assert not np.array_equal(other.bricks.sh, received.bricks.sh)
    assert np.array_equal(other.bricks.density, received.bricks.density)


def ray(origin, direction, near=0.0, far=4.0):
    parts = torch.tensor([origin]), torch.tensor([direction]), torch.tensor([near]), torch.tensor([far])
    return Rays(*parts)


def empty(positions):
    return torch.zeros(len(positions))


def test_a_ray_counts_in_the_cells_that_it_crosses():
    along_x = seen_cells(empty, ray([-1.0, 0.1, 0.6], [1.0, 0.0, 0.0]), 4, least=1)
    assert np.argwhere(along_x).tolist() == [[x, 2, 3] for x in range(4)]
    slanted = seen_cells(empty, ray([-0.9, -0.75, -0.75], [0.8, 0.6, 0.0]), 4, least=1)
    crossed = [[0, 0], [0, 1], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3]]  # At 0.417, 0.5, 1.125, 1.25, 1.75 and 2.083.
    assert np.argwhere(slanted).tolist() == [[*cell, 0] for cell in crossed]
    short = seen_cells(empty, ray([1.0, 0.1, 0.6], [-1.0, 0.0, 0.0], near=0.6, far=1.4), 4, least=1)
    assert np.argwhere(short).tolist() == [[1, 2, 3], [2, 2, 3]]


def test_nothing_is_seen_behind_what_lets_too_little_light_through():
    """A cell of density 8 along a way of 0.5 leaves exp(-4) = 0.018, and two of them exp(-8)."""

    def wall(positions):
        return torch.where((positions[:, 0] > -0.5) & (positions[:, 0] < 0.5), 8.0, 0.0)

    for light, last in [(math.exp(-3.9), 1), (0.01, 2), (math.exp(-8.1), 3)]:
        seen = seen_cells(wall, ray([-1.0, 0.1, 0.6], [1.0, 0.0, 0.0]), 4, 1, light)
        assert np.argwhere(seen)[:, 0].tolist() == list(range(last + 1))


def test_neighbours_of_seen_cells_are_those_of_scipy():
    from scipy.ndimage import binary_dilation

    for size in (1, 2, 9):
        seen = np.random.default_rng(size).random((size,) * 3) < 0.05
        seen[-1, 0, -1] = True
        before = seen.copy()
        assert np.array_equal(with_neighbours(seen), binary_dilation(seen)) and np.array_equal(seen, before)


def test_enough_rays_are_asked_for():
    one = ray([-1.0, 0.1, 0.6], [1.0, 0.0, 0.0])
    three = Rays(*(torch.cat([part] * 3) for part in one[:4]))
    assert seen_cells(empty, three, 4).sum() == 4
    assert seen_cells(empty, three, 4, least=4).sum() == 0
    outside = seen_cells(empty, ray([5.0, 0.0, 0.0], [1.0, 0.0, 0.0], near=1.0, far=1.0), 4, least=1)
    assert not outside.any()


def test_rays_from_everywhere_agree_with_fine_steps():
    """Cells by stepping a thousandth at a time; cells that are only grazed may differ."""
    random = np.random.default_rng(0)
    origins, ends = random.uniform(-1, 1, (2, 200, 3))
    directions = (ends - origins) / np.linalg.norm(ends - origins, axis=1, keepdims=True)
    far = np.linalg.norm(ends - origins, axis=1)
    rays = Rays(*(torch.from_numpy(part).float() for part in (origins, directions, 0 * far, far)))
    steps = origins[:, None] + np.linspace(0, 1, 1001)[None, :, None] * (ends - origins)[:, None]
    cells = np.clip(np.floor((steps + 1) / 2 * 8), 0, 7).astype(int)
    counts = np.zeros((8, 8, 8), int)
    for each in cells:
        counts[tuple(np.unique(each, axis=0).T)] += 1
    assert (seen_cells(empty, rays, 8, least=5) != (counts >= 5)).sum() <= 3
    assert 50 < (counts >= 5).sum() < 500


@pytest.mark.parametrize("spoil", [lambda c: c[:100], lambda c: b"", lambda c: c[:-1] + b"\x00\x01", lambda c: c[::-1]])
def test_what_is_no_field_or_contribution(spoil):
    for content, read in [
        (local_as_bytes(local_of()), local_from_bytes),
        (contribution_as_bytes(bake(local_of(), np.eye(3, 4), VOXEL)), contribution_from_bytes),
    ]:
        with pytest.raises(UserError, match="send it again") as told:
            read(spoil(content))
        assert "\n" not in str(told.value)


def test_fields_that_lie_about_themselves():
    local = local_of()
    wrong = local._replace(field=HashGrid(levels=4, log2_rows=40, coarsest=4, finest=16, width=8, latent=3))
    with pytest.raises(UserError, match="weights are not those"):
        local_from_bytes(local_as_bytes(wrong))
    bad = local._replace(params={**local.params, "table": local.params["table"] * float("nan")})
    with pytest.raises(UserError, match="not finite"):
        local_from_bytes(local_as_bytes(bad))
    with pytest.raises(UserError, match="pose"):
        bake(local, np.full((3, 4), np.nan), VOXEL)
    with pytest.raises(UserError, match="8000 voxels"):
        cells_of(Frame((0.0, 0.0, 0.0), 1000.0), 0.25)
