"""Runs on a place: from photographs to a field, alone and federated."""

import dataclasses
import json

import pytest
import torch

from fedfields.config import Experiment, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import Local
from fedfields.fields import CoarseFine, HashGrid, Nerf, SimpleNerf, Siren
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.objectives import Fit, Maml, MeNF
from fedfields.rendering.marching import Marching, march_rays
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.audit_run import audit_run
from fedfields.runtime.checkpoint import load_weights
from fedfields.runtime.run import run, set_up
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import in_cube
from tests.scenes.ball import write_capture

GRID = HashGrid(levels=6, log2_rows=11, coarsest=4, finest=48, width=16, latent=7)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ball")
    write_capture(folder)
    return folder


def experiment(capture, **changes):
    base = preset("nerf")
    settings = {
        "data": Scene(capture),
        "field": GRID,
        "rays": Marching(steps=96, cells=16, refresh=10),
        "objective": Fit(batch=256),
        "local": dataclasses.replace(base.local, steps=10),
        "rounds": 4,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "workers": 1,
    }
    return dataclasses.replace(base, **(settings | changes))


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_hash_grid_learns_the_ball(capture, tmp_path):
    summary = run(experiment(capture, rounds=12), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["psnr"]["held_out"]["0"] + 5 < summary["psnr"]["held_out"]["0"] > 20
    assert set(summary["views"]) == {"./test/r_0", "./test/r_1", "./test/r_2"}
    mean = sum(one["psnr"] for one in summary["views"].values()) / 3
    assert summary["psnr"]["held_out"]["0"] == pytest.approx(mean)
    for name in ("scene.json", "tour.json", "images/sheets.json", "model.safetensors"):
        assert (tmp_path / "run" / name).exists(), name
    with pytest.raises(UserError, match="pictures, clips or objects"):
        audit_run(tmp_path / "run", None)


def test_a_federation_of_one_is_centralised_training_to_the_bit(capture, tmp_path):
    run(experiment(capture), tmp_path / "alone")
    one = dataclasses.replace(preset("fedavg-ngp"), data=Scene(capture, clients=1))
    names = ("field", "rays", "objective", "local", "rounds", "workers")
    run(dataclasses.replace(one, **{name: getattr(experiment(capture), name) for name in names}), tmp_path / "one")
    assert same(*(load_weights(tmp_path / name / "model.safetensors") for name in ("alone", "one")))


def test_resuming_and_worker_processes_change_nothing(capture, tmp_path):
    federated = experiment(capture, data=Scene(capture, clients=3), cohort=2)
    run(federated, tmp_path / "whole")
    run(dataclasses.replace(federated, workers=2), tmp_path / "parallel")
    whole = load_weights(tmp_path / "whole" / "model.safetensors")
    assert same(whole, load_weights(tmp_path / "parallel" / "model.safetensors"))
    # The step size falls with the share of the run that is over, so the first half of a longer run is needed.
    constant = dataclasses.replace(federated, local=dataclasses.replace(federated.local, final=1.0))
    run(constant, tmp_path / "constant")
    run(dataclasses.replace(constant, rounds=2), tmp_path / "half")
    run(constant, tmp_path / "half", resume=True)
    assert same(*(load_weights(tmp_path / name / "model.safetensors") for name in ("constant", "half")))


def test_a_budget_of_seconds_ends_training(capture, tmp_path):
    """Whatever the number of rounds; and the last evaluation is on all photographs."""
    for rounds in (1, 100_000):
        summary = run(experiment(capture, rounds=rounds, seconds=0.5, evaluate_every=1), tmp_path / f"run-{rounds}")
        assert 1 <= summary["rounds"] < 1000 and 0.5 <= summary["seconds"] < 5 and len(summary["views"]) == 3
    assert run(experiment(capture, rounds=0, seconds=0.5), tmp_path / "none")["rounds"] == 0


def test_a_simple_nerf_learns_too(capture, tmp_path):
    nerf = SimpleNerf(width=32, depth=3, octaves=4, frequencies=5)
    local = Local(steps=20, lr=5e-3, clip=0.0, optimizer=preset("nerf").local.optimizer, keep_state=True)
    changes = {"field": nerf, "rays": RenderSettings(samples=24), "local": local, "objective": Fit(batch=128)}
    summary = run(experiment(capture, rounds=8, **changes), tmp_path / "run")
    assert summary["psnr"]["held_out"]["0"] > 16


def test_a_coarse_and_a_fine_nerf_learn_together(capture, tmp_path):
    pair = CoarseFine(Nerf(width=32, depth=3, octaves=5, direction_octaves=2, skip=2))
    local = dataclasses.replace(preset("fednerf").local, steps=20, lr=5e-3)
    changes = {"field": pair, "rays": RenderSettings(samples=12, fine=12), "local": local, "objective": Fit(batch=128)}
    federated = experiment(capture, rounds=8, data=Scene(capture, clients=2), cohort=2, **changes)
    summary = run(federated, tmp_path / "run")
    assert summary["psnr"]["held_out"]["0"] > 16
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    start = pair.init(torch.Generator().manual_seed(0))
    assert set(weights) == set(start) and not any(torch.equal(weights[k], start[k]) for k in start if "weight" in k)


def test_fine_samples_gather_where_the_coarse_field_is():
    """A thin wall at distance 1 from the start of the rays: half of all points end up in its neighbourhood."""
    settings = RenderSettings(samples=20, fine=20)
    rays = in_cube(torch.tensor([[0.0, 0.0, -1.0]] * 3), torch.tensor([[0.0, 0.0, 1.0]] * 3))
    samples = settings.sample(rays)
    weights = torch.zeros(3, 20)
    weights[:, 9:11] = 0.5  # From 0.9 to 1.1.
    refined = settings.refine(rays, samples, weights)
    assert refined.at.shape == (3, 40) and (refined.at.diff(dim=1) >= 0).all()
    assert ((refined.at > 0.9) & (refined.at < 1.1)).sum(1).tolist() == [22, 22, 22]
    missing = in_cube(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert settings.refine(missing, settings.sample(missing), torch.zeros(1, 20)).at.isfinite().all()
    assert torch.equal(refined.starts, refined.at) and torch.allclose(refined.ends[:, -1], torch.tensor(2.0))


def test_parts_that_do_not_go_together_are_one_clear_line(capture):
    for changes, words in (
        ({"field": Siren()}, "field of pictures"),
        ({"objective": MeNF(Maml())}, "rays:dense"),
        ({"field": SimpleNerf()}, "rays:dense"),
        ({"data": dataclasses.replace(Experiment().data)}, "field of places"),
    ):
        with pytest.raises(UserError, match=words):
            set_up(experiment(capture, **changes))


def test_an_experiment_on_a_place_survives_json(capture):
    first = experiment(capture, rays=RenderSettings(samples=7))
    assert from_json(json.loads(json.dumps(to_json(first)))) == first


def test_skipping_empty_space_changes_nothing_that_is_seen(capture):
    """With a grid that knows everything, marching skips only what has no density at all."""
    random = torch.Generator().manual_seed(0)

    def ball(positions, directions):
        inside = positions.norm(dim=1) < 0.5
        return 30.0 * inside, (positions + 1) / 2

    origins = torch.nn.functional.normalize(torch.randn(200, 3, generator=random), dim=1) * 2.5
    rays = in_cube(origins, torch.randn(200, 3, generator=random) * 0.2 - origins / 2.5)
    marching = Marching(steps=256, cells=24)
    axis = (torch.arange(24) + 0.5) / 12 - 1
    centres = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    occupied = centres.norm(dim=-1) < 0.5 + 0.09  # Every cell that touches the ball.
    full, _ = march_rays(ball, rays, marching, torch.ones_like(occupied))
    skipping, _ = march_rays(ball, rays, marching, occupied)
    for a, b in zip(full, skipping, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_limit_of_samples_leaves_out_whole_rays(capture):
    random = torch.Generator().manual_seed(0)
    rays = in_cube(torch.full((50, 3), 0.1), torch.randn(50, 3, generator=random))
    marching, occupied = Marching(steps=100, cells=4), torch.ones(4, 4, 4, dtype=torch.bool)

    def fog(positions, directions):
        return torch.ones(len(positions)), positions.abs()

    everything, count = march_rays(fog, rays, marching, occupied)
    some, kept = march_rays(fog, rays, marching, occupied, most=500)
    assert count == 50 and 1 < kept < 50 and torch.equal(some.colour, everything.colour[:kept])


def test_dense_and_marched_rendering_agree(capture):
    """Where both may put as many samples as they like: the same field looks the same."""
    place = Scene(capture).load()
    batch = place.clients[0].train[0].support.sample(100, torch.Generator().manual_seed(0))
    params = GRID.init(torch.Generator().manual_seed(1))
    marched = MarchedLoss(GRID, Marching(steps=2000)).render(params, batch.inputs).colour
    dense = RadianceLoss(GRID, RenderSettings(samples=1000)).render(params, batch.inputs._replace(jitter=None)).colour
    assert (marched - dense).abs().max() < 2e-3
