"""Multiaddresses that a pure-Python peer can dial and listen on: plain TCP, and relays over it."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import OpenFilesError, UsageError
from ..dial_errors import no_address, only_by_others

MAX_ADDRESSES = 16
"""At most this many addresses of one peer are tried."""

_CIRCUIT = "/p2p-circuit"
_TCP_MADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([0-9A-Za-z:._-]{1,253})/tcp/([0-9]{1,5})/?")
_LINK_LOCAL_V6 = ipaddress.ip_network("fe80::/10")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to dial: a host over TCP or, with ``relay``, the relay (by its peer id) that is there."""

    maddr: str
    kind: str
    host: str
    port: int
    relay: str = ""


def targets_of(peer_id: str, maddrs: Iterable[str]) -> list[Target]:
    """What can be dialled, relays last. Raises PeerUnreachableError if there is nothing. Addresses may come
    from strangers: one that cannot be read is passed over."""
    found = {maddr: _target_of(peer_id, maddr) for maddr in maddrs}
    targets = [target for target in found.values() if target is not None]
    if not targets:
        raise only_by_others(peer_id, next(iter(found))) if found else no_address(peer_id)
    return sorted(targets, key=lambda target: bool(target.relay))[:MAX_ADDRESSES]


def by_others_alone(peer_id: str, maddrs: Iterable[str]) -> list[str]:
    """The addresses that ``targets_of`` passes over, such as those of QUIC."""
    return [maddr for maddr in dict.fromkeys(maddrs) if _target_of(peer_id, maddr) is None]


def _target_of(peer_id: str, maddr: str) -> Target | None:
    plain = maddr.removesuffix(f"/p2p/{peer_id}")
    where, _, relay = (
        plain.removesuffix(_CIRCUIT).rpartition("/p2p/") if _CIRCUIT in plain else (plain, "", "")
    )
    try:
        return Target(maddr, where.split("/")[1:2][0], *parse_tcp_maddr(where), relay)
    except (UsageError, IndexError):
        return None


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
            f"{maddr[:200]!r} is not an address of plain TCP",
            hint="Use /ip4/192.0.2.1/tcp/31330, for example.",
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

    try:
        interfaces = psutil.net_if_addrs()
    except OSError as error:
        raise OpenFilesError from error
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    found = {
        ipaddress.ip_address(address.address.partition("%")[0])
        for addresses in interfaces.values()
        for address in addresses
        if address.family == family
    }
    usable = [each for each in found if each.version == 4 or each not in _LINK_LOCAL_V6]
    return sorted(usable, key=lambda each: (each.is_loopback, each.packed))
