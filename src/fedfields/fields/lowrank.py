"""Low-rank weights with a factor that everybody shares: how FedNeRF (Holden et al., arXiv 2305.01163, algorithm 2)
makes updates small. Because the shared factor is frozen, the mean of what is sent is the mean of the fields' weights:
``mean(L_i) R = mean(L_i R)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedfields.lazy import torch
from fedfields.types import Params

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Matrices as products L R: L is trained and travels, R is frozen and shared.

    A matrix ``W = U S V^T`` of the initial weights gives ``L = U_r S_r`` and ``R = V_r^T``. Biases and tables stay as
    they are.
    """

    energy: float = 0.9
    """Share of the sum of a matrix's singular values (not of their squares) that its rank keeps."""

    rank: int = 0
    """The rank of every matrix; 0 leaves it to the energy."""

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"compression.energy is {self.energy}; it must lie in (0, 1]")
        if self.rank < 0:
            raise ValueError(f"compression.rank is {self.rank}; it must be positive, or 0 to follow the energy")

    def rank_of(self, singular: Tensor) -> int:
        """The rank of a matrix with these singular values ``[n]``, in descending order: the given one, or the smallest
        that reaches the energy."""
        if self.rank:
            return min(self.rank, len(singular))
        sums = singular.cumsum(0)
        return 1 + int((sums < self.energy * sums[-1]).sum())

    def factors(self, params: Params) -> tuple[Params, Params]:
        """What is trained, with the keys of ``params`` and ``L [out, r]`` in place of a matrix ``[out, in]``; and the
        shared ``R [r, in]`` by key. A matrix whose L is no smaller than itself, ``r >= in``, stays whole."""
        trained, shared = dict(params), {}
        for key, leaf in params.items():
            if leaf.ndim != 2 or not key.endswith(".weight"):
                continue
            left, singular, right = torch.linalg.svd(leaf.double(), full_matrices=False)
            rank = self.rank_of(singular)
            if rank < leaf.shape[1]:
                # LAPACK's columns would make a run depend on whether its start was read from disk.
                trained[key] = (left[:, :rank] * singular[:rank]).to(leaf.dtype).contiguous()
                shared[key] = right[:rank].to(leaf.dtype).contiguous()
        return trained, shared


def expanded(params: Params, shared: Params) -> Params:
    """Whole weights: ``L R`` where there is an R."""
    return {key: leaf @ shared[key] if key in shared else leaf for key, leaf in params.items()}


@dataclass(frozen=True, eq=False)
class Factored:
    """A radiance field of which some weights are given as L; it knows their shared R."""

    field: Any
    """The radiance field itself."""

    shared: Params
    """R ``[r, in]`` by the key of the weight, see `LowRank.factors`."""

    def expand(self, params: Params) -> Params:
        """The field's own weights."""
        return expanded(params, self.shared)

    def __call__(self, params: Params, *at: Any) -> tuple[Tensor, Tensor]:
        """What the field says with the expanded weights."""
        return self.field(self.expand(params), *at)

    def density(self, params: Params, positions: Tensor) -> Tensor:
        """Density ``[N]`` of a field that gives it alone."""
        return self.field.density(self.expand(params), positions)

    @property
    def appearance(self) -> int:
        """Length of the appearance codes that the field reads; 0 for none."""
        return getattr(self.field, "appearance", 0)

    @property
    def coarse(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The coarse half of a pair; as with any other attribute, there is none if the field has none."""
        coarse = self.field.coarse
        return lambda params, *at: coarse(self.expand(params), *at)
