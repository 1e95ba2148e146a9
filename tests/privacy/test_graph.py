"""The neighbour graph, and its failure probabilities against counting and against networkx."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from fedfields.errors import UserError
from fedfields.privacy.secure.graph import _split, _tail, degree_for, neighbours


def edges_of(graph):
    return {(a, b) for a, near in graph.items() for b in near}


@pytest.mark.parametrize("clients", [3, 4, 5, 8, 9, 20, 41])
@pytest.mark.parametrize("degree", [2, 4, 6, 10, 40])
def test_regular_symmetric_and_without_loops(clients, degree):
    """For even and odd cohorts alike; a client and the server have the same list."""
    numbers = [7 * i + 3 for i in range(clients)]
    graph = neighbours(b"seed", numbers, degree)
    assert {len(near) for near in graph.values()} == {min(degree, clients - 1)}
    assert edges_of(graph) == {(b, a) for a, b in edges_of(graph)}
    assert all(a != b for a, b in edges_of(graph))
    assert graph == neighbours(b"seed", numbers[::-1], degree)


@pytest.mark.parametrize("degree", [-2, 0, 1, 3, 99])
def test_odd_degrees_are_refused_and_never_rounded(degree):
    with pytest.raises(ValueError, match="even"):
        neighbours(b"seed", range(200), degree)


@pytest.mark.parametrize(("clients", "degree"), [(9, 4), (12, 6), (15, 8)])
def test_it_is_harary_s_graph_relabelled(clients, degree):
    """No graph of this degree is connected better: it takes k removals to disconnect it."""
    networkx = pytest.importorskip("networkx")
    ours = networkx.Graph(list(edges_of(neighbours(b"seed", range(clients), degree))))
    assert networkx.is_isomorphic(ours, networkx.hkn_harary_graph(degree, clients))
    assert networkx.node_connectivity(ours) == degree


def test_another_seed_gives_another_graph_and_all_neighbours_are_as_likely():
    counts = np.zeros(20)
    for i in range(3000):
        counts[list(neighbours(i.to_bytes(4, "big"), range(20), 4)[0])] += 1
    expected = 3000 * 4 / 19
    assert counts[0] == 0
    assert abs(counts[1:] - expected).max() < 4.5 * math.sqrt(expected)


def test_tails_are_hypergeometric():
    stats = pytest.importorskip("scipy.stats")
    tail = _tail(population=50, marked=12, draws=10)
    assert tail[0] == 1
    assert tail[11] == 0
    np.testing.assert_allclose([float(p) for p in tail], [stats.hypergeom.sf(x - 1, 50, 12, 10) for x in range(12)])


@pytest.mark.parametrize(("clients", "bad", "degree"), [(7, 3, 2), (8, 4, 2), (8, 4, 4), (9, 5, 4)])
def test_the_bound_on_partial_sums_holds_for_every_choice_of_the_bad(clients, bad, degree):
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph(list(edges_of(neighbours(b"seed", range(clients), degree))))
    cuts = [
        not networkx.is_connected(graph.subgraph(set(graph) - set(lost)))
        for lost in itertools.combinations(range(clients), bad)
    ]
    assert 0 < Fraction(sum(cuts), len(cuts)) <= _split(clients, bad, degree)


def failures(clients, corrupt, dropped, degree, threshold, tries):
    """How often a random graph fails, by looking."""
    networkx, failed = pytest.importorskip("networkx"), 0
    lost, bad = set(range(dropped)), set(range(dropped, dropped + corrupt))
    for i in range(tries):
        graph = neighbours(i.to_bytes(4, "big"), range(clients), degree)
        honest = set(graph) - lost - bad
        failed += (
            any(len(bad & set(graph[who])) >= threshold for who in set(graph) - bad)
            or any(len(set(graph[who]) - lost) < threshold for who in graph)
            or not networkx.is_connected(networkx.Graph(list(edges_of(graph))).subgraph(honest))
        )
    return failed / tries


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_graphs_fail_no_more_often_than_promised(sigma):
    found = degree_for(40, 4, 6, sigma)
    assert found.failure < 2**-sigma
    assert failures(40, 4, 6, found.degree, found.threshold, 400) <= found.failure + 0.02


def test_larger_cohorts_need_few_more_neighbours():
    found = {clients: degree_for(clients, clients // 20, clients // 20) for clients in (100, 1000, 10000)}
    assert all(degree // 2 < threshold <= degree for degree, threshold, _ in found.values())
    assert all(failure < 2**-40 for *_, failure in found.values())
    assert found[10000].degree < 1.6 * found[1000].degree < 100
    assert degree_for(1000, 100, 50).degree > found[1000].degree
    assert degree_for(1000, 50, 50, sigma=60).degree > found[1000].degree


def test_small_cohorts_by_hand():
    """10 clients: of 6 neighbours, 3 can be corrupt and 4 survive, and 5 bad ones cannot cut a graph of degree 6."""
    assert degree_for(10, 3, 2) == (6, 4, 0.0)
    assert degree_for(7, 3, 2) == (6, 4, 0.0)  # A complete graph.


def test_a_hopeless_cohort_is_refused():
    with pytest.raises(UserError, match="no graph of 10 clients withstands 5 corrupt and 5 dropped"):
        degree_for(10, 5, 5)


@pytest.mark.parametrize("case", [(40, 4, 6, 1.0), (100, 5, 5, 1.0), (1000, 30, 30, 5.0)])
def test_the_failure_is_the_sum_of_three(case):
    """Two hypergeometric tails by scipy, and the runs on the circle."""
    stats = pytest.importorskip("scipy.stats")
    clients, corrupt, dropped, sigma = case
    degree, threshold, failure = degree_for(clients, corrupt, dropped, sigma)
    surrounded = stats.hypergeom.sf(threshold - 1, clients - 1, corrupt, degree)
    lost = stats.hypergeom.sf(degree - threshold, clients - 1, dropped, degree)
    runs = math.comb(clients, 2) * math.prod((corrupt + dropped - i) / (clients - i) for i in range(degree))
    assert runs > 1e-8 * failure
    assert failure == pytest.approx(clients * (surrounded + lost) + runs, rel=1e-9)
