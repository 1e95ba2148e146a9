"""Fields made of fields."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.fields.nerf import Nerf
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Generator, Tensor

COARSE, FINE = "coarse.", "fine."


@dataclass(frozen=True)
class CoarseFine:
    """Two fields of one kind (Mildenhall et al. 2020, section 5.2): the coarse one says where the fine one looks.

    Both read the same appearance code, if there is one, as in the NeRF-W paper (nerf_pl gives it to the fine one only).
    """

    field: Nerf = dataclasses.field(default_factory=Nerf)
    """What both of them are."""

    def init(self, generator: Generator) -> Params:
        """Weights of both, under ``coarse.`` and ``fine.``."""
        return {prefix + key: leaf for prefix in (COARSE, FINE) for key, leaf in self.field.init(generator).items()}

    @property
    def appearance(self) -> int:
        """Length of an appearance code."""
        return self.field.appearance

    def coarse(self, params: Params, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of the coarse one; inputs are positions, directions and any codes."""
        return self.field(_part(params, COARSE), *inputs)

    def __call__(self, params: Params, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of the fine one."""
        return self.field(_part(params, FINE), *inputs)


def _part(params: Params, prefix: str) -> Params:
    return {key.removeprefix(prefix): leaf for key, leaf in params.items() if key.startswith(prefix)}
