"""What a server could get of a photograph of a place out of an upload, if it knew the owner's camera: the worst case.

It knows the weights w that it sent and the upload u (of a secure sum, the mean of all uploads in it), and renders both
where the owner stood. What w shows is the floor: everybody may see it. Beyond it the server looks at what u shows, and
goes on along the step from w to u: in the weights, or between the two pictures. Training is not simulated here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedfields import tree
from fedfields.audit.content import Content
from fedfields.audit.observe import Observation
from fedfields.audit.readouts import FACTORS, Readout, affine, nearest, regress
from fedfields.metrics import leak_fraction, psnr
from fedfields.rendering.rays import Rays
from fedfields.scenes.visitors import Occluded
from fedfields.types import Params

NOT_COVERED = (
    "Not tried: inverting local training (gradient matching, Gauss-Newton), combining rounds or subtracting sums of "
    "different cohorts, and fitting a light where photographs have codes for it; what these would find is not known."
)

SPARE = 0.01
"""Share of the values of a picture that may become impossible when a server extrapolates it."""

See = Callable[[Params, Rays], Tensor]
"""Weights and rays to colours ``[R, 3]``."""


class Renders(NamedTuple):
    """What a server renders where a photograph was taken.

    Attributes:
        public: ``[n, 3]``, of the weights that it sent.
        upload: ``[n, 3]``, of the upload or the mean of a sum.
        far: ``[F, n, 3]``, of weights on the line through both, beyond the upload.
        scaled: ``[n, 3]``, of the sum's step times the number of its owners: of one owner's upload, had the others
            sent back what they got; None of a single upload.
    """

    public: Tensor
    upload: Tensor
    far: Tensor
    scaled: Tensor | None = None

    def at(self, pixels: Tensor | slice) -> Renders:
        """The same in some pixels, or in those of a mask ``[n]``."""
        scaled = None if self.scaled is None else self.scaled[pixels]
        return Renders(self.public[pixels], self.upload[pixels], self.far[:, pixels], scaled)

    def split(self, counts: Sequence[int]) -> list[Renders]:
        """The renders of several photographs with so many pixels, one by one."""
        ends = list(itertools.accumulate(counts, initial=0))
        return [self.at(slice(start, end)) for start, end in itertools.pairwise(ends)]


def rendered(see: See, one: Observation, rays: Rays) -> Renders:
    """Renders what was observed along the rays of a photograph; what is not finite is grey, the rest is clamped."""
    step, count = tree.sub(one.upload, one.start), len(one.clients)

    def at(factor: float) -> Tensor:
        return see(tree.add(one.start, step, factor), rays).nan_to_num(0.5).clamp(0, 1)

    public, upload = (see(weights, rays).nan_to_num(0.5).clamp(0, 1) for weights in (one.start, one.upload))
    return Renders(public, upload, torch.stack([at(factor) for factor in FACTORS]), at(count) if count > 1 else None)


def realisable(seen: Renders) -> dict[str, Tensor]:
    """Pictures ``[n, 3]`` that a server gets without knowing the photograph."""
    step = seen.upload - seen.public
    found = {
        "direct": seen.upload,
        "picture": (seen.public + farthest(seen.public, step) * step).clamp(0, 1),
    }
    return found if seen.scaled is None else found | {"scaled": seen.scaled}


def lucky(seen: Renders, truth: Tensor) -> dict[str, Tensor]:
    """Pictures with the best factor of all: no attacker knows it, but one could guess it."""
    step = seen.upload - seen.public
    factor = ((truth - seen.public) * step).sum() / step.square().sum().clamp_min(1e-30)
    return {
        "picture_best": (seen.public + factor * step).clamp(0, 1),
        "extrapolation": nearest([seen.upload, *seen.far, *([] if seen.scaled is None else [seen.scaled])], truth),
    }


def fitted(seen: Renders, truth: Tensor) -> dict[str, Tensor]:
    """Pictures whose brightness and contrast are fitted to the truth, for photographs in another light."""
    return {
        "affine": affine(seen.upload, truth),
        "difference": affine(seen.upload - seen.public, truth),
        "two_regressors": regress([seen.upload, seen.public], truth),
    }


def farthest(public: Tensor, step: Tensor) -> float:
    """How far a server can go from one picture along a step until it is a picture no more: its own criterion.

    The largest factor a for which all values of ``public + a step`` but a share of `SPARE` lie in [0, 1]; at least 1.
    If the upload has gone a share e of the way to a photograph, that is 1/e or more. Both ``[n, 3]``, public in [0, 1].
    """
    room = torch.where(step > 0, 1 - public, public) / step.abs().clamp_min(1e-12)
    bounds = room[step.abs() > 1e-6]  # Where nothing changes, nothing becomes impossible.
    if not len(bounds):
        return 1.0
    return max(1.0, float(bounds.sort().values[int(SPARE * len(bounds))]))


def readouts(seen: Renders, truth: Tensor) -> dict[str, Readout]:
    """Everything that was tried on one photograph ``[n, 3]``, and whether the truth helped."""
    found = {name: Readout(values, False) for name, values in realisable(seen).items()}
    helped = lucky(seen, truth) | fitted(seen, truth)
    return found | {name: Readout(values, True) for name, values in helped.items()}


def contents(seen: Renders, shot: Occluded) -> dict[str, Content]:
    """How much of the people in a photograph each attack shows, and under "public" what everybody sees of them.

    Factors that need luck are chosen for the people alone. Empty if there are none.
    """
    mask = shot.mask.flatten()
    if not bool(mask.any()):
        return {}
    image, clean = (colours.reshape(-1, 3)[mask].float() / 255 for colours in (shot.photo.colours, shot.clean))
    found = {"public": seen.public} | realisable(seen)
    shown = {name: values[mask] for name, values in found.items()} | lucky(seen.at(mask), image)
    everywhere = torch.ones(len(image), dtype=torch.bool)
    return {
        name: Content(leak_fraction(values, clean, image, everywhere), psnr(values, image), psnr(clean, image))
        for name, values in shown.items()
    }
