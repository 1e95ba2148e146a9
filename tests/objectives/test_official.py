"""The objectives against the official FedMeNF code: same initial weights, same draws, same result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfields import tree
from fedfields.fields import SimpleNerf, Siren
from fedfields.losses import FieldLoss, RadianceLoss
from fedfields.objectives import Inner, Maml, MeNF, Reptile
from fedfields.rendering.rays import Rays, RenderSettings
from fedfields.scenes.grid import GridSignal
from fedfields.types import Batch, Task, Visit

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Replayed:
    """A signal whose draws were recorded."""

    def __init__(self, signal, draws):
        self.signal, self.draws = signal, draws

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


def trees_of(data):
    """The weights at the start and after the outer steps, under the official names."""
    return (
        {k.removeprefix(f"{part}/"): torch.tensor(data[k]) for k in data.files if k.startswith(f"{part}/")}
        for part in ("theta0", "w")
    )


def train(params, name, meta, task, loss):
    visit = Visit(anchor=params, generator=torch.Generator())
    losses = []
    for _ in range(meta["outer_iterations"]):
        estimate = objective(name, meta).estimate(params, task, loss, visit)
        grads = tree.clip(estimate.grads, meta["client_gradclip"])
        params = tree.add(params, grads, -meta["client_lr"])
        losses.append(estimate.metrics)
    return params, losses


def assert_same(params, wanted, start):
    assert set(params) == set(wanted)
    for key, value in wanted.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(params[key], value, rtol=0, atol=1e-9)
    moved = max(float((wanted[key] - start[key]).abs().max()) for key in wanted)
    assert moved > 1e-5, "the fixture must tell a step from no step"


@pytest.mark.parametrize("name", ["maml", "fomaml", "menf", "reptile"])
def test_two_outer_steps_equal_the_official_code(name):
    data = np.load(FIXTURES / f"image_{name}.npz", allow_pickle=False)
    meta = json.loads(bytes(data["meta"]))
    start, wanted = trees_of(data)
    draws = iter([torch.tensor(data[k]) for k in sorted(data.files) if k.startswith("draw/")])
    field = Siren(width=meta["hidden_dim"], depth=meta["num_layers"])
    signal = Replayed(GridSignal(torch.tensor(data["image"])), draws)
    params, _ = train(start, name, meta, Task(signal, signal), FieldLoss(field))
    assert next(draws, None) is None, "not every draw was used"
    assert_same(params, wanted, start)


class ReplayedViews:
    """Posed pictures whose draws were recorded: the indices of the pixels, then the jitter along their rays."""

    def __init__(self, images, poses, focal, bounds, draws):
        self.colours = images.reshape(-1, 3)
        self.rays = official_rays(*images.shape[:3], focal, poses, bounds)
        self.draws = draws

    def __len__(self):
        return len(self.colours)

    def sample(self, count, generator):
        index, jitter = next(self.draws)[0], next(self.draws)[0]
        assert len(index) == len(jitter) == count
        return Batch(self.rays.chosen(index)._replace(jitter=jitter), self.colours[index])


def official_rays(views, height, width, focal, poses, bounds):
    """Rays through the corners of the pixels, not their middles, from poses in the OpenGL convention."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    local = torch.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -torch.ones_like(x)], dim=-1).to(poses)
    turned = torch.einsum("vij,hwj->vhwi", poses[:, :3, :3], local).reshape(-1, 3)
    origins = poses[:, :3, 3].repeat_interleave(height * width, dim=0)
    near, far = (bounds[i].expand(views * height * width) for i in (0, 1))
    return Rays(origins, turned / turned.norm(dim=-1, keepdim=True), near, far)


def camera_of(data):
    """The focal length in pixels, and near and far."""
    return float(data["hwf"][2]), torch.tensor(data["bounds"])


def ours(name):
    """The name of an official weight: the encoding is net.0, and every second module is a ReLU."""
    module, kind = name.removeprefix("net.").split(".")
    return "frequencies" if kind == "freqs" else f"layers.{(int(module) - 1) // 2}.{kind}"


@pytest.mark.parametrize("name", ["maml", "fomaml", "menf", "reptile"])
def test_two_outer_steps_of_a_nerf_equal_the_official_code(name):
    data = np.load(FIXTURES / f"nerf_{name}.npz", allow_pickle=False)
    meta = json.loads(bytes(data["meta"]))
    start, wanted = ({ours(k): leaf for k, leaf in part.items()} for part in trees_of(data))
    draws = iter([torch.tensor(data[k]) for k in sorted(data.files) if k.startswith("draw/")])
    support, query = (
        ReplayedViews(*(torch.tensor(data[k]) for k in (f"images_{part}", f"poses_{part}")), *camera_of(data), draws)
        for part in ("support", "query")
    )
    field = SimpleNerf(
        width=meta["hidden_dim"],
        depth=meta["num_layers"],
        frequencies=meta["num_freqs"],
        octaves=meta["max_freq"],
        train_frequencies=True,
    )
    assert {k: v.shape for k, v in field.init(torch.Generator()).items()} == {k: v.shape for k, v in start.items()}
    torch.testing.assert_close(field.bands().double(), start["frequencies"], rtol=1e-6, atol=0)
    loss = RadianceLoss(field, RenderSettings(meta["num_points_per_ray"], "white", "fedmenf"))
    params, metrics = train(start, name, meta, Task(support, query), loss)
    assert next(draws, None) is None, "not every draw was used"
    assert_same(params, wanted, start)
    if name != "reptile":
        gamma = meta["triplet_gamma"] if name == "menf" else 0
        shown = [one["loss"] - gamma * one.get("loss_before", 0) for one in metrics]
        assert shown == pytest.approx(meta["loss"], abs=1e-9)
