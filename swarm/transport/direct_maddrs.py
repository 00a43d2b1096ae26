"""Addresses of a peer's own listener, beside that of its daemon: ``/ip4/192.0.2.1/tcp/31331/direct``.

Two hosts under one PeerID confuse go-libp2p, so it must never dial such an address. The mark at the end sees
to that: p2pd cannot read it, and our own transport dials no other where a daemon runs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PORT_ABOVE = 1000
"""The listener's port is this far above the daemon's, if that was chosen and if it is free, so that a
firewall can be told. The port right above it may be that of another node."""

_MARK = "/direct"


class Way(StrEnum):
    """How bytes go to a peer and back."""

    DIRECT = "direct"
    """From process to process, over TCP."""
    DAEMON = "daemon"
    """Through the peer's p2pd."""
    RELAY = "relay"
    """Through daemons, and a relay between them."""


@dataclass(frozen=True, slots=True)
class DirectOptions:
    """``port``: None takes PORT_ABOVE, or any that is free. ``announce``: addresses to tell others instead of
    those that were found."""

    port: int | None = None
    announce: tuple[str, ...] = ()


def mark_direct(maddr: str) -> str:
    """The address of a listener of TCP, marked as one that is dialled directly."""
    return maddr.partition("/p2p/")[0] + _MARK


def is_direct(maddr: str) -> bool:
    return maddr.endswith(_MARK)


def without_mark(maddr: str) -> str:
    return maddr.removesuffix(_MARK)


def way_of(remote_maddr: str) -> Way:
    """Which way a stream takes, by its ``remote_maddr``."""
    if is_direct(remote_maddr):
        return Way.DIRECT
    return Way.RELAY if "/p2p-circuit" in remote_maddr else Way.DAEMON
