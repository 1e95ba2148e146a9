"""Made-up objects: their pictures against a ball photographed elsewhere, by hand, and by brute force."""

import math

import pytest
import torch

from fedfields.rendering.cameras import Camera, rays
from fedfields.scenes.objects import Objects
from fedfields.scenes.solids import AMBIENT, LIGHT, Solids, SolidsSignal, look_at, random_solids
from fedfields.scenes.tour import Tour
from fedfields.seeds import generator
from tests.scenes.ball import pixels_of, write_capture


def one(axes, box, centre=(0.0, 0.0, 0.0)):
    return Solids(
        torch.tensor([centre]),
        torch.as_tensor(axes)[None].float(),
        torch.tensor([box]),
        torch.tensor([[0.2, 0.4, 0.6]]),
    )


def test_a_ball_covers_the_pixels_of_a_ball():
    pose, camera = Tour(radius=4.0).pose(0.7, elevation=0.4), Camera("pinhole", 40, 40, 45.0, 45.0, 20.0, 20.0)
    origins, directions = rays(camera, pose, camera.pixels())
    radius = 0.8
    seen = look_at(one(torch.eye(3) / radius, False), origins.float(), directions.float())
    wanted = pixels_of(pose, camera, radius)[..., 3].flatten() > 0
    assert torch.equal((seen != 1).any(1), wanted) and 100 < int(wanted.sum()) < 1500


def test_a_box_seen_from_above_is_as_bright_as_lambert_says():
    down = torch.tensor([[0.0, 0.0, -1.0]]).expand(3, 3)
    starts = torch.tensor([[0.0, 0.0, 3.0], [0.49, -0.24, 3.0], [0.51, 0.0, 3.0]])
    seen = look_at(one(torch.diag(torch.tensor([2.0, 4.0, 1.0])), True), starts, down)
    shade = AMBIENT + (1 - AMBIENT) * LIGHT[2] / math.dist((0, 0, 0), LIGHT)
    torch.testing.assert_close(seen[0], shade * torch.tensor([0.2, 0.4, 0.6]))
    assert torch.equal(seen[1], seen[0]) and torch.equal(seen[2], torch.ones(3))


def test_the_nearest_part_hides_the_others():
    two = Solids(
        torch.tensor([[0.0, 0.0, -0.5], [0.0, 0.0, 0.5]]),
        torch.eye(3).expand(2, 3, 3) * 4,
        torch.tensor([False, True]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    )
    up, down = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    assert look_at(two, -3 * up, up)[0, 1] == 0 and look_at(two, 3 * up, down)[0, 0] == 0
    behind = look_at(two, torch.tensor([[0.0, 0.0, 3.0]]), up)
    assert torch.equal(behind, torch.ones(1, 3))


@pytest.mark.parametrize("seed", range(10))
def test_random_solids_lie_within_the_cube(seed):
    """Rays that miss the cube see white, and a membership test on a grid finds nothing outside."""
    solids = random_solids(generator(seed))
    points = 2.4 * torch.rand(20000, 3, generator=generator(seed, "p")) - 1.2
    inner = ((points[:, None] - solids.centres)[:, :, None] * solids.axes).sum(-1)
    size = torch.where(solids.boxes, inner.abs().amax(-1), inner.norm(dim=-1))
    inside = (size <= 1).any(1)
    assert not bool((inside & (points.abs().amax(1) > 1 + 1e-5)).any()) and bool(inside.any())


def test_sources_are_drawn_anew_and_repeat_with_their_seed(tmp_path):
    for name in ("a", "b", "c"):
        write_capture(tmp_path / name, size=8, train=2, test=1)
    task = Objects(path=tmp_path, size=0, half=1.5).load(0, 2).clients[0].train[0]
    source = SolidsSignal(task.support)
    first, again, other = (source.realise(generator(seed)).values for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == task.support.values.shape and float(first.min()) >= 0 and float(first.max()) <= 1
    with pytest.raises(ValueError, match="realise"):
        source.everything()
