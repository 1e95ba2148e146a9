"""Where everything of a map is, at every version: a tree whose nodes are never changed.

A leaf is a key of three integers in [0, 2^28) and a pointer: the version that wrote it. Every node stands for 16 x 16 x
16 nodes of the level below and knows, for each that is not empty, the version that wrote *that*. A new version writes
the nodes on the way to what it changes, in one file, and shares all others with the versions before: what it costs
depends on what it changes and on how full nodes are, not on the size of the map, and every version can be read as if it
were alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

Key = tuple[int, int, int]
Node = dict[str, int]
"""Number of a child (in 0 .. 4095) to the version that wrote it."""

Nodes = dict[str, Node]
"""The nodes that one version wrote, by `address`."""

BITS, LEVELS = 4, 7
MIDDLE = 2 ** (BITS * LEVELS - 1)
"""Added to coordinates, which may be negative, to make keys of them."""

TILES, NAMES = "tiles", "names"
"""The two trees of a map: its tiles by place, and which version merged a contribution of a name."""


def key_of_name(name: str) -> Key:
    """84 bits of a name's SHA-256."""
    digits = hashlib.sha256(name.encode()).hexdigest()
    return int(digits[:7], 16), int(digits[7:14], 16), int(digits[14:21], 16)


def address(tree: str, level: int, key: Key) -> str:
    """What the node at a level (1 is above the leaves, 7 the root) above a leaf is called in a version's file."""
    x, y, z = (part >> BITS * level for part in key)
    return f"{tree} {level} {x} {y} {z}"


class Index:
    """The tree, read through a function that gives the nodes that a version wrote."""

    def __init__(self, nodes: Callable[[int], Nodes]) -> None:
        self._nodes = nodes

    def find(self, version: int, tree: str, key: Key, level: int = 0) -> int:
        """The version that wrote the leaf (or the node at a level above it) that a version has; 0 if it has none."""
        for above in range(LEVELS, level, -1):
            if not version:
                break
            node = self._nodes(version).get(address(tree, above, key), {})
            version = node.get(_child(above, key), 0)
        return version

    def lives(self, version: int, writer: int) -> bool:
        """Whether a version still has any of the nodes that the version ``writer`` wrote."""
        for name in self._nodes(writer):
            tree, level, *place = name.split()
            x, y, z = (int(part) << BITS * int(level) for part in place)
            if self.find(version, tree, (x, y, z), int(level)) == writer:
                return True
        return False

    def within(self, version: int, tree: str, low: Key, high: Key) -> Iterator[tuple[Key, int]]:
        """The leaves of a version between two corners, both included, and their pointers; the order is the tree's."""
        return self._within(version, tree, LEVELS, (0, 0, 0), low, high)

    def _within(self, at: int, tree: str, level: int, first: Key, low: Key, high: Key) -> Iterator[tuple[Key, int]]:
        """The same below one node, whose first leaf has the key ``first``."""
        node, size = self._nodes(at).get(address(tree, level, first), {}) if at else {}, BITS * (level - 1)
        for number, pointer in sorted((int(number), pointer) for number, pointer in node.items()):
            steps = number >> 2 * BITS, number >> BITS & 15, number & 15
            x, y, z = (a + (step << size) for a, step in zip(first, steps, strict=True))
            ends = zip((x, y, z), low, high, strict=True)
            if all(a <= most and a + (1 << size) > least for a, least, most in ends):
                if level == 1:
                    yield (x, y, z), pointer
                else:
                    yield from self._within(pointer, tree, level - 1, (x, y, z), low, high)

    def changed(self, version: int, leaves: Mapping[str, Mapping[Key, int]], new: int) -> tuple[Nodes, list[int]]:
        """The nodes of the version ``new``: those of ``version`` with other pointers to some leaves (0 for none).

        The second is which versions wrote the nodes that they replace.
        """
        nodes: Nodes = {}
        replaced: set[int] = {version} if version else set()
        for tree, pointers in leaves.items():
            nodes.setdefault(address(tree, LEVELS, (0, 0, 0)), {})
            self._rewrite(version, tree, LEVELS, (0, 0, 0), pointers, new, (nodes, replaced))
        return nodes, sorted(replaced)

    def _rewrite(
        self, at: int, tree: str, level: int, key: Key, pointers: Mapping[Key, int], new: int,
        out: tuple[Nodes, set[int]],
    ) -> bool:  # fmt: skip
        """The same below the node above ``key``; whether anything is left of it."""
        name = address(tree, level, key)
        node = dict(self._nodes(at).get(name, {})) if at else {}
        if at:
            out[1].add(at)
        below: dict[str, dict[Key, int]] = defaultdict(dict)
        for leaf, pointer in pointers.items():
            below[_child(level, leaf)][leaf] = pointer
        for child, part in below.items():
            if level == 1:
                pointer = next(iter(part.values()))
            else:
                pointer = new * self._rewrite(node.get(child, 0), tree, level - 1, next(iter(part)), part, new, out)
            node.pop(child, None)
            if pointer:
                node[child] = pointer
        if node or level == LEVELS:
            out[0][name] = node
        return bool(node)


def _child(level: int, key: Key) -> str:
    """Which child of its node at a level a leaf is below."""
    x, y, z = (part >> BITS * (level - 1) & 15 for part in key)
    return str((x << 2 * BITS) + (y << BITS) + z)
