"""Honest rounds: the sum is exact whoever drops out, or there is none."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedfields.privacy.secure import Abandoned, Client, FixedPoint, Stage
from tests.privacy.rounds import STEPS, Round, clients_of, settings_of, total_of, vector_of

CASES = int(os.environ.get("FEDFIELDS_CASES", "150"))
QUICK = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= 150,
    suppress_health_check=list(HealthCheck),
)


def round_of(clients=6, **kwargs):
    agreed = settings_of(
        clients, **{key: kwargs.pop(key) for key in ("bits", "length", "degree", "threshold") if key in kwargs}
    )
    numbers = [10 * i + 5 for i in range(clients)]
    return Round(agreed, {number: vector_of(agreed, number) for number in numbers}, **kwargs)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("length", [1, 7, 40001])
def test_the_sum_of_all(bits, length):
    played = round_of(bits=bits, length=length)
    total = played.play()
    assert total.clients == tuple(played.vectors)
    assert np.array_equal(total.vector, total_of(played.vectors, total.clients))
    assert not played.refused
    assert not played.server.dropped


@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("degree", [6, 14])
def test_dropouts_before_every_stage_are_recovered(stage, late, degree):
    """Before the masked vectors they are not in the sum, after them they are; a late message changes nothing."""
    played = round_of(15, degree=degree, threshold=degree // 2 + 1, lost={stage: {5, 95}}, late=late)
    total = played.play()
    counted = set(played.vectors) - ({5, 95} if stage <= Stage.MASKED else set())
    assert set(total.clients) == counted
    assert np.array_equal(total.vector, total_of(played.vectors, counted))


@pytest.mark.parametrize("stage", STEPS)
def test_too_many_dropouts_abandon_the_round_in_words(stage):
    played = round_of(6, lost={stage: {5, 15, 25, 35}})
    with pytest.raises(Abandoned, match=r"clients|neighbours of client") as caught:
        played.play()
    assert "\n" not in str(caught.value)
    assert played.server.stage is Stage.DONE
    assert not played.server._shares


def test_dropouts_in_all_stages_of_one_round():
    played = round_of(20, threshold=11, degree=20, lost={stage: {10 * stage + 5} for stage in STEPS}, late=True)
    total = played.play()
    assert set(total.clients) == set(played.vectors) - {15, 25, 35}
    assert np.array_equal(total.vector, total_of(played.vectors, total.clients))


@st.composite
def rounds(draw):
    """A cohort, its rules, and who drops out where."""
    clients = draw(st.integers(3, 40))
    degree = draw(st.sampled_from([2, 4, 6, 8, 10, 2 * (clients // 2), 2 * clients]))
    threshold = draw(st.integers(degree // 2 + 1, max(degree // 2 + 1, min(degree, clients - 1))))
    if threshold > clients - 1:
        degree = 2 * (clients // 2)
        threshold = degree // 2 + 1
    fate = st.sampled_from([None] * draw(st.sampled_from([10, 30, 90])) + list(STEPS))
    fates = draw(st.lists(fate, min_size=clients, max_size=clients))
    lost = {stage: {number for number, end in enumerate(fates) if end is stage} for stage in STEPS}
    weights = draw(st.lists(st.integers(1, 1000), min_size=clients, max_size=clients))
    sizes = draw(st.tuples(st.sampled_from([0, 1, 2, 3, 31, 1000]), st.sampled_from([1, 5, 64])))
    return clients, degree, threshold, lost, draw(st.booleans()), weights, sizes, draw(st.sampled_from([32, 64]))


def test_generated_rounds_are_exact_or_abandoned(capsys):
    """Over cohorts, thresholds, degrees, dropouts, sizes and weights; ``make nightly`` takes thousands of them."""
    outcomes = Counter()

    @QUICK
    @given(rounds(), st.integers(0, 2**32))
    def check(case, seed):
        clients, degree, threshold, lost, late, weights, sizes, bits = case
        source = torch.Generator().manual_seed(seed)
        reports = {
            number: {
                "delta": {str(i): torch.randn(size, generator=source).clamp(-4, 4) for i, size in enumerate(sizes)},
                "stats": {"weight": torch.tensor(float(weight), dtype=torch.float64)},
            }
            for number, weight in enumerate(weights)
        }
        fixed = FixedPoint.of(reports[0], {"delta": 4.0, "stats": 1000.0}, clients, bits)
        agreed = fixed.settings(b"a session's name", seed, 3, degree, threshold)
        vectors = {number: fixed.encode(report, source).vector for number, report in reports.items()}
        played = Round(agreed, vectors, lost, late, seed=seed)
        steady = clients - sum(map(len, lost.values()))
        try:
            total = played.play()
        except Abandoned:
            outcomes["abandoned"] += 1
            joined = clients - len(lost[Stage.ADVERTISE])
            assert steady < 3 or steady - 1 < threshold or degree < joined - 1, "enough were left of a complete graph"
            return
        finally:
            assert not played.refused, "nobody honest is ever refused by an honest server that goes on"
        outcomes["exact"] += 1
        outcomes["exact after dropouts"] += steady < clients
        early = set().union(*(lost[stage] for stage in STEPS if stage <= Stage.MASKED))
        assert set(total.clients) <= set(vectors) - early
        assert np.array_equal(total.vector, total_of(vectors, total.clients))
        assert fixed.decode(total.vector, len(total.clients))["stats"]["weight"] == sum(
            weights[i] for i in total.clients
        )

    check()
    assert min(outcomes["exact after dropouts"], outcomes["abandoned"]) > CASES // 20
    with capsys.disabled():
        print(f"\n{outcomes['exact'] + outcomes['abandoned']} generated rounds: {dict(outcomes)}")


def test_masked_uploads_are_noise_and_unlike_each_other():
    """All clients say zero; what the server gets passes a chi-square and a serial correlation test."""
    played = round_of(5, length=1 << 16)
    played.vectors = {number: np.zeros(1 << 16, np.uint32) for number in played.vectors}
    played.play()
    uploads = [
        np.frombuffer(message[48:], np.uint32) for (stage, _), message in played.sent.items() if stage is Stage.MASKED
    ]
    for upload in uploads:
        octets = np.frombuffer(upload.tobytes(), np.uint8)
        assert stats.chisquare(np.bincount(octets, minlength=256)).pvalue > 1e-4
        assert abs(np.corrcoef(upload[:-1], upload[1:])[0, 1]) * 256 < 4  # Standard normal for noise.
    between = np.corrcoef(np.stack(uploads))[np.triu_indices(5, 1)]
    assert abs(between).max() * 256 < 4.5


def test_the_same_vectors_are_masked_anew_in_every_round():
    uploads = set()
    for number in (1, 2):
        agreed = settings_of(4, round=number)
        played = Round(agreed, {i: vector_of(agreed, i) for i in range(4)})
        played.play()
        uploads |= {message[48:] for (stage, _), message in played.sent.items() if stage is Stage.MASKED}
    assert len(uploads) == 8


def test_weights_and_counts_travel_only_inside_the_sum():
    """Two rounds that differ in one client's weight: every message but that client's masked vector is the same."""
    agreed = settings_of(5)
    vectors = {i: vector_of(agreed, i) for i in range(5)}
    heavier = vectors | {2: vectors[2] + np.array([0, 0, 0, 0, 7], vectors[2].dtype)}
    plain, other = Round(agreed, vectors), Round(agreed, heavier)
    plain.play()
    other.play()
    assert {key for key in plain.sent if plain.sent[key] != other.sent[key]} == {(Stage.MASKED, 2)}


def test_in_real_use_secrets_come_from_the_operating_system():
    agreed = settings_of(3)
    messages = {Client(agreed, 1).advertise() for _ in range(20)}
    assert len(messages) == 20


def test_every_stage_may_meet_another_process():
    """States are sealed: they show no key, and are no use to another client, in another round, or under another key."""
    agreed, key = settings_of(4), bytes(range(32))
    played = Round(agreed, {i: vector_of(agreed, i) for i in range(4)})
    for stage in STEPS:
        played.step(stage)
        for number, client in list(played.clients.items()):
            saved = client.save(key)
            for secret in (client._channel, client._masks, client._seed, *client._held.values()):
                assert not secret or (secret not in saved and secret.hex().encode() not in saved)
            played.clients[number] = Client(agreed, number).load(saved, key)
            for other in (Client(agreed, number + 1), Client(settings_of(4, round=2), number)):
                with pytest.raises(Exception, match="the saved state is not this client's"):
                    other.load(saved, key)
            with pytest.raises(Exception, match="the key is another"):
                Client(agreed, number).load(saved, bytes(32))
            with pytest.raises(Exception, match="damaged"):
                Client(agreed, number).load(saved[:-1], key)
    assert np.array_equal(played.server.finish().vector, total_of(played.vectors, range(4)))


def test_secrets_are_forgotten_when_a_round_ends():
    played = round_of(5)
    played.play(Stage.UNMASK)
    assert all(client._held and not client._seed and not client._masks for client in played.clients.values())
    played.play()
    for client in played.clients.values():
        assert not (client._channel or client._masks or client._seed or client._held or client._peers)
    assert not (played.server._keys or played.server._shares or played.server._sum.size)


def test_who_is_waited_for():
    played = round_of(4)
    played.play(Stage.MASKED)
    assert played.server.waiting == {5, 15, 25, 35}
    played.server.receive(5, played.answer(Stage.MASKED, 5, played.inbox[5]))
    assert played.server.waiting == {15, 25, 35}


def test_a_hundred_clients_on_a_sparse_graph():
    agreed = settings_of(100, degree=16, threshold=9, length=3)
    played = Round(agreed, {i: vector_of(agreed, i) for i in range(100)}, lost={Stage.MASKED: {3, 50}})
    total = played.play()
    assert np.array_equal(total.vector, total_of(played.vectors, set(range(100)) - {3, 50}))
    shares = [message for (stage, _), message in played.sent.items() if stage is Stage.SHARE]
    assert {len(message) for message in shares} == {48 + 32 + 16 * 84}  # To 16 neighbours, whatever the cohort.


def test_secrets_from_the_same_source_give_the_same_messages():
    agreed = settings_of(3)
    first, second = (clients_of(agreed, range(3), seed=4) for _ in range(2))
    assert [c.advertise() for c in first.values()] == [c.advertise() for c in second.values()]
