from __future__ import annotations

import pytest

from swarm_node.swarm.transport.address_groups import UNKNOWN, address_group, groups_of

PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"


@pytest.mark.parametrize(
    ("maddr", "group"),
    [
        ("/ip4/8.8.4.77/tcp/31330", "8.8.4.0/24"),
        (f"/ip4/8.8.4.77/udp/31330/quic-v1/p2p/{PEER}", "8.8.4.0/24"),
        ("/ip6/2a00:1450:4001:81b::200e/tcp/1", "2a00:1450:4001::/48"),
        ("/ip6/::ffff:8.8.4.77/tcp/1", "8.8.4.0/24"),
        ("/ip4/127.0.0.1/tcp/1", "loopback"),
        ("/ip4/127.8.9.1/tcp/1", "loopback"),
        ("/ip6/::1/tcp/1", "loopback"),
        ("/ip4/192.168.1.17/tcp/1", "192.168.1.17"),
        ("/ip4/100.64.3.1/tcp/1", "100.64.3.1"),
        (f"/ip4/8.8.4.77/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}", "8.8.4.0/24"),
        ("/dns4/example.org/tcp/1", UNKNOWN),
        ("/memory/a", UNKNOWN),
        ("", UNKNOWN),
        ("/ip4/999.1.1.1/tcp/1", UNKNOWN),
    ],
)
def test_the_group_of_an_address(maddr: str, group: str) -> None:
    assert address_group(maddr) == group


def test_the_groups_of_a_peer_leave_out_what_is_unknown() -> None:
    assert groups_of(["/ip4/8.8.4.77/tcp/1", "/ip4/8.8.4.1/tcp/2", "/dns/x/tcp/1"]) == {"8.8.4.0/24"}
