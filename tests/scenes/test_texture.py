"""Textures and surrogates: they have the statistics they were asked for, and nothing else of the picture."""

import numpy as np
import pytest
import torch

from fedfields.federation import Local, Method, prepare, realise, visit
from fedfields.objectives import Inner, Maml
from fedfields.privacy import Surrogate
from fedfields.runtime.tasks import set_up_tasks as set_up
from fedfields.scenes.arrays import ArraySignal
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.texture import TextureStatistics, frequencies, statistics_of, texture
from fedfields.types import Client, Task
from tests.helpers import LOSS, params_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


STATISTICS = TextureStatistics(
    torch.tensor([0.5, 0.45, 0.55], dtype=torch.float64),
    torch.tensor([[9.0, 4.0, 2.0], [4.0, 8.0, 3.0], [2.0, 3.0, 10.0]], dtype=torch.float64) * 1e-4,
    1.3,
)


def test_statistics_by_hand():
    values = torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    found = statistics_of(values)
    np.testing.assert_allclose(found.mean.numpy(), [0.5, 0.75])
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(values.reshape(-1, 2).T.numpy(), bias=True))


@pytest.mark.parametrize("shape", [(64, 64), (8, 32, 32)], ids=["image", "clip"])
def test_a_texture_has_the_statistics_it_was_asked_for(shape):
    found = [statistics_of(texture(shape, STATISTICS, generator(seed))) for seed in range(20)]
    mean = torch.stack([one.mean for one in found]).mean(0)
    covariance = torch.stack([one.covariance for one in found]).mean(0)
    slope = sum(one.slope for one in found) / len(found)
    torch.testing.assert_close(mean, STATISTICS.mean, atol=0.005, rtol=0)
    torch.testing.assert_close(covariance, STATISTICS.covariance, atol=1.5e-4, rtol=0)
    assert slope == pytest.approx(STATISTICS.slope, abs=0.06)


def test_frequencies_are_numpys():
    rows, columns = np.meshgrid(np.fft.fftfreq(4), np.fft.fftfreq(6), indexing="ij")
    wanted = np.hypot(rows, columns)
    wanted[0, 0] = 1
    np.testing.assert_allclose(frequencies((4, 6)).numpy(), wanted, rtol=1e-6)


def client_of(values, name="ann"):
    signal = GridSignal(values)
    return Client(name, (Task(signal, signal, "picture"),))


def upload(client, statistics):
    method = Method(Maml(Inner(2, 0.05, 16)), Local(2, lr=0.1), privacy=(Surrogate(statistics),))
    params = params_of(dtype=torch.float32)
    reply = visit(method, prepare(method.privacy, client, seed=1), LOSS, {"params": params}, {}, seed=1, round=1)
    return reply.report["delta"]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_public_surrogates_do_not_depend_on_the_picture_at_all():
    one, other = torch.rand(12, 12, 3, generator=generator(1)), torch.rand(12, 12, 3, generator=generator(2))
    assert same(upload(client_of(one), "public"), upload(client_of(other), "public"))


def test_own_surrogates_depend_on_the_ten_statistics_alone():
    """A picture, and the same mirrored and moved around (equal statistics), give equal uploads; another does not."""
    picture = texture((12, 12), STATISTICS, generator(3)).float()
    moved = picture.flip(0).roll((3, 5), (0, 1))
    assert not torch.equal(picture, moved)
    a, b = upload(client_of(picture), "own"), upload(client_of(moved), "own")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-6)
    assert not same(a, upload(client_of(torch.rand(12, 12, 3, generator=generator(1))), "own"))


def test_every_outer_step_sees_a_new_texture():
    task = prepare((Surrogate(),), client_of(torch.rand(8, 8, 3, generator=generator())), seed=0).train[0]
    random = generator(5)
    first, second = realise(task, random), realise(task, random)
    assert first.support is first.query
    assert not torch.equal(first.support.values, second.support.values)
    assert float(first.support.values.min()) >= 0 and float(first.support.values.max()) <= 1


def test_a_signal_that_is_no_grid_is_refused_in_words():
    rows = ArraySignal(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="ArraySignal has none"):
        prepare((Surrogate(),), Client("x", (Task(rows, rows),)), seed=0)


def test_the_private_pictures_are_not_in_what_training_sees():
    """Law: whoever has only the prepared clients has nothing of the pictures but ten numbers each."""
    from fedfields.config import preset

    setup = set_up(preset("surrogate"))
    for client in setup.context.clients:
        for task in client.train:
            held = vars(task.support)
            assert set(held) == {"shape", "channels", "statistics"}
            sizes = [held["statistics"].mean.numel(), held["statistics"].covariance.numel(), 1]
            assert sizes == [3, 9, 1]
