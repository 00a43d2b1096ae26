"""Multiaddresses as people write them: who listens where.

    /ip4/192.0.2.1/tcp/31330                      where to listen
    /ip4/192.0.2.1/tcp/31330/p2p/12D3KooW…        where to dial whom
    …/p2p/RELAY/p2p-circuit/p2p/12D3KooW…         whom to dial through a relay

Specification: https://github.com/multiformats/multiaddr
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ListenError, UsageError

_EXAMPLE = (
    "An address looks like /ip4/192.0.2.1/tcp/31330/p2p/12D3KooW…, as `swarm-node bootstrap` prints it."
)
_PEER_MADDR = re.compile(r"(/[!-~]+)/(?:p2p|ipfs)/([1-9A-HJ-NP-Za-km-z]{40,128})/?")
_SOCKET_MADDR = re.compile(r"/(ip4|ip6)/([0-9A-Fa-f.:]+)/(tcp|udp)/(\d{1,5})(/.*)?")


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where to dial (``maddr``, without the final /p2p part) and whom."""

    peer_id: str
    maddr: str

    def __str__(self) -> str:
        return f"{self.maddr}/p2p/{self.peer_id}"

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Raises UsageError with an example for anything that is not a dialable address of a peer."""
        match = _PEER_MADDR.fullmatch(text.strip())
        if match is None:
            problem = "names no peer (/p2p/… is missing)" if text.startswith("/") else "is not a multiaddress"
            raise UsageError(f"address {text[:200]!r} {problem}", hint=_EXAMPLE)
        return cls(peer_id=match[2], maddr=match[1])


def listen_maddr(host: str, port: int) -> str:
    """``("127.0.0.1", 0)`` -> ``/ip4/127.0.0.1/tcp/0``. Raises UsageError if the host is no IP address."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not between 0 and 65535", hint="0 picks a free one.")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UsageError(
            f"cannot listen on {host[:200]!r}: not an IP address",
            hint="Use 127.0.0.1 for this machine only, 0.0.0.0 for every network, or one of its addresses.",
        ) from None
    return f"/ip{address.version}/{address}/tcp/{port}"


@dataclass(frozen=True, slots=True)
class SocketMaddr:
    """An address with an IP address and a port; ``rest``: what follows, such as ``/quic-v1``."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    kind: str
    port: int
    rest: str


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


def listenable(host_maddrs: Sequence[str]) -> tuple[str, ...]:
    """The addresses, with a free port in place of 0, which a daemon keeps when it is started again.

    Raises ListenError if a port is taken or an address is not ours, UsageError if it is none. p2pd shares
    ports (SO_REUSEPORT): two daemons on one port both start, and dials then fail at random. So a plain socket
    tries the port first.
    """
    found = []
    for maddr in host_maddrs:
        match = _SOCKET_MADDR.fullmatch(maddr)
        if match is None:
            raise UsageError(
                f"cannot listen on {maddr[:200]!r}", hint="Use /ip4/0.0.0.0/tcp/31330, for example."
            )
        try:
            host, port = ipaddress.ip_address(match[2]), int(match[4])
            listen_maddr(match[2], port)
        except ValueError:
            raise UsageError(f"cannot listen on {maddr[:200]!r}: {match[2]} is no IP address") from None
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if match[3] == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as trial:
            if kind == socket.SOCK_STREAM:
                # Lets the port of a process that has just ended be used again; a live listener still refuses.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                trial.bind((str(host), port))
            except OSError as error:
                raise listen_error(str(host), port, error) from error
            port = trial.getsockname()[1]
        found.append(f"/{match[1]}/{match[2]}/{match[3]}/{port}{match[5] or ''}")
    return tuple(found)


def listen_error(host: str, port: int, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"port {port} on {host} is in use by another process",
            hint="Choose another port, or 0 for any free one.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(
            f"cannot listen on {host}: it is not an address of this machine",
            hint="Use 127.0.0.1 for this machine only or 0.0.0.0 for every network.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ListenError(f"not allowed to listen on port {port}", hint="Choose a port from 1024 up.")
    return ListenError(f"cannot listen on {host} port {port}: {error.strerror or error}")
