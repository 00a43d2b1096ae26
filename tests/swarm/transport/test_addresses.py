from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import (
    ListenError,
    NetworkError,
    NotSpokenError,
    PeerTimeoutError,
    PeerUnreachableError,
    UsageError,
)
from swarm_node.swarm.transport import addresses
from swarm_node.swarm.transport.addresses import (
    EVERY_INTERFACE,
    PeerAddress,
    held_ports,
    is_loopback,
    listen_maddrs,
    listenable,
)
from swarm_node.swarm.transport.dial_errors import dial_error

PEER = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
RELAY = "12D3KooWF4xJdYKZAo5WyDC8s81LqQ3kzsPNbmyC1kxfSMBRCvVc"


@pytest.mark.parametrize("maddr", ["/ip4/1.2.3.4/tcp/80", f"/ip4/1.2.3.4/tcp/80/p2p/{RELAY}/p2p-circuit"])
def test_a_peer_address_is_taken_apart_and_put_together(maddr: str) -> None:
    address = PeerAddress.parse(f" {maddr}/p2p/{PEER}\n")
    assert address == PeerAddress(PEER, maddr)
    assert str(address) == f"{maddr}/p2p/{PEER}"


@given(st.text(max_size=60))
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        PeerAddress.parse(text)
    assert "/ip4/192.0.2.1/tcp/31330/p2p/" in caught.value.hint


def test_listen_addresses() -> None:
    assert listen_maddrs("localhost", 0) == ("/ip4/127.0.0.1/tcp/0",)
    assert listen_maddrs("0.0.0.0", 31330) == ("/ip4/0.0.0.0/tcp/31330",)
    assert listen_maddrs("::1", 5) == listen_maddrs("[::1]", 5) == ("/ip6/::1/tcp/5",)
    assert listen_maddrs("[::]", 5) == ("/ip6/::/tcp/5",)
    for host, port in (("example.org", 1), ("127.0.0.1", 65536), ("127.0.0.1", -1)):
        with pytest.raises(UsageError):
            listen_maddrs(host, port)
    assert listen_maddrs("::ffff:127.0.0.1", 5) == ("/ip4/127.0.0.1/tcp/5",)
    for host in ("224.0.0.1", "ff02::1", "::ffff:224.0.0.1"):
        with pytest.raises(UsageError, match="multicast"):
            listen_maddrs(host, 0)
    for host in ("fe80::1", "fe80::1%eth0"):
        with pytest.raises(UsageError, match="link-local"):
            listen_maddrs(host, 0)


def test_every_interface_is_those_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {socket.AF_INET, socket.AF_INET6}
    monkeypatch.setattr(addresses, "_has", kinds.__contains__)
    assert listen_maddrs(EVERY_INTERFACE, 9) == ("/ip4/0.0.0.0/tcp/9", "/ip6/::/tcp/9")
    kinds.discard(socket.AF_INET6)
    assert listen_maddrs(EVERY_INTERFACE, 9) == ("/ip4/0.0.0.0/tcp/9",)
    kinds.clear()
    assert listen_maddrs(EVERY_INTERFACE, 9)  # to fail with the system's own words


def test_one_port_for_both_kinds_of_address() -> None:
    where = listen_maddrs(EVERY_INTERFACE, 0)
    assert len({maddr.rpartition("/")[2] for maddr in listenable(where)}) == 1
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("needs IPv6")
        taken.listen()
        port = taken.getsockname()[1]
        first, second = listenable([f"/ip4/127.0.0.1/tcp/{port}", "/ip6/::1/tcp/0"])
        assert first.endswith(f"/{port}")
        assert not second.endswith((f"/{port}", "/0"))
        with pytest.raises(ListenError, match=f"port {port} on ::1 is in use"):
            listenable([f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}"])


def test_loopback_is_recognised() -> None:
    assert is_loopback("/ip4/127.0.0.1/tcp/0")
    assert is_loopback("/ip6/::1/tcp/0")
    assert not is_loopback("/ip4/0.0.0.0/tcp/0")
    assert not is_loopback("/dns4/localhost/tcp/0")


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_a_taken_port_is_seen_even_if_its_owner_shares_it(kind: socket.SocketKind, protocol: str) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        if hasattr(socket, "SO_REUSEPORT"):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ListenError, match=f"port {port} on {host} is in use"):
                listenable([f"/ip4/{host}/{protocol}/{port}"])
    listenable([f"/ip4/127.0.0.1/{protocol}/{port}", "/ip4/127.0.0.1/tcp/0"])


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system shares no ports")
def test_a_held_port_is_its_daemons_alone() -> None:
    (where,) = listenable(["/ip4/127.0.0.1/tcp/0"])
    port = int(where.rpartition("/")[2])
    (held,) = held_ports([where, "/ip4/127.0.0.1/udp/9/quic-v1", "/ip4/192.0.2.1/tcp/9"])
    with held:
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ListenError, match=f"port {port} on {host} is in use"):
                listenable([f"/ip4/{host}/tcp/{port}"])
        with socket.create_server(("127.0.0.1", port), reuse_port=True) as daemon:
            for _ in range(16):  # all come to the one that listens
                with socket.create_connection(("127.0.0.1", port)), daemon.accept()[0]:
                    pass
    assert listenable([where]) == (where,)


def test_a_port_that_is_left_to_the_system_is_named_so_that_it_can_be_had_again() -> None:
    (found,) = listenable(["/ip4/127.0.0.1/tcp/0"])
    port = int(found.removeprefix("/ip4/127.0.0.1/tcp/"))
    assert port > 0
    assert listenable([f"/ip4/127.0.0.1/tcp/{port}"]) == (f"/ip4/127.0.0.1/tcp/{port}",)
    assert listenable(["/ip4/127.0.0.1/udp/0/quic-v1"])[0].endswith("/quic-v1")


ALL_FAILED = f"failed to dial: failed to dial {PEER}: all dials failed"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("failed to dial: dial to self attempted", PeerUnreachableError, "this process itself"),
        (
            "failed to negotiate protocol: protocols not supported: [/x]",
            NotSpokenError,
            "does not speak /x",
        ),
        ("failed to find any peer in table", PeerUnreachableError, "no address of peer"),
        (
            f"{ALL_FAILED}\n  * [/ip4/127.0.0.1/tcp/2] dial backoff"
            "\n  * [/ip4/127.0.0.1/tcp/1] dial tcp4 127.0.0.1:1: connect: connection refused",
            PeerUnreachableError,
            r"nobody listens at /ip4/127.0.0.1/tcp/1 \(connection refused\)",
        ),
        (f"{ALL_FAILED}\n  * [/ip4/9.9.9.9/tcp/1] dial backoff", PeerUnreachableError, "dial backoff"),
        (
            f"{ALL_FAILED}\n  * [/ip4/127.0.0.1/tcp/1] failed to negotiate security protocol: "
            f"peer id mismatch: expected {PEER}, but remote key matches {RELAY}",
            PeerUnreachableError,
            f"/ip4/127.0.0.1/tcp/1 is the address of peer {RELAY}, not of {PEER}",
        ),
        (
            f"{ALL_FAILED}\n  * [/ip4/9.9.9.9/tcp/1] dial tcp4 9.9.9.9:1: i/o timeout",
            PeerTimeoutError,
            "in time",
        ),
        (
            f"{ALL_FAILED}\n  * [/ip4/9.9.9.9/tcp/1] failed to negotiate security protocol: EOF",
            PeerUnreachableError,
            "what answers at /ip4/9.9.9.9/tcp/1 is not a swarm peer",
        ),
        ("context deadline exceeded", PeerTimeoutError, "did not answer in time"),
        (
            "\x1b[31mnew trouble\n" + "x" * 900,
            PeerUnreachableError,
            r"cannot reach peer .*: ␛\[31mnew trouble x",
        ),
    ],
)
def test_what_p2pd_says_becomes_one_line_for_people(
    text: str, kind: type[NetworkError], message: str
) -> None:
    error = dial_error(PEER, text, "/x")
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert str(error).isprintable()
    assert len(str(error)) < 400


@pytest.mark.parametrize("form", ["{0}/direct", "{0}/p2p/{1}/direct", "{0}/direct/p2p/{1}"])
def test_nobody_joins_through_a_direct_listener(form: str) -> None:
    with pytest.raises(UsageError, match="direct listener") as caught:
        PeerAddress.parse(form.format("/ip4/192.0.2.1/tcp/32331", PEER))
    assert "ordinary address" in caught.value.hint
    PeerAddress.parse(f"/dns4/direct/tcp/1/p2p/{PEER}")
