"""A run on a place: one field for one scene, judged on photographs that nobody trained on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.fields import FourierMlp, HashGrid, Siren
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import MarchedLoss, RadianceLoss
from fedfields.metrics import psnr, ssim
from fedfields.objectives import Maml, Objective
from fedfields.perceptual import Lpips, load_lpips
from fedfields.rendering.marching import Marched, Marching
from fedfields.rendering.rays import Rays
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.evaluation import mean
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.pool import Pool, one_thread
from fedfields.scenes.scene import Place, Scene
from fedfields.scenes.tour import tour_of
from fedfields.scenes.views import Photo, photo_rays
from fedfields.seeds import generator
from fedfields.types import Params

SHOWN = 6
"""Rows of a contact sheet."""

EARLY_VIEWS = 5
"""Test photographs rendered in the evaluations before the last one."""

RadianceFieldLoss = MarchedLoss | RadianceLoss


class PlaceSetup(NamedTuple):
    """What a run on a place is made of, rebuilt from its experiment alone.

    Attributes:
        experiment: the whole configuration.
        federation: the owners and the test photographs.
        context: method, clients, loss.
        params: the initial weights.
        settings: rounds, cohort, seed, weights.
        lpips: LPIPS, if the experiment names a file for it.
    """

    experiment: Experiment
    federation: Place
    context: Context
    params: Params
    settings: Settings
    lpips: Lpips | None = None

    def begin(self, folder: Path) -> None:
        """Publishes the shared frame, and a way around the place, in the run's folder."""
        self.federation.frame.save(folder / "scene.json")
        photos = [photo for client in self.federation.clients for photo in client.train[0].support.photos]  # pyright: ignore
        tour_of([photo.pose for photo in photos], [photo.camera for photo in photos]).save(folder / "tour.json")

    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
        """PSNR, SSIM (and LPIPS) of test photographs: as held-out data after 0 steps of adaptation, and one by one."""
        photos = self.federation.tests if final else thinned(self.federation.tests, EARLY_VIEWS)
        if not photos:
            return {"psnr": {}, "ssim": {}, "views": {}}
        with one_thread():
            see = Viewer(self.context.loss, current.state.params, self.experiment.seed)
            figures = {}
            for photo in photos:
                shown = see(photo_rays(photo.pose, photo.camera)).colour.reshape(photo.colours.shape)
                truth = photo.colours.float() / 255
                figures[photo.name] = {"psnr": psnr(shown, truth), "ssim": ssim(shown.clamp(0, 1), truth)}
                if self.lpips is not None:
                    figures[photo.name]["lpips"] = self.lpips(shown, truth)
        means = {name: mean(one[name] for one in figures.values()) for name in ("psnr", "ssim")}
        return {name: {"held_out": {"0": value}} for name, value in means.items()} | {"views": figures}

    def remember(self, uploads: Uploads, step: Round) -> Uploads:
        """Uploads are not kept: a place has no audit yet."""
        return uploads

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Nothing is kept for an audit."""

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """A contact sheet of test photographs: truth, colour and depth."""
        see = Viewer(self.context.loss, current.state.params, self.experiment.seed)
        rows: dict[str, list[Cell | None]] = {}
        for photo in thinned(self.federation.tests, SHOWN):
            shown = see(photo_rays(photo.pose, photo.camera))
            truth, colour = photo.colours.float() / 255, shown.colour.reshape(photo.colours.shape)
            depth = depth_picture(shown).reshape(*truth.shape[:2], 1).expand_as(truth)
            rows[photo.name] = [Cell(truth), Cell(colour, f"{psnr(colour, truth):.1f} dB"), Cell(depth)]
        if rows:
            save_sheet(
                folder / "images", "place", "Photographs that nobody trained on", ["truth", "field", "depth"], rows
            )


def set_up_place(experiment: Experiment) -> PlaceSetup:
    """Reads the photographs and draws the initial weights.

    Raises:
        UserError: the capture is no good, or the parts do not go together.
    """
    assert isinstance(experiment.data, Scene)
    if experiment.privacy:
        raise UserError("clips, noise and surrogates are not made for places yet; leave out privacy:...")
    if isinstance(experiment.rays, Marching) and _second_order(experiment.objective):
        raise UserError("this objective takes second derivatives, which marched rays do not have; choose rays:dense")
    lpips = None if experiment.lpips is None else load_lpips(experiment.lpips)
    jitters = 1 if isinstance(experiment.rays, Marching) else experiment.rays.jitters
    place = experiment.data.load(jitters)
    loss = loss_for(experiment)
    params = experiment.field.init(generator(experiment.seed, "init"))  # pyright: ignore
    sizes = [float(len(client.train[0].support)) for client in place.clients]
    weights = [size / max(sizes) for size in sizes] if experiment.weighting == "size" else None
    settings = Settings(experiment.rounds, experiment.cohort, experiment.seed, weights, experiment.seconds)
    context = Context(experiment.method, place.clients, loss)
    return PlaceSetup(experiment, place, context, params, settings, lpips)


def _second_order(objective: Objective) -> bool:
    """Whether an objective, or one inside it, differentiates an inner loop."""
    if isinstance(objective, Maml):
        return not objective.first_order and objective.inner.steps > 0
    base = getattr(objective, "base", None)
    return base is not None and _second_order(base)


def loss_for(experiment: Experiment) -> RadianceFieldLoss:
    """The loss of the experiment's field and way of rendering.

    Raises:
        UserError: a field of pictures, or a field without density of its own that should be marched.
    """
    field, rays = experiment.field, experiment.rays
    if isinstance(field, Siren | FourierMlp):
        raise UserError(
            f"{type(field).__name__} is a field of pictures; for a place choose field:hash-grid or field:nerf"
        )
    if isinstance(rays, Marching):
        if not isinstance(field, HashGrid):
            raise UserError(f"rays:marched needs field:hash-grid; with {type(field).__name__} choose rays:dense")
        return MarchedLoss(field, rays)
    return RadianceLoss(field, rays)


class Viewer:
    """Rays to what is seen along them, with the weights of a moment."""

    def __init__(self, loss: object, params: Params, seed: int) -> None:
        assert isinstance(loss, MarchedLoss | RadianceLoss)
        if isinstance(loss, MarchedLoss):
            random, kept = generator(seed, "view"), {}
            for _ in range(4):  # Several random points in each cell, lest thin things be missed.
                loss, kept = loss.refreshed(params, kept, random)
        self._loss, self._params = loss, params

    def __call__(self, rays: Rays) -> Marched:
        return self._loss.render(self._params, rays)


def thinned(photos: tuple[Photo, ...], most: int) -> tuple[Photo, ...]:
    """Every n-th photograph, so that there are at most ``most``."""
    return photos[:: max(1, -(-len(photos) // most))]


def depth_picture(shown: Marched) -> Tensor:
    """Nearness in [0, 1] for people to look at: the nearest white, the background black. ``[R]``."""
    depth = shown.depth / shown.opacity.clamp_min(1e-6)
    solid = shown.opacity > 0.5
    if not bool(solid.any()):
        return torch.zeros_like(depth)
    low, high = depth[solid].min(), depth[solid].max()
    return torch.where(solid, 1 - 0.8 * (depth - low) / (high - low).clamp_min(1e-6), 0.0)
