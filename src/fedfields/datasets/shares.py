"""Who trains, who stops the training, who judges it: clients apart, and the rows of each in support and query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedfields.datasets.episodes import Episodes
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.arrays import ArraySignal
from fedfields.seeds import generator
from fedfields.types import Client, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

Kind = Literal["classes", "numbers"]


class Rows(NamedTuple):
    """What one client has.

    Attributes:
        inputs: ``[n, ...]``, float32, or int64 tokens of texts.
        targets: ``[n, ...]``, int64 classes or float32 numbers.
    """

    inputs: Tensor
    targets: Tensor


class SampleFederation(NamedTuple):
    """The clients of a run on samples.

    Attributes:
        clients: those that train.
        validation: those whose figures after adaptation decide when to stop, and nothing else; never trained on.
        unseen: those that judge the result once, at the end; neither training nor tuning ever sees them.
        notes: what the user should know.
        shape: of one input, without the batch.
        outputs: of the model: classes, or numbers in a target.
        kind: of the targets.
    """

    clients: tuple[Client, ...]
    validation: tuple[Client, ...]
    unseen: tuple[Client, ...]
    notes: tuple[str, ...]
    shape: tuple[int, ...]
    outputs: int
    kind: Kind


class Way(NamedTuple):
    """How the rows of a client become tasks.

    Attributes:
        support: share of the rows that are adapted to; the others judge.
        ways: classes of an episode; 0 for one task of all rows.
        shots: rows of each class in the support of an episode.
        queries: rows of each class in its query.
        episodes: of a client that does not train.
    """

    support: float
    ways: int = 0
    shots: int = 1
    queries: int = 1
    episodes: int = 4


def shared_out(
    rows: Mapping[str, Rows],
    kind: Kind,
    outputs: int,
    way: Way,
    seed: int,
    *,
    validation: float,
    unseen: float,
    sealed: bool = False,
) -> SampleFederation:
    """The federation of these clients; ``seed`` decides which are kept back, and which rows are support.

    Args:
        rows: of each client.
        kind: of the targets.
        outputs: of a model.
        way: how rows become tasks.
        seed: of the run.
        validation: share of the clients that decide when to stop.
        unseen: share of the clients that judge.
        sealed: leave those that judge out; the others are the same.

    Raises:
        UserError: nobody is left to train, or a client has too few rows.
    """
    usable = {name: one for name, one in rows.items() if enough(one, way)}
    names = [list(usable)[i] for i in torch.randperm(len(usable), generator=generator(seed, "clients")).tolist()]
    judges, stops = (_count(len(names), share) for share in (unseen, validation))
    if len(names) - judges - stops < 2:
        raise UserError(
            f"{len(rows)} clients, {len(usable)} of them with rows enough, leave {max(0, len(names) - judges - stops)} "
            "to train, and a federation needs two; add clients, or keep fewer back (--data.validation, --data.unseen)"
        )
    notes = [f"left out {name}: too few rows for support and query" for name in rows if name not in usable]
    parts = [] if sealed else names[:judges], names[judges : judges + stops], names[judges + stops :]
    tested, watched = (
        tuple(Client(name, (), _tasks(name, usable[name], way, seed)) for name in sorted(part)) for part in parts[:2]
    )
    trained = tuple(Client(name, (task_of(name, usable[name], way, seed),)) for name in sorted(parts[2]))
    shape = tuple(next(iter(usable.values())).inputs.shape[1:])
    return SampleFederation(trained, watched, tested, tuple(notes[:20]), shape, outputs, kind)


def _count(clients: int, share: float) -> int:
    """How many clients a share keeps back: at least one of three."""
    return max(1, round(share * clients)) if share and clients >= 3 else 0


def enough(rows: Rows, way: Way) -> bool:
    """Whether a client has rows for support and query."""
    if not way.ways:
        return len(rows.inputs) > 1
    counts = rows.targets.unique(return_counts=True)[1]
    return int((counts >= way.shots + way.queries).sum()) >= way.ways


def task_of(name: str, rows: Rows, way: Way, seed: int) -> Task:
    """What a client trains on: its rows, or episodes drawn from them at every visit."""
    if way.ways:
        episodes = Episodes(rows.inputs, rows.targets, way.ways, way.shots, way.queries)
        return Task(episodes, episodes, name)
    return _divided(name, rows, way, seed)


def _tasks(name: str, rows: Rows, way: Way, seed: int) -> tuple[Task, ...]:
    """What a client is judged on: the same each time."""
    if not way.ways:
        return (_divided(name, rows, way, seed),)
    episodes = task_of(name, rows, way, seed).support
    assert isinstance(episodes, Episodes)
    drawn = [episodes.episode(generator(seed, "episode", name, i)) for i in range(way.episodes)]
    return tuple(task._replace(name=f"{name}/{i}") for i, task in enumerate(drawn))


def _divided(name: str, rows: Rows, way: Way, seed: int) -> Task:
    """Support and query of all rows; of classes, every class in turn, so that a small support has many of them."""
    order = _in_turn(rows, generator(seed, "split", name))
    cut = min(len(order) - 1, max(1, round(way.support * len(order))))
    support, query = order[:cut], order[cut:]
    return Task(
        ArraySignal(rows.inputs[support], rows.targets[support]),
        ArraySignal(rows.inputs[query], rows.targets[query]),
        name,
    )


def _in_turn(rows: Rows, random: Generator) -> Tensor:
    """A random order of the rows; where targets are classes, the first of each class comes first, then the second."""
    order = torch.randperm(len(rows.inputs), generator=random)
    if rows.targets.dim() != 1 or rows.targets.is_floating_point():
        return order
    turn, seen = [], dict[int, int]()
    for label in rows.targets[order].tolist():
        seen[label] = seen.get(label, 0) + 1
        turn.append(seen[label])
    return order[torch.tensor(turn).argsort(stable=True)]
