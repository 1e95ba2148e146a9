"""One table of all members; one test body over it (tests/test_table.py). A new member is a new row in config."""

import dataclasses

from fedfields.config import OBJECTIVES, PRIVACY, PULLS, STRATEGIES
from fedfields.objectives import Inner, Proximal


def small(value):
    """The same member with inner loops of two steps on a few samples."""
    if not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Inner):
        return dataclasses.replace(value, steps=2, lr=0.01, batch=8)
    changes = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if dataclasses.is_dataclass(part):
            changes[field.name] = small(part)
        elif field.name in ("outer_batch", "batch"):
            changes[field.name] = 8
    return dataclasses.replace(value, **changes)


PAIRS = [
    (
        f"{objective}-{strategy}",
        Proximal(small(OBJECTIVES[objective]), PULLS[strategy]) if strategy in PULLS else small(OBJECTIVES[objective]),
        STRATEGIES[strategy],
    )
    for objective in OBJECTIVES
    for strategy in STRATEGIES
]

TRANSFORMS = list(PRIVACY.items())
