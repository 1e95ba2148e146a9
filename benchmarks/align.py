"""Contributions to a map with a wrong pose: how often, how well and how fast the pose is found.

    python benchmarks/align.py [--trials N] [--out DIR] [--quick] [--json]

A town of 200 m (made up, exact poses in metres). The map is baked from a hash grid that one client trained on photographs
of a flight over the whole town; each contribution comes from another client, with other photographs of another flight
over a part of it. So both are learned, with their own errors, and neither is a copy of the other.
"""

import math
from pathlib import Path

import torch

from fedfields.fields import HashGrid
from fedfields.losses import MarchedLoss
from fedfields.mapping.bake import Local, cells_of, local_as_bytes, local_from_bytes, seen_cells
from fedfields.rendering.marching import Marching
from fedfields.scenes.frame import Frame
from fedfields.scenes.town import Town
from fedfields.scenes.views import Photo, RaySignal
from fedfields.seeds import generator

VOXEL, ROOFS = 0.5, 22.0
"""Metres: edge of a voxel, and the height below which the town lies."""


def photographs(town: Town, flight: str, count: int, seed: int, around: tuple[float, float] | None = None):
    """Poses ``[V, 3, 4]`` in metres and pictures of a flight, of which ``count`` are kept: those nearest to a place."""
    poses = town.flight(town.photos, seed, flight)
    if around is not None:
        away = (poses[:, :2, 3] - torch.tensor(around).double()).norm(dim=1)
        poses = poses[away.argsort()[:count]]
    return poses, town.shoot(poses, seed).colours


def trained(town: Town, poses, colours, frame: Frame, name: str, steps: int) -> Local:
    """A hash grid that has learned photographs, and what it has seen below the roofs."""
    photos = tuple(
        Photo(f"{i}", frame.pose(pose).float(), town.camera, one)
        for i, (pose, one) in enumerate(zip(poses, colours, strict=True))
    )
    signal, chance = RaySignal(photos, 1), generator(0, "train", name)
    field = HashGrid(log2_rows=17, finest=max(64, round(2 * frame.half / VOXEL)))
    params = {key: leaf.requires_grad_() for key, leaf in field.init(chance).items()}
    optimizer = torch.optim.Adam(params.values(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.03 ** (1 / steps))
    loss, kept = MarchedLoss(field, Marching(samples=40_000, haze=0.003)), {}
    for step in range(steps):
        if step % 50 == 0:
            loss, kept = loss.refreshed(params, kept, chance)
        optimizer.zero_grad()
        value = loss(params, signal.sample(2048, chance))
        value.backward()
        optimizer.step()
        falling.step()
    weights = {key: leaf.detach() for key, leaf in params.items()}
    rays = signal.everything().inputs
    top = (ROOFS - frame.centre[2]) / frame.half
    down = ((top - rays.origins[:, 2]) / rays.directions[:, 2]).nan_to_num(0, 0, 0)
    rays = rays._replace(near=torch.maximum(rays.near, down))
    with torch.no_grad():
        seen = seen_cells(lambda points: field.density(weights, points), rays, cells_of(frame, VOXEL))
    print(
        f"{name}: {len(poses)} photographs, {-10 * math.log10(value.item()):.1f} dB in training, {seen.mean():.3f} seen",
        flush=True,
    )
    return Local(name, field, weights, frame, seen, len(poses))


def local(
    folder: Path, name: str, town: Town, seed: int, count: int, around, half: float, steps: int, noise: bool = False
) -> Local:
    """The field of a client, from the folder if it is there."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        poses, colours = photographs(town, name, count, seed, around)
        if noise:
            colours = torch.randint(0, 256, colours.shape, dtype=torch.uint8, generator=generator(seed, "noise", name))
        frame = Frame((*(around or (0.0, 0.0)), 0.0), half, "white")
        path.write_bytes(local_as_bytes(trained(town, poses, colours, frame, name, steps)))
    return local_from_bytes(path.read_bytes())
