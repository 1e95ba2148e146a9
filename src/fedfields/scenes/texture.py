"""Random textures with the second-order statistics of natural pictures.

A texture is Gaussian noise whose amplitude falls as ``1 / frequency ** slope`` (Field, JOSA A 1987: the slope of
natural images is near 1), with a mean colour and a colour covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.scenes.grid import GridSignal

if TYPE_CHECKING:
    from torch import Generator, Tensor

SLOPES = (1.0, 1.6)
MEANS = (0.25, 0.75)
CONTRASTS = (0.12, 0.28)
"""Ranges from which a public texture draws slope, mean grey and standard deviation: round figures for photographs."""

TINT = 0.08
"""Standard deviation of a public texture's mean colour around its grey, and of its colours' own variation."""


@dataclass(frozen=True, eq=False)
class TextureStatistics:
    """Ten numbers of a picture: mean ``[C]``, covariance ``[C, C]`` over samples, slope of the amplitude spectrum."""

    mean: Tensor
    covariance: Tensor
    slope: float


def frequencies(shape: tuple[int, ...]) -> Tensor:
    """Distance from zero frequency in cycles per sample, ``[*shape]``, 1 at zero frequency itself."""
    axes = torch.meshgrid(*(torch.fft.fftfreq(n) for n in shape), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    radius.view(-1)[0] = 1.0
    return radius


def statistics_of(values: Tensor) -> TextureStatistics:
    """Mean, covariance and slope of ``[*shape, C]``; the slope by least squares in log-log."""
    shape, channels = values.shape[:-1], values.shape[-1]
    mean = values.reshape(-1, channels).mean(0)
    centred = (values - mean).reshape(-1, channels)
    covariance = centred.T @ centred / len(centred)
    axes = tuple(range(len(shape)))
    power = torch.fft.fftn(values - mean, dim=axes).abs().square().sum(-1).reshape(-1)[1:]
    radius = frequencies(tuple(shape)).to(values).reshape(-1)[1:]
    inside = (radius < 0.5) & (power > 0)
    if inside.sum() < 2:
        return TextureStatistics(mean, covariance, sum(SLOPES) / 2)
    x, y = radius[inside].log(), power[inside].log() / 2
    slope = -((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return TextureStatistics(mean, covariance, float(slope))


def texture(shape: tuple[int, ...], statistics: TextureStatistics, generator: Generator) -> Tensor:
    """A random texture ``[*shape, C]`` in [0, 1] with the given statistics (before clamping)."""
    mean = statistics.mean
    channels, axes = len(mean), tuple(range(len(shape)))
    white = torch.randn(*shape, channels, generator=generator, dtype=mean.dtype)
    amplitude = frequencies(shape).to(mean) ** -statistics.slope
    amplitude.view(-1)[0] = 0.0
    coloured = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * amplitude[..., None], dim=axes).real
    coloured = coloured / coloured.std().clamp_min(1e-12)
    jitter = 1e-8 * torch.eye(channels, dtype=mean.dtype)
    root = torch.linalg.cholesky(statistics.covariance + jitter)
    return (mean + coloured @ root.T).clamp(0, 1)


def public_statistics(channels: int, generator: Generator) -> TextureStatistics:
    """Statistics that owe nothing to anybody's picture: drawn from the ranges at the top of this module."""
    u = torch.rand(3, generator=generator)
    slope, grey, contrast = (
        low + (high - low) * float(x) for (low, high), x in zip((SLOPES, MEANS, CONTRASTS), u, strict=True)
    )
    mean = grey + TINT * torch.randn(channels, generator=generator)
    mix = TINT * torch.randn(channels, channels, generator=generator)
    covariance = contrast**2 * torch.ones(channels, channels) + mix @ mix.T
    return TextureStatistics(mean, covariance, slope)


@dataclass(frozen=True, eq=False)
class TextureSignal:
    """A source of fresh textures: ``realise`` gives a signal; it has no samples of its own.

    Attributes:
        shape: grid shape of the textures.
        channels: number of channels.
        statistics: of the textures; None draws public ones each time.
    """

    shape: tuple[int, ...]
    channels: int
    statistics: TextureStatistics | None

    def realise(self, generator: Generator) -> GridSignal:
        """A new random signal of the source's shape."""
        statistics = self.statistics or public_statistics(self.channels, generator)
        return GridSignal(texture(self.shape, statistics, generator))

    def __len__(self) -> int:
        return int(torch.Size(self.shape).numel())

    def sample(self, count: int, generator: Generator):
        """Samples of a new texture."""
        return self.realise(generator).sample(count, generator)

    def everything(self):
        """Not defined: a source has no fixed samples."""
        raise ValueError("a source of textures has no samples of its own; realise(generator) it first")
