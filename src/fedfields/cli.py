"""The command line: ``fedfields photos | check | run | adapt | audit | report | render | export | view | demo``.

Settings are the fields of the experiment's dataclasses. Two habits make them easy to type: a part is chosen by
``axis:name`` anywhere on the line (``strategy:fednova privacy:noise``), and a flag may leave out the beginning of
its name as long as the rest is unique (``--gamma 0.5`` for ``--objective.gamma``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from fedfields.errors import UserError

T = TypeVar("T")

USAGE = """\
fedfields: federated learning of neural fields

  fedfields run PRESET [--data DIR] [axis:name ...] [--SETTING VALUE ...]   train, evaluate, report
  fedfields adapt RUN SIGNAL      fit the run's initialisation to a picture, clip or object of your own
  fedfields audit RUN             attack the uploads of a run with everything we know
  fedfields report RUN [RUN ...]  one page that shows a run, or compares several
  fedfields render RUN            a film of the place that a run learned (colour, depth)
  fedfields export RUN            the same as a mesh, points or a grid
  fedfields view RUN              walk around it in the browser
  fedfields photos DIR            cameras for a folder of your own photos, to run on
  fedfields check DIR             what would be used of a folder, and what is wrong with the rest
  fedfields presets               the presets and every part that has a name
  fedfields demo                  photographs, four methods, one table (a few minutes)

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
    from fedfields.config import AXES, PRESETS, choose, preset

    words, flags = _split(arguments)
    names = [word for word in words if ":" not in word]
    if not names and not flags.keys() & {"--resume", "--help"}:
        raise UserError(f"which preset? choose from {', '.join(PRESETS)} (fedfields presets explains them)")
    if len(names) > 1:
        raise UserError(f"one preset at a time, found {' and '.join(names)}; choose parts as axis:name")
    output, rest = _parse_some(Output, Output(), flags)
    for axis in AXES:
        if f"--{axis}" in rest:
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
        if colon:
            experiment = choose(experiment, axis, member)
    experiment = _parse(type(experiment), experiment, rest, f"fedfields run {name}", _RUN_HELP)

    from fedfields.runtime.run import default_folder

    return _train(experiment, output.out or default_folder(name), name, output)


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


def _adapt(arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if "--help" not in flags and len(words) != 2:
        raise UserError(
            f"fedfields adapt needs RUN and SIGNAL (a picture, a clip or an object), found {len(words)} of them"
        )
    from fedfields.adaptation import Adaptation

    output, rest = _parse_some(AdaptFlags, AdaptFlags(), flags)
    base = Adaptation()
    if "--help" not in flags:
        from fedfields.runtime.run import load_experiment

        base = load_experiment(Path(words[0])).adaptation
    about = "Fit the run's initialisation to a picture, clip or object of your own; compares it with a random start."
    settings = _parse(Adaptation, base, rest, "fedfields adapt RUN SIGNAL", about)

    from fedfields.runtime.personal import personalise
    from fedfields.terminal import show_adaptation

    show_adaptation(personalise(Path(words[0]), Path(words[1]), settings, output.out))
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
    """The way: orbit, spiral, or a JSON file with camera poses (frames with a transform_matrix, as transforms.json)."""

    out: Path | None = None
    """An .mp4 file or a folder for pictures; RUN/orbit.mp4 (or the path's name) by default."""

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
    about = "Film the place that a run learned."
    settings = _parse(RenderFlags, RenderFlags(), flags, "fedfields render RUN", about)
    for name in ("frames", "size", "fps"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} is {getattr(settings, name)}; it must be at least 1")
    from fedfields.runtime.products import film, load_trained
    from fedfields.terminal import console, steps_progress

    trained = load_trained(run, settings.weights)
    out = settings.out or (settings.weights.parent if settings.weights else run) / f"{Path(settings.path).stem}.mp4"
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
    """Points of the grid along an axis."""

    level: float | None = None
    """Density of the surface, per world unit; by default where a voxel lets half the light through."""

    weights: Path | None = None
    """Other weights than the run's: the field.safetensors that fedfields adapt made for an object."""


def _export(arguments: list[str]) -> int:
    run, flags = _one_run(arguments, "export")
    about = "Write the place that a run learned as a mesh, points or a grid, in world coordinates."
    settings = _parse(ExportFlags, ExportFlags(), flags, "fedfields export RUN", about)
    if settings.mesh is settings.points is settings.grid is None:
        raise UserError("nothing to write; say --mesh x.ply, --points x.ply or --grid x.npz")
    if settings.resolution < 2:
        raise UserError(f"--resolution is {settings.resolution}; it must be at least 2")
    from fedfields.runtime import products
    from fedfields.terminal import console, steps_progress

    trained = products.load_trained(run, settings.weights)
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
    about = "Walk around the place that a run learned, in the browser. Ctrl-C ends it."
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


def _one_run(arguments: list[str], command: str, *switches: str) -> tuple[Path, Flags]:
    words, flags = _split(arguments, switches)
    if "--help" not in flags and len(words) != 1:
        raise UserError(f"fedfields {command} needs one RUN, found {len(words)}")
    return Path(words[0] if words else "."), flags


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
        raise UserError(f"there is one demonstration, 'images'; found {' '.join(words)}")
    about = "Four methods on the photographs inside scikit-image: a table, and a report to open."
    settings = _parse(DemoFlags, DemoFlags(), flags, "fedfields demo", about)
    from fedfields.demo import demo

    return demo(settings.out, settings.seed)


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
    "presets": _presets,
    "demo": _demo,
}


# --- flags --------------------------------------------------------------------------------------------------

Flags = dict[str, str | None]
"""Flags in the order given; None for a flag without a value."""


def _split(arguments: Sequence[str], switches: Sequence[str] = ()) -> tuple[list[str], Flags]:
    """Words and flags of a command line; ``--flag=value`` and ``--flag value`` are the same.

    ``switches`` are flags without a value beside those of all commands; among the settings, switches stand last or
    take true or false.
    """
    words: list[str] = []
    flags: Flags = {}
    waiting: str | None = None
    for argument in arguments:
        if re.match(r"--?[A-Za-z]", argument):
            name, equals, value = argument.partition("=")
            name = "--help" if name == "-h" else name.replace("_", "-")
            flags[name] = value if equals else None
            waiting = None if equals or name in (*SWITCHES, *switches) or name.startswith("--no-") else name
        elif waiting is not None:
            flags[waiting] = argument
            waiting = None
        else:
            words.append(argument)
    return words, flags


SWITCHES = ("--help", "--resume", "--report")
"""Flags of the commands themselves that take no value."""


def _parse_some(kind: type[T], default: T, flags: Flags) -> tuple[T, Flags]:
    """Takes the flags that ``kind`` knows; the others are returned."""
    known = set(_flag_types(default))
    own = {name: value for name, value in flags.items() if name.replace("--no-", "--") in known}
    rest = {name: value for name, value in flags.items() if name not in own}
    return _parse(kind, default, own, "fedfields", ""), rest


def _parse(kind: type[T], default: T, flags: Flags, prog: str, about: str) -> T:
    """The settings with the flags applied; ``--help`` prints them all and exits.

    Raises:
        UserError: an unknown flag (with the nearest known one) or a value that does not fit.
    """
    import tyro

    options: dict[str, Any] = {"prog": prog, "description": about, "config": (tyro.conf.AvoidSubcommands,)}
    if "--help" in flags:
        tyro.cli(kind, default=default, args=["--help"], **options)
    known = _flag_types(default)
    line: list[str] = []
    for given, value in flags.items():
        name, current, negated = _resolve(given, known)
        _check_value(name, _hint(default, name), value)
        line += _tyro_words(name, current, negated, value)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(captured):
            return tyro.cli(kind, default=default, args=line, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    except SystemExit as stop:
        said = re.sub(r"^Error parsing \w+: ", "", _one_line(captured.getvalue()))
        raise UserError(said or "the flags make no sense") from stop


def _flag_types(default: Any, prefix: str = "--") -> dict[str, Any]:
    """Every flag of nested dataclass values, with the value it has by default."""
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(default):
        value, name = getattr(default, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags |= _flag_types(value, f"{name}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                flags |= _flag_types(item, f"{name}.{i}.")
        else:
            flags[name] = value
    return flags


def _hint(default: Any, name: str) -> Any:
    """The type of the setting that a flag names in whole."""
    *path, last = name.removeprefix("--").replace("-", "_").split(".")
    for part in path:
        default = default[int(part)] if isinstance(default, tuple) else getattr(default, part)
    return get_type_hints(type(default))[last]


def _check_value(name: str, hint: Any, value: str | None) -> None:
    """Refuses what is no number where one is wanted, in words; the rest is left to tyro.

    Raises:
        UserError: the value does not fit.
    """
    kinds = get_args(hint) or (hint,)
    kind = next((kind for kind in (int, float) if kind in kinds), None)
    if kind is None or value is None or (type(None) in kinds and value == "None"):
        return
    try:
        kind(value)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {value}; it must be {wanted}{' or None' if type(None) in kinds else ''}") from error


def _resolve(given: str, known: dict[str, Any]) -> tuple[str, Any, bool]:
    """The whole name of a flag that may be shortened to its unique ending, its default, and whether it says "no"."""
    negated = given.startswith("--no-") and given not in known
    ending = "--" + given.removeprefix("--no-") if negated else given
    if ending == "--data" and "--data.path" in known:
        ending = "--data.path"
    if ending in known:
        return ending, known[ending], negated
    matches = [name for name in known if name.endswith("." + ending.removeprefix("--"))]
    if len(matches) == 1:
        return matches[0], known[matches[0]], negated
    if matches:
        raise UserError(f"{given} could be {' or '.join(matches)}; write more of its name")
    import difflib

    endings = {name.rsplit(".", 1)[-1].removeprefix("--"): name for name in known}
    close = difflib.get_close_matches(ending, list(known), n=1, cutoff=0.6) or [
        endings[match]
        for match in difflib.get_close_matches(ending.removeprefix("--").rsplit(".", 1)[-1], list(endings), n=1)
    ]
    hint = f"did you mean {close[0]}?" if close else "--help lists them all"
    raise UserError(f"there is no setting {given}; {hint}")


def _tyro_words(name: str, default: Any, negated: bool, value: str | None) -> list[str]:
    """One flag as tyro wants it: switches have no value but a --no- form."""
    if isinstance(default, bool):
        said = {"true": True, "yes": True, "1": True, None: True, "false": False, "no": False, "0": False}
        if (value.lower() if value else value) not in said:
            raise UserError(f"{name} is {value}; it is a switch: true or false")
        if said[value.lower() if value else value] != negated:
            return [name]
        head, _, last = name.rpartition(".")
        return [f"{head}.no-{last}" if head else f"--no-{last.removeprefix('--')}"]
    if value is None:
        raise UserError(f"{name} needs a value; it is {default} by default")
    return [name, value]


def _one_line(boxed: str) -> str:
    """The text of an error that was drawn in a box, without the help that follows it."""
    text = re.sub(r"[─│╭╮╰╯═]", " ", boxed)
    text = re.split(r"Argument helptext:|For full helptext", text)[0]
    words = re.sub(r"-{4,}", " ", text).split()
    return " ".join(words).removeprefix("Value error ").removeprefix("Parsing error ")
