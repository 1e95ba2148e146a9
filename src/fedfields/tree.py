"""Arithmetic over named weights. A tree is ``dict[str, Tensor]``; every function returns a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.types import META, Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


def only(tree: Params, like: Params) -> Params:
    """The leaves of ``tree`` whose names ``like`` has, in its order."""
    return {key: tree[key] for key in like}


def parted(tree: Params) -> tuple[Params, Params]:
    """The leaves of the model, and the meta leaves, which only the outer loop trains."""
    meta = {key: leaf for key, leaf in tree.items() if key.startswith(META)}
    return {key: leaf for key, leaf in tree.items() if key not in meta}, meta


def tree_map(function: Callable[..., Tensor], tree: Params, *others: Params) -> Params:
    """Applies ``function`` leaf by leaf; the trees must have the same keys."""
    return {key: function(leaf, *(other[key] for other in others)) for key, leaf in tree.items()}


def add(a: Params, b: Params, scale: float | Tensor = 1.0) -> Params:
    """``a + scale * b``."""
    if isinstance(scale, float | int):
        return {key: torch.add(leaf, b[key], alpha=scale) for key, leaf in a.items()}
    return {key: leaf + scale * b[key] for key, leaf in a.items()}


def sub(a: Params, b: Params) -> Params:
    """``a - b``."""
    return {key: leaf - b[key] for key, leaf in a.items()}


def scale(tree: Params, factor: float | Tensor) -> Params:
    """``factor * tree``."""
    return {key: leaf * factor for key, leaf in tree.items()}


def zeros(tree: Params) -> Params:
    """Zeros of the same shapes and dtypes."""
    return {key: torch.zeros_like(leaf) for key, leaf in tree.items()}


def dot(a: Params, b: Params) -> Tensor:
    """Inner product over all leaves (0-d)."""
    return torch.stack([(leaf * b[key]).sum() for key, leaf in a.items()]).sum()


def sqnorm(tree: Params) -> Tensor:
    """Squared L2 norm over all leaves (0-d)."""
    return dot(tree, tree)


def norm(tree: Params) -> Tensor:
    """L2 norm over all leaves, as the norm of the leaves' norms (0-d)."""
    leaves = [leaf.detach() for leaf in tree.values()]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(leaves)))  # pyright: ignore[reportPrivateImportUsage]


def detach(tree: Params) -> Params:
    """The same values without their history."""
    return {key: leaf.detach() for key, leaf in tree.items()}


def leaves_of(tree: Params) -> Params:
    """The same values as fresh leaves that gradients can be asked for."""
    return {key: leaf.detach().requires_grad_() for key, leaf in tree.items()}


def clone(tree: Params) -> Params:
    """A deep copy without history."""
    return {key: leaf.detach().clone() for key, leaf in tree.items()}


def to(tree: Params, dtype: torch.dtype) -> Params:
    """All leaves cast to ``dtype``."""
    return {key: leaf.to(dtype) for key, leaf in tree.items()}


def randn_like(tree: Params, generator: Generator) -> Params:
    """Standard normal leaves of the same shapes, drawn in key order."""
    return {key: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for key, leaf in tree.items()}


def flatten(tree: Params) -> Tensor:
    """All leaves as one vector, in key order."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of :func:`flatten`: views of ``vector`` shaped as ``like``."""
    pieces = vector.split([leaf.numel() for leaf in like.values()])
    return {key: piece.view(leaf.shape) for piece, (key, leaf) in zip(pieces, like.items(), strict=True)}


def size(tree: Params) -> int:
    """Number of scalars."""
    return sum(leaf.numel() for leaf in tree.values())


def nbytes(trees: Iterable[Params]) -> int:
    """Bytes of all leaves of all trees."""
    return sum(leaf.numel() * leaf.element_size() for tree in trees for leaf in tree.values())


def clip(tree: Params, max_norm: float) -> Params:
    """Scales the values to a global norm of at most ``max_norm`` and differentiates as if it had not.

    ``g + (c g - g).detach()`` with ``c = min(1, max_norm / (|g| + 1e-6))``: what the official FedMeNF code does
    by scaling gradients in place after they are detached. ``max_norm`` 0 or infinite leaves the tree alone.
    """
    if not 0 < max_norm < float("inf"):
        return tree
    factor = min(1.0, max_norm / (norm(tree).item() + 1e-6))
    if factor == 1.0:
        return tree
    return {
        key: leaf + (leaf * (factor - 1)).detach() if leaf.requires_grad else leaf * factor
        for key, leaf in tree.items()
    }
