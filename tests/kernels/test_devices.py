"""Kernels away from the CPU: there the twins run, with all their constants on the device of the arguments.

On a GPU they give what the kernels give on the CPU. The meta device has no values, but refuses to mix devices like any
other, so every machine notices a constant that stayed behind.
"""

import pytest
import torch

from fedfields.fields import HashGrid
from fedfields.kernels import hashing, packed, sine, voxels
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import RenderSettings
from fedfields.types import Batch
from tests.kernels.test_kernels import CELLS, cube, points, rays_of, samples_of, table_of, voxels_of
from tests.rendering.test_marching import rays_of as rays_into_the_cube

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GRID = HashGrid(levels=4, log2_rows=10, coarsest=4, finest=32, width=16, latent=7)


def composited(density, colour):
    samples = packed.Packed(*(leaf.to(density.device) for leaf in samples_of(torch.float32)[2]))
    return torch.cat([leaf.view(300, -1) for leaf in packed.composite(density, colour, samples)], 1)


KERNELS = {
    "sine": (lambda x: sine(x, 30.0), lambda: [points()]),
    "hash": (lambda table, x: hashing.hash_encode(x, table, CELLS), lambda: [table_of(), cube(5000)]),
    "voxels": (voxels.sample_voxels, lambda: [voxels_of((9, 6, 7, 4)), cube(5000)]),
    "compositing": (composited, lambda: list(samples_of(torch.float32)[:2])),
}
"""Function and its arguments, of which the first has a gradient."""


def value_and_gradient(function, arguments, device):
    first, *others = [leaf.to(device) for leaf in arguments]
    value = function(first.requires_grad_(), *others)
    return value, torch.autograd.grad(value.square().sum(), first)[0]


@gpu
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_same_on_a_gpu(name):
    function, make = KERNELS[name]
    for here, there in zip(*(value_and_gradient(function, make(), device) for device in ("cpu", "cuda")), strict=True):
        assert there.is_cuda and (here - there.cpu()).abs().max() < 1e-4 * here.abs().max()


@pytest.mark.parametrize("name", KERNELS)
def test_a_twin_leaves_nothing_on_the_cpu(name):
    function, make = KERNELS[name]
    for here, there in zip(*(value_and_gradient(function, make(), device) for device in ("cpu", "meta")), strict=True):
        assert there.is_meta and there.shape == here.shape and there.dtype == here.dtype


@gpu
def test_marching_gives_the_same_on_a_gpu():
    """But for samples that lie on the wall of a cell to the last digit."""
    here = packed.march(*rays_of(600), step=0.013)
    there = packed.march(*(leaf.cuda() for leaf in rays_of(600)), step=0.013)
    assert all(leaf.is_cuda for leaf in there)
    assert (here.offsets.diff() - there.offsets.diff().cpu()).abs().sum() <= 1e-3 * len(here.ray)
    assert (here.middle.sum() - there.middle.sum().cpu()).abs() < 2e-3 * here.middle.sum()


@gpu
@pytest.mark.parametrize("kind", ["marched", "dense"])
def test_a_loss_its_gradient_and_its_pictures_are_the_same_on_a_gpu(kind):
    """With a grid that looked at the field, drawn on the CPU for both."""
    found = []
    for device in ("cpu", "cuda"):
        params = {name: leaf.to(device) for name, leaf in GRID.init(torch.Generator().manual_seed(2)).items()}
        rays = type(rays_into_the_cube())(*(None if leaf is None else leaf.to(device) for leaf in rays_into_the_cube()))
        batch = Batch(rays, torch.zeros(len(rays.near), 3, device=device))
        loss = RadianceLoss(GRID, RenderSettings(samples=30, distortion=0.1))
        if kind == "marched":
            settings = Marching(steps=100, cells=8, distortion=0.1)
            loss, _ = MarchedLoss(GRID, settings).refreshed(params, {}, torch.Generator().manual_seed(3))
        leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
        value = loss(leaves, batch)
        found.append([value, *torch.autograd.grad(value, list(leaves.values())), *loss.render(params, rays)])
    for here, there in zip(*found, strict=True):
        assert there.is_cuda and (here - there.cpu()).abs().max() <= 1e-3 * here.abs().max() + 1e-6
