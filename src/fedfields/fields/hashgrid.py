"""A hash grid with view-dependent colour: Mueller et al., SIGGRAPH 2022, with the colour of Yu et al.'s PlenOctrees.

Density by softplus; colour as the sigmoid of 27 spherical-harmonic coefficients (degree 2), as in Suzuki, *Federated
Learning for Large-Scale Scene Modeling with Neural Radiance Fields*, 2023, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from fedfields.fields.appearance import check_length, with_codes
from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class HashGrid:
    """Positions in the cube [-1, 1]^3 to density and spherical harmonics."""

    levels: int = 16
    """Resolution levels."""

    log2_rows: int = 15
    """Logarithm of the rows of the table at each level."""

    coarsest: int = 16
    """Cells along an axis at the first level."""

    finest: int = 512
    """Cells along an axis at the last level."""

    width: int = 64
    """Units of the hidden layers."""

    latent: int = 15
    """Numbers that the density network hands to the colour network."""

    appearance: int = 0
    """Length of a photograph's appearance code (NeRF-W, section 4.1), which the colour network reads; 0 for none."""

    def __post_init__(self) -> None:
        if min(self.levels, self.log2_rows, self.coarsest, self.width) < 1 or self.finest < self.coarsest:
            raise ValueError(
                f"a hash grid of {self.levels} levels from {self.coarsest} to {self.finest} cells; it needs at least "
                "one level and cells that do not become fewer"
            )
        check_length(self.appearance)

    @property
    def cells(self) -> list[int]:
        """Cells along an axis at every level."""
        from fedfields.kernels.hashing import resolutions

        return resolutions(self.levels, self.coarsest, self.finest)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights."""
        return {
            "table": (self.levels, 2**self.log2_rows, 2),
            "density.0.weight": (self.width, 2 * self.levels),
            "density.1.weight": (1 + self.latent, self.width),
            "colour.0.weight": (self.width, 1 + self.latent + self.appearance),
            "colour.1.weight": (27, self.width),
        }

    def init(self, generator: Generator) -> Params:
        """Table in U(-1e-4, 1e-4), weights in U(+-sqrt(6 / fan_in)), no biases, as Instant-NGP."""
        shapes = self.shapes
        params = {"table": torch.empty(shapes.pop("table")).uniform_(-1e-4, 1e-4, generator=generator)}
        for name, shape in shapes.items():
            bound = sqrt((6 if name.endswith("0.weight") else 3) / shape[1])
            params[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return params

    def latents(self, params: Params, positions: Tensor, shift: Tensor | None = None) -> Tensor:
        """``[N, 3]`` in the cube to ``[N, 1 + latent]``, of which the first is the density before softplus.

        A ``shift [N, width]`` is added to the hidden units: what a further input of the density network comes to.
        """
        hidden = self._hidden(params, positions)
        hidden = hidden if shift is None else hidden + shift
        return torch.nn.functional.linear(hidden.relu(), params["density.1.weight"])

    def density(self, params: Params, positions: Tensor, shifts: Tensor | None = None) -> Tensor:
        """``[N]``, per unit of distance in the cube; with ``shifts [P, width]`` the largest that any of them gives."""
        if shifts is None:
            return density_of(self.latents(params, positions)[:, 0])
        last, parts = params["density.1.weight"][0], self._hidden(params, positions).split(4096)  # As a cache holds.
        raw = [torch.stack([(part + shift).relu() @ last for shift in shifts]).amax(0) for part in parts]
        return density_of(torch.cat(raw))

    def _hidden(self, params: Params, positions: Tensor) -> Tensor:
        """``[N, width]``, before the rectifier."""
        from fedfields.kernels.hashing import hash_encode

        features = hash_encode((positions + 1) / 2, params["table"], self.cells)
        return torch.nn.functional.linear(features, params["density.0.weight"])

    def coefficients(self, params: Params, latents: Tensor, codes: Tensor | None = None) -> Tensor:
        """Spherical-harmonic coefficients ``[N, 3, 9]``, nine for each colour."""
        inputs = with_codes(latents, codes, self.appearance)
        hidden = torch.nn.functional.linear(inputs, params["colour.0.weight"]).relu()
        return torch.nn.functional.linear(hidden, params["colour.1.weight"]).view(-1, 3, 9)

    def __call__(
        self, params: Params, positions: Tensor, directions: Tensor, codes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` in (0, 1) at positions in the cube, seen along unit directions.

        Codes ``[N, appearance]`` say in which light; without them it is the neutral one, of codes of zeros.
        """
        latents = self.latents(params, positions)
        return density_of(latents[:, 0]), self.colour(params, latents, directions, codes)

    def colour(self, params: Params, latents: Tensor, directions: Tensor, codes: Tensor | None = None) -> Tensor:
        """``[N, 3]`` in (0, 1), where the density network gives ``latents``."""
        return shaded(self.coefficients(params, latents, codes), directions)


def density_of(raw: Tensor) -> Tensor:
    """Softplus, shifted and scaled: a new network is thin haze, and walls are within reach of usual outputs."""
    return 25 * torch.nn.functional.softplus(raw - 4)


def shaded(coefficients: Tensor, directions: Tensor) -> Tensor:
    """Colours ``[N, 3]`` in (0, 1) that spherical-harmonic coefficients ``[N, 3, 9]`` have along unit directions."""
    return torch.bmm(coefficients, harmonics(directions)[..., None])[..., 0].sigmoid()


def harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics up to degree 2 in the order of PlenOctrees: ``[N, 3]`` unit vectors to ``[N, 9]``."""
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * z * z - x * x - y * y),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ],
        -1,
    )
