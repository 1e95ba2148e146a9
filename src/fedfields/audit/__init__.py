"""The audit: what an honest-but-curious server could recover of a client's picture, clip or object.

The server knows the broadcast weights, the upload, the method and its settings, and pictures of the same kind from
elsewhere. Of a secure sum it knows the mean of the uploads and who is in it: read-outs look for each owner's picture in
the mean, and the inversions look for all pictures at once (as from a batch; Yin et al., *See through Gradients*, CVPR
2021), which are then given to the owners whom they resemble most. Every attack gets the same effort whatever the
method, and stands next to the floors: what can be had without any upload. All figures are PSNR in dB on the client's
own colours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

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
from fedfields.audit.target import Cohort, Target, target_of
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
        for client in one.clients:
            _quick(one, client, targets[client], loss, result)
    if level == "full" and observations:
        _full(observations, targets, loss, method, settings or AuditSettings(), run_seed, advance, result)
    return result


def _quick(one: Observation, client: str, target: Target, loss: VisibleLoss, result: AuditResult) -> None:
    """Render family and floors."""
    inputs, colours = target.inputs, _rows(target.truth)
    for name, readout in quick_readouts(loss, one.start, one.upload, inputs, colours).items():
        result.enter(name, client, readout, target.truth)
    with torch.no_grad():
        public = loss.show(one.start, inputs)
    result.enter_floor("constant", client, colours.mean(0).expand_as(colours), target.truth)
    result.enter_floor("affine_public", client, affine(public, colours), target.truth)


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
            advance(f"round {one.round}, {', '.join(one.clients)}", done, len(attacked))
        cohort = Cohort({client: targets[client] for client in one.clients})
        if cohort.alike and len(one.clients) <= settings.summed:
            others = [target.unknown for name, target in targets.items() if name not in one.clients]
            _invert(one, cohort, others, loss, method, settings, run_seed, result)


def _learned(
    observations: Sequence[Observation], targets: Mapping[str, Target], loss: VisibleLoss, result: AuditResult
) -> None:
    """NTK read-out for everybody, then the read-out that is learned on all the others' uploads."""
    rows: list[dict[str, tuple[Tensor, Tensor]]] = []
    for one in observations:
        rows.append({})
        for client in one.clients:
            target = targets[client]
            inputs, colours = target.inputs, _rows(target.truth)
            readout, kernel = ntk_readout(loss, one.start, one.upload, inputs, colours)
            result.enter("ntk", client, readout, target.truth)
            features = features_of(look(loss, one.start, one.upload, inputs), kernel)
            if bool(torch.isfinite(features).all()):
                rows[-1][client] = (features, colours)
    for own in rows:
        others = [row for other in rows if other is not own for row in other.values()]
        for client, (features, _) in own.items() if others else ():
            result.enter("learned", client, learned_readout(features, others), targets[client].truth)


def _invert(
    one: Observation,
    cohort: Cohort,
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
    axes, count = cohort.grid_axes, len(one.clients)
    prior = prior_from(others, cohort.unknown[0], axes)
    for client, target in cohort.targets.items():
        result.enter_floor("mean_of_others", client, _rows(target.judged(prior.mean)), target.truth)
    prior = dataclasses.replace(prior, mean=prior.mean.expand_as(cohort.unknown))
    added = _noise_of(method, update) / count**0.5
    random = generator(settings.seed, "audit", one.round, *one.clients)
    quiet = calm(method, cohort.unknown[0, ..., 0].numel())

    def sent(method: Method, values: Tensor, draws: Callable[[str], Generator]) -> Params:
        """The mean update of clients with these colours; ``draws`` are a client's."""
        return cohort.update(lambda name, task: simulate(method, task, one.start, loss, draws(name)), values)

    def unforeseen(values: Tensor) -> Tensor:
        """Noise and draws of clients with about these colours, as a standard deviation per weight of the mean."""
        tasks = cohort.tasks(values.clamp(0, 1)).values()
        drawn = torch.stack([deviation(method, quiet, task, one.start, loss, random) for task in tasks])
        return (added**2 + drawn.square().mean(0) / count).sqrt()

    def foreseen(values: Tensor) -> Tensor:
        return torch.as_tensor(added)

    def with_draws(values: Tensor) -> Params:
        """The clients' own draws, replayed."""
        return sent(method, values, lambda client: generator(run_seed, "visit", one.round, client))

    def without_draws(values: Tensor) -> Params:
        """Whole pictures, or other draws than the clients': what those change is noise to the attacker."""
        return sent(quiet, values, lambda client: generator(settings.seed, "draws", client))

    def with_fresh_draws(values: Tensor) -> Params:
        return sent(method, values, lambda client: random)

    shown = torch.stack([_render(loss, one.start, target) for target in cohort.targets.values()])
    starts = starting_pictures(prior.mean, shown, random)
    cases = [("unknown", with_fresh_draws, without_draws, unforeseen)]
    if settings.known_draws:
        cases.append(("known", with_draws, with_draws, foreseen))
    for draws, matched, inverted, noise in cases:
        recovered, _ = match(matched, update, starts, settings.matching_steps, axes)
        _enter(result, f"matching_{draws}", cohort, recovered)
        recovered = invert(
            inverted, update, prior, starts=[recovered], noise=noise(recovered), products=settings.newton_products
        )
        _enter(result, f"newton_{draws}", cohort, recovered)
        recovered = polish(
            inverted, update, recovered, noise=noise(recovered), steps=settings.polish_steps, grid_axes=axes
        )
        _enter(result, f"polished_{draws}", cohort, recovered)


def _enter(result: AuditResult, attack: str, cohort: Cohort, recovered: Tensor) -> None:
    for client, picture in cohort.assigned(recovered).items():
        result.enter(attack, client, Readout(_rows(picture), False), cohort.targets[client].truth)


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
