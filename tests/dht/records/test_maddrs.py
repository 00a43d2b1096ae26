"""The addresses that an announcement may hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.records.maddrs import is_dialable
from swarm_node.swarm.identity import Identity

OWNER, RELAY = Identity(bytes(32)).peer_id, Identity(b"r" * 32).peer_id


@pytest.mark.parametrize(
    "maddr",
    [
        "/ip4/127.0.0.1/tcp/4001",
        f"/ip4/203.0.113.7/tcp/65535/p2p/{OWNER}",
        "/ip6/2001:db8::1/tcp/1",
        "/ip6/::1/udp/4001/quic",
        "/ip4/10.0.0.1/udp/4001/quic-v1",
        "/dns/node.example.org/tcp/443/wss",
        "/dns4/localhost/tcp/80/ws",
        f"/dns6/a-b.c_d.example/tcp/443/tls/ws/p2p/{OWNER}",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{RELAY}/p2p-circuit",
        f"/ip4/203.0.113.7/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit/p2p/{OWNER}",
        f"/ip4/203.0.113.7/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit/p2p/{OWNER}",
    ],
)
def test_dialable(maddr: str) -> None:
    assert is_dialable(maddr, OWNER)


@pytest.mark.parametrize(
    "maddr",
    [
        "",
        "/",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/tcp",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/1/",
        "/ip4/127.0.0.1/tcp/1/quic",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/127.0.0.1/udp/1/ws",
        "/ip4/256.0.0.1/tcp/1",
        "/ip4/1.2.3/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/224.0.0.1/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/ip6/::/tcp/1",
        "/dns/-bad/tcp/1",
        "/dns/a b/tcp/1",
        "/dns/x\x1b[31m/tcp/1",
        "/unix/tmp/socket",
        f"/ip4/127.0.0.1/tcp/1/p2p/{RELAY}",  # somebody else's
        f"/ip4/127.0.0.1/tcp/1/p2p/{OWNER}/p2p/{OWNER}",
        "/ip4/127.0.0.1/tcp/1/p2p-circuit",
        f"/ip4/127.0.0.1/tcp/1/p2p/{OWNER}/p2p-circuit",  # its own relay
        f"/ip4/127.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{RELAY}",
        "/ip4/127.0.0.1/tcp/1/p2p/nonsense/p2p-circuit",
        "/dns/" + "a" * 400 + "/tcp/1",
        "/ip4/127.0.0.1/tcp/1" * 100,
        "/ip4/١٢٧.0.0.1/tcp/1",
    ],
)
def test_not_dialable(maddr: str) -> None:
    assert not is_dialable(maddr, OWNER)


@given(st.text(st.sampled_from("/ip46dnstcpu017.:-x"), max_size=60))
def test_never_raises(text: str) -> None:
    is_dialable(text, OWNER)
    is_dialable("/" + text, OWNER)
