"""The seam. An algorithm sees a loss ``(params, batch) -> scalar`` and never learns what the model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfields.lazy import torch
from fedfields.rendering.rays import RadianceField, RenderSettings, render_rays
from fedfields.types import Batch, Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@dataclass(frozen=True)
class FieldLoss:
    """Mean squared error of a field over samples and channels."""

    field: Callable[[Params, Tensor], Tensor]

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return (self.field(params, batch.inputs) - batch.targets).square().mean()

    def mirror(self, params: Params, batch: Batch) -> Batch:
        """The batch whose residuals are the negatives of this one's: targets ``2 f(x) - y``."""
        with torch.no_grad():
            shown = self.field(params, batch.inputs)
        return Batch(batch.inputs, 2 * shown - batch.targets)


@dataclass(frozen=True)
class RadianceLoss:
    """Mean squared error of the rendered colour over rays and channels; the inputs of a batch are `Rays`."""

    field: RadianceField
    settings: RenderSettings = dataclasses.field(default_factory=RenderSettings)

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        shown = render_rays(self.field, params, batch.inputs, self.settings).colour
        return (shown - batch.targets).square().mean()

    def mirror(self, params: Params, batch: Batch) -> Batch:
        """The batch whose residuals are the negatives of this one's, along the same rays."""
        with torch.no_grad():
            shown = render_rays(self.field, params, batch.inputs, self.settings).colour
        return Batch(batch.inputs, 2 * shown - batch.targets)


@dataclass(frozen=True)
class ModuleLoss:
    """Any ``torch.nn.Module`` with any criterion ``(outputs, targets) -> scalar``.

    ``params_of(module)`` gives the weights to start from. Modules with buffers that change in the forward pass
    (batch normalisation in training mode) have state that is not in ``params``; use group or layer norm instead.
    """

    module: Module
    criterion: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.criterion(self.predict(params, batch.inputs), batch.targets)

    def predict(self, params: Params, inputs: Tensor) -> Tensor:
        """The module's outputs with ``params`` in place of its own."""
        return torch.func.functional_call(self.module, params, (inputs,))


def params_of(module: Module) -> Params:
    """A copy of a module's trainable weights."""
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
