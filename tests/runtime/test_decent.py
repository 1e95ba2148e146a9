"""DecentNeRF on a ball: what each owner's own part does, and that nothing of it ever travels."""

import dataclasses

import pytest
import torch

from fedfields.errors import UserError
from fedfields.federation import start_server
from fedfields.fields import HashGrid, LowRank, Nerf, Personal
from fedfields.fields.personal import OWN, TRANSIENT
from fedfields.losses import CODES
from fedfields.privacy import SecAgg
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.checkpoint import load, load_weights
from fedfields.runtime.inprocess import run_rounds
from fedfields.runtime.places import Viewer
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import run, set_up
from fedfields.scenes.data import Data
from fedfields.scenes.scene import Scene
from fedfields.scenes.views import RaySignal, left_half
from fedfields.strategies import Learned
from tests.runtime.test_places import capture, experiment, same  # noqa: F401

MINE = Personal(HashGrid(levels=2, log2_rows=6, coarsest=4, finest=8, width=8), after=0.3)
WILD = dataclasses.replace(MINE, codes=2, beta=0.03)
"""With transient codes and uncertainty."""


def decent(capture, **changes):  # noqa: F811
    data = Scene(capture, clients=3, tests=1)
    return experiment(capture, **{"data": data, "cohort": 3, "personal": MINE, "strategy": Learned()} | changes)


@pytest.mark.parametrize("personal", [MINE, WILD], ids=["plain", "wild"])
def test_own_parts_join_stay_at_home_and_are_all_different(capture, tmp_path, personal):  # noqa: F811
    setup = set_up(decent(capture, rounds=5, personal=personal)).begin(tmp_path, lambda what, done, total: None)
    shared = set(setup.params)
    method = setup.context.method
    seen = []
    with Pool(setup.context, 1) as pool:
        for step in run_rounds(setup.context, setup.settings, start_server(method.strategy, setup.params), {}, pool):
            trees = [
                *step.received.values(),
                *(tree for reply in step.replies.values() for tree in reply.report.values()),
            ]
            assert all(not key.startswith("own.") for tree in trees for key in tree)
            assert step.received["params"].keys() == step.state.params.keys() == shared
            seen.append({i: memory.get("own", {}) for i, memory in step.memories.items()})
    grown = [bool(own[0]) for own in seen]
    assert grown == [False, False, True, True, True]
    kept = {OWN + key for key in MINE.field.init(torch.Generator())}
    wild = {f"{OWN}transient.weight", f"{OWN}beta.weight", TRANSIENT}
    assert all(own.keys() == (kept | wild if personal is WILD else kept) for own in seen[-1].values())
    for key in (f"{OWN}table", *(wild if personal is WILD else ())):
        mine, other, before = seen[-1][0][key], seen[-1][1][key], seen[2][0][key]
        assert not torch.equal(mine, other) and not torch.equal(mine, before), key
    if personal is WILD:
        assert seen[-1][0][TRANSIENT].shape == (4, 2) and len(seen[-1][0][TRANSIENT].unique()) == 8


def test_what_is_published_is_the_shared_part(capture, tmp_path):  # noqa: F811
    run(decent(capture, privacy=(SecAgg(),), personal=WILD), tmp_path / "run")
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == experiment(capture).field.init(torch.Generator()).keys()
    kept = load(tmp_path / "run" / "checkpoints").memories
    secrets = [f"{OWN}table", f"{OWN}beta.weight", TRANSIENT]
    tables = [kept[i]["own"][key].numpy().tobytes()[:32] for i in range(3) for key in secrets]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and "checkpoints" not in file.parts]
    assert files and not any(table in file.read_bytes() for file in files for table in tables)


def test_resuming_before_and_after_the_own_parts_join_changes_nothing(capture, tmp_path):  # noqa: F811
    base = decent(capture, rounds=4, checkpoint_every=1, personal=WILD)
    base = dataclasses.replace(base, local=dataclasses.replace(base.local, final=1.0))
    run(base, tmp_path / "whole")
    for rounds in (1, 3):

        def stop(record, total, rounds=rounds):
            if record["round"] == rounds:
                raise KeyboardInterrupt

        with pytest.raises(Exception, match="interrupted"):
            run(base, tmp_path / f"cut{rounds}", on_round=stop)
        run(base, tmp_path / f"cut{rounds}", resume=True)
        whole, cut = (load_weights(tmp_path / name / "model.safetensors") for name in ("whole", f"cut{rounds}"))
        assert same(whole, cut)


def test_it_works_with_a_network_as_the_shared_part(capture, tmp_path):  # noqa: F811
    """Which reads appearance codes here, while the own part reads transient ones."""
    dense = decent(capture, field=Nerf(width=16, appearance=3), rays=RenderSettings(samples=8), rounds=2)
    summary = run(dataclasses.replace(dense, personal=dataclasses.replace(WILD, after=0.0)), tmp_path / "run")
    assert summary["psnr"]["held_out"]["0"] > 0
    assert all(one["fitted"] == "left half" for one in summary["views"].values())
    own = load(tmp_path / "run" / "checkpoints").memories[0]["own"]
    assert own[CODES].shape == (4, 3) and own[TRANSIENT].shape == (4, 2) and f"{OWN}table" in own


def test_the_light_of_a_test_photograph_is_fitted_without_an_own_part(capture):  # noqa: F811
    """Nobody is in front of the place there: the field of the shared part alone finds the same code."""
    lit = dataclasses.replace(experiment(capture).field, appearance=3)
    codes = []
    for personal in (None, dataclasses.replace(MINE, codes=2)):
        setup = set_up(decent(capture, field=lit, personal=personal))
        see = Viewer(setup.context.loss, setup.params, 0)
        signal = RaySignal((left_half(setup.federation.tests[0]),))
        codes.append(see.fitted(signal, torch.Generator().manual_seed(0)))
    assert torch.equal(*codes)


def test_what_does_not_go_together_is_one_line(capture, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="low-rank weights do not go with a personal field"):
        run(decent(capture, compression=LowRank()), tmp_path / "a")
    with pytest.raises(UserError, match="a personal field is for photographs of one place"):
        run(decent(capture, data=Data()), tmp_path / "b")


def test_secure_sums_change_nothing_but_quantisation(capture, tmp_path):  # noqa: F811
    """Shared, learned and own weights are those of open uploads, up to steps of a fixed point."""
    found = []
    for name, privacy in {"open": (), "secret": (SecAgg(),)}.items():
        one = decent(capture, rounds=2, privacy=privacy, local=dataclasses.replace(experiment(capture).local, steps=3))
        run(one, tmp_path / name)
        found.append(load(tmp_path / name / "checkpoints"))
    plain, secret = found
    assert not same(plain.state.params, secret.state.params)
    pairs = [(plain.state.params, secret.state.params)]
    pairs += [
        (plain.memories[i][part], secret.memories[i][part])
        for i in range(3)
        for part in ("own", "learned", "optim.mean")
    ]
    for a, b in pairs:
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-4)
