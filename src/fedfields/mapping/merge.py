"""How a contribution is mixed into a map (Suzuki 2023, section 3.2): a moving average of the voxels that it saw.

``V`` is what a map keeps of a voxel (density and 27 coefficients), ``V~`` what a contribution brings::

    V <- eta V + (1 - eta) V~                                                                   (4)

The first contribution finds V = 0. The paper leaves it there, so that a voxel seen once has a tenth of its density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.mapping.rigid import check_motion
from fedfields.mapping.voxels import CELLS, EDGE, HARMONICS, Bricks, sorted_coords, unseen

EMPTY = 1e-3
"""Density in 1/m of which logarithms make nothing: a metre of it takes a thousandth of the light."""

BRICKS = 64
"""Fewest bricks worth a thread."""

FARTHEST = 2**27
"""Bricks have coordinates below this, so that those of their voxels are 32-bit integers."""


class Refused(UserError):
    """A contribution must not touch a map; the text says why."""


@dataclass(frozen=True)
class Mixing:
    """How much of a map a contribution may change."""

    eta: float = 0.9
    """Share of a voxel that stays when a contribution comes."""

    first: Literal["debias", "zero", "replace"] = "debias"
    """What the first contribution to a voxel finds. Zero: V = 0, as the paper. Debias: the same, but what is read is
    V / (1 - eta^n), as Adam does. Replace: V becomes V~."""

    views: int = 0
    """Photographs of a usual contribution: one of k times as many counts as k of them (eta^k); 0: all count alike."""

    staleness: float = 0.0
    """A contribution that began s versions of the map ago counts as (1 + s)^-staleness of one (Xie et al. 2019)."""

    density: Literal["linear", "log"] = "linear"
    """Of what eq. 4 is the average: of densities, as in the paper, where the cloud that one contribution has in mid-air
    stays, whoever else saw clear air there; or of log(1 + density / EMPTY), where it takes many to make something out
    of nothing. Colours are averaged as they are."""

    def __post_init__(self) -> None:
        if self.density not in ("linear", "log"):
            raise ValueError(f"density is {self.density!r}; it must be linear or log")
        if not 0 <= self.eta < 1:
            raise ValueError(f"eta is {self.eta}; it must be at least 0 and less than 1")
        if self.first not in ("debias", "zero", "replace"):
            raise ValueError(f"first is {self.first!r}; it must be debias, zero or replace")
        if self.views < 0 or self.staleness < 0:
            raise ValueError(f"views is {self.views} and staleness {self.staleness}; they must not be negative")

    def taken(self, brought: Bricks) -> Bricks:
        """A contribution with what is averaged in place of densities."""
        if self.density == "linear":
            return brought
        return brought._replace(density=np.log1p(brought.density / np.float32(EMPTY)))

    def given(self, shown: Bricks) -> Bricks:
        """The inverse of `taken`, of averages."""
        if self.density == "linear":
            return shown
        return shown._replace(density=np.expm1(shown.density) * np.float32(EMPTY))

    def kept(self, views: int, age: int) -> float:
        """Share of a voxel that stays, for a contribution of so many photographs, begun so many versions ago."""
        counts = (max(views, 1) / self.views if self.views else 1.0) * (1.0 + age) ** -self.staleness
        return self.eta**counts


class Contribution(NamedTuple):
    """What a client brings: its field, baked into the lattice of the map.

    Attributes:
        name: what nobody else's is called; a map takes it once.
        bricks: the voxels that it saw, ``visits`` 1.
        voxel: edge of a voxel, in metres.
        pose: ``[3, 4]``, from the field's axes to global ones, in metres, as it was baked.
        views: photographs that the field was trained on.
        base: version of the map when the client began; None for the newest.
        source: what tells the file that it was made from from all others, if there was one; a map remembers it.
    """

    name: str
    bricks: Bricks
    voxel: float
    pose: NDArray[np.float64]
    views: int = 0
    base: int | None = None
    source: str = ""


class Layer(NamedTuple):
    """What a map keeps: V in ``bricks``, and ``weight`` float32 ``[N, 512]``, the sum of the weights of all V~."""

    bricks: Bricks
    weight: NDArray[np.float32]

    def shown(self) -> Bricks:
        """The map as it is read: ``V / weight``, which is an average of what was brought."""
        scale = np.divide(1, self.weight, out=np.zeros_like(self.weight), where=self.weight > 0)
        density, sh = self.bricks.density * scale, self.bricks.sh * scale[..., None]
        return self.bricks._replace(density=density, sh=sh)


def blank(coords: NDArray[np.int32]) -> Layer:
    """A layer that nobody has seen, of bricks ``coords [N, 3]``."""
    return Layer(unseen(coords), np.zeros((len(coords), CELLS), np.float32))


def merged(layer: Layer, brought: Bricks, kept: float, first: str = "debias") -> Layer:
    """Eq. 4 with eta = ``kept`` where ``brought`` was visited; nothing else changes.

    The arrays of ``layer`` are written to, unless ``brought`` has bricks that it lacks.
    """
    from fedfields.kernels.compiled import average_voxels
    from fedfields.kernels.threads import over

    layer = _with_room(layer, brought.coords)
    rows, (_, density, sh, visits) = _rows(layer.bricks.coords, brought.coords), layer.bricks
    options = (kept, first == "replace", first == "debias")

    def work(a: int, b: int) -> None:
        average_voxels(density, sh, visits, layer.weight, rows, *brought[1:], *options, a, b)

    over(len(rows), work, BRICKS)
    return layer


def _with_room(layer: Layer, coords: NDArray[np.int32]) -> Layer:
    """The layer with bricks at ``coords [N, 3]`` too."""
    all_coords = sorted_coords(np.concatenate([layer.bricks.coords, coords]))
    if len(all_coords) == len(layer.bricks.coords):
        return layer
    larger = blank(all_coords)
    rows = _rows(all_coords, layer.bricks.coords)
    for to, given in zip((*larger.bricks[1:], larger.weight), (*layer.bricks[1:], layer.weight), strict=True):
        to[rows] = given
    return larger


def _rows(coords: NDArray[np.int32], wanted: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where the rows ``wanted [M, 3]`` are among ``coords [N, 3]``, which has all of them; both are sorted."""
    both = np.concatenate([coords, wanted])
    order = np.lexsort(both.T[::-1])  # Stable: an equal pair is a row of coords and then one of wanted.
    return order[np.flatnonzero(order >= len(coords)) - 1]


def check_contribution(found: Contribution, voxel: float, widest: float, largest: float) -> None:
    """Refuses what would damage a map.

    Args:
        found: what came.
        voxel: edge of the map's voxels, in metres.
        widest: the widest that a contribution may be along an axis, in metres.
        largest: the largest number that the map can store.

    Raises:
        Refused: it is damaged, absurd, or made for another map; in one line.
    """
    try:
        check_motion(found.pose, "its frame")
        _check_shapes(found.bricks)
        if abs(found.voxel - voxel) > 1e-9 * voxel:
            raise ValueError(f"its voxels are {found.voxel} m wide and the map's {voxel} m; bake it again")
        if not (found.name.isprintable() and 0 < len(found.name) <= 200):
            raise ValueError("its name must be 1 to 200 printable characters")
        _check_place(found.bricks.coords, voxel, widest)
        _check_values(found.bricks, largest)
    except (ValueError, UserError) as error:
        raise Refused(f"contribution {found.name[:40]!r} is refused: {error}; the map is as it was") from error


def _check_shapes(bricks: Bricks) -> None:
    count = len(bricks.coords)
    expected = {"coords": (count, 3), "density": (count, CELLS), "visits": (count, CELLS)}
    expected |= {"sh": (count, CELLS, HARMONICS)}
    for name, dtype in zip(Bricks._fields, (np.int32, np.float32, np.float32, np.uint16), strict=True):
        array = getattr(bricks, name)
        if array.shape != expected[name] or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {[*array.shape]}; it must be {dtype.__name__} {expected[name]}")
    if not bricks.seen:
        raise ValueError("it saw nothing")
    if not np.array_equal(bricks.coords, sorted_coords(bricks.coords)):
        raise ValueError("its bricks are not sorted, or one is there twice")


def _check_place(coords: NDArray[np.int32], voxel: float, widest: float) -> None:
    low, high = coords.min(0).astype(np.int64), coords.max(0).astype(np.int64)
    width = float((high - low + 1).max()) * EDGE * voxel
    if width > widest:
        raise ValueError(f"it is {width:,.0f} m wide and {widest:,.0f} m are allowed")
    if max(-low.min(), high.max()) >= FARTHEST:
        raise ValueError(f"it is more than {FARTHEST * EDGE * voxel:,.0f} m away")


def _check_values(bricks: Bricks, largest: float) -> None:
    for name in ("density", "sh"):
        high = float(np.abs(getattr(bricks, name)).max())  # NaN if one is.
        if not high <= largest:
            raise ValueError(f"its {name} has {high:g} in it; numbers must be finite and at most {largest:g}")
    if bricks.density.min() < 0:
        raise ValueError(f"its density falls to {bricks.density.min():g}; it must not be negative")
