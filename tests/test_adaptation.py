"""Test-time optimisation equals a plain torch.optim loop with the same draws."""

import pytest
import torch

from fedfields.adaptation import Adaptation, adapt, adapting
from fedfields.optim import Adam, Sgd
from tests.helpers import FIELD, LOSS, params_of, task_of

OPTIMISERS = {
    "sgd": (Sgd(), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (Sgd(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, lr=0.05)),
}


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_adaptation_equals_torch(name):
    ours, theirs = OPTIMISERS[name]
    settings = Adaptation(steps=9, lr=0.05, batch=7, clip=0.01, optimizer=ours)
    task = task_of()
    found = adapt(params_of(), task, LOSS, settings, torch.Generator().manual_seed(3))
    reference = {key: leaf.clone().requires_grad_() for key, leaf in params_of().items()}
    optimiser, random = theirs(list(reference.values())), torch.Generator().manual_seed(3)
    for _ in range(9):
        batch = task.support.sample(7, random)
        optimiser.zero_grad()
        (FIELD(reference, batch.inputs) - batch.targets).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(list(reference.values()), 0.01)
        optimiser.step()
    for key, leaf in found.items():
        torch.testing.assert_close(leaf, reference[key].detach(), rtol=1e-9, atol=1e-12)


def test_few_shot_sees_only_its_share():
    task = task_of()
    few = task.support.few(0.2, torch.Generator().manual_seed(0))
    assert len(few) == 6
    everything = {tuple(row) for row in task.support.everything().inputs.tolist()}
    seen = {tuple(row) for row in few.sample(500, torch.Generator().manual_seed(1)).inputs.tolist()}
    assert len(seen) <= 6 and seen < everything
    assert {step for step, _ in adapting(params_of(), few, LOSS, Adaptation(4), torch.Generator())} == {0, 1, 2, 4}
    full = adapt(params_of(), task, LOSS, Adaptation(8, batch=30), torch.Generator().manual_seed(2))
    part = adapt(params_of(), task, LOSS, Adaptation(8, batch=30, fraction=0.1), torch.Generator().manual_seed(2))
    whole = task.query.everything()
    assert float(LOSS(full, whole)) < float(LOSS(part, whole))


@pytest.mark.parametrize("changes, words", [({"fraction": 0.0}, "fraction is 0.0"), ({"steps": -1}, "steps is -1")])
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Adaptation(**changes)
