"""A recurrent network for sequences: the gated recurrent unit (Cho et al., EMNLP 2014), in torch's parametrisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.models.layers import keep, layer, linear, positive
from fedfields.types import Noise, Params

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Recurrent:
    """An embedding, one layer of gated recurrent units, and a linear last layer: what comes next at every place.

    The units are written out, because torch's fused ones have no second derivative on every device.
    """

    embedding: int = 8
    """Numbers that stand for a token."""

    hidden: int = 64
    """Units of the recurrent layer."""

    def __post_init__(self) -> None:
        positive("a recurrent network", embedding=self.embedding, hidden=self.hidden)

    @property
    def widths(self) -> dict[str, int]:
        """Units of the hidden layer, by its name."""
        return {"recurrent": self.hidden}

    def init(self, inputs: tuple[int, ...], outputs: int, generator: Generator) -> Params:
        """Embeddings from N(0, 1), the rest in U(-a, a); ``inputs`` is ``[L]``, ``outputs`` the number of tokens.

        Raises:
            ValueError: a sample is no sequence.
        """
        if len(inputs) != 1:
            raise ValueError(f"a recurrent network needs samples [L] of token numbers, these are {list(inputs)}")
        bound = self.hidden**-0.5
        params = {"embedding.weight": torch.randn(outputs, self.embedding, generator=generator)}
        for name, fan_in in (("input", self.embedding), ("recurrent", self.hidden)):
            for part, shape in (("weight", (3 * self.hidden, fan_in)), ("bias", (3 * self.hidden,))):
                params[f"{name}.{part}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return params | layer("last_layer", (outputs, self.hidden), generator)

    def __call__(self, params: Params, x: Tensor, noise: Noise = keep) -> Tensor:
        """Token numbers ``[B, L]`` (int64) to logits ``[B, L, outputs]`` of the next token at each place."""
        embedded = torch.nn.functional.embedding(x, params["embedding.weight"])
        states, state = [], embedded.new_zeros(len(x), self.hidden)
        for given in linear(params, "input", embedded).unbind(1):
            state = _step(given, linear(params, "recurrent", state), state)
            states.append(state)
        hidden = noise("recurrent", torch.stack(states, 2))
        return linear(params, "last_layer", hidden.transpose(1, 2))


def _step(given: Tensor, recalled: Tensor, state: Tensor) -> Tensor:
    """The state ``[B, H]`` after one token, from what input and state give to the gates, ``[B, 3 H]`` each."""
    (reset, update, new), (old_reset, old_update, old) = given.chunk(3, 1), recalled.chunk(3, 1)
    reset, update = (reset + old_reset).sigmoid(), (update + old_update).sigmoid()
    return torch.lerp((new + reset * old).tanh(), state, update)
