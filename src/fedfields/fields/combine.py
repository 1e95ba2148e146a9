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
    """Two fields of one kind (Mildenhall et al. 2020, section 5.2): the coarse one says where the fine one looks."""

    field: Nerf = dataclasses.field(default_factory=Nerf)
    """What both of them are."""

    def init(self, generator: Generator) -> Params:
        """Weights of both, under ``coarse.`` and ``fine.``."""
        return {prefix + key: leaf for prefix in (COARSE, FINE) for key, leaf in self.field.init(generator).items()}

    def coarse(self, params: Params, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of the coarse one."""
        return self.field(_part(params, COARSE), positions, directions)

    def __call__(self, params: Params, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` and colour ``[N, 3]`` of the fine one."""
        return self.field(_part(params, FINE), positions, directions)


def _part(params: Params, prefix: str) -> Params:
    return {key.removeprefix(prefix): leaf for key, leaf in params.items() if key.startswith(prefix)}
