"""The polishing stage and the simulations that the strong attacks share, against known answers."""

import math

import pytest
import torch

from fedfields import tree
from fedfields.audit import AuditSettings, Observation, audit
from fedfields.audit.newton import invert
from fedfields.audit.polish import edges, polish
from fedfields.audit.prior import prior_from
from fedfields.audit.simulate import calm, deviation, simulate
from fedfields.federation import Local, Method, visit
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.metrics import psnr
from fedfields.objectives import Fit, Inner, Maml, MeNF, Proximal
from fedfields.privacy import Noise
from fedfields.scenes.texture import public_statistics, texture
from fedfields.seeds import generator
from fedfields.types import Client
from tests.helpers import picture_task

FIELD = Siren(24, 2)
LOSS = FieldLoss(FIELD)
START = FIELD.init(2, 3, generator(0))
SHARP = torch.full((8, 8, 3), 0.3)
SHARP[2:6, 3:7] = torch.tensor([0.9, 0.6, 0.1])
OTHERS = [texture((8, 8), public_statistics(3, generator(20 + i)), generator(40 + i)) for i in range(6)]


def attacked(method, values):
    """The simulator with the client's draws, and what the client really sent."""
    reply = visit(method, Client("ann", (picture_task(values),)), LOSS, {"params": START}, {}, seed=3, round=1)
    upload = method.strategy.uploaded(START, reply.report, reply.steps)

    def simulated(picture):
        return simulate(method, picture_task(picture), START, LOSS, generator(3, "visit", 1, "ann"))

    return simulated, tree.sub(upload, START)


def test_edges_by_hand():
    """One pixel of value 1 in the middle of 3 x 3 zeros has four edges; in the middle of a 3 x 3 x 3 clip, six."""
    picture, clip = torch.zeros(3, 3, 1), torch.zeros(3, 3, 3, 1)
    picture[1, 1], clip[1, 1, 1] = 1, 1
    assert float(edges(picture, 2)) == 4 and float(edges(clip, 3)) == 6


@pytest.mark.parametrize("objective", [Fit(), MeNF(Maml(Inner(2, 0.05, 32)))], ids=["fit", "menf"])
def test_polishing_improves_on_gauss_newton_for_a_picture_with_edges(objective):
    simulated, update = attacked(Method(objective, Local(lr=0.1)), SHARP)
    coarse = invert(simulated, update, prior_from(OTHERS, SHARP, 2), products=30)
    fine = polish(simulated, update, coarse, steps=150)
    assert psnr(fine, SHARP) > psnr(coarse, SHARP) + 1
    assert float(fine.min()) >= 0 and float(fine.max()) <= 1


def test_from_a_random_upload_nothing_is_recovered():
    simulated, update = attacked(Method(Fit(), Local(lr=0.1)), SHARP)
    random = tree.scale(tree.randn_like(update, generator(7)), float(tree.norm(update)) / tree.size(update) ** 0.5)
    constant = psnr(SHARP.reshape(-1, 3).mean(0).expand_as(SHARP), SHARP)
    assert psnr(polish(simulated, random, torch.full_like(SHARP, 0.5), steps=100), SHARP) < constant + 0.5


def test_overwhelming_noise_leaves_a_flat_picture_flat():
    """The weight of the update follows from the noise: with a thousand times the update's size it has no say."""
    simulated, update = attacked(Method(Fit(), Local(lr=0.1)), SHARP)
    noise = 1000 * float(tree.norm(update)) / tree.size(update) ** 0.5
    kept = polish(simulated, update, torch.full_like(SHARP, 0.5), noise=noise, steps=50)
    assert float(edges(kept, 2)) < 0.02 * float(edges(SHARP, 2))


def test_broken_simulations_and_starts_give_a_finite_picture():
    simulated, update = attacked(Method(Fit(), Local(lr=0.1)), SHARP)
    start = torch.full_like(SHARP, math.nan)
    assert bool(torch.isfinite(polish(simulated, update, start, steps=3)).all())

    def broken(values):
        return tree.scale(simulated(values), math.nan)

    torch.testing.assert_close(polish(broken, update, start, steps=3), torch.full_like(SHARP, 0.5))


def test_the_clip_of_the_report_is_simulated():
    """Without it the size of the update would contradict every picture."""
    method = Method(Fit(), Local(steps=2, lr=0.1), privacy=(Noise(clip=1e-3, ratio=0.0),))
    simulated, update = attacked(method, SHARP)
    assert float(tree.norm(update)) == pytest.approx(1e-3, rel=1e-4)
    for key, leaf in simulated(SHARP).items():
        torch.testing.assert_close(leaf.detach(), update[key], rtol=1e-3, atol=5e-8)  # w - theta in float32


@pytest.mark.parametrize("clip", [0.0, 0.02], ids=["free", "clipped"])
def test_the_slope_of_a_clipped_update_is_exact(clip):
    """The clip of the outer gradient is differentiated here, unlike in training: attackers want true slopes."""
    start, values = tree.to(START, torch.float64), SHARP.double()
    method = Method(Maml(Inner(2, 0.05, 16)), Local(steps=2, lr=0.05, clip=clip), privacy=(Noise(clip=5e-4, ratio=0),))
    probe, direction = tree.randn_like(start, generator(0)), torch.randn(8, 8, 3, generator=generator(1)).double()

    def figure(picture):
        return tree.dot(simulate(method, picture_task(picture), start, LOSS, generator(3, "visit", 1, "ann")), probe)

    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(figure(leaf), leaf)
    ahead, behind = (float(figure(values + h * direction).detach()) for h in (1e-5, -1e-5))
    assert float((slope * direction).sum()) == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


def test_the_calm_method_takes_whole_pictures_and_draws_nothing():
    method = Method(Proximal(MeNF(Maml(Inner(3, 0.05, 16), outer_batch=20)), 0.1))
    quiet = calm(method, samples=64)
    assert quiet.objective == Proximal(MeNF(Maml(Inner(3, 0.05, 0), outer_batch=0)), 0.1)
    first, second = (simulate(quiet, picture_task(SHARP), START, LOSS, generator(seed)) for seed in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in START)
    # Pictures with many more samples than a batch only get larger batches: cost matters as well.
    assert calm(method, samples=1000).objective == Proximal(MeNF(Maml(Inner(3, 0.05, 64), outer_batch=80)), 0.1)


def test_the_deviation_is_nil_without_draws_and_not_with_them():
    drawn = Method(Maml(Inner(2, 0.05, 16)), Local(lr=0.1))
    whole = calm(drawn, samples=64)
    some = deviation(drawn, whole, picture_task(SHARP), START, LOSS, generator(0))
    assert some.shape == (tree.size(START),) and float(some.min()) > 0
    assert float(deviation(whole, whole, picture_task(SHARP), START, LOSS, generator(0)).max()) == 0


def test_a_full_audit_reports_the_polished_pictures():
    _, update = attacked(Method(Fit(), Local(lr=0.1)), SHARP)
    seen = Observation(("ann",), 1, START, tree.add(START, update))
    truths = {"ann": picture_task(SHARP)} | {f"other-{i}": picture_task(values) for i, values in enumerate(OTHERS)}
    settings = AuditSettings(clients=1, matching_steps=1, newton_products=30, polish_steps=100)
    method = Method(Fit(), Local(lr=0.1))
    result = audit([seen], truths, LOSS, method, level="full", settings=settings, run_seed=3)
    content = result.to_json()
    assert content["attacks"]["polished_known"]["psnr"] > content["attacks"]["newton_known"]["psnr"] + 1
    assert content["attacks"]["polished_unknown"]["oracle"] is False
    assert content["worst"]["attack"].startswith("polished")
