"""What the command line says about where a server listens or is, checked: for runs and maps between machines."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fedfields.errors import UserError

if TYPE_CHECKING:
    from fedfields.runtime.join import Visit
    from fedfields.runtime.serve import Address


def address_of(host: str, port: int, keys: Path, plain: bool) -> Address:
    """Where a server listens: with the certificate in a folder, or without TLS.

    Raises:
        UserError: there is no certificate, or it would speak readably with other machines.
    """
    from fedfields.runtime.engine import Tls
    from fedfields.runtime.serve import Address

    _check_plain(plain, host)
    tls = None if plain else Tls(keys / "server.crt", keys / "server.key")
    for file in tls or ():
        if not file.is_file():
            raise UserError(f"{file} is missing; make it with: fedfields keys server --host NAME --out {keys}")
    return Address(host, port, tls)


def visit_of(word: str, ca: Path, patience: float, plain: bool) -> Visit:
    """Where an owner's program goes: to HOST or HOST:PORT, whose certificate is signed by ``ca``, or without TLS.

    Raises:
        UserError: that is no address, the certificate cannot be read, or all would be readable on the way.
    """
    from fedfields.runtime.join import Visit

    host, port = host_and_port(word)
    _check_plain(plain, host)
    try:
        certificate = None if plain else ca.read_bytes()
    except OSError as error:
        raise UserError(f"{ca} cannot be read ({error.strerror}); --ca names the server's ca.crt") from error
    return Visit(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", certificate, patience)


def host_and_port(word: str) -> tuple[str, int]:
    """HOST or HOST:PORT; an IPv6 address stands in brackets before a port, and may do so without."""
    import ipaddress

    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(word)), 8443
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", word)
    if not found or not 0 < int(found[2] or 8443) < 65536:
        raise UserError(f"'{word}' is no HOST or HOST:PORT, such as museum.example.org:8443")
    return found[1].strip("[]"), int(found[2] or 8443)


def check_installed(command: str) -> None:
    """Refuses a command that needs Flower where there is none."""
    import importlib.util

    if importlib.util.find_spec("flwr") is None:
        raise UserError(f'fedfields {command} needs Flower: pip install "fedfields[flower]"')


def _check_plain(plain: bool, host: str) -> None:
    if plain and host not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"--plain sends everything readable by anybody on the way to {host}; it is for this machine only"
        )
