"""One self-contained HTML page about one or several runs, made from what is on disk and nothing else.

The page holds no script, no outside address and no date: the same runs give the same bytes. Everything read from a
run folder is treated as foreign: escaped, checked, and left out with a note where it is damaged.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedfields import figures, store
from fedfields.errors import UserError
from fedfields.figures import BASELINE, Line, Spot, Style

IMAGE_BYTES = 4 * 2**20
"""The largest picture that is embedded."""
PAGE_BYTES = 32 * 2**20
"""All pictures of one page together."""
IMAGE_PIXELS = 4096 * 4096
NEAR_FLOOR = 0.5
"""Decibels: closer to the floor than this, an attack found little."""
TIE = 0.5
"""Decibels: runs closer than this are named together."""

LARGEST = 1e60
"""Figures beyond this are taken for what they are: no longer numbers."""

ATTACKS = {"direct": "direct render", "affine": "affine fit of the render"}
FLOORS = {"constant": "best constant image", "affine_public": "affine fit of the public model"}
SPLITS = {"unseen": "unseen owners", "held_out": "held-out data of training owners"}


def write_report(runs: list[Path], out: Path) -> Path:
    """Writes one page about all ``runs`` to ``out``.

    Raises:
        UserError: no run given, a folder that is no run, a damaged file, or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("no run given; name at least one folder made by `fedfields run`")
    try:
        text = page(_distinct([read_run(Path(folder)) for folder in runs]))
    except RecursionError as error:
        raise UserError("a file of these runs is nested too deeply to have been made by fedfields") from error
    store.write_text(out, text)
    return out


# What is on disk.


@dataclass(frozen=True)
class Attack:
    """What one attack recovered, averaged over the audited owners."""

    psnr: float | None
    hardest: float | None = None
    oracle: bool | None = None
    level: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder says. Any figure may be missing."""

    folder: Path
    label: str
    preset: str
    manifest: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    audit: Mapping[str, Any]
    damaged: int = 0
    look: Style = field(default=BASELINE)

    @property
    def finished(self) -> bool:
        """Whether the run wrote its summary."""
        return bool(self.summary)

    @property
    def baseline(self) -> bool:
        """Whether this is the run that shares nothing: owners start from a random initialisation."""
        return self.preset == "local"

    @property
    def done(self) -> int:
        """Rounds done so far."""
        return int(number(self.summary.get("rounds")) or (self.rounds[-1]["round"] if self.rounds else 0))

    @cached_property
    def settings(self) -> dict[str, str]:
        """The configuration, flat."""
        experiment = self.manifest.get("experiment")
        return dict(flat(experiment)) if isinstance(experiment, Mapping) else {}

    def latest(self, key: str) -> Any:
        """The summary's value, or the last that a round wrote."""
        if self.summary.get(key) is not None:
            return self.summary[key]
        return next((entry[key] for entry in reversed(self.rounds) if entry.get(key) is not None), None)

    def total(self, key: str) -> float | None:
        """The summary's value, or the sum over the rounds."""
        value = number(self.summary.get(key))
        found = [each for entry in self.rounds if (each := number(entry.get(key))) is not None]
        return value if value is not None else math.fsum(found) if found else None

    def by_steps(self, metric: str, split: str) -> dict[float, float]:
        """Quality after each number of adaptation steps."""
        pairs = mapping(mapping(self.latest(metric)).get(split)).items()
        known = {number(_parsed(step)): number(value) for step, value in pairs}
        return {step: value for step, value in sorted(known.items(), key=_first_or_zero) if step is not None
                and step >= 0 and value is not None}  # fmt: skip

    def quality(self, steps: float, metric: str = "psnr") -> float | None:
        """Quality after ``steps``: of unseen owners, or else on held-out data."""
        return self.by_steps(metric, self.judged).get(steps)

    @cached_property
    def judged(self) -> str:
        """Whose pictures judge this run."""
        return "unseen" if self.by_steps("psnr", "unseen") else "held_out"

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """Every attack on one upload: the audit's, or else the quick ones of the run itself."""
        audited = {name: _attack(mapping(entry)) for name, entry in mapping(self.audit.get("attacks")).items()}
        if audited:
            return audited
        quick = mapping(self.latest("leak"))
        return {name: Attack(number(value)) for name, value in quick.items() if name != "worst"}

    @cached_property
    def worst(self) -> tuple[str, float] | None:
        """The attack that recovered most, and how much."""
        audited = mapping(self.audit.get("worst"))
        known = [(name, entry.psnr) for name, entry in self.attacks.items() if entry.psnr is not None]
        top = max(known, key=lambda pair: pair[1], default=None)
        value = number(audited.get("psnr"))
        if value is not None:
            return str(audited.get("attack") or (top[0] if top else "")), value
        if not self.audited:
            value = number(mapping(self.latest("leak")).get("worst"))
            if value is None and top is None:  # The last probe failed: the one before it counts.
                value = next((seen for _, seen in reversed(self.leak_over_rounds()) if seen is not None), None)
        return top if value is None else (top[0] if top else "", value)

    @property
    def audited(self) -> bool:
        """Whether ``fedfields audit`` ran."""
        return bool(mapping(self.audit.get("attacks")) or mapping(self.audit.get("worst")))

    @property
    def thorough(self) -> bool:
        """Whether more than the quick attacks ran."""
        return any(entry.level == "full" for entry in self.attacks.values())

    def floor(self, name: str) -> float | None:
        """What needs no upload, for the owners of the attacks shown: ``constant`` or ``affine_public``."""
        audited = number(mapping(self.audit.get("floor")).get(name))
        return audited if audited is not None else number(mapping(self.latest("floor")).get(name))

    @property
    def ground(self) -> tuple[str, float] | None:
        """The floor that leakage is measured from: the best constant image, or else the public model's."""
        found = ((text, self.floor(name)) for name, text in FLOORS.items())
        return next(((text, value) for text, value in found if value is not None), None)

    @property
    def excess(self) -> float | None:
        """How far the worst attack is above the floor."""
        return self.worst[1] - self.ground[1] if self.worst and self.ground else None

    def leak_over_rounds(self, source: str = "run") -> list[tuple[float, float | None]]:
        """The worst attack's figure per round: the run's quick probes, or the audit's of its checkpoints."""
        if source == "audit":
            audited = mapping(self.audit.get("rounds")).items()
            pairs = [(number(_parsed(step)), number(mapping(entry).get("worst"))) for step, entry in audited]
            return sorted((step, value) for step, value in pairs if step is not None and value is not None)
        return self.curve("leak", "worst")

    def curve(self, key: str, inner: str = "") -> list[tuple[float, float | None]]:
        """A figure over rounds; a value that was no number is a gap."""
        held = [(entry["round"], mapping(entry[key]).get(inner) if inner else entry[key])
                for entry in self.rounds if key in entry]  # fmt: skip
        points = [(float(step), number(value)) for step, value in held]
        return points if any(value is not None for _, value in points) else []

    @cached_property
    def peak(self) -> tuple[int, float] | None:
        """The round with the most leakage, where it was more than the headline says."""
        seen = [*self.leak_over_rounds(), *self.leak_over_rounds("audit")]
        top = max(((value, step) for step, value in seen if value is not None), default=None)
        if top is None or (self.worst is not None and top[0] < self.worst[1] + 0.1):
            return None
        return int(top[1]), top[0]


def read_run(folder: Path) -> Run:
    """Reads what a run left behind.

    Raises:
        UserError: ``folder`` is no run, or one of its files is damaged.
    """
    if not (folder / "experiment.json").is_file():
        raise UserError(f"{folder} is not a run (no experiment.json in it); name a folder made by `fedfields run`")
    manifest = _object(folder / "experiment.json")
    rounds, damaged = read_rounds(folder / "metrics.jsonl")
    summary, audit = (
        _object(folder / name) if (folder / name).is_file() else {} for name in ("summary.json", "audit.json")
    )
    preset = clean(manifest.get("preset") or summary.get("preset") or "")
    name = clean(manifest.get("name") or summary.get("name") or folder.resolve().name or preset)
    return Run(folder, name, preset, manifest, rounds, summary, audit, damaged)


def read_rounds(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rounds in order, the last line of each one counting, and how many lines before the last were damaged."""
    rounds: dict[int, dict[str, Any]] = {}
    bad: list[int] = []
    last = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for last, line in enumerate(lines):
                entry = _entry(line)
                if entry is None:
                    bad.append(last)
                else:
                    rounds[entry["round"]] = entry
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return [rounds[index] for index in sorted(rounds)], sum(index != last for index in bad)


def _entry(line: str) -> dict[str, Any] | None:
    """One round, or None for an empty, truncated or foreign line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    position = number(entry.get("round")) if isinstance(entry, dict) else None
    return None if position is None else {**entry, "round": int(position)}


def _object(path: Path) -> Mapping[str, Any]:
    value = store.read_json(path)
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is not a JSON object; the file is damaged")
    return value


def _attack(entry: Mapping[str, Any]) -> Attack:
    found = [value for each in mapping(entry.get("per_client")).values() if (value := number(each)) is not None]
    oracle = entry.get("oracle")
    return Attack(
        number(entry.get("psnr")),
        max(found, default=None),
        oracle if isinstance(oracle, bool) else None,
        clean(entry.get("level") or ""),
        clean(entry.get("note") or "", 300),
    )


def _distinct(runs: list[Run]) -> list[Run]:
    """Gives each run a label of its own and a look of its own."""
    counts = Counter(run.label for run in runs)
    labels: Counter[str] = Counter()
    ready: list[Run] = []
    coloured = 0
    for run in runs:
        folder = clean(run.folder.resolve().name)
        label = run.label if counts[run.label] == 1 or folder == run.label else f"{run.label} · {folder}"
        labels[label] += 1
        label = label if labels[label] == 1 else f"{label} ({labels[label]})"
        ready.append(replace(run, label=label, look=BASELINE if run.baseline else figures.style(coloured)))
        coloured += not run.baseline
    return ready


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """``value`` if it is a number that can be drawn and added up (so neither NaN nor 1e300), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST < value < LARGEST else None


def _parsed(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _first_or_zero(pair: tuple[float | None, Any]) -> float:
    return pair[0] or 0.0


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested configuration as ``a.b.c`` and its value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def clean(text: Any, most: int = 80) -> str:
    """Text fit to be shown: one line, no control or direction-changing characters, not endless."""
    shown = "".join(_shown(letter) for letter in str(text)[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _shown(letter: str) -> str:
    if letter.isspace():
        return " "
    direction = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return "\ufffd" if direction or unicodedata.category(letter) in ("Cc", "Cs") else letter


def prose(text: str) -> str:
    """A sentence fit to stand in the page; a figure stays on one line with its unit."""
    return re.sub(r"[−+]?[\d.]+ dB", lambda found: f'<span class="n">{found[0]}</span>', esc(text, 1000))


def esc(text: Any, most: int = 80) -> str:
    """Text fit to stand in the page."""
    return html.escape(clean(text, most))


# What it means, in words.


def db(value: float | None, sign: bool = False) -> str:
    """Decibels to one place, or a dash."""
    if value is None:
        return "–"
    shown = f"{abs(value):.1f}"
    minus = value < 0 and shown != "0.0"
    return ("−" if minus else "+" if sign else "") + shown


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(value: float | None) -> str:
    """Seconds as people say them."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def plural(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def headline_steps(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """The step counts that the page speaks of: 8 and 32, or what there is instead."""
    known = sorted({step for run in runs for step in run.by_steps("psnr", run.judged) if step > 0})
    if not known:
        known = sorted({step for run in runs for step in run.by_steps("psnr", run.judged)})
    if not known:
        return None, None
    few = 8.0 if 8.0 in known else known[len(known) // 2]
    more = [step for step in known if step > few]
    return few, 32.0 if 32.0 in more else max(more, default=None)


def verdict(run: Run, steps: float | None) -> str:
    """What the numbers say about one run, and no more than that (plain text)."""
    gained = _gain(run, steps)
    if run.worst is None:
        return f"{gained} {_unmeasured(run)}"
    return f"{gained.removesuffix('.')}; {_leak(run)}"


def _gain(run: Run, steps: float | None) -> str:
    value = None if steps is None else run.quality(steps)
    if steps is None or value is None:
        return "No adapted picture has been measured yet."
    start = " from a random initialisation" if run.baseline else ""
    after = f"After {plural(int(steps), 'step')}{start}"
    if run.judged == "unseen":
        return f"{after} an unseen owner gets {db(value)} dB on average."
    return f"{after} a training owner gets {db(value)} dB on average on held-out data."


def _leak(run: Run) -> str:
    assert run.worst is not None
    name, value = run.worst
    helped = bool((known := run.attacks.get(name)) and known.oracle)
    which = f" ({attack_name(name)}{', an upper bound' if helped else ''})" if name else ""
    text = f"the worst attack tried on one upload{which} recovers {db(value)} dB on average"
    if run.ground is None or run.excess is None:
        text += ", and no floor was measured to compare it with"
    else:
        side = "below" if run.excess < 0 else "above"
        text += f", {db(abs(run.excess))} dB {side} the floor ({run.ground[0]}, {db(run.ground[1])} dB)"
    if run.peak is not None:
        text += f"; in round {run.peak[0]} it was {db(run.peak[1])} dB"
    return f"{text}. {_scope(run)}".strip()


def _scope(run: Run) -> str:
    """How far the leakage figure reaches."""
    if not run.thorough:
        return "Only quick attacks ran: a stronger one may recover more."
    if run.excess is not None and run.excess < NEAR_FLOOR and run.peak is None:
        return "These attacks found little beyond what needs no upload; that is no proof that there is nothing."
    return ""


def _unmeasured(run: Run) -> str:
    if run.baseline and not run.total("bytes_up"):
        return "Nothing was uploaded."
    value = number(run.latest("psnr_p"))
    hint = "" if value is None else f" (PSNR_p, {db(value)} dB, is one naive attack and cannot say)"
    return f"What an upload reveals has not been measured{hint}."


def comparison(runs: Sequence[Run], steps: float | None) -> str:
    """One sentence across runs; it names a first only where the runs were measured alike and are apart."""
    judged = [(value, run) for run in runs if steps is not None and (value := run.quality(steps)) is not None]
    leaking = [(run.excess, run) for run in runs if run.excess is not None]
    parts = []
    if steps is not None and len(judged) > 1 and len({run.judged for _, run in judged}) == 1:
        best = max(value for value, _ in judged)
        names = _listed([run.label for value, run in judged if value >= best - TIE])
        parts.append(f"After {plural(int(steps), 'step')} the sharpest is {names} (up to {db(best)} dB)")
    if len(leaking) > 1 and alike([run for _, run in leaking]):
        low, high = (pick(value for value, _ in leaking) for pick in (min, max))
        least = _listed([run.label for value, run in leaking if value <= low + TIE])
        most = _listed([run.label for value, run in leaking if value >= high - TIE])
        text = f"the attacks tried on one upload recover least from {least} ({db(low, True)} dB over the floor)"
        parts.append(text + (f" and most from {most} ({db(high, True)} dB)" if high - low > TIE else ""))
    if not parts:
        return "These runs were not measured alike, so no order is given; each is described below."
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``: too close to call."""
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def alike(runs: Sequence[Run]) -> bool:
    """Whether the same attacks, at the same levels, were tried on each run."""
    return len({frozenset((name, entry.level) for name, entry in run.attacks.items()) for run in runs}) == 1


def attack_name(name: str) -> str:
    """An attack's name for people."""
    return ATTACKS.get(name, clean(name).replace("_", " "))


def notices(run: Run, baseline: Run | None, steps: float | None) -> list[str]:
    """What the reader must not overlook (plain text)."""
    found = []
    if not run.finished:
        goal = _goal(run)
        of = f" of {goal}" if goal and goal >= run.done else ""
        found.append(f"In progress, or stopped early: {run.done}{of} rounds so far and no summary yet.")
    lost = _lost_round(run)
    if lost is not None:
        found.append(f"The loss stopped being a number in round {lost}: the model has diverged.")
    found += _idle(run, baseline, steps)
    if run.damaged:
        found.append(f"Left out: {plural(run.damaged, 'line')} of metrics.jsonl that could not be read.")
    listed = run.summary.get("warnings")
    return found + [clean(text, 400) for text in (listed if isinstance(listed, list) else [])][:50]


def _goal(run: Run) -> int | None:
    goal = run.settings.get("rounds", "")
    return int(goal) if goal.isdecimal() else None


def _lost_round(run: Run) -> int | None:
    """The first round from which on the loss is no number."""
    lost = None
    for entry in reversed(run.rounds):
        if "loss" not in entry or number(entry["loss"]) is not None:
            break
        lost = entry["round"]
    return lost


def _naive(run: Run) -> str:
    """Both figures where PSNR_p alone would mislead: at the floor or under it, while another attack is above."""
    value = number(run.latest("psnr_p"))
    if value is None or run.worst is None or run.ground is None or run.excess is None:
        return ""
    misleading = value < run.ground[1] + NEAR_FLOOR <= run.worst[1]
    return f"{db(value)} dB against {db(run.worst[1])} dB" if misleading else ""


def _idle(run: Run, baseline: Run | None, steps: float | None) -> list[str]:
    if baseline is None or run is baseline or steps is None or run.judged != baseline.judged:
        return []
    own, plain = run.quality(steps), baseline.quality(steps)
    if own is None or plain is None or own > plain:
        return []
    return [
        f"After {int(steps)} steps it is no better than the random initialisation ({db(own)} dB against {db(plain)})."
    ]


# The page.


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    single = len(runs) == 1
    steps = headline_steps(runs)
    title = runs[0].label if single else f"{len(runs)} runs compared"
    parts = [
        _head(runs, title, steps[0]),
        _tiles(runs[0], steps) if single else _cards(runs, steps),
        _notices(runs, steps[0]),
        _tradeoff(runs, steps),
        _Pictures().section(runs),
        _over_rounds(runs),
        "" if single else _table_of_runs(runs, steps),
        _attacks(runs),
        _costs(runs),
        _dropped(runs),
        _guide(),
        _settings(runs),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(title)} · fedfields</title>\n<style>{figures.CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(identity: str, title: str, intro: str, body: str) -> str:
    """A heading, a line of introduction (both HTML) and what they introduce."""
    if not body:
        return ""
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{identity}">\n<h2>{title}</h2>\n{lead}\n{body}\n</section>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", foot: Sequence[str] = ()) -> str:
    """A table in a box that scrolls; the first column names the rows, a heading that starts with ``#`` is a number.

    Cells are HTML.
    """
    numeric = [name.startswith("#") for name in head]
    top = "".join(f"<th{_num(here)}>{name.lstrip('#')}</th>" for name, here in zip(head, numeric, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f"<td{_num(here)}>{cell}</td>" for cell, here in zip(row[1:], numeric[1:], strict=True))
        lines.append(f'<tr><th scope="row">{row[0]}</th>{cells}</tr>')
    notes = "".join(f"<p>{note}</p>" for note in foot)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table class="{kind}">'
        f"<thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(lines) + f"\n</tbody></table></div>{notes}"
    )


def _num(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def _chart(title: str, svg: str, caption: str, beside: str = "") -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    body = f'<div class="hero"><div>{svg}{below}</div>{beside}</div>' if beside else svg + below
    return f'<figure class="chart"><h3>{title}</h3>{body}</figure>'


def _grid(charts: Sequence[str]) -> str:
    shown = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _named(run: Run) -> str:
    """A run's mark and name."""
    return f'<span class="run">{figures.swatch(run.look)}<bdi>{esc(run.label, 60)}</bdi></span>'


def _legend(runs: Sequence[Run]) -> str:
    return f'<p class="legend">{"".join(_named(run) for run in runs)}</p>' if len(runs) > 1 else ""


def _head(runs: Sequence[Run], title: str, steps: float | None) -> str:
    single = len(runs) == 1
    run = runs[0]
    facts = []
    if single:
        if run.preset and run.preset != run.label:
            facts.append(f"preset {esc(run.preset)}")
        people = mapping(run.summary.get("clients"))
        known = {key: number(people.get(key)) for key in ("train", "unseen", "per_round")}
        if known["train"] is not None:
            drawn = f", {known['per_round']:.0f} per round" if known["per_round"] is not None else ""
            facts.append(plural(int(known["train"]), "training owner") + drawn)
        if known["unseen"] is not None:
            facts.append(f"{known['unseen']:.0f} unseen")
        if number(run.manifest.get("seed")) is not None:
            facts.append(f"seed {esc(run.manifest['seed'])}")
        if run.manifest.get("version"):
            facts.append(f"fedfields {esc(run.manifest['version'], 30)}")
    line = f'<p class="facts">{" · ".join(facts)}</p>' if facts else ""
    text = verdict(run, steps) if single else comparison(runs, steps)
    return (
        f'<header>\n<p class="brow">fedfields report</p>\n<h1><bdi>{esc(title)}</bdi></h1>\n{line}\n'
        f'<p class="verdict">{prose(text)}</p>\n'
        '<p class="facts"><a href="#how">How to read these numbers</a></p>\n</header>'
    )


def _figures(run: Run, steps: tuple[float | None, float | None]) -> list[tuple[str, str, str]]:
    """The key figures of a run: name, value, what to know about it (HTML)."""
    few, more = steps
    found = []
    if few is not None:
        under = "unseen owners" if run.judged == "unseen" else "held-out data"
        under += "" if more is None else f"<br>{db(run.quality(more))} dB after {int(more)}"
        similar = run.quality(few, "ssim")
        under += "" if similar is None else f"<br>SSIM {similar:.2f}"
        found.append((f"After {plural(int(few), 'step')}", f"{db(run.quality(few))} dB", under))
    if run.worst is not None:
        name = attack_name(run.worst[0]) if run.worst[0] else "not named"
        name += ", an upper bound" if (known := run.attacks.get(run.worst[0])) and known.oracle else ""
        found.append(("Worst attack", f"{db(run.worst[1])} dB", f"on one upload: {esc(name)}"))
    if run.excess is not None and run.ground is not None:
        found.append(("Over the floor", f"{db(run.excess, True)} dB", f"{run.ground[0]}, {db(run.ground[1])} dB"))
    naive = number(run.latest("psnr_p"))
    if naive is not None:
        found.append(("PSNR_p", f"{db(naive)} dB", "one naive attack, no proof of privacy"))
    up = run.total("bytes_up")
    if up is not None:
        each = f"{size(up / run.done)} per round" if run.done else "nothing shared" if not up else ""
        found.append(("Uploaded", size(up), each))
    under = duration(run.total("seconds")) if run.total("seconds") is not None else ""
    found.append(("Rounds", f"{run.done:,}", under if run.finished else "no summary yet"))
    return found


def _tiles(run: Run, steps: tuple[float | None, float | None]) -> str:
    tiles = "".join(
        f"<div><dt>{name}</dt><dd><strong>{value}</strong><span>{under}</span></dd></div>"
        for name, value, under in _figures(run, steps)
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _cards(runs: Sequence[Run], steps: tuple[float | None, float | None]) -> str:
    cards = []
    for run in runs:
        chip = f'<span class="chip">{esc(run.preset)}</span>' if run.preset and run.preset != run.label else ""
        state = "" if run.finished else '<span class="chip">in progress</span>'
        numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value, _ in _figures(run, steps)[:3])
        cards.append(
            f'<article class="card"><h3>{_named(run)}{chip}{state}</h3><p>{prose(verdict(run, steps[0]))}</p>'
            f"<dl>{numbers}</dl></article>"
        )
    pairs = " pairs" if len(runs) in (2, 4) else ""
    return f'<div class="cards{pairs}">{"".join(cards)}</div>'


def _notices(runs: Sequence[Run], steps: float | None) -> str:
    baseline = next((run for run in runs if run.baseline), None)
    items = [
        f"<li>{_named(run) + ' ' if len(runs) > 1 else ''}{prose(text)}</li>"
        for run in runs
        for text in notices(run, baseline, steps)
    ]
    misled = [f"{_named(run) + ' ' if len(runs) > 1 else ''}{prose(text)}" for run in runs if (text := _naive(run))]
    if misled:
        items.append(
            "<li>A low PSNR_p alone says nothing about privacy. Here it is no more than the floor, "
            f"while another attack goes beyond: {', '.join(misled)}.</li>"
        )
    leaking = [run for run in runs if run.worst is not None]
    if len(leaking) > 1 and not alike(leaking):
        items.append(
            "<li>Not every run was attacked in the same way (attacks or effort differ): "
            "compare what was recovered with care.</li>"
        )
    return f'<aside class="notices"><h2>Worth knowing</h2><ul>{"".join(items)}</ul></aside>' if items else ""


def _tradeoff(runs: Sequence[Run], steps: tuple[float | None, float | None]) -> str:
    plane, curves = _plane(runs, steps), _adaptation(runs)
    body = _grid([plane, *curves]) if len(runs) == 1 else plane + _legend(runs) * bool(curves) + _grid(curves)
    intro = "Higher is sharper for the owner; further left reveals less to the server." if plane else ""
    return _section("tradeoff", "What owners get, what uploads reveal", intro, body)


def _plane(runs: Sequence[Run], steps: tuple[float | None, float | None]) -> str:
    few, more = steps
    spots = {}
    for index, run in enumerate(runs):
        ys = tuple(None if step is None else run.quality(step) for step in (few, more))
        if run.worst is not None and ys != (None, None):
            top = None if run.peak is None else run.peak[1]
            label = clean(run.label, 22) if len(runs) > 1 else ""
            spots[index] = Spot(run.worst[1], (ys[0], ys[1]), run.look, label, top)
    if few is None or not spots:
        return ""
    floors = [runs[index].ground[1] for index in spots if runs[index].ground is not None]
    floor = (min(floors), max(floors)) if floors else None
    plain = next((run.quality(few) for run in runs if run.baseline and run.worst is None), None)
    unit = "PSNR after adaptation, dB"
    svg = figures.plane("plane", "Quality against the worst attack", list(spots.values()), floor, plain, unit)
    caption = f"Filled: after {plural(int(few), 'step')}."
    caption += f" Hollow: after {plural(int(more), 'step')}." if more is not None else ""
    if any(spot.peak is not None for spot in spots.values()):
        caption += " Thin line to the right: the round that revealed most."
    beside = _beside([runs[index] for index in spots], few) if len(runs) > 1 else ""
    return _chart("Quality against leakage", svg, caption, beside)


def _beside(runs: Sequence[Run], steps: float) -> str:
    """The figures of the trade-off plane, in words, where the plane stands alone in its row."""
    items = "".join(
        f"<li>{_named(run)}<span>{db(run.quality(steps))} dB after {plural(int(steps), 'step')}, "
        f"worst attack {db(run.worst[1] if run.worst else None)} dB</span></li>"
        for run in runs
    )
    return f'<ul class="beside">{items}</ul>'


def _adaptation(runs: Sequence[Run]) -> list[str]:
    """Quality over adaptation steps: one panel for one run, else one for each kind of owner."""
    unit = "PSNR, dB"
    if len(runs) == 1:
        run = runs[0]
        found = {split: list(run.by_steps("psnr", split).items()) for split in SPLITS}
        names = {"unseen": "unseen owners", "held_out": "held-out data"}
        lines = [
            Line(points, run.look, names[split], quiet=split == "held_out")
            for split, points in found.items() if points
        ]  # fmt: skip
        if not lines:
            return []
        svg = figures.over_steps("steps", "PSNR over adaptation steps", lines, unit)
        return [_chart("Quality over adaptation", svg, "Held-out data: kept back by owners who trained.")]
    panels = []
    curves = {split: [(run, list(run.by_steps("psnr", split).items())) for run in runs] for split in SPLITS}
    values = [value for panel in curves.values() for _, points in panel for _, value in points]
    limits = (min(values) - 1, max(values) + 1) if values else None
    for split, panel in curves.items():
        lines = [Line(points, run.look) for run, points in panel if points]
        if lines:
            svg = figures.over_steps(f"steps-{split}", f"PSNR over steps, {SPLITS[split]}", lines, unit, limits)
            panels.append(_chart(f"Adaptation: {SPLITS[split]}", svg, ""))
    return panels


def _over_rounds(runs: Sequence[Run]) -> str:
    leaks = [_privacy_of_one(runs[0])] if len(runs) == 1 else _privacy_of_many(runs)
    body = _grid(leaks + _training(runs))
    intro = "Attacks are on single uploads: higher reveals more. PSNR_p is one of them, and a naive one."
    shown = intro if any(leaks) else ""
    legend = _legend([run for run in runs if run.rounds])
    return _section("rounds", "Round by round", shown, legend + body if body else "")


def _privacy_of_one(run: Run) -> str:
    audited = run.leak_over_rounds("audit")
    diamond = replace(run.look, marker="D", dash=())
    lines = [
        Line(run.leak_over_rounds(), run.look, "worst, quick"),
        Line(audited, diamond, "worst, audit"),
        Line(run.curve("psnr_p"), run.look, "PSNR_p", quiet=True),
        *_floors_of_one(run, bool(audited)),
    ]
    lines = [line for line in lines if line.points]
    if all(line.floor for line in lines):
        return ""
    svg = figures.over_rounds("privacy", "What one upload reveals over rounds", lines, figures.DECIBELS)
    return _chart("Attacks and floors", svg, "Grey: the floors, what can be guessed without any upload.")


def _floors_of_one(run: Run, audited: bool) -> list[Line]:
    """The floors of the run's own probes; the audit's as well, where it looked at other owners."""
    lines = []
    for name, text in (("constant", "constant image"), ("affine_public", "public model")):
        curve = run.curve("floor", name)
        lines.append(Line(curve, run.look, text, quiet=name != "constant", floor=True))
        final, last = run.floor(name), next((value for _, value in reversed(curve) if value is not None), None)
        if audited and name == "constant" and final is not None and (last is None or abs(final - last) >= 0.1):
            ends = [step for step, _ in [*curve, *run.leak_over_rounds("audit")]]
            flat_line = [(min(ends), final), (max(ends), final)]
            lines.append(Line(flat_line, run.look, "constant, audit", floor=True))
    return lines


def _privacy_of_many(runs: Sequence[Run]) -> list[str]:
    probed = [run for run in runs if run.worst is not None]
    source = "audit" if probed and all(run.leak_over_rounds("audit") for run in probed) else "run"
    quick = [value for run in runs for name in FLOORS for _, value in run.curve("floor", name)]
    audited = [run.floor(name) for run in probed for name in FLOORS]
    effort = "From the audits of single rounds." if source == "audit" else "From the quick probes of each run."
    return [
        _leak_chart("worst", "Worst attack", {run: run.leak_over_rounds(source) for run in runs},
                    audited if source == "audit" else quick, effort),
        _leak_chart("psnr-p", "PSNR_p (naive attack)", {run: run.curve("psnr_p") for run in runs}, quick, ""),
    ]  # fmt: skip


def _leak_chart(
    slug: str,
    title: str,
    curves: Mapping[Run, Sequence[tuple[float, float | None]]],
    floors: Sequence[float | None],
    caption: str,
) -> str:
    lines = [Line(points, run.look) for run, points in curves.items() if points]
    if not lines:
        return ""
    known = [value for value in floors if value is not None]
    band = (min(known), max(known)) if known else None
    grey = "Grey: the floors of all runs." if band else ""
    svg = figures.over_rounds(slug, f"{title} over rounds", lines, figures.DECIBELS, band)
    return _chart(title, svg, f"{caption} {grey}".strip())


def _training(runs: Sequence[Run]) -> list[str]:
    """Every plain figure that changes over the rounds: the loss, the update's norm, then what a method adds."""
    names = {"loss": "Loss", "update_norm": "Norm of the update"}
    skipped = {"round", "bytes_up", "bytes_down", "seconds", "psnr_p", "ssim_p", *names}
    added = {key for run in runs for entry in run.rounds for key in entry if key not in skipped}
    charts = []
    for index, key in enumerate([*names, *sorted(added)]):
        lines = [Line(points, run.look) for run in runs if len(points := run.curve(key)) > 1]
        if len({value for line in lines for _, value in line.points}) > 1:
            svg = figures.over_rounds(f"training-{index}", f"{clean(key, 40)} over rounds", lines, "")
            charts.append(_chart(names.get(key) or esc(key, 40), svg, ""))
    return charts[:8]


def _table_of_runs(runs: Sequence[Run], steps: tuple[float | None, float | None]) -> str:
    known = [step for step in (0.0, *steps) if step is not None]
    shown = [step for step in known if any(run.quality(step) is not None for run in runs)]
    head = ["Run", *(f"#{plural(int(step), 'step')}" for step in shown), "#SSIM", "#PSNR_p", "#Worst attack",
            "#Over floor", "#Rounds", "#Uploaded", "#Time"]  # fmt: skip
    rows = []
    for run in runs:
        similar = None if steps[0] is None else run.quality(steps[0], "ssim")
        rows.append([
            _named(run),
            *(db(run.quality(step)) for step in shown),
            "–" if similar is None else f"{similar:.2f}",
            db(number(run.latest("psnr_p"))),
            db(run.worst[1] if run.worst else None),
            db(run.excess, True),
            f"{run.done:,}",
            size(run.total("bytes_up")),
            duration(run.total("seconds")),
        ])  # fmt: skip
    after = "" if steps[0] is None else f"; SSIM after {plural(int(steps[0]), 'step')}"
    held = [run for run in runs if run.judged == "held_out" and run.by_steps("psnr", "held_out")]
    foot = [f"No unseen owners, judged on held-out data: {', '.join(_named(run) for run in held)}"] if held else []
    return _section("runs", "Runs side by side", f"PSNR in dB of unseen owners{after}.", _table(head, rows, foot=foot))


def _attacks(runs: Sequence[Run]) -> str:
    attacked = [run for run in runs if run.attacks]
    if not attacked:
        return ""
    body = _attacks_on_one(attacked[0]) if len(runs) == 1 else _attacks_on_many(attacked)
    intro = (
        "What the server recovers from one upload, mean over the audited owners, in dB. "
        "An <em>upper bound</em> was helped by the true picture (an oracle fit), which a real server does not have."
    )
    if not all(run.audited for run in attacked):
        intro += (
            " Quick attacks other than the direct render belong to a family whose colours are fitted "
            "with that help: take them as upper bounds for the family."
        )
    return _section("attacks", "Attacks against floors", intro, body)


def _attacks_on_one(run: Run) -> str:
    floors = {f"floor: {text}": run.floor(name) for name, text in FLOORS.items()}
    values = [entry.psnr for entry in run.attacks.values()] + list(floors.values())
    known = [value for value in values if value is not None]
    low, high = (min(known) - 1, max(known) + 1) if known else (0.0, 1.0)

    def track(value: float | None, floor: bool = False) -> str:
        """The figure as a dot on a scale, the floor as a tick."""
        if value is None:
            return ""
        tick = "" if run.ground is None else f'<i style="left:{_share(run.ground[1], low, high)}"></i>'
        kind = "track floor" if floor else "track"
        return f'<span class="{kind}">{tick}<b style="left:{_share(value, low, high)}"></b></span>'

    rows = []
    for name, entry in sorted(run.attacks.items(), key=lambda pair: -_rank(pair[1])):
        above = None if entry.psnr is None or run.ground is None else entry.psnr - run.ground[1]
        kind = {True: "upper bound", False: "realisable", None: ""}[entry.oracle]
        remark = " · ".join(filter(None, (esc(kind), esc({"cheap": "quick"}.get(entry.level, entry.level)))))
        note = f"<small>{esc(entry.note, 300)}</small>" if entry.note else ""
        rows.append([esc(attack_name(name)) + note, f"{db(entry.psnr)}", db(above, True), db(entry.hardest),
                     track(entry.psnr), remark])  # fmt: skip
    for name, value in floors.items():
        if value is not None:
            rows.append([f"<em>{name}</em>", db(value), "", "", track(value, True), "needs no upload"])
    head = ["Attack", "#Mean", "#Over floor", "#Worst-hit owner", "", "Kind"]
    if all(entry.hardest is None for entry in run.attacks.values()):
        head.pop(3)
        rows = [[*row[:3], *row[4:]] for row in rows]
    return _table(head, rows, "attacks")


def _attacks_on_many(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.attacks))
    names.sort(key=lambda name: -max(_rank(run.attacks[name]) for run in runs if name in run.attacks))
    rows = []
    for name in names:
        helped = any(name in run.attacks and run.attacks[name].oracle for run in runs)
        mark = "<small>upper bound</small>" if helped else ""
        cells = []
        for run in runs:
            value = run.attacks[name].psnr if name in run.attacks else None
            peak = max((entry.psnr for entry in run.attacks.values() if entry.psnr is not None), default=None)
            cells.append(f"<strong>{db(value)}</strong>" if value is not None and value == peak else db(value))
        rows.append([esc(attack_name(name)) + mark, *cells])
    for name, text in FLOORS.items():
        if any(run.floor(name) is not None for run in runs):
            rows.append([f"<em>floor: {text}</em>", *(db(run.floor(name)) for run in runs)])
    effort = ["full audit" if run.thorough else "audit" if run.audited else "quick probes" for run in runs]
    rows.append(["<em>effort</em>", *(f"<small>{text}</small>" for text in effort)])
    return _table(["Attack", *(f"#{_named(run)}" for run in runs)], rows, "attacks")


def _rank(attack: Attack) -> float:
    """What to sort by; an attack without a figure comes last."""
    return -math.inf if attack.psnr is None else attack.psnr


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.1f}%"


def _costs(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        up, down, seconds = (run.total(key) for key in ("bytes_up", "bytes_down", "seconds"))
        if up is None and down is None and seconds is None:
            continue
        each = [None if value is None or not run.done else value / run.done for value in (up, down, seconds)]
        rows.append([_named(run) if len(runs) > 1 else "All rounds", size(up), size(down), duration(seconds),
                     size(each[0]), size(each[1]), duration(each[2])])  # fmt: skip
    head = ["", "#Uploaded", "#Downloaded", "#Time", "#Up per round", "#Down per round", "#Time per round"]
    return _section("costs", "Traffic and time", "", _table(head, rows) if rows else "")


def _dropped(runs: Sequence[Run]) -> str:
    rows, totals = [], []
    for run in runs:
        found: dict[tuple[str, str], list[int]] = {}
        for entry in run.rounds:
            listed = entry.get("dropped")
            for drop in listed if isinstance(listed, list) else []:
                key = clean(mapping(drop).get("client") or "?"), clean(mapping(drop).get("reason") or "", 200)
                found.setdefault(key, []).append(entry["round"])
        count = sum(map(len, found.values())) or int(number(run.summary.get("dropped")) or 0)
        if count:
            totals.append(f"{_named(run) + ' ' if len(runs) > 1 else ''}{plural(count, 'update')} dropped")
        for (client, reason), where in list(found.items())[:40]:
            shown = ", ".join(map(str, where[:6])) + (" …" if len(where) > 6 else "")
            name = [_named(run)] if len(runs) > 1 else []
            rows.append([f"<bdi>{esc(client)}</bdi>", *name, str(len(where)), shown, esc(reason, 200)])
    head = ["Owner", *(["Run"] if len(runs) > 1 else []), "#Times", "Rounds", "Reason"]
    intro = "; ".join(totals) + (
        ". The runs went on without them." if len(runs) > 1 else ". The run went on without them."
    )
    return _section("dropped", "Dropped owners", intro, (_table(head, rows) if rows else " ") if totals else "")


def _settings(runs: Sequence[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    if not keys:
        return ""
    single = len(runs) == 1
    rows = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    differing = [key for key in keys if len(set(rows[key])) > 1]

    def table(shown: Sequence[str]) -> str:
        head = ["Setting", "Value"] if single else ["Setting", *(_named(run) for run in runs)]
        listed = [[f"<code>{esc(key, 120)}</code>", *(f"<code>{esc(value, 200)}</code>" for value in rows[key])]
                  for key in shown]  # fmt: skip
        return _table(head, listed, "settings")

    apart = f"<h3>What differs</h3>{table(differing)}" if differing else ""
    whole = f"<details><summary>All {len(keys)} settings</summary>{table(keys)}</details>"
    return _section("settings", "Configuration", "", apart + whole)


def _guide() -> str:
    return _section("how", "How to read this", "", f'<dl class="guide">{GUIDE}</dl>')


GUIDE = "".join(
    f"<div><dt>{term}</dt><dd>{text}</dd></div>"
    for term, text in (
        (
            "PSNR, in decibels",
            "How close a picture is to the true one; 3 dB more halves the squared error. Below about 15 dB little but "
            "colour and shade remains, around 20 dB the subject is plain, 30 dB is sharp. It can understate: a faint "
            "outline may be visible at a low figure, so look at the pictures too.",
        ),
        (
            "Adaptation steps",
            "An owner starts from the shared model and fits it to one picture of their own, without sending anything. "
            "Unseen owners never took part; held-out data was kept back by owners who did.",
        ),
        (
            "PSNR_p",
            "What the server sees when it simply renders one upload: the most naive attack. "
            "A low value shows that this one look fails, and nothing more. Other attacks on the very same upload "
            "may succeed.",
        ),
        (
            "Floor",
            "What can be guessed without any upload: the best picture of a single colour, or the public model with "
            "fitted colours. Only what lies above it can be put down to the upload.",
        ),
        (
            "Worst attack",
            "The attack, among those tried, that recovers most from one upload, on average over the audited owners. "
            "Another owner may be hit harder, and an attack that nobody tried may recover more: "
            "at the floor means nothing found, not nothing there.",
        ),
        (
            "How sure",
            "One run is one seed. Differences of a few tenths of a decibel may be chance.",
        ),
    )
)


class _Pictures:
    """Embeds contact sheets, within a budget for the whole page."""

    def __init__(self) -> None:
        self.left = PAGE_BYTES

    def section(self, runs: Sequence[Run]) -> str:
        """The contact sheets of all runs; what cannot be shown becomes a note."""
        single = len(runs) == 1
        blocks = []
        for run in runs:
            sheets = self._sheets(run, "large" if single else "")
            if sheets:
                title = "" if single else f"<h3>{_named(run)}</h3>"
                blocks.append(f'{title}<div class="sheets">{sheets}</div>')
        return _section("pictures", "Pictures", "", "\n".join(blocks))

    def _sheets(self, run: Run, kind: str) -> str:
        index = run.folder / "images" / "sheets.json"
        if not index.is_file():
            return ""
        try:
            listed = _object(index)
        except UserError as error:
            return f'<p class="note">{esc(error, 300)}</p>'
        first = {"owner": 0, "server": 1}
        order = sorted(listed, key=lambda name: first.get(name, 2))
        return "".join(self._sheet(run, mapping(listed[name]), kind) for name in order)

    def _sheet(self, run: Run, sheet: Mapping[str, Any], kind: str) -> str:
        columns, rows = (value if isinstance(value := sheet.get(key), list) else [] for key in ("columns", "rows"))
        if not rows:
            return ""
        head = "".join(f"<th>{esc(column)}</th>" for column in ["", *columns])
        body = []
        for row in rows[:40]:
            name = esc(mapping(row).get("client") or "")
            cells = mapping(row).get("cells")
            shown = "".join(
                f"<td>{self._cell(run, mapping(cell), f'{name}, {esc(column)}')}</td>"
                for cell, column in zip(cells if isinstance(cells, list) else [], columns, strict=False)
            )
            body.append(f'<tr><th scope="row"><bdi>{name}</bdi></th>{shown}</tr>')
        more = f'<p class="note">{len(rows) - 40} more rows are not shown.</p>' if len(rows) > 40 else ""
        return (
            f'<div class="{kind}"><h4>{esc(sheet.get("title") or "")}</h4>'
            '<div class="scroll" tabindex="0" role="region" aria-label="pictures">'
            f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
            f"{more}</div>"
        )

    def _cell(self, run: Run, cell: Mapping[str, Any], alt: str) -> str:
        """One picture and its label; ``alt`` is HTML."""
        if not cell.get("file"):
            return ""
        label = f"<span>{esc(cell.get('label') or '')}</span>" if cell.get("label") else ""
        try:
            data, kind, small = self._read(run.folder, str(cell["file"]))
        except _SkipError as reason:
            return f'<em class="note">not shown: {esc(reason)}</em>{label}'
        crisp = ' class="px"' if small else ""
        return f'<img{crisp} alt="{alt}" src="data:image/{kind};base64,{data}">{label}'

    def _read(self, folder: Path, name: str) -> tuple[str, str, bool]:
        path = _inside(folder, name)
        try:
            if path.stat().st_size > min(IMAGE_BYTES, self.left):
                raise _SkipError("file too large" if path.stat().st_size > IMAGE_BYTES else "the page is full")
            data = path.read_bytes()
        except OSError as error:
            raise _SkipError("file cannot be read") from error
        kind, small = _checked(data)
        self.left -= len(data)
        return base64.b64encode(data).decode("ascii"), kind, small


class _SkipError(Exception):
    """Why a picture is not shown."""


def _inside(folder: Path, name: str) -> Path:
    """The picture's path, if it lies in the run's ``images`` folder and nowhere else, links followed."""
    try:
        home = (folder / "images").resolve()
        path = (home / name).resolve()
        if not (home.is_relative_to(folder.resolve()) and path.is_relative_to(home)):
            raise _SkipError("outside the images folder")
        if not path.is_file():
            raise _SkipError("file missing")
    except (OSError, ValueError, RuntimeError) as error:
        raise _SkipError("not a file name") from error
    return path


def _checked(data: bytes) -> tuple[str, bool]:
    """The kind of a picture that decodes, in a format that browsers show, and whether its pixels will be seen."""
    from PIL import Image

    kinds = {"PNG": "png", "GIF": "gif", "JPEG": "jpeg", "WEBP": "webp"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=list(kinds)) as image:
                if image.width * image.height > IMAGE_PIXELS:
                    raise _SkipError("too many pixels")
                image.load()
                return kinds[str(image.format)], min(image.size) <= 128
    except _SkipError:
        raise
    except Exception as error:  # Decoders raise whatever they like on damaged data.
        raise _SkipError("damaged picture") from error
