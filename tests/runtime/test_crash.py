"""Power cuts: processes killed, checkpoints damaged, disks full or read-only, memory used up. What is left goes on."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedfields.errors import UserError
from fedfields.objectives import Fit
from fedfields.runtime.checkpoint import existing, load
from fedfields.runtime.inprocess import train
from fedfields.runtime.pool import Pool
from fedfields.runtime.run import run
from tests.helpers import LOSS, clients_of, params_of
from tests.runtime.crashes import METHODS, content
from tests.runtime.test_inprocess import METHOD
from tests.runtime.test_run import ROOT, experiment_of, pictures, records  # noqa: F401

CASES = int(os.environ.get("FEDFIELDS_CASES", "0"))
"""More moments than usual, for nights."""


def test_killed_before_any_change_of_the_disk_a_run_resumes_to_the_bit(pictures, tmp_path):  # noqa: F811
    """Within rounds and between them, half-way through a checkpoint or a picture: every file is as if nothing was."""
    (tmp_path / "pictures").symlink_to(pictures)
    command = [sys.executable, "-m", "tests.runtime.crashes", str(tmp_path), str(CASES or 3)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600 + 30 * CASES)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found.keys() == METHODS.keys()
    for method, one in found.items():
        assert one["tried"] >= 3
        assert one["moments"] > 100 and one["rounds_lost"] <= 1 and not one["different"], method


# ---- Processes of the command line.


def command_line(data, out, *words):
    small = [
        "--data.size",
        "16",
        "--width",
        "16",
        "--inner.steps",
        "2",
        "--adaptation.steps",
        "2",
        "--evaluate-every",
        "99",
    ]
    return [sys.executable, "-m", "fedfields", "run", "maml", "--data", str(data), *small, "--rounds", "30",
            "strategy:scaffold", "--out", str(out), "--no-report", *map(str, words)]  # fmt: skip


def start(data, out, *words):
    process = subprocess.Popen(
        command_line(data, out, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return process


def rounds_over(out):
    log = out / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def wait_for(condition, seconds=200):
    """Whether it came true in time."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def workers_of(process):
    """The processes that work for ``process``: all its children but multiprocessing's tracker of resources."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found in Linux's /proc")
def test_killed_servers_and_workers_change_no_bit(pictures, tmp_path):  # noqa: F811
    """SIGKILL of the server, whose workers end with it; then, after resuming, of a worker, which is done without."""
    dice, out, words = random.Random(5), tmp_path / "run", ("--workers", 2)
    for _ in range(1 + CASES // 100):
        before = rounds_over(out)
        process = start(pictures, out, *words)
        assert wait_for(lambda before=before: rounds_over(out) > before + 1)
        time.sleep(dice.uniform(0, 0.3))
        workers = workers_of(process) if process.poll() is None else []
        process.kill()
        process.wait()
        process.stderr.close()  # Not read to its end: workers that live on would hold it open.
        assert wait_for(lambda workers=workers: not any(map(alive, workers)), 20), "workers outlive their server"
        kept = existing(out / "checkpoints")
        assert rounds_over(out) - int(kept[-1].stem.removeprefix("round-")) <= 1
        words = ("--workers", 2, "--resume")
    before, process = rounds_over(out), start(pictures, out, *words)
    assert wait_for(lambda: rounds_over(out) > before and workers_of(process))
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0 and "Traceback" not in errors
    command = command_line(pictures, tmp_path / "unbroken", "--workers", 1)
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "unbroken" / "model.safetensors").read_bytes()
    assert records(out) == records(tmp_path / "unbroken")


def double(context, number):
    return context * number


def test_workers_that_die_between_rounds_are_not_missed():
    jobs = [(i,) for i in range(4)]
    with Pool(10, workers=2) as pool:
        assert list(pool.map(double, jobs)) == [0, 10, 20, 30]
        for worker in list(pool._executor._processes.values()):  # pyright: ignore
            worker.kill()
            worker.join()
        for _ in range(2):
            assert list(pool.map(double, jobs)) == [0, 10, 20, 30]


# ---- What lies on the disk is damaged.

DAMAGE = {
    "truncated": lambda content, dice: content[: dice.randrange(len(content))],
    "a bit flipped": lambda content, dice: flipped(content, dice.randrange(len(content))),
    "empty": lambda content, dice: b"",
    "zeros": lambda content, dice: bytes(len(content)),
    "noise": lambda content, dice: dice.randbytes(len(content)),
    "a long header": lambda content, dice: (2**63).to_bytes(8, "little") + content[8:],
}


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(short(pictures), folder)
    return folder


def short(pictures, **changes):  # noqa: F811
    return experiment_of(pictures, **{"rounds": 3, "checkpoint_every": 1, "objective": Fit(batch=32)} | changes)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_older_checkpoint_is_found_when_the_newest_is_damaged(pictures, whole, tmp_path, damage):  # noqa: F811
    folder, said = tmp_path / "run", []
    run(short(pictures, rounds=2), folder)
    newest = existing(folder / "checkpoints")[-1]
    newest.write_bytes(DAMAGE[damage](newest.read_bytes(), random.Random(0)))
    run(short(pictures), folder, resume=True, warn=said.append)
    (line,) = (line for line in said if "checkpoints" in line)
    assert re.fullmatch(rf"{newest} is damaged \(.+\); going on from an older one", line)
    assert content(folder) == content(whole)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(whole):
    """In the header as in the numbers; none is loaded as if nothing were wrong."""
    newest = existing(whole / "checkpoints")[-1]
    original, header = newest.read_bytes(), int.from_bytes(newest.read_bytes()[:8], "little") + 8
    dice, said = random.Random(1), []
    places = [*range(8), *dice.sample(range(8, header), 60), *dice.sample(range(header, len(original)), 60)]
    try:
        for place in places:
            newest.write_bytes(flipped(original, place))
            load(whole / "checkpoints", warn=said.append)
    finally:
        newest.write_bytes(original)
    assert len(said) == len(places)


def test_all_checkpoints_damaged_is_one_line(pictures, whole, tmp_path):  # noqa: F811
    run(short(pictures, rounds=2), tmp_path / "run")
    for file in existing(tmp_path / "run" / "checkpoints"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; they are damaged: start the run anew"):
        run(short(pictures), tmp_path / "run", resume=True)


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"round": 2}', "\udcff", "[" * 9999, '{"round": 2, "cohort": 7}'])
def test_rounds_whose_figures_are_damaged_are_run_again(pictures, whole, tmp_path, line):  # noqa: F811
    """The accounting of noise needs every round's cohort: what the log lost is not taken from a checkpoint."""
    folder, said = tmp_path / "run", []
    run(short(pictures, rounds=2), folder)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line.encode("utf-8", "surrogateescape"), b""]))
    run(short(pictures), folder, resume=True, warn=said.append)
    assert f"{log}, line 2, is damaged; the rounds from 2 on are run again" in said
    assert content(folder) == content(whole)


def test_damaged_weights_are_refused_in_one_line(whole, tmp_path):
    from fedfields.runtime.checkpoint import load_weights

    original = (whole / "model.safetensors").read_bytes()
    for damage in DAMAGE.values():
        (tmp_path / "model.safetensors").write_bytes(damage(original, random.Random(3)))
        with pytest.raises(UserError, match="cannot be read as weights") as refusal:
            load_weights(tmp_path / "model.safetensors")
        assert "\n" not in str(refusal.value)


# ---- Disks that are full or may only be read.


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and a function that changes its size or makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)], capture_output=True
        )

    if sys.platform != "linux" or os.geteuid() != 0 or mount("size=4m").returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield place, lambda option: mount("remount", option)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("size", [0, 16, 32, 48, 64, 80, 100])
def test_a_full_disk_is_one_line_and_costs_one_round(pictures, whole, disk, size):  # noqa: F811
    """So many kB are enough for nothing, for some rounds, or for all but the pictures."""
    place, _ = disk
    folder = place / "run"
    (place / "ballast").write_bytes(bytes(4 * 2**20 - (size + 4) * 1024))
    with pytest.raises(UserError, match=r"cannot write .*No space left on device.*free some space") as refusal:
        run(short(pictures), folder)
    assert "\n" not in str(refusal.value)
    assert not list(place.rglob(".writing-*")), "nothing half-written"
    kept = load(folder / "checkpoints")
    assert rounds_over(folder) - (kept.state.round if kept else 0) <= 1
    (place / "ballast").unlink()
    if (folder / "experiment.json").exists():
        run(short(pictures), folder, resume=True)
    else:
        run(short(pictures), folder)
    assert content(folder) == content(whole)


def test_a_disk_that_turns_read_only_is_one_line_and_costs_one_round(pictures, whole, disk):  # noqa: F811
    place, remount = disk
    folder = place / "run"
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
        run(short(pictures), folder, on_round=lambda record, _: remount("ro") if record["round"] == 2 else None)
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
        run(short(pictures), folder, resume=True)
    remount("rw")
    assert load(folder / "checkpoints").state.round == 2
    run(short(pictures), folder, resume=True)
    assert content(folder) == content(whole)


# ---- Clients without memory, and slow ones.

HUNGRY = """
import json, resource, torch
from fedfields.runtime.inprocess import train
from tests.helpers import LOSS, params_of
from tests.runtime.test_crash import METHOD, marked_clients

def hungry(params, batch):
    return LOSS(params, batch) + (torch.ones(2**31).sum() if batch.targets.mean() > 2 else 0)

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
steps = []
train(METHOD, marked_clients(), hungry, params_of(dtype=torch.float32), rounds=2, cohort=3, on_round=steps.append)
lines = open("/proc/self/status").read().splitlines()  # Not getrusage: that counts what the parent had at the fork.
peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"dropped": [step.record["dropped"] for step in steps], "peak": peak}))
"""
"""A process that may have 1 GiB more; client-1 asks for 8."""


def marked_clients():
    """Three clients; the colours of client-1 are so bright that a loss can tell it from the others."""
    clients = clients_of(3)
    (task,) = clients[1].train
    bright = dataclasses.replace(task.support, values=task.support.values + 5)
    clients[1] = clients[1]._replace(train=(task._replace(support=bright, query=bright),))
    return clients


def test_a_client_that_runs_out_of_memory_is_dropped_and_named():
    done = subprocess.run([sys.executable, "-c", HUNGRY], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for (dropped,) in found["dropped"]:
        assert dropped["client"] == "client-1" and "memory" in dropped["reason"]
    assert len(found["dropped"]) == 2 and found["peak"] < 2**30


def test_a_round_waits_for_a_slow_client():
    """In one process nobody is late: the result is that without the delay."""

    def slow(params, batch):
        time.sleep(0.05 if batch.targets.mean() > 2 else 0)
        return LOSS(params, batch)

    quick, late = (
        train(METHOD, marked_clients(), loss, params_of(dtype=torch.float32), rounds=1, cohort=3)
        for loss in (LOSS, slow)
    )
    assert all(torch.equal(quick[key], late[key]) for key in quick)
