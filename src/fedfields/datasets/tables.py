"""Rows of numbers from ``.npz`` and ``.csv`` files. Nothing is unpickled, and nothing is believed unseen."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.datasets.shares import Rows
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.scenes.clips import natural_order
from fedfields.scenes.images import printable
from fedfields.store import read_file

LARGEST = 1 << 32
"""Bytes of a file, and of what it holds when unpacked."""

SUFFIXES = (".npz", ".csv")


class Table(NamedTuple):
    """What one file holds: inputs ``[n, ...]``, targets ``[n, ...]``, and whose each row is, if it says so."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    owners: NDArray[Any] | None


def read_clients(
    path: Path, inputs: str, target: str, owners: Sequence[str], kind: str, *, alone: bool = False
) -> tuple[dict[str, Rows], int]:
    """The rows of each client, and how many outputs a model for them has.

    Args:
        path: a folder with a file for each client, or one file with a column that says whose a row is.
        inputs: array of the inputs in ``.npz`` files.
        target: array or column of the targets.
        owners: arrays or columns that together name the client of a row.
        kind: "classes", "numbers" or "auto".
        alone: all rows are one client's, whatever a column says, and its classes are numbers: of a class in words, it
            cannot know which of a run's it is.

    Raises:
        UserError: there is nothing to read, or something cannot be used; it names the file, and the line if it has any.
    """
    files = _files(path)
    if path.is_dir() or alone:
        tables = {file.stem: _read(file, inputs, target, (), owners) for file in files}
    else:
        table = _read(files[0], inputs, target, owners)
        assert table.owners is not None
        tables = {
            str(name): Table(table.inputs[mine], table.targets[mine], None)
            for name in np.unique(table.owners)
            for mine in [table.owners == name]
        }
    _check_alike(path, tables)
    if alone and any(table.targets.dtype.kind in "US" for table in tables.values()):
        raise UserError(f"{printable(str(path))} has words for targets; number the classes from 0, as the run does")
    return _as_rows(path, tables, kind)


def _files(path: Path) -> list[Path]:
    where = printable(str(path))
    if not path.exists():
        raise UserError(f"{where} does not exist; --data names a folder with a .npz or .csv file for each client")
    files = [path]
    if path.is_dir():
        files = sorted(
            (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES),
            key=lambda file: natural_order(file.name),
        )
        stems = [file.stem for file in files]
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            raise UserError(f"{where} has two files called {printable(twice)}; each client is one file")
    if not files or files[0].suffix.lower() not in SUFFIXES:
        raise UserError(f"{where} has no .npz, .csv or .txt file; each client is one, or one has the rows of all")
    return files


def _read(file: Path, inputs: str, target: str, owners: Sequence[str], ignored: Sequence[str] = ()) -> Table:
    where = printable(str(file))
    try:
        content = read_file(file, LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read ({error})") from error
    if file.suffix.lower() == ".npz":
        table = _from_npz(where, content, inputs, target, owners)
    else:
        table = _from_csv(where, content, target, owners, ignored)
    if not len(table.inputs):
        raise UserError(f"{where} has no rows; take it out, or fill it")
    return table


def _from_npz(where: str, content: bytes, inputs: str, target: str, owners: Sequence[str]) -> Table:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > LARGEST:
                raise UserError(f"{where} unpacks to more than {LARGEST >> 30} GiB; split it")
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            names = [inputs, target, *owners]
            if missing := next((name for name in names if name not in held.files), None):
                raise UserError(f"{where} has no array '{missing}', only {', '.join(held.files)}; {_HINT}")
            arrays = [np.asarray(held[name]) for name in names]
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{where} is no .npz file of plain arrays ({str(error)[:100]})") from error
    if any(array.ndim == 0 or len(array) != len(arrays[0]) for array in arrays):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(names, arrays, strict=True))
        raise UserError(f"{where} has arrays of different lengths: {shapes}; the first axis counts rows")
    return Table(arrays[0], arrays[1], _joined(arrays[2:]))


_HINT = "name them with --data.inputs, --data.target and --data.client"


def _from_csv(where: str, content: bytes, target: str, owners: Sequence[str], ignored: Sequence[str]) -> Table:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is no CSV file in UTF-8 ({error})") from error
    if not lines or target not in lines[0]:
        head = ", ".join(lines[0][:12]) if lines else "nothing"
        raise UserError(f"{where} has no column '{target}', only {head}; name it with --data.target")
    head = lines[0]
    if missing := next((name for name in owners if name not in head), None):
        raise UserError(f"{where} has no column '{missing}' to say whose a row is; name it with --data.client")
    rest = [i for i, name in enumerate(head) if name not in (target, *owners, *ignored)]
    if not rest:
        raise UserError(f"{where} has no column of inputs beside {target}")
    values, targets, whose = [], [], []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        if len(line) != len(head):
            raise UserError(f"{where}, line {number}, has {len(line)} cells, and the header has {len(head)}")
        values.append([_number(line[i], where, number, head[i]) for i in rest])
        targets.append(line[head.index(target)])
        whose.append([line[head.index(name)] for name in owners])
    return Table(np.array(values, np.float32), _plain(targets), _joined(list(np.array(whose).T)) if owners else None)


def _number(text: str, where: str, line: int, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{where}, line {line}: {column} is {printable(text[:40])!r}, which is no number; inputs are numbers"
        ) from None


def _plain(targets: list[str]) -> NDArray[Any]:
    """Whole numbers, numbers or words, whichever all of them are."""
    for kind in (int, float):
        try:
            return np.array([kind(text) for text in targets], np.int64 if kind is int else np.float32)
        except (ValueError, OverflowError):
            continue
    return np.array(targets)


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """One name for each row, from one or more columns."""
    if not columns:
        return None
    return np.array(["-".join(str(cell)[:60] for cell in row) for row in zip(*columns, strict=True)])


def _check_alike(path: Path, tables: dict[str, Table]) -> None:
    """All clients must have inputs of one shape and targets of one shape, all of them numbers."""
    first, table = next(iter(tables.items()))
    for name, one in tables.items():
        who = f"{printable(str(path))}: {printable(name)}"
        for what, mine, its in (("inputs", one.inputs, table.inputs), ("targets", one.targets, table.targets)):
            if mine.shape[1:] != its.shape[1:]:
                raise UserError(
                    f"{who} has {what} of shape {list(mine.shape[1:])}, {printable(first)} of {list(its.shape[1:])}; "
                    "all clients need the same"
                )
        if one.inputs.dtype.kind not in "fiub":
            raise UserError(f"{who} has inputs of type {one.inputs.dtype}; they must be numbers")
        if not np.isfinite(one.inputs).all() or (one.targets.dtype.kind == "f" and not np.isfinite(one.targets).all()):
            raise UserError(f"{who} has a value that is not finite; leave such rows out")


def _as_rows(path: Path, tables: dict[str, Table], kind: str) -> tuple[dict[str, Rows], int]:
    """Tensors, with classes as whole numbers from 0."""
    kinds = {one.targets.dtype.kind for one in tables.values()}
    classes = kind == "classes" or (kind == "auto" and "f" not in kinds)
    if kind == "numbers" and kinds & set("US"):
        raise UserError(f"{printable(str(path))} has words for targets; they cannot be fitted as numbers")
    rows, outputs = {}, 1
    words = (
        sorted({str(one) for table in tables.values() for one in table.targets.ravel()}) if kinds & set("US") else []
    )
    for name, table in tables.items():
        inputs = torch.from_numpy(np.ascontiguousarray(table.inputs, np.float32))
        if table.inputs.dtype == np.uint8:
            inputs = inputs / 255
        if inputs.dim() == 1:
            inputs = inputs[:, None]
        if inputs.dim() == 3:
            inputs = inputs[:, None]  # A picture of one channel.
        targets = table.targets
        if classes:
            found = np.searchsorted(words, targets.astype(str)) if words else targets
            if found.dtype.kind == "f" and (found != np.round(found)).any():
                raise UserError(f"{printable(str(path))}: {printable(name)} has classes that are no whole numbers")
            found = found.astype(np.int64)
            if found.min() < 0:
                raise UserError(f"{printable(str(path))}: {printable(name)} has class {found.min()}; count from 0")
            targets, outputs = torch.from_numpy(found), max(outputs, int(found.max()) + 1)
        else:
            targets = torch.from_numpy(np.ascontiguousarray(targets, np.float32)).reshape(len(targets), -1)
            outputs = targets.shape[1]
        rows[name] = Rows(inputs, targets)
    return rows, outputs
