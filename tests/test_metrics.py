"""PSNR and SSIM against torchmetrics (as the official code uses it) and scikit-image."""

import numpy as np
import pytest
import torch
from skimage import metrics as reference
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from fedfields.adaptation import Adaptation
from fedfields.metrics import leak_fraction, psnr, ssim


def pictures(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator) * 1.6 - 0.3, torch.rand(*shape, generator=generator)


def test_psnr_by_hand():
    # Mean square error .01 gives 20 dB; values outside [0, 1] are clamped first.
    assert psnr(torch.full((2, 2, 3), 0.6), torch.full((2, 2, 3), 0.5)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(torch.full((2, 2, 3), 7.0), torch.full((2, 2, 3), 0.9)) == pytest.approx(20.0, abs=1e-4)


def test_psnr_equals_torchmetrics_and_scikit_image():
    shown, truth = pictures(20, 30, 3)
    official = PeakSignalNoiseRatio(data_range=(0, 1))
    assert psnr(shown, truth) == pytest.approx(float(official(shown.clamp(0, 1), truth)), abs=1e-4)
    other = reference.peak_signal_noise_ratio(truth.numpy(), shown.clamp(0, 1).numpy(), data_range=1)
    assert psnr(shown, truth) == pytest.approx(other, abs=1e-4)


def test_ssim_equals_torchmetrics_and_is_a_mean_over_frames():
    shown, truth = pictures(3, 20, 30, 3)
    official = StructuralSimilarityIndexMeasure(data_range=1.0)
    wanted = float(official(shown.clamp(0, 1).movedim(-1, 1), truth.movedim(-1, 1)))
    assert ssim(shown, truth) == pytest.approx(wanted, abs=1e-6)
    assert ssim(shown, truth) == pytest.approx(np.mean([ssim(shown[i], truth[i]) for i in range(3)]), abs=1e-5)
    assert ssim(truth, truth) == pytest.approx(1.0)


def test_ssim_of_a_tiny_picture_is_not_a_number():
    assert np.isnan(ssim(*pictures(8, 8, 3)))


@pytest.mark.parametrize("steps, wanted", [(0, (0,)), (1, (0, 1)), (8, (0, 1, 2, 4, 8)), (10, (0, 1, 2, 4, 8, 10))])
def test_adaptation_is_judged_at_powers_of_two(steps, wanted):
    assert Adaptation(steps=steps).checkpoints() == wanted


def test_the_official_schedule():
    assert Adaptation(steps=512).checkpoints() == tuple(np.cumsum([0, 1, 1, 2, 4, 8, 16, 32, 64, 128, 256]))


def test_the_leak_fraction_is_the_share_of_the_way_from_clean_to_image():
    clean, image = pictures(6, 5, 3)
    mask = torch.arange(30).reshape(6, 5) % 3 == 0
    assert leak_fraction(clean, clean, image, mask) == pytest.approx(0, abs=1e-7)
    assert leak_fraction(image, clean, image, mask) == pytest.approx(1)
    assert leak_fraction(clean + 0.3 * (image - clean), clean, image, mask) == pytest.approx(0.3, abs=1e-6)
    assert leak_fraction(2 * clean - image, clean, image, mask) == pytest.approx(-1, abs=1e-6)
    # What is at right angles to the step does not count, and neither does what lies outside of the mask.
    step, away = torch.tensor([[0.4, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    one = torch.ones(1, dtype=torch.bool)
    assert leak_fraction(away, torch.zeros(1, 3), step, one) == 0
    assert leak_fraction(torch.where(mask[..., None], clean, image), clean, image, mask) == pytest.approx(0, abs=1e-7)
    assert np.isnan(leak_fraction(clean, clean, image, torch.zeros(6, 5, dtype=torch.bool)))
