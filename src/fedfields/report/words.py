"""What the figures mean, in plain text, and no more than they mean."""

from __future__ import annotations

from collections.abc import Sequence

from fedfields.report import samples
from fedfields.report.runs import Run, items, mapping, number
from fedfields.report.text import clean, db, duration, listed, plural

CLOSE = 0.5
"""Decibels: an attack this close to the floor found little; runs this close to each other are named together."""

Steps = tuple[int | None, int | None]
"""The numbers of adaptation steps that the page speaks of: few, and more."""

GROUPS = {"unseen": "unseen owners", "held_out": "held-out data"}
"""Whose pictures are adapted to."""

ATTACKS = {
    "direct": "direct render",
    "affine": "affine fit of the render",
    "difference": "affine fit of the render's change",
    "extrapolation": "render of the extrapolated update",
    "scaled": "render of the update times the owners in the sum",
    "picture": "extrapolated change of the render",
    "picture_best": "extrapolated change of the render, best factor",
    "extrapolation_affine": "affine fit of the extrapolated update",
    "two_regressors": "fit by the renders before and after",
    "jacobian": "affine fit of the Jacobian image",
    "ntk": "kernel (NTK) inversion of the update",
    "learned": "read-out learned on other owners",
    "matching_known": "gradient matching, pixel draws known",
    "matching_unknown": "gradient matching, pixel draws unknown",
    "newton_known": "Gauss-Newton inversion, pixel draws known",
    "newton_unknown": "Gauss-Newton inversion, pixel draws unknown",
    "polished_known": "inversion and polish, pixel draws known",
    "polished_unknown": "inversion and polish, pixel draws unknown",
}


def attack_name(name: str) -> str:
    """An attack's name for people."""
    return ATTACKS.get(name, clean(name).replace("_", " "))


def worst_name(run: Run) -> str:
    """The worst attack's name, and whether it was helped by the truth."""
    name = run.worst[0] if run.worst else ""
    helped = name in run.attacks and run.attacks[name].helped
    return attack_name(name) + (", an upper bound" if helped else "")


def headline_steps(runs: Sequence[Run]) -> Steps:
    """8 and 32 adaptation steps, or what was measured instead."""
    known = sorted({step for run in runs for step in run.by_steps(run.judged)})
    known = [step for step in known if step > 0] or known
    if not known:
        return None, None
    few = 8 if 8 in known else known[len(known) // 2]
    more = [step for step in known if step > few]
    return few, 32 if 32 in more else max(more, default=None)


def attacked(runs: Sequence[Run]) -> str:
    """What the attacks on these runs were on."""
    return " or ".join(dict.fromkeys(run.attacked for run in runs)) or "one upload"


def verdict(run: Run, steps: int | None) -> str:
    """What the figures say about one run."""
    gained, leaked = _gain(run, steps), _leak(run)
    return f"{gained}; {leaked}" if run.worst else f"{gained}. {leaked}"


def _gain(run: Run, steps: int | None) -> str:
    if run.served:
        return _away(run)
    if run.place:
        return _rendered(run)
    if run.scored:
        return samples.gain(run)
    value = run.quality(steps)
    if steps is None or value is None:
        return "No adapted picture has been measured yet"
    start = " from a random initialisation" if run.baseline else ""
    owner, where = ("an unseen owner", "") if run.judged == "unseen" else ("a training owner", " on held-out data")
    return f"After {plural(steps, 'step')}{start} {owner} gets {db(value)} dB on average{where}"


def _away(run: Run) -> str:
    """What is known at the server of a run whose owners are on other machines."""
    failed = run.total_dropped
    went = "every update that was asked for came" if not failed else f"{plural(failed, 'update')} did not come"
    return (
        f"{plural(run.owners, 'owner')} trained on their own machines, and in {plural(run.done, 'round')} {went}. "
        "How good the field is each owner sees at home: the server has no picture to judge it by"
    )


def _rendered(run: Run) -> str:
    """How well the test photographs of a place are rendered, and what that took."""
    whose = "the field" if run.owners < 2 else f"the field of {run.owners} owners"
    took = f"{plural(run.done, 'round')} and {duration(run.total('seconds'))} of training"
    photographs = plural(len(run.views), "photograph")
    return f"On {photographs} that nobody trained on {whose} reaches {db(run.view_mean('psnr'))} dB after {took}"


def _leak(run: Run) -> str:
    if run.worst is None:
        return _unmeasured(run)
    which = f" ({worst_name(run)})" if run.worst[0] else ""
    text = f"the worst attack tried on {run.attacked}{which} recovers {db(run.worst[1])} dB on average"
    if run.ground is None or run.excess is None:
        text += ", and no floor was measured to compare it with"
    else:
        side = "below" if run.excess < 0 else "above"
        text += f", {db(abs(run.excess))} dB {side} the floor ({run.ground[0]}, {db(run.ground[1])} dB)"
    if run.peak is not None:
        text += f"; in round {run.peak[0]} it was {db(run.peak[1])} dB"
    return f"{text}.{_scope(run)}"


def _scope(run: Run) -> str:
    """How far the leakage figure reaches."""
    if not run.thorough:
        return " Only quick attacks ran: a stronger one may recover more."
    if run.excess is not None and run.excess < CLOSE and run.peak is None:
        return " These attacks found little beyond what needs no upload; that is no proof that there is nothing."
    return ""


def _unmeasured(run: Run) -> str:
    if run.served:
        return (
            "For the same reason nothing was attacked here: try the settings on pictures of your own, in a simulation."
        )
    if run.scored:
        return "What an upload reveals of a client's rows has not been measured: the attacks here are for pictures."
    if run.place and run.owners == 1:
        return "There is one owner, so this is training in one place."
    if run.place:
        return _people(run) or "What an upload reveals of the photographs has not been measured."
    if run.baseline and not run.total("bytes_up"):
        return "Nothing was uploaded."
    value = number(run.latest("psnr_p"))
    hint = "" if value is None else f" (PSNR_p, {db(value)} dB, is one naive attack and cannot say)"
    return f"What an upload reveals has not been measured{hint}."


def _people(run: Run) -> str:
    """How much of the people in the owners' photographs the server can render, where that is known."""
    content = mapping(run.latest("content"))
    leak, worst = number(content.get("leak")), number(content.get("leak_worst"))
    if leak is None or worst is None:
        return ""
    what = "the last secure sum" if content.get("of") == "sum" else "the last uploads"
    shares = [f"{value:.2f}".replace("-", "−") for value in (leak, worst)]
    return (
        f"Where people stand in owners' photographs, what the server can render of {what} has gone {shares[0]} of the "
        f"way from the place without them (0) to the photograph (1), and {shares[1]} for the worst owner."
    )


def comparison(runs: Sequence[Run], steps: int | None) -> str:
    """One sentence across runs; it names a first only where the runs were measured alike."""
    parts = [text for text in (_sharpest(runs, steps), samples.best(runs), _leakiest(runs)) if text]
    if not parts:
        return "These runs were not measured alike, so no order is given; each is described below."
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _sharpest(runs: Sequence[Run], steps: int | None) -> str:
    found = [(value, run) for run in runs if (value := run.quality(steps)) is not None]
    if steps is None or len(found) < 2 or len({run.judged for _, run in found}) > 1:
        return ""
    best = max(value for value, _ in found)
    names = listed([run.label for value, run in found if value >= best - CLOSE])
    when = "on test photographs" if all(run.place for _, run in found) else f"after {plural(steps, 'step')}"
    return f"{when} the sharpest is {names} (up to {db(best)} dB)"


def _leakiest(runs: Sequence[Run]) -> str:
    found = [(run.excess, run) for run in runs if run.excess is not None]
    if len(found) < 2 or not alike([run for _, run in found]):
        return ""
    low, high = min(value for value, _ in found), max(value for value, _ in found)
    least = listed([run.label for value, run in found if value <= low + CLOSE])
    most = listed([run.label for value, run in found if value >= high - CLOSE])
    what = attacked([run for _, run in found])
    text = f"the attacks tried on {what} recover least from {least} ({db(low, True)} dB over the floor)"
    return text + (f" and most from {most} ({db(high, True)} dB)" if high - low > CLOSE else "")


def alike(runs: Sequence[Run]) -> bool:
    """Whether the same attacks, at the same levels, were tried on each run."""
    return len({frozenset((name, attack.level) for name, attack in run.attacks.items()) for run in runs}) == 1


def notices(run: Run, baseline: Run | None, steps: int | None) -> list[str]:
    """What the reader must not overlook about one run."""
    warned = run.summary.get("warnings")
    found = [
        _unfinished(run),
        _diverged(run),
        _idle(run, baseline, steps),
        _naive(run),
        _seeded(run),
        _hidden(run),
        _faces(run),
        *(clean(text, 400) for text in items(run.audit.get("notes"))[:5]),
    ]
    if run.damaged:
        found.append(f"Left out: {plural(run.damaged, 'line')} of metrics.jsonl that could not be read.")
    found += _dropped(run) + [clean(text, 400) for text in (warned if isinstance(warned, list) else [])[:50]]
    return [text for text in found if text]


def _unfinished(run: Run) -> str:
    if run.summary:
        return ""
    goal = number(mapping(run.manifest.get("experiment")).get("rounds"))
    of = f" of {goal:.0f}" if goal else ""
    return f"In progress, or stopped early: {run.done}{of} rounds so far and no summary yet."


def _diverged(run: Run) -> str:
    """From which round on the loss is no number."""
    lost = None
    for entry in reversed(run.rounds):
        if "loss" not in entry or number(entry["loss"]) is not None:
            break
        lost = entry["round"]
    return "" if lost is None else f"The loss stopped being a number in round {lost}: the model has diverged."


def _dropped(run: Run) -> list[str]:
    """Updates that the server refused, by owner and reason."""
    found: dict[str, list[int]] = {}
    for entry in run.rounds:
        for drop in map(mapping, items(entry.get("dropped"))):
            who = f"{clean(drop.get('client') or 'an owner')}: {clean(drop.get('reason') or 'unknown reason', 200)}"
            found.setdefault(who, []).append(entry["round"])
    return [
        f"{plural(len(rounds), 'update')} dropped, {who} (round {', '.join(map(str, rounds[:6]))}"
        + (" and later)." if len(rounds) > 6 else ").")
        for who, rounds in list(found.items())[:40]
    ]


def _idle(run: Run, baseline: Run | None, steps: int | None) -> str:
    if baseline is None or run is baseline or steps is None or run.judged != baseline.judged:
        return ""
    own, plain = run.quality(steps), baseline.quality(steps)
    if own is None or plain is None or own > plain:
        return ""
    start = f"After {plural(steps, 'step')} it is no better than the random initialisation"
    return f"{start} ({db(own)} dB against {db(plain)})."


def _seeded(run: Run) -> str:
    """A guarantee that somebody with the settings can take away."""
    if run.guarantee.get("noise") != "seed":
        return ""
    return (
        "The noise came from the seed, which is among the settings: whoever has it can take the noise away, and the "
        "epsilon is that of the same run with secure noise. Use --noise secure for weights that are given away."
    )


def _faces(run: Run) -> str:
    """What a face detector finds in what the server can make of the audited owners' pictures."""
    counts = {
        name: value
        for name, one in mapping(run.audit.get("faces")).items()
        if (value := number(mapping(one).get("per_hundred"))) is not None
    }
    truth = counts.pop("truth", None)
    if truth is None or not counts:
        return ""
    most = max(counts, key=lambda name: counts[name])
    found = f"A face detector finds {truth:.0f} faces in a hundred of the audited owners' pictures and"
    if not counts[most]:
        return f"{found} none in what the attacks recovered of them; somebody who knows the owner may still see one."
    return f"{found} {counts[most]:.0f} in a hundred recovered by one attack ({attack_name(most)})."


def _hidden(run: Run) -> str:
    """What the figures about privacy are on where single reports are masked."""
    if not run.summed or not run.worst:
        return ""
    if run.place:
        return (
            "Reports were summed in secret: of a single one the server has random numbers. Attacks are on what it does "
            "have, the mean of a round's uploads, and are measured against a photograph of each owner in it."
        )
    return (
        "Reports were summed in secret: of a single one the server has random numbers. PSNR_p and attacks are on what "
        "it does have, the mean of a round's uploads, and are measured against the picture of each owner in it."
    )


def _naive(run: Run) -> str:
    """Both figures where PSNR_p alone would mislead: at the floor or under it, while another attack is above."""
    value = number(run.latest("psnr_p"))
    if value is None or not run.worst or not run.ground or not value < run.ground[1] + CLOSE <= run.worst[1]:
        return ""
    both = f"{db(value)} dB against {db(run.worst[1])} dB of another attack"
    return f"A low PSNR_p alone says nothing about privacy. Here it is {both}."
