"""Personal content: what of the people in front of a place is in what the server can render.

DecentNeRF (Sandhu et al., arXiv 2403.13199, section 4) measures it by the PSNR between such a render and the owner's
photograph, where people are. A flat colour may score well there, so the leak fraction stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedfields.metrics import leak_fraction, psnr
from fedfields.rendering.rays import Rays
from fedfields.scenes.visitors import Occluded, rays_of


class Content(NamedTuple):
    """What a render shows of the people in one owner's photographs, over all pixels that they cover.

    Attributes:
        leak: the leak fraction, 0 for none of them and 1 for all; below 0 where the render errs the other way.
        psnr: between render and photographs, in dB; lower is better.
        floor: between the place without them and the photographs, in dB: what a render that leaks nothing scores.
    """

    leak: float
    psnr: float
    floor: float


def content_of(see: Callable[[Rays], Tensor], shots: Sequence[Occluded]) -> Content | None:
    """Renders the covered pixels of one owner's photographs; None if there are none.

    Args:
        see: rays to colours ``[R, 3]``.
        shots: the photographs, and what is behind the people in them.
    """
    mask = torch.cat([one.mask.flatten() for one in shots])
    if not bool(mask.any()):
        return None
    image, clean = (
        torch.cat([colours.reshape(-1, 3) for colours in each])[mask].float() / 255
        for each in ([one.photo.colours for one in shots], [one.clean for one in shots])
    )
    seen = see(rays_of([one.photo for one in shots]).chosen(mask.nonzero()[:, 0]))
    everywhere = torch.ones(len(seen), dtype=torch.bool)
    return Content(leak_fraction(seen, clean, image, everywhere), psnr(seen, image), psnr(clean, image))


def over_owners(contents: Sequence[Content]) -> dict[str, float]:
    """The mean over owners, and the worst of them."""
    leaks, scores, floors = zip(*contents, strict=True)
    means = {"leak": leaks, "psnr": scores, "floor": floors}
    return {name: sum(values) / len(values) for name, values in means.items()} | {
        "leak_worst": max(leaks),
        "psnr_worst": max(scores),
        "owners": len(contents),
    }
