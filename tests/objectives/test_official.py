"""The objectives against the official FedMeNF code: same initial weights, same draws, same result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfields import tree
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.objectives import Inner, Maml, MeNF, Reptile
from fedfields.scenes.grid import GridSignal
from fedfields.types import Batch, Task, Visit

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Replayed:
    """A signal whose draws were recorded."""

    def __init__(self, signal, draws):
        self.signal, self.draws = signal, iter(draws)

    def __len__(self):
        return len(self.signal)

    def everything(self):
        return self.signal.everything()

    def sample(self, count, generator):
        index = next(self.draws)
        assert len(index) == count
        batch = self.everything()
        return Batch(batch.inputs[index], batch.targets[index])


def objective(name, meta):
    inner = Inner(
        steps=meta["inner_loop_steps"],
        lr=meta["client_inner_lr"],
        batch=meta["client_ray_bs"],
        clip=meta["client_gradclip"],
    )
    maml = Maml(inner, outer_batch=meta["client_ray_bs"], first_order=name == "fomaml")
    return {
        "maml": maml,
        "fomaml": maml,
        "menf": MeNF(maml, gamma=meta["triplet_gamma"]),
        "reptile": Reptile(inner),
    }[name]


@pytest.mark.parametrize("name", ["maml", "fomaml", "menf", "reptile"])
def test_two_outer_steps_equal_the_official_code(name):
    data = np.load(FIXTURES / f"image_{name}.npz", allow_pickle=False)
    meta = json.loads(bytes(data["meta"]))
    params = {k.removeprefix("theta0/"): torch.tensor(data[k]) for k in data.files if k.startswith("theta0/")}
    wanted = {k.removeprefix("w/"): torch.tensor(data[k]) for k in data.files if k.startswith("w/")}
    draws = [torch.tensor(data[k]) for k in sorted(data.files) if k.startswith("draw/")]

    field = Siren(width=meta["hidden_dim"], depth=meta["num_layers"])
    signal = Replayed(GridSignal(torch.tensor(data["image"])), draws)
    task = Task(signal, signal)
    visit = Visit(anchor=params, generator=torch.Generator())
    losses = []
    for _ in range(meta["outer_iterations"]):
        estimate = objective(name, meta).estimate(params, task, FieldLoss(field), visit)
        grads = tree.clip(estimate.grads, meta["client_gradclip"])
        params = tree.add(params, grads, -meta["client_lr"])
        losses.append(estimate.metrics["loss"])

    assert next(signal.draws, None) is None, "not every draw was used"
    assert set(params) == set(wanted)
    for key, value in wanted.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(params[key], value, rtol=0, atol=1e-9)
    moved = max(float((wanted[k] - torch.tensor(data[f"theta0/{k}"])).abs().max()) for k in wanted)
    assert moved > 1e-5, "the fixture must tell a step from no step"
