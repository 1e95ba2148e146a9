"""How good a picture is: PSNR and SSIM, computed as the official FedMeNF code computes them (torchmetrics)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; the prediction is clamped to [0, 1] first.

    All samples count as one mean: for a clip, one error over all frames.
    """
    error = (prediction.clamp(0, 1) - truth).square().mean().clamp_min(1e-12)
    return float(-10 * torch.log10(error))


def ssim(prediction: Tensor, truth: Tensor) -> float:
    """Structural similarity of ``[H, W, C]`` or ``[T, H, W, C]``: mean over frames, torchmetrics' defaults.

    Sides under 11 samples, which its Gaussian window does not fit, give NaN.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    def frames(values: Tensor) -> Tensor:
        values = values if values.dim() == 4 else values[None]
        return values.movedim(-1, 1).float()

    first, second = frames(prediction.clamp(0, 1)), frames(truth)
    if min(first.shape[-2:]) < 11:
        return float("nan")
    value = structural_similarity_index_measure(first, second, data_range=1.0)
    assert isinstance(value, torch.Tensor)
    return float(value)
