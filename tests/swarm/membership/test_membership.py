"""Credentials: who is a member, until when, and what of all that others send is not one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import ErrorCode, NotAdmittedError, UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.membership import (
    CLOCK_SLACK_S,
    MAX_CREDENTIAL_BYTES,
    RENEWAL_S,
    KeyedSwarm,
    Membership,
    NamedSwarm,
    grant,
    moment,
    swarm_tag,
)

NOW = 1_800_000_000.0
DAY = 86_400.0
KEY = Identity(bytes(range(32)))
ALICE, BOB = Identity(b"a" * 32).peer_id, Identity(b"b" * 32).peer_id


def invited(
    ends: float = NOW + DAY, begins: float = NOW, name: str = "home", key: Identity = KEY
) -> KeyedSwarm:
    tag = swarm_tag(name, key.public_bytes)
    return KeyedSwarm(name, key.public_bytes, given=grant(key, tag, begins, ends))


def holder(name: str = "home", key: Identity = KEY) -> KeyedSwarm:
    return KeyedSwarm(name, key.public_bytes, holder=key)


@pytest.mark.parametrize("member", [invited(), holder()], ids=["invited", "holder"])
@pytest.mark.parametrize("other", [invited(), holder()], ids=["invited", "holder"])
def test_members_admit_each_other(member: Membership, other: Membership) -> None:
    assert member.tag == other.tag
    credential = member.credential(ALICE, NOW)
    assert len(credential) <= MAX_CREDENTIAL_BYTES
    assert other.check(ALICE, credential, NOW) > NOW


def test_an_invitation_ends_when_it_says_and_for_ever_is_for_ever() -> None:
    assert holder().check(ALICE, invited().credential(ALICE, NOW), NOW) == NOW + DAY
    eternal = invited(math.inf)
    assert eternal.ends == math.inf
    assert holder().check(ALICE, eternal.credential(ALICE, NOW), NOW + 1e9) == math.inf


def test_a_credential_belongs_to_one_peer() -> None:
    credential = invited().credential(ALICE, NOW)
    with pytest.raises(NotAdmittedError, match="belongs to another peer") as caught:
        holder().check(BOB, credential, NOW)
    assert caught.value.code is ErrorCode.NOT_ADMITTED
    assert not caught.value.retriable
    assert caught.value.hint


def test_it_belongs_to_another_peer_after_its_owner_was_admitted_too() -> None:
    swarm, credential = holder(), invited().credential(ALICE, NOW)
    swarm.check(ALICE, credential, NOW)
    with pytest.raises(NotAdmittedError, match="belongs to another peer"):
        swarm.check(BOB, credential, NOW)


@pytest.mark.parametrize(
    "stranger",
    [invited(key=Identity(b"x" * 32)), invited(name="other"), holder(key=Identity(b"x" * 32))],
    ids=["another key", "another name", "holder of another key"],
)
def test_other_swarms_are_refused(stranger: KeyedSwarm) -> None:
    assert stranger.tag != holder().tag
    with pytest.raises(NotAdmittedError, match="not of this swarm's key"):
        holder().check(ALICE, stranger.credential(ALICE, NOW), NOW)


def test_without_a_credential_nobody_gets_in() -> None:
    with pytest.raises(NotAdmittedError, match="admits members only"):
        holder().check(ALICE, b"", NOW)


def test_a_member_is_one_until_its_time_is_over_and_clocks_may_differ_a_little() -> None:
    swarm, credential = holder(), invited().credential(ALICE, NOW)
    swarm.check(ALICE, credential, NOW + DAY + CLOCK_SLACK_S)
    with pytest.raises(NotAdmittedError, match=r"ended on 2027-01-16 08:00 UTC.*clock here says") as caught:
        swarm.check(ALICE, credential, NOW + DAY + CLOCK_SLACK_S + 2)
    assert "clock" in caught.value.hint


def test_a_clock_far_behind_is_named() -> None:
    swarm, credential = holder(), invited().credential(ALICE, NOW)
    swarm.check(ALICE, credential, NOW - CLOCK_SLACK_S)
    with pytest.raises(NotAdmittedError, match=r"begins on .* but the clock here says") as caught:
        swarm.check(ALICE, credential, NOW - CLOCK_SLACK_S - 2)
    assert "clock" in caught.value.hint


def test_who_knows_that_its_time_is_over_shows_nothing_any_more() -> None:
    member = invited()
    with pytest.raises(NotAdmittedError, match="invite to swarm 'home' ended on") as caught:
        member.credential(ALICE, NOW + DAY + 1)
    assert "new one" in caught.value.hint


def test_a_holder_renews_its_own_in_time() -> None:
    swarm, at = holder(), NOW
    for _ in range(20):
        assert invited().check(ALICE, swarm.credential(ALICE, at), at) >= at + RENEWAL_S / 2 - 1
        at += RENEWAL_S / 3


def test_a_holder_whose_clock_was_set_back_makes_another() -> None:
    swarm = holder()
    swarm.credential(ALICE, NOW)
    earlier = NOW - 30 * DAY
    assert holder().check(ALICE, swarm.credential(ALICE, earlier), earlier) > earlier


def test_who_has_neither_key_nor_invite_has_no_credential() -> None:
    with pytest.raises(NotAdmittedError, match="no invite"):
        KeyedSwarm("home", KEY.public_bytes).credential(ALICE, NOW)


@given(st.binary(max_size=600))
def test_arbitrary_bytes_admit_nobody(data: bytes) -> None:
    with pytest.raises(NotAdmittedError):
        holder().check(ALICE, data, NOW)


@given(st.integers(0, 176), st.integers(1, 255))
def test_every_byte_counts(place: int, change: int) -> None:
    credential = bytearray(GOOD)
    credential[place] ^= change
    with pytest.raises(NotAdmittedError):
        holder().check(ALICE, bytes(credential), NOW)


GOOD = invited().credential(ALICE, NOW)


@pytest.mark.parametrize("peer_id", ["", "12D3KooW", "é" * 52, "Qm" + "1" * 44, ALICE + "1"])
def test_what_is_no_peer_id_is_no_member(peer_id: str) -> None:
    with pytest.raises(NotAdmittedError):
        holder().check(peer_id, GOOD, NOW)


def test_good_credentials_are_remembered_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.swarm.membership.membership._REMEMBERED", 3)
    swarm = holder()
    peers = [Identity(bytes([number]) * 32).peer_id for number in range(6)]
    credentials = {peer: invited().credential(peer, NOW) for peer in peers}
    for _ in range(2):
        for peer, credential in credentials.items():
            swarm.check(peer, credential, NOW)
            assert len(swarm._good) <= 3


def test_a_name_alone_keeps_apart_and_lets_everybody_in() -> None:
    swarm = NamedSwarm("  Küche ")
    assert swarm.name == "Küche"
    assert swarm.tag == NamedSwarm("Ku\u0308che").tag  # however its letters were typed
    assert swarm.tag != NamedSwarm("küche").tag
    assert swarm.check(ALICE, swarm.credential(ALICE, NOW), NOW) == math.inf
    assert swarm.ends == math.inf


def test_tags_of_names_and_keys_do_not_collide() -> None:
    tags = {
        NamedSwarm("home").tag,
        holder("home").tag,
        holder("").tag,
        NamedSwarm("home2").tag,
        holder("home", Identity(b"x" * 32)).tag,
    }
    assert len(tags) == 5
    assert all(len(bytes.fromhex(tag)) == 16 for tag in tags)


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\nb", "a\x1b[0m"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        NamedSwarm(name)


def test_moments_are_shown_whatever_number_a_peer_sends() -> None:
    assert moment(NOW) == "2027-01-15 08:00 UTC"
    assert moment(2**64) == "9999-12-31 23:59 UTC"
    assert moment(-5) == "1970-01-01 00:00 UTC"
