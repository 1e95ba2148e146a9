"""FedNeRF on the lego scene: four owners, photographs dealt out or by sector, whole weights or low-rank ones.

    python benchmarks/fednerf.py [--data DIR] [--out DIR] [--quick] [--json]

After Holden et al., arXiv 2305.01163: a server warms a coarse and fine NeRF up on 20 public photographs; four owners of
the other 80 train from there with an Adam of their own, and their weights are averaged after every MERGE steps. Beside
them, one owner of all 80 takes as many steps from the same weights ("centralised"). Two comparisons are the paper's:

    same steps        a federation after T steps at every owner, against T centralised ones
    same total steps  a federation after T/4 steps at every owner, against T centralised ones

PSNR is the mean over five test photographs, the same after every merge; megabytes are those of all reports so far. Runs
lie under --out (a finished one is kept, an interrupted one goes on), with their curves in psnr.svg.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

from fedfields.config import Experiment, preset
from fedfields.errors import UserError
from fedfields.fields import CoarseFine, LowRank, Nerf
from fedfields.objectives import Fit
from fedfields.report.figures import DECIBELS, Line, over_rounds, save_chart
from fedfields.scenes.scene import Scene
from fedfields.store import read_json

OWNERS, PUBLIC, TESTS = 4, 20, 5


def base(data: Path, quick: bool) -> Experiment:
    """The preset at the size of this benchmark; with a constant step size, short runs are the start of long ones."""
    ready = preset("fednerf")
    return dataclasses.replace(
        ready,
        data=Scene(data, size=25 if quick else 50, clients=OWNERS, tests=TESTS, public=PUBLIC),
        field=CoarseFine(Nerf(width=16 if quick else 64)),
        objective=Fit(batch=64 if quick else 128),
        local=dataclasses.replace(ready.local, steps=5 if quick else 30, final=1.0),
        rounds=4 if quick else 20,
        warm_up=20 if quick else 300,
        evaluate_every=1,
        workers=1,
    )


def experiments(data: Path, quick: bool) -> dict[str, Experiment]:
    """Every run of the comparison by name."""
    ready, found = base(data, quick), {}
    for form, compression in (("whole", None), ("low-rank", LowRank())):
        chosen = dataclasses.replace(ready, compression=compression)
        alone = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, clients=1))
        found[f"start, {form}"] = dataclasses.replace(alone, rounds=0)
        found[f"centralised, {form}"] = alone
        for partition in ("interleave", "separate"):
            shared = dataclasses.replace(chosen.data, partition=partition)
            found[f"{partition}, {form}"] = dataclasses.replace(chosen, data=shared)
    return found


def one(name: str, experiment: Experiment, folder: Path) -> None:
    """Runs one experiment, or what is missing of it."""
    from fedfields.runtime.run import run

    def say(record: dict, total: int) -> None:
        psnr = record["psnr"]["held_out"]["0"]
        print(f"{name}: merge {record['round']} of {total}, {psnr:.2f} dB", file=sys.stderr, flush=True)

    if not (folder / "summary.json").exists():
        run(experiment, folder, name=name, resume=(folder / "experiment.json").exists(), on_round=say)


def curve(folder: Path) -> list[dict]:
    """PSNR and megabytes up after every merge."""
    log, sent, found = folder / "metrics.jsonl", 0, []
    for record in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        sent += record["bytes_up"]
        found.append({"merge": record["round"], "psnr": record["psnr"]["held_out"]["0"], "mb_up": sent / 1e6})
    return found


def row(name: str, experiment: Experiment, folder: Path) -> dict:
    """The figures of one run; of an owner alone nothing travels."""
    summary, merges = read_json(folder / "summary.json"), curve(folder)
    found = {"run": name, "weights": summary["parameters"], "psnr": summary["psnr"]["held_out"]["0"], "merges": merges}
    if experiment.data.clients > 1:
        quarter = merges[len(merges) // OWNERS - 1]["psnr"]
        found |= {"psnr_quarter": quarter, "mb_per_merge": merges[0]["mb_up"], "mb_up": merges[-1]["mb_up"]}
    return found


def label(name: str) -> str:
    """A name short enough for the end of a curve."""
    return name.removesuffix(", whole").replace("low-rank", "low")


def draw(rows: list[dict], path: Path) -> None:
    """PSNR over merges as a picture of its own; a curve begins where its kind of weights starts."""
    first = {one["run"].split(", ")[1]: one["psnr"] for one in rows if not one["merges"]}
    curves = {one["run"]: one["merges"] for one in rows if one["merges"]}
    lines = [
        Line([(0, first[name.split(", ")[1]]), *((one["merge"], one["psnr"]) for one in merges)], look, label(name))
        for look, (name, merges) in enumerate(curves.items(), 1)
    ]
    save_chart(over_rounds("PSNR of test photographs by merge", lines, DECIBELS), path)


def show(rows: list[dict]) -> None:
    """The table."""
    columns = {"psnr_quarter": "T/4 each", "psnr": "T each", "mb_per_merge": "MB a merge", "mb_up": "MB in all"}
    print(f"{'':24}{'weights':>9}" + "".join(f"{title:>12}" for title in columns.values()))
    for found in rows:
        cells = [f"{found[key]:.2f}" if key in found else "–" for key in columns]
        print(f"{found['run']:24}{found['weights']:>9,}" + "".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = Path(os.environ.get("FEDFIELDS_DATA", "../shared/data")) / "lego100"
    parser.add_argument("--data", type=Path, default=given, help="a Blender capture; lego100 in FEDFIELDS_DATA")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs: under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data} does not exist; name the lego scene of the NeRF synthetic set with --data")
    out, rows = options.out or Path(tempfile.mkdtemp(prefix="fednerf-")), []
    try:
        for name, experiment in experiments(options.data, options.quick).items():
            folder = out / name.replace(", ", "-")
            one(name, experiment, folder)
            rows.append(row(name, experiment, folder))
    except UserError as error:
        sys.exit(str(error))
    draw(rows, out / "psnr.svg")
    if options.json:
        print(json.dumps({"rows": rows, "picture": str(out / "psnr.svg")}))
        return
    show(rows)
    print(out / "psnr.svg")


if __name__ == "__main__":
    main()
