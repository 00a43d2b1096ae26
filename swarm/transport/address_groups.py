"""Which addresses count as one owner's: identities cost nothing, networks cost money.

A group is the smallest network that is usually rented as a whole: a /24 of IPv4, a /48 of IPv6. A private or
loopback address stands for one machine: on a LAN each host is its own group. An address through a relay
belongs to the relay's group, since nothing more can be seen of the peer behind it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from .addresses import parse_socket_maddr

IPV4_PREFIX = 24
"""Bits of an IPv4 network that counts as one group: the smallest that is routed by itself."""
IPV6_PREFIX = 48
"""Bits of an IPv6 network that counts as one group: what a provider gives to one customer."""
UNKNOWN = ""
"""The group of an address that is not known or has no IP address: all of those together are one group."""

_RELAYED = "/p2p-circuit"

T = TypeVar("T")


@lru_cache(maxsize=4096)
def address_group(maddr: str) -> str:
    """The group of a multiaddress, such as ``203.0.113.0/24``; UNKNOWN if it names no IP address."""
    before_relay = maddr.partition(_RELAYED)[0]
    plain = before_relay.partition("/p2p/")[0].partition("/ipfs/")[0]
    parsed = parse_socket_maddr(plain)
    return UNKNOWN if parsed is None else host_group(parsed.host)


def host_group(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The group of an IP address."""
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    if host.is_loopback:
        return "loopback"
    if not host.is_global:
        return str(host)
    prefix = IPV4_PREFIX if host.version == 4 else IPV6_PREFIX
    return str(ipaddress.ip_network((host, prefix), strict=False))


def groups_of(maddrs: Iterable[str]) -> frozenset[str]:
    """The groups of several addresses of one peer, without UNKNOWN."""
    return frozenset(map(address_group, maddrs)) - {UNKNOWN}


def networks(maddrs: Iterable[str]) -> int:
    """The least number of networks from which these addresses answered. An owner of one network gets 1, with
    any number of identities.

    So the two families of IP are not added up, all addresses that are not global count as one place (a
    machine of a LAN takes as many of these as it likes, and may have a global one as well), and what answers
    through a relay adds nothing, since its network is not seen. 0 for no address.
    """
    seen: dict[int, set[str]] = {4: set(), 6: set()}
    answered = 0
    for maddr in maddrs:
        answered = 1
        group = UNKNOWN if _RELAYED in maddr else address_group(maddr)
        if "/" in group:  # a network, so global
            seen[6 if ":" in group else 4].add(group)
    return max(answered, *map(len, seen.values()))


def oldest_of_the_largest(groups: Mapping[T, str]) -> T:
    """The oldest thing of the largest group. ``groups``: things, the oldest first, and their address
    groups."""
    crowd = Counter(groups.values()).most_common(1)[0][0]
    return next(thing for thing, group in groups.items() if group == crowd)
