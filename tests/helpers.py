"""Small things that many tests share."""

import torch

from fedfields import tree
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.scenes.grid import GridSignal
from fedfields.types import Client, Task, Visit

FIELD = Siren(width=8, depth=2)
LOSS = FieldLoss(FIELD)


def params_of(seed=0, dtype=torch.float64, in_dim=2):
    return tree.to(FIELD.init(in_dim, 3, torch.Generator().manual_seed(seed)), dtype)


def signal_of(seed=0, shape=(6, 5), dtype=torch.float64):
    return GridSignal(torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def task_of(seed=0, **kwargs):
    signal = signal_of(seed, **kwargs)
    return Task(signal, signal, f"picture-{seed}")


def clients_of(count, dtype=torch.float32):
    return [Client(f"client-{i}", (task_of(i, dtype=dtype),), (task_of(100 + i, dtype=dtype),)) for i in range(count)]


def visit_of(params, seed=0, **kwargs):
    return Visit(anchor=params, generator=torch.Generator().manual_seed(seed), **kwargs)


def picture_task(values):
    """A picture as a task: fitted and judged on itself."""
    signal = GridSignal(values)
    return Task(signal, signal)
