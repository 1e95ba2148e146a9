"""How many floating-point operations a run takes, by a count that anybody can repeat with a pencil.

A multiplication and an addition are two. A field with P weights takes 2 P for a sample on the way forward and 4 P on
the way back; of a hash table only the rows that are looked up count: 8 corners at each level, whose features are each
multiplied and added, forward and back. The server adds K reports. Under secure aggregation it also makes a random word
for each entry of each mask that is left in the sum, and takes it off: K private masks, and for each client that dropped
out those that it shared with its neighbours. Its step takes 2 for each weight. Occupancy grids, encodings of positions
and directions, and keys are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fedfields.config import Experiment
from fedfields.federation import expected
from fedfields.fields.combine import COARSE
from fedfields.objectives import Fit, Proximal
from fedfields.privacy import SecAgg
from fedfields.rendering.marching import Marching
from fedfields.runtime.inprocess import Context, Settings
from fedfields.runtime.pool import one_thread
from fedfields.scenes.monument import PlaceData
from fedfields.seeds import generator
from fedfields.types import Params


class Configured(Protocol):
    """What a run is made of, as far as it decides what it costs."""

    @property
    def experiment(self) -> Experiment: ...
    @property
    def context(self) -> Context: ...
    @property
    def params(self) -> Params: ...
    @property
    def settings(self) -> Settings: ...
    def whole(self, params: Params) -> Params: ...


def flops(setup: Configured, records: Sequence[dict]) -> dict[str, float | None]:
    """Operations of all rounds: of the server, and of all clients at most (None where nobody counts them)."""
    with one_thread():
        sizes = [
            leaf.numel() for tree in expected(setup.context.method, setup.params).values() for leaf in tree.values()
        ]
    weights = sum(leaf.numel() for leaf in setup.params.values())
    server, clients, spent = 0, 0, 0.0
    for record in records:
        present, dropped = len(record["cohort"]) - len(record["dropped"]), len(record["dropped"])
        server += server_flops(sum(sizes), weights, present, dropped, setup.context.method.sums)
        progress = setup.settings.progress(record["round"] - 1, spent)
        visit = visit_flops(setup.experiment, setup.whole(setup.params), progress)
        clients = None if visit is None or clients is None else clients + present * visit
        spent += record["seconds"]
    return {"server": server, "clients": clients}


def server_flops(entries: int, weights: int, present: int, dropped: int, sums: SecAgg | None) -> int:
    """Operations of the server in one round.

    Args:
        entries: numbers in a report.
        weights: of the model.
        present: clients whose reports are in the sum.
        dropped: clients that were asked and are not in it.
        sums: how reports are summed in secret, if they are.
    """
    added = present * entries + 2 * weights
    if sums is None:
        return added
    neighbours = min(sums.neighbours or present + dropped - 1, present + dropped - 1)
    return added + 2 * entries * (present + dropped * neighbours)


def visit_flops(experiment: Experiment, params: Params, progress: float) -> int | None:
    """Operations of one visit, at most, when a share ``progress`` of the run is over.

    None for objectives that do more than fit, and for data that is no place.
    """
    objective = experiment.objective.base if isinstance(experiment.objective, Proximal) else experiment.objective
    if not isinstance(objective, Fit) or not isinstance(experiment.data, PlaceData):
        return None
    own, personal = 0, experiment.personal
    if personal is not None and progress >= personal.after:
        own = _sample(personal.init(generator(0, "form")))
    coarse = {key: leaf for key, leaf in params.items() if key.startswith(COARSE)}
    fine = {key: leaf for key, leaf in params.items() if key not in coarse}
    rays, batch = experiment.rays, objective.batch
    if isinstance(rays, Marching):
        return experiment.local.steps * min(rays.samples, batch * rays.steps) * (_sample(fine) + own)
    both = rays.samples * _sample(coarse) + rays.jitters * (_sample(fine) + own)
    return experiment.local.steps * batch * both


def _sample(params: Params) -> int:
    """Operations of one sample, forward and back."""
    rows = [leaf for key, leaf in params.items() if key.endswith("table")]
    lookups = sum(8 * leaf.shape[0] * leaf.shape[-1] for leaf in rows)
    weights = sum(leaf.numel() for leaf in params.values()) - sum(leaf.numel() for leaf in rows)
    return 6 * weights + 4 * lookups
