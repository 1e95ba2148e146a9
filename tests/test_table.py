"""One body over the table of all members: every objective with every strategy, protection and field runs and moves."""

import dataclasses

import pytest
import torch

from fedfields.config import FIELDS, OBJECTIVES, STRATEGIES
from fedfields.federation import Local, Method, prepare
from fedfields.losses import FieldLoss
from fedfields.objectives import Fit
from fedfields.optim import Adam
from fedfields.runtime.inprocess import train
from tests.helpers import LOSS, clients_of, params_of
from tests.table import PAIRS, TRANSFORMS, small


def moved(method, clients, loss=LOSS, start=None):
    start = start or params_of(dtype=torch.float32)
    rounds = []
    found = train(method, clients, loss, start, rounds=2, cohort=5, on_round=rounds.append)
    assert not any(one.record["dropped"] for one in rounds)
    assert all(torch.isfinite(leaf).all() for leaf in found.values())
    return max(float((found[key] - start[key]).abs().max()) for key in start)


@pytest.mark.parametrize("objective, strategy", [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_every_pair_runs_and_moves(objective, strategy):
    method = Method(objective, Local(steps=2, lr=0.01), strategy)
    clients = clients_of(5)
    assert moved(method, clients) > (0 if not _vanishes(objective) else -1)


def _vanishes(objective):
    """Plain training averaged over a picture and its mirror image has no gradient left."""
    return isinstance(getattr(objective, "base", None), Fit)


@pytest.mark.parametrize("name, transform", TRANSFORMS, ids=[row[0] for row in TRANSFORMS])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_goes_with_every_protection(objective, name, transform):
    method = Method(small(OBJECTIVES[objective]), Local(steps=1, lr=0.01), privacy=(transform,))
    clients = [prepare(method.privacy, client, seed=0) for client in clients_of(5)]
    assert moved(method, clients) > 0


@pytest.mark.parametrize("name", list(FIELDS))
@pytest.mark.parametrize("in_dim, shape", [(2, (6, 5)), (3, (3, 4, 5))], ids=["image", "clip"])
def test_every_field_learns_images_and_clips(name, in_dim, shape):
    from tests.helpers import task_of

    field = dataclasses.replace(FIELDS[name], width=16)
    start = field.init(in_dim, 3, torch.Generator().manual_seed(0))
    task = task_of(shape=shape, dtype=torch.float32)
    client = clients_of(1)[0]._replace(train=(task,))
    loss, method = FieldLoss(field), Method(Fit(), Local(steps=100, lr=0.003, optimizer=Adam()))
    found = train(method, [client], loss, start, rounds=2, cohort=1)
    batch = task.query.everything()
    assert field(found, batch.inputs).shape == batch.targets.shape
    assert float(loss(found, batch)) < 0.5 * float(loss(start, batch))


def test_the_table_is_whole():
    assert len(PAIRS) == len(OBJECTIVES) * len(STRATEGIES)
