"""Invites: what they carry, and a clear word for every way to spoil one."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.invite import (
    MAX_INVITE_CHARS,
    MAX_PEER_MADDRS,
    MAX_PEERS,
    PREFIX,
    Invite,
    describe_end,
    make_invite,
)
from swarm_node.swarm.membership.membership import KeyedSwarm, NamedSwarm
from swarm_node.swarm.transport.addresses import PeerAddress

NOW = 1_800_000_000.0
KEY = Identity(bytes(range(32)))
PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 14)]
ADDRESS = PeerAddress(PEERS[0], "/ip4/192.168.1.5/tcp/31330")
INVITE = make_invite("home", KEY, [ADDRESS], NOW, 3600.0)
TEXT = str(INVITE)

maddrs = st.sampled_from(
    ["/ip4/192.168.1.5/tcp/31330", "/dns4/host.example/tcp/4001", "/ip6/fd00::1/tcp/1/ws", "/dnsaddr/a.b"]
)
peers = st.lists(st.builds(PeerAddress, st.sampled_from(PEERS[:MAX_PEERS]), maddrs), max_size=6, unique=True)


@given(st.text(st.characters(codec="utf-8", categories=["L", "N"]), max_size=40), peers, st.booleans())
def test_an_invite_survives_its_text(name: str, addresses: list[PeerAddress], keyed: bool) -> None:
    ordered = sorted(addresses, key=lambda address: [a.peer_id for a in addresses].index(address.peer_id))
    invite = make_invite(name, KEY if keyed else None, ordered, NOW, 3600.0 if keyed else math.inf)
    text = str(invite)
    assert text.isascii()
    assert len(text.split()) == 1
    assert Invite.parse(text) == invite


def test_who_joins_by_it_is_a_member_until_it_ends() -> None:
    membership = Invite.parse(TEXT).membership(NOW)
    assert isinstance(membership, KeyedSwarm)
    assert membership.name == "home"
    assert membership.ends == NOW + 3600
    credential = membership.credential(PEERS[1], NOW)
    holder = KeyedSwarm("home", KEY.public_bytes, holder=KEY)
    assert holder.check(PEERS[1], credential, NOW) == NOW + 3600


def test_without_a_key_it_says_where_and_which() -> None:
    named = Invite.parse(str(make_invite("den", None, [ADDRESS], NOW)))
    assert named.peers == (ADDRESS,)
    membership = named.membership(NOW)
    assert isinstance(membership, NamedSwarm)
    assert membership.name == "den"
    assert Invite.parse(str(make_invite("", None, [ADDRESS], NOW))).membership(NOW) is None


def test_line_breaks_of_a_mail_do_no_harm() -> None:
    assert Invite.parse(f"  {TEXT[:60]}\r\n{TEXT[60:]}\n") == INVITE


@given(st.integers(0, len(TEXT) - 1))
def test_a_cut_invite_is_called_cut(length: int) -> None:
    with pytest.raises(UsageError) as caught:
        Invite.parse(TEXT[:length])
    if length >= len(PREFIX):
        assert "cut off" in caught.value.message
        assert f"it has {length}" in caught.value.message
        if length >= len(PREFIX) + 3:
            assert f"of {len(TEXT)} characters" in caught.value.message
    assert "Copy it again" in caught.value.hint


@given(st.integers(len(PREFIX), len(TEXT) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_changed_character_never_passes(place: int, character: str) -> None:
    changed = TEXT[:place] + character + TEXT[place + 1 :]
    if changed == TEXT:
        return
    with suppress(UsageError):
        assert Invite.parse(changed) == INVITE  # the last character may code bits that are not used


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is neither an invite nor a file with one"),
        ("/ip4/1.2.3.4/tcp/1/p2p/x", "is neither an invite nor a file with one"),
        ("swn2abc", "later version"),
        (TEXT[:20] + "=" + TEXT[20:], "'=' at place 21"),
        (TEXT[:20] + "é" + TEXT[20:], "'é' at place 21"),
        (TEXT + "AAAA", "damaged"),
        (TEXT[:40] + TEXT[41:42] + TEXT[40:41] + TEXT[42:], "damaged"),
        (PREFIX + "A" * MAX_INVITE_CHARS, "more than 4096"),
        (PREFIX + "A" * 100, "damaged"),
    ],
    ids=["empty", "address", "later", "padding", "accent", "longer", "swapped", "huge", "zeros"],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Invite.parse(text)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: PREFIX + data.hex()))
def test_any_text_is_an_invite_or_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Invite.parse(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.binary(max_size=70)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=9),
        max_leaves=30,
    )
)
def test_a_well_packed_invite_with_any_content_is_bounded(content: object) -> None:
    import base64
    import hashlib

    import msgpack

    body = msgpack.packb(content)
    data = (len(body) + 4).to_bytes(2) + body
    data += hashlib.sha256(data).digest()[:4]
    with pytest.raises(UsageError, match="does not understand"):
        Invite.parse(PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


def test_an_invite_that_is_over_or_has_not_begun_says_so_with_the_clock() -> None:
    with pytest.raises(
        UsageError, match=r"ended on 2027-01-15 09:00 UTC, and the clock here says 2027-01-16"
    ):
        INVITE.membership(NOW + 86_400)
    with pytest.raises(
        UsageError, match=r"begins on 2027-01-15 08:00 UTC, but the clock here says"
    ) as caught:
        INVITE.membership(NOW - 86_400)
    assert "clock" in caught.value.hint


def test_an_invite_made_with_another_key_is_refused() -> None:
    forged = make_invite("home", Identity(b"x" * 32), [], NOW)
    swapped = Invite("home", KEY.public_bytes, forged.grant)
    with pytest.raises(UsageError, match="not made by the key of the swarm"):
        Invite.parse(str(swapped)).membership(NOW)


def test_of_too_many_addresses_the_first_are_kept() -> None:
    many = [PeerAddress(peer, f"/ip4/10.0.0.{n}/tcp/{n + 1}") for peer in PEERS for n in range(9)]
    text = str(make_invite("home", KEY, many, NOW))
    assert len(text) <= MAX_INVITE_CHARS
    kept = Invite.parse(text).peers
    assert [peer.peer_id for peer in kept] == [
        peer for peer in PEERS[:MAX_PEERS] for _ in range(MAX_PEER_MADDRS)
    ]
    long = [PeerAddress(peer, f"/dns4/{'x' * 200}/tcp/{n + 1}") for peer in PEERS for n in range(9)]
    assert 0 < len(Invite.parse(str(make_invite("home", KEY, long, NOW))).peers) < len(kept)


def test_how_long_it_counts_is_said() -> None:
    assert describe_end(INVITE) == "until 2027-01-15 09:00 UTC"
    assert describe_end(make_invite("home", KEY, [], NOW)) == "for ever"
