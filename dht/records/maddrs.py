"""Which multiaddresses may stand in an announcement: something a peer can dial, and nothing else.

    host/port[/upgrade][/p2p/RELAY/p2p-circuit][/p2p/OWNER]

host: ip4, ip6, dns, dns4, dns6. port: tcp or udp. upgrade: ws, wss, tls or tls/ws over tcp; quic or quic-v1
over udp. Specification: https://multiformats.io/multiaddr/
"""

from __future__ import annotations

import ipaddress
import re

MAX_MADDR_CHARS = 320
"""Characters of an address at most. A full DNS name (253), a port, a relay and the owner would not fit; every
address seen in practice does."""

_UPGRADES = {"tcp": ((), ("ws",), ("wss",), ("tls",), ("tls", "ws")), "udp": (("quic",), ("quic-v1",))}
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_-]{1,63})*\.?"
)
_ANY_PEER_ID = re.compile(
    r"(12D3KooW|16Uiu2HA|Qm)[1-9A-HJ-NP-Za-km-z]{40,50}"
)  # a relay's key may be of any kind
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def is_dialable(maddr: str, owner: str) -> bool:
    """Whether ``maddr`` has the form above and, where it names its owner, names ``owner`` (a PeerID)."""
    if not 0 < len(maddr) <= MAX_MADDR_CHARS or not maddr.isascii() or not maddr.startswith("/"):
        return False
    parts = maddr.split("/")[1:]
    if (
        len(parts) < 4
        or not _is_host(parts[0], parts[1])
        or parts[2] not in _UPGRADES
        or not _is_port(parts[3])
    ):
        return False
    transport, rest = parts[2], parts[4:]
    if rest[-2:-1] == ["p2p"]:
        if rest[-1] != owner:
            return False
        rest = rest[:-2]
    if rest[-1:] == ["p2p-circuit"]:
        if len(rest) < 3 or rest[-3] != "p2p" or not _ANY_PEER_ID.fullmatch(rest[-2]) or rest[-2] == owner:
            return False
        rest = rest[:-3]
    return tuple(rest) in _UPGRADES[transport]


def _is_host(kind: str, host: str) -> bool:
    if kind in ("dns", "dns4", "dns6"):
        return _DNS_NAME.fullmatch(host) is not None
    if kind not in ("ip4", "ip6"):
        return False
    try:
        address = ipaddress.IPv4Address(host) if kind == "ip4" else ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified)


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65535
