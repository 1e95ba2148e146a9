"""Every kernel beside its twin, values and derivatives, and against double precision."""

import pytest
import torch

from fedfields.kernels import sine
from fedfields.kernels.sine import plain


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_sine_on_a_gpu_is_the_twin():
    x = points().cuda()
    assert torch.equal(sine(x, 30.0), plain(x, 30.0))
