"""The nouns that everything else is written in.

Notation, used in every module: ``params`` are weights, ``theta`` the global model that the server broadcasts,
``w`` a client's local meta-learner, ``phi`` a field adapted to one signal. ``K`` inner steps, ``E`` outer steps
in one visit, ``R`` rounds, ``M`` clients in a cohort of ``N``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor

Params = dict[str, "Tensor"]
"""Named weights: the only thing that travels."""

META = "meta."
"""Before the names of meta leaves: weights that travel like all others, and that no adaptation moves. Objectives learn
them (step sizes, noise); models never see them."""

Report = dict[str, Params]
"""What a client sends: named trees whose sum over the cohort is all that a server needs."""

Metrics = dict[str, float]
"""Figures about a step, for people; never used by the algorithm."""


class Batch(NamedTuple):
    """Coordinates (or any model input) and the values wanted there.

    For fields: ``inputs`` is ``[B, D]`` in [-1, 1], ``targets`` is ``[B, C]``, colours in [0, 1].
    For radiance fields: ``inputs`` are rays with everything random that rendering them needs.
    """

    inputs: Any
    targets: Tensor


Loss = Callable[[Params, Batch], "Tensor"]
"""The seam: weights and a batch to a scalar. Everything random is already in the batch."""


class VisibleLoss(Protocol):
    """A loss that can show what it compares with the targets."""

    def __call__(self, params: Params, batch: Batch) -> Tensor: ...

    def show(self, params: Params, inputs: Any) -> Tensor:
        """Colours ``[B, C]`` at the inputs of a batch, differentiable."""
        ...

    @property
    def chunk(self) -> int:
        """How many inputs to show at a time where there are very many."""
        ...


class Signal(Protocol):
    """What an owner has: draws batches, with replacement, from a passed generator."""

    def sample(self, count: int, generator: Generator) -> Batch: ...

    def everything(self) -> Batch: ...

    def __len__(self) -> int: ...


class Visible(Signal, Protocol):
    """A signal that can be looked at: a picture, a clip, or photographs of an object."""

    @property
    def values(self) -> Tensor:
        """Colours ``[*shape, C]`` in [0, 1]; those of a picture, of frames, or of photographs of one size."""
        ...

    @property
    def grid_axes(self) -> int:
        """How many axes, right before the channels, are a grid on which neighbours are alike."""
        ...

    def like(self, values: Tensor) -> Visible:
        """The same signal with other colours ``[*shape, C]``, all of which may be seen; they may have history."""
        ...


class Task(NamedTuple):
    """One thing to adapt to: ``support`` is fitted, ``query`` judges the fit (for images both are the image)."""

    support: Signal
    query: Signal
    name: str = ""


class Client(NamedTuple):
    """An owner: tasks to train on, tasks kept back to evaluate on."""

    name: str
    train: tuple[Task, ...]
    held_out: tuple[Task, ...] = ()


class Visit(NamedTuple):
    """What a client knows about the visit in which a gradient is asked for.

    Attributes:
        anchor: the received global weights, without the client's own leaves.
        generator: source of all randomness of this visit.
        outer_lr: step size of the local optimiser (lambda_o).
        step_share: N / (R E M), the inverse of the outer steps that one client is expected to take in the
            whole run; an adaptive gamma divides its budget with it.
        differentiable: keep the history of estimates, so that they can be differentiated with respect to the
            weights and to the signal; their values are the same. The audit asks for it, training does not.
    """

    anchor: Params
    generator: Generator
    outer_lr: float = 1.0
    step_share: float = 1.0
    differentiable: bool = False


class Field(Protocol):
    """Coordinates ``[B, in_dim]`` in [-1, 1] to values ``[B, out_dim]``, as a pure function of its weights."""

    def init(self, in_dim: int, out_dim: int, generator: Generator) -> Params: ...

    def __call__(self, params: Params, inputs: Tensor) -> Tensor: ...


Noise = Callable[[str, "Tensor"], "Tensor"]
"""What is done to the hidden activations ``[B, C, ...]`` of a model's layer of this name: the same, perturbed."""


class Model(Protocol):
    """Samples ``[B, *inputs]`` to ``[B, ..., outputs]``, as a pure, twice differentiable function of its weights."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Channels C of the activations of each hidden layer, by its name."""
        ...

    def init(self, inputs: tuple[int, ...], outputs: int, generator: Generator) -> Params:
        """First weights, for samples of the shape ``inputs``."""
        ...

    def __call__(self, params: Params, x: Tensor, noise: Noise = ...) -> Tensor:
        """The outputs; ``noise`` is called once on each hidden layer's activations."""
        ...


Memory = dict[str, Params]
"""What a client keeps between visits (control variates, optimiser state): goes in and out explicitly."""

Advance = Callable[[str, int, int], None]
"""Is told how far long work has come: what is done, how much of it, of how much."""

Options = Mapping[str, Any]
