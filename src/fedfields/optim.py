"""Optimisers as pure functions of weights, gradients and state; equal to ``torch.optim`` step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Memory, Params


def falling(final: float, progress: float) -> float:
    """The share of a step size when ``progress`` of the run is over: from 1 to ``final`` along half a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent, with heavy-ball momentum if asked for."""

    momentum: float = 0.0
    """Factor of the velocity."""

    def init(self, params: Params) -> Memory:
        """State before the first step."""
        return {"velocity": tree.zeros(params)} if self.momentum else {}

    def step(self, params: Params, grads: Params, state: Memory, lr: float) -> tuple[Params, Memory]:
        """One step of size ``lr``: new weights and new state."""
        if self.momentum:
            grads = tree.add(grads, state["velocity"], self.momentum)
            state = {"velocity": grads}
        return tree.add(params, grads, -lr), state


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction (Kingma and Ba, ICLR 2015, algorithm 1)."""

    beta1: float = 0.9
    """Decay of the mean."""

    beta2: float = 0.999
    """Decay of the mean square."""

    epsilon: float = 1e-8
    """Added to the root of the mean square."""

    def init(self, params: Params) -> Memory:
        """State before the first step."""
        return {"mean": tree.zeros(params), "square": tree.zeros(params), "step": {"count": torch.zeros(())}}

    def step(self, params: Params, grads: Params, state: Memory, lr: float) -> tuple[Params, Memory]:
        """One step of size ``lr``: new weights and new state."""
        from torch.optim.adam import adam

        new, mean, square = (
            [part[key].clone(memory_format=torch.contiguous_format) for key in params]
            for part in (params, state["mean"], state["square"])
        )
        counts = [state["step"]["count"].clone() for _ in new]
        adam(
            new,
            [grads[key].contiguous() for key in params],
            mean,
            square,
            [],
            counts,
            fused=True,  # One pass over memory instead of a dozen.
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=False,
        )
        kept = {"mean": dict(zip(params, mean, strict=True)), "square": dict(zip(params, square, strict=True))}
        return dict(zip(params, new, strict=True)), kept | {"step": {"count": counts[0]}}


Optimizer = Sgd | Adam
