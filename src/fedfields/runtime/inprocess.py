"""Rounds in one process (or a few worker processes): deterministic, and nothing between method and arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedfields import tree
from fedfields.errors import UserError
from fedfields.federation import (
    Method,
    Rejected,
    Reply,
    ServerState,
    broadcast,
    close_round,
    expected,
    sample_cohort,
    start_server,
    validate,
    visit,
)
from fedfields.privacy.sources import Secure
from fedfields.runtime.pool import Failed, Pool, one_thread
from fedfields.seeds import generator
from fedfields.types import Client, Loss, Memory, Params, Report

if TYPE_CHECKING:
    from fedfields.privacy.sources import Source


class Context(NamedTuple):
    """What every job needs; sent to each worker process once."""

    method: Method
    clients: tuple[Client, ...]
    loss: Loss


class Round(NamedTuple):
    """What one round did.

    Attributes:
        state: the server's state after it.
        memories: what each client of the federation keeps, by index.
        received: what was broadcast.
        replies: accepted replies by client index.
        record: figures of the round, ready for ``metrics.jsonl``.
    """

    state: ServerState
    memories: dict[int, Memory]
    received: Memory
    replies: dict[int, Reply]
    record: dict


class Settings(NamedTuple):
    """How rounds are run, beside the method.

    With ``seconds``, training ends with the round in which they are spent, whatever the number of ``rounds``. With
    ``poisson``, ``cohort`` is the expected number of clients in a round. With ``secret``, noise and cohorts come from
    the operating system's entropy instead of the seed.
    """

    rounds: int
    cohort: int
    seed: int = 0
    weights: Sequence[float] | None = None
    seconds: float | None = None
    poisson: bool = False
    secret: bool = False

    def source(self, *path: str | int) -> Source:
        """Of the noise, or of the cohort, of this path."""
        return Secure() if self.secret else generator(self.seed, *path)

    def progress(self, rounds: int, spent: float) -> float:
        """Share of the training that is over after so many rounds and seconds; from 1 on, all of it."""
        if self.rounds and self.seconds is not None:
            return spent / self.seconds
        return rounds / self.rounds if self.rounds else 1.0


def train(
    method: Method,
    clients: Sequence[Client],
    loss: Loss,
    params: Params,
    *,
    rounds: int,
    cohort: int,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    workers: int = 1,
    on_round: Callable[[Round], None] | None = None,
    poisson: bool = False,
    secret: bool = False,
) -> Params:
    """Federated training of any model: the whole thing in one call.

    Args:
        method: objective, local training, strategy, privacy.
        clients: the owners; each needs at least one training task.
        loss: ``(params, batch) -> scalar``.
        params: where to start.
        rounds: R.
        cohort: M clients in each round, sampled without replacement, or their expected number with ``poisson``.
        seed: of everything random.
        weights: p_k of each client; one by default.
        workers: processes; 0 decides by timing, 1 none. More than one needs a loss that can be pickled.
        on_round: called after every round.
        poisson: each client comes to a round with probability M / N.
        secret: noise and cohorts come from the operating system's entropy, not from the seed.

    Returns:
        The global weights after the last round.
    """
    settings = Settings(rounds, cohort, seed, weights, poisson=poisson, secret=secret)
    context = Context(method, tuple(clients), loss)
    state = start_server(method.strategy, params)
    with Pool(context, workers, ahead=rounds * cohort) as pool:
        for step in run_rounds(context, settings, state, {}, pool):
            state = step.state
            if on_round:
                on_round(step)
    return state.params


def run_rounds(
    context: Context,
    settings: Settings,
    state: ServerState,
    memories: dict[int, Memory],
    pool: Pool,
    spent: float = 0.0,
) -> Iterator[Round]:
    """Yields every round after ``state.round`` until training is over; ``spent`` seconds went before."""
    equal = settings.weights is None or all(weight == 1 for weight in settings.weights)
    if not equal and any(part.uniform_weights for part in context.method.privacy):
        raise ValueError("noise hides a client only among equals: give every client the weight 1")
    initial = context.method.client_init(state.params)
    form = expected(context.method, state.params)
    while (progress := settings.progress(state.round, spent)) < 1:
        step = run_round(context, settings, state, memories, initial, form, pool, progress)
        state, memories, spent = step.state, step.memories, spent + step.record["seconds"]
        yield step


def run_round(
    context: Context,
    settings: Settings,
    state: ServerState,
    memories: dict[int, Memory],
    initial: Memory,
    form: Report,
    pool: Pool,
    progress: float = 0.0,
) -> Round:
    """One round: broadcast, visits, checks, sum, step. A client that fails is dropped, counted and named."""
    started = time.perf_counter()
    method, clients, number = context.method, context.clients, state.round + 1
    size = min(settings.cohort, len(clients))
    cohort = sample_cohort(len(clients), size, source=settings.source("cohort", number), poisson=settings.poisson)
    received = broadcast(method, state)
    steps = method.local.steps * settings.rounds * size
    jobs = [
        (
            i,
            received,
            memories.get(i, initial),
            settings.seed,
            number,
            _weight(settings, i),
            len(clients) / steps,
            progress,
            settings.secret,
        )
        for i in cohort
    ]
    replies: dict[int, Reply] = {}
    dropped: list[dict[str, str]] = []

    def accepted() -> Iterator[Report]:
        """Reports as they come, in the order of the cohort, without the bad ones."""
        for i, reply in zip(cohort, pool.map(visit_job, jobs), strict=True):
            try:
                if isinstance(reply, Failed):
                    raise Rejected(str(reply))
                validate(reply.report, form, max_weight=max(1.0, _weight(settings, i)))
            except Rejected as reason:
                dropped.append({"client": clients[i].name, "reason": str(reason)})
                continue
            replies[i] = reply
            yield reply.report

    with one_thread():
        source = settings.source("noise", number)
        state, figures = close_round(method, state, accepted(), len(clients), cohort=size, source=source)
    if cohort and not replies:
        raise AllFailed(number, dropped)
    memories = memories | {i: reply.memory for i, reply in replies.items()}
    record = {
        "round": number,
        **_means([reply.metrics for reply in replies.values()]),
        **figures,
        "cohort": [clients[i].name for i in cohort],
        "dropped": dropped,
        "bytes_down": tree.nbytes(received.values()) * len(cohort),
        "bytes_up": sum(tree.nbytes(reply.report.values()) for reply in replies.values()),
        "seconds": time.perf_counter() - started,
    }
    return Round(state, memories, received, replies, record)


def visit_job(
    context: Context,
    index: int,
    received: Memory,
    memory: Memory,
    seed: int,
    number: int,
    weight: float,
    share: float,
    progress: float,
    secret: bool,
) -> Reply:
    """A client's visit, wherever it runs."""
    client = context.clients[index]
    return visit(
        context.method,
        client,
        context.loss,
        received,
        memory,
        seed=seed,
        round=number,
        weight=weight,
        step_share=share,
        progress=progress,
        source=None if secret else generator(seed, "protect", number, client.name),
    )


class AllFailed(UserError):
    """Every client of a round failed, which will not get better by itself.

    Attributes:
        diverged: whether all of them failed because their weights were not finite any more.
    """

    def __init__(self, number: int, dropped: list[dict[str, str]]) -> None:
        first = dropped[0]
        self.diverged = all("diverged" in one["reason"] for one in dropped)
        super().__init__(
            f"round {number}: all {len(dropped)} clients of the round failed; {first['client']}: {first['reason']}"
        )


def _weight(settings: Settings, index: int) -> float:
    return 1.0 if settings.weights is None else float(settings.weights[index])


def _means(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the clients that report it."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {
        name: sum(values) / len(values) for name in names if (values := [one[name] for one in metrics if name in one])
    }
