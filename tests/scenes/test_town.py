"""The town: depth against the surfaces themselves, light against the sun, and who has which photographs."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fedfields.config import choose, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.runtime.remote import set_up_remote
from fedfields.scenes.town import Town, gimbal
from fedfields.scenes.townscape import CELL, photograph

SMALL = Town(photos=40, clients=5, least=4, most=9, width=16, height=12, tests=3)


@pytest.fixture(scope="module")
def scene():
    return SMALL.scene(0)


@pytest.fixture(scope="module")
def place():
    return SMALL.load()


def rays_down(count=4000, seed=0):
    random = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 3, generator=random, dtype=torch.float64) * torch.tensor([190.0, 190, 20]) - 95
    start[:, 2] += 170
    way = torch.randn(count, 3, generator=random, dtype=torch.float64) * torch.tensor([0.5, 0.5, 0.3])
    way[:, 2] = -way[:, 2].abs() - 0.4
    return start, normalize(way, dim=1)


def heights_at(scene, points):
    """Of the terrain, by numpy: bilinear between the corners."""
    u, v = ((points[:, k] + scene.half) / CELL for k in (0, 1))
    i, j = (each.astype(int).clip(0, len(scene.heights) - 2) for each in (u, v))
    u, v, h = u - i, v - j, scene.heights
    low, high = (1 - u) * h[i, j] + u * h[i + 1, j], (1 - u) * h[i, j + 1] + u * h[i + 1, j + 1]
    return low * (1 - v) + high * v


def inside_of(scene, points):
    """How deep points lie in the nearest thing, by brute force over all of them: negative outside."""
    houses = (scene.planes[..., 3] - np.einsum("hpk,nk->nhp", scene.planes[..., :3], points)).min(2).max(1)
    away = (points[:, None] - scene.crowns[:, :3]) / scene.crowns[:, [3, 3, 4]]
    crowns = (1 - np.sqrt((away**2).sum(2))).max(1)
    return np.maximum(heights_at(scene, points) - points[:, 2], np.maximum(houses, crowns))


def test_rays_end_on_the_first_surface_and_nothing_is_in_their_way(scene):
    origins, directions = rays_down(600)
    _, depth = photograph(scene, origins, directions)
    hit = depth.isfinite()
    assert 0.3 < hit.double().mean() < 1  # Some leave the town.
    start, way, far = (leaf[hit].numpy() for leaf in (origins, directions, depth[:, None]))
    assert np.abs(inside_of(scene, start + far * way)).max() < 1e-6
    for share in np.linspace(0.01, 0.999, 60):
        assert inside_of(scene, start + share * far * way).max() < 1e-6
    assert (inside_of(scene, start + (far + 0.01) * way) > 0).mean() > 0.99  # But where an edge is grazed.


def test_rays_that_miss_the_town_see_white(scene):
    origins = torch.tensor([[0.0, 0, 100], [500, 0, 50], [0, 0, 100]]).double()
    directions = normalize(torch.tensor([[0.0, 0, 1], [1, 0, -0.1], [1, 0, -0.05]]).double(), dim=1)
    colour, depth = photograph(scene, origins, directions)
    assert (colour == 1).all() and depth.isinf().all()


def test_straight_down_is_the_height_of_the_terrain(scene):
    x = torch.linspace(-99, 99, 800).double()
    origins = torch.stack([x, 0.3 * x, torch.full_like(x, 500.0)], 1)
    _, depth = photograph(scene, origins, torch.tensor([0.0, 0, -1]).double().expand_as(origins))
    above = 500 - depth.numpy() - heights_at(scene, origins.numpy())
    assert above.min() > -1e-9 and (above < 1e-9).mean() > 0.5 and above.max() > 2  # Ground, and roofs on it.


def test_shadows_lie_where_the_sun_is_hidden(scene):
    """A level roof or street is darker, by the same factor, where a ray towards the sun meets something."""
    origins, directions = rays_down(3000, seed=3)
    colour, depth = photograph(scene, origins, directions)
    hit = depth.isfinite()
    colour, points = colour[hit], origins[hit] + depth[hit, None] * directions[hit]
    ground = np.flatnonzero(np.abs(heights_at(scene, points.numpy()) - points.numpy()[:, 2]) < 1e-6)
    sun = normalize(torch.tensor([[0.4332, -0.5295, 0.7294]]).double(), dim=1).expand(len(ground), 3)
    _, blocked = photograph(scene, points[ground] + torch.tensor([0, 0, 0.02]), sun)
    shaded, lit = (colour[ground][mask].mean() for mask in (blocked.isfinite(), blocked.isinf()))
    assert blocked.isfinite().sum() > 30 and shaded < 0.7 * lit


def test_no_two_places_look_alike(scene):
    """Straight down on a lattice of 40 m, pictures of 24 m: the most alike pair still differs."""
    places = torch.cartesian_prod(*[torch.arange(-80.0, 81, 40)] * 2).double()
    offsets = torch.cartesian_prod(*[torch.arange(-12.0, 12, 1.5)] * 2).double()
    level = (places[:, None] + offsets).reshape(-1, 2)
    origins = torch.cat([level, torch.full_like(level[:, :1], 90)], 1)
    colour, _ = photograph(scene, origins, torch.tensor([0.0, 0, -1]).double().expand_as(origins))
    flat = colour.view(len(places), -1)
    flat = normalize(flat - flat.mean(1, keepdim=True), dim=1)
    assert (flat @ flat.T - 2 * torch.eye(len(flat))).max() < 0.8


def test_the_same_seed_is_the_same_town_and_another_is_not():
    poses = SMALL.flight(3, 0, "train")
    again = SMALL.shoot(poses, 0)
    assert torch.equal(SMALL.shoot(poses, 0).colours, again.colours) and torch.equal(poses, SMALL.flight(3, 0, "train"))
    assert not torch.equal(SMALL.shoot(poses, 1).colours, again.colours)
    assert not torch.equal(SMALL.flight(3, 1, "train"), poses)


def test_a_small_town_may_have_no_house():
    town = Town(60, photos=1, least=1, most=1, width=4, height=3)
    assert len(town.scene(0).planes) == 0
    shots = town.shoot(town.flight(1, 0), 0)
    assert shots.depth.min() > 20 and shots.colours.float().std() > 1


def test_threads_do_not_change_a_pixel():
    poses = SMALL.flight(20, 0, "train")
    one = SMALL.shoot(poses, 0)
    torch.set_num_threads(3)
    three = SMALL.shoot(poses, 0)
    torch.set_num_threads(1)
    assert torch.equal(one.colours, three.colours) and torch.equal(one.depth, three.depth)


def test_gimbal_angles():
    """Due north, level; and straight down with east upwards in the picture."""
    places = torch.tensor([[1.0, 2, 3]] * 2).double()
    poses = gimbal(places, torch.tensor([0.5, 0.0]).double() * math.pi, torch.tensor([0.0, -0.5]).double() * math.pi)
    assert torch.allclose(-poses[0, :, 2], torch.tensor([0.0, 1, 0]).double(), atol=1e-12)
    assert torch.allclose(poses[0, :, :2].T, torch.tensor([[1.0, 0, 0], [0, 0, 1]]).double(), atol=1e-12)
    assert torch.allclose(-poses[1, :, 2], torch.tensor([0.0, 0, -1]).double(), atol=1e-12)
    assert torch.allclose(poses[1, :, :2].T, torch.tensor([[0.0, -1, 0], [1, 0, 0]]).double(), atol=1e-12)
    assert torch.allclose(torch.linalg.det(poses[:, :, :3]), torch.ones(2).double())


def test_drones_keep_their_height_and_stay_over_the_town():
    poses = Town(photos=300).flight(300, 0, "train")
    assert poses[:, :2, 3].abs().max() <= 96 and poses[:, 2, 3].min() >= 60 and poses[:, 2, 3].max() <= 120
    assert poses[:, :2, 3].std(0).min() > 30


def test_clients_have_the_photographs_nearest_to_one_of_them(place):
    poses = SMALL.flight(SMALL.photos, 0, "train")
    shares = SMALL.shares(poses, 0)
    assert len(shares) == 5 == len(place.clients) and all(4 <= len(mine) <= 9 for mine in shares)
    for mine, client in zip(shares, place.clients, strict=True):
        away = torch.cdist(poses[:, :, 3], poses[:, :, 3])
        others = [j for j in range(40) if j not in mine]
        assert any(away[i, mine].max() <= away[i, others].min() for i in mine)
        signal = client.train[0].support
        assert [photo.name for photo in signal.photos] == [f"photo {i}" for i in mine]
        metres = torch.stack([photo.pose[:, 3] for photo in signal.photos]) * place.frame.half
        assert torch.allclose(metres.double(), poses[mine][:, :, 3], atol=1e-4)


def test_who_shares_what(place):
    pooled, alone = (Town(**{**vars(SMALL), "sharing": how}).load() for how in ("pooled", "alone"))
    names = {photo.name for client in place.clients for photo in client.train[0].support.photos}
    assert [{photo.name for photo in client.train[0].support.photos} for client in pooled.clients] == [names]
    assert len(alone.clients) == 1 and len(place.tests) == 3
    assert torch.equal(
        alone.clients[0].train[0].support.photos[0].colours, place.clients[0].train[0].support.photos[0].colours
    )


def test_the_town_is_data_like_any_other():
    there = choose(preset("fedavg-ngp"), "data", "town")
    assert there.data == Town() and from_json(json.loads(json.dumps(to_json(there)))) == there
    with pytest.raises(UserError, match="the town is made up for simulations"):
        set_up_remote(there, ["a"], None)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"extent": 10.0}, "between 50 and 5000"),
        ({"clients": 0}, "at least 1"),
        ({"least": 30, "most": 20}, "at least 1, and at most all"),
        ({"photos": 10}, "at most all"),
        ({"lowest": 5.0}, "30 m"),
        ({"sharing": "nobody"}, "sharing"),
    ],
)
def test_impossible_towns_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Town(**wrong)
