"""Losses of models and modules against torch, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from fedfields import tree
from fedfields.losses import ModelLoss, ModuleLoss, params_of
from fedfields.models import Mlp, Recurrent
from fedfields.types import Batch


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cross_entropy_by_hand():
    """Logits 0 and ln 3: probabilities 1/4 and 3/4."""
    model = Mlp(depth=0)
    params = {"last_layer.weight": torch.tensor([[0.0], [1.0]]), "last_layer.bias": torch.zeros(2)}
    batch = Batch(torch.tensor([[math.log(3)], [math.log(3)]]), torch.tensor([1, 0]))
    assert float(ModelLoss(model)(params, batch)) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    only = batch._replace(targets=torch.tensor([1, -100]))
    assert float(ModelLoss(model)(params, only)) == pytest.approx(-math.log(3 / 4)), "-100 does not count"


def test_numbers_are_compared_by_their_mean_square():
    model = Mlp(depth=0)
    params = {"last_layer.weight": torch.tensor([[2.0]]), "last_layer.bias": torch.tensor([1.0])}
    batch = Batch(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]]))
    assert float(ModelLoss(model, "numbers")(params, batch)) == pytest.approx((0 + 16) / 2)


def test_every_token_of_a_sequence_is_predicted():
    model, tokens = Recurrent(4, 5), torch.randint(6, (3, 8), generator=random())
    params, batch = model.init((7,), 6, random()), Batch(tokens[:, :-1], tokens[:, 1:])
    logits = ModelLoss(model).predict(params, batch.inputs)
    wanted = nn.CrossEntropyLoss()(logits.transpose(1, 2), batch.targets)
    torch.testing.assert_close(ModelLoss(model)(params, batch), wanted)


@pytest.mark.parametrize(
    "kind, shape, words",
    [("numbers", (4,), r"\[4\].* ask for \[4, 1\]"), ("classes", (4, 1), r"\[4, 1\].* ask for \[4\]")],
)
def test_targets_of_another_shape_are_refused(kind, shape, words):
    model = Mlp(depth=0)
    with pytest.raises(ValueError, match=words):
        ModelLoss(model, kind)(model.init((2,), 1, random()), Batch(torch.zeros(4, 2), torch.zeros(shape).long()))


def test_a_module_is_called_as_in_evaluation():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    module(torch.randn(9, 3, generator=random()))  # Some running statistics.
    loss, x = ModuleLoss(module, nn.functional.mse_loss), torch.randn(5, 3, generator=random(1))
    found = loss.predict(params_of(module), x)
    assert module.training and module[1].num_batches_tracked == 1
    torch.testing.assert_close(found, module.eval()(x))
    assert torch.equal(found, loss.predict(params_of(module) | {"meta.rate.0.weight": torch.ones(4, 3)}, x))


def test_parted_leaves_nothing_out():
    params = {"a": torch.zeros(1), "meta.rate.a": torch.ones(1)}
    weights, meta = tree.parted(params)
    assert list(weights) == ["a"] and list(meta) == ["meta.rate.a"]
