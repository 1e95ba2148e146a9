"""The command line between machines: experiment files, hosts, bad lines, and what an owner's terminal shows."""

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from fedfields.cli import ServeFlags, experiment_of
from fedfields.config import choose, preset
from fedfields.connect import host_and_port
from fedfields.errors import UserError
from fedfields.runtime.desk import Letter
from fedfields.runtime.join import _told
from fedfields.runtime.keys import make_owner, make_server
from fedfields.runtime.owner import Log, Policy
from fedfields.terminal import _served, busy, said
from tests.runtime.test_run import fails

EXPERIMENT = """
preset = "fedmenf"
parts = ["privacy:sec-agg", "strategy:scaffold"]
rounds = 3
cohort = 4
gamma = 0.5

[data]
kind = "image"
held_out = 0.0
crop = false
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with keys, a roster, a certificate, data and an experiment, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owners").mkdir()
    for name in ("anna", "bert", "cleo"):
        _, public = make_owner(name, tmp_path / "keys")
        shutil.copy(public, tmp_path / "owners")
    make_server(["localhost"], tmp_path / "server")
    (tmp_path / "data").mkdir()
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    return tmp_path


# --- experiments ------------------------------------------------------------------------------------------------


def test_a_file_says_what_a_command_line_says(place):
    settings, found, name = experiment_of(["exp.toml"], ServeFlags(), "serve", "")
    wanted = choose(choose(preset("fedmenf"), "privacy", "sec-agg"), "strategy", "scaffold")
    assert name == "fedmenf" and found.strategy == wanted.strategy and found.privacy == wanted.privacy
    assert (found.rounds, found.cohort, found.objective.gamma) == (3, 4, 0.5)
    assert (found.data.kind, found.data.held_out, found.data.crop) == ("image", 0.0, False)
    line = "fedmenf privacy:sec-agg strategy:scaffold --rounds 3 --cohort 4 --gamma 0.5 --data.kind image"
    words = [*line.split(), "--no-data.crop", "--data.held-out", "0"]
    assert experiment_of(words, ServeFlags(), "serve", "")[1] == found
    assert settings == ServeFlags()


def test_the_line_has_the_last_word(place):
    flags = ["--rounds", "7", "exp.toml", "--gamma", "0.25", "--port", "9", "strategy:fednova"]
    settings, found, _ = experiment_of(flags, ServeFlags(), "serve", "")
    assert (found.rounds, found.objective.gamma, settings.port) == (7, 0.25, 9)
    assert found.strategy == choose(preset("fedmenf"), "strategy", "fednova").strategy


@pytest.mark.parametrize(
    "text, words",
    [
        ("rounds = 3", 'needs a line preset = "NAME"'),
        ("preset = 3", 'needs a line preset = "NAME"'),
        ('preset = "maml"\nparts = "privacy:sec-agg"', "parts ="),
        ('preset = "maml"\nparts = [1]', "parts ="),
        ('preset = "mamml"', "no preset 'mamml'"),
        ('preset = "maml"\nrouns = 3', "--rouns"),
        ('preset = "maml"\nrounds = [3]', "rounds is list"),
        ('preset = "maml"\nrounds = 2020-01-01', "rounds is date"),
        ('preset = "maml"\nrounds = "many"', "--rounds"),
        ('preset = "maml"\n[local]\nstepps = 2', "--local.stepps"),
        ('preset = "maml"\nrounds 3', "is no TOML file"),
        ("x = " + "[" * 5000, "is no TOML file"),
        ("\x00", "is no TOML file"),
    ],
)
def test_a_bad_file_is_one_clear_line(place, capsys, text, words):
    (place / "exp.toml").write_text(text)
    assert words in fails(capsys, "serve", "exp.toml", "--keys", "server", "--out", "run")
    assert not (place / "run").exists()


def test_a_file_that_cannot_be_read_is_one_clear_line(place, capsys):
    assert "none.toml cannot be read (No such file" in fails(capsys, "serve", "none.toml")
    (place / "bytes.toml").write_bytes(b'preset = "\xff"')
    assert "is no TOML file" in fails(capsys, "serve", "bytes.toml")
    assert "one experiment at a time" in fails(capsys, "serve", "exp.toml", "bytes.toml")


# --- hosts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, found",
    {
        "museum.example.org": ("museum.example.org", 8443),
        "museum.example.org:9000": ("museum.example.org", 9000),
        "10.77.0.1:80": ("10.77.0.1", 80),
        "[::1]:8443": ("::1", 8443),
        "[2001:db8::7]": ("2001:db8::7", 8443),
        "::1": ("::1", 8443),
        "fe80::1:2": ("fe80::1:2", 8443),
    }.items(),
)
def test_a_host_may_have_a_port(word, found):
    assert host_and_port(word) == found


@pytest.mark.parametrize(
    "word", ["", ":8443", "a:", "a:b", "a:0", "a:65536", "https://a", "a/b", "a b", "[::1", "[::1]:", "::1]:1", "a\n"]
)
def test_what_is_no_host_is_refused(word):
    with pytest.raises(UserError, match="is no HOST or HOST:PORT"):
        host_and_port(word)


# --- bad lines --------------------------------------------------------------------------------------------------

JOIN = ["join", "localhost", "--data", "data", "--key", "keys/anna.key"]
SERVE = ["serve", "exp.toml", "--keys", "server", "--out", "run"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["keys"], ["fedfields keys owner NAME"]),
        (["keys", "owner"], ["fedfields keys owner NAME"]),
        (["keys", "owner", "a", "b"], ["fedfields keys owner NAME"]),
        (["keys", "server", "x"], ["fedfields keys server"]),
        (["keys", "sever"], ["fedfields keys owner NAME"]),
        (["keys", "owner", "Anna"], ["'Anna' cannot be a name", "lower-case"]),
        (["keys", "owner", "anna", "--out", "keys"], ["keys/anna.key is already there", "--out"]),
        (["keys", "owner", "zoe", "--out", "exp.toml"], ["cannot write", "exp.toml"]),
        (["keys", "server", "--host", "a b", "--out", "more"], ["'a b' is no host name"]),
        (["serve"], ["which preset"]),
        (["serve", "maml"], ["server.crt is missing", "fedfields keys server"]),
        ([*SERVE, "--owners", "none"], ["none is no folder", ".pub"]),
        ([*SERVE, "--owners", "data"], ["holds no .pub files", "fedfields keys owner"]),
        ([*SERVE, "--port", "many"], ["--port is many", "whole number"]),
        ([*SERVE, "--port", "70000"], ["no port 70000", "--port"]),
        ([*SERVE, "--host", "192.0.2.1"], ["cannot listen on 192.0.2.1", "--host"]),
        ([*SERVE, "--least", "5"], ["needs 5 owners", "only 3"]),
        ([*SERVE, "--plain", "--host", "0.0.0.0"], ["--plain", "this machine only"]),
        ([*SERVE, "--warm-up", "3"], ["warm-up"]),
        ([*SERVE, "--data.kind", "auto"], ["owners must know what they share", "--data.kind image"]),
        (["serve", "nerf", "--keys", "server"], ["scene.json", "--data.frame"]),
        (["serve", "dp-fedavg", "--data.kind", "image", "--keys", "server"], ["known seed", "--noise secure"]),
        (["serve", "exp.toml", "--keys", "server", "--out", "data/.."], ["is not empty", "--out"]),
        (["join"], ["one HOST"]),
        (["join", "a", "b", "--data", "data", "--key", "k"], ["one HOST", "found 2"]),
        (["join", "localhost"], ["--data DIR", "--key NAME.key"]),
        ([*JOIN, "--ca", "none.crt"], ["none.crt cannot be read", "--ca"]),
        ([*JOIN, "--ca", "server/ca.crt", "--require", "sec-ag"], ["no protection 'sec-ag'", "'sec-agg'"]),
        ([*JOIN, "--ca", "server/ca.crt", "--owners", "data"], ["holds no .pub files"]),
        ([*JOIN, "--ca", "server/ca.crt", "--patience", "long"], ["--patience is long", "a number"]),
        (["join", "localhost", "--data", "none", "--key", "keys/anna.key"], ["none does not exist", "--data"]),
        (["join", "localhost", "--data", "data", "--key", "exp.toml", "--ca", "server/ca.crt"], ["exp.toml is no key"]),
        (["join", "museum.example.org", "--data", "data", "--key", "k", "--plain"], ["--plain", "museum.example.org"]),
        (["join", "https://a", "--data", "data", "--key", "k"], ["'https://a' is no HOST"]),
        (["join", "[::1]:99999", "--data", "data", "--key", "k"], ["is no HOST or HOST:PORT"]),
        ([*JOIN, "--ca", "server/ca.crt", "--caa", "x"], ["no setting --caa", "did you mean --ca"]),
    ],
    ids=lambda value: " ".join(value)[:60].replace("\n", "") if value and value[0] in ("keys", "serve", "join") else "",
)
def test_bad_command_lines_are_one_clear_line(place, capsys, arguments, words):
    before = sorted(place.rglob("*"))
    line = fails(capsys, *arguments)
    assert all(word in line for word in words), line
    assert sorted(place.rglob("*")) == before, "nothing half-written"


def test_an_address_that_is_taken_costs_no_folder(place, capsys):
    """The same line works once the other program is gone."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = fails(capsys, *SERVE, "--port", other.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in line and "another --host or --port" in line
    assert not (place / "run").exists()


# --- what terminals show -----------------------------------------------------------------------------------------

UPDATE = {"w": torch.zeros(3, 4), "b": torch.zeros(4)}


def told(tmp_path, kind, letter, weight):
    """The terminal's line and the log's line of one reply."""
    log = Log(tmp_path / "sent.jsonl", lambda: {"delta": UPDATE, "stats": {"weight": torch.tensor(1.0)}})
    line = log.write(kind, "7", letter, weight)
    written = json.loads((tmp_path / "sent.jsonl").read_text().splitlines()[-1])
    assert (log.messages, log.bytes) == (1, weight)
    return _told(line), written


def test_an_owner_is_told_of_an_update_in_the_clear(tmp_path):
    shown, line = told(tmp_path, "train.visit", Letter({"report/delta": UPDATE}, {}), 64)
    assert shown == "round 7: sent 64 bytes: your update, readable by the server (numbers: 16 of delta)"
    assert line["tensors"] == {"report/delta": {"w": ["float32", [3, 4]], "b": ["float32", [4]]}}
    assert not line["masked"] and not line["under_masks"] and line["bytes"] == 64


def test_an_owner_is_told_of_an_update_under_masks(tmp_path):
    shown, line = told(tmp_path, "train.masked", Letter({}, {"letter": bytes(90), "scaled": False}), 90)
    assert "90 bytes: your update under masks (numbers: 16 of delta, 1 of stats): noise" in shown
    assert line["masked"] and not line["tensors"] and set(line["under_masks"]) == {"delta", "stats"}
    assert line["values"] == {"letter": "90 bytes", "scaled": False}


def test_an_owner_is_told_of_everything_else(tmp_path):
    shown, line = told(tmp_path, "train.masked", Letter({}, {"failed": "it is Sunday"}), 0)
    assert shown == "round 7: sent no numbers, but a reason: it is Sunday"
    assert not line["masked"] and not line["under_masks"]
    shown, _ = told(tmp_path, "query.share", Letter({}, {"letter": b"abc"}), 3)
    assert shown == "round 7: sent 3 bytes: pieces of the masks' keys, each sealed for one other owner"
    assert told(tmp_path, "query.hello", Letter({}, {"size": 5.0}), 0)[0] == "round 7: told the server size 5.0"


def test_the_server_s_terminal_names_rounds_owners_failures_bytes_and_privacy():
    record = {"round": 2, "cohort": ["anna", "bert", "cleo"], "dropped": [{"client": "bert", "reason": "it has left"}],
              "bytes_up": 142_812, "bytes_down": 5_000_000, "seconds": 75.2, "epsilon": 1.234}  # fmt: skip
    line = _served(record, 9)
    assert line.startswith("round 2 of 9: 2 of 3 owners, 143 kB in, 5.0 MB out, 1 min 15 s, epsilon 1.23")
    assert line.endswith("without bert: it has left") and not re.search(r"\n", line)


def test_training_is_said_once_where_there_is_no_terminal(capsys):
    with busy("round 1: training on your data"):
        pass
    assert capsys.readouterr().err == "round 1: training on your data\n"


def test_nothing_from_the_network_moves_the_cursor(capsys):
    said("round \x1b[2J\x1b]0;mine\x07 [red]1[/]\r\n2: sent")
    assert capsys.readouterr().err == "round \ufffd[2J\ufffd]0;mine\ufffd [red]1[/]  2: sent\n"


def test_an_owner_hears_first_what_it_insists_on(tmp_path):
    lines = Policy(("sec-agg", "noise"), {"anna": None, "bert": None}).said("anna", Path("photos"), Path("out"))
    assert "stays on this machine" in lines[0] and "out/sent.jsonl" in lines[0]
    assert lines[1:] == [
        "nothing is sent unless the run has sec-agg and noise",
        "secure sums are made with anna, bert only",
    ]
    assert len(Policy().said("anna", Path("photos"), Path("out"))) == 1
