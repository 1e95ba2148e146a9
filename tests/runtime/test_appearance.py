"""Photographs of one place in different lights: codes that stay with their owners, and how all this is judged."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedfields.fields import CoarseFine, Nerf
from fedfields.losses import CODES
from fedfields.objectives import Fit
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.checkpoint import load, load_weights
from fedfields.runtime.places import Viewer
from fedfields.runtime.run import run, set_up
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import RaySignal, left_half
from tests.runtime.test_places import GRID, experiment, same
from tests.scenes.ball import write_capture

LIT = dataclasses.replace(GRID, appearance=4)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """The ball, every training photograph with an exposure of its own."""
    folder = tmp_path_factory.mktemp("exposures")
    write_capture(folder)
    gains = np.random.default_rng(0)
    for file in sorted((folder / "train").glob("*.png")):
        pixels = np.asarray(Image.open(file)).astype(float)
        pixels[..., :3] *= gains.uniform(0.3, 1.1)
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8), "RGBA").save(file)
    return folder


def exposures(capture, **changes):
    return experiment(capture, **{"field": LIT} | changes)


def codes_of(folder):
    return {i: memory["own"][CODES] for i, memory in load(folder / "checkpoints").memories.items()}


def test_codes_explain_exposures(capture, tmp_path):
    """Without codes the field can only show the mean exposure."""
    plain = run(exposures(capture, field=GRID, rounds=60, evaluate_every=60), tmp_path / "plain")
    lit = run(exposures(capture, rounds=60, evaluate_every=60), tmp_path / "lit")
    assert lit["psnr"]["held_out"]["0"] > plain["psnr"]["held_out"]["0"] + 2
    assert all(one["fitted"] == "left half" for one in lit["views"].values())
    assert not any("fitted" in one for one in plain["views"].values())
    codes = codes_of(tmp_path / "lit")[0]
    assert codes.shape == (12, 4) and codes.norm(dim=1).min() > 0.01


def test_codes_stay_with_their_owners(capture, tmp_path):
    run(exposures(capture, data=Scene(capture, clients=3, tests=1), cohort=3), tmp_path / "run")
    codes = codes_of(tmp_path / "run")
    assert [codes[i].shape for i in range(3)] == [(4, 4)] * 3
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert set(weights) == set(LIT.init(torch.Generator()))
    published = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and "checkpoints" not in file.parts]
    assert len(published) > 5
    numbers = [number.numpy().tobytes() for i in codes for number in codes[i].flatten()]
    for file in published:
        content = file.read_bytes()
        assert not any(number in content for number in numbers), file


def test_resuming_and_worker_processes_change_nothing(capture, tmp_path):
    base = exposures(capture, data=Scene(capture, clients=3, tests=1), cohort=2)
    federated = dataclasses.replace(base, local=dataclasses.replace(base.local, final=1.0))
    run(federated, tmp_path / "whole")
    run(dataclasses.replace(federated, workers=2), tmp_path / "parallel")
    run(dataclasses.replace(federated, rounds=2), tmp_path / "half")
    run(federated, tmp_path / "half", resume=True)
    for name in ("parallel", "half"):
        assert same(*(load_weights(tmp_path / one / "model.safetensors") for one in ("whole", name)))
        one, other = codes_of(tmp_path / "whole"), codes_of(tmp_path / name)
        assert one.keys() == other.keys() and same(one, other)


def test_a_coarse_and_a_fine_nerf_read_codes_on_dense_rays(capture, tmp_path):
    pair = CoarseFine(Nerf(width=16, depth=2, octaves=4, direction_octaves=2, appearance=3))
    changes = {"field": pair, "rays": RenderSettings(samples=8, fine=8), "objective": Fit(batch=64)}
    summary = run(exposures(capture, data=Scene(capture, tests=1), rounds=1, **changes), tmp_path / "run")
    assert summary["views"]["./test/r_0"]["fitted"] == "left half"
    assert codes_of(tmp_path / "run")[0].abs().min() > 0


@pytest.fixture(scope="module")
def trained(capture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(exposures(capture, data=Scene(capture, tests=1), rounds=20, evaluate_every=20), folder)
    return folder


def test_only_the_left_half_is_fitted_and_only_the_right_half_is_scored(capture, trained, tmp_path):
    """Whatever the right half shows, the picture is the same; whatever the left half shows counts for nothing else."""
    shutil.copytree(capture, tmp_path / "right")
    file = tmp_path / "right" / "test" / "r_0.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[:, 12:, :3] = 255 - pixels[:, 12:, :3]
    Image.fromarray(pixels, "RGBA").save(file)
    state = load(trained / "checkpoints")
    shots = []
    for folder in (capture, tmp_path / "right"):
        setup = set_up(exposures(folder))
        see = Viewer(setup.context.loss, state.state.params, 0)
        shots.append(setup._shot(see, setup.federation.tests[0]))
    assert torch.equal(shots[0].colour, shots[1].colour)
    truth, colour = shots[1].truth[:, 12:].double(), shots[1].colour[:, 12:].double()
    error = float((truth - colour.clamp(0, 1)).square().mean())
    assert shots[1].figures()["psnr"] == pytest.approx(-10 * np.log10(error), abs=0.01)


def test_a_photograph_without_a_left_half_is_judged_in_the_neutral_light(capture, trained):
    setup = set_up(exposures(capture))
    see = Viewer(setup.context.loss, load(trained / "checkpoints").state.params, 0)
    photo = setup.federation.tests[0]
    blind = photo._replace(usable=torch.arange(24 * 24).view(24, 24)[:, 12:].flatten())
    assert len(RaySignal((left_half(blind),))) == 0
    code = see.fitted(RaySignal((left_half(blind),)), torch.Generator().manual_seed(0))
    assert torch.equal(code, torch.zeros(1, 4))
    fitted = see.fitted(RaySignal((left_half(photo),)), torch.Generator().manual_seed(0))
    assert fitted.abs().min() > 0


def test_rays_know_their_photograph(capture):
    """In a batch, the colour of a ray is one that its photograph has, where photographs are of one colour each."""
    signal = Scene(capture).load().clients[0].train[0].support
    shades = tuple(
        photo._replace(colours=torch.full_like(photo.colours, 10 * i)) for i, photo in enumerate(signal.photos)
    )
    batch = RaySignal(shades).sample(500, torch.Generator().manual_seed(0))
    assert torch.equal((batch.targets[:, 0] * 25.5).round().long(), batch.inputs.photo)
    assert torch.equal(RaySignal(shades).everything().inputs.photo, torch.arange(12).repeat_interleave(24 * 24))
