"""Where an HTTP server listens. Needs nothing heavy: an address that cannot be had is told at once."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from ...swarm.discovery.local_networks import fours_apart, lan_addresses
from ...swarm.errors import ListenError
from ...swarm.transport.addresses import bare_host

Listener = socket.socket
"""A socket that is bound, and whose connections come once a server takes it over."""


def is_local(listener: Listener) -> bool:
    """Whether only this computer can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].split("%")[0]).is_loopback


def open_host(host: str) -> str:
    """How a URL names ``host``, an address that a server listens at. Every address is none to open: in its
    place one of this computer that others reach, if it has one."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        own = [each for each in (*lan_addresses(), *fours_apart()) if address.version == 6 or ":" not in each]
        fours = [each for each in own if ":" not in each]
        host = next(iter(fours or own), "127.0.0.1" if address.version == 4 else "::1")
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> Listener:
    """Bound there (0: any free port). Raises ListenError."""
    bare = bare_host(host)
    try:
        found: Any = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ListenError:
    what = f"cannot listen at {host} port {port}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            what, hint="Give another --port, or end what listens there; port 0 takes a free one."
        )
    return ListenError(
        what,
        hint="Give an address of this machine as --host (127.0.0.1, or 0.0.0.0 for all), or another --port; "
        "port 0 takes a free one.",
    )
