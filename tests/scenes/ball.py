"""A ball of known colours in front of white, photographed from all around: a Blender capture with an exact answer."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedfields.rendering.cameras import Camera, rays
from fedfields.scenes.tour import Tour

RADIUS = 0.8
FIELD_OF_VIEW = 0.9


def pixels_of(pose: torch.Tensor, camera: Camera, radius: float = RADIUS, turn: int = 0) -> torch.Tensor:
    """``[h, w, 4]``: where the ray meets the ball, its place as a colour (channels rolled); elsewhere nothing."""
    origins, directions = rays(camera, pose.double(), camera.pixels())
    middle = -(origins * directions).sum(1)
    height = middle.square() - origins.square().sum(1) + radius**2
    hit = height > 0
    place = origins + (middle - height.clamp_min(0).sqrt())[:, None] * directions
    colour = torch.where(hit[:, None], 0.5 + 0.4 * place.roll(turn, 1) / radius, 0)
    return torch.cat([colour, hit[:, None].double()], 1).reshape(camera.height, camera.width, 4)


def write_capture(
    folder: Path, size: int = 24, train: int = 12, test: int = 3, radius: float = RADIUS, turn: int = 0
) -> None:
    """The three files and the pictures of the Blender format, in units in which the frame's cube has edge three."""
    focal = size / 2 / math.tan(FIELD_OF_VIEW / 2)
    camera = Camera("pinhole", size, size, focal, focal, size / 2, size / 2)
    for split, count, shift in (("train", train, 0.0), ("val", 1, 0.4), ("test", test, 0.2)):
        frames = []
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pose = Tour(radius=4.0).pose(2 * math.pi * (i + shift) / count, elevation=0.9 * math.sin(2.4 * i))
            image = (255 * pixels_of(pose, camera, radius, turn)).round().numpy().astype(np.uint8)
            Image.fromarray(image, "RGBA").save(folder / split / f"r_{i}.png")
            matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": matrix})
        content = {"camera_angle_x": FIELD_OF_VIEW, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
