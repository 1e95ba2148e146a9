"""Every kernel beside its twin, values and derivatives, and against double precision."""

import math

import pytest
import torch

from fedfields.kernels import hashing, packed, sine, voxels
from fedfields.kernels.sine import plain
from fedfields.rendering import compositing


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    """Kernels share their work among as many threads as torch has."""
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def points(scale: float = 1.0, count: int = 999) -> torch.Tensor:
    return scale * torch.randn(3, count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("w0", [1.0, 30.0, -2.5])
def test_sine_is_exact_to_the_last_digits(scale, w0):
    x = points(scale)
    truth = (w0 * x.double()).sin()
    assert (sine(x, w0) - truth).abs().max() < 2e-7


def derivatives(function, x, order):
    """All derivatives up to ``order`` , each summed with weights that vary."""
    found, value = [], function(x)
    for k in range(order):
        (value,) = torch.autograd.grad((value * (1 + k + x.detach().cos())).sum(), x, create_graph=True)
        found.append(value)
    return found


def test_sine_has_the_derivatives_of_its_twin_up_to_the_fourth():
    x = points().requires_grad_()
    exact = points().double().requires_grad_()
    for k, (ours, twin) in enumerate(
        zip(derivatives(lambda v: sine(v, 3.0), x, 4), derivatives(lambda v: plain(v, 3.0), exact, 4), strict=True)
    ):
        assert (ours - twin).abs().max() < 1e-5 * twin.abs().max(), f"derivative {k + 1}"


def test_sine_of_doubles_is_the_twin():
    x = points().double()
    assert torch.equal(sine(x, 30.0), (30.0 * x).sin())
    assert torch.autograd.gradcheck(lambda v: sine(v, 2.0), x[:, :5].clone().requires_grad_())


def test_sine_of_a_view_and_of_nothing():
    x = points()
    assert torch.equal(sine(x.T, 2.0), sine(x.T.contiguous(), 2.0))
    assert sine(x[:0], 2.0).shape == (0, 999)


def test_sine_of_what_is_not_finite_is_not_a_number():
    assert sine(torch.tensor([float("inf"), float("nan")]), 1.0).isnan().all()


def table_of(levels=4, log2_rows=10, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(levels, 2**log2_rows, 2, generator=random, dtype=torch.float64).to(dtype)


CELLS = hashing.resolutions(4, 4, 37)
"""The first level's 125 corners fit into 1024 rows; the last ones are hashed."""


def cube(count=500, dtype=torch.float32):
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[0], points[1], points[2] = 0.0, 1.0, torch.tensor([0.5, 1.0, 0.25])
    return points.to(dtype)


def test_resolutions_grow_geometrically():
    assert hashing.resolutions(5, 16, 256) == [16, 32, 64, 128, 256]
    assert hashing.resolutions(1, 7, 100) == [7]


def test_hash_encoding_is_its_twin(threads):
    points, table = cube(5000), table_of()
    ours = hashing.hash_encode(points, table, CELLS)
    twin = hashing.plain(points.double(), table.double(), CELLS)
    assert ours.shape == (5000, 8) and (ours - twin).abs().max() < 2e-5


def test_hash_gradients_are_those_of_the_twin_to_the_second_order(threads):

    def gradients(function, points, table):
        table = table.clone().requires_grad_()
        features = function(points, table, CELLS)
        (first,) = torch.autograd.grad((features**3).sum(), table, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), table)
        return first.detach(), second

    ours = gradients(hashing.hash_encode, cube(), table_of())
    twin = gradients(hashing.plain, cube(dtype=torch.float64), table_of(dtype=torch.float64))
    for a, b in zip(ours, twin, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_hash_gradients_are_the_same_on_any_number_of_threads():
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        table = table_of().requires_grad_()
        features = hashing.hash_encode(cube(5000), table, CELLS)
        found.append(torch.cat([features.flatten(), torch.autograd.grad((features**2).sum(), table)[0].flatten()]))
    torch.set_num_threads(1)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_hash_encoding_has_gradients_with_respect_to_points():
    points = cube(dtype=torch.float64)[3:20].requires_grad_()
    table = table_of(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: hashing.hash_encode(x, table, CELLS), points)


def test_a_level_that_fits_is_trilinear_interpolation():
    """Against torch's own sampler of dense volumes."""
    cells = 7
    table = table_of(1, 9)
    volume = table[0, : (cells + 1) ** 3].view(1, 8, 8, 8, 2).permute(0, 4, 1, 2, 3)
    points = cube()
    want = torch.nn.functional.grid_sample(volume, 2 * points.view(1, -1, 1, 1, 3) - 1, align_corners=True)
    assert torch.allclose(hashing.hash_encode(points, table, [cells]), want[0, :, :, 0, 0].T, atol=1e-5)


def test_points_outside_the_cube_are_on_its_border():
    inside, outside = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[-3.0, 1.5, 0.5]])
    for function in (hashing.hash_encode, hashing.plain):
        assert torch.equal(function(inside, table_of(), CELLS), function(outside, table_of(), CELLS))


def rays_of(count=300):
    random = torch.Generator().manual_seed(3)
    origins = torch.rand(count, 3, generator=random)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    directions[0] = torch.tensor([0.0, 0.0, -1.0])  # Along an axis: never leaves its cells sideways.
    far = torch.where(directions > 0, (1 - origins) / directions, -origins / directions)
    far = torch.where(directions == 0, torch.inf, far).amin(1)
    jitter = torch.rand(count, generator=random)
    occupied = torch.rand(16, 16, 16, generator=random) < 0.3
    return origins, directions, torch.zeros(count), far, jitter, occupied


def test_marching_is_its_twin(threads):
    rays = rays_of(600)
    ours, twin = packed.march(*rays, step=0.013), packed.march_plain(*rays, step=0.013)
    assert torch.equal(ours.offsets, twin.offsets) and torch.equal(ours.ray, twin.ray)
    assert torch.allclose(ours.middle, twin.middle, atol=1e-6) and len(ours.middle) > 1000


def test_marching_through_full_and_empty_space():
    origins, directions, near, far, jitter, occupied = rays_of()
    full = packed.march(origins, directions, near, far, jitter, torch.ones_like(occupied), 0.01)
    expected = ((far - near) / 0.01 - jitter).ceil().clamp_min(0).long()
    assert (full.offsets.diff() - expected).abs().max() <= 1  # The last sample may fall on the border.
    empty = packed.march(origins, directions, near, far, jitter, torch.zeros_like(occupied), 0.01)
    assert len(empty.middle) == 0 and empty.offsets.sum() == 0
    colour, opacity, depth, _ = packed.composite(torch.zeros(0), torch.zeros(0, 3), empty)
    assert colour.shape == (300, 3) and not opacity.any() and not depth.any()


def samples_of(dtype=torch.float64):
    random = torch.Generator().manual_seed(4)
    samples = packed.march_plain(*rays_of(), step=0.013)
    density = 40 * torch.rand(len(samples.ray), generator=random, dtype=torch.float64)
    colour = torch.rand(len(samples.ray), 3, generator=random, dtype=torch.float64)
    samples = samples._replace(middle=samples.middle.to(dtype), delta=samples.delta.to(dtype))
    return density.to(dtype), colour.to(dtype), samples


def test_compositing_is_its_twin_in_values_and_gradients(threads):
    found = []
    for dtype in (torch.float32, torch.float64):
        density, colour, samples = samples_of(dtype)
        density.requires_grad_(), colour.requires_grad_()
        rendered = packed.composite(density, colour, samples)
        weights = [1 + torch.arange(leaf.numel()).view(leaf.shape) % 7 for leaf in rendered]
        total = sum((leaf * weight).sum() for leaf, weight in zip(rendered, weights, strict=True))
        found.append([*rendered, *torch.autograd.grad(total, (density, colour))])
    for ours, twin in zip(*found, strict=True):
        assert (ours - twin).abs().max() < 1e-5 * twin.abs().max()


def test_compositing_a_slab_is_the_law_of_beer_and_lambert():
    """A homogeneous slab of density s and length L: opacity 1 - exp(-s L), whatever the samples."""
    for count in (1, 10, 100):
        delta = torch.full((count,), 2.0 / count)
        middle = (torch.arange(count) + 0.5) * delta
        samples = packed.Packed(torch.zeros(count, dtype=torch.int64), middle, delta, torch.tensor([0, count]))
        colour, opacity, depth, _ = packed.composite(torch.full((count,), 0.7), torch.full((count, 3), 0.25), samples)
        assert opacity.item() == pytest.approx(1 - math.exp(-1.4), rel=1e-6)
        assert colour[0, 0].item() == pytest.approx(0.25 * (1 - math.exp(-1.4)), rel=1e-6)
    exact = (1 - math.exp(-1.4) * (1 + 1.4)) / 0.7  # Integral of t s exp(-s t) from 0 to 2.
    assert depth.item() == pytest.approx(exact, rel=1e-3)


def test_the_distortion_of_packed_samples_is_equation_15(threads):
    """Against the double sum over all pairs of a ray, and against the one for dense rays, with gradients."""
    random = torch.Generator().manual_seed(6)
    edges = (0.05 + torch.rand(600, 12, generator=random, dtype=torch.float64)).cumsum(1)
    starts, ends = edges[:, :-1], edges[:, 1:]
    density = (2 * torch.rand(600, 11, generator=random, dtype=torch.float64)).requires_grad_()
    weights = compositing.weights_of(density, ends - starts)
    middle = (starts + ends) / 2
    pairs = (middle[:, :, None] - middle[:, None]).abs()
    exact = torch.einsum("ri,rj,rij->r", weights, weights, pairs) + (weights**2 * (ends - starts)).sum(1) / 3
    factor = torch.rand(600, generator=random, dtype=torch.float64)
    (slope,) = torch.autograd.grad((factor * exact).sum(), density, retain_graph=True)
    assert torch.allclose(compositing.distortion(weights, starts, ends), exact)
    ray, offsets = torch.arange(600).repeat_interleave(11), 11 * torch.arange(601)
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        samples = packed.Packed(ray, middle.flatten().to(dtype), (ends - starts).flatten().to(dtype), offsets)
        leaf = density.detach().flatten().to(dtype).requires_grad_()
        found = packed.composite(leaf, torch.zeros(len(ray), 3, dtype=dtype), samples).distortion
        (ours,) = torch.autograd.grad((factor.to(dtype) * found).sum(), leaf)
        assert (found - exact).abs().max() < close * exact.max()
        assert (ours - slope.flatten()).abs().max() < close * slope.abs().max()


def test_the_compiled_compositing_refuses_a_second_derivative():
    density, colour, samples = samples_of(torch.float32)
    density.requires_grad_()
    (first,) = torch.autograd.grad(packed.composite(density, colour, samples)[1].sum(), density, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), density)


SHAPES = [(9, 6, 7, 4), (5, 5, 5, 28), (8, 3, 2, 1), (1, 4, 1, 3)]
"""Voxels along each axis, and channels."""


def voxels_of(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def corners_and_outside(count=3000, dtype=torch.float32):
    """Random points, some of them far outside, and the corners of the cube."""
    points = cube(count, torch.float64)
    points[3:11] = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    points[11:500] = 5 * points[11:500] - 2
    return points.to(dtype)


def torch_sampled(grid, points):
    """Torch's own sampler, which counts axes from the last."""
    places = 2 * points.view(1, -1, 1, 1, 3) - 1
    volume = grid.permute(3, 2, 1, 0)[None]
    return torch.nn.functional.grid_sample(volume, places, align_corners=True, padding_mode="border")[0, :, :, 0, 0].T


@pytest.mark.parametrize("shape", SHAPES)
def test_voxels_are_sampled_and_scattered_as_torch_does(shape, threads):
    found = []
    for function, dtype in [(voxels.sample_voxels, torch.float32), (torch_sampled, torch.float64)]:
        grid = voxels_of(shape, dtype).requires_grad_()
        values = function(grid, corners_and_outside(dtype=dtype))
        found.append((values, torch.autograd.grad((values**2).sum(), grid)[0]))
    for ours, twin in zip(*found, strict=True):
        assert ours.shape == twin.shape and (ours - twin).abs().max() < 1e-5 * twin.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_voxel_gradients_are_those_of_the_twin_to_the_second_order(shape, threads):

    def gradients(function, dtype):
        grid = voxels_of(shape, dtype).requires_grad_()
        values = function(grid, corners_and_outside(dtype=dtype))
        (first,) = torch.autograd.grad((values**3).sum(), grid, create_graph=True)
        return values, first, torch.autograd.grad((first**2).sum(), grid)[0]

    ours, twin = gradients(voxels.sample_voxels, torch.float32), gradients(voxels.plain, torch.float64)
    for a, b in zip(ours, twin, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_voxel_gradients_are_the_same_on_any_number_of_threads():
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        grid = voxels_of((16, 8, 8, 5)).requires_grad_()
        values = voxels.sample_voxels(grid, cube(5000))
        found.append(torch.cat([values.flatten(), torch.autograd.grad(values.square().sum(), grid)[0].flatten()]))
    torch.set_num_threads(1)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_voxel_sampling_has_gradients_with_respect_to_points():
    points, grid = cube(dtype=torch.float64)[3:20].requires_grad_(), voxels_of((4, 5, 1, 2), torch.float64)
    assert torch.autograd.gradcheck(voxels.sample_voxels, (grid.requires_grad_(), points))
    single = points.detach().float().requires_grad_()
    (ours,) = torch.autograd.grad(voxels.sample_voxels(grid.detach().float(), single).sum(), single)
    (exact,) = torch.autograd.grad(voxels.plain(grid, points).sum(), points)
    assert torch.allclose(ours.double(), exact, atol=1e-4)


def test_voxels_on_corners_are_the_voxels():
    grid = voxels_of((3, 4, 5, 2))
    axes = [torch.linspace(0, 1, size) for size in grid.shape[:3]]
    assert torch.allclose(voxels.sample_voxels(grid, torch.cartesian_prod(*axes)).view(grid.shape), grid, atol=1e-5)
    assert torch.equal(voxels.sample_voxels(grid, torch.tensor([[-9.0, 7.0, 1.0]])), grid[:1, -1, -1])


def test_voxels_of_views_and_of_no_points():
    grid, points = voxels_of((5, 6, 7, 4)), cube().T.contiguous().T
    turned = grid.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    assert torch.equal(voxels.sample_voxels(turned, points), voxels.sample_voxels(grid, points.contiguous()))
    grid.requires_grad_()
    values = voxels.sample_voxels(grid, points[:0])
    assert values.shape == (0, 4) and not torch.autograd.grad(values.sum(), grid)[0].any()


def test_a_place_that_is_not_a_number_has_no_value():
    nowhere = torch.full((2, 3), torch.nan)
    assert voxels.sample_voxels(voxels_of((5, 5, 5, 3)), nowhere).isnan().all()
    assert hashing.hash_encode(nowhere, table_of(), CELLS).isnan().all()


@pytest.mark.parametrize("shapes", [((4, 4, 4), (5, 3)), ((4, 0, 4, 2), (5, 3)), ((4, 4, 4, 2), (5, 2))])
def test_voxels_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"must be \[X, Y, Z, C\] and \[N, 3\]"):
        voxels.sample_voxels(*map(torch.ones, shapes))
