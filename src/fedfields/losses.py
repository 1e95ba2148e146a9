"""The seam. An algorithm sees a loss ``(params, batch) -> scalar`` and never learns what the model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fedfields import tree
from fedfields.fields.hashgrid import density_of, shaded
from fedfields.fields.personal import TRANSIENT, Joint, Parts, of_owner, together
from fedfields.lazy import torch
from fedfields.models.layers import keep
from fedfields.rendering.compositing import Rendered
from fedfields.rendering.marching import Marched, Marching, along, march_rays, view_rays
from fedfields.rendering.rays import RadianceField, Rays, RenderSettings, in_chunks, march, render_pair
from fedfields.types import Batch, Client, Model, Noise, Params, Task, Visible, VisibleLoss

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module


CODES = "own.codes"
"""The leaf with the appearance codes of a client's photographs, ``[P, A]``. It never leaves the client."""


@dataclass(frozen=True)
class FieldLoss:
    """Mean squared error of a field over samples and channels."""

    field: Callable[[Params, Tensor], Tensor]

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return (self.show(params, batch.inputs) - batch.targets).square().mean()

    def show(self, params: Params, inputs: Tensor) -> Tensor:
        """The colours ``[B, C]`` at coordinates ``[B, D]``."""
        return self.field(params, inputs)

    @property
    def chunk(self) -> int:
        """How many inputs to show at a time where there are very many."""
        return 65536

    def mirror(self, params: Params, batch: Batch) -> Batch:
        """The batch whose residuals are the negatives of this one's: targets ``2 f(x) - y``."""
        with torch.no_grad():
            shown = self.show(params, batch.inputs)
        return Batch(batch.inputs, 2 * shown - batch.targets)


@dataclass(frozen=True)
class RadianceLoss:
    """Mean squared error of the rendered colour over rays and channels; the inputs of a batch are `Rays`.

    A field with a ``coarse`` half is rendered twice if the settings ask for fine samples; the errors are added. The
    distortion of the last rendering may be a further term. If the field reads appearance codes, every photograph of a
    client has one: the client's own leaf. With an own part beside it, which may be uncertain, see `_Watched`.
    """

    field: RadianceField
    settings: RenderSettings = dataclasses.field(default_factory=RenderSettings)

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        params = of_owner(params, batch.inputs.owner)
        watched = _Watched(self.field, params)
        *coarse, seen = self.see(params, batch.inputs, watched)
        error = watched.error(
            (seen.colour - batch.targets).square(),
            lambda parts: (seen.weights * parts.doubt.view_as(seen.weights)).sum(1),
        )
        for shown in coarse:
            error = watched.scale * (shown.colour - batch.targets).square().mean() + error
        return _regularised(error, seen.distortion, self.settings.distortion) + watched.penalty()

    def own(self, client: Client, generator: Generator) -> Params:
        """Appearance codes where the field reads them, and an own part where it has one."""
        return _own(self.field, client, generator)

    def at(self, progress: float) -> RadianceLoss:
        """The loss when a share ``progress`` of the run is over."""
        return dataclasses.replace(self, field=_field_at(self.field, progress))

    def see(self, params: Params, rays: Rays, radiance: Callable[..., Any] | None = None) -> list[Rendered]:
        """What the field shows along rays, the best last: twice, if it is a coarse and a fine one."""
        rays, radiance = _in_its_light(params, rays), radiance or partial(self.field, params)
        coarse = getattr(self.field, "coarse", None)
        if coarse is None or self.settings.fine == 0:
            return [march(radiance, rays, self.settings)]
        return list(render_pair(partial(coarse, params), radiance, rays, self.settings))

    def show(self, params: Params, inputs: Rays) -> Tensor:
        """The colours ``[R, 3]`` along rays."""
        return self.see(params, inputs)[-1].colour

    @property
    def chunk(self) -> int:
        """How many rays to show at a time where there are very many: 8192 samples, which suits a processor's cache."""
        return max(1, 8192 // self.settings.jitters)

    def render(self, params: Params, rays: Rays) -> Marched:
        """What is seen along all rays, without history."""
        return Marched(*in_chunks(lambda part: self.see(params, part)[-1], rays, self.chunk))

    def mirror(self, params: Params, batch: Batch) -> Batch:
        """The batch whose residuals are the negatives of this one's, along the same rays."""
        with torch.no_grad():
            shown = self.show(params, batch.inputs)
        return Batch(batch.inputs, 2 * shown - batch.targets)


@dataclass(frozen=True, eq=False)
class MarchedLoss:
    """Mean squared error of the colour of marched rays: as `RadianceLoss`, without samples in empty space.

    The occupancy grid follows the field as it learns: whoever trains calls :meth:`refreshed` now and then, and keeps
    what it returns. It is the client's own and never travels.
    """

    field: Any
    """A radiance field over [-1, 1]^3 that also has ``density(params, positions)``."""

    settings: Marching = dataclasses.field(default_factory=Marching)
    densities: Tensor | None = None
    """What the grid knows, ``[G, G, G]``; without it, everything counts as occupied."""

    gloss: float = 0.0
    """Of a `HashGrid`: weight of the mean square, over all samples, of its spherical harmonics of degree 1 and 2."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        params = of_owner(params, batch.inputs.owner)
        rays, watched = _in_its_light(params, batch.inputs), _Watched(self.field, params, self.gloss)
        seen, samples = march_rays(watched, rays, self.settings, self.occupied, self.settings.samples)
        error = watched.error(
            (seen.colour - batch.targets[: samples.rays]).square(),
            lambda parts: along(parts.density, parts.doubt, samples),
        )
        return _regularised(error, seen.distortion, self.settings.distortion) + watched.penalty()

    def own(self, client: Client, generator: Generator) -> Params:
        """Appearance codes where the field reads them, and an own part where it has one."""
        return _own(self.field, client, generator)

    def at(self, progress: float) -> MarchedLoss:
        """The loss when a share ``progress`` of the run is over."""
        return dataclasses.replace(self, field=_field_at(self.field, progress))

    @property
    def refresh_every(self) -> int:
        """Outer steps after which :meth:`refreshed` is due."""
        return self.settings.refresh

    @property
    def occupied(self) -> Tensor:
        """Which cells are not empty, ``[G, G, G]``."""
        if self.densities is None:
            return torch.ones((self.settings.cells,) * 3, dtype=torch.bool)
        return self.settings.occupied(self.densities)

    def refreshed(self, params: Params, kept: Params, generator: Generator) -> tuple[MarchedLoss, Params]:
        """The loss with a grid that has looked at the field again, and what the client keeps of it."""
        weights = tree.detach(params)
        device = next(iter(weights.values())).device
        found = self.settings.look(
            lambda points: self.field.density(weights, points.to(device)), kept.get("densities"), generator
        )
        return dataclasses.replace(self, densities=found), {"densities": found}

    def render(self, params: Params, rays: Rays, chunk: int = 4096) -> Marched:
        """What is seen along all rays, ``chunk`` at a time, without history."""
        radiance, occupied, rays = partial(self.field, params), self.occupied, _in_its_light(params, rays)
        return Marched(*in_chunks(lambda part: view_rays(radiance, part, self.settings, occupied), rays, chunk))


def _regularised(error: Tensor, distortion: Tensor, weight: float) -> Tensor:
    """The error plus ``weight`` times the mean distortion of the rays, where it has a weight."""
    return error + weight * distortion.mean() if weight else error


class _Watched:
    """A field with its weights that remembers what its parts were where it was asked last, and what they cost.

    With an own part that is uncertain, the error of a ray is that of *NeRF in the Wild*, eq. 13, of which
    nerf_pl takes the mean over channels: ``(C - C')^2 / (2 beta^2) + log(beta / beta_min)``. Here beta is beta_min plus
    the own part's uncertainty, composited along the ray like its colour. The constant keeps this from being negative.
    """

    def __init__(self, field: Any, params: Params, gloss: float = 0.0) -> None:
        self._field, self._params = field, params
        personal = field.personal if isinstance(field, Joint) else None
        self._weight = personal.weight if personal else 0.0
        self._floor = personal.beta if personal else 0.0
        self._parts: Parts | None = None
        self._gloss, self._shine = gloss, 0.0

    def __call__(self, *at: Tensor) -> tuple[Tensor, Tensor]:
        if self._gloss:
            return self._matt(*at)
        if not self._weight and not self._floor:
            return self._field(self._params, *at)
        parts: Parts = self._field.parts(self._params, *at)
        self._parts = parts
        return parts.density, parts.colour

    def _matt(self, positions: Tensor, directions: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A hash grid, and the price of its view dependence."""
        latents = self._field.latents(self._params, positions)
        shades = self._field.coefficients(self._params, latents, codes)
        self._shine = self._gloss * shades[..., 1:].square().mean() if len(shades) else 0.0
        return density_of(latents[:, 0]), shaded(shades, directions)

    @property
    def scale(self) -> float:
        """Weight of a coarse rendering's mean squared error: a half beside errors with an uncertainty."""
        return 0.5 if self._floor else 1.0

    def error(self, squares: Tensor, composited: Callable[[Parts], Tensor]) -> Tensor:
        """The mean over rays of squared errors ``[R, 3]``, as uncertain as the own part is.

        Args:
            squares: of the colours.
            composited: how uncertain the parts are along each ray, ``[R]``.
        """
        if not self._floor:
            return squares.mean()
        assert self._parts is not None
        relative = 1 + composited(self._parts) / self._floor
        return (squares / (2 * (self._floor * relative[:, None]).square())).mean() + relative.log().mean()

    def penalty(self) -> Tensor | float:
        """The weighted mean density of the own part over all samples, or that of the squared view dependence."""
        own = self._weight * self._parts.own.mean() if self._weight and self._parts is not None else 0.0
        return own + self._shine


def _field_at(field: Any, progress: float) -> Any:
    return field.at(progress) if isinstance(field, Joint) else field


def _own(field: Any, client: Client, generator: Generator) -> Params:
    """A client's leaves: an appearance code for each photograph, if the field reads any, and an own part if it has one.

    Appearance codes are zeros, the neutral look, at first. A client with the photographs of several owners, one task
    each, has an own part for each of them: leaves ``[owners, ...]``.
    """
    length, own = getattr(field, "appearance", 0), {}
    if length:
        own[CODES] = torch.zeros(_photos(client.train[0]), length)
    if isinstance(field, Joint):
        parts = [field.own(_photos(task), generator) for task in client.train]
        own |= parts[0] if len(parts) == 1 else together(parts)
    return own


def _photos(task: Task) -> int:
    """How many photographs a task has."""
    return len(task.support.photos)  # pyright: ignore[reportAttributeAccessIssue]


def _in_its_light(params: Params, rays: Rays) -> Rays:
    """The rays with the codes of their photographs, appearance first, where the weights hold some."""
    codes = [params[name] for name in (CODES, TRANSIENT) if name in params]
    if rays.photo is None or not codes:
        return rays
    return rays._replace(codes=torch.cat(codes, 1)[rays.photo])


@dataclass(frozen=True)
class ModelLoss:
    """Cross entropy or mean squared error of a model (`fedfields.models`), over everything in the batch."""

    model: Model

    kind: Literal["classes", "numbers"] = "classes"
    """What is predicted: classes, of which the targets ``[B, ...]`` are the numbers (int64) and the outputs
    ``[B, ..., classes]`` the logits; or numbers, targets as large as the outputs. Classes of -100 do not count."""

    noise: Noise = keep
    """What is done to the activations of each hidden layer; nothing but in an inner loop that asks for it."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        outputs, targets = self.predict(params, batch.inputs), batch.targets
        wanted = outputs.shape[:-1] if self.kind == "classes" else outputs.shape
        if targets.shape != wanted:  # Otherwise they would be broadcast.
            raise ValueError(f"the targets are {list(targets.shape)}, and the model's outputs ask for {list(wanted)}")
        if self.kind == "classes":
            return torch.nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        return (outputs - targets).square().mean()

    def predict(self, params: Params, inputs: Tensor) -> Tensor:
        """The model's outputs ``[B, ..., outputs]``."""
        return self.model(params, inputs, self.noise)

    def noisy(self, noise: Noise) -> ModelLoss:
        """The loss with this noise in every hidden layer."""
        return dataclasses.replace(self, noise=noise)

    @property
    def widths(self) -> Mapping[str, int]:
        """Channels of each hidden layer, by its name."""
        return self.model.widths


@dataclass(frozen=True)
class ModuleLoss:
    """Any ``torch.nn.Module`` with any criterion ``(outputs, targets) -> scalar``.

    ``params_of(module)`` gives the weights to start from. The module is called as in evaluation, so that its outputs
    depend on weights and inputs alone: dropout layers are off, except in inner loops that ask for dropout, and batch
    normalisation uses its running statistics and never updates them, or those of the batch if it tracks none. Group or
    layer norm are safer.
    """

    module: Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    noise: Noise | None = None
    """What takes the place of the module's dropout layers; without it they do nothing."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.criterion(self.predict(params, batch.inputs), batch.targets)

    def predict(self, params: Params, inputs: Tensor) -> Tensor:
        """The module's outputs with ``params`` in place of its own."""
        training = [module for module in self.module.modules() if module.training]
        hooks = []
        if self.noise is not None:
            for name, module in self._dropouts().items():
                hooks.append(module.register_forward_hook(partial(_noised, self.noise, name)))
        try:
            for module in training:
                module.training = False
            weights, _ = tree.parted(params)
            return torch.func.functional_call(self.module, weights, (inputs,))
        finally:
            for module in training:
                module.training = True
            for hook in hooks:
                hook.remove()

    def noisy(self, noise: Noise) -> ModuleLoss:
        """The loss with this noise where the module has dropout layers; how much they drop is up to the noise.

        Raises:
            ValueError: it has none.
        """
        if not self._dropouts():
            name = type(self.module).__name__
            raise ValueError(f"{name} has no dropout layer; put nn.Dropout where noise is to be, or ask for none")
        return dataclasses.replace(self, noise=noise)

    def _dropouts(self) -> dict[str, Module]:
        kind = torch.nn.modules.dropout._DropoutNd
        return {name: module for name, module in self.module.named_modules() if isinstance(module, kind)}


def _noised(noise: Noise, name: str, layer: Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """What a dropout layer gives on instead of its output, as torch's forward hooks have it."""
    return noise(name, output)


def render(loss: VisibleLoss, params: Params, signal: Visible) -> Tensor:
    """What the field shows where the signal is, all of it: ``[*shape, C]``, not clamped."""
    inputs, count = signal.like(signal.values).everything().inputs, signal.values[..., 0].numel()
    parts = [slice(a, a + loss.chunk) for a in range(0, count, loss.chunk)]
    with torch.no_grad():
        pieces = [loss.show(params, inputs.chosen(p) if isinstance(inputs, Rays) else inputs[p]) for p in parts]
    return torch.cat(pieces).reshape(signal.values.shape)


def params_of(module: Module) -> Params:
    """A copy of a module's trainable weights."""
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
