"""A shared field with an own part beside it: what a ray sees of both, and what never leaves the owner."""

import dataclasses
import math

import pytest
import torch

from fedfields import tree
from fedfields.fields import CoarseFine, HashGrid, Joint, Nerf, Personal
from fedfields.fields.hashgrid import harmonics
from fedfields.fields.personal import OWN, TRANSIENT, together
from fedfields.kernels.hashing import hash_encode
from fedfields.losses import CODES, MarchedLoss, RadianceLoss
from fedfields.rendering.compositing import composite
from fedfields.rendering.marching import Marching, march_rays
from fedfields.rendering.rays import RenderSettings, march
from fedfields.scenes.views import in_cube
from fedfields.types import Batch

GRID = HashGrid(levels=2, log2_rows=6, coarsest=4, finest=8, width=8)
SMALL = Personal(field=HashGrid(levels=2, log2_rows=5, coarsest=2, finest=4, width=8))
JOINT = Joint(GRID, SMALL)
WILD = Joint(dataclasses.replace(GRID, appearance=3), dataclasses.replace(SMALL, codes=2, beta=0.1, weight=0.01))
"""All of NeRF-W: appearance and transient codes, uncertainty."""

MARCHED, DENSE = Marching(steps=60, cells=4), RenderSettings(samples=30)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=50):
    random = seeded(1)
    positions = 2 * torch.rand(count, 3, generator=random) - 1
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    return positions, directions


def weights(joint=JOINT, photos=3, seed=2):
    """Of both parts, and codes of three photographs: larger than new ones, and features as large as codes."""
    own = joint.own(photos, seeded(seed))
    if joint.appearance:
        own |= {CODES: 0.3 * torch.randn(photos, joint.appearance, generator=seeded(4))}
    scale = {"table": 10_000, f"{OWN}table": 10_000}
    return {key: scale.get(key, 3) * leaf for key, leaf in (joint.init(seeded()) | own).items()}


def batch_of(count=20, dtype=torch.float64):
    """Rays through the cube, of three photographs, and colours."""
    random = seeded(5)
    rays = in_cube(1.5 * points(count)[1], torch.randn(count, 3, generator=random) * 0.2 - points(count)[1])
    rays = rays._replace(jitter=torch.rand(count, DENSE.samples, generator=random))
    rays = type(rays)(*(None if part is None else part.to(dtype) for part in rays))
    photo = torch.arange(count) % 3
    return Batch(rays._replace(photo=photo), torch.rand(count, 3, generator=random).to(dtype))


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


def test_a_transient_code_is_an_input_of_the_own_part_s_density_network():
    """Written out with features and code side by side; the colour reads what that network says."""
    mine = {key.removeprefix(OWN): leaf for key, leaf in weights(WILD).items() if key.startswith(OWN)}
    positions, directions = points()
    codes = torch.randn(len(positions), 2, generator=seeded(6))
    inputs = torch.cat([hash_encode((positions + 1) / 2, mine["table"], SMALL.field.cells), codes], 1)
    first = torch.cat([mine["density.0.weight"], mine["transient.weight"]], 1)
    latents = (inputs @ first.T).relu() @ mine["density.1.weight"].T
    hidden = (latents @ mine["colour.0.weight"].T).relu()
    shades = (hidden @ mine["colour.1.weight"].T).view(-1, 3, 9) @ harmonics(directions)[..., None]
    wanted = (
        25 * torch.nn.functional.softplus(latents[:, 0] - 4),
        shades[..., 0].sigmoid(),
        torch.nn.functional.softplus(latents @ mine["beta.weight"][0]),
    )
    found = WILD.personal.seen(mine, positions, directions, codes)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    other = WILD.personal.seen(mine, positions, directions, -codes)
    assert all(float((one - two).abs().max()) > 1e-3 for one, two in zip(found, other, strict=True))


def test_each_part_reads_its_own_codes_of_a_photograph():
    """Appearance before the transient code; a coarse half is of the shared part alone."""
    params, codes = weights(WILD), torch.randn(50, 5, generator=seeded(6))
    shared = {key: leaf for key, leaf in params.items() if not key.startswith("own.")}
    mine = {key.removeprefix(OWN): leaf for key, leaf in params.items() if key.startswith(OWN)}
    s, c = WILD.field(shared, *points(), codes[:, :3])
    t, d, beta = WILD.personal.seen(mine, *points(), codes[:, 3:])
    parts = WILD.parts(params, *points(), codes)
    torch.testing.assert_close(parts.density, s + t)
    torch.testing.assert_close(parts.colour, (s[:, None] * c + t[:, None] * d) / (s + t)[:, None])
    torch.testing.assert_close(parts.doubt, beta * t / (s + t))
    pair = Joint(CoarseFine(Nerf(width=8, depth=2, appearance=3)), WILD.personal)
    theirs = pair.init(seeded())
    assert torch.equal(pair.coarse(theirs, *points(), codes)[1], pair.field.coarse(theirs, *points(), codes[:, :3])[1])


def test_the_occupancy_grid_knows_what_is_in_one_photograph_alone():
    """Its density is the largest of all photographs', so that nobody's people are in cells that count as empty."""
    params, (positions, directions) = weights(WILD), points()
    codes = torch.cat([params[CODES], params[TRANSIENT]], 1)
    by_photo = [WILD.parts(params, positions, directions, code.expand(50, 5)) for code in codes]
    densities = torch.stack([parts.density for parts in by_photo])
    assert len(densities.argmax(0).unique()) > 1
    torch.testing.assert_close(WILD.density(params, positions), densities.amax(0))
    coded = Joint(GRID, dataclasses.replace(SMALL, codes=1))
    params = coded.init(seeded()) | {key: torch.zeros_like(leaf) for key, leaf in coded.own(3, seeded()).items()}
    params |= {f"{OWN}transient.weight": torch.ones(8, 1), f"{OWN}density.1.weight": torch.ones(16, 8)}
    empty, _ = MarchedLoss(coded, MARCHED).refreshed(params, {}, seeded())
    params[TRANSIENT] = torch.tensor([[0.0], [2.0], [0.0]])  # Fog of raw density 16, in the second photograph alone.
    full, _ = MarchedLoss(coded, MARCHED).refreshed(params, {}, seeded())
    assert empty.densities is not None and float(empty.densities.max()) < 2
    assert full.densities is not None and float(full.densities.min()) == pytest.approx(25 * 12, rel=0.01)


@pytest.mark.parametrize("loss", [MarchedLoss(JOINT, MARCHED), RadianceLoss(JOINT, DENSE)], ids=["marched", "dense"])
def test_one_client_with_the_photographs_of_many_owners_has_a_part_for_each(loss):
    """A batch of one owner's is the loss of this owner's client, and says nothing of the others' parts."""
    shared = {key: leaf for key, leaf in weights().items() if not key.startswith(OWN)}
    mine = [weights(seed=10 + i) for i in range(3)]
    mine = [{key: leaf for key, leaf in part.items() if key.startswith(OWN)} for part in mine]
    grouped = {key: leaf.requires_grad_() for key, leaf in together(mine).items()}
    for i, part in enumerate(mine):
        batch = batch_of(dtype=torch.float32)
        batch = batch._replace(inputs=batch.inputs._replace(owner=torch.full((20,), i)))
        found, wanted = loss(shared | grouped, batch), loss(shared | part, batch_of(dtype=torch.float32))
        assert torch.equal(found, wanted)
        for grad in torch.autograd.grad(found, list(grouped.values())):
            assert float(grad[i].abs().max()) > 0
            assert float(grad[torch.arange(3) != i].abs().max()) == 0
    alone = torch.stack([JOINT.density(shared | part, points()[0]) for part in mine])
    assert torch.equal(JOINT.density(shared | grouped, points()[0]), alone.amax(0))


class Fog:
    """A shared part of one density and colour everywhere."""

    def __call__(self, params, positions, directions):
        return positions.new_full((len(positions),), 0.3), positions.new_tensor([0.2, 0.5, 0.9]).expand_as(positions)


def fogs(raw, beta):
    """Fog before fog: an own part that says the same everywhere, as only its code is read; float64."""
    personal = dataclasses.replace(SMALL, codes=1, beta=0.1, weight=0.01)
    params = {key: torch.zeros_like(leaf) for key, leaf in personal.init(seeded()).items()}
    params |= {f"{OWN}transient.weight": torch.eye(8, 1), TRANSIENT: torch.tensor([[1.0]]).expand(3, 1)}
    params[f"{OWN}density.1.weight"][0, 0], params[f"{OWN}density.1.weight"][1, 0] = raw, 1.0
    params[f"{OWN}beta.weight"][0, 1] = beta
    return Joint(Fog(), personal), tree.to(params, torch.float64)


@pytest.mark.parametrize("loss", [MarchedLoss, RadianceLoss])
def test_the_loss_of_a_ray_through_two_fogs_has_a_closed_form(loss):
    """Own colours are grey, sigmoid(0). Uncertain is the own fog's share of what the ray shows, times softplus(0.7);
    the error is torch's Gaussian likelihood, whose variance is beta^2."""
    joint, params = fogs(1.5, 0.7)
    batch = batch_of()
    settings = Marching(steps=20_000, samples=10**6, cells=2) if loss is MarchedLoss else DENSE
    s, t = 0.3, 25 * math.log1p(math.exp(1.5 - 4))
    covered = -torch.expm1(-(s + t) * (batch.inputs.far - batch.inputs.near))[:, None]
    colour = (s * torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) + t * 0.5) / (s + t)
    beta = 0.1 + t / (s + t) * math.log1p(math.exp(0.7)) * covered
    seen = colour * covered + 1 - covered
    likelihood = torch.nn.GaussianNLLLoss()(seen, batch.targets, beta.square().expand_as(seen))
    wanted = float(likelihood) - math.log(0.1) + 0.01 * t
    found = float(loss(joint, settings)(params, batch))
    assert found == pytest.approx(wanted, rel=2e-3 if loss is MarchedLoss else 1e-6)


@pytest.mark.parametrize("loss", [MarchedLoss(WILD, MARCHED), RadianceLoss(WILD, DENSE)], ids=["marched", "dense"])
def test_derivatives_are_those_of_finite_differences(loss):
    """By every leaf, in float64."""
    params, batch = tree.to(weights(WILD), torch.float64), batch_of()
    leaves = {key: leaf.requires_grad_() for key, leaf in params.items()}
    grads = torch.autograd.grad(loss(leaves, batch), list(leaves.values()))
    for (key, leaf), grad in zip(params.items(), grads, strict=True):
        way = leaf.detach().abs().mean() * torch.randn(leaf.shape, generator=seeded(7), dtype=torch.float64)
        with torch.no_grad():
            up, down = (float(loss(params | {key: leaf + sign * 1e-6 * way}, batch)) for sign in (1, -1))
        assert float((grad * way).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6), key
        assert float(grad.abs().max()) > 0, key


@pytest.mark.parametrize("kind, settings", [(MarchedLoss, MARCHED), (RadianceLoss, DENSE)])
def test_a_certain_own_part_leaves_the_squared_error(kind, settings):
    """With beta_min = 1 and nothing added to it, half of the mean squared error; without it, all, and the penalty."""
    batch, params = batch_of(dtype=torch.float32), weights()
    shared = {key: leaf for key, leaf in params.items() if not key.startswith(OWN)}
    sure = dataclasses.replace(JOINT, personal=dataclasses.replace(SMALL, beta=1.0))
    plain = kind(GRID, settings)(shared, batch)
    assert float(kind(sure, settings)(shared, batch)) == pytest.approx(float(plain) / 2, rel=1e-6)
    asked = []

    def joint(*at):
        asked.append(at)
        return JOINT(params, *at)

    if kind is MarchedLoss:
        seen, _ = march_rays(joint, batch.inputs, settings, torch.ones(4, 4, 4, dtype=torch.bool))
    else:
        seen = march(joint, batch.inputs, settings)
    penalty = SMALL.weight * JOINT.parts(params, *asked[0]).own.mean()
    assert torch.equal(kind(JOINT, settings)(params, batch), (seen.colour - batch.targets).square().mean() + penalty)


def test_a_coarse_half_counts_half_beside_an_uncertain_one():
    pair = CoarseFine(Nerf(width=8, depth=2, octaves=2, direction_octaves=1))
    settings, params, batch = RenderSettings(samples=15, fine=15), pair.init(seeded()), batch_of(dtype=torch.float32)
    sure = Joint(pair, dataclasses.replace(SMALL, beta=1.0))
    plain = float(RadianceLoss(pair, settings)(params, batch))
    assert float(RadianceLoss(sure, settings)(params, batch)) == pytest.approx(plain / 2, rel=1e-6)


@pytest.mark.parametrize("bad", [{"weight": -1.0}, {"after": 1.0}, {"codes": -1}, {"beta": -0.1}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Personal(**bad)
