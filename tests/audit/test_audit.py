"""The audit against answers that are known: least squares, linear fields, and updates whose picture is in them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from fedfields import tree
from fedfields.audit import AuditSettings, Observation, audit, load_observations, save_observations
from fedfields.audit.matching import match, scaled
from fedfields.audit.newton import invert
from fedfields.audit.prior import prior_from
from fedfields.audit.readouts import (
    affine,
    conjugate_gradients,
    features_of,
    learned_readout,
    look,
    ntk_readout,
    quick_readouts,
    regress,
)
from fedfields.audit.simulate import simulate
from fedfields.audit.target import Cohort, target_of
from fedfields.errors import UserError
from fedfields.federation import Local, Method, visit
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr
from fedfields.objectives import Antithetic, Fit, Inner, Maml, MeNF, Projected, Proximal, Reptile
from fedfields.optim import Adam
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.texture import public_statistics, texture
from fedfields.seeds import generator
from fedfields.types import Client
from tests.helpers import FIELD, LOSS, params_of, picture_task, signal_of, task_of

INNER = Inner(steps=2, lr=0.05, batch=20)
MAML = Maml(INNER, outer_batch=25)
OBJECTIVES = {
    "fit": Fit(batch=20),
    "maml": MAML,
    "fomaml": dataclasses.replace(MAML, first_order=True),
    "reptile": Reptile(INNER),
    "menf": MeNF(MAML),
    "proximal": Proximal(MAML, mu=0.5),
    "projected": Projected(MAML),
    "antithetic": Antithetic(MAML),
}


def client_of(values, name="ann"):
    return Client(name, (picture_task(values),))


def observed(method, values, start, name="ann", seed=3):
    """What a server sees of one real visit."""
    reply = visit(method, client_of(values, name), LOSS, {"params": start}, {}, seed=seed, round=1)
    return Observation((name,), 1, start, method.strategy.uploaded(start, reply.report, reply.steps))


@pytest.mark.parametrize("optimizer", [None, Adam()], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_simulated_update_is_the_real_one(name, optimizer):
    local = Local(steps=2, lr=0.05, clip=0.02)
    local = local if optimizer is None else dataclasses.replace(local, optimizer=optimizer)
    method, start, values = Method(OBJECTIVES[name], local), params_of(), signal_of().values
    seen = observed(method, values, start)
    found = simulate(method, picture_task(values), start, LOSS, generator(3, "visit", 1, "ann"))
    for key, leaf in found.items():
        torch.testing.assert_close(leaf.detach(), seen.upload[key] - start[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_its_gradient_with_respect_to_the_picture_equals_finite_differences(name):
    # Mirror images are taken as given, so from the second step on the antithetic gradient is only nearly exact.
    steps = 1 if name == "antithetic" else 2
    method, start = Method(OBJECTIVES[name], Local(steps=steps, lr=0.05, clip=0.0)), params_of()
    values = signal_of().values.clone().requires_grad_()
    probe = tree.randn_like(start, generator(0))

    def figure(picture):
        return tree.dot(simulate(method, picture_task(picture), start, LOSS, generator(3, "visit", 1, "ann")), probe)

    (slope,) = torch.autograd.grad(figure(values), values)
    direction = torch.randn(values.shape, generator=generator(1), dtype=values.dtype)
    h = 1e-5
    ahead, behind = (float(figure((values + s * direction).detach()).detach()) for s in (h, -h))
    assert float((slope * direction).sum()) == pytest.approx((ahead - behind) / (2 * h), rel=1e-5)


def test_affine_fits_are_numpys_least_squares():
    truth, picture = torch.rand(50, 3, generator=generator(0)), torch.rand(50, 3, generator=generator(1))
    other = torch.rand(50, 3, generator=generator(2))
    for channel in range(3):
        columns = np.stack([picture[:, channel], other[:, channel], np.ones(50)], axis=1)
        wanted = columns @ np.linalg.lstsq(columns, truth[:, channel].numpy(), rcond=None)[0]
        np.testing.assert_allclose(regress([picture, other], truth)[:, channel].numpy(), wanted, atol=1e-5)
    # A picture that is the truth up to contrast and brightness, even reversed, is recovered whole.
    assert psnr(affine(-0.001 * truth + 7, truth), truth) > 60
    # A useless one gives the constant picture.
    torch.testing.assert_close(affine(torch.ones(50, 3), truth), truth.mean(0).expand(50, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(affine(torch.full((50, 3), math.nan), truth), truth.mean(0).expand(50, 3))


def test_the_jacobian_image_equals_finite_differences():
    start, upload = params_of(0), params_of(1)
    inputs = signal_of().everything().inputs
    h = 1e-6
    ahead, behind = (FIELD(tree.add(start, tree.sub(upload, start), s), inputs) for s in (h, -h))
    torch.testing.assert_close(
        look(LOSS, start, upload, inputs).jacobian, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8
    )


def test_conjugate_gradients_solve():
    a = torch.randn(12, 12, generator=generator(0), dtype=torch.float64)
    a, b = a @ a.T + torch.eye(12), torch.randn(12, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(lambda v: a @ v, b, 40), torch.linalg.solve(a, b))


@dataclasses.dataclass(frozen=True)
class Linear:
    """A field that is linear in its weights, with more weights than samples: random Fourier features."""

    features: int = 400

    def __call__(self, params, inputs):
        phase = 3 * inputs @ torch.randn(inputs.shape[-1], self.features, generator=generator(9), dtype=inputs.dtype)
        return torch.cos(phase + torch.arange(self.features)) @ params["w"]


def test_for_a_linear_field_the_ntk_readout_recovers_the_picture_from_one_gradient_step():
    """Law: u = J^T r and (J J^T)^-1 J u = r, so the residual (here minus the picture itself) comes back whole."""
    loss, truth = FieldLoss(Linear()), signal_of().values
    inputs, colours = GridSignal(truth).everything()
    start = {"w": torch.zeros(400, 3, dtype=torch.float64)}
    leaves = tree.leaves_of(start)
    (grad,) = torch.autograd.grad(loss(leaves, GridSignal(truth).everything()), list(leaves.values()))
    readout, _ = ntk_readout(loss, start, {"w": -0.1 * grad}, inputs, colours)
    plain = quick_readouts(loss, start, {"w": -0.1 * grad}, inputs, colours)["jacobian"].values
    assert psnr(readout.values, colours) > 35 > psnr(plain, colours) + 5


def test_floors_by_hand():
    """Half black, half white: the best constant is grey, with mean square error 1/4, that is 6.02 dB."""
    values = torch.zeros(4, 4, 3, dtype=torch.float64)
    values[:2] = 1
    start = params_of()
    result = audit([Observation(("ann",), 1, start, start)], {"ann": picture_task(values)}, LOSS, Method())
    assert result.floor["constant"] == pytest.approx(-10 * math.log10(0.25), abs=1e-4)
    assert result.leak["direct"] == pytest.approx(
        psnr(FIELD(start, GridSignal(values).everything().inputs).reshape(values.shape), values)
    )
    # Nothing was sent, so the differences give the floor; the affine fit of the render is the public floor.
    assert result.leak["difference"] == pytest.approx(result.floor["constant"], abs=1e-3)
    assert result.leak["affine"] == pytest.approx(result.floor["affine_public"], abs=1e-6)
    assert result.leak["worst"] >= max(v for k, v in result.leak.items() if k != "worst")


def test_the_learned_readout_never_sees_the_attacked_client(monkeypatch):
    """Its other pictures decide; its own picture could be anything."""
    from fedfields import audit as module

    seen = []

    def spy(attacked, others):
        seen.append([colours for _, colours in others])
        return learned_readout(attacked, others)

    monkeypatch.setattr(module, "learned_readout", spy)
    start = params_of()
    truths = {f"client-{i}": task_of(i) for i in range(4)}
    observations = [Observation((name,), 1, start, params_of(1 + i)) for i, name in enumerate(truths)]
    settings = AuditSettings(clients=1, matching_steps=1, newton_products=1)
    audit(observations, truths, LOSS, Method(OBJECTIVES["fit"]), level="full", settings=settings)
    assert len(seen) == 4
    for i, others in enumerate(seen):
        assert len(others) == 3
        assert not any(torch.equal(colours, signal_of(i).everything().targets) for colours in others)


def test_the_learned_readout_finds_a_linear_rule():
    rows = []
    for i in range(4):
        start, upload = params_of(i), params_of(10 + i)
        inputs = signal_of().everything().inputs
        features = features_of(look(LOSS, start, upload, inputs), torch.rand(len(inputs), 3, generator=generator(i)))
        rows.append((features, features @ torch.arange(39, dtype=features.dtype).reshape(13, 3) / 100))
    found = learned_readout(rows[0][0], rows[1:]).values
    torch.testing.assert_close(found, rows[0][1], atol=0.05, rtol=0)


PICTURE = texture((6, 6), public_statistics(3, generator(4)), generator(5)).double()
OTHERS = [texture((6, 6), public_statistics(3, generator(20 + i)), generator(40 + i)).double() for i in range(8)]


def attack_of(method, observation, seed=3):
    def simulated(values):
        return simulate(method, picture_task(values), observation.start, LOSS, generator(seed, "visit", 1, "ann"))

    return simulated, tree.sub(observation.upload, observation.start)


@pytest.mark.parametrize("name", ["fit", "fomaml", "reptile", "menf"])
def test_inversion_recovers_a_tiny_picture_and_only_from_its_own_update(name):
    """More weights than numbers in the picture: it comes back nearly whole, also under FedMeNF's loss."""

    start = tree.to(Siren(16, 2).init(2, 3, generator(0)), torch.float64)
    inner = Inner(2, 0.05, 0)
    first_order = Maml(inner, first_order=True)
    wide = {"fit": Fit(), "fomaml": first_order, "reptile": Reptile(inner), "menf": MeNF(first_order, 0.25)}
    method = Method(wide[name], Local(steps=1, lr=0.1))
    prior = prior_from(OTHERS, PICTURE, 2)
    floor = psnr(PICTURE.reshape(-1, 3).mean(0).expand_as(PICTURE), PICTURE)
    simulated, update = attack_of(method, observed(method, PICTURE, start))
    recovered = psnr(invert(simulated, update, prior, products=400), PICTURE)
    assert recovered > floor + 5, (recovered, floor)
    # The update of another client, at the same effort, does not lead to this picture.
    _, other = attack_of(method, observed(method, OTHERS[0], start))
    assert psnr(invert(simulated, other, prior, products=100), PICTURE) < floor + 2


def test_matching_lowers_its_objective_and_does_not_look_at_the_truth():
    method, start = Method(Fit(), Local(steps=1, lr=0.1)), params_of()
    simulated, update = attack_of(method, observed(method, PICTURE, start))
    grey = torch.full_like(PICTURE, 0.5)

    def mismatch(values):
        target, scale = scaled(update)
        guess = tree.flatten(simulated(values)) * scale
        return float((1 - guess @ target / guess.norm() / target.norm()).detach())

    recovered, name = match(simulated, update, {"grey": grey}, 60, 2)
    assert name == "grey"
    assert mismatch(recovered) < 0.5 * mismatch(grey)


def test_broken_uploads_do_not_break_the_audit():
    start = params_of()
    broken = {key: torch.full_like(leaf, math.nan) for key, leaf in start.items()}
    huge = tree.scale(params_of(1), 1e30)
    truths = {name: task_of(i) for i, name in enumerate(("a", "b", "c"))}
    observations = [
        Observation(("a",), 1, start, broken),
        Observation(("b",), 1, start, huge),
        Observation(("c",), 1, start, params_of(2)),
    ]
    settings = AuditSettings(clients=3, matching_steps=2, newton_products=2)
    result = audit(observations, truths, LOSS, Method(OBJECTIVES["maml"]), level="full", settings=settings)
    content = result.to_json()
    assert all(math.isfinite(value) for row in content["attacks"].values() for value in row["per_client"].values())
    assert set(content["floor"]) == {"constant", "affine_public", "mean_of_others"}
    assert content["attacks"]["direct"]["oracle"] is False and content["attacks"]["affine"]["oracle"] is True
    helped = {name for name, attack in content["attacks"].items() if attack["helped"]}
    assert {"affine", "matching_known"} <= helped and not helped & {"direct", "learned", "newton_unknown"}
    real = [row["per_client"] for name, row in content["attacks"].items() if name not in helped]
    best = [max(row[client] for row in real if client in row) for client in "abc"]
    assert content["worst_real"] == pytest.approx(sum(best) / 3) and content["worst_real"] <= content["worst"]["psnr"]


def test_observations_survive_the_journey_to_disk(tmp_path):
    start = params_of(dtype=torch.float32)
    written = [Observation((f"owner/{i}", "x"), 7, start, params_of(i, torch.float32)) for i in range(3)]
    save_observations(tmp_path / "round.safetensors", written)
    for before, after in zip(written, load_observations(tmp_path / "round.safetensors"), strict=True):
        assert (before.clients, before.round) == (after.clients, after.round)
        assert list(before.start) == list(after.start)
        assert all(torch.equal(before.upload[key], after.upload[key]) for key in start)
    (tmp_path / "round.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot be read as observations"):
        load_observations(tmp_path / "round.safetensors")


def cohort_of(*pictures):
    return Cohort({f"owner-{i}": target_of(picture_task(values)) for i, values in enumerate(pictures)})


def test_pictures_of_a_sum_go_to_the_owners_they_fit_best():
    """Against all permutations."""
    cohort = cohort_of(*OTHERS[:4])
    found = cohort.unknown[[2, 0, 3, 1]] + 0.3 * torch.randn(4, 6, 6, 3, generator=generator(1), dtype=torch.float64)
    wanted = max(
        sum(psnr(found[i], truth) for i, truth in zip(order, cohort.unknown, strict=True))
        for order in itertools.permutations(range(4))
    )
    given = cohort.assigned(found)
    assert sorted(given) == list(cohort.targets)
    reached = sum(psnr(given[name], target.truth) for name, target in cohort.targets.items())
    assert reached == pytest.approx(wanted, abs=1e-5)
    assert {tuple(one.flatten().tolist()) for one in given.values()} == {tuple(one.flatten().tolist()) for one in found}


def test_a_sum_of_single_gradient_steps_knows_only_the_mean_picture():
    """Law: the gradient of a squared error is linear in the colours, so pictures of one mean give one sum."""
    cohort, method, start = cohort_of(*OTHERS[:3]), Method(Fit(), Local(lr=0.1)), params_of()

    def simulated(name, task):
        return simulate(method, task, start, LOSS, generator(0))

    whole = cohort.update(simulated, cohort.unknown)
    mean = simulate(method, picture_task(cohort.unknown.mean(0)), start, LOSS, generator(0))
    for key, leaf in whole.items():
        torch.testing.assert_close(leaf, mean[key], rtol=1e-9, atol=1e-12)
    # Two steps are not linear any more.
    method = dataclasses.replace(method, local=Local(steps=2, lr=0.1))
    twice = cohort.update(simulated, cohort.unknown)
    mean = simulate(method, picture_task(cohort.unknown.mean(0)), start, LOSS, generator(0))
    assert any(not torch.allclose(leaf, mean[key], rtol=1e-9, atol=1e-12) for key, leaf in twice.items())


def test_both_pictures_of_a_sum_of_two_come_back_and_only_from_their_own_sum():
    start = tree.to(Siren(16, 2).init(2, 3, generator(0)), torch.float64)
    method = Method(Reptile(Inner(4, 0.1, 0)), Local(lr=1.0))
    tasks = {f"owner-{i}": picture_task(values) for i, values in enumerate([PICTURE, *OTHERS])}
    first, second, *rest = [observed(method, values, start).upload for values in [PICTURE, *OTHERS]]
    settings = AuditSettings(clients=1, matching_steps=40, newton_products=200, polish_steps=2, known_draws=False)

    def attacked(one, other):
        mean = tree.scale(tree.add(one, other), 0.5)
        both = Observation(("owner-0", "owner-1"), 1, start, mean)
        result = audit([both], tasks, LOSS, method, level="full", settings=settings)
        return result.leak["newton_unknown"], result.floor["mean_of_others"]

    found, floor = attacked(first, second)
    assert found > floor + 5, (found, floor)
    found, floor = attacked(rest[0], rest[1])
    assert found < floor + 2, (found, floor)


def test_pictures_of_unlike_shapes_in_a_sum_are_only_looked_at():
    start = params_of()
    tasks = {"a": task_of(0), "b": task_of(1, shape=(5, 6)), "c": task_of(2)}
    settings = AuditSettings(clients=1, matching_steps=1, newton_products=1)
    result = audit(
        [Observation(("a", "b"), 1, start, params_of(1))], tasks, LOSS, Method(MAML), level="full", settings=settings
    )
    assert set(result.worst) == {"a", "b"} and "ntk" in result.figures
    assert "newton_unknown" not in result.figures and "learned" not in result.figures


def test_clips_are_audited_like_pictures():
    start = params_of(in_dim=3)
    task = task_of(shape=(2, 4, 4))
    settings = AuditSettings(clients=1, matching_steps=2, newton_products=3)
    result = audit(
        [Observation(("ann",), 1, start, params_of(1, in_dim=3))],
        {"ann": task},
        LOSS,
        Method(OBJECTIVES["menf"]),
        level="full",
        settings=settings,
    )
    assert {"newton_known", "newton_unknown", "matching_known", "matching_unknown", "ntk"} <= set(result.figures)
    assert result.pictures["newton_known"]["ann"].shape == (2, 4, 4, 3)


def test_meta_leaves_do_not_change_what_the_readouts_see():
    start, upload, batch = params_of(0), params_of(1), signal_of().everything()
    rates = {f"meta.rate.{key}": torch.ones_like(leaf) for key, leaf in start.items()}
    wanted = look(LOSS, start, upload, batch.inputs)
    found = look(LOSS, rates | start, tree.scale(rates, 3.0) | upload, batch.inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
