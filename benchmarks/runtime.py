"""Ways to reach a client: what a visit costs beside its training, the time to a first round, and memory.

    python benchmarks/runtime.py [--quick] [--json]

Every way runs the same experiment by the commands that people use: four owners of a picture of 8 x 8 pixels, a SIREN of
499,995 float32 weights (2.0 MB), one step on 16 pixels a visit, so that what is left is the way itself. "a visit" is a
round's median time (without the first) divided by its clients; "first round" runs from the start of the first program
until the round is in metrics.jsonl, so it holds the start of Python and torch; memory is the largest sum of PSS over
all programs of that way, looked at four times a second, and of one owner's program. Deployed ways have a server
and four owners' programs on this machine, which share its cores. "as bytes" is one such message through Flower's
serialisation and back, in one process.
"""

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

OWNERS = ("anna", "bert", "cleo", "dora")
EXPERIMENT = """preset = "reptile"
parts = ["objective:fit"{parts}]
rounds = {rounds}
cohort = 4
evaluate_every = 1000000
field.width = 498
objective.batch = 16

[local]
steps = 1

[data]
kind = "image"
size = 8
held_out = 0.0
unseen = 0.0
"""


class Found(NamedTuple):
    """What was measured of one way, in seconds and bytes."""

    visit: float
    first: float
    memory: int
    owner: int = 0


def fedfields(*words: object, **more) -> subprocess.Popen:
    """The command line in a process of its own, silent."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "fedfields", *map(str, words)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)


def finished(process: subprocess.Popen) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(errors.decode())


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def pss(pid: int) -> int:
    """Bytes of a process, where pages that several share count in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def watched(run: Path, started: float, processes: Sequence[subprocess.Popen]) -> Found:
    """Waits for the first of the processes, and looks at all meanwhile."""
    first, memory, owner = 0.0, 0, 0
    record = run / "metrics.jsonl"
    while processes[0].poll() is None:
        if not first and record.exists() and record.stat().st_size:
            first = time.monotonic() - started
        each = [sum(map(pss, family(process.pid))) for process in processes]
        memory, owner = max(memory, sum(each)), max([owner, *each[1:]])
        time.sleep(0.25 if first else 0.05)
    for process in processes:
        finished(process)
    rounds = [json.loads(line) for line in record.read_text().splitlines()]
    assert all(not one["dropped"] and len(one["cohort"]) == len(OWNERS) for one in rounds[1:]), rounds
    return Found(statistics.median(one["seconds"] for one in rounds[1:]) / len(OWNERS), first, memory, owner)


def simulated(folder: Path, experiment: Path, *words: str) -> Found:
    """All clients on this machine, by ``fedfields run``."""
    started, out = time.monotonic(), folder / "run"
    more = ("--data", folder / "data", "--out", out, "--no-report")
    return watched(out, started, [fedfields("run", experiment, *more, *words)])


def deployed(folder: Path, experiment: Path, *, plain: bool) -> Found:
    """A server and an owner's program for each client, by ``fedfields serve`` and ``fedfields join``."""
    finished(fedfields("keys", "server", "--host", "localhost", "--out", folder / "server"))
    for name in OWNERS:
        finished(fedfields("keys", "owner", name, "--out", folder / "keys"))
    out, port = folder / "run", free_port()
    door = ("--plain",) if plain else ("--keys", folder / "server")
    way = ("--plain",) if plain else ("--ca", folder / "server" / "ca.crt")
    started = time.monotonic()
    line = ("--owners", folder / "keys", "--port", port, "--least", 4, "--out", out, "--no-report", *door)
    processes = [fedfields("serve", experiment, *line)]
    for name in OWNERS:
        mine = ("--data", folder / "data" / name, "--key", folder / "keys" / f"{name}.key", "--out", folder / name)
        processes.append(fedfields("join", f"localhost:{port}", *mine, *way))
    return watched(out, started, processes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def as_bytes(times: int) -> float:
    """Seconds of a message with all weights from one letter to the next."""
    import torch
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.task_identity import TaskIdentity

    from fedfields.runtime.desk import Letter
    from fedfields.runtime.wire import pack, unpack

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    letter, spent = Letter({"params": {"w": torch.randn(499_995)}}, {}), []
    for _ in range(times):
        before = time.perf_counter()
        message = Message(pack(*letter), 1, "train.visit")
        pieces = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        found = unpack(inflate_object_from_contents(message.object_id, pieces).content)
        spent.append(time.perf_counter() - before)
        assert torch.equal(found.trees["params"]["w"], letter.trees["params"]["w"])
    return statistics.median(spent)


@contextmanager
def prepared(rounds: int, parts: str = "") -> Iterator[tuple[Path, Path]]:
    """A folder with the owners' pictures, and the experiment's file."""
    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        for owner in OWNERS:
            (folder / "data" / owner).mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "data" / owner / "one.png")
        path = folder / "experiment.toml"
        path.write_text(EXPERIMENT.format(rounds=rounds, parts=parts))
        yield folder, path


def measure(quick: bool) -> dict:
    rounds = 5 if quick else 20
    ways = {
        "in process": lambda *at: simulated(*at),
        "Ray, 2 workers": lambda *at: simulated(*at, "--runtime", "flower", "--workers", "2"),
        "deployed, plain": lambda *at: deployed(*at, plain=True),
        "deployed, TLS": lambda *at: deployed(*at, plain=False),
        "deployed, TLS, secure sums": lambda *at: deployed(*at, plain=False),
    }
    if not importlib.util.find_spec("ray"):
        del ways["Ray, 2 workers"]
    rows = {}
    for name, way in ways.items():
        with prepared(rounds, ', "privacy:sec-agg"' if "secure" in name else "") as at:
            rows[name] = way(*at)._asdict()
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"rounds": rounds, "bytes_s": as_bytes(20), "rows": rows}


def show(found: dict) -> None:
    print(f"{found['rounds']} rounds, {len(OWNERS)} clients; as bytes and back: {1e3 * found['bytes_s']:.1f} ms\n")
    print(f"{'way':28s} {'a visit':>10s} {'first round':>12s} {'memory':>9s} {'one owner':>10s}")
    for name, row in found["rows"].items():
        owner = f"{row['owner'] / 1e6:7.0f} MB" if row["owner"] else "-"
        print(
            f"{name:28s} {1e3 * row['visit']:7.0f} ms {row['first']:10.1f} s {row['memory'] / 1e6:6.0f} MB {owner:>10s}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five rounds instead of twenty")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = measure(given.quick)
    print(json.dumps(found, indent=2)) if given.json else show(found)


if __name__ == "__main__":
    main()
