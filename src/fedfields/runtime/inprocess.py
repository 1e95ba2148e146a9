"""Rounds in one process (or a few worker processes): deterministic, and nothing between method and arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedfields import tree
from fedfields.errors import UserError
from fedfields.federation import (
    Door,
    Method,
    Rejected,
    Reply,
    ServerState,
    broadcast,
    close_round,
    expected,
    sample_cohort,
    settle,
    start_server,
    visit,
)
from fedfields.privacy import SecAgg
from fedfields.privacy.sources import Secure
from fedfields.runtime.pool import Failed, Pool, one_thread
from fedfields.seeds import generator
from fedfields.types import Client, Loss, Memory, Params, Report

if TYPE_CHECKING:
    from fedfields.privacy.secure import FixedPoint
    from fedfields.privacy.secure import Settings as SecretSettings
    from fedfields.privacy.sources import Source
    from fedfields.runtime.secure import Summed


class Job(NamedTuple):
    """A client's visit as the server orders it.

    Attributes:
        client: its index.
        received: what is broadcast.
        memory: what the client kept, as far as the server of a simulation keeps it for the client.
        seed: of the run.
        number: of the round.
        weight: of the client in the sum.
        share: N / (R E M), see :class:`fedfields.types.Visit`.
        progress: share of the run that is over.
        secret: noise comes from the client's own entropy.
    """

    client: int
    received: Memory
    memory: Memory
    seed: int
    number: int
    weight: float
    share: float
    progress: float
    secret: bool


class Carrier(Protocol):
    """Reaches the clients: in this process, in worker processes, or on other machines."""

    session: bytes
    """Of secure sums, 16 bytes."""

    def online(self, number: int) -> Collection[int] | None:
        """Who can be asked to take part in this round; None for everybody."""
        ...

    def visits(self, jobs: Sequence[Job]) -> Iterator[Reply | Failed]:
        """What came of each visit, in order."""
        ...

    def secret_sum(self, order: SecretOrder) -> tuple[Summed, dict[int, Reply]]:
        """The sum of the visits' reports, and the replies without them.

        Raises:
            Abandoned: too few clients are left.
        """
        ...

    def finish(self, params: Params, name: str) -> None:
        """Gives the clients the result of the run of this preset."""
        ...


class SecretOrder(NamedTuple):
    """The visits of a round whose reports only travel masked.

    Attributes:
        plan: the encoding of reports.
        rules: of the round.
        attempt: which cohort of the round this is, from 0.
        jobs: the visits.
        check: an honest client's look at its own reply: the same, or why it drops out.
    """

    plan: FixedPoint
    rules: SecretSettings
    attempt: int
    jobs: Sequence[Job]
    check: Callable[[Job, Reply | Failed], Reply | Rejected]


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
        total: the sum of the reports, where the server saw nothing else of them but noise.
    """

    state: ServerState
    memories: dict[int, Memory]
    received: Memory
    replies: dict[int, Reply]
    record: dict
    total: Report | None = None


class Here:
    """The carrier of a simulation: visits in this process or in the pool's, secure sums in this one."""

    def __init__(self, pool: Pool, seed: int) -> None:
        from fedfields.runtime.secure import session_of

        self._pool, self._seed, self.session = pool, seed, session_of(seed)

    def online(self, number: int) -> None:
        """Everybody is."""

    def visits(self, jobs: Sequence[Job]) -> Iterator[Reply | Failed]:
        """The jobs' replies."""
        return self._pool.map(visit_job, jobs)

    def finish(self, params: Params, name: str) -> None:
        """They are here."""

    def secret_sum(self, order: SecretOrder) -> tuple[Summed, dict[int, Reply]]:
        """The protocol with everybody's half of it here."""
        from fedfields.runtime.secure import sum_reports

        replies: dict[int, Reply] = {}

        def reports() -> Iterator[Report | str]:
            for job, reply in zip(order.jobs, self.visits(order.jobs), strict=True):
                checked = order.check(job, reply)
                if isinstance(checked, Rejected):
                    yield str(checked)
                else:
                    replies[job.client] = checked
                    yield checked.report

        found = sum_reports(order.plan, order.rules, [job.client for job in order.jobs], reports, self._seed)
        return found, {i: replies[i]._replace(report=found.seen[i]) for i in found.clients}


class Settings(NamedTuple):
    """How rounds are run, beside the method.

    With ``seconds``, training ends with the round in which they are spent, whatever the number of ``rounds``. Updates
    larger than ``max_norm`` are dropped, unless it is 0. With ``poisson``, ``cohort`` is the expected number of clients
    in a round. With ``secret``, noise and cohorts come from the operating system's entropy instead of the seed.
    """

    rounds: int
    cohort: int
    seed: int = 0
    weights: Sequence[float] | None = None
    seconds: float | None = None
    max_norm: float = 0.0
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
        params: where to start; meta leaves that the objective learns and that are missing are added.
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
    state = start_server(method.strategy, method.objective.leaves(params, loss) | params)
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
    carrier: Carrier | Pool,
    spent: float = 0.0,
) -> Iterator[Round]:
    """Yields every round after ``state.round`` until training is over; ``spent`` seconds went before.

    A pool stands for the clients of a simulation.
    """
    if isinstance(carrier, Pool):
        carrier = Here(carrier, settings.seed)
    equal = settings.weights is None or all(weight == 1 for weight in settings.weights)
    if not equal and any(part.uniform_weights for part in context.method.privacy):
        raise ValueError("noise hides a client only among equals: give every client the weight 1")
    size, least = min(settings.cohort, len(context.clients)), getattr(context.method.strategy, "least", 1)
    if size < least:
        raise UserError(
            f"the strategy needs at least {least} clients in a round to tolerate what it should, and there are only "
            f"{size}; share the data out among more, raise --cohort, or lower --strategy.tolerate"
        )
    initial = context.method.client_init(state.params)
    form = expected(context.method, state.params)
    while (progress := settings.progress(state.round, spent)) < 1:
        step = run_round(context, settings, state, memories, initial, form, carrier, progress)
        state, memories, spent = step.state, step.memories, spent + step.record["seconds"]
        yield step


def run_round(
    context: Context,
    settings: Settings,
    state: ServerState,
    memories: dict[int, Memory],
    initial: Memory,
    form: Report,
    carrier: Carrier,
    progress: float = 0.0,
) -> Round:
    """One round: broadcast, visits, checks, sum, step. A client that fails is dropped, counted and named."""
    started = time.perf_counter()
    method, clients, number = context.method, context.clients, state.round + 1
    received = broadcast(method, state)
    call = _Call(context, settings, received, memories, initial, form, carrier, number, progress)
    if method.sums is None:
        found = call.openly(state)
    else:
        found = call.secretly(state, method.sums)
    if found.cohort and not found.replies:
        raise AllFailed(number, found.dropped)
    memories = memories | {i: reply.memory for i, reply in found.replies.items()}
    record = {
        "round": number,
        **_means([reply.metrics for reply in found.replies.values()]),
        **found.figures,
        "cohort": [clients[i].name for i in found.cohort],
        "dropped": found.dropped,
        "bytes_down": tree.nbytes(received.values()) * len(found.cohort) + found.bytes_down,
        "bytes_up": found.bytes_up,
        "seconds": time.perf_counter() - started,
    }
    return Round(found.state, memories, received, found.replies, record, found.total)


class _Found(NamedTuple):
    """What came of a round's visits; the replies hold what the server saw of each report, ``total`` a secure sum."""

    state: ServerState
    cohort: list[int]
    replies: dict[int, Reply]
    dropped: list[dict[str, str]]
    figures: dict
    bytes_up: int
    bytes_down: int = 0
    total: Report | None = None


class _Call(NamedTuple):
    """A round's visits, and the two ways to their sum."""

    context: Context
    settings: Settings
    received: Memory
    memories: dict[int, Memory]
    initial: Memory
    form: Report
    carrier: Carrier
    number: int
    progress: float

    def openly(self, state: ServerState) -> _Found:
        """The server sees every report and adds them up."""
        cohort, replies, dropped = self._cohort(0), {}, []

        def accepted() -> Iterator[Report]:
            for i, reply in zip(cohort, self._visits(cohort), strict=True):
                if isinstance(reply, Rejected):
                    dropped.append({"client": self.context.clients[i].name, "reason": str(reply)})
                    continue
                replies[i] = reply
                yield reply.report

        with one_thread():
            state, figures = close_round(
                self.context.method,
                state,
                accepted(),
                len(self.context.clients),
                cohort=self._size,
                source=self._noise,
                progress=self.progress,
            )
        up = sum(tree.nbytes(reply.report.values()) for reply in replies.values())
        return _Found(state, cohort, replies, dropped, figures, up)

    def secretly(self, state: ServerState, sums: SecAgg) -> _Found:
        """The server sees masked reports and learns their sum; if too few are left, another cohort is tried."""
        from fedfields.privacy.secure import Abandoned
        from fedfields.runtime.secure import encoding, settings_of

        method, clients = self.context.method, self.context.clients
        size, refused, reasons = self._size, [], []
        if size < sums.minimum:
            raise UserError(f"sec-agg sums at least {sums.minimum} reports, and there are only {size} clients")
        plan = encoding(sums, self.form, size)
        for attempt in range(sums.tries):
            cohort = self._cohort(attempt)
            rules = settings_of(sums, plan, self.carrier.session, self.number, attempt)
            order = SecretOrder(plan, rules, attempt, self._jobs(cohort), self._check(cohort))
            try:
                with one_thread():
                    found, replies = self.carrier.secret_sum(order)
                    rest = {"cohort": size, "source": self._noise, "progress": self.progress}
                    state, figures = settle(method, state, found.total, len(clients), **rest)
            except Abandoned as reason:
                reasons.append(str(reason))
                refused += self._named(reason.dropped)
                continue
            more = {"scaled": found.scaled} | ({"abandoned": reasons} if reasons else {})
            dropped, traffic = self._named(found.dropped), (found.bytes_up, found.bytes_down)
            return _Found(state, cohort, replies, dropped, figures | more, *traffic, found.total)
        raise AllFailed(self.number, refused, f"no sum came of {sums.tries} cohorts of {size}: {reasons[-1]}")

    def _named(self, dropped: dict[int, str]) -> list[dict[str, str]]:
        """Who dropped out, and why."""
        return [{"client": self.context.clients[i].name, "reason": reason} for i, reason in sorted(dropped.items())]

    @property
    def _size(self) -> int:
        """The expected number of clients in the round."""
        return min(self.settings.cohort, len(self.context.clients))

    @property
    def _noise(self) -> Source:
        """Of the server's noise."""
        return self.settings.source("noise", self.number)

    def _cohort(self, attempt: int) -> list[int]:
        path = ("cohort", self.number, attempt) if attempt else ("cohort", self.number)
        source, poisson = self.settings.source(*path), self.settings.poisson
        online = self.carrier.online(self.number)
        return sample_cohort(len(self.context.clients), self._size, source=source, poisson=poisson, online=online)

    def _jobs(self, cohort: list[int]) -> list[Job]:
        settings, clients = self.settings, len(self.context.clients)
        steps = self.context.method.local.steps * settings.rounds * self._size
        return [
            Job(
                i,
                self.received,
                self.memories.get(i, self.initial),
                settings.seed,
                self.number,
                _weight(settings, i),
                clients / steps,
                self.progress,
                settings.secret,
            )
            for i in cohort
        ]

    def _visits(self, cohort: list[int]) -> Iterator[Reply | Rejected]:
        """Every client's reply as it comes, in the order of the cohort, or why it is no good."""
        jobs, check = self._jobs(cohort), self._check(cohort)
        for job, reply in zip(jobs, self.carrier.visits(jobs), strict=True):
            yield check(job, reply)

    def _check(self, cohort: list[int]) -> Callable[[Job, Reply | Failed], Reply | Rejected]:
        heaviest = self.context.method.strategy.heaviest
        door = Door(self.number, cohort, self.form, self.settings.max_norm, heaviest)
        return lambda job, reply: checked(reply, door, job)


def checked(reply: Reply | Failed, door: Door, job: Job) -> Reply | Rejected:
    """The reply if it may be used, or why not."""
    if isinstance(reply, Failed):
        return Rejected(str(reply))
    try:
        door.admit(job.client, reply.report, reply.round, job.weight)
    except Rejected as reason:
        return reason
    return reply


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
    """Too many clients of a round failed, which will not get better by itself.

    Attributes:
        diverged: whether all of them failed because their weights were not finite any more.
    """

    def __init__(self, number: int, dropped: list[dict[str, str]], why: str = "") -> None:
        self.diverged = bool(dropped) and all("diverged" in one["reason"] for one in dropped)
        why = why or f"all {len(dropped)} clients of the round failed"
        first = f"; {dropped[0]['client']}: {dropped[0]['reason']}" if dropped else ""
        super().__init__(f"round {number}: {why}{first}")


def _weight(settings: Settings, index: int) -> float:
    return 1.0 if settings.weights is None else float(settings.weights[index])


def _means(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the clients that report it."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {
        name: sum(values) / len(values) for name in names if (values := [one[name] for one in metrics if name in one])
    }
