"""The audit: what an honest-but-curious server could recover of a client's picture, clip or object.

The server knows the broadcast weights, the upload, the method and its settings, and pictures of the same kind from
elsewhere. Every attack gets the same effort whatever the method, and stands next to the floors: what can be had
without any upload. All figures are PSNR in dB on the client's own colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedfields import tree
from fedfields.audit.matching import match, starting_pictures
from fedfields.audit.newton import invert
from fedfields.audit.observe import Observation as Observation
from fedfields.audit.observe import load_observations as load_observations
from fedfields.audit.observe import save_observations as save_observations
from fedfields.audit.polish import polish
from fedfields.audit.prior import prior_from
from fedfields.audit.readouts import (
    Readout,
    affine,
    features_of,
    learned_readout,
    look,
    ntk_readout,
    quick_readouts,
)
from fedfields.audit.result import AuditResult as AuditResult
from fedfields.audit.simulate import calm, deviation, simulate
from fedfields.audit.target import Target, target_of
from fedfields.effort import AuditSettings as AuditSettings
from fedfields.federation import Method
from fedfields.losses import render
from fedfields.privacy import Clipped
from fedfields.seeds import generator
from fedfields.types import Advance, Params, Task, VisibleLoss


def audit(
    observations: Sequence[Observation],
    tasks: Mapping[str, Task],
    loss: VisibleLoss,
    method: Method,
    *,
    level: Literal["cheap", "full"] = "cheap",
    settings: AuditSettings | None = None,
    run_seed: int = 0,
    advance: Advance | None = None,
) -> AuditResult:
    """Attacks every observation.

    Args:
        observations: of one round, or the last of every client.
        tasks: each client's first training task, by name: a picture, a clip or photographs of an object.
        loss: of the field.
        method: as the server knows it.
        level: "cheap" is the render family, for every evaluation; "full" adds the NTK and learned read-outs,
            gradient matching and the Gauss-Newton inversion.
        settings: effort of the full level.
        run_seed: seed of the run, from which a server that knew it would replay the clients' draws.
        advance: called with (what, done, total).
    """
    result = AuditResult()
    targets = {name: target_of(task) for name, task in tasks.items()}
    for one in observations:
        _quick(one, targets[one.client], loss, result)
    if level == "full" and observations:
        _full(observations, targets, loss, method, settings or AuditSettings(), run_seed, advance, result)
    return result


def _quick(one: Observation, target: Target, loss: VisibleLoss, result: AuditResult) -> None:
    """Render family and floors."""
    inputs, colours = target.inputs, _rows(target.truth)
    for name, readout in quick_readouts(loss, one.start, one.upload, inputs, colours).items():
        result.enter(name, one.client, readout, target.truth)
    with torch.no_grad():
        public = loss.show(one.start, inputs)
    result.enter_floor("constant", one.client, colours.mean(0).expand_as(colours), target.truth)
    result.enter_floor("affine_public", one.client, affine(public, colours), target.truth)


def _full(
    observations: Sequence[Observation],
    targets: Mapping[str, Target],
    loss: VisibleLoss,
    method: Method,
    settings: AuditSettings,
    run_seed: int,
    advance: Advance | None,
    result: AuditResult,
) -> None:
    """Everything else."""
    _learned(observations, targets, loss, result)
    attacked = list(observations)[: settings.clients]
    for done, one in enumerate(attacked):
        if advance:
            advance(f"round {one.round}, {one.client}", done, len(attacked))
        others = [targets[name].unknown for name in targets if name != one.client]
        _invert(one, targets[one.client], others, loss, method, settings, run_seed, result)


def _learned(
    observations: Sequence[Observation], targets: Mapping[str, Target], loss: VisibleLoss, result: AuditResult
) -> None:
    """NTK read-out for everybody, then the read-out that is learned on all the others."""
    rows: dict[str, tuple[Tensor, Tensor]] = {}
    for one in observations:
        target = targets[one.client]
        inputs, colours = target.inputs, _rows(target.truth)
        readout, kernel = ntk_readout(loss, one.start, one.upload, inputs, colours)
        result.enter("ntk", one.client, readout, target.truth)
        features = features_of(look(loss, one.start, one.upload, inputs), kernel)
        if bool(torch.isfinite(features).all()):
            rows[one.client] = (features, colours)
    for client, (features, _) in rows.items():
        others = [row for name, row in rows.items() if name != client]
        if others:
            result.enter("learned", client, learned_readout(features, others), targets[client].truth)


def _invert(
    one: Observation,
    target: Target,
    others: list[Tensor],
    loss: VisibleLoss,
    method: Method,
    settings: AuditSettings,
    run_seed: int,
    result: AuditResult,
) -> None:
    """Gradient matching, Gauss-Newton and its polish, with and without knowledge of the pixel draws."""
    update = tree.sub(one.upload, one.start)
    if not all(bool(torch.isfinite(leaf).all()) for leaf in update.values()):
        return
    axes = target.grid_axes
    prior = prior_from(others, target.unknown, axes)
    result.enter_floor("mean_of_others", one.client, _rows(target.judged(prior.mean)), target.truth)
    added = _noise_of(method, update)
    random = generator(settings.seed, "audit", one.round, one.client)
    quiet = calm(method, target.unknown[..., 0].numel())

    def unforeseen(values: Tensor) -> Tensor:
        """Noise and draws of a client with about these colours, as a standard deviation per weight."""
        drawn = deviation(method, quiet, target.task(values.clamp(0, 1)), one.start, loss, random)
        return (added**2 + drawn**2).sqrt()

    def foreseen(values: Tensor) -> Tensor:
        return torch.as_tensor(added)

    def with_draws(values: Tensor) -> Params:
        """The client's own draws, replayed."""
        random = generator(run_seed, "visit", one.round, one.client)
        return simulate(method, target.task(values), one.start, loss, random)

    def without_draws(values: Tensor) -> Params:
        """Whole pictures, or other draws than the client's: what the client's change is noise to the attacker."""
        return simulate(quiet, target.task(values), one.start, loss, generator(settings.seed, "draws", one.client))

    def with_fresh_draws(values: Tensor) -> Params:
        return simulate(method, target.task(values), one.start, loss, random)

    starts = starting_pictures(prior.mean, _render(loss, one.start, target), random)
    cases = [("unknown", with_fresh_draws, without_draws, unforeseen)]
    if settings.known_draws:
        cases.append(("known", with_draws, with_draws, foreseen))
    for draws, matched, inverted, noise in cases:
        recovered, _ = match(matched, update, starts, settings.matching_steps, axes)
        _enter(result, f"matching_{draws}", one, target, recovered)
        recovered = invert(
            inverted, update, prior, starts=[recovered], noise=noise(recovered), products=settings.newton_products
        )
        _enter(result, f"newton_{draws}", one, target, recovered)
        recovered = polish(
            inverted, update, recovered, noise=noise(recovered), steps=settings.polish_steps, grid_axes=axes
        )
        _enter(result, f"polished_{draws}", one, target, recovered)


def _enter(result: AuditResult, attack: str, one: Observation, target: Target, recovered: Tensor) -> None:
    result.enter(attack, one.client, Readout(_rows(target.judged(recovered)), False), target.truth)


def _render(loss: VisibleLoss, start: Params, target: Target) -> Tensor:
    """What the broadcast weights show where the unknown colours are."""
    signals = [target.query] if target.shared else [target.query, target.support]
    return torch.cat([render(loss, start, signal) for signal in signals])


def _rows(values: Tensor) -> Tensor:
    """``[*shape, C]`` to ``[n, C]``."""
    return values.reshape(-1, values.shape[-1])


def _noise_of(method: Method, update: Params) -> float:
    """Standard deviation per weight of the noise on one report; the server knows the method."""
    return sum(t.std(tree.size(update)) ** 2 for t in method.privacy if isinstance(t, Clipped)) ** 0.5
