"""Optimisers as pure functions of weights, gradients and state; equal to ``torch.optim`` step by step."""

from __future__ import annotations

from dataclasses import dataclass

from fedfields import tree
from fedfields.lazy import torch
from fedfields.types import Memory, Params


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
        count = float(state["step"]["count"]) + 1
        mean = tree.tree_map(lambda m, g: torch.lerp(m, g, 1 - self.beta1), state["mean"], grads)
        square = tree.tree_map(
            lambda v, g: (self.beta2 * v).addcmul(g, g, value=1 - self.beta2), state["square"], grads
        )
        correction = (1 - self.beta2**count) ** 0.5
        size = lr / (1 - self.beta1**count)
        params = tree.tree_map(
            lambda p, m, v: torch.addcdiv(p, m, v.sqrt() / correction + self.epsilon, value=-size),
            params,
            mean,
            square,
        )
        return params, {"mean": mean, "square": square, "step": {"count": torch.tensor(count)}}


Optimizer = Sgd | Adam
