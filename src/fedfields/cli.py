"""The command line: ``fedfields photos | check | run | tune | adapt | audit | report | render | export | view | demo``,
and ``keys | serve | join`` for runs between machines, and ``map`` for one large map (`fedfields.cli_map`).

Settings are the fields of the experiment's dataclasses. Two habits make them easy to type: a part is chosen by
``axis:name`` anywhere on the line (``strategy:fednova privacy:noise``), and a flag may leave out the beginning of
its name as long as the rest is unique (``--gamma 0.5`` for ``--objective.gamma``).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedfields.connect import address_of, check_installed, host_and_port, visit_of
from fedfields.errors import UserError
from fedfields.flags import Flags
from fedfields.flags import parse as _parse
from fedfields.flags import parse_some as _parse_some
from fedfields.flags import split as _split

OutputT = TypeVar("OutputT", bound="Output")

USAGE = """\
fedfields: federated learning of neural fields

  fedfields run PRESET [--data DIR] [axis:name ...] [--SETTING VALUE ...]   train, evaluate, report
  fedfields tune PRESET [...] --trials N   search for its settings, on validation clients alone
  fedfields adapt RUN FILE        fit the run's initialisation to a picture, clip, object or rows of your own
  fedfields audit RUN             attack the uploads of a run with everything we know
  fedfields report RUN [RUN ...]  one page that shows a run, or compares several
  fedfields render RUN            a film of the place that a run learned (colour, depth)
  fedfields export RUN            the same as a mesh, points or a grid
  fedfields view RUN              walk around it in the browser
  fedfields photos DIR            cameras for a folder of your own photos, to run on
  fedfields check DIR             what would be used of a folder, and what is wrong with the rest
  fedfields keys owner NAME       keys for a run between machines (keys server: a certificate)
  fedfields serve EXPERIMENT      run with real owners, who join from their own machines
  fedfields join HOST --data DIR  take part in such a run; your data stays here
  fedfields map VERB MAP          one large map of many contributions: create, train, join, serve, undo, show
  fedfields presets               the presets and every part that has a name
  fedfields demo [images]         a place with people in front; or photographs, four methods (a few minutes)

Each command explains itself with --help.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 2 for something the user can put right, or 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _complain(text: str) -> None:
    print(f"fedfields: {' '.join(text.split())}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] in ("--version", "version"):
        from importlib.metadata import version

        print(version("fedfields"))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        from fedfields.config import nearest

        raise UserError(f"there is no command '{name}'; {nearest(name, COMMANDS)}")
    return COMMANDS[name](rest)


# --- run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    out: Path | None = None
    """Folder of the run; runs/PRESET by default."""

    resume: bool = False
    """Go on from the newest checkpoint in --out; ends bit-equal to an unbroken run."""

    report: bool = True
    """Write report.html at the end."""


def _run(arguments: list[str]) -> int:
    output, experiment, name = experiment_of(arguments, Output(), "run", _RUN_HELP)
    from fedfields.runtime.run import default_folder

    return _train(experiment, output.out or default_folder(name), name, output)


def words_and_flags(arguments: list[str]) -> tuple[list[str], Flags, bool]:
    """What a line says: preset and parts, settings, and whether some of it is from a file.

    A word that ends in .toml is a file with such a line: preset, parts and settings; what the line says comes after it.
    """
    words, flags = _split(arguments)
    files = [word for word in words if word.endswith(".toml")]
    if files:
        more, settings = _from_toml(files)
        words, flags = [*more, *(word for word in words if word not in files)], settings | flags
    return words, flags, bool(files)


def experiment_of(arguments: list[str], default: OutputT, command: str, about: str) -> tuple[OutputT, Any, str]:
    """The command's own settings, the experiment that a line describes, and its preset's name."""
    from fedfields.config import AXES, PRESETS, choose, preset

    words, flags, files = words_and_flags(arguments)
    names = [word for word in words if ":" not in word]
    if not names and not flags.keys() & {"--resume", "--help"}:
        raise UserError(f"which preset? choose from {', '.join(PRESETS)} (fedfields presets explains them)")
    if len(names) > 1:
        raise UserError(f"one preset at a time, found {' and '.join(names)}; choose parts as axis:name")
    output, rest = _parse_some(type(default), default, flags)
    for axis in AXES:
        if f"--{axis}" in rest and axis != "data":
            raise UserError(
                f"--{axis} is no setting but a part; choose it as {axis}:NAME, one of {', '.join(AXES[axis])}"
            )
    name = names[0] if names else "maml"
    if output.resume:
        from fedfields.runtime.run import load_experiment

        if output.out is None:
            raise UserError("--resume needs --out RUN, the folder of the run to go on with")
        experiment, name = load_experiment(output.out), _preset_of(output.out)
    else:
        experiment = preset(name)
    for word in words:
        axis, colon, member = word.partition(":")
        if colon and not (output.resume and files):
            experiment = choose(experiment, axis, member)
    if "--data" in rest and not hasattr(experiment.data, "path"):
        raise UserError(
            "this preset runs on built-in data; for yours say data:capture --data DIR, or data:samples for rows"
        )
    return output, _parse(type(experiment), experiment, rest, f"fedfields {command} {name}", about), name


def _from_toml(files: list[str]) -> tuple[list[str], Flags]:
    """Words and flags of an experiment's file: ``preset``, ``parts``, and settings, nested or with dots.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    import tomllib

    if len(files) > 1:
        raise UserError(f"one experiment at a time, found {' and '.join(files)}")
    path = Path(files[0])
    try:
        with path.open("rb") as file:
            text = file.read(1 << 20)
        found = tomllib.loads(text.decode())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML file: {error}") from error
    name, parts = found.pop("preset", None), found.pop("parts", [])
    if not isinstance(name, str) or not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UserError(f'{path} needs a line preset = "NAME", and may have parts = ["axis:name", ...]')
    return [name, *parts], dict(_toml_flags(found, path))


def _toml_flags(table: dict[str, Any], path: Path, prefix: str = "--") -> Iterator[tuple[str, str | None]]:
    for key, value in table.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, dict):
            yield from _toml_flags(value, path, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            yield name, str(value).lower() if isinstance(value, bool) else str(value)
        else:
            raise UserError(f"{path}: {key} is {type(value).__name__}; settings are numbers, texts, true or false")


_RUN_HELP = """Train a preset where the data lies, judge quality and privacy, write a run folder with a report.
Parts are chosen as axis:name (see fedfields presets), e.g. fedfields run fedmenf strategy:fednova privacy:noise.
Flags may be shortened to their unique ending: --gamma, --inner.lr, --local.lr, --data DIR (for --data.path).
--out DIR, --resume and --no-report say where the result goes."""


def _preset_of(folder: Path) -> str:
    from fedfields.store import read_json

    return str(read_json(folder / "experiment.json").get("preset", ""))


def _train(experiment: Any, folder: Path, name: str, output: Output) -> int:
    from fedfields.runtime.run import Interrupted, run
    from fedfields.terminal import console, progress, show_summary, warn

    try:
        with progress(name, experiment.rounds) as (on_round, advance):
            summary = run(
                experiment, folder, name=name, resume=output.resume, on_round=on_round, warn=warn, advance=advance
            )
    except Interrupted as stop:
        _complain(str(stop))
        return 130
    show_summary({name: summary})
    if output.report:
        from fedfields.report import write_report

        console.print(f"report: {write_report([folder], folder / 'report.html')}", soft_wrap=True)
    return 0


# --- adapt, audit, report, check, presets, demo -------------------------------------------------------------


@dataclass(frozen=True)
class AdaptFlags:
    """What beside the adaptation's settings can be said."""

    out: Path | None = None
    """Folder for the result; RUN/adapted/NAME by default."""

    onnx: bool = True
    """Write the adapted model as ONNX, too: fields of pictures and clips, and models of samples."""


def _adapt(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if "--help" not in flags and len(words) != 2:
        raise UserError(
            f"fedfields adapt needs RUN and FILE (a picture, clip, object, or rows), found {len(words)} of them"
        )
    from fedfields.adaptation import Adaptation

    output, rest = _parse_some(AdaptFlags, AdaptFlags(), flags)
    base = Adaptation()
    if "--help" not in flags:
        from fedfields.runtime.run import load_experiment

        base = load_experiment(Path(words[0])).adaptation
    about = (
        "Fit the run's initialisation to a picture, clip or object of your own, or to rows of your own (.npz, .csv,\n"
        ".txt); compare it with a random start; write the adapted model as safetensors and, without --no-onnx, as ONNX."
    )
    settings = _parse(Adaptation, base, rest, "fedfields adapt RUN FILE", about)

    from fedfields.runtime.personal import personalise
    from fedfields.terminal import show_adaptation

    show_adaptation(personalise(Path(words[0]), Path(words[1]), settings, output.out, onnx=output.onnx))
    return 0


def _audit(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if "--help" not in flags and len(words) != 1:
        raise UserError(f"fedfields audit needs one RUN, found {len(words)}")
    from fedfields.effort import AuditSettings

    about = "Attack the uploads that a run kept (rounds with an evaluation) and write audit.json, pictures, report."
    settings = _parse(AuditSettings, AuditSettings(), flags, "fedfields audit RUN", about)

    from fedfields.report import write_report
    from fedfields.runtime.audit_run import audit_run
    from fedfields.terminal import console, show_audit, steps_progress

    folder = Path(words[0])
    with steps_progress("audit") as advance:
        result = audit_run(folder, settings, advance)
    show_audit(result)
    console.print(f"report: {write_report([folder], folder / 'report.html')}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class RenderFlags:
    """What is filmed, and how."""

    path: str = "orbit"
    """The way: orbit, spiral, top (one picture from above), or a JSON file with camera poses (frames with a
    transform_matrix, as transforms.json)."""

    out: Path | None = None
    """An .mp4 file or a folder for pictures; RUN/orbit.mp4 (or the path's name) by default, of top RUN/top.png."""

    frames: int = 60
    """Frames of an orbit or a spiral."""

    size: int = 200
    """Pixels along an edge."""

    fps: int = 24
    """Frames in a second."""

    depth: bool = False
    """Show nearness beside the colour."""

    weights: Path | None = None
    """Other weights than the run's: the field.safetensors that fedfields adapt made for an object."""


def _render(arguments: list[str]) -> int:
    run, flags = _one_run(arguments, "render", "--depth")
    about = "Film the place that a run learned, or a map."
    settings = _parse(RenderFlags, RenderFlags(), flags, "fedfields render RUN", about)
    for name in ("frames", "size", "fps"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} is {getattr(settings, name)}; it must be at least 1")
    from fedfields.runtime.products import film, load_place
    from fedfields.terminal import console, steps_progress

    trained, ending = load_place(run, settings.weights), "png" if settings.path == "top" else "mp4"
    folder = settings.weights.parent if settings.weights else run if isinstance(run, Path) else Path()
    out = settings.out or folder / f"{Path(settings.path).stem}.{ending}"
    with steps_progress("render") as advance:
        made = film(
            trained,
            settings.path,
            out,
            frames=settings.frames,
            size=settings.size,
            fps=settings.fps,
            depth=settings.depth,
            advance=advance,
        )
    console.print(str(made), soft_wrap=True, markup=False)
    return 0


@dataclass(frozen=True)
class ExportFlags:
    """What is written; at least one of mesh, points and grid."""

    mesh: Path | None = None
    """A .ply file for the surface, coloured."""

    points: Path | None = None
    """A .ply file for all dense voxels, coloured."""

    grid: Path | None = None
    """A .npz file for density and colour on a regular grid."""

    resolution: int = 128
    """Points of the grid along an axis; a map has its own voxels."""

    level: float | None = None
    """Density of the surface, per world unit; by default where a voxel lets half the light through."""

    weights: Path | None = None
    """Other weights than the run's: the field.safetensors that fedfields adapt made for an object."""


def _export(arguments: list[str]) -> int:
    run, flags = _one_run(arguments, "export")
    about = "Write the place that a run learned, or a map, as a mesh, points or a grid, in world coordinates."
    settings = _parse(ExportFlags, ExportFlags(), flags, "fedfields export RUN", about)
    if settings.mesh is settings.points is settings.grid is None:
        raise UserError("nothing to write; say --mesh x.ply, --points x.ply or --grid x.npz")
    if settings.resolution < 2:
        raise UserError(f"--resolution is {settings.resolution}; it must be at least 2")
    from fedfields.runtime import products
    from fedfields.terminal import console, steps_progress

    trained = products.load_place(run, settings.weights)
    if isinstance(trained, products.Mapped) and settings.points:
        count = products.save_voxels(trained, settings.points, settings.level)
        console.print(f"{settings.points}: {count:,} points", soft_wrap=True, markup=False)
        settings = dataclasses.replace(settings, points=None)
        if settings.mesh is settings.grid is None:
            return 0
    with steps_progress("export") as advance:
        grid = products.volume(trained, settings.resolution, advance)
    level = products.opaque_density(grid) if settings.level is None else settings.level
    if settings.mesh:
        count = products.save_mesh(grid, settings.mesh, level)
        console.print(f"{settings.mesh}: {count:,} triangles", soft_wrap=True, markup=False)
    if settings.points:
        count = products.save_points(grid, settings.points, level)
        console.print(f"{settings.points}: {count:,} points", soft_wrap=True, markup=False)
    if settings.grid:
        products.save_grid(grid, settings.grid)
        console.print(str(settings.grid), soft_wrap=True, markup=False)
    return 0


@dataclass(frozen=True)
class ViewFlags:
    """Where the page is served, and how fine."""

    host: str = "127.0.0.1"
    """Address to bind: this machine only, unless told otherwise."""

    port: int = 8080
    """Port of the page."""

    size: int = 256
    """Pixels along the shorter side of the finest picture."""


def _view(arguments: list[str]) -> int:
    run, flags = _one_run(arguments, "view")
    about = "Walk around the place that a run learned, or a map, in the browser. Ctrl-C ends it."
    settings = _parse(ViewFlags, ViewFlags(), flags, "fedfields view RUN", about)
    import threading

    from fedfields.terminal import console
    from fedfields.viewer import open_viewer

    server = open_viewer(run, host=settings.host, port=settings.port, size=settings.size)
    try:
        console.print(f"open http://{settings.host}:{settings.port} (Ctrl-C ends it)", soft_wrap=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()
    return 0


def _one_run(arguments: list[str], command: str, *switches: str) -> tuple[str | Path, Flags]:
    """The folder of a run or a map, or the address of a map, and the flags."""
    words, flags = _split(arguments, switches)
    if "--help" not in flags and len(words) != 1:
        raise UserError(f"fedfields {command} needs one RUN or MAP, found {len(words)}")
    word = words[0] if words else "."
    return word if "://" in word else Path(word), flags


@dataclass(frozen=True)
class ReportFlags:
    """Where the page goes."""

    out: Path | None = None
    """File of the page; RUN/report.html for one run, report.html here for several."""


def _report(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    settings = _parse(ReportFlags, ReportFlags(), flags, "fedfields report RUN [RUN ...]", "One page about runs.")
    if not words:
        raise UserError("fedfields report needs at least one RUN, a folder made by fedfields run")
    from fedfields.report import write_report

    runs = [Path(word) for word in words]
    out = settings.out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    print(write_report(runs, out))
    return 0


@dataclass(frozen=True)
class PhotosFlags:
    """Where the capture goes."""

    out: Path | None = None
    """Folder of the capture; DIR-posed by default."""


def _photos(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if "--help" not in flags and len(words) != 1:
        raise UserError(f"fedfields photos needs one DIR, found {len(words)}")
    from fedfields.scenes.photos import PhotoSettings, place_photos

    output, rest = _parse_some(PhotosFlags, PhotosFlags(), flags)
    settings = _parse(PhotoSettings, PhotoSettings(), rest, "fedfields photos DIR", _PHOTOS_HELP)
    from fedfields.terminal import show_placement, steps_progress

    folder = Path(words[0])
    out = output.out or folder.resolve().with_name(f"{folder.resolve().name}-posed")
    with steps_progress("photos") as advance:
        placement = place_photos(folder, out, settings, advance)
    show_placement(placement)
    return 0


_PHOTOS_HELP = """Estimate where each photo was taken (structure from motion, on this machine) and write a capture to
run on: upright copies without EXIF or place, poses for COLMAP and nerfstudio. --out DIR says where; DIR-posed by
default. Needs pip install "fedfields[photos]"."""


@dataclass(frozen=True)
class CheckFlags:
    """What a capture of a place is to agree with."""

    frame: Path | None = None
    """The scene.json that a federation has published, for captures of a place."""


def _check(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    from fedfields.scenes.data import Data

    path = Path(words[0]) if words else None
    if "--help" not in flags and len(words) != 1:
        raise UserError(f"fedfields check needs one DIR, found {len(words)}")
    about = (
        "What of a folder would be used, who would own it, and what is wrong with the rest.\n"
        "--frame scene.json asks whether a capture of a place agrees with the frame of a federation."
    )
    base = dataclasses.replace(Data(), path=path)
    chosen, rest = _parse_some(CheckFlags, CheckFlags(), flags)
    data = _parse(Data, base, rest, "fedfields check DIR", about)
    from fedfields.scenes.check import check, check_objects, check_place, is_place, is_set_of_objects
    from fedfields.terminal import console, steps_progress

    if is_set_of_objects(data) and not is_place(data):
        with steps_progress("check") as advance:
            return 1 if check_objects(Path(words[0]), console, advance) else 0
    if is_place(data):
        with steps_progress("check") as advance:
            problems = check_place(Path(words[0]), console, advance, chosen.frame)
        return 1 if problems else 0
    if chosen.frame is not None:
        raise UserError(f"{words[0]} is no capture of a place; --frame is for those")
    return 1 if check(data, console) else 0


def _presets(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if words or flags.keys() - {"--help"}:
        raise UserError("fedfields presets takes no arguments")
    from fedfields.terminal import show_presets

    show_presets()
    return 0


@dataclass(frozen=True)
class DemoFlags:
    """Where the demonstration goes."""

    out: Path = Path("runs/demo")
    """Folder for its runs; what an earlier demonstration left there is replaced."""

    seed: int = 0
    """Seed of everything random."""


def _demo(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if words not in ([], ["images"]):
        raise UserError(
            f"there are two demonstrations: without a name that of a place, and 'images'; found {' '.join(words)}"
        )
    settings = _parse(DemoFlags, DemoFlags(), flags, "fedfields demo [images]", _DEMO_HELP)
    from fedfields import demo
    from fedfields.terminal import console

    if words:
        console.print(
            "Every photograph that scikit-image ships is one client; some clients are never seen in training."
        )
        return demo.demo(demo.images(settings.seed), settings.out)
    console.print(
        "Eight visitors photograph a temple, each with other people in front. They share the temple, not the people."
    )
    return demo.demo(demo.place(settings.seed), settings.out)


_DEMO_HELP = """Two methods on a place that people stand in front of (DecentNeRF, and FedNeRF beside it), or with images
four methods on the photographs inside scikit-image: a table, and a report to open."""


# --- keys, serve, join --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeysFlags:
    """Where keys go, and what the server's certificate is for."""

    out: Path = Path()
    """Folder for the files; here by default."""

    host: str = ""
    """Names and addresses by which owners reach the server, with commas between them; for keys server."""


def _keys(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    settings = _parse(KeysFlags, KeysFlags(), flags, "fedfields keys owner NAME | fedfields keys server", _KEYS_HELP)
    if words[:1] not in (["owner"], ["server"]) or len(words) != (2 if words[0] == "owner" else 1):
        raise UserError("say fedfields keys owner NAME, or fedfields keys server --host NAME[,NAME ...]")
    from fedfields.runtime import keys
    from fedfields.terminal import console

    if words[0] == "owner":
        key, public = keys.make_owner(words[1], settings.out)
        console.print(f"{key}: keep it to yourself, it is you", soft_wrap=True, markup=False)
        console.print(f"{public}: give it to whoever runs the server", soft_wrap=True, markup=False)
        return 0
    hosts = [host.strip() for host in settings.host.split(",") if host.strip()]
    ca, certificate, key = keys.make_server(hosts, settings.out)
    console.print(f"{ca}: give it to every owner", soft_wrap=True, markup=False)
    console.print(f"{certificate}, {key}: for fedfields serve --keys {settings.out}", soft_wrap=True, markup=False)
    return 0


_KEYS_HELP = """Keys for a run between machines.
fedfields keys owner NAME makes NAME.key, which stays with you, and NAME.pub, which the server's side needs.
fedfields keys server --host museum.example.org makes the server's certificate, and ca.crt for the owners."""


@dataclass(frozen=True)
class ServeFlags(Output):
    """Where the result goes, and how the owners get in."""

    owners: Path = Path("owners")
    """Folder with the .pub file of every owner; nobody else is let in."""

    keys: Path = Path()
    """Folder with server.crt and server.key, made by fedfields keys server."""

    host: str = "127.0.0.1"
    """Address to listen on: this machine only, unless told otherwise; 0.0.0.0 for all."""

    port: int = 8443
    """Port to listen on."""

    deadline: float = 600.0
    """Seconds that each step of a round waits for replies, and a round for enough owners to be there."""

    least: int = 1
    """Fewest owners with which a round begins."""

    plain: bool = False
    """Speak plain HTTP; only on this machine, to try things out."""


def _serve(arguments: list[str]) -> int:
    settings, experiment, name = experiment_of(arguments, ServeFlags(), "serve", _SERVE_HELP)
    check_installed("serve")
    from fedfields.runtime.flower import Rules
    from fedfields.runtime.keys import load_roster
    from fedfields.runtime.run import Interrupted, default_folder
    from fedfields.runtime.serve import Serving, serve
    from fedfields.terminal import console, serving, show_served, warn

    folder = settings.out or default_folder(name)
    address = address_of(settings.host, settings.port, settings.keys, settings.plain)
    with serving(name) as (on_round, tell):
        hall = Serving(load_roster(settings.owners), address, Rules(settings.deadline, settings.least), tell)
        try:
            summary = serve(experiment, folder, hall, name=name, resume=settings.resume, on_round=on_round, warn=warn)
        except Interrupted:
            _complain(f"interrupted; go on with: fedfields serve --resume --out {folder} and the same flags")
            return 130
    show_served(summary)
    console.print(f"{folder / 'model.safetensors'}: the field; owners have it, too", soft_wrap=True, markup=False)
    if settings.report:
        from fedfields.report import write_report

        console.print(f"report: {write_report([folder], folder / 'report.html')}", soft_wrap=True)
    return 0


_SERVE_HELP = """Run an experiment with real owners, who use fedfields join. EXPERIMENT is a preset or a .toml file.
--owners, --keys, --host, --port, --deadline and --least say who may come and how; the rest is as for fedfields run."""


@dataclass(frozen=True)
class JoinFlags:
    """Who you are, where your data is, and what you insist on."""

    data: Path | None = None
    """Folder with your pictures, clips, objects or capture; none of them leaves this machine."""

    key: Path | None = None
    """Your .key file, made by fedfields keys owner."""

    ca: Path = Path("ca.crt")
    """The certificate file that whoever runs the server gave you."""

    out: Path | None = None
    """Folder for memory, log and result; fedfields-NAME here by default."""

    require: str = ""
    """Protections without which you send nothing, with commas between them, such as sec-agg."""

    owners: Path | None = None
    """Folder with the .pub files of the others, got from them and not from the server: secure sums are then made with
    them only, and a server cannot make up the other owners."""

    patience: float = 600.0
    """Seconds for which an unreachable server is tried again."""

    plain: bool = False
    """Speak plain HTTP; only on this machine, to try things out."""


def _join(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    settings = _parse(JoinFlags, JoinFlags(), flags, "fedfields join HOST", _JOIN_HELP)
    if len(words) != 1:
        raise UserError(f"fedfields join needs one HOST or HOST:PORT, found {len(words)}")
    if settings.data is None or settings.key is None:
        raise UserError("fedfields join needs --data DIR, your data, and --key NAME.key, your key")
    check_installed("join")
    from fedfields.config import PRIVACY, nearest
    from fedfields.runtime.join import join
    from fedfields.runtime.keys import load_owner, load_roster
    from fedfields.runtime.owner import Owner, Policy
    from fedfields.terminal import busy, console, said

    require = tuple(name.strip() for name in settings.require.split(",") if name.strip())
    for name in require:
        if name not in PRIVACY:
            raise UserError(f"there is no protection '{name}'; {nearest(name, PRIVACY)}")
    host_and_port(words[0])
    if not settings.data.exists():
        raise UserError(f"{settings.data} does not exist; --data names the folder with your data")
    visit = visit_of(words[0], settings.ca, settings.patience, settings.plain)
    key = load_owner(settings.key)
    folder = settings.out or Path(f"fedfields-{key.name}")
    policy = Policy(require, None if settings.owners is None else load_roster(settings.owners))
    owner = Owner(settings.data, key, folder, policy, said)
    for line in policy.said(key.name, settings.data, folder):
        said(line)
    join(visit, owner, key, folder, said, busy)
    console.print(f"the result is in {folder}", soft_wrap=True, markup=False)
    return 0


_JOIN_HELP = """Take part in a run: your machine trains on your data when the server asks, and sends numbers only.
What left is shown here and kept in sent.jsonl. Ctrl-C leaves; the same command comes back."""


def _map(arguments: list[str]) -> int:
    from fedfields.cli_map import main

    return main(arguments)


def _tune(arguments: list[str]) -> int:
    from fedfields.cli_tune import main

    return main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "adapt": _adapt,
    "audit": _audit,
    "report": _report,
    "render": _render,
    "export": _export,
    "view": _view,
    "photos": _photos,
    "check": _check,
    "keys": _keys,
    "serve": _serve,
    "join": _join,
    "map": _map,
    "tune": _tune,
    "presets": _presets,
    "demo": _demo,
}
