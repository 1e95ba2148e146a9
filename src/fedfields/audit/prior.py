"""What an attacker knows about pictures of this kind before it sees an upload: a mean, and a Gaussian around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedfields.scenes.texture import frequencies, statistics_of


@dataclass(frozen=True, eq=False)
class PicturePrior:
    """Pictures as ``mean + filter(white) @ root.T``: the white noise ``z`` has one entry for each colour sample.

    Attributes:
        mean: ``[*shape, C]``.
        amplitude: of each frequency, ``[*shape]``.
        root: of the colour covariance, ``[C, C]``.
    """

    mean: Tensor
    amplitude: Tensor
    root: Tensor

    def picture(self, z: Tensor) -> Tensor:
        """The picture of a white noise, both ``[*shape, C]``; not clamped."""
        axes = tuple(range(z.dim() - 1))
        coloured = torch.fft.ifftn(torch.fft.fftn(z, dim=axes) * self.amplitude[..., None], dim=axes).real
        return self.mean + coloured @ self.root.T


def prior_from(pictures: list[Tensor], like: Tensor) -> PicturePrior:
    """A prior from other people's pictures of the same shape; grey with a 1/f spectrum if there are none."""
    shape, channels = tuple(like.shape[:-1]), like.shape[-1]
    fitting = [one for one in pictures if one.shape == like.shape]
    radius = frequencies(shape).to(like)
    radius.view(-1)[0] = 0.5 / max(shape)
    if len(fitting) < 2:
        mean, slope = torch.full_like(like, 0.5), 1.2
        root = 0.2 * torch.linalg.cholesky(0.8 + 0.2 * torch.eye(channels, dtype=like.dtype))
    else:
        stack = torch.stack(fitting)
        mean = stack.mean(0)
        found = [statistics_of(one - mean) for one in fitting]
        slope = sum(one.slope for one in found) / len(found)
        second = torch.stack([one.covariance + torch.outer(one.mean, one.mean) for one in found]).mean(0)
        second = second * len(found) / (len(found) - 1)
        root = torch.linalg.cholesky(second + 1e-5 * torch.eye(channels, dtype=like.dtype))
    amplitude = radius**-slope
    return PicturePrior(mean, amplitude / amplitude.square().mean().sqrt(), root)
