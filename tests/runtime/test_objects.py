"""A run on objects, from photographs to adapted fields, their films and the audit."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from fedfields import tree
from fedfields.adaptation import Adaptation
from fedfields.audit import AuditSettings, Observation, audit
from fedfields.audit.matching import total_variation
from fedfields.audit.simulate import simulate
from fedfields.audit.target import target_of
from fedfields.cli import main
from fedfields.config import PRESETS, from_json, preset, to_json
from fedfields.errors import UserError
from fedfields.federation import Local, Method, visit
from fedfields.fields import HashGrid, Nerf, SimpleNerf
from fedfields.losses import render
from fedfields.metrics import psnr
from fedfields.objectives import Fit, Inner, Maml, MeNF, Reptile
from fedfields.privacy import Surrogate
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.run import load_experiment, run
from fedfields.runtime.tasks import set_up_tasks
from fedfields.scenes.objects import Objects
from fedfields.seeds import generator
from tests.scenes.ball import write_capture
from tests.table import small

FIELD = SimpleNerf(width=12, depth=3, frequencies=4, octaves=2.0)
RAYS = RenderSettings(samples=6)
INNER = Inner(steps=2, lr=0.5, batch=20)


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    for i in range(4):
        write_capture(root / f"ball-{i}", size=8, train=3, test=2, radius=0.6 + 0.05 * i, turn=i % 3)
    return root


def experiment_of(balls, **changes):
    base = dataclasses.replace(
        preset("maml-3d"),
        data=Objects(path=balls, size=0, half=1.5, support=2, query=2),
        field=FIELD,
        rays=RAYS,
        objective=Maml(INNER, outer_batch=20),
        local=Local(steps=2, lr=0.05),
        adaptation=Adaptation(steps=4, lr=0.5, batch=20),
        rounds=3,
        cohort=2,
        evaluate_every=1,
        checkpoint_every=1,
        workers=1,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def finished(balls, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "objects"
    return folder, run(experiment_of(balls), folder)


def test_a_run_judges_unseen_objects_and_uploads(finished, balls):
    folder, summary = finished
    assert summary["clients"] == {"train": 3, "unseen": 1, "per_round": 2}
    assert set(summary["psnr"]) == {"unseen"} and set(summary["psnr"]["unseen"]) == {"0", "1", "2", "4"}
    assert summary["psnr_p"] and summary["leak"]["worst"] >= summary["leak"]["direct"]
    for name in ("scene.json", "tour.json", "model.safetensors", "images/sheets.json"):
        assert (folder / name).exists()
    main_exit(["report", str(folder)])


def test_adapted_psnr_is_one_error_over_all_photographs_that_judge(finished, balls):
    """As the official code: the mean square error is pooled over the query views, and is not a mean of PSNRs."""
    folder, summary = finished
    setup = set_up_tasks(load_experiment(folder))
    params = load_file(folder / "model.safetensors")
    (task,) = setup.federation.unseen[0].held_out
    shown = render(setup.loss, params, task.query).clamp(0, 1)
    pooled = float((shown - task.query.values).square().mean())
    assert summary["psnr"]["unseen"]["0"] == pytest.approx(-10 * torch.log10(torch.tensor(pooled)).item(), abs=1e-4)


def test_resumed_runs_end_bit_equal(balls, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(experiment_of(balls), whole)
    run(experiment_of(balls, rounds=3), parts)
    for file in sorted((parts / "checkpoints").iterdir())[1:]:
        if "000001" not in file.name:
            file.unlink() if file.is_file() else None
    run(load_experiment(parts), parts, resume=True)
    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)


def main_exit(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0


def test_an_owner_adapts_an_object_and_films_it(finished, balls, capsys):
    folder, _ = finished
    main_exit(["adapt", str(folder), str(balls / "ball-1"), "--steps", "4"])
    made = folder / "adapted" / "ball-1"
    assert {file.name for file in made.iterdir()} == {
        "field.safetensors",
        "adapted.json",
        "adapted.png",
        "random-start.png",
        "truth.png",
    }
    main_exit(["render", str(folder), "--weights", str(made / "field.safetensors"), "--frames", "2", "--size", "16"])
    assert (made / "orbit.mp4").stat().st_size > 0
    main_exit(["export", str(folder), "--resolution", "8", "--grid", str(made / "grid.npz")])
    assert (made / "grid.npz").exists()


def test_weights_of_another_field_are_refused(finished, tmp_path, capsys):
    from safetensors.torch import save_file

    folder, _ = finished
    save_file({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit) as caught:
        main(["render", str(folder), "--weights", str(tmp_path / "other.safetensors")])
    assert caught.value.code == 2
    assert "weights of another field" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"field": HashGrid()}, "second derivatives"),
        ({"field": Nerf(appearance=3)}, "appearance codes"),
        ({"rays": preset("nerf").rays}, "rays:dense"),
        ({"field": preset("maml").field}, "field:simple-nerf"),
        ({"privacy": (Surrogate("own"),)}, "privacy:public-surrogate"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(balls, changes, words):
    with pytest.raises(UserError, match=words):
        set_up_tasks(experiment_of(balls, **changes))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-3d")])
def test_every_preset_of_objects_runs(name, balls, tmp_path):
    base = preset(name)
    changes = {name: getattr(base, name) for name in ("privacy", "local", "weighting", "strategy")}
    experiment = experiment_of(balls, rounds=min(1, base.rounds), objective=small(base.objective), **changes)
    summary = run(experiment, tmp_path / "run")
    assert summary["psnr"]["unseen"]["4"] > 3
    assert from_json(to_json(base)) == base


# --- the audit ------------------------------------------------------------------------------------------------


def posed(balls):
    """Clients, their loss and the weights to start from."""
    setup = set_up_tasks(experiment_of(balls))
    return setup.federation.clients, setup.loss, setup.params


OBJECTIVES = {
    "fit": Fit(batch=20),
    "maml": Maml(INNER, outer_batch=25),
    "reptile": Reptile(INNER),
    "menf": MeNF(Maml(INNER, outer_batch=25)),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_simulated_update_is_the_real_one(name, balls):
    clients, loss, start = posed(balls)
    method = Method(OBJECTIVES[name], Local(steps=2, lr=0.05))
    reply = visit(method, clients[0], loss, {"params": start}, {}, seed=3, round=1)
    upload = method.strategy.uploaded(start, reply.report, reply.steps)
    target = target_of(clients[0].train[0])
    random = generator(3, "visit", 1, clients[0].name)
    found = simulate(method, target.task(target.unknown), start, loss, random)
    for key, leaf in found.items():
        torch.testing.assert_close(leaf.detach(), upload[key] - start[key], rtol=1e-3, atol=2e-6)


def test_a_target_is_the_query_and_behind_it_the_support(balls):
    task = posed(balls)[0][0].train[0]
    target = target_of(task)
    assert target.unknown.shape == (4, 8, 8, 3) and target.grid_axes == 2
    assert torch.equal(target.unknown[:2], task.query.values) and torch.equal(target.unknown[2:], task.support.values)
    other = torch.rand(4, 8, 8, 3, generator=generator(0))
    made = target.task(other)
    assert torch.equal(made.query.values, other[:2]) and torch.equal(made.support.values, other[2:])
    same, new = task.support.sample(9, generator(1)), made.support.sample(9, generator(1))
    assert torch.equal(same.inputs.directions, new.inputs.directions) and not torch.equal(same.targets, new.targets)
    assert torch.equal(made.query.everything().targets, other[:2].reshape(-1, 3))
    assert len(target.inputs.near) == target.truth[..., 0].numel() == 128


def test_roughness_does_not_cross_from_one_photograph_to_the_next():
    flat = torch.stack([torch.full((4, 4, 3), value) for value in (0.0, 1.0)])
    assert float(total_variation(flat, 2)) == 0 and float(total_variation(flat, 3)) == 1


def test_the_render_of_the_upload_is_the_direct_attack(balls):
    clients, loss, start = posed(balls)
    tasks = {client.name: client.train[0] for client in clients}
    upload = tree.add(start, tree.randn_like(start, generator(5)), 0.05)
    result = audit([Observation((clients[0].name,), 1, start, upload)], tasks, loss, Method())
    query = clients[0].train[0].query
    assert result.leak["direct"] == pytest.approx(psnr(render(loss, upload, query), query.values), abs=1e-4)
    constant = query.values.reshape(-1, 3).mean(0).expand_as(query.values)
    assert result.floor["constant"] == pytest.approx(psnr(constant, query.values), abs=1e-4)


def test_gradient_matching_finds_colours_of_photographs(balls, finished):
    """One exact gradient of a whole photograph, known cameras: the recovered colours beat every floor."""
    setup = set_up_tasks(experiment_of(balls))
    client, loss = setup.federation.clients[0], setup.loss
    method = Method(Fit(), Local(steps=1, lr=0.1, clip=0.0))
    reply = visit(method, client, loss, {"params": setup.params}, {}, seed=0, round=1)
    upload = method.strategy.uploaded(setup.params, reply.report, reply.steps)
    settings = AuditSettings(clients=1, matching_steps=60, newton_products=40, polish_steps=5)
    result = audit(
        [Observation((client.name,), 1, setup.params, upload)],
        {one.name: one.train[0] for one in setup.federation.clients},
        loss,
        method,
        level="full",
        settings=settings,
    )
    best = max(result.leak[name] for name in ("matching_known", "newton_known", "polished_known"))
    assert best > max(result.floor.values()) + 1


def test_the_audit_of_a_run_on_objects(finished):
    folder, _ = finished
    flags = [
        "--clients",
        "1",
        "--rounds",
        "1",
        "--matching-steps",
        "2",
        "--newton-products",
        "3",
        "--polish-steps",
        "2",
    ]
    main_exit(["audit", str(folder), *flags])
    found = json.loads((folder / "audit.json").read_text())
    assert {"direct", "ntk", "newton_known"} <= set(found["attacks"]) and "mean_of_others" in found["floor"]
