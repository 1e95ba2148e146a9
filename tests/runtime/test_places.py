"""Runs on a place: from photographs to a field, alone and federated."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from fedfields import tree
from fedfields.config import Experiment, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import Local
from fedfields.fields import CoarseFine, HashGrid, LowRank, Nerf, SimpleNerf, Siren, expanded
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.objectives import Fit, Maml, MeNF
from fedfields.privacy import Noise, Surrogate
from fedfields.rendering.marching import Marching, march_rays
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime import start
from fedfields.runtime.checkpoint import load_weights, save_weights
from fedfields.runtime.pool import one_thread
from fedfields.runtime.products import load_trained
from fedfields.runtime.run import Interrupted, run, set_up
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import in_cube
from fedfields.seeds import generator
from tests.scenes.ball import write_capture

GRID = HashGrid(levels=6, log2_rows=11, coarsest=4, finest=48, width=16, latent=7)
PAIR = CoarseFine(Nerf(width=32, depth=3, octaves=5, direction_octaves=2, skip=2))


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


def by_hand(loss, client, start, experiment, shared):
    """The weights after three visits to one client, by torch.optim.Adam on the rays that it draws.

    At the end of a visit stands what a server makes of the difference that travels.
    """
    local, adam, kept = experiment.local, experiment.local.optimizer, {}
    params = {key: leaf.clone().requires_grad_() for key, leaf in start.items()}
    betas = (adam.beta1, adam.beta2)
    optimiser = torch.optim.Adam(params.values(), lr=local.lr, betas=betas, eps=adam.epsilon, fused=True)
    for number in (1, 2, 3):
        random = generator(experiment.seed, "visit", number, client.name)
        before = {key: leaf.detach().clone() for key, leaf in params.items()}
        for step in range(local.steps):
            if isinstance(loss, MarchedLoss) and step % loss.refresh_every == 0:
                loss, kept = loss.refreshed(expanded(params, shared), kept, random)
            optimiser.zero_grad()
            batch = client.train[0].support.sample(experiment.objective.batch, random)
            loss(expanded(params, shared), batch).backward()
            optimiser.step()
        with torch.no_grad():
            for key, leaf in params.items():
                leaf.copy_(before[key] - (before[key] - leaf))
    return {key: leaf.detach() for key, leaf in params.items()}


@pytest.mark.parametrize("compression", [None, LowRank(energy=0.7)], ids=["whole", "low-rank"])
@pytest.mark.parametrize(
    "field, rays",
    [(GRID, Marching(steps=96, cells=16, refresh=10)), (PAIR, RenderSettings(samples=8, fine=8))],
    ids=["hash-grid", "coarse-fine"],
)
def test_a_federation_of_one_is_centralised_training_to_the_bit(capture, tmp_path, field, rays, compression):
    """Also what comes before it: a warm-up is centralised training on the public photographs."""
    local = dataclasses.replace(preset("nerf").local, steps=7, final=1.0)
    changes = {"field": field, "rays": rays, "compression": compression, "local": local, "objective": Fit(batch=64)}
    one = experiment(capture, data=Scene(capture, public=4), warm_up=21, rounds=3, **changes)
    run(one, tmp_path / "run")
    setup = set_up(one)
    with one_thread():
        params = by_hand(setup.context.loss, setup.federation.public, setup.params, one, {})
        params, shared = compression.factors(params) if compression else (params, {})
        params = by_hand(setup.context.loss, setup.context.clients[0], params, one, shared)
        params = expanded(params, shared)
    found = load_weights(tmp_path / "run" / "model.safetensors")
    assert bool(shared) == bool(compression) and found.keys() == params.keys() and same(found, params)


def test_a_run_that_is_interrupted_goes_on_from_the_same_start(capture, tmp_path, monkeypatch):
    """During the warm-up, and after it, which is then not repeated."""
    # Clipping looks at the order of weights.
    local = dataclasses.replace(preset("nerf").local, steps=10, final=1.0, clip=1e-3)
    data = Scene(capture, clients=2, public=4)
    one = experiment(capture, data=data, cohort=2, warm_up=25, compression=LowRank(), local=local)
    told = []
    run(one, tmp_path / "whole", advance=lambda *what: told.append(what))
    assert told == [("warm-up", 0, 25), ("warm-up", 10, 25), ("warm-up", 20, 25)]

    def press(*_):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="before the first round; go on with: fedfields run --resume"):
        run(one, tmp_path / "broken", advance=press)
    assert not (tmp_path / "broken" / "start.safetensors").exists()
    with pytest.raises(Interrupted, match="after round 1 of 4"):
        run(one, tmp_path / "broken", resume=True, on_round=press)
    shutil.rmtree(tmp_path / "broken" / "checkpoints")  # As if round 1 had not been over.
    monkeypatch.setattr(start, "_warm_up", press)
    for name, value in (("warm_up", 0), ("compression", None)):
        with pytest.raises(UserError, match=f"started with another {name.replace('_', '-')}"):
            run(dataclasses.replace(one, **{name: value}), tmp_path / "broken", resume=True)
    run(one, tmp_path / "broken", resume=True)
    for name in ("start.safetensors", "model.safetensors"):
        found = [load_weights(tmp_path / folder / name) for folder in ("whole", "broken")]
        assert found[0].keys() == found[1].keys() and same(*found), name


def test_low_rank_weights_travel_light_to_the_byte(capture, tmp_path):
    """By hand: of rank 5, 4 bytes a number and 8 for the weight of a report; what is shared goes to everybody once."""
    changes = {"field": PAIR, "rays": RenderSettings(samples=8, fine=8), "objective": Fit(batch=32)}
    data = Scene(capture, clients=3)
    run(experiment(capture, data=data, cohort=2, compression=LowRank(rank=5), **changes), tmp_path / "run")
    shapes = [(32, 33), (32, 32), (32, 65), (1, 32), (32, 32), (16, 47), (3, 16)]
    ranks = [5, 5, 5, 1, 5, 5, 3]
    biases = 32 + 32 + 32 + 1 + 32 + 16 + 3
    sent = 2 * 4 * (sum(rows * rank for (rows, _), rank in zip(shapes, ranks, strict=True)) + biases)
    once = 2 * 4 * sum(rank * columns for (_, columns), rank in zip(shapes, ranks, strict=True))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["bytes_up"] for one in records] == [2 * (sent + 8)] * 4
    assert [one["bytes_down"] for one in records] == [2 * sent + 3 * once] + [2 * sent] * 3
    trained = load_trained(tmp_path / "run")  # Nobody who looks at the result needs to know.
    assert {key: leaf.shape for key, leaf in trained.params.items()} == {
        key: leaf.shape for key, leaf in PAIR.init(torch.Generator()).items()
    }


def test_a_start_that_is_no_good_is_one_clear_line(capture, tmp_path):
    one = experiment(capture, data=Scene(capture, public=2), warm_up=3, rounds=1)
    run(one, tmp_path / "run")
    file = tmp_path / "run" / "start.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as weights"):
        run(one, tmp_path / "run", resume=True)
    save_weights(file, {"else": torch.zeros(3)})
    with pytest.raises(UserError, match="belongs to another field"):
        run(one, tmp_path / "run", resume=True)


def test_a_warm_up_that_diverges_is_one_clear_line(capture, tmp_path):
    local = Local(steps=10, lr=1e30, clip=0.0)
    with pytest.raises(UserError, match="the warm-up diverged"):
        run(experiment(capture, data=Scene(capture, public=2), warm_up=30, local=local), tmp_path / "run")


def test_resuming_and_worker_processes_change_nothing(capture, tmp_path):
    federated = experiment(capture, data=Scene(capture, clients=3), cohort=2, compression=LowRank())
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
    local = dataclasses.replace(preset("fednerf").local, steps=20, lr=5e-3)
    changes = {"field": PAIR, "rays": RenderSettings(samples=12, fine=12), "local": local, "objective": Fit(batch=128)}
    federated = experiment(capture, rounds=8, data=Scene(capture, clients=2), cohort=2, **changes)
    summary = run(federated, tmp_path / "run")
    assert summary["psnr"]["held_out"]["0"] > 16
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    fresh = PAIR.init(torch.Generator().manual_seed(0))
    assert set(weights) == set(fresh) and not any(torch.equal(weights[k], fresh[k]) for k in fresh if "weight" in k)


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
        ({"field": Siren()}, "no radiance field"),
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

    everything, samples = march_rays(fog, rays, marching, occupied)
    some, fewer = march_rays(fog, rays, marching, occupied, most=500)
    assert samples.rays == 50 and 1 < fewer.rays < 50 and torch.equal(some.colour, everything.colour[: fewer.rays])
    assert len(fewer.ray) <= 500


def test_dense_and_marched_rendering_agree(capture):
    """Where both may put as many samples as they like: the same field looks the same."""
    place = Scene(capture).load()
    batch = place.clients[0].train[0].support.sample(100, torch.Generator().manual_seed(0))
    params = GRID.init(torch.Generator().manual_seed(1))
    marched = MarchedLoss(GRID, Marching(steps=2000)).render(params, batch.inputs).colour
    dense = RadianceLoss(GRID, RenderSettings(samples=1000)).render(params, batch.inputs._replace(jitter=None)).colour
    assert (marched - dense).abs().max() < 2e-3


def test_updates_of_a_place_can_be_clipped_and_noised_and_surrogates_are_refused(capture, tmp_path):
    """Two runs that differ in the noise alone: without any they end within the clip of each round of the start."""
    base = experiment(capture, rounds=2, data=Scene(capture, clients=2), cohort=2)
    ends = {}
    for ratio in (0.0, 5.0):
        chosen = dataclasses.replace(base, privacy=(Noise(clip=0.05, ratio=ratio),))
        run(chosen, tmp_path / str(ratio))
        ends[ratio] = load_weights(tmp_path / str(ratio) / "model.safetensors")
    start = set_up(base).params
    moved = {ratio: float(tree.norm(tree.sub(end, start))) for ratio, end in ends.items()}
    assert 0 < moved[0.0] <= 2 * 0.05 * 1.001
    # Noise of norm 5 x 0.05 from each of two clients, averaged, in each of two rounds.
    assert moved[5.0] == pytest.approx(math.hypot(5 * 0.05 / math.sqrt(2) * math.sqrt(2), moved[0.0]), rel=0.1)
    with pytest.raises(UserError, match="leave out privacy:surrogate"):
        set_up(dataclasses.replace(base, privacy=(Surrogate("public"),)))
