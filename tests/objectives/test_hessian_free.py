"""Per-FedAvg without Hessians against second-order MAML, and by hand."""

import pytest
import torch

from fedfields import tree
from fedfields.objectives import HessianFree, Inner, Maml
from fedfields.types import Batch, Task
from tests.helpers import LOSS, params_of, task_of, visit_of


def estimate(objective, params=None, seed=0, **visit):
    params = params or params_of()
    return objective.estimate(params, task_of(), LOSS, visit_of(params, seed, **visit))


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"weight_decay": 0.3, "proximal": 0.7}, {"clip": 1e-3}], ids=["plain", "pulled", "clipped"]
)
def test_it_is_within_a_percent_of_the_exact_gradient(steps, changes):
    inner = Inner(**{"steps": steps, "lr": 0.05, "batch": 7, "clip": 0.0} | changes)
    exact = estimate(Maml(inner, outer_batch=9))
    found = estimate(HessianFree(inner, outer_batch=9, fresh=False))
    away = float(tree.norm(tree.sub(found.grads, exact.grads)))
    first = estimate(Maml(inner, outer_batch=9, first_order=True)).grads
    curvature = float(tree.norm(tree.sub(first, exact.grads)))
    assert away <= 0.01 * float(tree.norm(exact.grads))
    assert away <= 0.01 * curvature, "the second-order part itself is right, not only small"
    assert (steps == 0) == (curvature == 0)
    assert found.metrics["loss"] == pytest.approx(exact.metrics["loss"])


class Given:
    """A signal whose batches are known beforehand: the curvature of each."""

    def __init__(self, *curvatures):
        self.left = iter(curvatures)

    def __len__(self):
        return 1

    def sample(self, count, generator):
        return Batch(None, torch.tensor(next(self.left), dtype=torch.float64))


def quadratic(params, batch):
    return batch.targets * (params["x"] - 1).square().sum() / 2


X = {"x": torch.tensor([3.0, -2.0], dtype=torch.float64)}


@pytest.mark.parametrize(
    "objective, support, factor",
    [
        (HessianFree(Inner(1, 0.1, 1, 0.0), 1), (1.0, 3.0), 0.7),
        (HessianFree(Inner(1, 0.1, 1, 0.0), 1, fresh=False), (1.0,), 0.9),
        (Maml(Inner(1, 0.1, 1, 0.0), 1), (1.0,), 0.9),
        (Maml(Inner(1, 0.1, 1, 0.0), 1, first_order=True), (1.0,), 1.0),
        (HessianFree(Inner(2, 0.1, 1, 0.0), 1), (1.0, 0.5, 3.0, 4.0), 0.95 * 0.7 * 0.6),
    ],
    ids=["hf", "hf-same-batch", "exact", "first-order", "two-steps"],
)
def test_a_quadratic_by_hand(objective, support, factor):
    """L = a (x - 1)^2 / 2 with a of its own in each batch: D (1), D' (2) and D'' (3).

    The step gives x - 1 = 0.9 (x0 - 1), its gradient on D' is 2 * 0.9 (x0 - 1), times I - lr H with H of D''.
    """
    task = Task(Given(*support), Given(2.0))
    found = objective.estimate(X, task, quadratic, visit_of(X)).grads["x"]
    torch.testing.assert_close(found, 2 * 0.9 * factor * (X["x"] - 1), rtol=1e-9, atol=0)


def test_its_history_is_that_of_the_estimate():
    """The audit differentiates estimates: the derivative along a direction equals a finite difference."""
    objective = HessianFree(Inner(steps=2, lr=0.05, batch=0, clip=0.0, proximal=0.2), fresh=False)
    params, probe = params_of(), tree.randn_like(params_of(), torch.Generator().manual_seed(1))
    direction = tree.randn_like(params, torch.Generator().manual_seed(2))
    leaves = tree.leaves_of(params)
    seen = estimate(objective, leaves, differentiable=True).grads
    for key, value in estimate(objective, params).grads.items():
        torch.testing.assert_close(value, seen[key].detach(), rtol=1e-6, atol=1e-9)
    slopes = dict(zip(leaves, torch.autograd.grad(tree.dot(seen, probe), list(leaves.values())), strict=True))
    h = 1e-5
    ahead, behind = (float(tree.dot(estimate(objective, tree.add(params, direction, s)).grads, probe)) for s in (h, -h))
    assert float(tree.dot(slopes, direction)) == pytest.approx((ahead - behind) / (2 * h), rel=1e-3)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("inf")])
def test_a_difference_of_no_length_is_refused(delta):
    with pytest.raises(ValueError, match=r"objective\.delta is"):
        HessianFree(delta=delta)
