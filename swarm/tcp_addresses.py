"""Multiaddresses of plain TCP: what a peer without p2pd can dial and listen on."""

from __future__ import annotations

import ipaddress
import re
import socket

from .errors import UsageError

_TCP_MADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([0-9A-Za-z:._-]{1,253})/tcp/([0-9]{1,5})/?")
_LINK_LOCAL_V6 = ipaddress.ip_network("fe80::/10")


def parse_tcp_maddr(maddr: str) -> tuple[str, int]:
    """``/ip4/192.0.2.1/tcp/31330`` -> ("192.0.2.1", 31330); a DNS name stays one.

    Raises UsageError for any other address, such as one of QUIC, a WebSocket or a relay.
    """
    match = _TCP_MADDR.fullmatch(maddr)
    try:
        if match is None or not int(match[3]) <= 65535:
            raise ValueError
        if match[1].startswith("ip") and ipaddress.ip_address(match[2]).version != int(match[1][2]):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{maddr[:200]!r} is no address of plain TCP", hint="Use /ip4/192.0.2.1/tcp/31330, for example."
        ) from None
    return match[2], int(match[3])


def tcp_maddrs(host: str, port: int) -> list[str]:
    """Where a socket bound to ``host:port`` can be dialled: a host of zeros is every address of this machine,
    those that only this machine can dial last."""
    bound = ipaddress.ip_address(host)
    hosts = [bound] if not bound.is_unspecified else _own_addresses(bound.version)
    return [f"/ip{each.version}/{each}/tcp/{port}" for each in hosts]


def _own_addresses(version: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    import psutil

    family = socket.AF_INET if version == 4 else socket.AF_INET6
    found = {
        ipaddress.ip_address(address.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == family
    }
    usable = [each for each in found if each.version == 4 or each not in _LINK_LOCAL_V6]
    return sorted(usable, key=lambda each: (each.is_loopback, each.packed))
