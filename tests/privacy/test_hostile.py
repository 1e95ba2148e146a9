"""What a server in other hands can ask of a client, and what clients in other hands can send to a server."""

import dataclasses
import random
import re

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfields.privacy.secure import Abandoned, Client, Refused, Server, Stage, client, crypto, shamir
from fedfields.privacy.secure.protocol import (
    ENTRY,
    HEADER,
    KEYS,
    MASK_KEY,
    NUMBER,
    REVEALED,
    SEALED,
    SEED,
    SERVER,
    TAG,
    Kind,
    join,
    pack,
)
from tests.privacy.rounds import STEPS, Round, settings_of, total_of, vector_of

AGREED = settings_of(7)  # Complete; six neighbours, a threshold of five.
VICTIM = 3
LETTERS = {Stage.SHARE: ENTRY, Stage.MASKED: SEALED, Stage.CONSISTENCY: NUMBER, Stage.UNMASK: TAG}


def forge(stage, change, only=(VICTIM,)):
    """A wire on which the server's records for some clients, in one stage, are changed: rows in, rows out."""

    def wire(begins, client, message):
        if begins is not stage or client not in only:
            return message
        rows = change(list(LETTERS[stage].iter_unpack(message[HEADER.size :])))
        return message[: HEADER.size] + join(LETTERS[stage], rows)

    return wire


def play(wire, agreed=AGREED, until=Stage.DONE, **kwargs):
    """A round with that wire, up to a stage or as far as it goes."""
    played = Round(agreed, {i: vector_of(agreed, i) for i in range(agreed.largest)}, wire=wire, **kwargs)
    try:
        played.total = played.play(until)
    except Abandoned as end:
        played.total, played.abandoned = None, end
    return played


def forgotten(client):
    return client.stage is Stage.DONE and not (client._channel or client._masks or client._seed or client._held)


def keys(seed):
    return [crypto.public_key(random.Random(f"{seed}{i}").randbytes(32)) for i in range(2)]


def replaced(number, position, key):
    """Somebody's key of a roster replaced: position 1 is the channel's, 2 the masks'."""

    def change(rows):
        return [(*row[:position], key(rows), *row[position + 1 :]) if row[0] == number else row for row in rows]

    return change


OWN = "does not have this client with its own keys"
SAME = "two public keys in the cohort are the same, or one is not written in the usual way"
ROSTERS = {
    "two clients": (lambda rows: rows[2:4], "a cohort of 2 clients; 3 to 7 are allowed"),
    "too many": (lambda rows: [*rows, (50, *keys(1), bytes(64))], "too long"),
    "too few for the threshold": (lambda rows: rows[:5], "only 4 neighbours are in the graph; the threshold is 5"),
    "without the victim": (lambda rows: [row for row in rows if row[0] != VICTIM], OWN),
    "another key for the victim": (replaced(VICTIM, 2, lambda rows: keys(2)[0]), OWN),
    "the victim's keys swapped": (lambda rows: [(r[0], r[2], r[1], r[3]) if r[0] == VICTIM else r for r in rows], OWN),
    "the victim's key reflected": (replaced(5, 2, lambda rows: rows[VICTIM][2]), SAME),
    "the victim's key reflected, written otherwise": (
        replaced(5, 2, lambda rows: rows[VICTIM][2][:31] + bytes([rows[VICTIM][2][31] | 128])),
        SAME,
    ),
    "one key twice": (replaced(5, 1, lambda rows: rows[6][2]), SAME),
    "a key of low order": (replaced(5, 1, lambda rows: bytes(32)), SAME),
    "twice the same client": (lambda rows: [rows[0], rows[0], *rows[2:]], "malformed"),
    "in another order": (lambda rows: rows[::-1], "malformed"),
}


@pytest.mark.parametrize("name", ROSTERS)
def test_cohorts_that_a_client_refuses(name):
    change, text = ROSTERS[name]
    played = play(forge(Stage.SHARE, change))
    assert text in str(played.refused[VICTIM])
    assert "\n" not in str(played.refused[VICTIM])
    assert forgotten(played.clients[VICTIM])
    assert (Stage.SHARE, VICTIM) not in played.sent


def test_a_cohort_that_others_see_otherwise_is_refused_before_anything_is_masked():
    """Client 5 is shown to the victim with a key of the server's: what is sealed for another cohort does not open."""
    played = play(forge(Stage.SHARE, replaced(5, 1, lambda rows: keys(3)[0])))
    assert "not sealed for this client and cohort" in str(played.refused[VICTIM])
    assert played.refused[0].peer == VICTIM
    assert not [number for stage, number in played.sent if stage is Stage.MASKED]


@pytest.mark.parametrize("position", [1, 2])
def test_keys_of_a_server_in_the_middle_are_refused_where_clients_sign(position):
    long_lived = {i: Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(7)}

    def verify(number, data, signature):
        try:
            long_lived[number].public_key().verify(signature, data)
            return True
        except InvalidSignature:
            return False

    everybody = range(7)
    forged = forge(Stage.SHARE, replaced(5, position, lambda rows: keys(4)[0]), only=set(everybody) - {5})
    for wire, refused in ((None, set()), (forged, set(everybody))):
        played = Round(AGREED, {i: vector_of(AGREED, i) for i in everybody}, wire=wire, verify=verify)
        for number, member in played.clients.items():
            member._sign = long_lived[number].sign
        played.step(Stage.ADVERTISE)
        played.step(Stage.SHARE) if not refused else [
            played.answer(Stage.SHARE, *item) for item in played.inbox.items()
        ]
        assert set(played.refused) == refused - {5}
        assert all("the keys of client 5 are not signed by it" in str(text) for text in played.refused.values())


def test_shares_of_somebody_who_is_no_neighbour_are_refused():
    """So a client notices any graph but the one that the cohort's hash gives."""
    agreed = settings_of(12, degree=4, threshold=3)
    played = play(None, agreed, until=Stage.MASKED)
    stranger = min(set(range(12)) - set(played.server._graph[VICTIM]) - {VICTIM})
    letter = played.inbox[VICTIM]
    rows = [*SEALED.iter_unpack(letter[HEADER.size :]), (stranger, bytes(80))]
    with pytest.raises(Refused, match=f"shares of client {stranger}, who is no neighbour") as caught:
        played.clients[VICTIM].masked(letter[: HEADER.size] + join(SEALED, sorted(rows)), played.vectors[VICTIM])
    assert caught.value.peer == stranger
    assert forgotten(played.clients[VICTIM])


INBOXES = {
    "isolated": (lambda rows: rows[:4], "only 4 neighbours have shared their keys; the threshold is 5"),
    "changed": (lambda rows: [(rows[0][0], b"!" + rows[0][1][1:]), *rows[1:]], "not sealed for this client"),
    "from another": (lambda rows: [(rows[0][0], rows[1][1]), (rows[1][0], rows[0][1]), *rows[2:]], "not sealed for"),
    "from itself": (lambda rows: sorted([*rows[1:], (VICTIM, rows[0][1])]), "who is no neighbour"),
    "cut": (lambda rows: [*rows[:5], (9, bytes(80))], "who is no neighbour"),
}


@pytest.mark.parametrize("name", INBOXES)
def test_shares_that_a_client_refuses(name):
    change, text = INBOXES[name]
    played = play(forge(Stage.MASKED, change))
    assert text in str(played.refused[VICTIM])
    assert forgotten(played.clients[VICTIM])
    assert (Stage.MASKED, VICTIM) not in played.sent
    if played.total:  # For the others the victim has dropped out.
        assert np.array_equal(played.total.vector, total_of(played.vectors, set(range(7)) - {VICTIM}))


def test_its_own_shares_reflected_do_not_open():
    """Keys of the channel differ by direction, and say who speaks."""
    played = play(None, until=Stage.MASKED)
    own = {peer: sealed for peer, sealed in SEALED.iter_unpack(played.sent[Stage.SHARE, VICTIM][HEADER.size + 32 :])}
    letter = played.inbox[VICTIM][: HEADER.size] + join(SEALED, own.items())
    with pytest.raises(Refused, match="not sealed for this client"):
        played.clients[VICTIM].masked(letter, played.vectors[VICTIM])


SURVIVORS = {
    "fewer than the minimum": (lambda rows: rows[2:4], "only 2 clients are in the sum; 3 are the fewest allowed"),
    "not the victim": (
        lambda rows: [row for row in rows if row[0] != VICTIM],
        "this client's vector is not in the sum",
    ),
    "strangers": (lambda rows: [*rows[:-1], (77,)], "clients are in the sum that are not in the cohort"),
    "too few neighbours": (lambda rows: rows[:5], "only 4 neighbours are in the sum; the threshold is 5"),
    "one twice": (lambda rows: [*rows[:-1], rows[-2]], "malformed"),
}


@pytest.mark.parametrize("name", SURVIVORS)
def test_survivors_that_a_client_refuses(name):
    change, text = SURVIVORS[name]
    played = play(forge(Stage.CONSISTENCY, change))
    assert text in str(played.refused[VICTIM])
    assert forgotten(played.clients[VICTIM])
    assert not [number for stage, number in played.sent if stage is Stage.UNMASK and number == VICTIM]


def test_nobody_is_in_a_sum_who_has_not_shared_keys():
    """Whose mask key nobody holds, whose seed cannot be revealed: there is nothing honest to ask for."""
    gone = forge(Stage.CONSISTENCY, lambda rows: sorted([*rows, (6,)]))
    played = play(gone, lost={Stage.SHARE: {6}})
    assert "client 6 is in the sum without having shared its keys" in str(played.refused[VICTIM])


def two_stories(told, hide):
    """A server that tells some that client 6 dropped out and the others that it did not, and asks all for shares.

    It passes on all tags, or hides from everybody those of the other story. Returns the round and who unmasked.
    """
    played = play(None, until=Stage.CONSISTENCY)
    shorter = forge(Stage.CONSISTENCY, lambda rows: rows[:-1], only=told)
    tags = {}
    for number, letter in played.inbox.items():
        message = played.answer(Stage.CONSISTENCY, number, shorter(Stage.CONSISTENCY, number, letter))
        tags |= {(number, peer): tag for peer, tag in TAG.iter_unpack(message[HEADER.size :])}
    unmasked = set()
    for number in played.clients:
        rows = [
            (source, tag)
            for (source, peer), tag in sorted(tags.items())
            if peer == number and (not hide or (source in told) == (number in told))
        ]
        letter = pack(Kind.AGREEMENT, AGREED.context, SERVER, join(TAG, rows))
        if played.answer(Stage.UNMASK, number, letter):
            unmasked.add(number)
    return played, unmasked


@pytest.mark.parametrize("told", [{0, 1, 2}, {0}, {0, 1, 2, 3, 4}])
@pytest.mark.parametrize("hide", [False, True])
def test_nobody_s_shares_are_revealed_for_two_stories(told, hide):
    """Who sees another story refuses; who is kept from seeing it finds too few who tell the same, in one of the two."""
    played, unmasked = two_stories(told, hide)
    assert len({number in told for number in unmasked}) <= 1
    assert unmasked <= {6} or hide  # Client 6 itself is told nothing by those who think that it is gone.
    texts = r"was told of other survivors|neighbours agree on who survived; the threshold is 5"
    assert set(played.refused) == set(range(7)) - unmasked
    assert all(re.search(texts, str(refusal)) for refusal in played.refused.values())


AGREEMENTS = {
    "a forged tag": (lambda rows: [(rows[0][0], bytes(32)), *rows[1:]], "was told of other survivors"),
    "its own tags": (lambda rows: [(VICTIM, rows[0][1])], "has no say in who survived"),
    "none": (lambda rows: [], "only 0 neighbours agree"),
}


@pytest.mark.parametrize("name", AGREEMENTS)
def test_agreements_that_a_client_refuses(name):
    change, text = AGREEMENTS[name]
    played = play(forge(Stage.UNMASK, change))
    assert text in str(played.refused[VICTIM])
    assert forgotten(played.clients[VICTIM])


@pytest.mark.parametrize("lost", [set(), {6}])
def test_never_both_shares_of_anybody(lost):
    """Each client reveals one share of each neighbour: of the seed if it survived, else of the mask key; no more."""
    played = play(None, lost={Stage.MASKED: lost})
    for (stage, number), message in played.sent.items():
        if stage is not Stage.UNMASK:
            continue
        revealed = [(peer, kind) for peer, kind, _ in REVEALED.iter_unpack(message[HEADER.size :])]
        assert revealed == [(p, MASK_KEY if p in lost else SEED) for p in range(7) if p != number]
        with pytest.raises(Refused, match="out of turn"):
            played.clients[number].unmask(played.inbox[number])
        assert forgotten(played.clients[number])


@pytest.mark.parametrize("stage", STEPS[1:])
def test_messages_of_another_round_session_or_model_are_refused(stage):
    others = [
        settings_of(7, round=2),
        settings_of(7, length=6),
        dataclasses.replace(AGREED, session=b"another session."),
        dataclasses.replace(AGREED, layout=bytes([1]) * 32),
        dataclasses.replace(AGREED, minimum=4),
    ]
    for other in others:
        replayed = play(None, other, until=stage).inbox[VICTIM]
        played = play(None, until=stage)
        played.inbox[VICTIM] = replayed
        assert played.answer(stage, VICTIM, replayed) is None
        assert "of another session, round or model" in str(played.refused[VICTIM])
        assert forgotten(played.clients[VICTIM])


@pytest.mark.parametrize("stage", STEPS[1:])
@pytest.mark.parametrize("instead", STEPS)
def test_stages_out_of_turn_are_refused(stage, instead):
    if instead is stage:
        return
    played = play(None, until=stage)
    assert played.answer(instead, VICTIM, played.inbox[VICTIM]) is None
    assert "out of turn" in str(played.refused[VICTIM])
    assert forgotten(played.clients[VICTIM])


def test_a_replayed_round_is_refused():
    with pytest.raises(Refused, match="round 1 is a replay: this client has been in round 1"):
        Client(AGREED, VICTIM, after=1)
    Client(AGREED, VICTIM, after=0)


def test_a_vector_of_another_model_is_refused():
    for vector in (np.zeros(6, "<u4"), np.zeros(5, "<u8"), np.zeros((5, 1), "<u4"), np.zeros(5)):
        played = play(None, until=Stage.MASKED)
        with pytest.raises(Refused, match="is not the session's"):
            played.clients[VICTIM].masked(played.inbox[VICTIM], vector)


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_shares_than_the_threshold_recover_nothing(count):
    """What a server could make of a seed from too few shares, were it to try, is not the seed."""
    played = play(None, until=Stage.UNMASK)
    seeds = {number: played.server._commitments[number] for number in played.vectors}
    played.step(Stage.UNMASK)
    server = played.server
    for who, commitment in seeds.items():
        held = {server._places[peer]: share for peer, share in server._shares[who].items()}
        enough, few = (dict(list(held.items())[:number]) for number in (5, count))
        assert client.commitment(server._cohort, shamir.combine(enough)) == commitment
        assert client.commitment(server._cohort, shamir.combine(few)) != commitment


# Clients in other hands.


def message_of(played, stage, number):
    return played.answer(stage, number, played.inbox[number])


@pytest.mark.parametrize("stage", STEPS)
def test_what_a_server_drops_and_counts(stage):
    """Strangers, impostors, duplicates, the late and the malformed change nothing; the sum is that of the honest."""
    played = play(None, until=stage)
    server, own = played.server, bytes(message_of(played, stage, VICTIM))
    reasons = [
        server.receive(VICTIM, b""),
        server.receive(VICTIM, own[:40]),
        server.receive(VICTIM, own + b"!"),
        server.receive(VICTIM, bytes(4) + own[4:]),
        server.receive(VICTIM, own[:-1]),
        server.receive(VICTIM, own + bytes(10**6)),
        server.receive(5, own),
        server.receive(99, pack(Kind(stage), AGREED.context, 99)),
        server.receive(VICTIM, pack(Kind(stage % 5 + 1), AGREED.context, VICTIM, own[48:])),
        server.receive(VICTIM, pack(Kind(stage), settings_of(7, round=2).context, VICTIM, own[48:])),
    ]
    assert None not in reasons
    assert reasons[5:7] == ["too long", "from another sender than it says"]
    assert reasons[8:] == ["out of order", "of another session, round or model"]
    assert server.receive(VICTIM, own) is None
    assert server.receive(VICTIM, own) == "a duplicate"
    assert sum(server.dropped.values()) == len(reasons) + 1
    for number in set(range(7)) - {VICTIM}:
        assert server.receive(number, message_of(played, stage, number)) is None
    if stage is not Stage.UNMASK:
        played.inbox = server.advance()
        for later in STEPS[stage:]:
            played.step(later)
    assert np.array_equal(server.finish().vector, total_of(played.vectors, range(7)))
    assert server.receive(VICTIM, own) == "late"


def test_keys_that_a_server_does_not_take():
    server = Server(AGREED)

    def offer(number, channel, masks):
        return server.receive(
            number, pack(Kind.ADVERTISE, AGREED.context, number, KEYS.pack(channel, masks, bytes(64)))
        )

    a, b = keys(0)
    assert offer(0, a, a) == "made of keys that are not fresh"
    assert offer(0, bytes(32), b) == "made of keys of low order or written in an unusual way"
    assert offer(0, a, b) is None
    assert offer(1, keys(1)[0], a) == "made of keys that are not fresh"
    assert offer(SERVER, *keys(1)) == "malformed"
    for number in range(1, 7):
        assert offer(number, *keys(number)) is None
    assert offer(7, *keys(7)) == "too late: the cohort is full"


def test_shares_for_strangers_or_of_the_wrong_kind_are_malformed():
    played = play(None, until=Stage.SHARE)
    body = message_of(played, Stage.SHARE, VICTIM)[48:]
    rows = list(SEALED.iter_unpack(body[32:]))
    for wrong in (rows[:-1], [*rows, (77, bytes(80))], [*rows, rows[-1]], rows[::-1], []):
        message = pack(Kind.SHARE, AGREED.context, VICTIM, body[:32] + join(SEALED, wrong))
        assert played.server.receive(VICTIM, message) == "malformed"
    played = play(None, until=Stage.UNMASK)
    rows = list(REVEALED.iter_unpack(message_of(played, Stage.UNMASK, VICTIM)[48:]))
    for wrong in (
        [(who, MASK_KEY, share) for who, _, share in rows],
        rows[1:],
        [(who, 3, share) for who, _, share in rows],
    ):
        message = pack(Kind.UNMASK, AGREED.context, VICTIM, join(REVEALED, wrong))
        assert played.server.receive(VICTIM, message) == "malformed"


@pytest.mark.parametrize("lost", [set(), {6}])
def test_a_wrong_share_is_found_out_and_never_a_wrong_sum(lost):
    """Commitments to seeds, and public keys, tell whether what the shares give is what was shared."""
    played = Round(AGREED, {i: vector_of(AGREED, i) for i in range(7)}, lost={Stage.MASKED: lost})
    played.play(Stage.UNMASK)
    client = played.clients[0]
    client._held = {peer: bytes(64) if peer == (6 if lost else 1) else share for peer, share in client._held.items()}
    played.step(Stage.UNMASK)
    with pytest.raises(Abandoned, match="do not fit together: some client sent wrong ones"):
        played.server.finish()
    assert played.server.stage is Stage.DONE


def test_steps_of_the_server_in_the_wrong_order_are_the_caller_s_mistake():
    with pytest.raises(ValueError, match="not at its end"):
        Server(AGREED).finish()
    played = play(None, until=Stage.UNMASK)
    with pytest.raises(ValueError, match="nothing to advance to"):
        played.server.advance()


@pytest.mark.parametrize(
    "change",
    [
        {"minimum": 2},
        {"minimum": 8},
        {"degree": 5},
        {"threshold": 3},
        {"threshold": 7},
        {"bits": 16},
        {"length": 0},
        {"round": -1},
        {"session": b"short"},
        {"layout": b"short"},
        {"largest": 2**16},
    ],
)
def test_settings_that_protect_nobody(change):
    with pytest.raises(ValueError, match=r"clients|neighbours|round|session"):
        dataclasses.replace(AGREED, **change)


# Noise on the wire.


def mutated(data, message):
    """A message with a few bytes changed, cut off, doubled or inserted; or anything at all."""
    if data.draw(st.integers(0, 4)) == 0:
        return data.draw(st.binary(max_size=200))
    found = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(found) - 1)))
        match data.draw(st.sampled_from(["change", "cut", "insert", "double"])):
            case "change" if found:
                found[place] = data.draw(st.integers(0, 255))
            case "cut":
                del found[place:]
            case "insert":
                found[place:place] = data.draw(st.binary(max_size=90))
            case "double":
                found += found[place:]
    return bytes(found)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.data(), st.sampled_from(STEPS[1:]))
def test_no_message_crashes_a_client(data, stage):
    """It is refused in one line, or it was the right one after all."""
    played = play(None, settings_of(4), until=stage)
    answer = played.answer(stage, 2, mutated(data, played.inbox[2]))
    assert (answer is None) == (2 in played.refused)
    if answer is None:
        assert "\n" not in str(played.refused[2])
        assert forgotten(played.clients[2])


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.data(), st.sampled_from(STEPS))
def test_no_message_crashes_a_server(data, stage):
    """It is dropped for a reason, or taken; the round ends in a sum or is abandoned in one line."""
    agreed = settings_of(5)
    played = play(None, agreed, until=stage)
    message = mutated(data, bytes(message_of(played, stage, 2)))
    reason = played.server.receive(data.draw(st.sampled_from([2, 2, 2, 0, 77])), message)
    assert reason is None or sum(played.server.dropped.values()) == 1
    del played.inbox[2]
    try:
        total = played.play()
    except Abandoned as end:
        assert "\n" not in str(end)
    else:
        if reason is not None:
            assert np.array_equal(total.vector, total_of(played.vectors, total.clients))
