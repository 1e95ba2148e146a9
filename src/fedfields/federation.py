"""The whole protocol: a client's visit, and how a server closes a round.

Every runtime calls these two functions and moves what they return; nothing here knows what the model is, who
called, or how messages travel.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fedfields import tree
from fedfields.lazy import torch
from fedfields.objectives.base import Objective
from fedfields.objectives.meta import Maml
from fedfields.optim import Adam, Sgd, falling
from fedfields.privacy.base import Transform
from fedfields.privacy.dp import Clipped
from fedfields.privacy.sources import Secure, uniform
from fedfields.privacy.sums import SecAgg
from fedfields.seeds import generator
from fedfields.strategies.averaging import FedAvg, FedNova
from fedfields.strategies.base import Outcome, Strategy
from fedfields.types import Client, Loss, Memory, Metrics, Params, Report, Task, Visit

if TYPE_CHECKING:
    from torch import Generator

    from fedfields.privacy.sources import Source


TOLD = "privacy."
"""Before the number of a transform, in what a server remembers and broadcasts for it."""


@dataclass(frozen=True)
class Local:
    """Local training in one visit: E outer steps, each on one of the client's tasks chosen at random."""

    steps: int = 1
    """Outer steps E in one visit."""

    per_task: bool = False
    """Multiply the steps by the client's number of tasks, as the official FedMeNF code does by default."""

    lr: float = 5e-5
    """Outer step size (lambda_o)."""

    clip: float = 5.0
    """Largest norm of an outer gradient; 0 never clips."""

    optimizer: Sgd | Adam = field(default_factory=Sgd)
    """The optimiser that takes the outer steps."""

    keep_state: bool = False
    """Keep the optimiser's state at the client between visits (FedNeRF does)."""

    final: float = 1.0
    """Share of lr that is left at the end of the run; it falls along half a cosine."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"local.steps is {self.steps}; a visit needs at least one outer step")
        if self.lr <= 0:
            raise ValueError(f"local.lr is {self.lr}; it must be positive")
        if not 0 < self.final <= 1:
            raise ValueError(f"local.final is {self.final}; it must lie in (0, 1]")

    def rate(self, progress: float) -> float:
        """Outer step size when a share ``progress`` in [0, 1] of the run is over."""
        return self.lr * falling(self.final, progress)


@dataclass(frozen=True)
class Method:
    """A federated method: the parts of which every member of the table of methods is a combination."""

    objective: Objective = field(default_factory=Maml)
    local: Local = field(default_factory=Local)
    strategy: Strategy = field(default_factory=FedAvg)
    privacy: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        sums = [part for part in self.privacy if isinstance(part, SecAgg)]
        if sums and (len(sums) > 1 or not isinstance(self.privacy[-1], SecAgg)):
            raise ValueError("sec-agg comes once and last: what is masked cannot be clipped or noised any more")
        if sums and not self.strategy.sums_only:
            raise ValueError(
                f"{type(self.strategy).__name__} looks at single reports, which sec-agg hides; choose a strategy that "
                "needs only their sum, such as strategy:fedavg"
            )
        self._check_noise()

    def _check_noise(self) -> None:
        """What makes the sensitivity of a sum that of a clipped report."""
        noises = [transform for transform in self.privacy if isinstance(transform, Clipped)]
        if len(noises) > 1:
            names = " and ".join(type(noise).__name__ for noise in noises)
            raise ValueError(f"privacy has more than one kind of noise ({names}): no guarantee covers both; leave one")
        if any(transform.of_sum for transform in self.privacy) and not self.strategy.sums_only:
            raise ValueError(
                f"{type(self.strategy).__name__} looks at single reports, and this noise only protects their sum; "
                "choose privacy:noise, or a strategy that needs only sums"
            )
        if any(transform.uniform_weights for transform in self.privacy) and self.strategy.heaviest > 1:
            raise ValueError(
                f"noise hides a client only among equals, and {type(self.strategy).__name__} gives them weights that "
                "depend on their data; choose another strategy, or privacy:sec-agg without noise"
            )
        if noises and self.local.per_task and isinstance(self.strategy, FedNova):
            raise ValueError(
                "FedNova reports the number of steps, which with local.per_task tells how many signals an owner has; "
                "with noise leave out one of them"
            )
        shares = [noise.fewest for noise in noises if noise.trust == "sum"]
        if shares and self.sums is not None and self.sums.minimum < shares[0]:
            raise ValueError(
                f"distributed noise counts on {shares[0]} honest clients, and sec-agg sums as few as "
                f"{self.sums.minimum}; raise the minimum of sec-agg, or count on fewer"
            )

    @property
    def sums(self) -> SecAgg | None:
        """How reports are summed so that nobody sees a single one; None if the server may see them."""
        return next((part for part in self.privacy if isinstance(part, SecAgg)), None)

    def client_init(self, params: Params) -> Memory:
        """What a client remembers before its first visit."""
        return self.strategy.client_init(params)


class ServerState(NamedTuple):
    """All that a server remembers between rounds."""

    params: Params
    memory: Memory
    round: int = 0


class Reply(NamedTuple):
    """What comes back from a visit: the report travels, the rest stays on the owner's machine.

    Attributes:
        report: what leaves the client.
        memory: what the client keeps for its next visit.
        metrics: figures about local training.
        steps: outer steps taken.
        round: for which the report was made; it travels with it.
    """

    report: Report
    memory: Memory
    metrics: Metrics
    steps: int
    round: int


class Rejected(ValueError):
    """A report that must not touch the sum; the text says why."""


def start_server(strategy: Strategy, params: Params) -> ServerState:
    """The state before the first round."""
    return ServerState(params, strategy.init(params))


def visit(
    method: Method,
    client: Client,
    loss: Loss,
    received: Memory,
    memory: Memory,
    *,
    seed: int,
    round: int,
    weight: float = 1.0,
    step_share: float = 1.0,
    progress: float = 0.0,
    source: Source | None = None,
) -> Reply:
    """One client's part in one round.

    Args:
        method: objective, local training, strategy and privacy.
        client: the owner, already prepared by the transforms (see :func:`prepare`).
        loss: the seam.
        received: what the server broadcast; ``received["params"]`` is where the client starts.
        memory: what the client kept from its last visit.
        seed: of the run; all randomness of the visit but its noise comes from (seed, round, client name).
        round: number of the round, from 1.
        weight: p_k, the client's weight in the sum.
        step_share: N / (R E M), see :class:`fedfields.types.Visit`.
        progress: share of the run that is over, for a falling step size.
        source: of the noise; without one it is drawn from the operating system's entropy, and no run is like another.
    """
    local, shared = method.local, received["params"]
    random = generator(seed, "visit", round, client.name)
    lr = local.rate(progress)
    context = Visit(shared, random, lr, step_share)
    loss = loss_at(loss, progress)
    start = shared | own_leaves(loss, client, seed) | memory.get("own", {})
    steps = method.strategy.steps(local.steps * (len(client.train) if local.per_task else 1), received)
    state = _optimizer_state(local, start, memory)
    params, totals, watcher, gradient, early = start, {}, _Watcher(loss, memory), None, 1.0
    for step in range(max(steps, int(method.strategy.wants_gradient))):
        loss = watcher.loss(step, params, random)
        task = realise(pick(client.train, random), random)
        estimate = method.objective.estimate(params, task, loss, context)
        if step == 0:
            early = estimate.metrics.get("loss", early)
            gradient = tree.only(estimate.grads, shared) if method.strategy.wants_gradient else None
        if not steps:
            break
        size = float(tree.norm(estimate.grads))
        grads = tree.clip(estimate.grads, local.clip)
        grads = grads | method.strategy.correct(tree.only(grads, shared), received, memory)
        params, state = local.optimizer.step(params, grads, state, lr)
        for name, value in (estimate.metrics | {"gradient_norm": size}).items():
            totals[name] = totals.get(name, 0.0) + value / steps
    outcome = Outcome(shared, tree.only(params, shared), steps, lr, weight, gradient, early)
    report, memory = method.strategy.report(outcome, received, dict(memory))
    memory |= watcher.kept
    if own := {key: leaf for key, leaf in params.items() if key not in shared}:
        memory["own"] = own
    if local.keep_state:
        memory |= {f"optim.{key}": value for key, value in state.items()}
    totals["update_norm"] = float(tree.norm(report["delta"])) / float(report["stats"]["weight"])
    if method.privacy:
        source = source or Secure()
        for transform in _as_told(method, received):
            report = transform.client(report, source)
    return Reply(report, memory, totals, steps, round)


def loss_at(loss: Loss, progress: float) -> Loss:
    """The loss when a share ``progress`` of the run is over; most are the same all the way."""
    at = getattr(loss, "at", None)
    return loss if at is None else at(progress)


def _optimizer_state(local: Local, start: Params, memory: Memory) -> Memory:
    """What the optimiser goes on from: its state at the client, if that is kept; leaves that are new start anew."""
    state = local.optimizer.init(start)
    if not local.keep_state:
        return state
    kept = {key[6:]: value for key, value in memory.items() if key.startswith("optim.")}
    return {name: part | kept.get(name, {}) for name, part in state.items()}


def own_leaves(loss: Loss, client: Client, seed: int) -> Params:
    """The leaves that a loss keeps at each client, as they are before the client's first visit; most have none.

    They are trained with the shared leaves, by the same objective and optimiser, and never leave the client: reports
    and corrections are about the shared leaves, and so is the pull towards the received weights. Their names must be
    none of the model's.
    """
    own = getattr(loss, "own", None)
    return {} if own is None else own(client, generator(seed, "own", client.name))


class _Watcher:
    """A loss that keeps an eye on the weights as they change, such as one with an occupancy grid; or any other."""

    def __init__(self, loss: Loss, memory: Memory) -> None:
        self._loss, self._every = loss, getattr(loss, "refresh_every", 0)
        self.kept: Memory = {"loss": memory.get("loss", {})} if self._every else {}

    def loss(self, step: int, params: Params, random: Generator) -> Loss:
        """The loss for this step of the visit."""
        if self._every and step % self._every == 0:
            self._loss, self.kept["loss"] = self._loss.refreshed(params, self.kept["loss"], random)  # pyright: ignore
        return self._loss


def pick(tasks: Sequence[Task], random: Generator) -> Task:
    """One of the tasks, uniformly."""
    if len(tasks) == 1:
        return tasks[0]
    return tasks[int(torch.randint(len(tasks), (1,), generator=random))]


def realise(task: Task, random: Generator) -> Task:
    """The task itself, or, if its signal is a source of random signals or tasks, a new one drawn from it."""
    episode = getattr(task.support, "episode", None)
    if episode is not None:
        return episode(random)
    make = getattr(task.support, "realise", None)
    if make is None:
        return task
    signal = make(random)
    return Task(signal, signal, task.name)


def prepare(privacy: Sequence[Transform], client: Client, *, seed: int) -> Client:
    """What the client trains on under these transforms; done once, on the owner's machine."""
    for transform in privacy:
        client = transform.prepare(client, generator(seed, "prepare", client.name))
    return client


def sample_cohort(
    clients: int, size: int, *, source: Source, poisson: bool = False, online: Collection[int] | None = None
) -> list[int]:
    """Indices of the round's clients in ascending order (the order of the sum).

    Args:
        clients: N.
        size: M; without replacement all of them if there are fewer.
        source: of the draw.
        poisson: everybody comes with probability M / N, whoever else does, so that M is only the expected number.
        online: who can be reached; everybody by default. The draw is the same, and others are passed over.
    """
    online = range(clients) if online is None else online
    if poisson:
        drawn = (uniform(clients, source) < size / clients).nonzero().flatten().tolist()
        return [i for i in drawn if i in online]
    if isinstance(source, Secure):
        order = source.uniform(clients).argsort()
    else:
        order = torch.randperm(clients, generator=source)
    return sorted([i for i in order.tolist() if i in online][:size])


def expected(method: Method, params: Params) -> Report:
    """The form of a report: what a client that did not move would send."""
    report = _unmoved(method, params)
    for transform in method.privacy:
        report = transform.client(report, generator(0, "form"))
    return report


def _unmoved(method: Method, params: Params) -> Report:
    """The strategy's own report of a client of weight one that did not move; its "stats" are everybody's."""
    strategy, local = method.strategy, method.local
    received = strategy.broadcast(params, strategy.init(params))
    outcome = Outcome(received["params"], received["params"], local.steps, local.lr, 1.0)
    return strategy.report(outcome, received, strategy.client_init(params))[0]


def broadcast(method: Method, state: ServerState) -> Memory:
    """What the server sends to every client of a round."""
    return method.strategy.broadcast(state.params, state.memory) | _told(state.memory)


def _told(memory: Memory) -> Memory:
    """The part of a memory that belongs to the transforms."""
    return {name: part for name, part in memory.items() if name.startswith(TOLD)}


def _as_told(method: Method, memory: Memory) -> list[Transform]:
    """The transforms as they are in the round that follows this memory, or in which it was received."""
    return [transform.at(memory.get(f"{TOLD}{i}", {})) for i, transform in enumerate(method.privacy)]


def validate(report: Report, like: Report, max_weight: float, max_norm: float = 0.0) -> None:
    """Raises :class:`Rejected` unless the report has the shape of ``like``, is finite, and is within bounds.

    Args:
        report: of one client.
        like: what a client that did not move would send.
        max_weight: largest weight.
        max_norm: largest norm of the client's update, per unit of its weight; 0 for no bound.
    """
    _check_names(report, like, "its parts")
    for name, part in like.items():
        _check_names(report[name], part, f"the keys of its {name}")
        for key, leaf in part.items():
            found = report[name][key]
            if (sent := _form(found)) != (asked := _form(leaf)):
                raise Rejected(f"{name}/{key} is {sent}, not {asked}")
            # One number of a finite tensor is finite unless it overflows: look closer only then.
            if not math.isfinite(float(found.sum())) and not bool(torch.isfinite(found).all()):
                raise Rejected(f"{name}/{key} is not finite: the client's training diverged")
    if negative := [key for key, leaf in report["stats"].items() if key != "weight" and float(leaf) <= 0]:
        raise Rejected(f"its {negative[0]} must be positive")
    weight = float(report["stats"]["weight"])
    if not 0 < weight <= max_weight:
        raise Rejected(f"its weight is {weight:g}, not in (0, {max_weight:g}]")
    if max_norm and (size := float(tree.norm(report["delta"])) / weight) > max_norm:
        raise Rejected(f"its update has norm {size:.3g}, beyond the bound {max_norm:g}")


def _check_names(found: object, like: Report | Params, what: str) -> None:
    """Raises `Rejected` unless this is a dict with exactly the names of ``like``."""
    if not isinstance(found, dict):
        raise Rejected(f"{what} are {reprlib.repr(found)}, not a dict")
    if set(found) != set(like):
        raise Rejected(f"{what} are {reprlib.repr(list(found))}, not {reprlib.repr(list(like))}")


def _form(leaf: object) -> str:
    """What a tensor is but for its values, in words: its shape and dtype, and where it is no ordinary one, why."""
    if not isinstance(leaf, torch.Tensor):
        return type(leaf).__name__
    strange = "" if leaf.layout == torch.strided and leaf.device.type != "meta" else f" ({leaf.layout}, {leaf.device})"
    return f"{list(leaf.shape)} {leaf.dtype}{strange}"


class Door:
    """Into the sum of one round: each client of the cohort may pass once, with a valid report made for this round.

    What a transport delivers twice or late, or somebody sends again, is refused; a report of another round does not
    use up the turn of the client in whose name it came.
    """

    def __init__(
        self, round: int, cohort: Iterable[Hashable], form: Report, max_norm: float = 0.0, heaviest: float = 1.0
    ) -> None:
        """The door of a round.

        Args:
            round: its number.
            cohort: who was asked.
            form: what a client that did not move would send, see :func:`expected`.
            max_norm: as for :func:`validate`.
            heaviest: how many times its weight p_k a client may count.
        """
        self._round, self._form, self._max_norm, self._heaviest = round, form, max_norm, heaviest
        self._cohort = set(cohort)
        self._waiting = set(self._cohort)

    def admit(self, client: Hashable, report: Report, round: int, weight: float = 1.0) -> None:
        """Raises `Rejected` unless this client's report may enter the sum.

        Args:
            client: whose connection, or job, it came from.
            report: what came.
            round: for which it says that it was made.
            weight: p_k of this client; a report may weigh as much, or one.
        """
        if round != self._round:
            raise Rejected(f"it was made for round {round}, and this is round {self._round}")
        if client not in self._waiting:
            raise Rejected("it has reported already" if client in self._cohort else "it was not asked in this round")
        self._waiting.remove(client)
        validate(report, self._form, self._heaviest * max(1.0, weight), self._max_norm)


def close_round(
    method: Method,
    state: ServerState,
    reports: Iterable[Report],
    clients: int,
    *,
    cohort: float | None = None,
    source: Source | None = None,
    progress: float = 0.0,
) -> tuple[ServerState, Metrics]:
    """The server's part in one round: sum the reports as they come, undo the transforms in reverse, apply.

    Args:
        method: as for the visits.
        state: before the round.
        reports: valid reports, in a fixed order; each is dropped as soon as it is in the sum.
        clients: N, the size of the federation.
        cohort: M, the expected number of reports; all clients by default.
        source: of the server's noise; without one it is drawn from the operating system's entropy.
        progress: share of the run that is over, for a falling step size of the server.

    Returns:
        The next state and figures about the step. With no report at all the weights stay as they are, unless a
        transform protects the sum: then nobody is to see that there was none.
    """
    strategy = method.strategy
    total = _sum(reports) if strategy.sums_only else strategy.combine(list(reports))  # pyright: ignore
    return settle(method, state, total, clients, cohort=cohort, source=source, progress=progress)


def settle(
    method: Method,
    state: ServerState,
    total: Report,
    clients: int,
    *,
    cohort: float | None = None,
    source: Source | None = None,
    progress: float = 0.0,
) -> tuple[ServerState, Metrics]:
    """The end of a round, from the sum of its reports; arguments as for :func:`close_round`."""
    strategy, source = method.strategy.at(progress), source or Secure()
    cohort = clients if cohort is None else cohort
    if any(transform.of_sum for transform in method.privacy):
        total = _with_fixed_denominator(total, method, state.params, cohort)
    if not total:
        return state._replace(round=state.round + 1), {}
    told: Memory = {}
    for i, transform in reversed(list(enumerate(_as_told(method, state.memory)))):
        total = transform.server(total, source, cohort)
        told[f"{TOLD}{i}"] = transform.after(total, cohort)
    own = {name: part for name, part in state.memory.items() if not name.startswith(TOLD)}
    params, memory, metrics = strategy.apply(state.params, own, total, clients)
    metrics["step_norm"] = float(tree.norm(tree.sub(params, state.params)))
    memory = memory | {name: part for name, part in told.items() if part}
    metrics |= {name: float(leaf) for part in told.values() for name, leaf in part.items()}
    return ServerState(params, memory, state.round + 1), metrics


def _with_fixed_denominator(total: Report, method: Method, params: Params, cohort: float) -> Report:
    """The sum of reports as if as many as expected had come: whoever sees it cannot count them."""
    if not total:
        form = expected(method, params)
        total = {
            name: {key: torch.zeros_like(leaf).double() for key, leaf in part.items()} for name, part in form.items()
        }
    return total | {"stats": tree.scale(_unmoved(method, params)["stats"], cohort)}


def _sum(reports: Iterable[Report]) -> Report:
    """Sum of reports in float64, one accumulator; empty if there are none."""
    total: Report = {}
    for report in reports:
        if not total:
            total = {name: tree.tree_map(lambda leaf: leaf.double().clone(), part) for name, part in report.items()}
            continue
        for name, part in report.items():
            for key, leaf in part.items():
                total[name][key] += leaf
    return total
