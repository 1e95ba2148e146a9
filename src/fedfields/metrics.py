"""How good a picture is: PSNR and SSIM, computed as the official FedMeNF code computes them (torchmetrics); and how
much of a person it shows."""

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


def leak_fraction(render: Tensor, clean: Tensor, image: Tensor, mask: Tensor) -> float:
    """How much of what covers a place is in a render: 0 for the place alone, 1 for the image as its owner has it.

    ``<render - clean, image - clean> / |image - clean|^2`` over the masked pixels: the share of the step from what is
    behind to what is in front that the render has taken. PSNR alone cannot tell a blur of the right colour from a face.

    Args:
        render: ``[..., 3]``, what somebody sees.
        clean: ``[..., 3]``, what is behind.
        image: ``[..., 3]``, with what is in front.
        mask: ``[...]`` bool, where that is. NaN if nowhere, or if image and clean are the same there.
    """
    step, taken = (image - clean)[mask].double(), (render - clean)[mask].double()
    whole = float(step.square().sum())
    return float((taken * step).sum()) / whole if whole else float("nan")


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
