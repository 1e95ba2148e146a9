"""One bad client of six: what becomes of the model, here and with Flower's own strategies.

    python benchmarks/faults.py [--json]        Flower's columns need flwr installed (measured with 1.41)

Five clients send a vector of the values 1 to 5, of weight one; the sixth is bad. Each strategy closes one round, its
model starts at 0 and f = 1 where the strategy asks for it. "3" is the honest answer of means and medians, Krum's is
one of the five. Flower's strategies get the replies as Flower's server would hand them over.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedfields.federation import Door, Method, Rejected, close_round, expected, start_server
from fedfields.strategies import FedAvg, Robust

HONEST = [1.0, 2.0, 3.0, 4.0, 5.0]
LEAF, WEIGHT = np.full(4, 9.0, np.float32), 1.0
FAULTS: dict[str, tuple[dict[str, Any], float]] = {
    "NaN": ({"w": LEAF * np.nan}, WEIGHT),
    "infinity": ({"w": LEAF * np.inf}, WEIGHT),
    "values of 1e6": ({"w": LEAF * 0 + np.float32(1e6)}, WEIGHT),
    "another shape": ({"w": LEAF[:3]}, WEIGHT),
    "an array too many": ({"w": LEAF, "x": LEAF}, WEIGHT),
    "no array": ({}, WEIGHT),
    "float64": ({"w": LEAF.astype(np.float64)}, WEIGHT),
    "weight 1e9": ({"w": LEAF * 0 - 50}, 1e9),
    "weight -4.999": ({"w": LEAF}, -4.999),
    "weight NaN": ({"w": LEAF}, float("nan")),
    "weights that add up to 0": ({"w": LEAF}, -5.0),
}
OURS = {
    "mean, norm bound": (FedAvg(), 100.0),
    "median": (Robust("median"), 100.0),
    "Krum": (Robust("krum"), 100.0),
    "clipped mean": (Robust("clipped-mean"), 0.0),
}


def ours(strategy: Any, max_norm: float, bad: dict[str, Any], weight: float) -> str:
    """The model after the round, and whether the bad report was dropped."""
    method, start = Method(strategy=strategy), {"w": torch.zeros(4)}
    door, accepted = Door(1, range(6), expected(method, start), max_norm), []
    sent = [({"w": np.full(4, value, np.float32)}, WEIGHT) for value in HONEST] + [(bad, weight)]
    dropped = ""
    for client, (arrays, p) in enumerate(sent):
        # A report is the weighted way back: what the client had minus what it has now.
        delta = {key: torch.from_numpy(-leaf * np.asarray(p, leaf.dtype)) for key, leaf in arrays.items()}
        report = {"delta": delta, "stats": {"weight": torch.tensor(p, dtype=torch.float64)}}
        try:
            door.admit(client, report, 1)
            accepted.append(report)
        except Rejected:
            dropped = ", dropped"
    state, _ = close_round(method, start_server(strategy, start), accepted, 6)
    return in_words(state.params["w"].numpy()) + dropped


class Message:
    """A reply as far as a strategy looks at it."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def has_error(self) -> bool:
        return False


def flower(strategy: Any, bad: dict[str, Any], weight: float) -> str:
    """The model after one round of a strategy of Flower's."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    sent = [({"w": np.full(4, value, np.float32)}, WEIGHT) for value in HONEST] + [(bad, weight)]
    try:
        strategy.current_arrays = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({key: Array(leaf) for key, leaf in arrays.items()}),
                        "metrics": MetricRecord({"num-examples": p}),
                    }
                )
            )
            for arrays, p in sent
        ]
        found, _ = strategy.aggregate_train(1, replies)
    except Exception as error:
        return f"run aborts ({type(error).__name__})"
    (value,) = found.to_numpy_ndarrays()
    return in_words(value)


def in_words(value: np.ndarray) -> str:
    """The model's value, which is the same in all four places, and its dtype if it is not float32."""
    return f"{value.flat[0]:.7g}" + ("" if value.dtype == np.float32 else f" ({value.dtype})")


def columns() -> dict[str, Callable[[dict[str, Any], float], str]]:
    """Every strategy by name."""
    found = {
        name: lambda bad, weight, strategy=strategy, bound=bound: ours(strategy, bound, bad, weight)
        for name, (strategy, bound) in OURS.items()
    }
    try:
        from flwr.serverapp import strategy as flowers
    except ImportError:
        return found
    made = {
        "Flower FedAvg": flowers.FedAvg,
        "Flower FedMedian": flowers.FedMedian,
        "Flower Krum": lambda: flowers.Krum(num_malicious_nodes=1),
    }
    return found | {name: lambda bad, weight, make=make: flower(make(), bad, weight) for name, make in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options, strategies = parser.parse_args(), columns()
    rows = {
        fault: {name: close(bad, weight) for name, close in strategies.items()}
        for fault, (bad, weight) in FAULTS.items()
    }
    if options.json:
        print(json.dumps(rows))
        return
    print("| the sixth sends | " + " | ".join(strategies) + " |\n|---|" + "---|" * len(strategies))
    for fault, row in rows.items():
        print(f"| {fault} | " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
