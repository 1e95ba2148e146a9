"""Quality after adaptation: for held-out signals of the training clients, and for clients never seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from fedfields.adaptation import Adaptation, adapting
from fedfields.federation import Method
from fedfields.losses import FieldLoss, render
from fedfields.metrics import psnr, ssim
from fedfields.runtime.inprocess import Context
from fedfields.runtime.pool import Failed, Pool
from fedfields.seeds import generator
from fedfields.types import Client, Loss, Params, Signal, Task, Visible, VisibleLoss

Curve = dict[str, float]
"""A figure by adaptation step; the steps are strings because they become JSON keys."""


class Quality(NamedTuple):
    """PSNR in dB and SSIM, by group ("held_out", "unseen") and adaptation step."""

    psnr: dict[str, Curve]
    ssim: dict[str, Curve]


def adapt_job(
    context: Context, params: Params, task: Task, settings: Adaptation, seed: int
) -> dict[str, tuple[float, float]]:
    """PSNR and SSIM of one task by adaptation step."""
    random = generator(seed, "adapt", task.name)
    loss, truth = visible(context.loss), seen(task.query)
    figures = {}
    for step, adapted in adapting(params, task.support, loss, settings, random):
        shown = render(loss, adapted, truth)
        figures[str(step)] = (psnr(shown, truth.values), ssim(shown, truth.values))
    return figures


def visible(loss: Loss) -> VisibleLoss:
    """The loss, which in a run on tasks can show something."""
    assert hasattr(loss, "show")
    return loss  # pyright: ignore[reportReturnType]


def seen(signal: Signal) -> Visible:
    """The signal, which in a run on tasks can be looked at."""
    assert hasattr(signal, "like")
    return signal  # pyright: ignore[reportReturnType]


def evaluate(
    pool: Pool,
    params: Params,
    groups: Mapping[str, Sequence[Client]],
    settings: Adaptation,
    seed: int,
) -> Quality:
    """Adapts ``params`` to every kept-back signal of every client; mean over tasks, groups without tasks left out."""
    quality = Quality({}, {})
    for group, clients in groups.items():
        jobs = [(params, task, settings, seed) for client in clients for task in client.held_out]
        if not jobs:
            continue
        results = [result for result in pool.map(adapt_job, jobs) if not isinstance(result, Failed)]
        if len(results) < len(jobs):
            raise RuntimeError(f"{len(jobs) - len(results)} of {len(jobs)} adaptations failed")
        for place, table in enumerate(quality):
            table[group] = {step: mean(one[step][place] for one in results) for step in results[0]}
    return quality


def mean(values: Iterable[float]) -> float:
    """Mean; NaN if there are no values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def quality_of(
    field: Callable[[Params, torch.Tensor], torch.Tensor],
    params: Params,
    clients: Sequence[Client],
    settings: Adaptation | None = None,
    seed: int = 0,
) -> Curve:
    """PSNR in dB by adaptation step: mean over everything that the clients kept back, to one decimal."""
    context = Context(Method(), (), FieldLoss(field))
    with Pool(context, workers=1) as pool:
        quality = evaluate(pool, params, {"all": clients}, settings or Adaptation(steps=32), seed)
    return {step: round(value, 1) for step, value in quality.psnr["all"].items()}
