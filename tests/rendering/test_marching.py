"""Marched rays that stop where all is opaque, and the distortion as a term of training."""

import math

import pytest
import torch

from fedfields.fields import HashGrid
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.rendering.marching import TOGETHER, Marching, march_rays, view_rays
from fedfields.rendering.rays import Rays, RenderSettings
from fedfields.scenes.views import in_cube
from fedfields.types import Batch

GRID = HashGrid(levels=4, log2_rows=10, coarsest=4, finest=32, width=16, latent=7)
EVERYWHERE = torch.ones(8, 8, 8, dtype=torch.bool)


def rays_of(count=200):
    random = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1) * 2.5
    return in_cube(origins, torch.randn(count, 3, generator=random) * 0.2 - origins / 2.5)


def fog(positions, directions):
    """Thin on one side of the cube, and so thick on the other that half of a step hides everything."""
    density = (6 * positions[:, 0]).exp()
    return density, (0.5 + 0.5 * (9 * positions).sin()).clamp(0, 1)


class Counted:
    """A radiance field that remembers where it was asked."""

    def __init__(self, radiance):
        self.radiance, self.asked = radiance, []

    def __call__(self, positions, directions):
        self.asked.append(positions)
        return self.radiance(positions, directions)


@pytest.mark.parametrize("opaque", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("background", ["white", "black"])
def test_what_is_left_out_is_less_than_the_threshold(opaque, background):
    """It has at most the share ``opaque`` of colour and opacity, and of depth that times the distance."""
    counted, rays, marching = Counted(fog), rays_of(), Marching(steps=400, opaque=opaque, background=background)
    all_of_it, _ = march_rays(fog, rays, marching, EVERYWHERE)
    seen = view_rays(counted, rays, marching, EVERYWHERE)
    errors = [(a - b).abs() for a, b in zip(all_of_it, seen, strict=True)]
    assert errors[0].max() <= opaque + 1e-6 and errors[2].max() <= opaque + 1e-6
    assert (errors[1] <= opaque * rays.far + 1e-6).all()
    assert errors[2].max() > 0.01 * opaque
    whole = Counted(fog)
    march_rays(whole, rays, marching, EVERYWHERE)
    assert sum(map(len, counted.asked)) < 0.9 * sum(map(len, whole.asked))


def test_without_a_threshold_everything_is_looked_at():
    marching = Marching(steps=400, opaque=0.0)
    for a, b in zip(
        march_rays(fog, rays_of(), marching, EVERYWHERE)[0],
        view_rays(fog, rays_of(), marching, EVERYWHERE),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_nothing_is_asked_far_behind_a_wall():
    """A solid ball of radius 1/2: what begins a block of samples inside it is never reached."""

    def ball(positions, directions):
        return 1e4 * (positions.norm(dim=1) < 0.5), torch.ones_like(positions)

    counted, marching = Counted(ball), Marching(steps=512)
    origins = torch.tensor([[2.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    seen = view_rays(counted, in_cube(origins, -origins), marching, EVERYWHERE)
    assert torch.cat(counted.asked).norm(dim=1).min() > 0.5 - (TOGETHER + 1) * marching.step
    assert seen.opacity.tolist() == pytest.approx([1.0, 1.0])
    assert seen.depth.tolist() == pytest.approx([1.5, 1.5], abs=2 * marching.step)


def test_rays_that_meet_nothing_show_the_background():
    nothing = torch.zeros_like(EVERYWHERE)
    seen = view_rays(fog, rays_of(5), Marching(background=(0.1, 0.2, 0.3)), nothing)
    assert torch.allclose(seen.colour, torch.tensor([0.1, 0.2, 0.3]).expand(5, 3)) and not seen.opacity.any()
    misses = Rays(*(part[:0] for part in rays_of(5)[:4]))
    assert view_rays(fog, misses, Marching(), EVERYWHERE).colour.shape == (0, 3)


@pytest.mark.parametrize("name", ["opaque", "distortion"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        Marching(**{name: -1.0})
    if name == "distortion":
        with pytest.raises(ValueError, match="distortion is -1"):
            RenderSettings(distortion=-1.0)


def losses(weight):
    densities = torch.full((4, 4, 4), 100.0)
    yield MarchedLoss(GRID, Marching(steps=100, cells=4, distortion=weight), densities)
    yield RadianceLoss(GRID, RenderSettings(samples=30, distortion=weight))


def test_the_distortion_is_a_term_of_the_loss():
    batch = Batch(rays_of(50), torch.rand(50, 3, generator=torch.Generator().manual_seed(1)))
    params = GRID.init(torch.Generator().manual_seed(2))
    for without, with_it in zip(losses(0.0), losses(0.3), strict=True):
        mean = without.render(params, batch.inputs).distortion.mean()
        assert mean > 1e-3
        assert (with_it(params, batch) - without(params, batch)).item() == pytest.approx(0.3 * mean.item(), rel=1e-3)


def test_the_gloss_is_a_term_of_the_loss():
    """All positions have the same coefficients where all rows of the table are equal; they are found by hand."""
    batch = Batch(rays_of(50), torch.rand(50, 3, generator=torch.Generator().manual_seed(1)))
    params = GRID.init(torch.Generator().manual_seed(2))
    params["table"] = torch.ones_like(params["table"])  # The weights of the eight corners sum to one.
    features = torch.ones(1, 8) @ params["density.0.weight"].T
    latents = features.relu() @ params["density.1.weight"].T
    shades = ((latents @ params["colour.0.weight"].T).relu() @ params["colour.1.weight"].T).view(3, 9)
    plain, dear = (MarchedLoss(GRID, Marching(steps=100, cells=4), gloss=gloss)(params, batch) for gloss in (0.0, 3.0))
    assert (dear - plain).item() == pytest.approx(3 * float(shades[:, 1:].square().mean()), rel=1e-4)


def test_training_on_the_distortion_alone_gathers_what_is_spread():
    """Steps against its gradient make it fall, marched and dense."""
    batch = Batch(rays_of(50), torch.zeros(50, 3))
    for loss in losses(1e6):  # So much that the colours do not count.
        params = GRID.init(torch.Generator().manual_seed(2))
        values = []
        for _ in range(10):
            leaves = {name: value.requires_grad_() for name, value in params.items()}
            value = loss(leaves, batch)
            grads = torch.autograd.grad(value, list(leaves.values()))
            size = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
            params = {
                name: (leaf - 0.3 / size * grad).detach()
                for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
            }
            values.append(value.item())
        assert values[-1] < 0.8 * values[0]
