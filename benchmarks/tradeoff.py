"""Quality against privacy: every method on the same pictures, every upload under the same attacks.

    python benchmarks/tradeoff.py --data DIR --out DIR [--rounds N] [--jobs N] [--quick] [--json]
    python benchmarks/tradeoff.py --objects DIR ...     the same on a set of objects in posed photographs

Each method is a run in its own folder under --out (a finished one is kept, so the benchmark can be interrupted), is
audited in full, and enters one table and one report. Ratios compare the method with MAML in the same benchmark:
"quality" is the share of MAML's gain over the random start at 8 steps, "leak" the share of MAML's gain over the floor.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fedfields.config import Experiment, preset
from fedfields.effort import AuditSettings
from fedfields.objectives import MeNF
from fedfields.privacy import Noise
from fedfields.scenes.data import Data
from fedfields.scenes.objects import Objects

GAMMAS = (0.25, 0.5, 0.75, 1.0)
EFFORT = AuditSettings(rounds=1, clients=2, matching_steps=200, newton_products=900, polish_steps=150)
"""The same for every method: two pictures of the first round, in which most leaks from most methods."""

EFFORT_ON_OBJECTS = AuditSettings(rounds=1, clients=1, matching_steps=40, newton_products=40, polish_steps=12)
"""A visit on rays costs some forty times as much to simulate, so it gets less of everything."""

QUICK = AuditSettings(rounds=1, clients=1, matching_steps=16, newton_products=40, polish_steps=8)
"""Enough to see that everything runs."""

NOISES = (1.0, 3.0, 10.0, 30.0)
PLAIN = ("local", "maml", "fomaml", "reptile", "meta-nsgd", "projected", "antithetic", "surrogate", "public")
OF_OBJECTS = ("local", "maml", "reptile", "public", "fomaml", "noised")


def small(part: Any) -> Any:
    """The part with inner loops on 256 samples and outer steps on the whole picture: cheap to simulate in attacks."""
    changes = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "inner":
            changes[field.name] = dataclasses.replace(value, batch=256)
        elif field.name == "outer_batch":
            changes[field.name] = 0
        elif dataclasses.is_dataclass(value):
            changes[field.name] = small(value)
    return dataclasses.replace(part, **changes)


def ready(name: str) -> Experiment:
    """A preset at the size of this benchmark: one outer step in a visit, so that attacks can simulate a visit."""
    base = preset(name)
    local = dataclasses.replace(base.local, steps=1)
    objective = base.objective if isinstance(base.data, Objects) else small(base.objective)
    return dataclasses.replace(base, objective=objective, local=local)


def methods() -> dict[str, Experiment]:
    """Every method of the comparison by name."""
    found = {name: ready(name) for name in PLAIN}
    base, noised = ready("fedmenf"), ready("noised")
    for ratio in NOISES:
        privacy = (Noise(noised.privacy[0].clip, ratio),)
        found[f"noise-{ratio:g}"] = dataclasses.replace(noised, privacy=privacy)
    for lr in (1e-3, 5e-5):
        for gamma in GAMMAS:
            objective = MeNF(base.objective.base, gamma)
            local = dataclasses.replace(base.local, lr=lr)
            found[f"fedmenf-{gamma:g}-lr{lr:g}"] = dataclasses.replace(base, objective=objective, local=local)
    return found


def methods_of_objects() -> dict[str, Experiment]:
    """The same on radiance fields. Adam hides how small the official outer step is, so FedMeNF gets two."""
    found = {name: ready(f"{name}-3d") for name in OF_OBJECTS}
    fedmenf = ready("fedmenf-3d")
    for lr in (1e-4, 1e-3):
        found[f"fedmenf-lr{lr:g}"] = dataclasses.replace(fedmenf, local=dataclasses.replace(fedmenf.local, lr=lr))
    return found


def one(name: str, experiment: Experiment, folder: Path, effort: AuditSettings) -> None:
    """Runs and audits one method, or what is missing of it."""
    from fedfields.runtime.audit_run import audit_run
    from fedfields.runtime.run import run

    if not (folder / "summary.json").exists():
        run(experiment, folder, name=name, resume=(folder / "experiment.json").exists())
    if experiment.rounds and not (folder / "audit.json").exists():
        audit_run(folder, effort)
    print(f"{name}: done", file=sys.stderr, flush=True)


def row(folder: Path) -> dict:
    """The figures of one method."""
    summary = json.loads((folder / "summary.json").read_text())
    audit = json.loads((folder / "audit.json").read_text()) if (folder / "audit.json").exists() else {}
    curve = summary["psnr"]["unseen"]
    return {
        "method": folder.name,
        "psnr": {step: curve[step] for step in ("1", "8", "32") if step in curve},
        "psnr_p": summary["psnr_p"],
        "quick": (summary["leak"] or {}).get("worst"),
        "worst": (audit.get("worst") or {}).get("psnr"),
        "real": audit.get("worst_real"),
        "attack": (audit.get("worst") or {}).get("attack"),
        "floor": (summary["floor"] or {}).get("constant"),
        "audit_floor": (audit.get("floor") or {}).get("constant"),
        "warnings": summary["warnings"],
    }


def with_ratios(rows: list[dict]) -> list[dict]:
    """Adds each method's quality and leak relative to MAML's."""
    by_name = {one["method"]: one for one in rows}
    maml, local = by_name["maml"], by_name["local"]
    for one in rows:
        gain = maml["psnr"]["8"] - local["psnr"]["8"]
        one["quality"] = (one["psnr"]["8"] - local["psnr"]["8"]) / gain
        known = None not in (one["worst"], maml["worst"])
        one["leak"] = (one["worst"] - one["audit_floor"]) / (maml["worst"] - maml["audit_floor"]) if known else None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures; the photographs of scikit-image by default")
    parser.add_argument("--objects", type=Path, help="folder of a set of objects, instead of pictures")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one by default")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--unseen", type=float, default=1 / 3)
    parser.add_argument("--jobs", type=int, default=2, help="methods at a time")
    parser.add_argument("--quick", action="store_true", help="three methods, a few rounds: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    size, chosen = 16 if options.quick else options.size, methods()
    data: Data | Objects = Data(path=options.data, size=size, unseen=options.unseen)
    if options.objects:
        data, chosen = Objects(path=options.objects, size=size, unseen=options.unseen), methods_of_objects()
    effort = EFFORT_ON_OBJECTS if options.objects else EFFORT
    if options.quick:
        effort = QUICK
        chosen = {name: chosen[name] for name in ("local", "maml", "public")}
    out = options.out or Path(tempfile.mkdtemp(prefix="tradeoff-"))
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = []
        for name, experiment in chosen.items():
            rounds = min(experiment.rounds, 4 if options.quick else options.rounds)
            experiment = dataclasses.replace(experiment, data=data, rounds=rounds, workers=1)
            if options.quick:
                adaptation = dataclasses.replace(experiment.adaptation, steps=32)
                experiment = dataclasses.replace(experiment, adaptation=adaptation)
            waiting.append(pool.submit(one, name, experiment, out / name, effort))
        failed = [str(task.exception()) for task in waiting if task.exception()]
    rows = with_ratios([row(out / name) for name in chosen if (out / name / "summary.json").exists()])
    from fedfields.report import write_report

    page = write_report([out / one["method"] for one in rows], out / "report.html")
    if options.json:
        print(json.dumps({"rows": rows, "failed": failed, "report": str(page)}))
        return
    print(f"{'method':22}{'k=1':>6}{'k=8':>6}{'k=32':>6}{'PSNR_p':>8}{'quick':>7}{'worst':>7}{'floor':>7}  attack")
    for one_row in rows:
        figures = [*one_row["psnr"].values(), *(one_row[key] for key in ("psnr_p", "quick", "worst", "audit_floor"))]
        cells = ["–" if value is None else f"{value:.1f}" for value in figures]
        widths = (6, 6, 6, 8, 7, 7, 7)
        print(f"{one_row['method']:22}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)), end="")
        print(f"  {one_row['attack'] or ''}")
    print("\n".join(failed))
    print(page)


if __name__ == "__main__":
    main()
