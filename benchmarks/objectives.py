"""One client update of each objective, on one thread, against the sgemm ceiling and two plain references.

    python benchmarks/objectives.py [--quick] [--json]

Columns: milliseconds of one outer step (median), fraction of the sgemm ceiling (matrix products counted by
torch's own flop counter on the reference), ratio of the reference's time to ours (above 1: we are faster) for
"module" (nn.Module and autograd) and "batched" (every layer a batched product over a task axis of length one, as
the official FedMeNF code runs it through vmap), and peak memory of one step above the idle process, ours and the
module's.
The last lines are the overhead of a simulated round (everything but the client's arithmetic, per client), and what the
whole machine does: outer steps by worker processes of one thread each, against the batched form on all threads.
"""

import argparse
import ctypes
import itertools
import json
import os
import statistics
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from measure import median, sgemm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedfields import tree
from fedfields.federation import Local, Method, Visit, start_server
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.objectives import Fit, Inner, Maml, MeNF, Objective, Reptile
from fedfields.runtime.inprocess import Context, Settings, run_rounds, train
from fedfields.runtime.pool import Pool
from fedfields.scenes.grid import GridSignal
from fedfields.types import Batch, Client, Task

CONFIGURATIONS = [(5, 128, 256), (5, 128, 1024), (5, 256, 4096), (6, 256, 1024)]
"""Sine layers, width, samples per step."""

QUICK = [(5, 128, 256), (6, 256, 256)]
STEPS, RATE = 8, 0.01


def median_ms(step: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call, for about the given time (at least three calls)."""
    return 1e3 * median(step, 3, seconds)


class ModuleSiren(nn.Module):
    """The plain way to write it."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        sizes = [3] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last_layer = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.last_layer(x) + 0.5


def batched_siren(depth: int) -> Callable:
    """Every layer a batched product, with a leading task axis of length one on weights and inputs."""

    def forward(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        x = x[None]
        for i in range(depth):
            weight, bias = params[f"layers.{i}.weight"][None], params[f"layers.{i}.bias"][None, None]
            x = torch.sin(30 * (torch.bmm(x, weight.transpose(1, 2)) + bias))
        weight, bias = params["last_layer.weight"][None], params["last_layer.bias"][None, None]
        return (torch.bmm(x, weight.transpose(1, 2)) + bias)[0] + 0.5

    return forward


def reference_step(forward: Callable, params: dict, batches: list[Batch], method: str) -> list[torch.Tensor]:
    """One outer gradient in the fewest words: the reference for time and for the flop count."""

    def loss(weights: dict, batch: Batch) -> torch.Tensor:
        return (forward(weights, batch.inputs) - batch.targets).square().mean()

    second = method in ("maml", "fedmenf")
    w = {key: leaf.detach().requires_grad_() for key, leaf in params.items()}
    phi = w
    for batch in batches[:-1]:
        grads = torch.autograd.grad(loss(phi, batch), list(phi.values()), create_graph=second)
        phi = {key: phi[key] - RATE * grad for key, grad in zip(phi, grads, strict=True)}
        if not second:
            phi = {key: leaf.detach().requires_grad_() for key, leaf in phi.items()}
    if method == "reptile":
        return [w[key].detach() - phi[key].detach() for key in w]
    value = loss(phi, batches[-1])
    if method == "fedmenf":
        value = value - 0.75 * loss(w, batches[-1])
    return list(torch.autograd.grad(value, list((w if second else phi).values())))


def objectives(samples: int) -> dict[str, Objective]:
    maml = Maml(Inner(STEPS, RATE, samples, clip=0.0), outer_batch=samples)
    return {
        "maml": maml,
        "fomaml": replace(maml, first_order=True),
        "reptile": Reptile(maml.inner),
        "fedmenf": MeNF(maml, 0.75),
    }


def peak_mb(step: Callable[[], object]) -> float:
    """Peak resident memory of one call in a forked child, above what the child had before it, watched every 2 ms.

    The kernel's own high-water mark would not do: a child inherits its parent's.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).malloc_trim(0)  # Or what earlier steps left behind would be taken for free.
        before, done, most = resident(), threading.Event(), [0]

        def watch() -> None:
            while not done.wait(0.002):
                most[0] = max(most[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        step()
        done.set()
        watcher.join()
        os.write(write, str(max(most[0] - before, 0)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read() or 0) / 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(depth: int, width: int, samples: int, gflops: float, seconds: float) -> list[dict]:
    """All objectives at one configuration, each next to its references in the same minute."""
    field = Siren(width, depth)
    generator = torch.Generator().manual_seed(0)
    params = field.init(3, 3, generator)
    signal = GridSignal(torch.rand(1, 64, 64, 3, generator=generator))
    task = Task(signal, signal)
    batches = [signal.sample(samples, generator) for _ in range(STEPS + 1)]
    module = ModuleSiren(depth, width)

    def as_module(weights: dict, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, weights, (x,))

    rows = []
    for name, objective in objectives(samples).items():

        def ours(objective: Objective = objective) -> object:
            random = torch.Generator().manual_seed(0)
            return objective.estimate(params, task, FieldLoss(field), Visit(params, random))

        def plain(name: str = name) -> object:
            return reference_step(as_module, params, batches, name)

        def batched(name: str = name) -> object:
            return reference_step(batched_siren(depth), params, batches, name)

        counter = FlopCounterMode(display=False)
        with counter:
            plain()
        times = {key: median_ms(step, seconds) for key, step in (("ms", ours), ("module", plain), ("batched", batched))}
        rows.append(
            {
                "field": f"{depth}x{width}",
                "samples": samples,
                "objective": name,
                "ms": times["ms"],
                "of_ceiling": counter.get_total_flops() / (times["ms"] * 1e6) / gflops,
                "module_over_ours": times["module"] / times["ms"],
                "batched_over_ours": times["batched"] / times["ms"],
                "peak_mb": peak_mb(ours),
                "module_peak_mb": peak_mb(plain),
            }
        )
    return rows


class NoWork(Fit):
    """An objective without arithmetic: what is left of a round is overhead."""

    def estimate(self, params, task, loss, visit):
        from fedfields.objectives import Estimate

        return Estimate(GRADS, {})


GRADS: dict[str, torch.Tensor] = {}


def overhead_ms(seconds: float) -> dict:
    """Milliseconds per client and round of a simulation with 500,000 weights whose clients do no arithmetic.

    The outer step itself (one axpy) is the client's; it is measured alone and subtracted.
    """
    global GRADS
    generator = torch.Generator().manual_seed(0)
    params = {f"layer{i}": torch.randn(250, 250, generator=generator) for i in range(8)}
    GRADS = tree.scale(params, 1e-3)
    signal = GridSignal(torch.zeros(2, 2, 3))
    clients = [Client(f"client-{i}", (Task(signal, signal),)) for i in range(10)]
    method = Method(NoWork(), Local(1, lr=1e-3, clip=0.0))
    rounds = 20
    whole = median_ms(lambda: train(method, clients, FieldLoss(Siren()), params, rounds=rounds, cohort=10), seconds)
    step = median_ms(lambda: tree.add(params, GRADS, -1e-3), min(seconds, 1.0))
    return {"weights": tree.size(params), "ms_per_client_round": whole / (rounds * 10) - step}


def machine(seconds: float) -> list[dict]:
    """Milliseconds per outer step when all cores work: our worker processes, and the batched form on all threads."""
    depth, width, samples, cores = 5, 128, 256, os.cpu_count() or 1
    field = Siren(width, depth)
    generator = torch.Generator().manual_seed(0)
    params = field.init(3, 3, generator)
    signal = GridSignal(torch.rand(1, 64, 64, 3, generator=generator))
    batches = [signal.sample(samples, generator) for _ in range(STEPS + 1)]
    clients = tuple(Client(f"client-{i}", (Task(signal, signal),)) for i in range(2 * cores))
    rows = []
    for name, objective in objectives(samples).items():
        context = Context(Method(objective, Local(10, lr=1e-3)), clients, FieldLoss(field))
        with Pool(context, cores) as pool:
            state = start_server(context.method.strategy, params)
            rounds = run_rounds(context, Settings(1_000_000, len(clients)), state, {}, pool)
            next(rounds)  # Starts the processes.
            times = []
            while len(times) < 2 or sum(times) < seconds:
                times.append(next(rounds).record["seconds"])
        ours = 1e3 * statistics.median(times) / (10 * len(clients))
        torch.set_num_threads(cores)
        theirs = median_ms(lambda name=name: reference_step(batched_siren(depth), params, batches, name), seconds)
        torch.set_num_threads(1)
        rows.append({"objective": name, "cores": cores, "ms": ours, "batched_over_ours": theirs / ours})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, fewer configurations")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 0.3 if options.quick else 2.0
    gflops = sgemm(3, 1.0) / 1e9
    rows = [
        row
        for depth, width, samples in (QUICK if options.quick else CONFIGURATIONS)
        for row in measure(depth, width, samples, gflops, seconds)
    ]
    result = {
        "sgemm_gflops": gflops,
        "objectives": rows,
        "simulation": overhead_ms(seconds),
        "machine": machine(seconds),
    }
    if options.json:
        json.dump(result, sys.stdout)
        print()
        return
    print(f"sgemm ceiling {gflops:.0f} GFLOP/s, one thread, torch {torch.__version__}")
    print(
        f"{'field':8}{'samples':>8} {'objective':10}{'ms':>9}{'ceiling':>9}{'/module':>9}{'/batched':>9}"
        f"{'peak MB':>9}{'module':>8}"
    )
    for row in rows:
        print(
            f"{row['field']:8}{row['samples']:8} {row['objective']:10}{row['ms']:9.1f}{row['of_ceiling']:9.0%}"
            f"{row['module_over_ours']:9.2f}{row['batched_over_ours']:9.2f}{row['peak_mb']:9.0f}{row['module_peak_mb']:8.0f}"
        )
    one = result["simulation"]
    print(
        f"simulation overhead: {one['ms_per_client_round']:.2f} ms per client and round at {one['weights']:,} weights"
    )
    for row in result["machine"]:
        print(
            f"{row['cores']} cores, 5x128, 256 samples, {row['objective']}: {row['ms']:.1f} ms an outer step, "
            f"{row['batched_over_ours']:.2f} times the batched form on {row['cores']} threads"
        )


if __name__ == "__main__":
    main()
