"""A shared field, and one of each owner's own in the same space: DecentNeRF (Sandhu et al., arXiv 2403.13199).

The shared part is what travels and what anybody may render. The own part stays with its owner and takes what is only in
that owner's photographs: people, bags, a passing car. Along a ray both absorb and both emit.

It is the transient half of NeRF-W (Martin-Brualla et al., *NeRF in the Wild*, CVPR 2021, section 4.2) with a network of
its own. It may read a code of each photograph, so that those of one owner can differ, and say how uncertain it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from fedfields.fields.hashgrid import HashGrid, density_of
from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor

OWN = "own.personal."
"""Before the keys of an owner's own part."""

TRANSIENT = "own.transient"
"""The leaf with the transient codes of a client's photographs, ``[P, T]``. It never leaves the client."""

SPREAD = 0.1
"""Standard deviation of new transient codes: they differ, so photographs can."""


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
    own parts would swallow the place. Some hundred steps are enough: after many more the shared part has taken the
    people in and will not let go of them, so give a longer run a smaller share."""

    codes: int = 0
    """Length of a photograph's transient code (NeRF-W, section 4.2), which density and colour of the own part read; 0
    for none, so that it is the same in all photographs of its owner."""

    beta: float = 0.0
    """Least uncertainty of a ray (beta_min in NeRF-W, there 0.03). The own part then also says how uncertain colours
    are, and errors count the less for it (eq. 13); 0 for plain squared errors."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"personal.weight is {self.weight}; it must not be negative")
        if not 0 <= self.after < 1:
            raise ValueError(f"personal.after is {self.after}; it must be at least 0 and less than 1")
        for name in ("codes", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"personal.{name} is {getattr(self, name)}; it must be positive, or 0 for none")

    def init(self, generator: Generator) -> Params:
        """Weights of an own part, under their names at the owner's."""
        params, field = self.field.init(generator), self.field
        if self.codes:
            bound = sqrt(6 / (2 * field.levels + self.codes))  # The codes are inputs of the first layer like features.
            weight = torch.empty(field.width, self.codes).uniform_(-bound, bound, generator=generator)
            params["transient.weight"] = weight
        if self.beta:
            bound = sqrt(3 / (1 + field.latent))
            params["beta.weight"] = torch.empty(1, 1 + field.latent).uniform_(-bound, bound, generator=generator)
        return {OWN + key: leaf for key, leaf in params.items()}

    def fresh(self, photos: int, generator: Generator) -> Params:
        """Transient codes of so many photographs, if there are any."""
        return {TRANSIENT: SPREAD * torch.randn(photos, self.codes, generator=generator)} if self.codes else {}

    def seen(
        self, params: Params, positions: Tensor, directions: Tensor, codes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Density ``[N]``, colour ``[N, 3]`` and uncertainty ``[N]`` (0 without `beta`) of the own part alone.

        Args:
            params: its weights, without the prefix.
            positions: ``[N, 3]`` in the cube.
            directions: ``[N, 3]`` of length one.
            codes: ``[N, codes]``, where it reads some; without them those of zeros.
        """
        latents = self.field.latents(params, positions, None if codes is None else _shift(params, codes))
        density = density_of(latents[:, 0])
        if self.beta:
            doubt = torch.nn.functional.softplus(torch.nn.functional.linear(latents, params["beta.weight"])[:, 0])
        else:
            doubt = torch.zeros_like(density)
        return density, self.field.colour(params, latents, directions), doubt


class Parts(NamedTuple):
    """What is at N points.

    Attributes:
        density: ``[N]``, of both parts together.
        colour: ``[N, 3]``, of both together.
        own: ``[N]``, the density of the own part.
        doubt: ``[N]``, the own part's uncertainty, times its share of the density.
    """

    density: Tensor
    colour: Tensor
    own: Tensor
    doubt: Tensor


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

    def own(self, photos: int, generator: Generator) -> Params:
        """The first own part of an owner of so many photographs; none before it joins."""
        return self.personal.init(generator) | self.personal.fresh(photos, generator) if self.joined else {}

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
        coarse = self.field.coarse
        return lambda params, positions, directions, codes=None: coarse(
            params, positions, directions, *self._light(codes)
        )

    def parts(self, params: Params, positions: Tensor, directions: Tensor, codes: Tensor | None = None) -> Parts:
        """What is at positions in the cube, seen along unit directions, ``[N, 3]``.

        Args:
            params: of the shared part, and of the own one where there is one.
            positions: where.
            directions: from where.
            codes: ``[N, A + T]``, the appearance code of each point's photograph, and its transient code behind it.
        """
        shared, mine = _split(params)
        density, colour = self.field(shared, positions, directions, *self._light(codes))
        if not mine:
            nothing = torch.zeros_like(density)
            return Parts(density, colour, nothing, nothing)
        transient = None if codes is None or not self.personal.codes else codes[:, self.appearance :]
        own, own_colour, doubt = self.personal.seen(mine, positions, directions, transient)
        total = density + own
        share = own / total.clamp_min(1e-10)
        return Parts(total, colour + share[:, None] * (own_colour - colour), own, share * doubt)

    def __call__(self, params: Params, *at: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of both together; positions, directions and any codes."""
        return self.parts(params, *at)[:2]

    def density(self, params: Params, positions: Tensor) -> Tensor:
        """``[N]``, of both together: where photographs have transient codes, in the one that shows most there; where
        there are own parts of many owners, with the one that is densest there."""
        shared, mine = _split(params)
        density = self.field.density(shared, positions)
        if not mine:
            return density
        shifts = _shift(mine, params[TRANSIENT]) if TRANSIENT in params else None
        owners = _each(mine)
        return density + torch.stack([self.personal.field.density(one, positions, shifts) for one in owners]).amax(0)

    def _light(self, codes: Tensor | None) -> tuple[Tensor, ...]:
        """The appearance codes among the codes of photographs, if the shared part reads any."""
        return () if codes is None or not self.appearance else (codes[:, : self.appearance],)


def together(parts: Sequence[Params]) -> Params:
    """The own parts of many owners in the hands of one client: leaves ``[owners, ...]``."""
    return {key: torch.stack([one[key] for one in parts]) for key in parts[0]}


def _each(mine: Params) -> list[Params]:
    """The own parts by owner, of one owner or of many."""
    if mine["table"].dim() == 3:
        return [mine]
    return [{key: leaf[i] for key, leaf in mine.items()} for i in range(len(mine["table"]))]


def of_owner(params: Params, owner: Tensor | None) -> Params:
    """The weights with the own part of the one owner ``[R]`` of some rays, where a client has those of many."""
    if owner is None:
        return params
    which = int(owner[0])
    return {key: leaf[which] if key.startswith(OWN) else leaf for key, leaf in params.items()}


def _shift(params: Params, codes: Tensor) -> Tensor:
    """What transient codes ``[N, T]`` add to the hidden units of an own part's density network, ``[N, width]``."""
    return torch.nn.functional.linear(codes, params["transient.weight"])


def _split(params: Params) -> tuple[Params, Params]:
    mine = {key.removeprefix(OWN): leaf for key, leaf in params.items() if key.startswith(OWN)}
    return {key: leaf for key, leaf in params.items() if not key.startswith(OWN)} if mine else params, mine
