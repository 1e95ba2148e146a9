"""What an attacker knows about pictures of this kind before it sees an upload: a mean, and a Gaussian around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedfields.scenes.texture import frequencies


@dataclass(frozen=True, eq=False)
class PicturePrior:
    """Pictures as ``mean + filter(white) @ root.T``: the white noise ``z`` has one entry for each colour sample.

    Attributes:
        mean: ``[*shape, C]``.
        amplitude: of each frequency of the grid, which is the last axes of ``shape``.
        root: of the colour covariance, ``[C, C]``.
    """

    mean: Tensor
    amplitude: Tensor
    root: Tensor

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-1 - self.amplitude.dim(), -1))

    def picture(self, z: Tensor) -> Tensor:
        """The picture of a white noise, both ``[*shape, C]``; not clamped."""
        axes = self._axes
        coloured = torch.fft.ifftn(torch.fft.fftn(z, dim=axes) * self.amplitude[..., None], dim=axes).real
        return self.mean + coloured @ self.root.T

    def white(self, picture: Tensor, error: float = 0.5) -> Tensor:
        """A white noise of which ``picture`` is about right (Wiener's filter): both ``[*shape, C]``.

        Args:
            picture: known up to white errors.
            error: their standard deviation, in units of the prior's colours; 0 inverts :meth:`picture`.
        """
        axes = self._axes
        residual = (picture - self.mean).reshape(-1, picture.shape[-1])
        plain = torch.linalg.solve_triangular(self.root, residual.T, upper=False).T.reshape(picture.shape)
        amplitude = self.amplitude[..., None]
        spectrum = torch.fft.fftn(plain, dim=axes) * amplitude / (amplitude.square() + error**2)
        return torch.fft.ifftn(spectrum, dim=axes).real


def prior_from(pictures: list[Tensor], like: Tensor, grid_axes: int) -> PicturePrior:
    """A prior from other people's pictures ``[*shape, C]``; grey with a 1/f spectrum if fewer than three are of use.

    Args:
        pictures: of which those of the shape of ``like`` are used.
        like: a picture of the shape wanted.
        grid_axes: see `Visible`; pictures that are photographs of an object have a mean for each camera.
    """
    fitting = [one for one in pictures if one.shape == like.shape]
    if len(fitting) < 3:
        return _grey_prior(like, grid_axes)
    stack = torch.stack(fitting)
    mean = stack.mean(0)
    residuals = (stack - mean) * (len(fitting) / (len(fitting) - 1)) ** 0.5
    flat = residuals.reshape(-1, like.shape[-1])
    root = torch.linalg.cholesky(flat.T @ flat / len(flat) + 1e-5 * torch.eye(like.shape[-1], dtype=like.dtype))
    white = torch.linalg.solve_triangular(root, flat.T, upper=False).T.reshape(residuals.shape)
    axes = tuple(range(-1 - grid_axes, -1))
    others = (*range(white.dim() - 1 - grid_axes), -1)
    power = torch.fft.fftn(white, dim=axes).abs().square().mean(others)
    return PicturePrior(mean, _power_law(power / power.numel()).sqrt(), root)


def _power_law(power: Tensor) -> Tensor:
    """The power spectrum ``[*shape]`` smoothed to ``radius ** k`` with the same total; zero frequency as it is."""
    radius = frequencies(tuple(power.shape)).to(power).reshape(-1)
    flat = power.reshape(-1)
    x, y = radius[1:].log(), flat[1:].clamp_min(1e-12).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    law = radius**slope
    law = law * flat[1:].sum() / law[1:].sum()
    law[0] = flat[0]
    return law.reshape(power.shape)


def _grey_prior(like: Tensor, grid_axes: int) -> PicturePrior:
    """Nothing known but that pictures are smooth and their channels vary together."""
    channels = like.shape[-1]
    grid = tuple(like.shape[-1 - grid_axes : -1])
    radius = frequencies(grid).to(like)
    radius.view(-1)[0] = 0.5 / max(grid)
    amplitude = radius**-1.2
    root = 0.2 * torch.linalg.cholesky(0.8 + 0.2 * torch.eye(channels, dtype=like.dtype))
    return PicturePrior(torch.full_like(like, 0.5), amplitude / amplitude.square().mean().sqrt(), root)
