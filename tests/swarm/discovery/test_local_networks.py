"""What is a private network, and where a process can be dialled on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from swarm_node.swarm.discovery.local_networks import (
    dialable_maddrs,
    fours_apart,
    is_lan,
    is_near,
    lan_addresses,
)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.1.1", "169.254.1.1", "fd00::1"]
)
def test_private_addresses(address: str) -> None:
    assert is_lan(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "8.8.8.8", "172.32.0.1", "100.64.0.1", "0.0.0.0", "::1", "fe80::1", "2001:db8::1", "", "x"],
)
def test_others_are_not(address: str) -> None:
    assert not is_lan(address)


def test_of_the_interfaces_those_that_are_up_and_take_multicast(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(address: str) -> Any:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return SimpleNamespace(family=family, address=address)

    addresses = {
        "lo": [entry("127.0.0.1")],
        "eth0": [entry("192.168.1.7"), entry("fd00::7"), entry("fe80::1%eth0"), entry("203.0.113.4")],
        "wlan0": [entry("10.0.0.7"), entry("2a01:4f8:1:2::7")],
        "six0": [entry("2a01:4f8:1:3::7"), entry("fe80::8%six0")],  # IPv6 only
        "cloud0": [entry("203.0.113.5"), entry("2a01:4f8:1:4::7")],
        "down0": [entry("10.9.0.7")],
        "tun0": [entry("10.8.0.7")],
        "gone0": [entry("10.7.0.7")],
    }
    states = {
        "lo": SimpleNamespace(isup=True, flags="up,loopback,running"),
        "eth0": SimpleNamespace(isup=True, flags="up,broadcast,running,multicast"),
        "wlan0": SimpleNamespace(isup=True, flags=""),  # a system that does not tell
        "six0": SimpleNamespace(isup=True, flags="up,broadcast,running,multicast"),
        "cloud0": SimpleNamespace(isup=True, flags="up,broadcast,running,multicast"),
        "down0": SimpleNamespace(isup=False, flags="multicast"),
        "tun0": SimpleNamespace(isup=True, flags="up,pointopoint,running"),
    }
    fixed: Callable[[Any], Callable[[], Any]] = lambda value: lambda: value  # noqa: E731
    monkeypatch.setattr(psutil, "net_if_addrs", fixed(addresses))
    monkeypatch.setattr(psutil, "net_if_stats", fixed(states))
    assert lan_addresses() == ["10.0.0.7", "192.168.1.7", "fd00::7", "2a01:4f8:1:2::7", "2a01:4f8:1:3::7"]
    assert fours_apart() == ["203.0.113.4", "203.0.113.5"], "where mDNS does not speak"


def test_a_public_address_is_near_if_the_same_router_gave_it() -> None:
    own = ["192.168.1.7", "2a01:4f8:1:2::7"]
    assert is_near("2a01:4f8:1:2:ffff::1", own)
    for address in ("2a01:4f8:1:3::1", "192.168.1.8", "fe80::1", "::1", "x"):
        assert not is_near(address, own)
    assert not is_near("2a01:4f8:1:2::1", ["192.168.1.7"])


def test_a_host_of_zeros_is_every_address_of_its_kind() -> None:
    addresses = ["10.0.0.7", "192.168.1.7", "fd00::7"]
    assert dialable_maddrs(("/ip4/0.0.0.0/tcp/31330",), addresses) == [
        "/ip4/10.0.0.7/tcp/31330",
        "/ip4/192.168.1.7/tcp/31330",
    ]
    assert dialable_maddrs(("/ip6/::/tcp/5",), addresses) == ["/ip6/fd00::7/tcp/5"]
    assert dialable_maddrs(("/ip4/10.0.0.7/tcp/5",), addresses) == ["/ip4/10.0.0.7/tcp/5"]


@pytest.mark.parametrize(
    "maddr", ["/ip4/127.0.0.1/tcp/5", "/ip4/203.0.113.4/tcp/5", "/ip4/0.0.0.0/udp/5/quic-v1"]
)
def test_who_listens_elsewhere_is_not_dialled_here(maddr: str) -> None:
    assert dialable_maddrs((maddr,), ["10.0.0.7"]) == []
