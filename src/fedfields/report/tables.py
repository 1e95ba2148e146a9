"""The page's tables: key figures, attacks, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfields.report import samples
from fedfields.report.parts import named, section, table
from fedfields.report.runs import FLOORS, Attack, Run, items, mapping, number, rank
from fedfields.report.text import db, duration, esc, operations, plural, size
from fedfields.report.words import GROUPS, Steps, attack_name, attacked, worst_name

FIGURES = {"psnr": ("PSNR, dB", 1), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3)}
"""What is measured on a test photograph of a place: its name, and how many places are shown."""

WORST = 12
"""Photographs that are listed before the others are folded away."""


def tiles(run: Run, steps: Steps) -> str:
    """The key figures of one run, and what to know about them."""
    cells = "".join(
        f"<div><dt>{name}</dt><dd><strong>{value}</strong><small>{under}</small></dd></div>"
        for name, value, under in _key_figures(run, steps)
    )
    return f'<dl class="tiles">{cells}</dl>'


def _key_figures(run: Run, steps: Steps) -> list[tuple[str, str, str]]:
    found = []
    if run.place:
        found += _place_figures(run)
    elif run.scored:
        found += samples.tiles(run)
    elif steps[0] is not None:
        found.append((f"After {plural(steps[0], 'step')}", f"{db(run.quality(steps[0]))} dB", _quality(run, steps)))
    if run.worst:
        found.append(("Worst attack", f"{db(run.worst[1])} dB", f"on {run.attacked}: {esc(worst_name(run))}"))
    if run.excess is not None and run.ground:
        found.append(("Over the floor", f"{db(run.excess, True)} dB", f"{run.ground[0]}, {db(run.ground[1])} dB"))
    if (naive := number(run.latest("psnr_p"))) is not None:
        found.append(("PSNR_p", f"{db(naive)} dB", "one naive attack, no proof of privacy"))
    if content := mapping(run.latest("content")):
        leak, worst = (_figure(number(content.get(key)), 2) for key in ("leak", "leak_worst"))
        scores = (
            f"{db(number(content.get('psnr')))} dB where they are; {db(number(content.get('floor')))} dB without them"
        )
        found.append(("People leak", leak, f"0 none, 1 all; worst owner {worst}<br>{scores}"))
    if (epsilon := number(run.guarantee.get("epsilon"))) is not None:
        found.append(("Epsilon", f"{epsilon:,.0f}" if epsilon >= 100 else f"{epsilon:.3g}", _guarantee(run)))
    if run.served:
        found.append(("Failures", f"{run.total_dropped:,}", f"of {plural(run.asked, 'update')} asked for"))
    if (up := run.total("bytes_up")) is not None:
        each = f"{size(up / run.done)} per round<br>" if run.done else ""
        found.append(("Uploaded", size(up), f"{each}{size(run.total('bytes_down'))} downloaded"))
    if (work := number(mapping(run.summary.get("flops")).get("server"))) is not None:
        clients = number(mapping(run.summary.get("flops")).get("clients"))
        theirs = "" if clients is None else f"owners together at most {operations(clients)}"
        found.append(("Server's work", operations(work), theirs))
    took = duration(run.total("seconds")) if run.summary else "no summary yet"
    return [*found, ("Rounds", f"{run.done:,}", took)]


def _guarantee(run: Run) -> str:
    """Delta, and what the noise protects against whom."""
    delta = number(run.guarantee.get("delta"))
    return ("" if delta is None else f"delta {delta:.2g}<br>") + esc(run.guarantee.get("protects", ""), 300)


def _place_figures(run: Run) -> list[tuple[str, str, str]]:
    """The mean over the test photographs, and the worst of them."""
    name, worst = next(iter(run.views.items()))
    others = "".join(f"<br>{text}" for text in _means(run))
    photographs = plural(len(run.views), "test photograph")
    return [
        ("PSNR", f"{db(run.view_mean('psnr'))} dB", f"mean of {photographs}{others}"),
        ("Worst photograph", f"{db(number(worst.get('psnr')))} dB", f"<bdi>{esc(name, 40)}</bdi>"),
    ]


def _means(run: Run) -> list[str]:
    """The other figures of a place that were measured."""
    found = {text: run.view_mean(figure) for figure, (text, _) in FIGURES.items() if figure != "psnr"}
    return [f"{text} {value:.3f}" for text, value in found.items() if value is not None]


def _quality(run: Run, steps: Steps) -> str:
    later, similar = run.quality(steps[1]), run.quality(steps[0], "ssim")
    under = GROUPS[run.judged]
    under += "" if later is None else f"<br>{db(later)} dB after {steps[1]}"
    return under + ("" if similar is None else f"<br>SSIM {similar:.2f}")


def course(run: Run) -> str:
    """Every round of a run between machines; a long one in part."""
    rows = [_round(entry) for entry in run.rounds] if run.served else []
    private = any("epsilon" in entry for entry in run.rounds)
    head = ["Round", "#Owners", "#Received", "#Sent", "#Time", *(["#Epsilon"] if private else []), "Without"]
    if not private:
        rows = [[*row[:5], *row[6:]] for row in rows]
    shown = table(head, rows[-WORST:]) if rows else ""
    if len(rows) > WORST:
        shown += f"<details><summary>The {len(rows) - WORST} before</summary>{table(head, rows[:-WORST])}</details>"
    intro = "Owners whose updates counted, of those that were asked; what the server received and sent."
    return section("course", "The rounds", intro, shown)


def _round(entry: Mapping[str, Any]) -> list[str]:
    asked, epsilon = len(items(entry.get("cohort"))), number(entry.get("epsilon"))
    without = [str(mapping(drop).get("client")) for drop in items(entry.get("dropped"))]
    up, down, took = (number(entry.get(key)) for key in ("bytes_up", "bytes_down", "seconds"))
    cells = [f"{entry['round']}", f"{asked - len(without)} of {asked}", size(up), size(down), duration(took)]
    return [*cells, "–" if epsilon is None else f"{epsilon:.3g}", esc(", ".join(without), 200)]


def photographs(run: Run) -> str:
    """The figures of each test photograph, the worst first, with a bar for the PSNR."""
    known = [figure for figure in FIGURES if any(number(one.get(figure)) is not None for one in run.views.values())]
    top = max((number(one.get("psnr")) or 0.0 for one in run.views.values()), default=0.0)
    rows = [[f"<bdi>{esc(name, 60)}</bdi>", *_figures(one, known, top)] for name, one in run.views.items()]
    head = ["Photograph", *(f"#{FIGURES[figure][0]}" for figure in known), ""]
    shown = table(head, rows[:WORST], "views") if rows else ""
    if len(rows) > WORST:
        rest = table(head, rows[WORST:], "views")
        shown += f"<details><summary>The other {plural(len(rows) - WORST, 'photograph')}</summary>{rest}</details>"
    intro = "Photographs that nobody trained on, the worst first."
    if "lpips" in known:
        intro += " LPIPS is a distance: lower is better."
    return section("photographs", "Test photographs", intro, shown)


def _figures(one: Mapping[str, Any], known: Sequence[str], top: float) -> list[str]:
    cells = [_figure(number(one.get(figure)), FIGURES[figure][1]) for figure in known]
    share = max(0.0, number(one.get("psnr")) or 0.0) / top if top > 0 else 0.0
    return [*cells, f'<i class="bar" style="width:{100 * min(share, 1.0):.0f}%"></i>']


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _places_side_by_side(runs: Sequence[Run]) -> str:
    known = [figure for figure in FIGURES if any(run.view_mean(figure) is not None for run in runs)]
    peopled = any(run.latest("content") for run in runs)
    head = ["Run", *(f"#{FIGURES[figure][0]}" for figure in known), "#Worst PSNR", "#Photographs", "#Owners"]
    head += ["#People leak"] if peopled else []
    head += ["#Rounds", "#Uploaded", "#Downloaded", "#Time"]
    rows = []
    for run in runs:
        worst = number(next(iter(run.views.values())).get("psnr"))
        cells = [_figure(run.view_mean(figure), FIGURES[figure][1]) for figure in known]
        cells += [db(worst), f"{len(run.views):,}", f"{run.owners:,}"]
        cells += [_figure(number(mapping(run.latest("content")).get("leak")), 2)] if peopled else []
        cells.append(f"{run.done:,}")
        cells += [size(run.total("bytes_up")), size(run.total("bytes_down")), duration(run.total("seconds"))]
        rows.append([named(run), *cells])
    return section("runs", "Runs side by side", "Means over photographs that nobody trained on.", table(head, rows))


def side_by_side(runs: Sequence[Run], steps: Steps) -> str:
    """The figures of several runs; those of runs on samples stand beside their curves."""
    if all(run.scored for run in runs):
        return ""
    if all(run.place for run in runs):
        return _places_side_by_side(runs)
    known = dict.fromkeys(step for step in (0, *steps) if step is not None)
    shown = [step for step in known if any(run.quality(step) is not None for run in runs)]
    head = ["Run", *(f"#{plural(step, 'step')}" for step in shown), "#SSIM", "#PSNR_p", "#Worst attack", "#Over floor"]
    head += ["#Rounds", "#Uploaded", "#Downloaded", "#Time"]
    intro = "PSNR in dB of unseen owners" + (f"; SSIM after {plural(steps[0], 'step')}." if steps[0] else ".")
    held = [named(run) for run in runs if run.judged == "held_out" and run.by_steps("held_out")]
    intro += f" No unseen owners, judged on held-out data: {', '.join(held)}." if held else ""
    return section("runs", "Runs side by side", intro, table(head, [_row(run, shown, steps[0]) for run in runs]))


def _row(run: Run, shown: Sequence[int], few: int | None) -> list[str]:
    similar = run.quality(few, "ssim")
    found = [*map(run.quality, shown), number(run.latest("psnr_p")), run.worst and run.worst[1]]
    cells = [db(value) for value in found] + [db(run.excess, True), f"{run.done:,}"]
    cells.insert(len(shown), "–" if similar is None else f"{similar:.2f}")
    traffic = [size(run.total(key)) for key in ("bytes_up", "bytes_down")]
    return [named(run), *cells, *traffic, duration(run.total("seconds"))]


def attacks(runs: Sequence[Run]) -> str:
    """What every attack recovered, beside what needs no upload."""
    runs = [run for run in runs if run.attacks]
    intro = (
        f"What the server recovers from {attacked(runs)}, mean over the audited owners, in dB. "
        "An <em>upper bound</em> was helped by the true picture (an oracle fit) or by the pixel draws, "
        "which a real server does not have."
    )
    if len(runs) == 1 and (audited := number(runs[0].audit.get("round"))):
        what = f"the sum of {number(runs[0].audit.get('summed')) or 0:.0f} uploads" if runs[0].summed else "uploads"
        intro += f" Audited here: {what} of round {audited:.0f}."
    if not all(run.audited for run in runs):
        intro += " Take quick attacks other than the direct render as upper bounds, too."
    body = _of_many(runs) if len(runs) > 1 else _of_one(runs[0]) if runs else ""
    return section("attacks", "Attacks against floors", intro, body)


def _of_one(run: Run) -> str:
    rows = [[*_attack(run, name, attack), *_people(run, name)] for name, attack in run.attacks.items()]
    floors = [
        [text, db(run.floor(name)), "", "", "needs no upload", *_people(run, name)] for name, text in _floors([run])
    ]
    head = ["Attack", "#Mean", "#Over floor", "#Hardest-hit owner", "Kind"]
    return table(head + (["#People leak", "#PSNR there"] if run.people else []), rows + floors)


def _people(run: Run, name: str) -> list[str]:
    """What an attack, or the public model, shows of people in front of a place; nothing where nobody knows."""
    one = run.people.get(name, {})
    return [_figure(number(one.get("leak")), 2), db(number(one.get("psnr")))] if run.people else []


def _floors(runs: Sequence[Run]) -> list[tuple[str, str]]:
    known = [name for name in FLOORS if any(run.floor(name) is not None for run in runs)]
    return [(name, f"<em>floor: {FLOORS[name]}</em>") for name in known]


def _attack(run: Run, name: str, attack: Attack) -> list[str]:
    above = None if attack.psnr is None or run.ground is None else attack.psnr - run.ground[1]
    kind = "" if attack.helped is None else "upper bound" if attack.helped else "realisable"
    kinds = filter(None, (kind, "quick" if attack.level == "cheap" else esc(attack.level)))
    return [esc(attack_name(name)), db(attack.psnr), db(above, True), db(attack.hardest), " · ".join(kinds)]


def _of_many(runs: Sequence[Run]) -> str:
    """One column for each run; its worst attack stands out."""
    found = {name: [run.attacks.get(name, Attack(None)) for run in runs] for run in runs for name in run.attacks}
    tops = [max(rank(attack.psnr) for attack in run.attacks.values()) for run in runs]
    rows = []
    for name in sorted(found, key=lambda name: max(rank(attack.psnr) for attack in found[name]), reverse=True):
        mark = "<small>upper bound</small>" if any(attack.helped for attack in found[name]) else ""
        shown = [(db(attack.psnr), attack.psnr == top) for attack, top in zip(found[name], tops, strict=True)]
        cells = [f"<strong>{value}</strong>" if worst else value for value, worst in shown]
        rows.append([esc(attack_name(name)) + mark, *cells])
    floors = [[text, *(db(run.floor(name)) for run in runs)] for name, text in _floors(runs)]
    efforts = ["full audit" if run.thorough else "audit" if run.audited else "quick probes" for run in runs]
    head = ["Attack", *(f"#{named(run)}" for run in runs)]
    return table(head, [*rows, *floors, ["<em>effort</em>", *efforts]])


def settings(runs: Sequence[Run]) -> str:
    """The configuration; of several runs first what differs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    differing = {key: values for key, values in rows.items() if len(set(values)) > 1}
    head = ["Setting", *(["Value"] if len(runs) == 1 else map(named, runs))]
    apart = f"<h3>What differs</h3>{_listing(head, differing)}" if differing else ""
    whole = f"<details><summary>All {len(rows)} settings</summary>{_listing(head, rows)}</details>"
    return section("settings", "Configuration", "", apart + whole if rows else "")


def _listing(head: Sequence[str], rows: dict[str, list[str]]) -> str:
    cells = [[f"<code>{esc(text, 200)}</code>" for text in (key, *values)] for key, values in rows.items()]
    return table(head, cells, "settings")
