"""What mDNS records say, ours and others', and what they cannot make us do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.discovery.mdns_records import (
    MAX_MADDRS,
    MAX_STRINGS,
    LanPeer,
    peer_name,
    read_txt,
    service_type,
    txt_record,
)
from swarm_node.swarm.identity import Identity

PEER, OTHER = Identity(b"a" * 32).peer_id, Identity(b"b" * 32).peer_id
MADDRS = ["/ip4/192.168.1.5/tcp/31330", "/ip6/fd00::1/tcp/31330", "/ip4/169.254.3.4/tcp/1"]


def record(*strings: str) -> bytes:
    return b"".join(bytes([len(string)]) + string.encode() for string in strings)


def test_a_record_is_read_as_it_was_written() -> None:
    assert read_txt([txt_record(PEER, MADDRS)]) == LanPeer(PEER, tuple(MADDRS))


def test_the_unnamed_swarms_name_is_fixed() -> None:
    """docs/reference/protocol.md gives it: other implementations look for it."""
    assert service_type("") == "_p2p-2aa98cff267d06e11a46e1c01c160efd._udp.local."


def test_each_swarm_has_a_name_that_dns_allows() -> None:
    names = {service_type(tag) for tag in ("", "00" * 16, "01" * 16)}
    assert len(names) == 3
    assert all(len(name.split(".")[0]) <= 63 for name in names)
    assert 32 <= len(peer_name()) <= 63
    assert peer_name() != peer_name()


def test_one_string_a_record_is_read_too() -> None:
    """As js-libp2p sends them."""
    records = [record(f"dnsaddr={maddr}/p2p/{PEER}") for maddr in MADDRS]
    assert read_txt(records) == LanPeer(PEER, tuple(MADDRS))


def test_what_else_is_in_a_record_is_passed_over() -> None:
    text = record("a=b", f"dnsaddr={MADDRS[0]}/p2p/{PEER}", "dnsaddr=", "dnsaddr=/ip4/1", "")
    assert read_txt([text]) == LanPeer(PEER, (MADDRS[0],))


@pytest.mark.parametrize(
    "maddr",
    [
        "/ip4/8.8.8.8/tcp/53",  # not of this network: nobody makes us dial strangers
        "/ip4/127.0.0.1/tcp/22",
        "/ip6/::1/tcp/22",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/224.0.0.251/tcp/5353",
        "/ip6/fe80::1/tcp/1",  # cannot be dialled without an interface
        "/ip6/2001:db8::1/tcp/1",
        "/ip4/192.168.1.5/udp/1/quic-v1",
        "/ip4/192.168.1.5/tcp/0",
        "/ip4/192.168.1.5/tcp/70000",
        "/ip4/192.168.1.5/tcp/1/ws",
        "/ip6/192.168.1.5/tcp/1",
        "/dns4/router.local/tcp/80",
        f"/ip4/192.168.1.5/tcp/1/p2p/{OTHER}/p2p-circuit",
    ],
)
def test_addresses_elsewhere_are_not_taken(maddr: str) -> None:
    assert read_txt([record(f"dnsaddr={maddr}/p2p/{PEER}")]) is None


def test_this_machine_counts_where_it_is_asked_for() -> None:
    text = txt_record(PEER, ["/ip4/127.0.0.1/tcp/22"])
    assert read_txt([text]) is None
    assert read_txt([text], loopback=True) == LanPeer(PEER, ("/ip4/127.0.0.1/tcp/22",))


def test_a_name_that_speaks_for_several_peers_is_not_believed() -> None:
    assert read_txt([txt_record(PEER, MADDRS) + txt_record(OTHER, MADDRS)]) is None


def test_peers_without_an_ed25519_id_are_not_ours() -> None:
    assert read_txt([txt_record("Qm" + "a" * 44, MADDRS)]) is None


def test_many_addresses_are_bounded_on_both_sides() -> None:
    many = [f"/ip4/10.0.{n // 250}.{n % 250 + 1}/tcp/1" for n in range(500)]
    strings = record(*(f"dnsaddr={maddr}/p2p/{PEER}" for maddr in many))
    peer = read_txt([strings])
    assert peer is not None
    assert len(peer.maddrs) == MAX_MADDRS <= MAX_STRINGS
    assert txt_record(PEER, many).count(b"dnsaddr=") == MAX_MADDRS


@given(st.lists(st.binary(max_size=600), max_size=6))
def test_any_bytes_are_read(records: list[bytes]) -> None:
    peer = read_txt(records)
    assert peer is None or len(peer.maddrs) <= MAX_MADDRS


@given(st.binary(max_size=300), st.integers(0, 200))
def test_damaged_records_are_read(junk: bytes, place: int) -> None:
    text = txt_record(PEER, MADDRS)
    peer = read_txt([text[:place] + junk + text[place:]])
    assert peer is None or len(peer.maddrs) <= MAX_MADDRS


def test_a_public_address_counts_on_its_own_link_only() -> None:
    records = [txt_record(PEER, ["/ip6/2a01:4f8:1:2::9/tcp/5", "/ip6/2a01:4f8:1:3::9/tcp/5"])]
    assert read_txt(records) is None
    near = LanPeer(PEER, ("/ip6/2a01:4f8:1:2::9/tcp/5",))
    assert read_txt(records, own=["192.168.1.7", "2a01:4f8:1:2::7"]) == near
