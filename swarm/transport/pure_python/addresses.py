"""Which of a peer's addresses a pure-Python peer can dial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UsageError
from ...tcp_addresses import parse_tcp_maddr
from ..dial_errors import no_address, only_by_others

MAX_ADDRESSES = 16
"""Addresses of one peer that are tried."""

_CIRCUIT = "/p2p-circuit"


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
    found, others = [], []
    for maddr in dict.fromkeys(maddrs):
        plain = maddr.removesuffix(f"/p2p/{peer_id}")
        where, _, relay = (
            plain.removesuffix(_CIRCUIT).rpartition("/p2p/") if _CIRCUIT in plain else (plain, "", "")
        )
        try:
            found.append(Target(maddr, where.split("/")[1:2][0], *parse_tcp_maddr(where), relay))
        except (UsageError, IndexError):
            others.append(maddr)
    if not found:
        raise only_by_others(peer_id, others[0]) if others else no_address(peer_id)
    return sorted(found, key=lambda target: bool(target.relay))[:MAX_ADDRESSES]
