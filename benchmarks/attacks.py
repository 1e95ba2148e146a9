"""What hostile clients send, as functions on reports; shared by benchmarks/robust.py and the tests.

Every attack takes the reports that the hostile clients made by training, the reports of all honest clients of the
round (hostile clients are taken to know everything) and the largest norm of an update that the server accepts, and
returns what the hostile clients send.
"""

from collections.abc import Callable, Sequence

import torch

from fedfields import tree
from fedfields.types import Params, Report

Attack = Callable[[Sequence[Report], Sequence[Report], float], list[Report]]


def with_delta(report: Report, delta: Params) -> Report:
    """The report with another update, in the dtypes of the old one."""
    return report | {"delta": {key: delta[key].to(leaf.dtype) for key, leaf in report["delta"].items()}}


def not_finite(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """NaN from every other hostile client, infinity from the rest."""
    values = [float("inf") if i % 2 else float("nan") for i in range(len(own))]
    return [
        with_delta(one, tree.tree_map(lambda leaf, value=value: torch.full_like(leaf, value), one["delta"]))
        for one, value in zip(own, values, strict=True)
    ]


def flipped(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """The update times -1."""
    return [with_delta(one, tree.scale(one["delta"], -1.0)) for one in own]


def enlarged(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """The update times a million."""
    return [with_delta(one, tree.scale(one["delta"], 1e6)) for one in own]


def replacing(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """Model replacement (Bagdasaryan et al., AISTATS 2020, eq. 3): the update times n / k, or up to the norm bound."""
    times = (len(own) + len(honest)) / len(own)
    sizes = [float(tree.norm(one["delta"])) for one in own]
    return [
        with_delta(one, tree.scale(one["delta"], min(times, 0.999 * bound / size)))
        for one, size in zip(own, sizes, strict=True)
    ]


def little(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """All send mean - z std of the honest updates (Baruch et al., *A Little Is Enough*, NeurIPS 2019)."""
    return hidden(own, honest, bound, lambda rows: rows.std(dim=0))


def against(own: Sequence[Report], honest: Sequence[Report], bound: float) -> list[Report]:
    """All send (1 - z) mean of the honest updates (inner product manipulation: Xie et al., UAI 2019)."""
    return hidden(own, honest, bound, lambda rows: rows.mean(dim=0))


def hidden(
    own: Sequence[Report], honest: Sequence[Report], bound: float, way: Callable[[torch.Tensor], torch.Tensor]
) -> list[Report]:
    """All send mean - z way, with the largest z that hides them among the honest updates and keeps the norm bound.

    They are no further from any honest update than some two of those are from each other: min-max of Shejwalkar and
    Houmansadr, *Manipulating the Byzantine*, NDSS 2021, eq. 7.
    """
    rows = torch.stack([tree.flatten(one["delta"]).double() for one in honest])
    mean, direction = rows.mean(dim=0), way(rows)
    widest = float(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").max())
    limits = torch.tensor([*[widest] * len(rows), 0.999 * bound], dtype=rows.dtype)
    z = float(furthest(direction, torch.cat([mean - rows, mean[None]]), limits).min())
    return [with_delta(one, tree.unflatten(mean - z * direction, one["delta"])) for one in own]


def furthest(direction: torch.Tensor, starts: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The largest z >= 0 with ``|start - z direction| <= limit`` for each start ``[n, P]``, 0 if there is none."""
    along, size = starts @ direction, direction @ direction
    inside = along.square() - size * (starts.square().sum(dim=1) - limits.square())
    return ((along + inside.clamp_min(0).sqrt()) / size).clamp_min(0)


ATTACKS: dict[str, Attack] = {
    "NaN and Inf": not_finite,
    "sign flip": flipped,
    "times 1e6": enlarged,
    "backdoor": replacing,
    "little is enough": little,
    "against the mean": against,
}
