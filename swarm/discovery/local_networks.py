"""Which networks of this computer are private, and which addresses belong to them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence

from ..transport.addresses import parse_socket_maddr

_PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7"))
)


LINK_BITS = 64
"""The first 64 bits of an IPv6 address are those of its link (RFC 4291)."""


def is_lan(address: str) -> bool:
    """Whether an IP address is one of a private network, dialled without naming an interface."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in _PRIVATE)


def is_near(address: str, own: Sequence[str]) -> bool:
    """Whether an IPv6 address is in the same /64 as one of ``own``. A router gives out public addresses of
    its link, which cannot be told from others in another way."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return False
    links = (ipaddress.IPv6Network((each, LINK_BITS), strict=False) for each in own if ":" in each)
    return parsed.is_global and any(parsed in link for link in links)


def lan_addresses() -> list[str]:
    """This computer's own addresses on private networks, of interfaces that are up and take multicast, in
    order. A network is private by an address of ours there; or it has no IPv4, which says nothing else."""
    found: set[str] = set()
    for fours, sixes in _interfaces():
        private = set(filter(is_lan, fours | sixes))
        if private or not fours:
            found.update(private, (each for each in sixes if _is_public(each)))
    return sorted(found, key=lambda text: (":" in text, not is_lan(text), text))


def fours_apart() -> list[str]:
    """This computer's IPv4 addresses on networks that are not private, in order: public ones, and those of
    carriers (100.64.0.0/10). mDNS does not speak there."""
    fours = {four for each, _ in _interfaces() for four in each}
    return sorted(four for four in fours if not is_lan(four) and not ipaddress.ip_address(four).is_loopback)


def _interfaces() -> Iterator[tuple[set[str], set[str]]]:
    """The addresses of IPv4 and of IPv6 of each interface that is up and takes multicast."""
    import psutil  # here: most clients are told an address

    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        flags = getattr(state, "flags", "")  # empty where the system does not tell
        if state is None or not state.isup or (flags and "multicast" not in flags.split(",")):
            continue
        yield (
            {each.address for each in addresses if each.family == socket.AF_INET},
            {each.address for each in addresses if each.family == socket.AF_INET6},
        )


def _is_public(address: str) -> bool:
    return "%" not in address and ipaddress.ip_address(address).is_global


def dialable_maddrs(listen_maddrs: tuple[str, ...], addresses: list[str]) -> list[str]:
    """Where a process that listens at ``listen_maddrs`` can be dialled from the networks of ``addresses``; a
    host of zeros is all of them."""
    found = []
    for maddr in listen_maddrs:
        parsed = parse_socket_maddr(maddr)
        if parsed is None or parsed.kind != "tcp" or parsed.rest:
            continue
        for address in addresses:
            same_kind = (":" in address) == (parsed.host.version == 6)
            if same_kind and (parsed.host.is_unspecified or str(parsed.host) == address):
                found.append(f"/ip{parsed.host.version}/{address}/tcp/{parsed.port}")
    return list(dict.fromkeys(found))
