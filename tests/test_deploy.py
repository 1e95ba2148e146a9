"""deploy/ and the commands in the documentation: they parse, and every flag in them exists."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fedfields.cli import JoinFlags, KeysFlags, ServeFlags, _parse, _split, experiment_of
from fedfields.cli_map import VERBS, Reach, TrainFlags
from fedfields.cli_map import JoinFlags as JoinMapFlags
from fedfields.cli_map import ServeFlags as MapFlags
from fedfields.connect import host_and_port
from fedfields.mapping.store import MapSettings

HOME = Path(__file__).parent.parent
UNITS = sorted((HOME / "deploy").glob("*.service"))
PAGES = [HOME / "README.md", HOME / "docs" / "deployment.md"]


def checked(words):
    """The settings of a command line of keys, serve or join; a UserError if it is none."""
    command, *rest = words
    if command == "serve":
        words = ["maml", *(word for word in rest if not word.endswith(".toml") and word != "--resume")]
        return experiment_of(words, ServeFlags(), "serve", "")[0]
    given, flags = _split(rest)
    if command == "keys":
        assert given[0] in ("owner", "server")
        return _parse(KeysFlags, KeysFlags(), flags, "", "")
    (host,) = given
    host_and_port(host)
    return _parse(JoinFlags, JoinFlags(), flags, "", "")


def unit(path):
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str
    parser.read_string(re.sub(r"(?m)^#.*\n", "", path.read_text()))
    return parser


def command_of(service):
    """What a unit starts, as words; a shell's line is taken apart."""
    words = shlex.split(service["ExecStart"])
    if words[0] == "/bin/sh":
        words = shlex.split(words[2].replace("$$(test -e run/experiment.json && echo --resume)", ""))[1:]
    return words


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_start_what_exists_and_shut_the_rest_out(path):
    parser = unit(path)
    service = parser["Service"]
    program, *words = command_of(service)
    assert program == "/opt/fedfields/bin/fedfields" and words[0] == path.stem.removeprefix("fedfields-")
    settings = checked(words)
    assert not settings.plain
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "User": "fedfields",
              "StateDirectory": "fedfields", "KillSignal": "SIGINT", "RestartPreventExitStatus": "2"}  # fmt: skip
    assert {key: service[key] for key in wanted} == wanted
    assert parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_the_units(tmp_path):
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/fedfields/bin/fedfields", "/bin/true"))
    files = sorted(tmp_path.iterdir())
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0 and not told.stderr, told.stderr


def test_the_containers_start_what_exists_and_run_as_nobody_special():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((HOME / "deploy" / "docker-compose.yml").read_text())
    assert set(found["services"]) == {"serve", "join"}
    for name, service in found["services"].items():
        words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
        assert words[0] == name and not checked(words).plain
        assert service["user"] == "10001:10001" and service["read_only"] and service["cap_drop"] == ["ALL"]
        volumes = {volume.split(":-")[-1].rsplit(":", 1)[0].split(":")[0]: volume for volume in service["volumes"]}
        assert all(volume.endswith(":ro") or name in found["volumes"] for name, volume in volumes.items())
    assert "ports" not in found["services"]["join"], "owners open no port"
    context = (HOME / "deploy" / found["x-common"]["build"]["context"]).resolve()
    recipe = (context / found["x-common"]["build"]["dockerfile"]).read_text()
    for source in re.findall(r"(?m)^COPY (.+) \S+$", recipe):
        assert all((context / name).exists() for name in source.split()), source
    assert re.search(r"(?m)^USER fedfields$", recipe) and recipe.index("USER") > recipe.rindex("RUN")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_commands_in_the_documentation_parse(page):
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", page.read_text())
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = re.findall(r"(?m)^(?:\$ )?(?:sudo (?:-u \w+ )?)?fedfields ((?:keys|serve|join) .+?)(?:  +#.*)?$", text)
    assert lines
    for line in lines:
        checked(shlex.split(line.removesuffix("&"), comments=True))


def test_commands_in_the_page_about_maps_parse():
    kinds = {"create": MapSettings, "train": TrainFlags, "serve": MapFlags, "send": Reach, "join": JoinMapFlags}
    lines = re.findall(r"(?m)^fedfields map (.+?)(?: +#.*)?$", (HOME / "docs" / "map.md").read_text())
    assert {line.split()[0] for line in lines} == set(VERBS)
    for line in lines:
        verb, *rest = line.split()
        given, flags = _split(rest, ("--once",))
        assert given, line
        if verb in ("send", "join"):
            host_and_port(given[0])
        if verb in kinds:
            _parse(kinds[verb], kinds[verb](), flags, "", "")
        else:
            assert not flags, line
