"""Keys and certificates: what is written, who may read it, and who is taken for whom."""

import datetime
import ipaddress
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedfields.errors import UserError
from fedfields.runtime.keys import checker, load_owner, load_roster, make_owner, make_server

FOREVER = datetime.timedelta(days=365 * 9)


@pytest.fixture
def owners(tmp_path):
    """A folder of private keys of anna and bert, and one of public keys."""
    for name in ("anna", "bert"):
        _, public = make_owner(name, tmp_path / "keys")
        (tmp_path / "owners").mkdir(exist_ok=True)
        shutil.copy(public, tmp_path / "owners")
    return tmp_path


@pytest.fixture
def server(tmp_path):
    return make_server(["museum.example.org", "192.0.2.7", "2001:db8::7"], tmp_path / "server")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def refused(words, call, *given):
    with pytest.raises(UserError, match=words) as caught:
        call(*given)
    assert "\n" not in str(caught.value)


def test_an_owner_has_a_private_file_and_a_public_one(owners):
    key = load_owner(owners / "keys" / "anna.key")
    public = load_roster(owners / "owners")["anna"]
    assert key.name == "anna" and isinstance(key.node.curve, ec.SECP384R1)
    assert key.node.public_key() == public.node and key.sums.public_key() == public.sums
    lines = (owners / "owners" / "anna.pub").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["ecdsa-sha2-nistp384", "ssh-ed25519"]
    assert all(line.split()[2] == "anna" for line in lines)
    assert b"PRIVATE" not in (owners / "owners" / "anna.pub").read_bytes()


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")
def test_public_keys_are_as_openssh_reads_them(owners):
    told = subprocess.run(
        ["ssh-keygen", "-l", "-f", owners / "owners" / "anna.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert "384" in told and "ECDSA" in told and "ED25519" in told


def test_nobody_else_can_read_a_private_key_not_even_while_it_is_written(tmp_path, monkeypatch):
    """Temporary files are as closed as what they become, whatever the umask is."""
    seen, write, replace = [], Path.write_bytes, Path.replace

    def written(path, data):
        seen.append(mode(path))
        return write(path, data)

    def renamed(path, target):
        if Path(target).suffix == ".key":
            seen.append(mode(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr(Path, "replace", renamed)
    before = os.umask(0)
    try:
        make_owner("anna", tmp_path)
        make_server(["localhost"], tmp_path)
    finally:
        os.umask(before)
    assert seen == [0o600] * 7, "five files are written, two of them are keys"
    assert mode(tmp_path / "anna.key") == mode(tmp_path / "server.key") == 0o600
    assert mode(tmp_path / "anna.pub") == mode(tmp_path / "ca.crt") == 0o644


def test_what_is_there_is_never_written_over(owners, server):
    before = {path: path.read_bytes() for path in owners.rglob("*") if path.is_file()}
    refused("anna.key is already there", make_owner, "anna", owners / "keys")
    (owners / "keys" / "bert.key").unlink()
    refused("bert.pub is already there", make_owner, "bert", owners / "keys")
    refused("ca.crt is already there", make_server, ["localhost"], owners / "server")
    server[0].unlink()
    refused("server.crt is already there", make_server, ["localhost"], owners / "server")
    left = {path: path.read_bytes() for path in owners.rglob("*") if path.is_file()}
    assert left == {path: text for path, text in before.items() if path in left} and len(left) == len(before) - 2


@pytest.mark.parametrize("name", ["", "Anna", "../anna", "a b", "-anna", ".anna", "a" * 64, "änna", "anna\n"])
def test_a_name_is_plain(tmp_path, name):
    refused("cannot be a name", make_owner, name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["", "a b", "-a", "a-", "*.example.org", "http://a", "a:8443", "a" * 254, "é"])
def test_a_host_is_a_name_or_an_address(tmp_path, host):
    refused("is no host name or address", make_server, [host], tmp_path)
    assert not list(tmp_path.iterdir())


# --- files that are no keys ------------------------------------------------------------------------------------


def damaged(text):
    """Ways in which the file of an owner's private keys can be wrong."""
    first, second = text.split(b"-----END PRIVATE KEY-----\n")[:2]
    first, second = (part + b"-----END PRIVATE KEY-----\n" for part in (first, second))
    other = ec.generate_private_key(ec.SECP256R1())
    sealed = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    return {
        "empty": b"",
        "one key": first,
        "the other order": second + first,
        "three keys": first + second + second,
        "cut": text[:-60],
        "changed": text.replace(b"M", b"N", 5),
        "binary": bytes(range(256)) * 300,
        "a password": sealed + second,
    }


@pytest.mark.parametrize(
    "how", ["empty", "one key", "the other order", "three keys", "cut", "changed", "binary", "a password"]
)
def test_a_file_that_is_no_private_key_is_one_line(owners, how):
    path = owners / "keys" / "anna.key"
    path.write_bytes(damaged(path.read_bytes())[how])
    refused("is no key of an owner; make one with: fedfields keys owner", load_owner, path)


def test_a_key_that_others_can_read_is_refused(owners):
    path = owners / "keys" / "anna.key"
    path.chmod(0o640)
    refused(f"can be read by others on this machine; say: chmod 600 {path}", load_owner, path)
    refused(r"none.key cannot be read \(No such file", load_owner, owners / "none.key")


def test_a_roster_that_is_none_is_one_line(owners):
    folder = owners / "owners"
    refused("is no folder", load_roster, owners / "none")
    refused("holds no .pub files", load_roster, owners / "keys" / "..")
    (folder / "Anna B.pub").write_bytes((folder / "anna.pub").read_bytes())
    refused("'Anna B' cannot be a name", load_roster, folder)
    (folder / "Anna B.pub").unlink()
    lines = (folder / "anna.pub").read_bytes().splitlines(keepends=True)
    for text in (b"", lines[0], lines[1] + lines[0], b"".join(lines) * 2, b"ssh-ed25519 AAAA x\n" * 2, b"\xff\n\xfe"):
        (folder / "cleo.pub").write_bytes(text)
        refused("cleo.pub is no public key of an owner", load_roster, folder)
    shutil.copy(owners / "keys" / "anna.key", folder / "cleo.pub")
    refused("cleo.pub is no public key of an owner", load_roster, folder)


def test_nobody_is_two_owners(owners):
    folder = owners / "owners"
    shutil.copy(folder / "anna.pub", folder / "zoe.pub")
    refused("anna.pub and zoe.pub hold the same key", load_roster, folder)
    node, sums = (folder / "anna.pub").read_text().splitlines(keepends=True)
    other = (folder / "bert.pub").read_text().splitlines(keepends=True)
    for half in (other[0] + sums, node + other[1]):
        (folder / "zoe.pub").write_text(half)
        refused("hold the same key", load_roster, folder)


def test_a_signature_is_of_one_owner_on_one_message(owners):
    anna, bert = (load_owner(owners / "keys" / f"{name}.key") for name in ("anna", "bert"))
    check = checker(["anna", "bert", "cleo"], load_roster(owners / "owners"))
    signature = anna.sign(b"keys of round 1")
    assert len(signature) == 64 and check(0, b"keys of round 1", signature)
    assert not check(0, b"keys of round 2", signature) and not check(1, b"keys of round 1", signature)
    assert not check(0, b"keys of round 1", bert.sign(b"keys of round 1"))
    assert not check(0, b"keys of round 1", bytes(64)) and not check(0, b"keys of round 1", b"")
    # Whom the roster does not know has signed nothing, and there is no number beyond the cohort.
    stranger = ed25519.Ed25519PrivateKey.generate()
    assert not check(2, b"m", stranger.sign(b"m")) and not check(3, b"m", stranger.sign(b"m"))


# --- the server's certificate ------------------------------------------------------------------------------------


def verified(files, subject, at=None):
    """Whether the web's rules (RFC 5280, as the library has them) let this certificate speak for a host."""
    ca, certificate = (x509.load_pem_x509_certificate(path.read_bytes()) for path in files[:2])
    policy = PolicyBuilder().store(Store([ca])).time(at or datetime.datetime.now(datetime.UTC))
    try:
        policy.build_server_verifier(subject).verify(certificate, [])
    except VerificationError:
        return False
    return True


def openssl(files, *words):
    return subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", files[0], *words, files[1]], capture_output=True, check=False
    ).returncode


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_trusts_the_certificate_for_its_hosts_and_no_others(server, tmp_path):
    for flag, host in {
        "-verify_hostname": "museum.example.org",
        "-verify_ip": "192.0.2.7",
    }.items():
        assert openssl(server, "-purpose", "sslserver", flag, host) == 0
    assert openssl(server, "-verify_ip", "2001:db8::7") == openssl(server, "-verify_hostname", "localhost") == 0
    assert openssl(server, "-verify_hostname", "example.org") and openssl(server, "-verify_ip", "192.0.2.8")
    other = make_server(["museum.example.org"], tmp_path / "other")
    assert openssl((other[0], server[1])), "another authority of the same name"
    assert openssl(server, "-attime", str(int((datetime.datetime.now() + 2 * FOREVER).timestamp())))


def test_a_certificate_holds_for_its_hosts_and_its_time(server, tmp_path):
    """By the rules of the web's public authorities, which are stricter than openssl's."""
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("museum.example.org"), x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("192.0.2.7", "2001:db8::7", "127.0.0.1", "::1")]
    certificate = x509.load_pem_x509_certificate(server[1].read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(found) == [names[0], *names[2:4], names[1], *names[4:]]
    assert certificate.not_valid_before_utc < now and now + FOREVER < certificate.not_valid_after_utc
    assert all(verified(server, name) for name in names)
    for name in (x509.DNSName("example.org"), x509.DNSName("x.museum.example.org")):
        assert not verified(server, name)
    assert not verified(server, x509.IPAddress(ipaddress.ip_address("192.0.2.8")))
    assert not verified(server, names[0], now + 2 * FOREVER) and not verified(server, names[0], now - FOREVER)
    other = make_server(["museum.example.org"], tmp_path / "other")
    assert verified(other, names[0]) and not verified((other[0], server[1]), names[0])
    key = serialization.load_pem_private_key(server[2].read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    ca = x509.load_pem_x509_certificate(server[0].read_bytes())
    assert ca.public_key() != certificate.public_key()
    assert not list(server[0].parent.glob("*ca*key*")), "the authority's own key is thrown away"
    certificate.verify_directly_issued_by(ca)
