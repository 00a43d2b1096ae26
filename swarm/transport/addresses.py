"""Multiaddresses as people write them: where to listen, and which peer to dial.

    /ip4/192.0.2.1/tcp/31330                      where to listen
    /ip4/192.0.2.1/tcp/31330/p2p/12D3KooW…        where to dial which peer
    …/p2p/RELAY/p2p-circuit/p2p/12D3KooW…         which peer to dial through a relay

Specification: https://github.com/multiformats/multiaddr
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from ..errors import ListenError, UsageError

EVERY_INTERFACE = "any"
"""A host to listen on: each address of this machine, of IPv4 and of IPv6."""

_EXAMPLE = (
    "An address looks like /ip4/192.0.2.1/tcp/31330/p2p/12D3KooW…, as `swarm-node bootstrap` prints it."
)
_FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
_ALL_OF = {"ip4": "0.0.0.0", "ip6": "::"}
_WHERE_TO_LISTEN = (
    f"{EVERY_INTERFACE}, 127.0.0.1 for this machine only, 0.0.0.0 or :: for all of IPv4 or of IPv6, "
    "or an address of this machine"
)
_PEER_MADDR = re.compile(r"(/[!-~]+)/(?:p2p|ipfs)/([1-9A-HJ-NP-Za-km-z]{40,128})/?")
_DIRECT = re.compile(r"/tcp/\d+(?:/p2p/[^/]+)?/direct(?![^/])")
_SOCKET_MADDR = re.compile(r"/(ip4|ip6)/([0-9A-Fa-f.:]+)/(tcp|udp)/(\d{1,5})(/.*)?")


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where to dial (``maddr``, without the final /p2p part), and which peer."""

    peer_id: str
    maddr: str

    def __str__(self) -> str:
        return f"{self.maddr}/p2p/{self.peer_id}"

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Raises UsageError with an example for anything that is not a dialable address of a peer."""
        if _DIRECT.search(text):
            raise UsageError(
                f"address {text[:200]!r} is of a node's direct listener, through which nobody joins a swarm",
                hint="Give the node's ordinary address, which it prints first (`maddrs` with --json).",
            )
        match = _PEER_MADDR.fullmatch(text.strip())
        if match is None:
            problem = "names no peer (/p2p/… is missing)" if text.startswith("/") else "is not a multiaddress"
            raise UsageError(f"address {text[:200]!r} {problem}", hint=_EXAMPLE)
        return cls(peer_id=match[2], maddr=match[1])


_LINK_LOCAL_V6 = ipaddress.ip_network("fe80::/10")


def bare_host(host: str) -> str:
    """Without the brackets that stand around an IPv6 address in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def listen_maddrs(host: str, port: int) -> tuple[str, ...]:
    """``("127.0.0.1", 0)`` -> ``/ip4/127.0.0.1/tcp/0``; an address for each kind that this machine has for
    EVERY_INTERFACE. Raises UsageError if the host is not an IP address."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not between 0 and 65535", hint="0 picks a free one.")
    if host == EVERY_INTERFACE:
        kinds = [kind for kind, family in _FAMILIES.items() if _has(family)] or ["ip4"]
        return tuple(f"/{kind}/{_ALL_OF[kind]}/tcp/{port}" for kind in kinds)
    bare = bare_host(host)
    try:
        address = ipaddress.ip_address("127.0.0.1" if bare == "localhost" else bare)
    except ValueError:
        raise UsageError(
            f"cannot listen on {host[:200]!r}: not an IP address", hint=f"Use {_WHERE_TO_LISTEN}."
        ) from None
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_multicast or (address.version == 6 and address in _LINK_LOCAL_V6):
        kind = "multicast" if address.is_multicast else "link-local"
        raise UsageError(
            f"cannot listen on {host[:200]!r}: others cannot dial a {kind} address",
            hint=f"Use {_WHERE_TO_LISTEN}.",
        )
    return (f"/ip{address.version}/{address}/tcp/{port}",)


def _has(family: socket.AddressFamily) -> bool:
    """Whether this machine has such addresses at all."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((_ALL_OF["ip4" if family == socket.AF_INET else "ip6"], 0))
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class SocketMaddr:
    """An address with an IP address and a port; ``rest``: what follows, such as ``/quic-v1``."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    kind: str
    port: int
    rest: str


@lru_cache(maxsize=1024)  # the same few are read again and again
def parse_socket_maddr(maddr: str) -> SocketMaddr | None:
    """``maddr`` in parts; None if it has another form."""
    match = _SOCKET_MADDR.fullmatch(maddr)
    try:
        host = None if match is None else ipaddress.ip_address(match[2])
    except ValueError:
        return None
    if match is None or host is None or match[1] != f"ip{host.version}" or int(match[4]) > 65535:
        return None
    return SocketMaddr(host, match[3], int(match[4]), match[5] or "")


def is_loopback(maddr: str) -> bool:
    parsed = parse_socket_maddr(maddr)
    return parsed is not None and parsed.host.is_loopback


def all_loopback(maddrs: Sequence[str]) -> bool:
    """True if no other machine can reach any of these."""
    return all(map(is_loopback, maddrs))


def no_own_address(host: str) -> ListenError:
    """The error of a process that listens where this machine has no address that others could dial."""
    where = "this machine" if host == EVERY_INTERFACE else f"host {host}"
    return ListenError(
        f"nobody could reach this node: {where} has no address to tell others",
        hint="Connect it to a network, or name the addresses with --announce.",
    )


def listenable(host_maddrs: Sequence[str]) -> tuple[str, ...]:
    """The addresses, with a free port in place of 0, which a daemon keeps when it is started again; the same
    one for all, if it is free for all.

    Raises ListenError if a port is taken or an address is not ours, UsageError if it is not an address. p2pd
    shares ports (SO_REUSEPORT): two daemons on one port both start, and dials then fail at random. So a plain
    socket tries the port first.
    """
    found: list[str] = []
    chosen = 0
    for maddr in host_maddrs:
        parsed = parse_socket_maddr(maddr)
        if parsed is None:
            raise UsageError(
                f"cannot listen on {maddr[:200]!r}", hint="Use /ip4/0.0.0.0/tcp/31330, for example."
            )
        try:
            port = _try_port(parsed, chosen if not parsed.port and _is_free(parsed, chosen) else parsed.port)
        except OSError as error:
            raise listen_error(str(parsed.host), parsed.port, error) from error
        chosen = chosen or port
        found.append(f"/ip{parsed.host.version}/{parsed.host}/{parsed.kind}/{port}{parsed.rest}")
    return tuple(found)


def held_ports(maddrs: Sequence[str]) -> list[socket.socket]:
    """Sockets that keep the TCP ports of these addresses for a daemon of this process, which shares them: no
    other process that asks ``listenable`` gets one before the daemon listens, or while it starts again.

    The caller closes them. What cannot be held is left out: then the daemon meets whoever has it.
    """
    held: list[socket.socket] = []
    for at in filter(None, map(parse_socket_maddr, maddrs)):
        if at.kind != "tcp" or not hasattr(socket, "SO_REUSEPORT"):
            continue  # a UDP socket would get a share of the datagrams
        holder = socket.socket(_FAMILIES[f"ip{at.host.version}"], socket.SOCK_STREAM)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if at.host.version == 6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            holder.bind((str(at.host), at.port))
        except OSError:
            holder.close()
        else:
            held.append(holder)
    return held


def _is_free(where: SocketMaddr, port: int) -> bool:
    with suppress(OSError):
        return bool(_try_port(where, port))
    return False


def _try_port(where: SocketMaddr, port: int) -> int:
    """A port that is free there: ``port``, or any for 0. Raises OSError."""
    family = socket.AF_INET if where.host.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if where.kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as trial:
        if kind == socket.SOCK_STREAM:
            # Lets the port of a process that has just ended be used again; a live listener still refuses.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        trial.bind((str(where.host), port))
        return int(trial.getsockname()[1])


def listen_error(host: str, port: int, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"port {port} on {host} is in use by another process",
            hint="Choose another port, or 0 for any free one.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(
            f"cannot listen on {host}: it is not an address of this machine", hint=f"Use {_WHERE_TO_LISTEN}."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ListenError(f"not allowed to listen on port {port}", hint="Choose a port from 1024 up.")
    return ListenError(f"cannot listen on {host} port {port}: {error.strerror or error}")
