"""What an attacker is after: the colours of a client's first training task, or of all clients of a secure sum.

Where they are is public: the pixels of a picture, or (an upper bound for attackers) the cameras of photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedfields import tree
from fedfields.metrics import psnr
from fedfields.types import Params, Task, Visible

MOST = 4096
"""Colours of an object that attacks are judged on: as many whole photographs as fit, at least one."""


@dataclass(frozen=True, eq=False)
class Target:
    """A task whose colours are secret.

    The unknowns are the colours of the query and, where it is another signal, of the support behind them. Attacks
    are judged on the query; on its first photographs, if it is a set of many.
    """

    query: Visible
    support: Visible

    @property
    def shared(self) -> bool:
        """Whether the support is the query, as for pictures and clips."""
        return self.support is self.query

    @cached_property
    def unknown(self) -> Tensor:
        """All secret colours, ``[*shape, C]``."""
        return self.query.values if self.shared else torch.cat([self.query.values, self.support.values])

    @property
    def grid_axes(self) -> int:
        """As of its signals."""
        return self.query.grid_axes

    def task(self, values: Tensor) -> Task:
        """The client's task if its colours were ``values``, shaped as `unknown`; differentiable."""
        if self.shared:
            signal = self.query.like(values)
            return Task(signal, signal)
        count = len(self.query.values)
        return Task(self.support.like(values[count:]), self.query.like(values[:count]))

    def judged(self, values: Tensor) -> Tensor:
        """The part of ``values``, shaped as `unknown`, on which attacks are judged."""
        return values if self.shared else values[: self._photographs]

    @cached_property
    def truth(self) -> Tensor:
        """What is judged, as it is: ``[*shape, C]``."""
        return self.judged(self.unknown)

    @cached_property
    def inputs(self) -> Any:
        """Where the colours of `truth` are."""
        inputs = self.query.like(self.query.values).everything().inputs
        return inputs if self.shared else inputs.chosen(slice(0, self.truth[..., 0].numel()))

    @property
    def _photographs(self) -> int:
        each = self.query.values[0, ..., 0].numel()
        return max(1, min(len(self.query.values), MOST // each))


def target_of(task: Task) -> Target:
    """The target that a task is.

    Raises:
        TypeError: its signals cannot be looked at.
    """
    if not (hasattr(task.query, "like") and hasattr(task.support, "like")):
        raise TypeError(f"a {type(task.query).__name__} cannot be looked at; no audit is made for it")
    return Target(task.query, task.support)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Cohort:
    """The targets of one observation, by client: of a single upload one, of a secure sum all that are in it.

    Values of a cohort are its pictures stacked, ``[n, *shape, C]``: all of one shape.
    """

    targets: Mapping[str, Target]

    @property
    def alike(self) -> bool:
        """Whether the secrets have one shape, so that they can be stacked."""
        return len({target.unknown.shape for target in self.targets.values()}) == 1

    @cached_property
    def unknown(self) -> Tensor:
        """All secret colours."""
        return torch.stack([target.unknown for target in self.targets.values()])

    @property
    def grid_axes(self) -> int:
        """As of its signals."""
        return next(iter(self.targets.values())).grid_axes

    def tasks(self, values: Tensor) -> dict[str, Task]:
        """The clients' tasks if their colours were ``values``; differentiable."""
        return {client: target.task(one) for (client, target), one in zip(self.targets.items(), values, strict=True)}

    def update(self, simulated: Callable[[str, Task], Params], values: Tensor) -> Params:
        """The mean of the updates that clients and their tasks would send if their colours were ``values``."""
        updates = [simulated(client, task) for client, task in self.tasks(values).items()]
        return tree.scale(tree.tree_map(lambda *leaves: torch.stack(leaves).sum(0), *updates), 1 / len(updates))

    def assigned(self, values: Tensor) -> dict[str, Tensor]:
        """What is judged of ``values``, each picture given to a client so that the mean PSNR is highest.

        Nothing in a sum tells who is who; the attacker is granted the best assignment (the Hungarian method).
        """
        from scipy.optimize import linear_sum_assignment

        names, targets = list(self.targets), list(self.targets.values())
        found = [target.judged(one) for target, one in zip(targets, values, strict=True)]
        gains = [[psnr(picture.nan_to_num(0.5), target.truth) for target in targets] for picture in found]
        pictures, owners = linear_sum_assignment(gains, maximize=True)
        return {names[owner]: found[picture] for picture, owner in zip(pictures, owners, strict=True)}
