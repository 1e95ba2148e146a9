"""Leaves that a loss keeps at each client: trained like the others, never sent."""

import dataclasses

import pytest
import torch

from fedfields.config import STRATEGIES
from fedfields.federation import Local, Method, own_leaves, start_server, validate, visit
from fedfields.objectives import Fit, Inner, Maml, Proximal
from fedfields.optim import Adam
from fedfields.privacy import Noise
from fedfields.runtime.inprocess import Context, Settings, expected, run_rounds
from fedfields.runtime.pool import Pool
from fedfields.types import Batch, Client, Task


@dataclasses.dataclass(frozen=True)
class Shifted:
    """``sum (w + b - y)^2 / 2`` with ``w`` shared and ``b`` the client's own."""

    start: float | None = 0.0

    def __call__(self, params, batch):
        return (params["w"] + params["own.b"] - batch.targets).square().sum() / 2

    def own(self, client, generator):
        drawn = torch.randn(2, generator=generator)
        return {"own.b": drawn if self.start is None else torch.full((2,), self.start)}


class Wanted(tuple):
    """A signal whose only sample is itself."""

    def everything(self):
        return Batch(None, torch.tensor([list(self)]))

    def sample(self, count, generator):
        return self.everything()


def client_of(name, *wanted):
    return Client(name, (Task(Wanted(wanted), Wanted(wanted), name),))


def visited(method, loss, memory=None, w=0.0, number=1):
    params = {"w": torch.full((2,), w)}
    received = method.strategy.broadcast(params, method.strategy.init(params))
    memory = method.client_init(params) if memory is None else memory
    return visit(method, client_of("ann", 3.0, 5.0), loss, received, memory, seed=0, round=number)


def plain(steps=1, lr=0.1, objective=None, **local):
    return Method(objective or Fit(), Local(steps, lr=lr, clip=0.0, **local))


def test_own_leaves_are_trained_with_the_others_and_kept():
    """By hand: w = 0, b = 1, y = (3, 5), step 0.1; then w = 0 again and b as it was kept."""
    first = visited(plain(), Shifted(1.0))
    assert set(first.report["delta"]) == {"w"}
    torch.testing.assert_close(first.report["delta"]["w"], torch.tensor([-0.2, -0.4]))
    torch.testing.assert_close(first.memory["own"]["own.b"], torch.tensor([1.2, 1.4]))
    assert first.metrics["update_norm"] == pytest.approx(0.2**0.5)
    second = visited(plain(), Shifted(1.0), first.memory, number=2)
    torch.testing.assert_close(second.memory["own"]["own.b"], torch.tensor([1.38, 1.76]))
    torch.testing.assert_close(second.report["delta"]["w"], torch.tensor([-0.18, -0.36]))


def test_each_client_draws_its_own_leaves_once():
    ann, bob = (own_leaves(Shifted(None), client_of(name, 1.0, 1.0), 7)["own.b"] for name in ("ann", "bob"))
    assert not torch.equal(ann, bob)
    assert torch.equal(ann, own_leaves(Shifted(None), client_of("ann", 9.0, 9.0), 7)["own.b"])
    still = visited(plain(lr=1e-12), Shifted(None), number=5)
    torch.testing.assert_close(still.memory["own"], own_leaves(Shifted(None), client_of("ann", 3.0, 5.0), 0))


def bytes_of(report):
    return b"".join(leaf.numpy().tobytes() for part in report.values() for leaf in part.values())


@pytest.mark.parametrize(
    "name, privacy",
    [
        pytest.param(name, privacy, id=f"{how}-{name}")
        for how, privacy in (("open", ()), ("noised", (Noise(),)))
        for name, strategy in STRATEGIES.items()
        if not privacy or strategy.heaviest == 1  # Learned weights and noise do not go together.
    ],
)
def test_no_byte_of_them_is_in_any_report(name, privacy):
    objective = Maml(Inner(steps=2, lr=0.05))
    method = dataclasses.replace(plain(3, objective=objective), strategy=STRATEGIES[name], privacy=privacy)
    reply = visited(method, Shifted(None))
    before, after = own_leaves(Shifted(None), client_of("ann", 3.0, 5.0), 0), reply.memory["own"]
    assert not torch.equal(before["own.b"], after["own.b"])
    sent = bytes_of(reply.report)
    for leaf in (before["own.b"], after["own.b"]):
        assert all(number.numpy().tobytes() not in sent for number in leaf)
    validate(reply.report, expected(method, {"w": torch.zeros(2)}), max_weight=1.0)
    assert visited(method, Shifted(None), reply.memory, number=2).report.keys() == reply.report.keys()


def test_the_pull_towards_the_received_weights_leaves_them_alone():
    """Two steps of 0.1 from w = 0, b = 0 with mu = 2: b goes the way of the residual, w is pulled back to 0."""
    reply = visited(plain(2, objective=Proximal(Fit(), mu=2.0)), Shifted(0.0))
    # Step 1: residual (-3, -5), no pull yet: w = b = (.3, .5). Step 2: residual (-2.4, -4), pull on w (.6, 1).
    torch.testing.assert_close(reply.memory["own"]["own.b"], torch.tensor([0.54, 0.9]))
    torch.testing.assert_close(-reply.report["delta"]["w"], torch.tensor([0.48, 0.8]))


def test_a_kept_optimiser_remembers_them_too():
    """Adam's first two steps have nearly the size of the rate where gradients keep their sign."""
    method = plain(1, lr=0.1, optimizer=Adam(), keep_state=True)
    first = visited(method, Shifted(0.0))
    assert set(first.memory["optim.mean"]) == {"w", "own.b"}
    second = visited(method, Shifted(0.0), first.memory, number=2)
    assert float(second.memory["optim.step"]["count"]) == 2
    torch.testing.assert_close(second.memory["own"]["own.b"], torch.full((2,), 0.2), rtol=1e-2, atol=0)


def test_what_differs_between_clients_is_learned_at_home_and_the_rest_together():
    """Owners want w + b = 1 and 3: w goes to what they share, and each b to what it lacks."""
    clients = (client_of("ann", 1.0, 1.0), client_of("bob", 3.0, 3.0))
    context = Context(plain(), clients, Shifted(0.0))
    state = start_server(context.method.strategy, {"w": torch.zeros(2)})
    with Pool(context, 1) as pool:
        *_, last = run_rounds(context, Settings(200, 2), state, {}, pool)
    w = last.state.params["w"]
    for index, wanted in enumerate((1.0, 3.0)):
        torch.testing.assert_close(w + last.memories[index]["own"]["own.b"], torch.full((2,), wanted))
    # The mean of the residuals drives w and the mean of b alike, so that both end at half of the mean target.
    torch.testing.assert_close(w, torch.full((2,), 1.0))
    assert last.record["bytes_up"] == 2 * (2 * 4 + 8)
