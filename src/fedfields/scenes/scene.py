"""A place in photographs, and how those are shared out among clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from fedfields.errors import UserError
from fedfields.scenes.captures import load_capture
from fedfields.scenes.frame import Frame, frame_of, load_frame
from fedfields.scenes.images import printable
from fedfields.scenes.photographers import gathered, photographer_of
from fedfields.scenes.posed import Capture
from fedfields.scenes.views import Photo, RaySignal, drawn, load_photo, shared_out
from fedfields.scenes.visitors import Crowd, Occluded, Sharing, check_choice, group_of, in_hands, occluded
from fedfields.seeds import generator
from fedfields.types import Client, Task

T = TypeVar("T")

ROOM = 1.2
"""How much wider than an object's own the frame is with visitors beside it."""

GROUND = -0.4
"""Height at which they stand in it: that of the objects of the NeRF synthetic set."""


class Place(NamedTuple):
    """The data of a run on one scene.

    Attributes:
        clients: owners of photographs.
        tests: photographs that nobody trains on.
        frame: what all of them share.
        notes: what the user should know.
        public: who stands for everybody and has the public photographs; None if there are none.
        occluded: by client, its photographs with what is behind the people in them, for scoring alone; empty if
            nobody knows.
    """

    clients: tuple[Client, ...]
    tests: tuple[Photo, ...]
    frame: Frame
    notes: tuple[str, ...]
    public: Client | None = None
    occluded: tuple[tuple[Occluded, ...], ...] = ()

    @property
    def unseen(self) -> tuple[Client, ...]:
        """Nobody: the scene is the same for all."""
        return ()


@dataclass(frozen=True)
class Scene:
    """Photographs of one place, and how they are shared out among clients."""

    path: Path | None = None
    """Folder of the capture: Blender, nerfstudio, COLMAP, LLFF or Photo Tourism."""

    size: int = 0
    """Pixels along the longer side, after resizing; 0 keeps the size of each photograph."""

    clients: int = 1
    """Owners among whom the training photographs are shared out; 1 is centralised training. Of photographers, at most
    so many: of more, several are one client."""

    partition: Literal["interleave", "separate", "photographer"] = "interleave"
    """By the azimuth of the camera: dealt out in turn, or a sector for each client. Photographer: by who took them, as
    EXIF (artist, owner, camera) or a Flickr collection's file names say; a client each where nothing is said."""

    frame: Path | None = None
    """The scene.json that all owners share; without it one is made from the capture."""

    tests: int = 0
    """At most so many test photographs, evenly spread; 0 takes all."""

    public: int = 0
    """Training photographs, drawn at random, that belong to everybody: no client has them, a warm-up trains on them."""

    visitors: Crowd = "none"
    """People put in front of the place, other ones for each client, to measure what of them leaks: heavy, three people;
    light, one, and small; mixed, in turn. For captures of an object on white, with --data.partition separate."""

    sharing: Sharing = "federated"
    """What owners share. Federated: weights. Pooled: the photographs themselves, visitors and all, on which one client
    trains (centralised). Grouped: the same, by a client that knows whose each is, with an own part for every owner.
    Alone: nothing, and only the first owner trains."""

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients is {self.clients}; there must be at least 1")
        if self.size < 0 or self.tests < 0:
            raise ValueError("size and tests must be positive, or 0 for no limit")
        if self.public < 0:
            raise ValueError(f"public is {self.public}; it must be positive, or 0 for none")
        check_choice("visitors", self.visitors, Crowd)
        check_choice("sharing", self.sharing, Sharing)
        if self.visitors != "none" and self.partition != "separate":
            raise ValueError("visitors stand between a client's cameras and the place: use --data.partition separate")

    def load(self, jitters: int = 1, seed: int = 0) -> Place:
        """Reads the capture.

        Args:
            jitters: see `RaySignal`.
            seed: decides which photographs are public, and what visitors look like.

        Raises:
            UserError: no such capture, it has no use, or it lies outside the frame.
        """
        if self.path is None:
            raise UserError("no photographs were given; name the folder of a capture with --data")
        capture = load_capture(self.path)
        frame = self._frame(capture)
        check_frame(self.path, capture, frame)
        train = [load_photo(view, frame, view.scale_to(self.size)) for view in capture.views if view.split == "train"]
        self._check_enough(len(train))
        known = frame.background == "white"

        common, private = drawn(train, self.public, generator(seed, "public"))
        shares = self._shares(private, capture)
        shots = [self._visited(i, share, seed) for i, share in enumerate(shares)]
        clients, scored = in_hands(shots, self.sharing, jitters, known)
        tests = spread([view for view in capture.views if view.split == "test"], self.tests)
        photos = tuple(load_photo(view, frame, view.scale_to(self.size)) for view in tests)
        public = None
        if common:
            signal = RaySignal(tuple(common), jitters, known)
            public = Client("public", (Task(signal, signal, "public"),))
        notes = capture.problems + frame_notes(self.path, capture, frame)
        return Place(clients, photos, frame, notes, public, () if self.visitors == "none" else scored)

    def _check_enough(self, photos: int) -> None:
        """Raises UserError if there are not enough training photographs."""
        clients = 1 if self.partition == "photographer" else self.clients
        if photos < clients + self.public:
            public = f" and {self.public} public ones; lower --public" if self.public else ""
            raise UserError(f"{self.path} has {photos} training photographs, too few for {clients} clients{public}")

    def _shares(self, photos: Sequence[Photo], capture: Capture) -> list[list[Photo]]:
        """The photographs of each client."""
        if self.partition != "photographer":
            return shared_out(photos, self.clients, self.partition)
        views = {view.name: view for view in capture.views}
        return gathered(photos, [photographer_of(views[photo.name]) for photo in photos], self.clients)

    def _frame(self, capture: Capture) -> Frame:
        """The given frame or the capture's, wider where visitors need room beside the object.

        Raises:
            UserError: nobody knows where visitors would stand.
        """
        frame = frame_of(capture) if self.frame is None else load_frame(self.frame)
        if self.visitors == "none":
            return frame
        if frame.background != "white":
            raise UserError(
                f"{self.path} shows no object on white, so nobody knows where visitors would stand; leave out "
                "--data.visitors, or take a capture in Blender's layout"
            )
        return frame if self.frame is not None else replace(frame, half=ROOM * frame.half)

    def _visited(self, client: int, photos: Sequence[Photo], seed: int) -> tuple[Occluded, ...]:
        """A client's photographs with its visitors; nothing of the object is nearer to the cameras than they are."""
        return occluded(photos, group_of(self.visitors, client, photos, GROUND, seed))


def own_photographs(scene: Scene, path: Path, name: str, frame: Frame, jitters: int) -> Client:
    """All training photographs of a capture as one owner's.

    Raises:
        UserError: no such capture, it has no training photographs, or it lies outside the frame.
    """
    capture = load_capture(path)
    check_frame(path, capture, frame)
    views = [view for view in capture.views if view.split == "train"]
    if not views:
        raise UserError(printable(f"{path} has no training photographs"))
    photos = tuple(load_photo(view, frame, view.scale_to(scene.size)) for view in views)
    signal = RaySignal(photos, jitters, frame.background == "white")
    return Client(name, (Task(signal, signal, name),))


def check_frame(path: Path, capture: Capture, frame: Frame) -> None:
    """Refuses a frame that most of the capture is not in: it belongs to another place or scale.

    Raises:
        UserError: the poses were normalised in another way than those that the frame was made for, fewer than half of
            the cameras look into it, or fewer than a tenth of the points of structure from motion lie in it.
    """
    import torch

    from fedfields.scenes.views import in_cube

    remedy = "use the poses and the scene.json of the same federation"
    if not torch.allclose(torch.tensor(capture.applied), torch.tensor(frame.applied), rtol=1e-4, atol=1e-6):
        raise _disagree(path, "its applied_transform or applied_scale is not that of the federation", _UNDO)
    poses = torch.stack([frame.pose(view.pose) for view in capture.views])
    axis = in_cube(poses[:, :, 3], -poses[:, :, 2])
    share = float((axis.far > axis.near).double().mean())
    if share < 0.5:
        raise _disagree(path, f"only {share:.0%} of the cameras look into the frame's cube", remedy)
    if capture.points is not None and len(capture.points) >= 8:
        inside = float((frame.points(capture.points).abs() <= 1).all(1).double().mean())
        if inside < 0.1:
            raise _disagree(path, f"only {inside:.0%} of its points lie in the frame's cube", remedy)


_UNDO = "nobody may normalise poses alone: process the photographs as the federation did"


def _disagree(path: Path, found: str, remedy: str) -> UserError:
    return UserError(printable(f"{path} and its frame disagree: {found}; {remedy}"))


def frame_notes(path: Path, capture: Capture, frame: Frame) -> tuple[str, ...]:
    """A line if the capture is so small in the frame that its scale is probably another."""
    if capture.points is None or len(capture.points) < 8:
        return ()
    low, high = (frame.points(capture.points).quantile(q, dim=0) for q in (0.01, 0.99))
    share = float((high - low).max()) / 2
    if share >= 0.05:
        return ()
    found = f"{path} fills only {share:.1%} of the frame's cube along its longest axis"
    return (printable(f"{found}: right for a small part of a large place, else its scale is another"),)


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """The first, the last, and others evenly between: at most ``most`` of them, all for 0."""
    if most == 0 or len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]
