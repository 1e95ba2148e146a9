"""The full audit of a run on disk: every attack on what the server saw, written beside the run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fedfields.audit import AuditResult, AuditSettings, Observation, audit, load_observations, people
from fedfields.errors import UserError
from fedfields.gallery import save_sheet
from fedfields.runtime.pool import one_thread
from fedfields.runtime.run import clean, set_up_run
from fedfields.runtime.tasks import SHOWN
from fedfields.scenes.scene import spread
from fedfields.store import write_json
from fedfields.types import Advance


def audit_run(folder: Path, settings: AuditSettings, advance: Advance | None = None) -> dict:
    """Attacks the uploads that a run kept, writes ``audit.json`` and the pictures; returns the content of the file.

    Where reports were summed in secret, the server saw one sum in a round, and that is attacked: for all clients in it
    together, or by read-outs alone if they are more than ``settings.summed``. Attacks are compared on the clients that
    all of them attacked. The headline is the round in which most was recovered; every round is listed.

    Raises:
        UserError: no such run, or it kept no observations.
    """
    setup = set_up_run(folder)
    files = sorted((folder / "observations").glob("round-*.safetensors"))
    if not files:
        raise UserError(f"{folder} kept no uploads to attack: nobody sends anything in a run without rounds")
    tasks = {client.name: client.train[0] for client in setup.federation.clients}
    results: dict[int, AuditResult] = {}
    sizes: dict[int, int] = {}
    with one_thread():
        for file in spread(files, settings.rounds):
            seen = [one for one in load_observations(file) if set(one.clients) <= set(tasks)]
            attacked = _rotate(seen, len(results), settings.clients)
            result = audit(
                attacked,
                tasks,
                setup.loss,
                setup.experiment.method,
                level="full",
                settings=settings,
                run_seed=setup.experiment.seed,
                advance=advance,
            )
            shown = [client for one in attacked[: settings.clients] for client in one.clients]
            results[attacked[0].round], sizes[attacked[0].round] = result.only(shown), len(attacked[0].clients)
    worst = max(results, key=lambda number: results[number].leak["worst"])
    columns, rows = results[worst].sheet(SHOWN)
    what = "one upload" if sizes[worst] == 1 else f"the sum of {sizes[worst]} uploads"
    title = f"What the server reconstructs from {what} of round {worst}"
    save_sheet(folder / "images", "server", title, columns, rows)
    content = results[worst].to_json() | {
        "round": worst,
        "summed": sizes[worst],
        "rounds": {
            str(number): {"worst": result.leak["worst"], "attacks": result.leak, "floor": result.floor}
            for number, result in results.items()
        },
    }
    if found := _faces(results[worst]):
        content["faces"] = found
    content = clean(content)
    write_json(folder / "audit.json", content)
    return content


def _faces(result: AuditResult) -> dict[str, dict[str, float]]:
    """Faces in the owners' pictures and in what attacks made of them; empty without detector, colours or any face."""
    truths = list(result.pictures["truth"].values())
    if not people.available() or truths[0].shape[-1] != 3 or not _faces_in(truths)["per_hundred"]:
        return {}
    return {name: _faces_in(list(result.pictures[name].values())) for name in ("truth", *result.figures)}


def _faces_in(pictures: list[Tensor]) -> dict[str, float]:
    """Of pictures, or of all frames or photographs."""
    return people.faces([view for one in pictures for view in one.reshape(-1, *one.shape[-3:])])._asdict()


def _rotate(seen: list[Observation], turn: int, count: int) -> list[Observation]:
    """Another part of the cohort first in every round."""
    first = turn * count % len(seen)
    return seen[first:] + seen[:first]
