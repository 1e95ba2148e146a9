"""What goes wrong between machines is said in one line that a museum's volunteer can act on."""

import dataclasses
import datetime
import functools
import http.server
import json
import re
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from flwr.supernode import node_auth_http_interceptor as signing

from fedfields.cli import main
from fedfields.config import preset, to_json
from fedfields.errors import UserError
from fedfields.runtime import engine, join, keys
from fedfields.runtime.desk import Letter
from fedfields.runtime.engine import Fleet, SuperLink, Tls
from fedfields.runtime.flower import Rules
from fedfields.runtime.owner import Declined, Owner, Policy
from fedfields.runtime.remote import published
from fedfields.runtime.serve import Address, Serving, _greeting, weigh
from tests.runtime.deployment import free_port, picture


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Keys of a server, of an owner whom it knows, and of one whom it does not; data; an experiment."""
    folder = tmp_path_factory.mktemp("place")
    keys.make_server(["museum.example"], folder / "server")
    keys.make_owner("anna", folder / "owners")
    keys.make_owner("eve", folder / "keys")
    for name in ("one.png", "two.png"):
        picture(folder / "data", name, len(name))
    text = 'preset = "maml"\ndata.kind = "image"\ndata.size = 12\nfield.width = 8\nfield.depth = 1\n'
    (folder / "experiment.toml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def closed_logs():
    """Commands open a log in their folder, and end with their process."""
    yield
    engine.hush()


def open_door(place, *, tls=True, port=0):
    owners = {name: public.node for name, public in keys.load_roster(place / "owners").items()}
    files = Tls(place / "server" / "server.crt", place / "server" / "server.key") if tls else None
    return SuperLink(owners, "127.0.0.1", port, files)


@pytest.fixture
def secured(place):
    with open_door(place) as link:
        yield link.port


@pytest.fixture
def plain(place):
    with open_door(place, tls=False) as link:
        yield link.port


def refused(capfd, *words):
    """The one line with which a command ends, after lines that tell what it tries."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    error = capfd.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in error and "Error:" not in error, error
    *before, last = error.splitlines()
    assert last.startswith("fedfields: ") and not any(line.startswith("fedfields:") for line in before)
    return last.removeprefix("fedfields: ")


def joining(place, capfd, tmp_path, address, *more, key="owners/anna.key"):
    words = [
        "--data",
        place / "data",
        "--key",
        place / key,
        "--ca",
        place / "server" / "ca.crt",
        "--out",
        tmp_path / "o",
    ]
    return refused(capfd, "join", address, *words, "--patience", 1, *more)


def test_an_owner_whom_the_server_does_not_know(place, secured, capfd, tmp_path):
    line = joining(place, capfd, tmp_path, f"localhost:{secured}", key="keys/eve.key")
    assert line.endswith("does not know this owner's key; ask who runs it whether they have your .pub file")


def test_plain_against_tls(place, secured, capfd, tmp_path):
    line = joining(place, capfd, tmp_path, f"localhost:{secured}", "--plain")
    assert "leave out --plain here" in line


def test_tls_against_plain(place, plain, capfd, tmp_path):
    assert "does not speak TLS" in joining(place, capfd, tmp_path, f"localhost:{plain}")


def test_a_certificate_that_has_expired(place, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "YEARS", 0)
    keys.make_server([], tmp_path / "server")
    (tmp_path / "owners").symlink_to(place / "owners")
    with open_door(tmp_path) as link:
        line = joining(place, capfd, tmp_path, f"localhost:{link.port}", "--ca", tmp_path / "server" / "ca.crt")
    assert "certificate has expired" in line and "ask who runs it for the current ca.crt" in line


def test_a_certificate_of_somebody_else(place, secured, capfd, tmp_path):
    keys.make_server([], tmp_path / "server")
    line = joining(place, capfd, tmp_path, f"localhost:{secured}", "--ca", tmp_path / "server" / "ca.crt")
    assert "a certificate that does not hold" in line and "current ca.crt" in line


@pytest.mark.parametrize("host, holds", [("museum.example", True), ("other.example", False)])
def test_the_host_name_is_the_certificate_s(place, secured, capfd, tmp_path, monkeypatch, host, holds):
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **kwargs: real("127.0.0.1", *rest, **kwargs))
    key = "owners/anna.key" if not holds else "keys/eve.key"
    line = joining(place, capfd, tmp_path, f"{host}:{secured}", key=key)
    assert ("use the host name that the certificate was made for" in line) is not holds
    assert ("does not know this owner" in line) is holds


def shifted(monkeypatch, seconds):
    """This process's clock, as far as the owner's side looks at it."""
    real = signing.now
    monkeypatch.setattr(signing, "now", lambda: real() + datetime.timedelta(seconds=seconds))
    monkeypatch.setattr(join, "explain", functools.partial(engine.explain, now=lambda: time.time() + seconds))


@pytest.mark.parametrize(
    "seconds, words", [(600, "60[0-2] s fast"), (-600, "(600|59[89]) s slow"), (7, "[789] s fast")]
)
def test_a_clock_that_is_off(place, secured, capfd, tmp_path, monkeypatch, seconds, words):
    shifted(monkeypatch, seconds)
    line = joining(place, capfd, tmp_path, f"localhost:{secured}")
    assert re.search(f"this machine's clock is {words}, .*; set the clock and join again", line), line


@pytest.mark.parametrize("seconds", [-280, 3])
def test_a_clock_that_is_a_little_off_will_do(place, secured, monkeypatch, seconds):
    shifted(monkeypatch, seconds)
    certificate = (place / "server" / "ca.crt").read_bytes()
    fleet = Fleet(f"localhost:{secured}", keys.load_owner(place / "owners" / "anna.key").node, certificate)
    assert fleet.connect()
    fleet.leave()


def test_nobody_there(place, capfd, tmp_path):
    line = joining(place, capfd, tmp_path, f"localhost:{free_port()}")
    assert "cannot be reached" in line and line.endswith(
        "check the address, the port and the network; gave up after 1 s"
    )


@pytest.mark.parametrize(
    "address", ["https://museum.example", "museum.example:8443/", "a b", "", "::1:x", "x:port", "x:123456"]
)
def test_an_address_that_is_none(place, capfd, tmp_path, address):
    line = joining(place, capfd, tmp_path, address)
    assert line == f"'{address}' is no HOST or HOST:PORT, such as museum.example.org:8443"


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_is_no_certificate(place, capfd, tmp_path, content):
    (tmp_path / "ca.crt").write_bytes(content)
    line = joining(place, capfd, tmp_path, "localhost:1", "--ca", tmp_path / "ca.crt")
    assert line == "what --ca names is no certificate; ask who runs the server for its ca.crt"


def test_plain_is_for_this_machine_only(place, capfd, tmp_path):
    assert "it is for this machine only" in joining(place, capfd, tmp_path, "museum.example:1", "--plain")


def test_what_is_readable_goes_through_no_proxy_and_follows_nobody(place, plain, monkeypatch, tmp_path, capfd):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    fleet = Fleet(f"127.0.0.1:{plain}", keys.load_owner(place / "owners" / "anna.key").node, None)
    assert fleet.connect()
    fleet.leave()

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{plain}{self.path}")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        line = joining(place, capfd, tmp_path, f"127.0.0.1:{server.server_port}", "--plain")
        server.shutdown()
        thread.join()
    assert "answered with HTTP status 307" in line


def test_two_programs_in_one_folder(place, secured, capfd, tmp_path):
    with join._alone(tmp_path / "o"):
        line = joining(place, capfd, tmp_path, f"localhost:{secured}")
    assert "another fedfields is at work in" in line and "choose another folder" in line


def test_an_owner_is_told_of_a_reply_that_came_too_late(monkeypatch):
    message, told = SimpleNamespace(metadata=SimpleNamespace(group_id="7")), []
    monkeypatch.setattr(join, "_answer", lambda *arguments: (message, 0.0))
    fleet = SimpleNamespace(receive=lambda: message, reply=lambda reply, seconds: 0)
    join._turn(fleet, None, None, told.append)
    assert told == ["round 7: the server did not wait for this reply, and did not take it"]


def serving(place, tmp_path, *more):
    door = ["--owners", place / "owners", "--keys", place / "server", "--out", tmp_path / "run", "--no-report"]
    return ["serve", place / "experiment.toml", *door, *more]


def test_a_port_that_is_taken(place, secured, capfd, tmp_path):
    line = refused(capfd, *serving(place, tmp_path, "--port", secured))
    assert line.startswith(f"cannot listen on 127.0.0.1 port {secured}") and "choose another --host or --port" in line


def test_too_few_owners_in_time(place, capfd, tmp_path):
    line = refused(capfd, *serving(place, tmp_path, "--port", 0, "--deadline", 0.5))
    assert "only 0 of the 1 owners that a round needs are here after 0.5 s" in line


def test_more_owners_needed_than_there_are(place, capfd, tmp_path):
    line = refused(capfd, *serving(place, tmp_path, "--port", 0, "--least", 3))
    assert line == "a round needs 3 owners, and only 1 have handed in their .pub files"


@pytest.mark.parametrize("file", ["server.crt", "server.key"])
def test_a_server_s_certificate_that_is_none(place, capfd, tmp_path, file):
    (tmp_path / "server").mkdir()
    for name in ("server.crt", "server.key"):
        content = b"none" if name == file else (place / "server" / name).read_bytes()
        (tmp_path / "server" / name).write_bytes(content)
    line = refused(capfd, *serving(place, tmp_path, "--port", 0, "--keys", tmp_path / "server"))
    assert "cannot be used as a certificate" in line


def greeted(place, tmp_path, changes, require=()):
    """What an owner says to greetings, each of which differs from what a server says in some values."""
    setup = Serving(keys.load_roster(place / "owners"), Address(), Rules(), print).set_up(imaged())
    key = keys.load_owner(place / "owners" / "anna.key")
    owner = Owner(place / "data", key, tmp_path / "o", Policy(require), lambda line: None)
    for change in changes:
        letter = _greeting(setup, ["anna"])(0, bytes(16))
        answer = owner.hello(Letter(letter.trees, letter.info | change), None)
    return answer


def imaged(**changes):
    experiment = preset("maml")
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, kind="image", size=12), **changes)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"version": "0.0.9"}, r"the server runs fedfields 0\.0\.9, this owner \d"),
        ({"version": None}, "the server runs fedfields None"),
        ({"experiment": json.dumps(to_json(published(imaged(seed=5))))}, "changed the experiment"),
        ({"experiment": "{"}, "experiment cannot be read"),
        ({"experiment": "[" * 100_000}, "experiment cannot be read"),
        ({"experiment": 7}, "sent no experiment"),
        ({"names": ["bert"]}, "takes this owner for somebody else"),
    ],
    ids=["version", "no version", "changed", "half", "deep", "none", "name"],
)
def test_an_owner_declines(place, tmp_path, change, words):
    assert greeted(place, tmp_path, [{}]).info == {}
    with pytest.raises(Declined, match=words):
        greeted(place, tmp_path, [{}, change])


def test_an_owner_insists_on_a_protection(place, tmp_path):
    with pytest.raises(Declined, match=r"takes part only with privacy:sec-agg, and the run has no such thing"):
        greeted(place, tmp_path, [{}], require=("sec-agg",))


def test_what_an_owner_says_of_other_errors_names_no_file(place, tmp_path):
    told = []
    owner = Owner(place, keys.load_owner(place / "owners" / "anna.key"), tmp_path, Policy(), told.append)
    for error in (UserError("/home/anna/secret.png is damaged"), OSError(5, "no", "/home/anna/secret.png")):
        assert "anna" not in owner.guard(error) and "secret" not in owner.guard(error)
    assert all("secret.png" in line for line in told)


def test_weights_by_size_are_those_of_a_simulation():
    """Shares of the largest for a place, whoever comes first; numbers of signals for pictures."""
    place, pictures, sizes = [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], {}
    for client, size in ((2, 30000.0), (0, 60000.0), (1, 15000.0)):
        sizes[client] = size
        weigh(sizes, place, True)
    assert place == [1.0, 0.25, 0.5]
    weigh({0: 3.0, 1: 1.0, 2: 7.0}, pictures, False)
    assert pictures == [3.0, 1.0, 7.0]
