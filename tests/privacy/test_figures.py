"""The figures about masks and refusals in docs/secure-aggregation.md, counted anew and printed."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from fedfields.privacy.secure import Stage, client, shamir
from tests.privacy.rounds import Round, settings_of
from tests.privacy.test_hostile import AGREED, forge, play, two_stories

EVERYBODY = range(AGREED.largest)


@pytest.fixture
def tell(capsys):
    def tell(text):
        with capsys.disabled():
            print(f"\n{text}", end="")

    return tell


def subsets(of, sizes):
    return [set(chosen) for size in sizes for chosen in itertools.combinations(of, size)]


def test_every_sum_of_too_few_is_refused_by_every_client(tell):
    """All sets of survivors smaller than the minimum that a server could name, for two minimums."""
    asked = refused = 0
    for minimum in (3, 5):
        agreed = dataclasses.replace(AGREED, minimum=minimum)
        for chosen in subsets(EVERYBODY, range(1, minimum)):
            wire = forge(Stage.CONSISTENCY, lambda rows, kept=chosen: [r for r in rows if r[0] in kept], EVERYBODY)
            played = play(wire, agreed)
            asked, refused = asked + len(EVERYBODY), refused + len(played.refused)
            assert played.total is None and not [number for stage, number in played.sent if stage is Stage.UNMASK]
    assert refused == asked == 7 * (28 + 98)
    tell(f"sums of too few: {refused} of {asked} requests refused")


def test_no_two_sums_that_differ_in_one_client_come_of_one_round(tell):
    """A server that tells some that a client dropped out and the others that it did not, whoever is told what."""
    both, stories = 0, 0
    for told in subsets(range(6), range(1, 7)):
        for hide in (False, True):
            _, unmasked = two_stories(told, hide)
            both, stories = both + (len({number in told for number in unmasked}) > 1), stories + 1
    assert (both, stories) == (0, 126)
    tell(f"two sums of one round that differ in one client: {both} of {stories} tries")


def test_no_set_of_shares_below_the_threshold_recovers_a_seed(tell):
    """Every subset of every client's shares: five of six give the seed, whose commitment is known, and four do not."""
    played = play(None, until=Stage.UNMASK)
    commitments = dict(played.server._commitments)
    played.step(Stage.UNMASK)
    server, tries, found, enough = played.server, 0, 0, 0
    for who in played.vectors:
        held = {server._places[peer]: share for peer, share in server._shares[who].items()}
        for chosen in subsets(held, range(1, len(held) + 1)):
            seed = shamir.combine({place: held[place] for place in chosen})
            hit = client.commitment(server._cohort, seed) == commitments[who]
            if len(chosen) < AGREED.threshold:
                tries, found = tries + 1, found + hit
            else:
                enough += hit
    assert (tries, found, enough) == (7 * 56, 0, 7 * 7)
    tell(f"seeds from fewer shares than the threshold: {found} of {tries} tries, and all of {enough} with enough")


def test_masked_updates_pass_chi_square_as_often_as_noise_does(tell):
    """Their p-values are uniform (Kolmogorov-Smirnov); the same updates without masks fail at once."""
    length, values = 1 << 14, []
    update = np.random.default_rng(0).normal(0, 1000, length).astype(np.int64).astype(np.uint32)
    octets = np.zeros(256)

    def pvalue(words):
        counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
        octets[:] += counts
        return stats.chisquare(counts).pvalue

    plain = pvalue(update)
    octets[:] = 0
    for number in range(1, 101):
        agreed = settings_of(5, length=length, round=number)
        played = Round(agreed, {i: update for i in range(5)}, seed=number)
        played.play()
        sent = [message[48:] for (stage, _), message in played.sent.items() if stage is Stage.MASKED]
        values += [pvalue(np.frombuffer(message, np.uint32)) for message in sent]
    share = octets / octets.sum()
    bits = float(-(share * np.log2(share)).sum())
    uniform = stats.kstest(values, "uniform").pvalue
    assert plain < 1e-300 and min(values) > 1e-4 and uniform > 1e-3 and bits > 7.9999
    tell(
        f"chi-square of {len(values)} masked updates: p from {min(values):.3f} to {max(values):.3f}, uniform with p "
        f"{uniform:.2f}; {bits:.6f} bits an octet; without masks p below 1e-300"
    )
