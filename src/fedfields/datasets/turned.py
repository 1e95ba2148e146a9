"""Copies of pictures that are turned, moved and sized a little: what a second drawing of the same thing might be."""

from __future__ import annotations

from fedfields.datasets.shares import Rows
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.seeds import generator


def copied(rows: Rows, copies: int, turn: float, seed: int, name: str) -> Rows:
    """The rows, each as ``copies`` pictures that differ from it; the rows themselves for none.

    Args:
        rows: inputs ``[n, C, H, W]``.
        copies: of each; they take its place.
        turn: angles up to so many radians, shifts up to that share of the width, sizes up to that share more or less.
        seed: of the run.
        name: of the client.

    Raises:
        UserError: the inputs are no pictures.
    """
    if not copies:
        return rows
    if rows.inputs.dim() != 4:
        raise UserError("copies are made of pictures alone; leave out --data.copies")
    inputs, targets = rows.inputs.repeat_interleave(copies, 0), rows.targets.repeat_interleave(copies, 0)
    drawn = 2 * turn * torch.rand(4, len(inputs), generator=generator(seed, "copies", name)) - turn
    angle, size = drawn[0], 1 + drawn[1]
    moved = torch.stack(
        [
            torch.stack([angle.cos() / size, -angle.sin() / size, 2 * drawn[2]], 1),
            torch.stack([angle.sin() / size, angle.cos() / size, 2 * drawn[3]], 1),
        ],
        1,
    )
    grid = torch.nn.functional.affine_grid(moved, list(inputs.shape), align_corners=False)
    return Rows(torch.nn.functional.grid_sample(inputs, grid, align_corners=False), targets)
