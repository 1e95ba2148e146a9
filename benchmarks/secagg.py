"""Secure sums: what masks cost a client and a server, against Flower's helper functions and the memory's bandwidth.

    python benchmarks/secagg.py [--quick] [--json]

"mask" is one client's masked vector (its own mask and one for each neighbour), "add" the server's sum of one masked
vector as it comes, "unmask" the server's last step with one seed for each survivor and the pairwise masks of the
dropouts. GB/s count the bytes of updates, not of keystreams. Necessary for adding is that the update is read once and
the sum read and written, which is compared with a copy (read and written) of 256 MB in the same run; for masking that
every keystream is made once, which is compared with AES-256-CTR alone. The protocol's own time (keys, shares, tags) is
that of one client and of the server, without vectors. The peak is that of what the server allocates (tracemalloc),
besides the messages that it is given, in models.

All on one thread, in seconds of its CPU time. Flower's figures are those of its own helpers
(flwr.common.secure_aggregation), put together as its client and server do; they are measured where flwr is installed,
and left out where it is not. Its masks come from numpy's Mersenne Twister, seeded with 32 bits: they are not secret.
Cohorts of 20 are complete graphs; those of 100 have the degree for 20 corrupt and 10 lost clients. Goals: masking at
least 5 times as fast as Flower's, adding at least 10 GB/s.
"""

import argparse
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from measure import bandwidth, median

from fedfields.privacy.secure import Client, Server, Settings, Stage, crypto, degree_for
from fedfields.privacy.secure.crypto import Mask

try:
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
except ImportError:
    pseudo_rand_gen = None

MASK_GOAL, ADD_GOAL, PEAK_GOAL = 5.0, 10.0, 1.5
BITS = 32


def seconds(step: Callable[[], object], least: int) -> float:
    """Median seconds of the process for a call."""
    return median(step, least, clock=time.process_time)


def cipher_bandwidth(least: int) -> float:
    """GB/s of AES-256-CTR alone, block by block in the cache."""
    zeros, out = bytes(crypto.BLOCK), bytearray(crypto.BLOCK + 16)
    stream = crypto.keystream(bytes(32))
    return 1000 * crypto.BLOCK / seconds(lambda: [stream.update_into(zeros, out) for _ in range(1000)], least) / 1e9


def flower_masks(vector: list[np.ndarray], neighbours: int, drops: int = 0) -> list[np.ndarray]:
    """What Flower's client does to a quantised vector: one private mask, one for each neighbour, the modulus."""
    shapes = arithmetic.get_parameters_shape(vector)
    vector = arithmetic.parameters_addition(vector, pseudo_rand_gen(os.urandom(32), 1 << 32, shapes))
    for _ in range(neighbours):
        vector = arithmetic.parameters_addition(vector, pseudo_rand_gen(os.urandom(32), 1 << 32, shapes))
    return arithmetic.parameters_mod(vector, 1 << 32)


def masking(size: int, neighbours: int, least: int) -> dict:
    """One client's masks: ours, and Flower's (once, with fewer neighbours for its sake, scaled up)."""
    words = np.zeros(size, f"<u{BITS // 8}")
    masks = [Mask(os.urandom(32), 1) for _ in range(neighbours + 1)]
    ours = seconds(lambda: crypto.add_masks(words, masks), least)
    found = {"mask_s": ours, "keystream_gb_s": words.nbytes * len(masks) / ours / 1e9}
    if pseudo_rand_gen:
        few = min(neighbours, 20)
        theirs = seconds(lambda: flower_masks([np.zeros(size, np.int64)], few), 1) * (neighbours + 1) / (few + 1)
        found |= {"flwr_mask_s": theirs, "mask_over_flwr": theirs / ours}
    return found


def rounds(size: int, clients: int, dropped: int) -> dict:
    """A whole round in one process; vectors are zeros, and only one masked message is alive at a time."""
    degree, threshold = (20, 13) if clients == 20 else degree_for(100, 20, 10)[:2]
    agreed = Settings(b"benchmark, 16 by", 1, bytes(32), size, BITS, 3, clients, degree, threshold)
    server, members = Server(agreed), {number: Client(agreed, number) for number in range(clients)}
    vector = np.zeros(size, agreed.dtype)
    spent = {"client_protocol_s": 0.0, "server_protocol_s": 0.0, "client_masked_s": 0.0, "add_s": 0.0}

    def timed(key: str, step: Callable, *given):
        before = time.process_time()
        answer = step(*given)
        spent[key] += time.process_time() - before
        return answer

    letters = dict.fromkeys(members, b"")
    stages = {"advertise": Stage.ADVERTISE, "share": Stage.SHARE, "agree": Stage.CONSISTENCY, "unmask": Stage.UNMASK}
    for name in ("advertise", "share", "masked", "agree", "unmask"):
        for number, letter in letters.items():
            given = () if name == "advertise" else (letter, vector) if name == "masked" else (letter,)
            mask = name == "masked"
            if mask and number < dropped:
                continue
            message = timed("client_masked_s" if mask else "client_protocol_s", getattr(members[number], name), *given)
            reason = timed("add_s" if mask else "server_protocol_s", server.receive, number, message)
            assert reason is None, reason
            del message
        if stages.get(name) is not Stage.UNMASK:
            letters = timed("server_protocol_s", server.advance)
    before = time.process_time()
    total = server.finish()
    unmask = time.process_time() - before
    assert len(total.clients) == clients - dropped
    assert not total.vector.any()
    seconds_each = {key: spent[key] / clients for key in ("client_protocol_s", "client_masked_s", "add_s")}
    return seconds_each | {
        "server_protocol_s": spent["server_protocol_s"],
        "unmask_s": unmask,
        "degree": degree,
        "threshold": threshold,
        "add_gb_s": vector.nbytes * (clients - dropped) / spent["add_s"] / 1e9,
        "peak_models": server_peak(size),
    }


def server_peak(size: int) -> float:
    """Most memory that the server takes for itself in a round, the messages it is given aside, in models."""
    agreed = Settings(b"benchmark, 16 by", 1, bytes(32), size, BITS, 3, 4, 4, 3)
    server, members = Server(agreed), {number: Client(agreed, number) for number in range(4)}
    vector, taken = np.zeros(size, agreed.dtype), 0
    tracemalloc.start()

    def measured(step: Callable):
        """A step of the server; what it keeps and what it needed on top are both its own."""
        nonlocal taken, peak
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        answer = step()
        after, highest = tracemalloc.get_traced_memory()
        peak, taken = max(peak, taken + highest - before), taken + after - before
        return answer

    peak, letters = 0, dict.fromkeys(members, b"")
    for name in ("advertise", "share", "masked", "agree", "unmask"):
        for number, letter in letters.items():
            given = () if name == "advertise" else (letter, vector) if name == "masked" else (letter,)
            message = getattr(members[number], name)(*given)
            measured(lambda sender=number, sent=message: server.receive(sender, sent))
            del message
        letters = measured(server.advance if name != "unmask" else server.finish)
    tracemalloc.stop()
    return peak / vector.nbytes


def flower_server(size: int, seeds: int) -> float:
    """Seconds in which Flower's server takes that many masks away, from a few of them."""
    few, shapes = min(seeds, 5), [(size,)]
    vector = [np.zeros(size, np.int64)]

    def unmask():
        total = vector
        for _ in range(few):
            total = arithmetic.parameters_subtraction(total, pseudo_rand_gen(os.urandom(32), 1 << 32, shapes))
        return arithmetic.parameters_mod(total, 1 << 32)

    return seconds(unmask, 1) * seeds / few


def measure(quick: bool) -> dict:
    least = 3 if quick else 7
    copied, cipher = bandwidth(least) / 1e9, cipher_bandwidth(least)
    rows = []
    for size in (10**6,) if quick else (10**6, 10**7):
        for clients in (20,) if quick else (20, 100):
            for dropped in (0, clients // 10):
                row = {"size": size, "clients": clients, "dropped": dropped} | rounds(size, clients, dropped)
                row |= masking(size, min(row["degree"], clients - 1), least)
                row["keystream_of_cipher"] = row["keystream_gb_s"] / cipher
                row["add_of_copy"] = 1.5 * row["add_gb_s"] * 2 / copied
                if pseudo_rand_gen:
                    seeds = clients - dropped + dropped * min(row["degree"], clients - 1 - dropped)
                    row["flwr_unmask_s"] = flower_server(size, seeds)
                    row["unmask_over_flwr"] = row["flwr_unmask_s"] / row["unmask_s"]
                rows.append(row)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"copy_gb_s": copied, "cipher_gb_s": cipher, "flwr": pseudo_rand_gen is not None, "rows": rows}


def show(found: dict) -> None:
    print(f"copy {found['copy_gb_s']:.1f} GB/s, AES-256-CTR {found['cipher_gb_s']:.1f} GB/s, one thread\n")
    print(
        "   words clients lost   k   t | client: keys    mask  GB/s of cipher  x flwr "
        "| server: keys  add GB/s of copy  unmask  x flwr  peak"
    )
    for row in found["rows"]:
        print(
            f"{row['size']:8d} {row['clients']:7d} {row['dropped']:4d} {row['degree']:3d} {row['threshold']:3d} | "
            f"{1e3 * row['client_protocol_s']:9.1f} ms {1e3 * row['mask_s']:5.0f} ms {row['keystream_gb_s']:5.1f} "
            f"{row['keystream_of_cipher']:9.2f} {row.get('mask_over_flwr', float('nan')):7.1f} | "
            f"{1e3 * row['server_protocol_s']:9.0f} ms {row['add_gb_s']:8.1f} {row['add_of_copy']:7.2f} "
            f"{1e3 * row['unmask_s']:5.0f} ms {row.get('unmask_over_flwr', float('nan')):7.1f} "
            f"{row['peak_models']:5.2f}"
        )
    print(f"\nGoals: mask x flwr >= {MASK_GOAL:g}, add >= {ADD_GOAL:g} GB/s, peak < {PEAK_GOAL:g} models")
    if not found["flwr"]:
        print("flwr is not installed here: nothing to compare with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, one cohort")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = measure(given.quick)
    print(json.dumps(found, indent=2)) if given.json else show(found)


if __name__ == "__main__":
    main()
