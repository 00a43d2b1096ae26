"""Where a node may be sent by a stranger's record, and how often."""

from __future__ import annotations

import ipaddress

import pytest

from swarm_node.swarm.transport.dial_guard import (
    FAILURES_NEARBY,
    FAILURES_PER_GROUP,
    FAILURES_PER_HOST,
    MAX_ADDRESSES,
    MAX_DIRECT,
    DialGuard,
    Reach,
    choose,
    for_client,
    reach_of,
    reaches,
)

PUBLIC = "/ip4/8.8.8.8/tcp/31330"
LAN, LOOP = "/ip4/192.168.1.5/tcp/31330", "/ip4/127.0.0.1/tcp/31330"
RELAY = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("10.1.2.3", "private"),
        ("172.31.0.1", "private"),
        ("fd00::1", "private"),
        ("100.64.0.1", "carrier"),
        ("169.254.169.254", "link"),
        ("fe80::1", "link"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::7f00:1", "other"),  # 127.0.0.1 behind a translator
        ("2002:7f00:1::", "other"),
        ("0.0.0.0", "other"),
        ("224.0.0.1", "other"),
        ("192.0.2.1", "other"),
        ("240.0.0.1", "other"),
    ],
)
def test_every_address_is_meant_from_somewhere(host, reach):
    assert reach_of(ipaddress.ip_address(host)) is Reach(reach)


@pytest.mark.parametrize(
    ("own", "dialled"),
    [
        ([PUBLIC, LAN, LOOP], [PUBLIC]),  # a public node looks into no private network
        ([LAN, LOOP], [PUBLIC, LAN]),
        ([LAN], [PUBLIC, LAN]),
        (["/ip4/100.64.3.3/tcp/1"], [PUBLIC]),
        ([LOOP], [PUBLIC, LOOP]),
        ([f"{PUBLIC}/p2p/{RELAY}/p2p-circuit"], [PUBLIC]),
        ([f"{LAN}/p2p/{RELAY}/p2p-circuit"], [PUBLIC]),
        ([], [PUBLIC]),
    ],
)
def test_a_node_dials_what_is_of_its_own_kind(own, dialled):
    theirs = [PUBLIC, LAN, LOOP, "/ip4/169.254.169.254/tcp/80", "/dns4/localhost/tcp/80", "/unix/x.sock"]
    assert choose(theirs, reaches(own)) == dialled


def test_a_relay_counts_where_it_is():
    through = [f"{where}/p2p/{RELAY}/p2p-circuit" for where in (PUBLIC, LAN, LOOP)]
    assert choose(through, reaches([PUBLIC])) == through[:1]


def test_no_web_sockets_and_few_places():
    maddrs = [
        f"{PUBLIC}/ws",
        f"{PUBLIC}/wss",
        *(f"/ip4/8.8.8.{n}/tcp/{p}" for n in range(9) for p in (1, 2, 3)),
    ]
    chosen = choose(maddrs, reaches([PUBLIC]))
    assert len(chosen) == MAX_ADDRESSES
    assert {maddr.split("/")[2] for maddr in chosen} == {"8.8.8.0", "8.8.8.1"}


def test_a_client_is_not_sent_to_itself_by_who_is_elsewhere():
    assert for_client([LOOP, PUBLIC, LAN, PUBLIC]) == [PUBLIC, LAN]
    assert for_client([LOOP]) == [LOOP]
    assert len(for_client([f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 99)])) == MAX_ADDRESSES
    assert for_client(["/dns4/example.org/tcp/1", LOOP]) == ["/dns4/example.org/tcp/1"]


def test_what_does_not_answer_is_left_alone_for_longer_each_time():
    guard, now, tried = DialGuard(), 0.0, []
    for _ in range(3000):
        if guard.begin("p", [PUBLIC], now):
            guard.failed("p", [PUBLIC], now)
            tried.append(now)
        now += 0.2
    assert len(tried) < 11
    assert tried[1] == pytest.approx(1.0)
    assert guard.begin("q", [PUBLIC], now) == [PUBLIC]  # another peer may be there
    guard.met("p", [PUBLIC], PUBLIC)
    assert guard.begin("p", [PUBLIC], now) == [PUBLIC]


def test_a_host_and_a_network_are_tried_a_few_times_a_minute_however_many_ask():
    guard = DialGuard()
    ports = [f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 200)]
    for number, port in enumerate(ports):
        assert bool(guard.begin(f"peer{number}", [port], 0.0)) is (number < FAILURES_PER_HOST)
    hosts = [f"/ip4/8.8.8.{host}/tcp/1" for host in range(100, 200)]
    assert len(guard.begin("p", hosts, 1.0)) == FAILURES_PER_GROUP - FAILURES_PER_HOST
    assert guard.begin("p", ["/ip4/9.9.9.9/tcp/1"], 1.0)
    nearby = [f"/ip4/192.168.1.9/tcp/{port}" for port in range(1, 200)]
    assert len(guard.begin("p", nearby, 1.0)) == FAILURES_NEARBY
    assert len(guard.begin("p", ports[50:], 61.5)) == FAILURES_PER_HOST


def test_who_was_found_where_he_said_is_dialled_again_whatever_strangers_say_of_his_place():
    guard = DialGuard()
    assert guard.begin("honest", [PUBLIC], 0.0)
    guard.met("honest", [PUBLIC], PUBLIC)
    for number in range(100):
        guard.begin(f"liar{number}", [PUBLIC], 1.0)
        guard.failed(f"liar{number}", [PUBLIC], 1.0)
    assert not guard.begin("newcomer", [PUBLIC], 2.0)
    for _ in range(100):
        assert guard.begin("honest", [PUBLIC], 2.0)
    guard.failed("honest", [PUBLIC], 3.0)
    assert not guard.begin("honest", [PUBLIC], 3.5)


def test_a_live_peer_that_names_a_victim_too_has_it_dialled_no_more_often():
    guard, own, victim = DialGuard(), "/ip4/9.9.9.9/tcp/1", "/ip4/8.8.8.8/tcp/80"
    dialled = 0
    for number in range(100):
        dialled += victim in guard.begin(f"liar{number}", [own, victim], 0.0)
        guard.met(f"liar{number}", [own, victim], own)
    assert dialled == FAILURES_PER_HOST


def test_dials_that_find_whom_they_want_cost_a_host_nothing():
    guard = DialGuard()
    for number in range(500):
        maddr = [f"/ip4/127.0.0.1/tcp/{1000 + number}"]
        assert guard.begin("p", maddr, 0.0) == maddr
        if number % 2:
            guard.met("p", maddr, f"{maddr[0]}/p2p/{RELAY}")
        else:
            guard.not_dialled("p", maddr)


def test_direct_addresses_come_first_and_leave_room_for_others() -> None:
    direct = [f"/ip4/8.8.8.8/tcp/{port}/direct" for port in range(2000, 2010)]
    others = [f"/ip4/8.8.8.8/tcp/{port}" for port in range(1000, 1010)]
    chosen = choose([*direct, *others], frozenset({Reach.PUBLIC}))
    assert chosen == [*direct[:MAX_DIRECT], *others[: MAX_ADDRESSES - MAX_DIRECT]]
    assert for_client([*direct, *others]) == chosen
    assert choose(others, frozenset({Reach.PUBLIC})) == others[:MAX_ADDRESSES]


def test_direct_addresses_lead_nowhere_that_others_may_not() -> None:
    hidden = ["/ip4/10.1.2.3/tcp/1/direct", "/ip4/127.0.0.1/tcp/1/direct"]
    assert choose([*hidden, PUBLIC], reaches([PUBLIC])) == [PUBLIC]
    assert for_client([*hidden[1:], PUBLIC]) == [PUBLIC]
