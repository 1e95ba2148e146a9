"""A run on a place: one field for one scene, judged on photographs that nobody trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fedfields.adaptation import Adaptation, adapt
from fedfields.audit import Observation
from fedfields.audit.content import content_of, over_owners
from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.fields import FourierMlp, HashGrid, Joint, Siren, expanded
from fedfields.gallery import Cell, save_sheet
from fedfields.losses import CODES, MarchedLoss, RadianceLoss
from fedfields.metrics import psnr, ssim
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.optim import Adam
from fedfields.perceptual import Lpips, load_lpips
from fedfields.privacy import Surrogate
from fedfields.rendering.cameras import Camera
from fedfields.rendering.marching import Marched, Marching
from fedfields.rendering.rays import Rays
from fedfields.runtime.checkpoint import Checkpoint, Uploads
from fedfields.runtime.evaluation import mean
from fedfields.runtime.inprocess import Context, Round, Settings
from fedfields.runtime.pool import Pool, one_thread
from fedfields.runtime.seen import in_transit, keep, observations, remembered
from fedfields.runtime.start import settings_of, shared_by, start_of, with_leaves
from fedfields.scenes.monument import PlaceData
from fedfields.scenes.scene import Place
from fedfields.scenes.tour import load_tour, publish
from fedfields.scenes.views import Photo, RaySignal, left_half, photo_rays, photos_of
from fedfields.scenes.visitors import Occluded
from fedfields.seeds import generator
from fedfields.store import discard
from fedfields.types import Advance, Batch, Params, Task

T = TypeVar("T")

SHOWN = 6
"""Test photographs, or owners, on a contact sheet."""

ORBIT_FRAMES, ORBIT_PIXELS = 36, 160
"""Of the film around a place: its frames, and the most pixels along an edge."""

EARLY_VIEWS = 5
"""Test photographs rendered in the evaluations before the last one."""

FITTING = Adaptation(steps=200, lr=0.2, batch=256, clip=0.0, optimizer=Adam())
"""How the appearance code of a test photograph is fitted to its left half, as NeRF-W is judged."""

RadianceFieldLoss = MarchedLoss | RadianceLoss


class Shot(NamedTuple):
    """A photograph, and what the field shows in its place.

    Attributes:
        truth: ``[H, W, 3]``.
        colour: ``[H, W, 3]``, not clamped.
        depth: ``[H, W, 3]``, nearness as grey.
        first: the first column that is scored; those before it were used to fit the appearance.
    """

    truth: Tensor
    colour: Tensor
    depth: Tensor
    first: int

    def figures(self, lpips: Lpips | None = None) -> dict:
        """PSNR, SSIM (and LPIPS) of the columns that are scored, and whether the others were fitted."""
        shown, truth = self.colour[:, self.first :], self.truth[:, self.first :]
        scores = {"psnr": psnr(shown, truth), "ssim": ssim(shown.clamp(0, 1), truth)}
        if lpips is not None:
            scores["lpips"] = lpips(shown, truth)
        return scores | ({"fitted": "left half"} if self.first else {})


class PlaceSetup(NamedTuple):
    """What a run on a place is made of, rebuilt from its experiment alone.

    Attributes:
        experiment: the whole configuration.
        federation: the owners and the test photographs.
        context: method, clients, loss.
        params: the initial weights; after `begin`, those that round 1 starts from.
        settings: rounds, cohort, seed, weights.
        lpips: LPIPS, if the experiment names a file for it.
    """

    experiment: Experiment
    federation: Place
    context: Context
    params: Params
    settings: Settings
    lpips: Lpips | None = None

    def begin(self, folder: Path, advance: Advance) -> PlaceSetup:
        """Publishes the shared frame, and a way around the place, in the run's folder; then makes the weights that
        round 1 starts from, or reads them if they are already there."""
        publish(folder, self.federation.frame, photos_of(self.federation.clients))
        loss = self.context.loss
        assert isinstance(loss, MarchedLoss | RadianceLoss)
        start = start_of(
            self.experiment, self.federation.public, loss, self.params, folder / "start.safetensors", advance
        )
        context = self.context._replace(loss=start.known_to(loss))
        return self._replace(params=start.params, context=context)

    @property
    def shared(self) -> Params:
        """Frozen factors that every client gets once, beside the weights."""
        return shared_by(self.context.loss)

    def whole(self, params: Params) -> Params:
        """The weights of the experiment's field from those that travel."""
        return expanded(params, self.shared)

    def judge(self, current: Checkpoint, pool: Pool, *, final: bool) -> dict:
        """PSNR, SSIM (and LPIPS) of test photographs: as held-out data after 0 steps of adaptation, and one by one;
        and, where it is known, what of the people in the owners' photographs the server can see.

        A field with appearance codes cannot know in which light a test photograph was taken. As in NeRF-W and
        DecentNeRF, its code is fitted to the left half, everything else frozen, and the right half is scored.
        """
        photos = self.federation.tests if final else thinned(self.federation.tests, EARLY_VIEWS)
        with one_thread():
            content = self._content(current.uploads)
            if not photos:
                return {"psnr": {}, "ssim": {}, "views": {}} | content
            see = Viewer(self.context.loss, current.state.params, self.experiment.seed)
            figures = {photo.name: self._shot(see, photo).figures(self.lpips) for photo in photos}
        means = {name: mean(one[name] for one in figures.values()) for name in ("psnr", "ssim")}
        return {name: {"held_out": {"0": value}} for name, value in means.items()} | {"views": figures} | content

    def remember(self, uploads: Uploads, step: Round) -> Uploads:
        """The uploads after a round; those of an owner who trains alone serve to judge it where that is possible."""
        if self._alone and not self.federation.occluded:
            return uploads
        masked = in_transit(step) if self.federation.occluded else None
        return remembered(uploads, self.experiment.strategy, step)._replace(masked=masked)

    def observe(self, folder: Path, current: Checkpoint) -> None:
        """Keeps what the server saw in this round for a full audit, in place of all rounds but the first: a place's
        weights are large. An owner who trains alone shows them to nobody."""
        if self._alone:
            return
        keep(folder, self.seen(current.uploads), current.state.round)
        for old in sorted((folder / "observations").glob("round-*.safetensors"))[1:-1]:
            discard(old)

    def seen(self, uploads: Uploads) -> list[Observation]:
        """What the server last saw of every owner, or of those in one secure sum."""
        return observations(self.federation.clients, self.context.method, uploads)

    def draw(self, folder: Path, current: Checkpoint) -> None:
        """A contact sheet of test photographs: truth, colour and depth; and, where it is known what owners'
        photographs should not show, what became of it."""
        see = Viewer(self.context.loss, current.state.params, self.experiment.seed)
        rows: dict[str, list[Cell | None]] = {}
        for photo in thinned(self.federation.tests, SHOWN):
            shot = self._shot(see, photo)
            rows[photo.name] = [
                Cell(shot.truth),
                Cell(shot.colour, f"{shot.figures()['psnr']:.1f} dB"),
                Cell(shot.depth),
            ]
        title = "Photographs that nobody trained on"
        if self._appearance:
            title += "; appearance fitted to the left half, scored on the right"
        if rows:
            save_sheet(folder / "images", "place", title, ["truth", "field", "depth"], rows)
        if self.federation.occluded:
            self._draw_content(folder / "images", see, current.uploads)
            self._draw_orbit(folder, see)

    def _content(self, uploads: Uploads) -> dict:
        """What the server can see of the people in the owners' photographs, once somebody has sent something."""
        seen = self._seen_of(uploads)
        found = [content_of(see.colours, self.federation.occluded[i]) for i, see in seen.items()]
        known = [one for one in found if one is not None]
        return {"content": over_owners(known) | {"of": self._whose}} if known else {}

    def _seen_of(self, uploads: Uploads) -> dict[int, Viewer]:
        """What the server can render of each owner: its last upload, or the last secure sum that it is in."""
        if not self.federation.occluded:
            return {}
        summed, viewers, found = self.context.method.sums is not None, dict[int, Viewer](), {}
        for i, (number, weights) in sorted(uploads.last.items()):
            key = number if summed else -i
            if key not in viewers:
                viewers[key] = Viewer(self.context.loss, weights, self.experiment.seed)
            found[i] = viewers[key]
        return found

    def most_telling(self, client: str) -> Occluded:
        """The photograph of an owner in which people cover most; the first, with an empty mask, if nobody knows."""
        names = [one.name for one in self.federation.clients]
        if self.federation.occluded:
            return max(self.federation.occluded[names.index(client)], key=lambda one: int(one.mask.sum()))
        photo = photos_of([self.federation.clients[names.index(client)]])[0]
        return Occluded(photo, photo.colours, torch.zeros(photo.colours.shape[:2], dtype=torch.bool))

    @property
    def _alone(self) -> bool:
        return len(self.federation.clients) == 1

    @property
    def _whose(self) -> str:
        return "sum" if self.context.method.sums else "upload"

    def _draw_content(self, images: Path, see: Viewer, uploads: Uploads) -> None:
        """A contact sheet with a column for each of some owners: before, after, the truth, what the server has."""
        few = uploads._replace(last=dict(thinned(sorted(uploads.last.items()), SHOWN)))
        seen = self._seen_of(few).items()
        named = {"sum": "the server's secure sum", "upload": "the owner's last upload"}[self._whose]
        columns = [self._column(i, see, server) for i, server in seen]
        names = ["before: a photograph", "after: the shared field", "the truth", named]
        rows: dict[str, list[Cell | None]] = {
            name: list(cells) for name, cells in zip(names, zip(*columns, strict=True), strict=False)
        }
        if uploads.masked is not None:
            owner, weights = uploads.masked
            view = self.most_telling(self.federation.clients[owner].name).photo
            noise = Viewer(self.context.loss, weights, self.experiment.seed).picture(view.pose, view.camera)
            rows["one upload on its way"] = [Cell(noise, "masked") if i == owner else None for i, _ in seen]
        if seen:
            title = "Some owners, each at the camera before which people hide most"
            save_sheet(images, "content", title, [self.federation.clients[i].name for i, _ in seen], rows)

    def _column(self, owner: int, see: Viewer, server: Viewer) -> list[Cell]:
        """What an owner's camera saw, and what is rendered in its place."""
        shot = self.most_telling(self.federation.clients[owner].name)
        view, clean = (shot.photo.pose, shot.photo.camera), shot.clean / 255
        shared, content = see.picture(*view), content_of(server.colours, [shot])
        return [
            Cell(shot.photo.colours / 255),
            Cell(shared, f"{psnr(shared, clean):.1f} dB"),
            Cell(clean),
            Cell(server.picture(*view), "" if content is None else f"leak {content.leak:.2f}"),
        ]

    def _draw_orbit(self, folder: Path, see: Viewer) -> None:
        """A film around the shared field, at up to twice the size of the photographs."""
        tour, first = load_tour(folder / "tour.json"), self.federation.occluded[0][0].photo.camera
        camera = tour.camera(min(ORBIT_PIXELS, 2 * max(first.width, first.height)))
        film = torch.stack([see.picture(pose, camera) for pose in tour.orbit(ORBIT_FRAMES)])
        save_sheet(folder / "images", "orbit", "Around the shared field", [""], {"": [Cell(film)]})

    @property
    def _appearance(self) -> int:
        return getattr(self.experiment.field, "appearance", 0)

    def _shot(self, see: Viewer, photo: Photo) -> Shot:
        """A test photograph and what is seen in its place: in the light of its left half, if there are codes."""
        rays = photo_rays(photo.pose, photo.camera)
        if self._appearance:
            like = self.federation.clients[0].train[0].support
            signal = dataclasses.replace(like, photos=(left_half(photo),))  # pyright: ignore
            code = see.fitted(signal, generator(self.experiment.seed, "appearance", photo.name))
            rays = rays._replace(codes=code.expand(len(rays.near), -1))
        shown, truth = see(rays), photo.colours.float() / 255
        depth = depth_picture(shown).reshape(*truth.shape[:2], 1).expand_as(truth)
        return Shot(truth, shown.colour.reshape(truth.shape), depth, photo.camera.width // 2 if self._appearance else 0)


def set_up_place(experiment: Experiment) -> PlaceSetup:
    """Reads the photographs and draws the initial weights.

    Raises:
        UserError: the capture is no good, or the parts do not go together.
    """
    assert isinstance(experiment.data, PlaceData)
    loss = loss_for(experiment)
    params = experiment.field.init(generator(experiment.seed, "init"))  # pyright: ignore
    if with_leaves(experiment, params, loss).keys() != params.keys():
        raise UserError(
            "learned step sizes and noise are for many small tasks, and a place is one; choose objective:fit"
        )
    lpips = None if experiment.lpips is None else load_lpips(experiment.lpips)
    jitters = 1 if isinstance(experiment.rays, Marching) else experiment.rays.jitters
    place = experiment.data.load(jitters, experiment.seed)
    sizes = [float(len(client.train[0].support)) for client in place.clients]
    weights = [size / max(sizes) for size in sizes] if experiment.weighting == "size" else None
    settings = settings_of(experiment, weights)
    context = Context(experiment.method, place.clients, loss)
    return PlaceSetup(experiment, place, context, params, settings, lpips)


def loss_for(experiment: Experiment) -> RadianceFieldLoss:
    """The loss of the experiment's field and way of rendering.

    Raises:
        UserError: parts that do not go together, or not with a place.
    """
    if any(isinstance(part, Surrogate) for part in experiment.privacy):
        raise UserError("surrogates teach what many signals have in common; for one place leave out privacy:surrogate")
    if isinstance(experiment.rays, Marching) and experiment.objective.second_order:
        raise UserError("this objective takes second derivatives, which marched rays do not have; choose rays:dense")
    field: Any = experiment.field
    rays = experiment.rays
    if isinstance(field, Siren | FourierMlp | Mlp | ConvNet | Recurrent):
        raise UserError(
            f"{type(field).__name__} is no radiance field; for a place choose field:hash-grid or field:nerf"
        )
    if isinstance(rays, Marching):
        if not isinstance(field, HashGrid):
            raise UserError(f"rays:marched needs field:hash-grid; with {type(field).__name__} choose rays:dense")
        return MarchedLoss(_with_own_part(experiment), rays)
    return RadianceLoss(_with_own_part(experiment), rays)


def _with_own_part(experiment: Experiment) -> Any:
    """The experiment's field, with a part of each owner's own if it has one.

    Raises:
        UserError: low-rank weights cannot go with it, or codes with an own part for each of many owners.
    """
    if experiment.personal is not None and experiment.compression is not None:
        raise UserError("low-rank weights do not go with a personal field yet; leave out one of them")
    codes = getattr(experiment.field, "appearance", 0) or (experiment.personal and experiment.personal.codes)
    if codes and experiment.data.sharing == "grouped":  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("codes of photographs go with --data.sharing pooled; grouped has an own part for each owner")
    return experiment.field if experiment.personal is None else Joint(experiment.field, experiment.personal)


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

    def colours(self, rays: Rays) -> Tensor:
        """The colours ``[R, 3]`` alone."""
        return self(rays).colour

    def picture(self, pose: Tensor, camera: Camera) -> Tensor:
        """The colours ``[H, W, 3]`` that a camera sees, not clamped."""
        return self.colours(photo_rays(pose, camera)).reshape(camera.height, camera.width, 3)

    def fitted(self, signal: RaySignal, random: torch.Generator) -> Tensor:
        """The appearance code ``[1, A]`` that suits the signal of one photograph; neutral if it has no pixels.

        Nothing but the code is fitted: a test photograph has no own part.
        """
        task = Task(signal, signal)
        code = {CODES: torch.zeros(1, self._loss.field.appearance)}  # pyright: ignore[reportFunctionMemberAccess]
        if not len(signal):
            return code[CODES]

        def loss(code: Params, batch: Batch) -> Tensor:
            return self._loss(self._params | code, batch)

        return adapt(code, task, loss, FITTING, random)[CODES]


def thinned(items: Sequence[T], most: int) -> Sequence[T]:
    """Every n-th of them, such as photographs, so that there are at most ``most``."""
    return items[:: max(1, -(-len(items) // most))]


def depth_picture(shown: Marched) -> Tensor:
    """Nearness in [0, 1] for people to look at: the nearest white, the background black. ``[R]``."""
    depth = shown.depth / shown.opacity.clamp_min(1e-6)
    solid = shown.opacity > 0.5
    if not bool(solid.any()):
        return torch.zeros_like(depth)
    low, high = depth[solid].min(), depth[solid].max()
    return torch.where(solid, 1 - 0.8 * (depth - low) / (high - low).clamp_min(1e-6), 0.0)
