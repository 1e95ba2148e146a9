"""What benchmarks share: medians of times, and what the memory and the processor can do in the same run."""

import statistics
import time
from collections.abc import Callable

import torch


def median(
    step: Callable[[], object], least: int, seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of a call after one warm-up: of ``least`` calls or more, until so many seconds are over.

    ``clock`` is ``time.process_time`` for what runs on one thread beside other programs.
    """
    step()
    times, started = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - started < seconds:
        before = clock()
        step()
        times.append(clock() - before)
    return statistics.median(times)


def bandwidth(least: int, seconds: float = 0.0, clock: Callable[[], float] = time.process_time) -> float:
    """Bytes a second of a copy of 256 MB, those read and those written."""
    given = torch.ones(2**26)
    to = torch.empty_like(given)
    return 2 * 4 * 2**26 / median(lambda: to.copy_(given), least, seconds, clock)


def sgemm(least: int, seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second of a large float32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / median(lambda: a @ b, least, seconds, clock)
