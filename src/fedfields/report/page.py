"""The whole page: what matters first, how to read it and the settings last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from fedfields.report import charts, samples, tables
from fedfields.report.parts import named, section
from fedfields.report.pictures import Pictures
from fedfields.report.runs import Run, mapping, number
from fedfields.report.text import esc, plural, prose
from fedfields.report.words import alike, comparison, headline_steps, notices, verdict

GUIDE = {
    "PSNR, in decibels": "How close a picture is to the true one; 3 dB more halves the squared error. Below about 15 dB"
    " little but colour and shade remains, at 20 dB the subject is plain, 30 dB is sharp. A faint outline may show at a"
    " low figure, so look at the pictures too.",
    "Adaptation steps": "An owner fits the shared model to one picture of their own, without sending anything. Unseen"
    " owners never took part; held-out data was kept back by owners who did.",
    "PSNR_p": "What the server sees when it simply renders one upload: the most naive attack. A low value shows that"
    " this one look fails; other attacks on the same upload may succeed.",
    "Floor": "What can be guessed without any upload: the best picture of a single colour, the public model with fitted"
    " colours, the mean of other owners' pictures. Only what lies above can be put down to the upload.",
    "Worst attack": "What is recovered from one upload if the best of the attacks tried is chosen for each owner: mean"
    " over owners; the attack named is the best on average. An attack that nobody tried may recover more: at the floor"
    " means nothing found, not nothing there.",
    "Epsilon": "Differential privacy of one owner: a bound on how well anybody can tell from the weights which of two"
    " cases is true, whatever attack they use. Below 1 is strong, above 10 promises little. The figures on this page,"
    " measured on the owners' data, are not covered; and it does not say how alike a recovered picture looks.",
    "How sure": "One run is one seed. Differences of a few tenths of a decibel may be chance.",
}

PLACES = {
    "Test photographs": "Photographs of the place that nobody trained on, rendered from where they were taken. Nothing"
    " is adapted to them. Depth is drawn as nearness: the nearest white, what lies behind everything black.",
    "SSIM": "Structural similarity: 1 for the same picture. Unlike PSNR it hardly minds small shifts of brightness and"
    " minds blur.",
    "People leak": "Known in a simulation alone: where people stand in an owner's photographs, how far a render of what"
    " the server has goes from the place without them (0) to the photograph with them (1). Below 0 it errs the other"
    " way. A mean near 0 does not clear the worst owner.",
    "Server's work": "Floating-point operations by a plain count: at the server sums, masks and new weights; twice the"
    " weights of a field for each sample forward and four times back at the owners, if every batch is full.",
    "Bytes": "The weights that owners sent to the server (uploaded) and received from it, all rounds together. No"
    " photograph is among them.",
}

SERVED = {
    "Failures": "Updates that were asked for and did not come in time, or that the server refused: why is said above."
    " A round goes on without them.",
    "Bytes": "What the server received from all owners and sent to them. No picture is among it, and under secure sums"
    " no owner's update either: every owner's own sent.jsonl lists what left.",
}

SAMPLES = {
    "Adaptation steps": "A client fits the shared model to its own support rows, without sending anything, and is"
    " judged on its query rows, which it never fits.",
    "Validation clients": "They never train. Their figures after adaptation decide when training stops and which"
    " settings are chosen, so their own are a little flattering.",
    "Clients that never took part": "Looked at once, at the end: what somebody who joins later can expect.",
    "Accuracy": "Share of query rows whose class is named rightly, mean over clients. One divided by the number of"
    " classes is chance.",
    "Error": "Mean squared error of the numbers, in their own units squared.",
}

ALWAYS = ("PSNR, in decibels", "Epsilon", "How sure")
"""Terms of `GUIDE` that runs on places need, too."""


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    steps, several, pictures = headline_steps(runs), len(runs) > 1, Pictures()
    parts = [
        _head(runs, steps[0]),
        pictures.first(runs),
        _cards(runs, steps[0]) if several else tables.tiles(runs[0], steps),
        _notices(runs, steps[0]),
        tables.side_by_side(runs, steps) if several else "",
        charts.places(runs),
        samples.samples(runs),
        charts.tradeoff(runs, steps),
        pictures.section(runs),
        "" if several else tables.photographs(runs[0]) + tables.course(runs[0]),
        charts.rounds(runs),
        tables.attacks(runs),
        _guide(runs),
        tables.settings(runs),
    ]
    return document(_title(runs), parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML already, as is the title."""
    body = "\n".join(part for part in parts if part)
    style = files("fedfields.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title} · fedfields</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _title(runs: Sequence[Run]) -> str:
    return esc(runs[0].label) if len(runs) == 1 else f"{len(runs)} runs compared"


def _head(runs: Sequence[Run], steps: int | None) -> str:
    single = len(runs) == 1
    line = f'<p class="facts">{" · ".join(_facts(runs[0]))}</p>\n' if single else ""
    text = verdict(runs[0], steps) if single else comparison(runs, steps)
    return (
        f'<header>\n<p class="brow">fedfields report</p>\n<h1><bdi>{_title(runs)}</bdi></h1>\n{line}'
        f'<p class="verdict">{prose(text)}</p>\n'
        '<p class="facts"><a href="#how">How to read these numbers</a></p>\n</header>'
    )


def _facts(run: Run) -> list[str]:
    people = mapping(run.summary.get("clients"))
    train, unseen, drawn = (number(people.get(key)) for key in ("train", "unseen", "per_round"))
    found = {
        f"preset {esc(run.preset)}": run.preset and run.preset != run.label,
        plural(int(train or 0), "training owner"): train is not None,
        f"{drawn:.0f} per round" if drawn else "": drawn,
        f"{unseen:.0f} unseen" if unseen else "": unseen,
        f"seed {esc(run.manifest.get('seed'))}": "seed" in run.manifest,
        f"fedfields {esc(run.manifest.get('version'), 30)}": "version" in run.manifest,
    }
    return [text for text, known in found.items() if known]


def _cards(runs: Sequence[Run], steps: int | None) -> str:
    cards = []
    for run in runs:
        chips = [esc(run.preset)] if run.preset and run.preset != run.label else []
        chips += [] if run.summary else ["in progress"]
        title = named(run) + "".join(f'<span class="chip">{chip}</span>' for chip in chips)
        cards.append(f'<article class="card"><h3>{title}</h3><p>{prose(verdict(run, steps))}</p></article>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _notices(runs: Sequence[Run], steps: int | None) -> str:
    baseline = next((run for run in runs if run.baseline), None)
    items = []
    for run in runs:
        name = f"{named(run)} " if len(runs) > 1 else ""
        items += [name + prose(text) for text in notices(run, baseline, steps)]
    leaking = [run for run in runs if run.worst]
    if leaking and not alike(leaking):
        items.append("Not every run was attacked in the same way: compare what was recovered with care.")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f'<aside class="notices"><h2>Worth knowing</h2><ul>{listed}</ul></aside>' if items else ""


def _guide(runs: Sequence[Run]) -> str:
    terms = {**GUIDE, **PLACES}
    if all(run.served for run in runs):
        terms = SERVED | {"Epsilon": GUIDE["Epsilon"]}
    elif all(run.scored for run in runs):
        terms = SAMPLES | {name: GUIDE[name] for name in ALWAYS if not name.startswith("PSNR")}
    elif all(run.place for run in runs):
        known = {*PLACES, *ALWAYS} | ({"Floor", "Worst attack"} if any(run.audited for run in runs) else set())
        terms = {term: text for term, text in terms.items() if term in known}
    elif not any(run.place for run in runs):
        terms = GUIDE
    return glossary(terms)


def glossary(terms: Mapping[str, str]) -> str:
    """What the page's words mean."""
    items = "".join(f"<div><dt>{term}</dt><dd>{text}</dd></div>" for term, text in terms.items())
    return section("how", "How to read this", "", f'<dl class="guide">{items}</dl>')
