"""``fedfields map``: one large map of many contributions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from fedfields.config import PLACES, nearest
from fedfields.connect import address_of, check_installed, visit_of
from fedfields.errors import UserError
from fedfields.flags import Flags, parse, split
from fedfields.mapping.align import Alignment
from fedfields.mapping.bake import bake
from fedfields.mapping.commits import undo
from fedfields.mapping.intake import Aligner, Note, Queue, Rules
from fedfields.mapping.merge import Mixing
from fedfields.mapping.packing import contribution_as_bytes
from fedfields.mapping.store import Map, MapSettings, create_map, open_map
from fedfields.mapping.upload import About, Upload, upload_as_bytes
from fedfields.report.text import plural, size
from fedfields.runtime.contribute import Training, as_local, cube_below, in_metres, reframed, through_floor, train_field
from fedfields.scenes.frame import Frame
from fedfields.scenes.monument import Monument
from fedfields.scenes.posed import AS_POSED
from fedfields.scenes.scene import Scene
from fedfields.scenes.town import Town
from fedfields.scenes.views import Photo, photos_of
from fedfields.store import read_file, writing
from fedfields.terminal import console, errors, said, steps_progress

if TYPE_CHECKING:
    from fedfields.runtime.join import Visit
    from fedfields.runtime.keys import OwnerKey

USAGE = """\
fedfields map: many small fields become one large map (Suzuki 2023); docs/map.md explains it

  fedfields map create MAP                  an empty map in a new folder
  fedfields map train MAP --data DIR --out FILE   a client: a field of its own photographs, for this map
  fedfields map add MAP FILE [FILE ...]     put what clients made into the map's queue
  fedfields map serve MAP                   align and merge what comes; --once ends when nothing is left,
                                            --owners DIR lets owners send it over the network
  fedfields map send HOST FILE [FILE ...]   send files there; each is answered for
  fedfields map join HOST --data DIR        train for the map there, and send
  fedfields map undo MAP NAME               as if this contribution had never come
  fedfields map show MAP                    what is in it, and what became of what came

fedfields render, export and view take a MAP as they take a RUN. Each verb explains itself with --help.
"""


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise UserError(f"there is no fedfields map '{verb}'; {nearest(verb, VERBS)}")
    return VERBS[verb](rest)


def _words(arguments: list[str], verb: str, wanted: str, least: int, most: int) -> tuple[list[str], Flags]:
    words, flags = split(arguments, ("--once",))
    if "--help" not in flags and not least <= len(words) <= most:
        raise UserError(f"fedfields map {verb} needs {wanted}, found {plural(len(words), 'word')}")
    return words, flags


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


def _create(arguments: list[str]) -> int:
    words, flags = _words(arguments, "create", "one MAP, a new folder", 1, 1)
    settings = parse(
        MapSettings, MapSettings(mixing=Mixing(density="log")), flags, "fedfields map create MAP", "An empty map."
    )
    store = create_map(Path(words[0]), settings)
    _say(f"{store.place.where}: an empty map with voxels of {settings.voxel:g} m")
    return 0


# --- train --------------------------------------------------------------------------------------------------


Place = tuple[str, tuple[Photo, ...], Frame]
"""A client's name and photographs, and its cube in metres."""


@dataclass(frozen=True)
class TrainFlags:
    """What a client trains on, and what it sends."""

    data: Scene | Monument | Town = field(default_factory=Scene)
    """The photographs: a capture in metres, or a made-up place (data:town)."""

    training: Training = field(default_factory=Training)
    """How the field is trained."""

    out: Path | None = None
    """File for what is to be sent; NAME.safetensors by default."""

    name: str = ""
    """What no other contribution is called; the folder of the photographs by default."""

    client: int = 0
    """Whose photographs, of a place that is shared out among several (--data.clients)."""

    send: str = "field"
    """Field: the server aligns and bakes it. Voxels: baked here, where the poses put it."""

    metres: float = 0.0
    """How far the positions may be off, along each axis; 0 for surveyed ones, which are not corrected."""

    degrees: float = 0.0
    """How far the orientation may be off, about each axis."""

    floor: float = math.nan
    """For photographs from the air: a height, in metres, below all ground that they show. The field's cube then stands
    on it, and pixels that may show what is beside the cube are not used."""

    margin: float = 20.0
    """With --floor: how many metres of --reach are not contributed. What is seen from one side only looks right from
    there, and would blur what others know better."""

    ceiling: float = math.inf
    """With --floor: a height, in metres, above all that they show. What the air above it holds need not be learned."""

    reach: float = 50.0
    """With --floor: metres that the cube is wider than where the cameras stand, on every side."""

    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        if self.send not in ("field", "voxels"):
            raise ValueError(f"send is {self.send!r}; it must be field or voxels")
        if min(self.metres, self.degrees, self.reach, self.margin) < 0:
            found = f"metres {self.metres}, degrees {self.degrees}, reach {self.reach}, margin {self.margin}"
            raise ValueError(f"{found}: none may be negative")
        if not (self.ceiling > self.floor or math.isinf(self.ceiling)):
            raise ValueError(f"ceiling is {self.ceiling:g} and floor {self.floor:g}; give a floor that is lower")
        if self.client < 0:
            raise ValueError(f"client is {self.client}; the first is 0")
        if self.send == "voxels" and (self.metres or self.degrees):
            raise ValueError(
                "voxels lie where the poses put them and cannot be corrected; send a field, or leave out --metres and "
                "--degrees"
            )


TrainT = TypeVar("TrainT", bound=TrainFlags)


def _train(arguments: list[str]) -> int:
    words, settings = _to_train(arguments, TrainFlags(), "train", "one MAP", "Train a field of your photographs.")
    store = open_map(words[0])
    out = _trained(settings, _photos(settings), About(store.settings.voxel, store.head))
    _say(f"fedfields map add {words[0]} {out}")
    return 0


def _to_train(arguments: list[str], settings: TrainT, verb: str, wanted: str, about: str) -> tuple[list[str], TrainT]:
    """The words of a line that trains, and its settings."""
    parts = [a for a in arguments if a.startswith("data:")]
    words, flags = _words([a for a in arguments if a not in parts], verb, wanted, 1, 1)
    for part in parts:
        if part[5:] not in PLACES:
            raise UserError(f"there is no data '{part[5:]}'; {nearest(part[5:], PLACES)}")
        settings = dataclasses.replace(settings, data=PLACES[part[5:]])
    return words, parse(type(settings), settings, flags, f"fedfields map {verb} {wanted.split()[-1]}", about)


def _trained(settings: TrainFlags, place: Place, about: About) -> Path:
    """Trains a field for a map, and writes what is to be sent."""
    (name, photos, frame), (voxel, base) = place, about
    with steps_progress("train") as advance:
        params, own = train_field(
            name, photos, frame, settings.training, settings.seed, lambda done, total: advance("train", done, total)
        )
    margin = 0.0 if math.isnan(settings.floor) else settings.margin
    local = as_local(name, settings.training.field, params, photos, frame, voxel, own, margin)
    pose = np.eye(3, 4)
    if settings.send == "voxels":
        content = contribution_as_bytes(bake(local, pose, voxel, base), "float16")
    else:
        error = (settings.metres, settings.degrees)
        content = upload_as_bytes(Upload(local, pose, error, in_metres(photos, frame), base))
    out = settings.out or Path(f"{name.replace('/', '-')}.safetensors")
    with writing(out) as temporary:
        temporary.write_bytes(content)
    _say(f"{out}: {name}, {size(len(content))} of {plural(len(photos), 'photograph')}")
    return out


def _photos(settings: TrainFlags) -> Place:
    """The client's name and photographs, and its cube in metres."""
    place = settings.data.load(1, settings.seed)
    if settings.client >= len(place.clients):
        raise UserError(
            f"--client is {settings.client}; the place has {plural(len(place.clients), 'client')}, from 0 on"
        )
    if place.frame.applied != AS_POSED:
        raise UserError("its poses were moved or scaled (applied_transform), so that lengths are no metres; undo that")
    client = place.clients[settings.client]
    path: Path | None = getattr(settings.data, "path", None)
    alone = path.resolve().name if path and len(place.clients) == 1 else ""
    name = settings.name or alone or client.name
    photos, frame = tuple(photos_of([client])), place.frame
    if math.isnan(settings.floor):
        return name, photos, frame
    poses = in_metres(photos, frame)
    cube = cube_below(poses, settings.floor, settings.reach)
    photos = through_floor(reframed(photos, poses, cube), cube.height(settings.ceiling))
    if not photos:
        raise UserError(f"no pixel shows ground above --floor {settings.floor:g} m in the cube; raise --reach")
    return name, photos, cube


# --- add, serve ---------------------------------------------------------------------------------------------


def _add(arguments: list[str]) -> int:
    words, flags = _words(arguments, "add", "a MAP and at least one FILE", 2, 10**6)
    if flags:
        raise UserError("fedfields map add MAP FILE [FILE ...] has no settings; fedfields map serve has some")
    queue = Queue(open_map(words[0]))
    for word in words[1:]:
        try:
            content = read_file(Path(word), 2**30)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{word} cannot be read ({why}); name what fedfields map train wrote") from error
        digest = queue.put(content)
        _say(f"{word}: waits as {digest[:12]}, {size(len(content))}")
    return 0


@dataclass(frozen=True)
class ServeFlags:
    """How contributions are settled."""

    once: bool = False
    """End when nothing is left that can be settled."""

    workers: int = 1
    """Processes that work at the same time."""

    align: bool = True
    """Correct the poses of fields that are not surveyed; otherwise all are believed."""

    wait: float = 1.0
    """Seconds between looks at an empty queue."""

    rules: Rules = field(default_factory=Rules)
    """What is taken."""

    alignment: Alignment = field(default_factory=Alignment)
    """How poses are corrected."""

    seed: int = 0
    """Seed of the alignment."""

    owners: Path | None = None
    """Folder with the .pub file of every owner who may send contributions over the network; without it, nobody may."""

    keys: Path = Path()
    """With --owners: folder with server.crt and server.key, made by fedfields keys server."""

    host: str = "127.0.0.1"
    """With --owners: address to listen on; this machine only, unless told otherwise; 0.0.0.0 for all."""

    port: int = 8443
    """With --owners: port to listen on."""

    plain: bool = False
    """With --owners: speak plain HTTP; only on this machine, to try things out."""

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.wait < math.inf:
            raise ValueError(f"workers is {self.workers} and wait {self.wait}; at least 1 and 0 s are needed")
        if self.once and self.owners is not None:
            raise ValueError("once ends when nothing is left, owners bring more: leave out --once or --owners")
        if self.owners is None and (self.keys, self.host, self.port, self.plain) != (Path(), "127.0.0.1", 8443, False):
            raise ValueError("keys, host, port and plain are for owners elsewhere; name their .pub files by --owners")


def _serve(arguments: list[str]) -> int:
    words, flags = _words(arguments, "serve", "one MAP", 1, 1)
    settings = parse(ServeFlags, ServeFlags(), flags, "fedfields map serve MAP", "Align and merge what comes.")
    with _door(Queue(open_map(words[0])), settings):
        return _settle(words[0], settings)


def _door(queue: Queue, settings: ServeFlags) -> contextlib.AbstractContextManager[object]:
    """Where owners elsewhere come in, if any may."""
    if settings.owners is None:
        return contextlib.nullcontext()
    check_installed("map serve --owners")
    from fedfields.runtime.collect import collecting
    from fedfields.runtime.keys import load_roster

    address = address_of(settings.host, settings.port, settings.keys, settings.plain)
    return collecting(queue, load_roster(settings.owners), address, said)


def _settle(where: str, settings: ServeFlags) -> int:
    """Settles what comes, in this process or in several."""
    if settings.workers == 1:
        return _work(where, settings)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_worker, args=(where, settings)) for _ in range(settings.workers)]
    for worker in workers:
        worker.start()
    with contextlib.suppress(KeyboardInterrupt):
        for worker in workers:
            worker.join()
    for worker in workers:  # After Ctrl-C they end what they are at, as this one would.
        worker.join()
    return 0 if all(worker.exitcode == 0 for worker in workers) else 2


def _worker(where: str, settings: ServeFlags) -> None:
    """One of several processes."""
    try:
        _work(where, settings)
    except UserError as error:
        errors.print(f"fedfields: {error}", soft_wrap=True, markup=False)
        raise SystemExit(2) from error


def _work(where: str, settings: ServeFlags) -> int:
    """Settles what comes, until Ctrl-C or, if told so, nothing is left."""
    queue = Queue(open_map(where))
    find = Aligner(settings.alignment, settings.seed) if settings.align else None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            queue.work(settings.rules, find, lambda note: _say(_told(note)))
            if settings.once:
                break
            time.sleep(settings.wait)
    return 0


def _told(note: Note) -> str:
    """A note as one line."""
    if note.state == "merged":
        return f"{note.name}: merged, version {note.version} of the map, {note.seconds:.1f} s"
    return f"{note.name or note.digest[:12]}: {note.state}{': ' if note.why else ''}{note.why}"


# --- send, join -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """Who you are, and which server you trust."""

    key: Path | None = None
    """Your .key file, made by fedfields keys owner."""

    ca: Path = Path("ca.crt")
    """The certificate file that whoever runs the server gave you."""

    folder: Path | None = None
    """Folder for sent.jsonl, which lists what left this machine; fedfields-NAME here by default."""

    patience: float = 600.0
    """Seconds for which an unreachable server is tried again."""

    plain: bool = False
    """Speak plain HTTP; only on this machine, to try things out."""


@dataclass(frozen=True)
class JoinFlags(TrainFlags):
    """What a client trains on, what it sends, and where to."""

    server: Reach = field(default_factory=Reach)
    """Who you are, and which server you trust."""


class Server(NamedTuple):
    """A map's server as an owner reaches it."""

    visit: Visit
    key: OwnerKey
    folder: Path


def _server(word: str, reach: Reach, verb: str) -> Server:
    check_installed(f"map {verb}")
    from fedfields.runtime.keys import load_owner

    if reach.key is None:
        raise UserError(
            f"fedfields map {verb} needs --key NAME.key, your key; make one with: fedfields keys owner NAME"
        )
    key = load_owner(reach.key)
    visit = visit_of(word, reach.ca, reach.patience, reach.plain)
    return Server(visit, key, reach.folder or Path(f"fedfields-{key.name}"))


def _send(arguments: list[str]) -> int:
    words, flags = _words(arguments, "send", "a HOST and at least one FILE", 2, 1000)
    about = "Send what fedfields map train wrote to a map's server, and hear what becomes of it."
    reach = parse(Reach, Reach(), flags, "fedfields map send HOST FILE [FILE ...]", about)
    return _sent(_server(words[0], reach, "send"), [Path(word) for word in words[1:]])


def _join(arguments: list[str]) -> int:
    about = "Train a field of your photographs for a map elsewhere, and send it. The photographs stay here."
    words, settings = _to_train(arguments, JoinFlags(), "join", "one HOST", about)
    server = _server(words[0], settings.server, "join")
    from fedfields.runtime.send import ask_about

    name, photos, frame = _photos(settings)
    owner = server.key.name
    name = name if name.split("/")[0] == owner else f"{owner}/{name}"
    return _sent(server, [_trained(settings, (name, photos, frame), ask_about(*server, said))])


def _sent(server: Server, files: list[Path]) -> int:
    """Sends files; 1 if one was refused."""
    from fedfields.runtime.send import outgoing, send

    states = send(server.visit, server.key, outgoing(files, server.key.name), server.folder, said)
    return int(not set(states.values()) <= {"merged", "waiting"})


# --- undo, show ---------------------------------------------------------------------------------------------


def _undo(arguments: list[str]) -> int:
    words, flags = _words(arguments, "undo", "a MAP and a NAME", 2, 2)
    if flags:
        raise UserError("fedfields map undo MAP NAME has no settings")
    _say(f"{words[1]}: undone, version {undo(open_map(words[0]), words[1])} of the map")
    return 0


def _show(arguments: list[str]) -> int:
    words, flags = _words(arguments, "show", "one MAP", 1, 1)
    if flags:
        raise UserError("fedfields map show MAP has no settings")
    store = open_map(words[0])
    for line in _about(store):
        _say(line)
    if store.place.path is not None:
        notes = [note for note in Queue(store).states().values() if note.state != "merged"]
        for note in notes:
            _say(_told(note))
    return 0


def _about(store: Map) -> list[str]:
    """What is in a map, and who brought it lately."""
    settings, tiles = store.settings, list(store.view().tiles())
    lines = [f"{store.place.where}: version {store.head}, voxels of {settings.voxel:g} m in {settings.precision}"]
    if tiles:
        low, high = np.min(tiles, 0) * settings.tile, (np.max(tiles, 0) + 1) * settings.tile
        box = " x ".join(f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True))
        lines.append(f"{plural(len(tiles), 'tile')} of {settings.tile:g} m, within {box} m")
    for entry in store.history():
        views = f", {plural(entry.about['views'], 'photograph')}" if entry.about.get("views") else ""
        what = "merged" if entry.kind == "merge" else f"version {entry.of} undone"
        lines.append(f"version {entry.version}: {entry.name} {what}, {plural(len(entry.tiles), 'tile')}{views}")
    return lines


VERBS: dict[str, Callable[[list[str]], int]] = {
    "create": _create,
    "train": _train,
    "add": _add,
    "serve": _serve,
    "send": _send,
    "join": _join,
    "undo": _undo,
    "show": _show,
}
