"""People in front of a place, a different group for each owner, and exactly which pixels they cover.

They are what an owner's photographs show and nobody else's do: personal content. They stand still while their owner
takes photographs. What would be seen without them is kept for scoring and never trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from fedfields.lazy import torch
from fedfields.rendering.rays import Rays
from fedfields.scenes.sdf import Capsule, Part, Plain, SmoothUnion, Sphere, Stripes, Vector, joined, look
from fedfields.scenes.views import Photo, RaySignal, photo_rays
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

T = TypeVar("T")

Crowd = Literal["none", "light", "heavy", "mixed"]
"""Who stands before the place: nobody; a small figure at the side; three people; or the last two in turn."""

HEIGHTS = {"light": (0.36,), "heavy": (0.75, 0.82, 0.55)}
"""In units of half the frame's edge."""

ABREAST = 0.27
"""Between neighbours, in the same units."""

STANDING = 0.83
"""Horizontal distance from the middle of the frame, in the same units."""

SKIN = ((0.96, 0.82, 0.70), (0.87, 0.67, 0.52), (0.66, 0.46, 0.33), (0.42, 0.28, 0.20))
HAIR = ((0.10, 0.08, 0.07), (0.32, 0.20, 0.11), (0.78, 0.62, 0.32), (0.62, 0.60, 0.58))


class Occluded(NamedTuple):
    """A photograph with people in front, and what is behind them, which only a simulation can know.

    Attributes:
        photo: as its owner has it.
        clean: ``[h, w, 3]`` uint8, what it would show without them.
        mask: ``[h, w]`` bool, which pixels they cover.
    """

    photo: Photo
    clean: Tensor
    mask: Tensor


Sharing = Literal["federated", "pooled", "grouped", "alone"]
"""What owners share: weights; the photographs, with one client that trains on all, and that does not know whose they
are, or does; nothing, one owner trains alone."""


def in_hands(
    shots: Sequence[Sequence[Occluded]], sharing: Sharing, jitters: int, known_background: bool = True
) -> tuple[tuple[Client, ...], tuple[tuple[Occluded, ...], ...]]:
    """Who trains, and on which photographs, from those by owner.

    Args:
        shots: of each owner.
        sharing: what they share. A client that knows whose photographs are has a task for each owner.
        jitters: see `RaySignal`.
        known_background: see `RaySignal`.
    """
    by_client, clients = by_hand(shots, sharing), []
    for i, groups in enumerate(by_client):
        name, tasks = f"client-{i}", []
        for owner, mine in enumerate(groups):
            whose = owner if sharing == "grouped" else None
            signal = RaySignal(tuple(one.photo for one in mine), jitters, known_background, whose)
            tasks.append(Task(signal, signal, name))
        clients.append(Client(name, tuple(tasks)))
    return tuple(clients), tuple(tuple(itertools.chain.from_iterable(groups)) for groups in by_client)


def by_hand(owned: Sequence[Sequence[T]], sharing: Sharing) -> list[list[Sequence[T]]]:
    """What is trained on by each client, apart by owner if that is known, from what each owner has."""
    if sharing == "pooled":
        return [[list(itertools.chain.from_iterable(owned))]]
    if sharing == "grouped":
        return [list(owned)]
    return [[mine] for mine in (owned[:1] if sharing == "alone" else owned)]


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuses a value that is none of a Literal's.

    Raises:
        ValueError: the setting of this ``name`` is none of the ``choices``.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def group_of(crowd: Crowd, owner: int, photos: Sequence[Photo], ground: float, seed: int) -> Part | None:
    """Who stands before the place for an owner; None for nobody.

    Args:
        crowd: how many.
        owner: its number; with "mixed", the even ones have many people in front.
        photos: the owner's; the group stands on their side of the middle of the frame, and faces them.
        ground: its height in the frame, whose third axis points up.
        seed: of the run; it decides what people wear.
    """
    if crowd == "none":
        return None
    heights = HEIGHTS[("heavy", "light")[owner % 2] if crowd == "mixed" else crowd]
    random, yaw = generator(seed, "visitors", owner), yaw_of(photos)
    shift = ABREAST * (_uniform(random) - 0.5)
    people = []
    for i, height in enumerate(heights):
        aside = shift + ABREAST * (i - (len(heights) - 1) / 2)
        x = STANDING * math.cos(yaw) - aside * math.sin(yaw)
        y = STANDING * math.sin(yaw) + aside * math.cos(yaw)
        people.append(person((x, y, ground), height, yaw + 0.5 * _uniform(random) - 0.25, random))
    return joined(people)


def person(feet: Vector, height: float, facing: float, random: Generator) -> Part:
    """Somebody who stands at ``feet`` and looks horizontally along the angle ``facing``, in clothes drawn at random."""

    def at(right: float, ahead: float, up: float) -> Vector:
        """A point of the body, in heights of the person."""
        x = ahead * math.cos(facing) + right * math.sin(facing)
        y = ahead * math.sin(facing) - right * math.cos(facing)
        return feet[0] + height * x, feet[1] + height * y, feet[2] + height * up

    def limb(start: Vector, end: Vector, radius: float) -> Capsule:
        return Capsule(at(*start), at(*end), height * radius)

    skin, hair = (Plain(_pick(choices, random)) for choices in (SKIN, HAIR))
    shirt, trousers, shoes = _cloth(random), _cloth(random), (0.12, 0.10, 0.10)
    sleeves = Stripes(shirt, _cloth(random), 0.06 * height) if _uniform(random) < 0.5 else Plain(shirt)
    swing = 0.06 * _uniform(random)
    torso = (limb((-0.07, 0, 0.70), (0.07, 0, 0.70), 0.085), limb((0, 0, 0.52), (0, 0, 0.68), 0.095))
    arms = [(limb((s * 0.14, 0, 0.74), (s * 0.19, s * swing, 0.50), 0.036), s) for s in (-1, 1)]
    hands = [Part(Sphere(at(s * 0.195, s * swing, 0.45), height * 0.038), skin) for s in (-1, 1)]
    legs = tuple(limb((s * 0.055, 0, 0.48), (s * 0.065, 0, 0.08), 0.06) for s in (-1, 1))
    feet_ = [limb((s * 0.07, -0.01, 0.035), (s * 0.075, 0.07, 0.035), 0.038) for s in (-1, 1)]
    parts = [
        Part(SmoothUnion((*torso, *(arm for arm, _ in arms)), 0.04 * height), sleeves),
        Part(SmoothUnion(legs, 0.03 * height), Plain(trousers)),
        *(Part(foot, Plain(shoes)) for foot in feet_),
        *hands,
        Part(limb((0, 0, 0.78), (0, 0, 0.86), 0.035), skin),
        Part(Sphere(at(0, 0.01, 0.91), height * 0.082), skin),
        Part(Sphere(at(0, -0.02, 0.925), height * 0.088), hair),
    ]
    return joined(parts, (at(0, 0, 0.5), 0.54 * height))


def occluded(photos: Sequence[Photo], group: Part | None, depth: Tensor | None = None) -> tuple[Occluded, ...]:
    """Clean photographs with a group in front.

    Args:
        photos: without anybody.
        group: who is there.
        depth: ``[R]``, distances to what all pixels of all photographs show, one after the other; without it everybody
            is in front of everything.
    """
    if group is None:
        return tuple(Occluded(one, one.colours, torch.zeros(one.colours.shape[:2], dtype=torch.bool)) for one in photos)
    seen = look(group, rays_of(photos))
    covered = seen.depth.isfinite() if depth is None else seen.depth < depth
    found, first = [], 0
    for photo in photos:
        clean, part = photo.colours, slice(first, first := first + photo.colours[..., 0].numel())
        mask = covered[part].view(clean.shape[:2])
        colours = torch.where(mask[..., None], octets(seen.colour[part]).view(clean.shape), clean)
        found.append(Occluded(photo._replace(colours=colours), clean, mask))
    return tuple(found)


def rays_of(photos: Sequence[Photo]) -> Rays:
    """The rays of all pixels of some photographs, one after the other."""
    rays = [photo_rays(photo.pose, photo.camera)[:4] for photo in photos]
    return Rays(*(torch.cat(parts) for parts in zip(*rays, strict=True)))


def octets(colours: Tensor) -> Tensor:
    """Colours in [0, 1] at 8 bits, which is what photographs have."""
    return (255 * colours).round().to(torch.uint8)


def yaw_of(photos: Sequence[Photo]) -> float:
    """The mean direction, around the vertical axis, in which cameras stand; radians."""
    places = torch.stack([photo.pose[:2, 3] for photo in photos])
    return math.atan2(*torch.nn.functional.normalize(places, dim=1).sum(0).flip(0).tolist())


def _uniform(random: Generator) -> float:
    return float(torch.rand((), generator=random))


def _pick(choices: Sequence[Vector], random: Generator) -> Vector:
    return choices[int(torch.randint(len(choices), (), generator=random))]


def _cloth(random: Generator) -> Vector:
    """A strong colour: one channel high, one low, one anywhere."""
    values = torch.tensor([0.75, 0.15, 0.0]) + torch.tensor([0.2, 0.15, 0.9]) * torch.rand(3, generator=random)
    red, green, blue = values[torch.randperm(3, generator=random)].tolist()
    return red, green, blue
