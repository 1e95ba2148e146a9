"""The tree of versions beside a plain dictionary for each version."""

import numpy as np
import pytest

from fedfields.mapping.index import LEVELS, MIDDLE, NAMES, TILES, Index, address, key_of_name


class Versions:
    """An index in memory, and beside it a dictionary of all leaves at each version."""

    def __init__(self):
        self.files, self.truth, self.read = {}, [{}], []
        self.index = Index(self._nodes)

    def _nodes(self, version):
        self.read.append(version)
        return self.files[version]

    def write(self, leaves):
        new = len(self.truth)
        pointers = {key: new if kept else 0 for key, kept in leaves.items()}
        self.files[new], replaced = self.index.changed(new - 1, {TILES: pointers, NAMES: {}}, new)
        self.truth.append({k: v for k, v in {**self.truth[-1], **pointers}.items() if v})
        return replaced


def random_versions(count=40):
    random, versions = np.random.default_rng(0), Versions()
    for _ in range(count):
        near = random.integers(-20, 20, (random.integers(1, 15), 3)) + MIDDLE
        far = random.integers(0, 2 * MIDDLE, (1, 3))
        keys = [tuple(key) for key in np.concatenate([near, far]).tolist()]
        versions.write({key: bool(random.random() < 0.7) for key in keys})
    return versions


def test_every_version_is_a_dictionary():
    versions = random_versions()
    everything = (0, 0, 0), (2 * MIDDLE - 1,) * 3
    for number, truth in enumerate(versions.truth):
        assert sorted(versions.index.within(number, TILES, *everything)) == sorted(truth.items())
        for key in versions.truth[-1]:
            assert versions.index.find(number, TILES, key) == truth.get(key, 0)


def test_leaves_between_two_corners_on_both_sides_of_zero():
    versions = random_versions()
    low, high = (MIDDLE - 9, MIDDLE - 20, MIDDLE), (MIDDLE + 3, MIDDLE + 2, MIDDLE + 16)
    expected = {k for k in versions.truth[-1] if all(a <= b <= c for a, b, c in zip(low, k, high, strict=True))}
    assert {key for key, _ in versions.index.within(40, TILES, low, high)} == expected
    assert expected


def test_what_a_version_replaces_is_what_nobody_needs_later():
    versions, key = Versions(), (MIDDLE, MIDDLE, MIDDLE)
    assert versions.write({key: True}) == []
    assert versions.write({(MIDDLE + 5, MIDDLE, MIDDLE): True}) == [1]
    assert versions.write({(MIDDLE + 1_000_000, MIDDLE, MIDDLE): True}) == [2]
    at = versions.index.find(3, TILES, key, level=1)
    assert at == 2 and address(TILES, 1, key) in versions.files[at]


def test_a_change_writes_its_own_path_alone_however_large_the_map_is():
    versions = Versions()
    versions.write({(x << 8, y << 8, MIDDLE): True for x in range(40) for y in range(40)})
    versions.read.clear()
    versions.write({(MIDDLE, MIDDLE, MIDDLE): True})
    assert len(versions.files[2]) == LEVELS + 1  # And the root of the names.
    assert set(versions.read) == {1} and len(versions.read) <= LEVELS + 1


def test_names_are_keys():
    key = key_of_name("drone 7")
    assert key == key_of_name("drone 7") != key_of_name("drone 8")
    assert all(0 <= part < 2 * MIDDLE for part in key)


@pytest.mark.parametrize("version", [0, 1])
def test_nothing_is_found_where_nothing_is(version):
    versions = Versions()
    versions.write({})
    assert versions.index.find(version, TILES, (1, 2, 3)) == 0
