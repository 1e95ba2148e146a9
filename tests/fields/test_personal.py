"""A shared field with an own part beside it: what a ray sees of both, and what never leaves the owner."""

import dataclasses

import pytest
import torch

from fedfields.fields import HashGrid, Joint, Personal
from fedfields.fields.personal import OWN
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.rendering.compositing import composite

GRID = HashGrid(levels=2, log2_rows=6, coarsest=4, finest=8, width=8)
SMALL = Personal(field=HashGrid(levels=2, log2_rows=5, coarsest=2, finest=4, width=8))
JOINT = Joint(GRID, SMALL)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=50):
    random = seeded(1)
    positions = 2 * torch.rand(count, 3, generator=random) - 1
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    return positions, directions


def weights():
    return {key: 10 * leaf for key, leaf in (JOINT.init(seeded()) | SMALL.init(seeded(2))).items()}


def test_without_an_own_part_it_is_the_shared_field():
    shared = JOINT.init(seeded())
    for mine, theirs in zip(JOINT(shared, *points()), GRID(shared, *points()), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(JOINT.density(shared, points()[0]), GRID.density(shared, points()[0]))


def test_along_a_ray_both_absorb_and_both_emit():
    """NeRF-W's eq. 8 with its two alphas, in float64, for short steps."""
    params = {key: leaf.double() for key, leaf in weights().items()}
    shared = {key: leaf for key, leaf in params.items() if not key.startswith(OWN)}
    mine = {key.removeprefix(OWN): leaf for key, leaf in params.items() if key.startswith(OWN)}
    count = 20_000
    at = torch.linspace(-0.9, 0.9, count, dtype=torch.float64)
    positions = torch.stack([at, 0.3 * at, 0.1 - at], 1)
    directions = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(count, 3)
    delta = 1.8 / count
    s, c = GRID(shared, positions, directions)
    t, d = SMALL.field(mine, positions, directions)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), ((s + t) * delta).cumsum(0)[:-1]])
    seen = (
        (-before).exp()[:, None] * ((1 - (-s * delta).exp())[:, None] * c + (1 - (-t * delta).exp())[:, None] * d)
    ).sum(0)
    density, colour = JOINT(params, positions, directions)
    starts = (torch.arange(count, dtype=torch.float64) * delta)[None]
    found = composite(density[None], colour[None], starts, starts + delta, "black").colour[0]
    torch.testing.assert_close(found, seen, rtol=1e-4, atol=1e-5)


def test_it_joins_when_a_share_of_the_run_is_over():
    late = dataclasses.replace(JOINT, personal=dataclasses.replace(SMALL, after=0.25))
    assert late.at(0.2).own(3, seeded()) == {} and late.at(0.25).own(3, seeded()).keys() == SMALL.init(seeded()).keys()
    for loss in (MarchedLoss(late), RadianceLoss(late)):
        assert not loss.at(0.0).field.joined and loss.at(0.5).field.joined
    assert MarchedLoss(GRID).at(0.5).field is GRID


@pytest.mark.parametrize("bad", [{"weight": -1.0}, {"after": 1.0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Personal(**bad)
