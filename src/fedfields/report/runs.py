"""What run folders say. Any figure may be missing, and none is believed before it was checked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.errors import UserError
from fedfields.report.text import clean
from fedfields.store import MAX_LINES, parse_json, read_file, read_json

FLOORS = {
    "constant": "best constant image",
    "affine_public": "affine fit of the public model",
    "mean_of_others": "mean of other owners' pictures",
    "public": "render of the public model",
}
"""What can be guessed without any upload; leakage is measured from the first that is known."""

Curve = list[tuple[int, float | None]]
"""A figure over rounds or steps; None is a gap."""


class Attack(NamedTuple):
    """What one attack recovered, in dB: mean over the audited owners, and of the owner hit hardest.

    ``helped`` by the true picture or the pixel draws, which a real server does not have; None where nobody said.
    """

    psnr: float | None
    hardest: float | None = None
    helped: bool | None = None
    level: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """One run. ``look`` numbers its mark in the charts; 0 is the baseline's."""

    folder: Path
    label: str
    preset: str
    manifest: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    damaged: int
    summary: Mapping[str, Any]
    audit: Mapping[str, Any]
    look: int = 0

    @property
    def baseline(self) -> bool:
        """Whether nothing is shared: owners start from a random initialisation."""
        return self.preset == "local"

    @property
    def served(self) -> bool:
        """Whether the owners were on other machines, so that nothing was judged here."""
        return self.manifest.get("served") is True

    @property
    def done(self) -> int:
        """Rounds done so far."""
        return int(number(self.summary.get("rounds")) or (self.rounds[-1]["round"] if self.rounds else 0))

    @property
    def owners(self) -> int:
        """Owners whose data was trained on; 0 if nobody said."""
        return int(number(mapping(self.summary.get("clients")).get("train")) or 0)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The configuration, flat."""
        return dict(_flat(mapping(self.manifest.get("experiment"))))

    @property
    def guarantee(self) -> Mapping[str, Any]:
        """What the noise guarantees; empty if there is none, or no summary yet."""
        return mapping(self.summary.get("privacy"))

    def latest(self, key: str) -> Any:
        """The summary's value, or the last that a round wrote."""
        written = (entry[key] for entry in (self.summary, *reversed(self.rounds)) if entry.get(key) is not None)
        return next(written, None)

    def total(self, key: str) -> float | None:
        """The summary's value, or the sum over the rounds."""
        value = number(self.summary.get(key))
        found = [value for _, value in self.curve(key) if value is not None]
        return value if value is not None else math.fsum(found) if found else None

    @property
    def asked(self) -> int:
        """Updates that were asked for in all rounds."""
        return sum(len(items(entry.get("cohort"))) for entry in self.rounds)

    @property
    def total_dropped(self) -> int:
        """Updates that did not come, or did not count."""
        return sum(len(items(entry.get("dropped"))) for entry in self.rounds)

    def curve(self, key: str, inner: str = "", audited: bool = False) -> Curve:
        """A figure over rounds, as the run or its audit wrote it; empty if it never was a number."""
        entries = self.audits if audited else self.rounds
        held = [(entry["round"], entry[key]) for entry in entries if key in entry]
        points = [(step, number(mapping(value).get(inner) if inner else value)) for step, value in held]
        return points if any(value is not None for _, value in points) else []

    # Quality.

    def by_steps(self, group: str, metric: str = "psnr") -> dict[int, float]:
        """Quality after each number of adaptation steps, for "unseen" owners or on "held_out" data."""
        found = _by_number(mapping(self.latest(metric)).get(group)).items()
        return {step: value for step, each in found if (value := number(each)) is not None}

    @cached_property
    def judged(self) -> str:
        """Whose pictures judge this run."""
        return "unseen" if self.by_steps("unseen") else "held_out"

    def quality(self, steps: int | None, metric: str = "psnr") -> float | None:
        """Quality after ``steps``: of unseen owners, or else on held-out data."""
        return None if steps is None else self.by_steps(self.judged, metric).get(steps)

    # Samples.

    @cached_property
    def scored(self) -> str:
        """By what a run on samples is judged, "accuracy" or "error"; empty for other runs."""
        return clean(next(iter(mapping(self.latest("scores"))), ""))

    def scores(self, group: str) -> dict[int, float]:
        """That figure by adaptation step, of "unseen" or "validation" clients."""
        found = _by_number(mapping(mapping(self.latest("scores")).get(self.scored)).get(group)).items()
        return {step: value for step, each in found if (value := number(each)) is not None}

    @cached_property
    def scored_on(self) -> str:
        """Whose rows judge a run on samples."""
        return "unseen" if self.scores("unseen") else "validation"

    def score_curve(self, group: str) -> Curve:
        """That figure after the last adaptation step, over rounds."""
        found = []
        for entry in self.rounds:
            curve = _by_number(mapping(mapping(mapping(entry.get("scores")).get(self.scored)).get(group)))
            if curve:
                found.append((entry["round"], number(list(curve.values())[-1])))
        return found

    # Places.

    @cached_property
    def views(self) -> dict[str, Mapping[str, Any]]:
        """The figures of each test photograph of a place, the worst PSNR first; empty for other runs."""
        found = {name: mapping(one) for name, one in mapping(self.latest("views")).items()}
        return dict(sorted(found.items(), key=lambda pair: rank(number(pair[1].get("psnr")))))

    @property
    def place(self) -> bool:
        """Whether it is a run on a place: judged on test photographs, without adaptation."""
        return bool(self.views)

    def view_mean(self, figure: str) -> float | None:
        """The mean of a figure over the test photographs."""
        values = [value for one in self.views.values() if (value := number(one.get(figure))) is not None]
        return math.fsum(values) / len(values) if values else None

    @cached_property
    def same_views(self) -> list[tuple[int, float, float]]:
        """Round, seconds of training so far and mean PSNR, over those photographs that were rendered every time."""
        judged = [entry for entry in self.rounds if mapping(entry.get("views"))]
        common = set.intersection(*(set(entry["views"]) for entry in judged)) if judged else set()
        found, spent = [], 0.0
        for entry in self.rounds:
            spent += number(entry.get("seconds")) or 0.0
            views = mapping(entry.get("views"))
            values = [number(mapping(views[name]).get("psnr")) for name in sorted(common)] if views else []
            if values and None not in values:
                found.append((entry["round"], spent, math.fsum(values) / len(values)))  # pyright: ignore
        return found

    @property
    def views_each_time(self) -> int:
        """How many photographs `same_views` is about."""
        judged = [set(entry["views"]) for entry in self.rounds if mapping(entry.get("views"))]
        return len(set.intersection(*judged)) if judged else 0

    # What one upload, or a sum of them, gives away.

    @cached_property
    def summed(self) -> bool:
        """Whether reports were summed in secret, so that the sum of a round is all that the server has."""
        privacy = mapping(self.manifest.get("experiment")).get("privacy")
        return any(mapping(part).get("type") == "SecAgg" for part in (privacy if isinstance(privacy, list) else []))

    @property
    def attacked(self) -> str:
        """What the attacks were on."""
        return "the secure sum of a round" if self.summed else "one upload"

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """The audit's attacks, the strongest first, or else the quick ones of the run itself."""
        audited = {name: _attack(name, mapping(entry)) for name, entry in mapping(self.audit.get("attacks")).items()}
        quick = {name: Attack(number(value)) for name, value in mapping(self.latest("leak")).items()}
        quick.pop("worst", None)
        return dict(sorted((audited or quick).items(), key=lambda pair: rank(pair[1].psnr), reverse=True))

    @property
    def people(self) -> dict[str, Mapping[str, Any]]:
        """By attack, and for the public model: what the audit saw of people in front of a place; empty if unknown."""
        found = mapping(self.audit.get("people"))
        shown = {**mapping(found.get("attacks")), "public": found.get("public")}
        return {name: mapping(one) for name, one in shown.items() if one}

    @property
    def audited(self) -> bool:
        """Whether ``fedfields audit`` ran."""
        return bool(mapping(self.audit.get("attacks")))

    @property
    def thorough(self) -> bool:
        """Whether more than the quick attacks ran."""
        return any(attack.level == "full" for attack in self.attacks.values())

    @cached_property
    def worst(self) -> tuple[str, float] | None:
        """The attack that recovers most, and what an attacker gets that chooses the best one for each owner."""
        known = [(name, attack.psnr) for name, attack in self.attacks.items() if attack.psnr is not None]
        name, top = known[0] if known else ("", None)
        quick = {"psnr": mapping(self.latest("leak")).get("worst")}
        told = mapping(self.audit.get("worst")) if self.audited else quick
        probed = [value for _, value in reversed(self.probes)]  # Where the last one failed, the one before counts.
        values = (number(value) for value in (told.get("psnr"), top, *probed))
        value = next((value for value in values if value is not None), None)
        return None if value is None else (str(told.get("attack") or name), value)

    @property
    def probes(self) -> Curve:
        """The worst quick attack of each round that was evaluated."""
        return self.curve("leak", "worst")

    @cached_property
    def audits(self) -> list[dict[str, Any]]:
        """The rounds that were audited."""
        return [{**mapping(each), "round": step} for step, each in _by_number(self.audit.get("rounds")).items()]

    @cached_property
    def peak(self) -> tuple[int, float] | None:
        """The round with the most leakage, where it was more than the headline says."""
        seen = [*self.probes, *self.curve("worst", audited=True)]
        known = ((value, step) for step, value in seen if value is not None)
        value, step = max(known, default=(-math.inf, 0))
        return (step, value) if self.worst and value > self.worst[1] + 0.1 else None

    def floor(self, name: str) -> float | None:
        """One of the ``FLOORS``, for the owners of the attacks shown."""
        audited = number(mapping(self.audit.get("floor")).get(name))
        return audited if audited is not None else number(mapping(self.latest("floor")).get(name))

    @property
    def ground(self) -> tuple[str, float] | None:
        """The floor that leakage is measured from, by name."""
        return next(((text, value) for name, text in FLOORS.items() if (value := self.floor(name)) is not None), None)

    @property
    def excess(self) -> float | None:
        """How far the worst attack is above the floor."""
        return self.worst[1] - self.ground[1] if self.worst and self.ground else None


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Reads runs and gives each a label and a look of its own.

    Raises:
        UserError: a folder is no run, or one of its files is damaged.
    """
    runs = [read_run(Path(folder)) for folder in folders]
    shared, given, ready = Counter(run.label for run in runs), Counter[str](), []
    for run in runs:
        label = run.label if shared[run.label] == 1 else f"{run.label} · {clean(run.folder.resolve().name)}"
        given[label] += 1
        label += f" ({given[label]})" if given[label] > 1 else ""
        look = 0 if run.baseline else 1 + sum(not earlier.baseline for earlier in ready)
        ready.append(replace(run, label=label, look=look))
    return ready


def read_run(folder: Path) -> Run:
    """Reads what a run left behind."""
    if not (folder / "experiment.json").is_file():
        raise UserError(f"{folder} is not a run (no experiment.json in it); name a folder made by `fedfields run`")
    manifest = read_object(folder / "experiment.json")
    rounds, damaged = _read_rounds(folder / "metrics.jsonl")
    summary, audit = (
        read_object(folder / name) if (folder / name).is_file() else {} for name in ("summary.json", "audit.json")
    )
    preset, name = clean(manifest.get("preset") or ""), clean(manifest.get("name") or folder.resolve().name)
    return Run(folder, name, preset, manifest, rounds, damaged, summary, audit)


def read_object(path: Path) -> Mapping[str, Any]:
    """Reads a JSON object."""
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is not a JSON object; the file is damaged")
    return value


def _read_rounds(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rounds in order, the last line of each one counting, and how many lines before the last were damaged."""
    try:
        lines = read_file(path, MAX_LINES).decode("utf-8", "replace").split("\n") if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); check its permissions") from error
    entries = [_entry(line) for line in lines]
    rounds = {entry["round"]: entry for entry in entries if entry is not None}
    return [rounds[step] for step in sorted(rounds)], sum(entry is None for entry in entries[:-1])


def _entry(line: str) -> dict[str, Any] | None:
    """One round, or None for an empty, truncated or foreign line."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    step = number(entry.get("round")) if isinstance(entry, dict) else None
    return None if step is None else {**entry, "round": int(step)}


def _attack(name: str, entry: Mapping[str, Any]) -> Attack:
    owners = [value for each in mapping(entry.get("per_client")).values() if (value := number(each)) is not None]
    helped = bool(entry.get("helped") or entry.get("oracle")) or name.endswith("_known")
    return Attack(number(entry.get("psnr")), max(owners, default=None), helped, clean(entry.get("level") or ""))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested configuration as ``a.b.c`` and its value."""
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_number(value: Any) -> dict[int, Any]:
    """A JSON object whose keys are whole numbers, in their order; other keys are left out."""
    found = {int(key): each for key, each in mapping(value).items() if key.isdecimal() and len(key) < 10}
    return {key: found[key] for key in sorted(found)}


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """``value`` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """``value`` if it is a number that can be drawn and added up (so neither NaN nor 1e300), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e60 < value < 1e60:
        return None
    return float(value) if abs(value) > 1e-60 else 0.0


def rank(value: float | None) -> float:
    """What to sort by; a missing figure is below all others."""
    return -math.inf if value is None else value
