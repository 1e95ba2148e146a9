"""A shared field, and one of each owner's own in the same space: DecentNeRF (Sandhu et al., arXiv 2403.13199).

The shared part is what travels and what anybody may render. The own part stays with its owner and takes what is only in
that owner's photographs: people, bags, a passing car. Along a ray both absorb and both emit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedfields.fields.hashgrid import HashGrid
from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor

OWN = "own.personal."
"""Before the keys of an owner's own part."""


@dataclass(frozen=True)
class Personal:
    """The own part, and when it joins."""

    field: HashGrid = dataclasses.field(
        default_factory=lambda: HashGrid(levels=5, log2_rows=11, coarsest=8, finest=32, width=32)
    )
    """What it is: small and coarse, so that it cannot take the place itself."""

    weight: float = 1e-3
    """Weight of its mean density along rays in the loss (lambda_u in NeRF-W, eq. 13), in units of distance."""

    after: float = 0.25
    """Share of the run before it joins. Until then the shared part alone explains everything; without such a start the
    own parts would swallow the place."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"personal.weight is {self.weight}; it must not be negative")
        if not 0 <= self.after < 1:
            raise ValueError(f"personal.after is {self.after}; it must be at least 0 and less than 1")

    def init(self, generator: Generator) -> Params:
        """Weights of an own part, under their names at the owner's."""
        return {OWN + key: leaf for key, leaf in self.field.init(generator).items()}


@dataclass(frozen=True, eq=False)
class Joint:
    """A shared radiance field over [-1, 1]^3 with an own part beside it, wherever the weights have one.

    Densities add up, and the colour is the mean of both, weighted by density: emission and absorption of two things in
    one place. NeRF-W (eq. 8) adds ``(1 - exp(-sigma delta)) c`` of both instead, which is the same for short steps.
    """

    field: Any
    """The shared part."""

    personal: Personal
    joined: bool = True
    """Whether the own part takes part in training yet."""

    def own(self, generator: Generator) -> Params:
        """An owner's first own part; none before it joins."""
        return self.personal.init(generator) if self.joined else {}

    def at(self, progress: float) -> Joint:
        """The field when a share ``progress`` of the run is over."""
        return dataclasses.replace(self, joined=progress >= self.personal.after)

    def init(self, generator: Generator) -> Params:
        """Weights of the shared part."""
        return self.field.init(generator)

    @property
    def appearance(self) -> int:
        """Length of the appearance codes that the shared part reads; 0 for none."""
        return getattr(self.field, "appearance", 0)

    @property
    def coarse(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The coarse half of a pair, which knows nothing of the own part (as in nerf_pl)."""
        return self.field.coarse

    def parts(self, params: Params, positions: Tensor, directions: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
        """Density and colour of both together, and the density of the own part; all of ``[N]`` and ``[N, 3]``."""
        shared, mine = _split(params)
        density, colour = self.field(shared, positions, directions, *codes)
        if not mine:
            return density, colour, torch.zeros_like(density)
        own_density, own_colour = self.personal.field(mine, positions, directions)
        total = density + own_density
        share = own_density / total.clamp_min(1e-10)
        return total, colour + share[:, None] * (own_colour - colour), own_density

    def __call__(self, params: Params, *at: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of both together; positions, directions and any codes."""
        density, colour, _ = self.parts(params, *at)
        return density, colour

    def density(self, params: Params, positions: Tensor) -> Tensor:
        """``[N]``, of both together."""
        shared, mine = _split(params)
        density = self.field.density(shared, positions)
        return density + self.personal.field.density(mine, positions) if mine else density


def _split(params: Params) -> tuple[Params, Params]:
    mine = {key.removeprefix(OWN): leaf for key, leaf in params.items() if key.startswith(OWN)}
    return {key: leaf for key, leaf in params.items() if not key.startswith(OWN)} if mine else params, mine
