"""Kernels on as many threads as torch may use: numba's own thread pools are not safe to call from several threads.

Starting them costs some 30 microseconds. What may cost far more on cores that others use too are torch's own threads:
OpenMP lets them spin for a while after each operation, on the cores that a kernel needs next. There, several threads
pay only with ``OMP_WAIT_POLICY=PASSIVE`` in the environment.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def over(count: int, work: Callable[[int, int], None], least: int = 1) -> None:
    """Calls ``work(a, b)`` on ranges that cover [0, count), at once; each at least ``least`` long but the last."""
    parts = min(torch.get_num_threads(), max(1, count // least))
    if parts == 1:
        work(0, count)
        return
    edges = [count * i // parts for i in range(parts + 1)]
    tasks = [_pool(parts - 1).submit(work, a, b) for a, b in itertools.pairwise(edges[1:])]
    work(0, edges[1])  # The caller is one of the threads.
    for task in tasks:
        task.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")
