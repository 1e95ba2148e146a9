"""Kills runs: a child process dies by SIGKILL right before its n-th change of the disk, and another one resumes.

``python -m tests.runtime.crashes FOLDER CASES`` tries so many of these moments for each method, on the pictures in
FOLDER/pictures, and prints as JSON how many there are and what differed from an unbroken run afterwards. Children are
forked, so that a run costs no imports.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path

import safetensors.torch
import torch

from fedfields.config import choose
from fedfields.errors import UserError
from fedfields.objectives import Fit
from fedfields.runtime.run import run
from fedfields.scenes.data import Data
from tests.runtime.test_run import experiment_of

METHODS = {
    "scaffold": {"strategy": "scaffold"},
    "fedadam": {"strategy": "fedadam", "local-optimizer": "adam"},
    "sec-agg": {"privacy": "sec-agg"},
    "adaptive-noise": {"privacy": "adaptive-noise"},
}
"""With memory at the clients, at the server, of neither but with a protocol, and of noise that follows the norms."""

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")


def experiment(method, pictures):
    """Four short rounds with a checkpoint after each."""
    found = experiment_of(pictures, rounds=4, checkpoint_every=1, objective=Fit(batch=32), cohort=3)
    found = dataclasses.replace(found, data=Data(path=pictures, size=12))
    for axis, name in METHODS[method].items():
        found = choose(found, axis, name)
    return found


class Killer:
    """Counts changes of the disk in ``folder`` and dies before number ``fatal``; 0 for never."""

    def __init__(self, folder, fatal):
        self.folder, self.fatal, self.count = str(folder), fatal, 0
        sys.addaudithook(self.look)
        real = safetensors.torch.save_file

        def in_two_halves(tensors, path, metadata):
            real(tensors, path, metadata)
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            self.strike()
            Path(path).write_bytes(content)

        safetensors.torch.save_file = in_two_halves

    def look(self, event, details):
        changes = event in WRITES or (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and str(details[0]).startswith(self.folder):
            self.strike()

    def strike(self):
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Runs ``work`` in a forked process; its exit status as ``os.waitpid`` has it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return os.waitpid(pid, 0)[1]


def start_or_resume(experiment, folder):
    """What a supervisor does: resume if there is something to resume, else start."""
    try:
        run(experiment, folder, resume=True)
    except UserError as error:
        if "leave out --resume" not in str(error):
            raise
        run(experiment, folder)


def content(folder):
    """Every file of a run by name, without the clock.

    Under sec-agg, what the server saw are masks out of the operating system's entropy: two runs have only the weights
    in common, bit for bit.
    """
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    summary = json.loads(found.pop("summary.json"))
    found["metrics"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    found["summary"] = {key: value for key, value in summary.items() if key != "seconds"}
    record = json.loads(found.pop("experiment.json"))
    found["experiment"] = record["experiment"]
    return found


def lost_rounds(folder):
    """Rounds that were over, by the log, and are not in a checkpoint."""
    log, kept = folder / "metrics.jsonl", sorted((folder / "checkpoints").glob("round-*.safetensors"))
    over = log.read_text().count("\n") if log.exists() else 0
    return over - (int(kept[-1].stem.removeprefix("round-")) if kept else 0)


def crash(folder, method, cases, dice):
    """Kills runs at ``cases`` moments, or at all; how many moments there are, and what went wrong after which."""
    plan, whole = experiment(method, folder / "pictures"), folder / method / "whole"
    whole.parent.mkdir()

    def unbroken():
        killer = Killer(whole, 0)
        run(plan, whole)
        (folder / method / "count").write_text(str(killer.count))

    assert in_child(unbroken) == 0
    moments, wanted = int((folder / method / "count").read_text()), content(whole)
    chosen = sorted(dice.sample(range(1, moments + 1), min(cases, moments)))
    found = {"moments": moments, "tried": len(chosen), "rounds_lost": 0, "different": {}}
    for fatal in chosen:
        broken = folder / method / f"broken-{fatal}"

        def dies(broken=broken, fatal=fatal):
            Killer(broken, fatal)
            run(plan, broken)

        status = in_child(dies)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        found["rounds_lost"] = max(found["rounds_lost"], lost_rounds(broken))
        assert in_child(lambda broken=broken: start_or_resume(plan, broken)) == 0
        after = content(broken)
        names = {"model.safetensors"} if method == "sec-agg" else wanted.keys() | after.keys()
        if wrong := sorted(name for name in names if wanted.get(name) != after.get(name)):
            found["different"][fatal] = wrong
        shutil.rmtree(broken)
    return found


def main(folder, cases):
    torch.set_num_threads(1)
    run(experiment("scaffold", folder / "pictures"), folder / "warm")  # Libraries load on first use: once, not in each.
    dice = random.Random(0)
    print(json.dumps({method: crash(folder, method, cases, dice) for method in METHODS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
