"""Not a field at all: FOMAML for an ordinary classifier. The only seam is a loss ``(params, batch) -> scalar``.

Each of ten clients has only two kinds of handwritten digits. Needs scikit-learn for the data.
"""

import torch
from sklearn.datasets import load_digits

from fedfields import tree
from fedfields.adaptation import Adaptation, adapt
from fedfields.federation import Local, Method
from fedfields.losses import ModuleLoss, params_of
from fedfields.objectives import Inner, Maml
from fedfields.runtime.inprocess import train
from fedfields.scenes.arrays import ArraySignal
from fedfields.seeds import generator
from fedfields.strategies import FedOpt
from fedfields.types import Client, Task

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)


def owner(first: int) -> Client:
    """A client with the digits ``first`` and ``first + 3``: support and query to train on, the rest kept back."""
    rows = torch.nonzero((labels == first) | (labels == (first + 3) % 10)).flatten()
    support, query, kept = rows[:40], rows[40:200], rows[200:]
    parts = [ArraySignal(images[index], labels[index]) for index in (support, query, kept)]
    return Client(f"owner-{first}", (Task(parts[0], parts[1]),), (Task(parts[0], parts[2]),))


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
loss = ModuleLoss(model, torch.nn.functional.cross_entropy)
clients = [owner(first) for first in range(10)]
method = Method(
    Maml(Inner(steps=3, lr=0.5, batch=20), outer_batch=64, first_order=True),
    Local(steps=4, lr=0.1),
    FedOpt("adam", lr=0.01),
)
start = params_of(model)
params = train(method, clients, loss, start, rounds=40, cohort=5, seed=0)


def accuracy(weights: dict[str, torch.Tensor], steps: int) -> float:
    """Mean accuracy on what the clients kept back, after a few steps on their support."""
    right = []
    for client in clients:
        task = client.held_out[0]
        adapted = adapt(weights, task, loss, Adaptation(steps, lr=0.5, batch=20), generator(0, client.name))
        rows = task.query.everything()
        with torch.no_grad():
            right.append(float((loss.predict(adapted, rows.inputs).argmax(1) == rows.targets).float().mean()))
    return sum(right) / len(right)


print(f"{tree.size(start):,} weights; accuracy after 0, 1 and 3 steps on the owner's 40 digits")
print("random start:", [round(accuracy(start, steps), 3) for steps in (0, 1, 3)])
print("federated:   ", [round(accuracy(params, steps), 3) for steps in (0, 1, 3)])
