"""Files on disk: each written whole or not at all, and none believed before it was checked. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfields.errors import UserError
from fedfields.lazy import torch

if TYPE_CHECKING:
    from fedfields.types import Params

MAX_TEXT = 2**25
"""Largest file of text or JSON that is read, in bytes."""

MAX_LINES = 2**30
"""Largest file that is read line by line, in bytes."""

MAX_DEPTH, MAX_PARTS = 64, 2**20
"""Lists and objects inside one another that JSON may have (whoever walks through it recurses), and in all."""

_TOLD = "fedfields"
"""Entry of a safetensors header: names in their order, what the tensors are, checksum."""

_UNFINISHED = ".writing-"
"""How the names of files begin that are not whole yet."""


@contextmanager
def writing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` (created by the caller); renames it into place if all went well.

    Until then nobody but this user can read it, and afterwards who ``mode`` says.

    Raises:
        UserError: the disk is full, the folder is not writable, or the like.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{_UNFINISHED}{path.name}-", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
        with suppress(OSError):  # Not every system lets a folder be flushed; the file is whole in any case.
            flush(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_all(paths: Iterable[Path]) -> None:
    """Flushes several at once, since a disk takes about as long for one."""
    with ThreadPoolExecutor(8, thread_name_prefix="flush") as pool:
        list(pool.map(flush, paths))


def sweep(folder: Path) -> None:
    """Removes what a process that was killed left half-written in ``folder``."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        discard(left)


def is_unfinished(path: Path) -> bool:
    """Whether a file is one that `sweep` would remove."""
    return path.name.startswith(_UNFINISHED)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for an operating system's refusal to write."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space or choose another place with --out")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, text: str) -> None:
    """Adds one line; a crash may cut it short, so that readers expect a damaged last line.

    Raises:
        UserError: the disk is full, the folder is not writable, or the like.
    """
    append(path, (text + "\n").encode())


def append(path: Path, content: bytes) -> None:
    """Adds bytes to the end of a file; the only write that a crash may cut short.

    Raises:
        UserError: the disk is full, the folder is not writable, or the like.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_file(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it is missing or may not be read.
        ValueError: it is no regular file (a pipe would make us wait for ever), or larger.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or damaged file is one clear line."""
    try:
        return parse_json(read_file(path, MAX_TEXT))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; is {path.parent} a run made by `fedfields run`?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); the file is damaged") from error


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, says a key twice, is nested deeper than `MAX_DEPTH`, or has more than `MAX_PARTS`.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    if text.count("[") + text.count("{") > MAX_PARTS:  # A list takes two bytes here, and sixty in memory.
        raise ValueError(f"it has more than {MAX_PARTS:,} lists and objects")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inside(one)]
    if level:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _inside(value: Any) -> Any:
    """The direct members of a list or an object."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def write_tensors(path: Path, tensors: Params, about: Any = None) -> None:
    """Writes safetensors with a checksum, whole or not at all; ``about`` is JSON that goes with them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat, metadata = _described(tensors, about)
    with writing(path) as temporary:
        try:
            save_file(flat, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def tensors_as_bytes(tensors: Params, about: Any = None) -> bytes:
    """What `write_tensors` writes."""
    from safetensors.torch import save

    flat, metadata = _described(tensors, about)
    return save(flat, metadata)


def _described(tensors: Params, about: Any) -> tuple[Params, dict[str, str]]:
    """Tensors as safetensors takes them, and the metadata with names, ``about`` and checksum."""
    flat = {key: leaf.detach().contiguous().clone() for key, leaf in tensors.items()}
    told = {"about": about, "keys": list(flat)}
    told |= {"sha256": _digest(flat, told)}
    return flat, {_TOLD: json.dumps(told)}  # One entry: they come in any order.


def read_tensors(path: Path) -> tuple[Params, Any]:
    """What `write_tensors` wrote, in its order; or the tensors of anybody's safetensors file, and None.

    Raises:
        ValueError: the file is missing or damaged, and how.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with safe_open(path, framework="pt") as file:
            return _believed(file.metadata(), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def tensors_from_bytes(content: bytes) -> tuple[Params, Any]:
    """As `read_tensors`, of what is in memory already.

    Raises:
        ValueError: it is damaged, and how.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)  # Checks the header first.
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _believed(header.get("__metadata__"), tensors)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _believed(metadata: dict[str, str] | None, tensors: Params) -> tuple[Params, Any]:
    """The tensors in the order in which they were written, and what was told about them; None in anybody's file."""
    text = (metadata or {}).get(_TOLD)
    if text is None:
        return tensors, None
    told = parse_json(text)
    tensors = {key: tensors[key] for key in told["keys"]}
    if told.pop("sha256") != _digest(tensors, told):
        raise ValueError("its content does not fit its checksum")
    return tensors, told["about"]


def _digest(tensors: Params, told: dict[str, Any]) -> str:
    """SHA-256 of names, types, shapes and values, and of what is told about them."""
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for key, leaf in tensors.items():
        found.update(f"{key} {leaf.dtype} {list(leaf.shape)}".encode())
        found.update(leaf.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_pt(path: Path) -> Any:
    """What ``torch.save`` wrote, by torch's reader that builds tensors and plain containers and nothing else.

    Raises:
        ValueError: the file is missing or damaged, holds anything else, or would be larger in memory than it is.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its members are compressed or overlap")
        return torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # Damaged archives and forbidden content raise nearly everything.
        raise ValueError(type(error).__name__) from error


def discard(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
