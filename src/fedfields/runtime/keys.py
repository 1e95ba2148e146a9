"""Who is who between machines: the server's certificate, and a pair of keys for every owner.

An owner makes both halves of the key at home and hands out the public one. The server's certificate is signed by an
authority of its own, whose certificate (``ca.crt``) the owners get from whoever runs the server.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from fedfields.errors import UserError
from fedfields.store import writing

YEARS = 10
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What an owner may be called; the name travels to the server and to the other owners."""


class OwnerKey(NamedTuple):
    """An owner's private keys: one signs in at the server, the other signs the keys of secure sums."""

    name: str
    node: ec.EllipticCurvePrivateKey
    sums: ed25519.Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes that only this owner could make."""
        return self.sums.sign(message)


class OwnerPublic(NamedTuple):
    """The public halves."""

    node: ec.EllipticCurvePublicKey
    sums: ed25519.Ed25519PublicKey


def make_owner(name: str, folder: Path) -> tuple[Path, Path]:
    """Writes ``NAME.key``, which stays here, and ``NAME.pub``, which goes to whoever runs the server.

    Raises:
        UserError: the name will not do, or there are such keys already.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a name; use lower-case letters, digits, dots and hyphens, up to 63")
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    _fresh(key, public)
    node, sums = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
    _write(key, _private(node) + _private(sums), secret=True)
    lines = [one.public_key().public_bytes(*_SSH).decode() + f" {name}\n" for one in (node, sums)]
    _write(public, "".join(lines).encode())
    return key, public


def make_server(hosts: Sequence[str], folder: Path) -> tuple[Path, Path, Path]:
    """Writes ``ca.crt`` for the owners, and ``server.crt`` and ``server.key`` for the server.

    The authority's own key is thrown away: it can sign nothing else, and a new server certificate is a new authority.

    Args:
        hosts: names and addresses by which owners reach the server; this machine's loopback always works.
        folder: where.

    Raises:
        UserError: there are such files already, or a host is none.
    """
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    _fresh(*paths)
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10)
    end = start + datetime.timedelta(days=365 * YEARS)
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca_name, name = _named("fedfields authority"), _named("fedfields server")

    def made(subject: x509.Name, public: ec.EllipticCurvePublicKey, is_ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(ca_name, subject, public, x509.random_serial_number(), start, end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .add_extension(_usage(is_ca), critical=True)
        )

    reached = [*dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]
    names = x509.SubjectAlternativeName([_host(host) for host in reached])
    ca = made(ca_name, authority.public_key(), True).sign(authority, hashes.SHA384())
    certificate = made(name, server.public_key(), False).add_extension(names, critical=False)
    _write(paths[0], ca.public_bytes(serialization.Encoding.PEM))
    _write(paths[1], certificate.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
    _write(paths[2], _private(server), secret=True)
    return paths


def load_owner(path: Path) -> OwnerKey:
    """An owner's private keys.

    Raises:
        UserError: the file is none of ours.
    """
    blocks = re.findall(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", _read(path), re.S)
    try:
        node, sums = (serialization.load_pem_private_key(block, None) for block in blocks)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        node = sums = None
    if not isinstance(node, ec.EllipticCurvePrivateKey) or not isinstance(sums, ed25519.Ed25519PrivateKey):
        raise UserError(f"{path} is no key of an owner; make one with: fedfields keys owner NAME")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others on this machine; say: chmod 600 {path}")
    return OwnerKey(path.stem, node, sums)


def load_roster(folder: Path) -> dict[str, OwnerPublic]:
    """The public keys of all owners in a folder of ``.pub`` files, by name, in the order of their names.

    Raises:
        UserError: there are none, a file is none of ours, or two owners have the same key.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; it should hold the .pub file of every owner")
    found = {path.stem: _public(path) for path in sorted(folder.glob("*.pub"))}
    if not found:
        raise UserError(f"{folder} holds no .pub files; each owner makes one with: fedfields keys owner NAME")
    seen: dict[bytes, str] = {}
    for name, public in found.items():
        for key in public:
            other = seen.setdefault(key.public_bytes(*_SSH), name)
            if other != name:
                raise UserError(f"{folder}: {other}.pub and {name}.pub hold the same key; each owner makes their own")
    return found


def checker(names: Sequence[str], roster: Mapping[str, OwnerPublic]) -> Callable[[int, bytes, bytes], bool]:
    """Whether a message is signed by the owner with that number among ``names``; unknown owners have signed nothing."""

    def check(number: int, message: bytes, signature: bytes) -> bool:
        public = roster.get(names[number]) if number < len(names) else None
        if public is None:
            return False
        try:
            public.sums.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return check


_SSH = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH


def _public(path: Path) -> OwnerPublic:
    if not NAME.fullmatch(path.stem):
        raise UserError(f"{path} is no owner's: {path.stem!r} cannot be a name")
    try:
        node, sums = (serialization.load_ssh_public_key(line) for line in _read(path).splitlines() if line.strip())
    except (ValueError, UnsupportedAlgorithm):
        node = sums = None
    if not isinstance(node, ec.EllipticCurvePublicKey) or not isinstance(sums, ed25519.Ed25519PublicKey):
        raise UserError(
            f"{path} is no public key of an owner; ask them for the .pub file of: fedfields keys owner NAME"
        )
    return OwnerPublic(node, sums)


def _private(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise UserError(f"{host!r} is no host name or address")
    return x509.DNSName(host)


def _usage(is_ca: bool) -> x509.KeyUsage:
    others = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, **others)


def _fresh(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is already there; move it away first, or choose another place with --out")


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    with writing(path, 0o600 if secret else 0o644) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
