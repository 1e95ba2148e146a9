"""Work spread over processes, or done here, with equal results: every job carries its own seed.

Two processes with one thread each beat one process with two threads on networks this small.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedfields.errors import said

_context: Any = None
"""In a worker process: what all jobs share."""


class Failed(Exception):
    """A job raised; the text is what `said` lets others read of the error."""


class Pool:
    """Runs ``function(context, *job)`` for many jobs, in order.

    With ``workers`` 0 it times the first jobs here and starts processes once the work ahead is worth their
    start-up (a few seconds each). Results do not depend on it: torch runs on one thread everywhere.
    """

    def __init__(self, context: Any, workers: int = 0, *, ahead: int = 0) -> None:
        """Args:
        context: what every job needs; pickled once for each process.
        workers: number of processes, 1 for none, 0 to decide.
        ahead: about how many jobs are to come, for the decision.
        """
        self._context, self._workers, self._ahead = context, workers, ahead
        self._executor: ProcessPoolExecutor | None = None
        self._done, self._spent = 0, 0.0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def map(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        """Yields each job's result, or :class:`Failed` as a value if it raised, in the order of the jobs."""
        jobs = list(jobs)
        if self._workers != 1 and len(jobs) > 1:
            self._decide()
        if self._executor is None:
            for job in jobs:
                yield self._here(function, job)
            return
        futures = [self._submit(function, job) for job in jobs]
        for future, job in zip(futures, jobs, strict=True):
            yield self._result(future, function, job)

    def _here(self, function: Callable[..., Any], job: tuple) -> Any:
        started = time.perf_counter()
        with one_thread():
            result = _guard(function, self._context, job)
        self._done, self._spent = self._done + 1, self._spent + time.perf_counter() - started
        return result

    def _submit(self, function: Callable[..., Any], job: tuple) -> Future:
        """A job on its way to a worker; a future that has failed if the workers are gone."""
        assert self._executor is not None
        try:
            return self._executor.submit(_run, function, _pack(job))
        except BrokenProcessPool as error:
            future: Future = Future()
            future.set_exception(error)
            return future

    def _result(self, future: Future, function: Callable[..., Any], job: tuple) -> Any:
        """A worker's result; if the worker was killed, this and all later jobs are done here."""
        try:
            return _unpack(future.result())
        except BrokenProcessPool:
            self._stop()
            self._workers = 1
            return self._here(function, job)

    def _decide(self) -> None:
        """Starts the processes if asked for, or if what is ahead would take longer than starting them."""
        if self._executor is not None:
            return
        count = self._workers or os.cpu_count() or 1
        if self._workers == 0 and (
            count == 1 or self._done == 0 or self._spent / self._done * (self._ahead - self._done) < 10.0
        ):
            return
        self._executor = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(_pack(self._context),)
        )

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: sums do not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(context: Any) -> None:
    global _context
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent stops the workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _context = _unpack(context)


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed; it would wait for jobs for ever, since it holds the pipe open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(function: Callable[..., Any], job: Any) -> Any:
    return _pack(_guard(function, _context, _unpack(job)))


def _guard(function: Callable[..., Any], context: Any, job: tuple) -> Any:
    try:
        return function(context, *job)
    except Exception as error:
        return Failed(said(error))


class _Array:
    """A tensor on its way between processes, as a numpy array: one copy through the pipe, no shared handles."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.array: np.ndarray = tensor.detach().contiguous().numpy()


def _pack(value: Any) -> Any:
    """Replaces tensors in dicts and tuples."""
    return _walk(value, torch.Tensor, _Array)


def _unpack(value: Any) -> Any:
    return _walk(value, _Array, lambda packed: torch.from_numpy(packed.array))


def _walk(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _walk(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_walk(item, kind, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
