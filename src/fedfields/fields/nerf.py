"""Radiance fields: the plain one of the official FedMeNF code, and that of Mildenhall et al., *NeRF: Representing
Scenes as Neural Radiance Fields for View Synthesis*, ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.fields.appearance import check_length, with_codes
from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class SimpleNerf:
    """An MLP on sines and cosines of the position; the colour does not depend on the direction."""

    width: int = 256
    """Units in each ReLU layer."""

    depth: int = 6
    """Number of linear layers, the last one included."""

    frequencies: int = 20
    """Number of frequencies for each coordinate."""

    octaves: float = 8.0
    """The frequencies are 2^linspace(0, octaves, frequencies), in radians per unit of the coordinate."""

    train_frequencies: bool = False
    """Count the frequencies among the weights: they are trained, sent and averaged, as in the official code."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.frequencies) < 1:
            raise ValueError(
                f"a NeRF of width {self.width}, depth {self.depth} and {self.frequencies} frequencies; "
                "all must be at least 1"
            )

    def init(self, generator: Generator) -> Params:
        """PyTorch's default for linear layers: weights and biases in U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        sizes = [6 * self.frequencies] + [self.width] * (self.depth - 1) + [4]
        params: Params = {"frequencies": self.bands()} if self.train_frequencies else {}
        for i in range(self.depth):
            params |= _linear_init(f"layers.{i}", sizes[i], sizes[i + 1], generator)
        return params

    def bands(self) -> Tensor:
        """The frequencies, ``[frequencies]``."""
        return 2 ** torch.linspace(0, self.octaves, self.frequencies)

    def __call__(self, params: Params, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions ``[N, 3]`` to density ``[N]`` and colour ``[N, 3]`` in (0, 1); directions are not looked at."""
        bands = params["frequencies"] if self.train_frequencies else self.bands().to(positions)
        hidden = _waves(positions, bands)
        for i in range(self.depth - 1):
            hidden = _linear(params, f"layers.{i}", hidden).relu()
        last = _linear(params, f"layers.{self.depth - 1}", hidden)
        return torch.nn.functional.softplus(last[:, 3]), last[:, :3].sigmoid()


@dataclass(frozen=True)
class Nerf:
    """The MLP of Mildenhall et al., figure 7: density from the position, colour from position and direction.

    The encoding is that of their code: the coordinates themselves, then sines and cosines, without the factor pi
    of eq. 4. Density is a softplus instead of a ReLU, which may be zero everywhere from the start and stay so.
    """

    width: int = 256
    """Units in each layer of the trunk; the colour head has half as many."""

    depth: int = 8
    """Number of ReLU layers of the trunk."""

    skip: int = 5
    """The layer, counted from 0, that gets the encoded position again; none if the trunk is not that deep."""

    octaves: int = 10
    """Frequencies 1, 2, ..., 2^(octaves - 1) of the position."""

    direction_octaves: int = 4
    """The same for the direction."""

    appearance: int = 0
    """Length of a photograph's appearance code (NeRF-W, section 4.1), which the colour head reads; 0 for none."""

    def __post_init__(self) -> None:
        if self.width < 2 or min(self.depth, self.skip) < 1:
            raise ValueError(
                f"a NeRF of width {self.width}, depth {self.depth} and skip {self.skip}; width must be at least 2 "
                "and the others at least 1"
            )
        if min(self.octaves, self.direction_octaves) < 0:
            raise ValueError(f"{self.octaves} and {self.direction_octaves} octaves; neither may be negative")
        check_length(self.appearance)

    def init(self, generator: Generator) -> Params:
        """Glorot's weights in U(-a, a), a = sqrt(6 / (fan_in + fan_out)), and biases of zero, as in their code."""
        position, direction = 3 + 6 * self.octaves, 3 + 6 * self.direction_octaves
        params: Params = {}
        for i in range(self.depth):
            fan_in = position if i == 0 else self.width + (position if i == self.skip else 0)
            params |= _glorot_init(f"layers.{i}", fan_in, self.width, generator)
        params |= _glorot_init("density", self.width, 1, generator)
        params |= _glorot_init("feature", self.width, self.width, generator)
        params |= _glorot_init("head", self.width + direction + self.appearance, self.width // 2, generator)
        return params | _glorot_init("colour", self.width // 2, 3, generator)

    def __call__(
        self, params: Params, positions: Tensor, directions: Tensor, codes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions and directions of length one, ``[N, 3]``, to density ``[N]`` and colour ``[N, 3]`` in (0, 1).

        Codes ``[N, appearance]`` say in which light; without them it is the neutral one, of codes of zeros.
        """
        encoded = hidden = _encode(positions, self.octaves)
        for i in range(self.depth):
            hidden = torch.cat([encoded, hidden], dim=-1) if i == self.skip else hidden
            hidden = _linear(params, f"layers.{i}", hidden).relu()
        density = torch.nn.functional.softplus(_linear(params, "density", hidden)[:, 0])
        seen = torch.cat([_linear(params, "feature", hidden), _encode(directions, self.direction_octaves)], dim=-1)
        seen = with_codes(seen, codes, self.appearance)
        return density, _linear(params, "colour", _linear(params, "head", seen).relu()).sigmoid()


def _waves(inputs: Tensor, bands: Tensor) -> Tensor:
    """``[N, D]`` to ``[N, 2 F D]``: all sines, then all cosines; within each, the coordinates of one frequency."""
    angles = (bands[:, None] * inputs[:, None]).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _encode(inputs: Tensor, octaves: int) -> Tensor:
    """``[N, D]`` to ``[N, D + 2 octaves D]``: the inputs and the waves of their octaves."""
    return torch.cat([inputs, _waves(inputs, 2 ** torch.arange(octaves).to(inputs))], dim=-1)


def _linear(params: Params, name: str, inputs: Tensor) -> Tensor:
    return torch.nn.functional.linear(inputs, params[f"{name}.weight"], params[f"{name}.bias"])


def _linear_init(name: str, fan_in: int, fan_out: int, generator: Generator) -> Params:
    bound = fan_in**-0.5
    weight = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.empty(fan_out).uniform_(-bound, bound, generator=generator)}


def _glorot_init(name: str, fan_in: int, fan_out: int, generator: Generator) -> Params:
    bound = (6 / (fan_in + fan_out)) ** 0.5
    weight = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(fan_out)}
