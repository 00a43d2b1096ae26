"""libp2p's identify message: who a peer is, where it listens and what it speaks, in protobuf.

Specification: https://github.com/libp2p/specs/tree/master/identify
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from .protobuf import field, varint

IDENTIFY = "/ipfs/id/1.0.0"

_PUBLIC_KEY, _LISTEN, _PROTOCOL, _VERSION, _AGENT = 1, 2, 3, 5, 6  # field numbers
_IP4, _IP6, _TCP = 4, 41, 6  # multicodec codes
_MADDR = re.compile(r"/(ip4|ip6)/([0-9A-Fa-f.:]+)/tcp/([0-9]+)")


def identify_message(public_key: bytes, maddrs: Sequence[str], protocols: Sequence[str]) -> bytes:
    """The message with its length in front. ``public_key``: 32 bytes of Ed25519; ``maddrs`` of other kinds
    than ip/tcp are left out."""
    body = field(_PUBLIC_KEY, bytes.fromhex("08011220") + public_key)
    body += b"".join(field(_LISTEN, raw) for maddr in maddrs if (raw := _encode(maddr)))
    body += b"".join(field(_PROTOCOL, protocol.encode()) for protocol in protocols)
    body += field(_VERSION, b"ipfs/0.1.0") + field(_AGENT, b"swarm-node")
    return varint(len(body)) + body


def _encode(maddr: str) -> bytes:
    if (match := _MADDR.fullmatch(maddr)) is None:
        return b""
    kind, host = (_IP4, ipaddress.IPv4Address) if match[1] == "ip4" else (_IP6, ipaddress.IPv6Address)
    return bytes([kind]) + host(match[2]).packed + bytes([_TCP]) + int(match[3]).to_bytes(2)
