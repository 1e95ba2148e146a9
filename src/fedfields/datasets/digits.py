"""The handwritten digits of scikit-learn, split by class."""

from __future__ import annotations

from fedfields.datasets.shares import Rows
from fedfields.errors import UserError
from fedfields.lazy import torch
from fedfields.seeds import generator

CLIENTS, KINDS = 50, 2


def digits(seed: int) -> dict[str, Rows]:
    """1,797 pictures ``[1, 8, 8]`` in [0, 1], of which each of 50 clients has those of two digits, shared with others.

    Raises:
        UserError: scikit-learn is not there.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the built-in digits are scikit-learn's: pip install scikit-learn, or name --data") from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16  # pyright: ignore
    labels = torch.tensor(found.target, dtype=torch.int64)  # pyright: ignore
    random = generator(seed, "digits")
    # Every digit goes to as many clients: rounds of all ten, in random order, dealt out two at a time.
    dealt = torch.cat([torch.randperm(10, generator=random) for _ in range(CLIENTS * KINDS // 10)]).view(CLIENTS, KINDS)
    owners: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for client, kinds in enumerate(dealt.tolist()):
        for digit in kinds:
            owners[digit].append(client)
    mine: list[list[int]] = [[] for _ in range(CLIENTS)]
    for digit, clients in owners.items():
        rows = (labels == digit).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=random)]
        for client, part in zip(clients, rows.tensor_split(len(clients)), strict=True):
            mine[client] += part.tolist()
    return {f"client-{i:02d}": Rows(images[rows], labels[rows]) for i, rows in enumerate(mine)}
