"""Flags of the command line: they may leave out the beginning of their names, and what does not fit is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from fedfields.errors import UserError

T = TypeVar("T")

Flags = dict[str, str | None]
"""Flags in the order given; None for a flag without a value."""


def split(arguments: Sequence[str], switches: Sequence[str] = ()) -> tuple[list[str], Flags]:
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


SWITCHES = ("--help", "--resume", "--report", "--plain")
"""Flags of the commands themselves that take no value."""


def parse_some(kind: type[T], default: T, flags: Flags) -> tuple[T, Flags]:
    """Takes the flags that ``kind`` knows; the others are returned."""
    known = set(_flag_types(default))
    own = {name: value for name, value in flags.items() if name.replace("--no-", "--") in known}
    rest = {name: value for name, value in flags.items() if name not in own}
    return parse(kind, default, own, "fedfields", ""), rest


def parse(kind: type[T], default: T, flags: Flags, prog: str, about: str) -> T:
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


def whole_name(default: Any, name: str) -> str:
    """The whole name of a setting, which may be shortened to its unique ending; both without dashes in front.

    Raises:
        UserError: there is no such setting, or there are several.
    """
    return _resolve(f"--{name.replace('_', '-')}", _flag_types(default))[0].removeprefix("--")


def spelled_out(default: Any, flags: Flags) -> dict[str, str]:
    """Flags by whole names without dashes; switches are true or false.

    Raises:
        UserError: there is no such setting, or a setting lacks its value.
    """
    found, known = {}, _flag_types(default)
    for given, value in flags.items():
        name, current, negated = _resolve(given, known)
        word = _tyro_words(name, current, negated, value)[-1]
        if isinstance(current, bool):
            word = "true" if word == name else "false"
        found[name.removeprefix("--")] = word
    return found


def setting(default: Any, name: str) -> tuple[Any, Any]:
    """The value and the type of a setting, by its whole name without dashes."""
    return _flag_types(default)[f"--{name}"], _hint(default, f"--{name}")


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
