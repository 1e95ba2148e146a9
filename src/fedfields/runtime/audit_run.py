"""The full audit of a run on disk: every attack on what the server saw, written beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fedfields.audit import AuditResult, AuditSettings, Observation, audit, load_observations, people, places
from fedfields.audit.content import Content, over_owners
from fedfields.audit.readouts import affine
from fedfields.errors import UserError
from fedfields.gallery import save_sheet
from fedfields.rendering.rays import Rays
from fedfields.runtime.places import PlaceSetup, Viewer
from fedfields.runtime.pool import one_thread
from fedfields.runtime.run import clean, load_experiment, set_up
from fedfields.runtime.tasks import SHOWN, TaskSetup
from fedfields.scenes.scene import spread
from fedfields.scenes.visitors import Occluded, rays_of
from fedfields.store import write_json
from fedfields.types import Advance, Params

_CLOSER = 1280
"""Pixels along the longer side of photographs of a place before a detector looks for faces: they are small there."""


class Audited(NamedTuple):
    """What was recovered in one round.

    Attributes:
        round: which.
        result: of the owners on whom all attacks were tried.
        summed: how many uploads were in what was attacked.
        people: by attack and owner, how much of the people in front of a place was recovered, where that is known.
    """

    round: int
    result: AuditResult
    summed: int
    people: Mapping[str, Mapping[str, Content]]


def audit_run(folder: Path, settings: AuditSettings, advance: Advance | None = None) -> dict:
    """Attacks the uploads that a run kept, writes ``audit.json`` and the pictures; returns the content of the file.

    Where reports were summed in secret, the server saw one sum in a round, and that is attacked: for all clients in it
    together, or by read-outs alone if they are more than ``settings.summed``. Attacks are compared on the clients that
    all of them attacked. The headline is the round in which most was recovered; every round is listed.

    Raises:
        UserError: no such run, or it kept no observations.
    """
    setup = set_up(load_experiment(folder))
    files = sorted((folder / "observations").glob("round-*.safetensors"))
    if not files:
        alone = "nobody sends anything in a run without rounds, or on a place with one owner"
        raise UserError(f"{folder} kept no uploads to attack: {alone}")
    if isinstance(setup, PlaceSetup):  # It may have frozen factors that the server knows, too.
        setup = setup.begin(folder, advance or (lambda what, done, total: None))
    found: list[Audited] = []
    with one_thread():
        for turn, file in enumerate(spread(files, settings.rounds)):
            known = {client.name for client in setup.federation.clients}
            seen = [one for one in load_observations(file) if set(one.clients) <= known]
            attack = _of_place if isinstance(setup, PlaceSetup) else _of_tasks
            found.append(attack(setup, seen, turn, settings, advance))  # pyright: ignore[reportArgumentType]
    worst = max(found, key=lambda one: one.result.leak["worst"])
    columns, rows = worst.result.sheet(SHOWN)
    what = "one upload" if worst.summed == 1 else f"the sum of {worst.summed} uploads"
    title = f"What the server reconstructs from {what} of round {worst.round}"
    save_sheet(folder / "images", "server", title, columns, rows)
    content = clean(_content(found, worst, isinstance(setup, PlaceSetup)))
    write_json(folder / "audit.json", content)
    return content


def _content(found: list[Audited], worst: Audited, place: bool) -> dict[str, Any]:
    """Plain values for ``audit.json``."""
    content = worst.result.to_json() | {
        "round": worst.round,
        "summed": worst.summed,
        "rounds": {
            str(one.round): {
                "worst": one.result.leak["worst"],
                "attacks": one.result.leak,
                "floor": one.result.floor,
                "per_client": one.result.worst,
            }
            | _people(one.people)
            for one in found
        },
    }
    faces = _faces(worst.result, _CLOSER if place else 512)
    content |= _people(worst.people) | ({"faces": faces} if faces else {})
    return content | ({"notes": [places.NOT_COVERED, *_unseen(faces)]} if place else {})


def _unseen(faces: Mapping[str, Any]) -> list[str]:
    """Why nothing is said of faces."""
    if faces:
        return []
    if not people.available():
        return [f"Faces were not looked for; that needs a detector: {people.INSTALL}"]
    return [
        "The face detector finds none in the owners' photographs themselves, in the size that they were trained with: "
        "it cannot tell what the server sees of them."
    ]


def _of_tasks(
    setup: TaskSetup, seen: list[Observation], turn: int, settings: AuditSettings, advance: Advance | None
) -> Audited:
    """Attacks on pictures, clips or objects."""
    attacked = _rotate(seen, turn, settings.clients)
    result = audit(
        attacked,
        {client.name: client.train[0] for client in setup.federation.clients},
        setup.loss,
        setup.experiment.method,
        level="full",
        settings=settings,
        run_seed=setup.experiment.seed,
        advance=advance,
    )
    shown = [client for one in attacked[: settings.clients] for client in one.clients]
    return Audited(attacked[0].round, result.only(shown), len(attacked[0].clients), {})


def _of_place(
    setup: PlaceSetup, seen: list[Observation], turn: int, settings: AuditSettings, advance: Advance | None
) -> Audited:
    """Attacks on one photograph of each owner, at the owner's camera."""
    result, contents = AuditResult(), dict[str, dict[str, Content]]()
    pairs = [(number, client) for number, one in enumerate(seen) for client in one.clients]
    pairs = _rotate(pairs, turn, settings.clients)[: settings.clients]

    def see(weights: Params, rays: Rays) -> Tensor:
        return Viewer(setup.context.loss, weights, setup.experiment.seed).colours(rays)

    for done, number in enumerate(dict.fromkeys(number for number, _ in pairs)):
        one, clients = seen[number], [client for its, client in pairs if its == number]
        if advance:
            advance(f"round {one.round}, {', '.join(clients)}", done * len(clients), len(pairs))
        shots = [setup.most_telling(client) for client in clients]
        renders = places.rendered(see, one, rays_of([shot.photo for shot in shots]))
        for client, shot, part in zip(
            clients, shots, renders.split([shot.mask.numel() for shot in shots]), strict=True
        ):
            _enter(result, client, part, shot)
            for name, content in places.contents(part, shot).items():
                contents.setdefault(name, {})[client] = content
    return Audited(seen[0].round, result, len(seen[0].clients), contents)


def _enter(result: AuditResult, client: str, renders: places.Renders, shot: Occluded) -> None:
    """Adds attacks and floors on one photograph."""
    truth = shot.photo.colours.float() / 255
    rows = truth.reshape(-1, 3)
    for name, readout in places.readouts(renders, rows).items():
        result.enter(name, client, readout, truth)
    result.enter_floor("public", client, renders.public, truth)
    result.enter_floor("affine_public", client, affine(renders.public, rows), truth)


def _people(contents: Mapping[str, Mapping[str, Content]]) -> dict[str, Any]:
    """Under "people", what each attack shows of them, beside what everybody sees; the worst is the nearest to them."""
    if not contents:
        return {}
    attacks = {name: over_owners(list(table.values())) for name, table in contents.items()}
    public = attacks.pop("public")
    worst = max(attacks, key=lambda name: attacks[name]["psnr"])
    return {"people": {"attacks": attacks, "public": public, "worst": {"attack": worst} | attacks[worst]}}


def _faces(result: AuditResult, side: int = 512) -> dict[str, dict[str, float]]:
    """Faces in the owners' pictures and in what attacks made of them; empty without detector, colours or any face."""
    truths = list(result.pictures["truth"].values())
    if not people.available() or truths[0].shape[-1] != 3 or not _faces_in(truths, side)["per_hundred"]:
        return {}
    shown = [name for name in ("truth", "public", *result.figures) if name in result.pictures]
    return {name: _faces_in(list(result.pictures[name].values()), side) for name in shown}


def _faces_in(pictures: list[Tensor], side: int) -> dict[str, float]:
    """Of pictures, or of all frames or photographs."""
    return people.faces([view for one in pictures for view in one.reshape(-1, *one.shape[-3:])], side)._asdict()


def _rotate(seen: list, turn: int, count: int) -> list:
    """Another part of the cohort first in every round."""
    first = turn * count % len(seen)
    return seen[first:] + seen[:first]
