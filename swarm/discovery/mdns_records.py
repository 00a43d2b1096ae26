"""What libp2p's mDNS says of a peer, and under which name: pure, without any network.

A swarm is a private network in the words of the specification, so its peers are found under
``_p2p-X._udp.local`` and not among all libp2p peers of the LAN: X is 32 hexadecimal digits made of the
swarm's tag. A peer's addresses are the strings ``dnsaddr=/ip4/…/tcp/…/p2p/PEER`` of its TXT record.
Specification: https://github.com/libp2p/specs/blob/master/discovery/mdns.md
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..identity import is_peer_id
from ..transport.addresses import PeerAddress, parse_socket_maddr
from .local_networks import is_lan, is_near

MAX_STRINGS = 32
"""At most this many strings of a TXT record are read."""
MAX_MADDRS = 8
"""At most this many addresses of one peer are used."""
PEER_NAME_CHARS = 32

_KEY = b"dnsaddr="


@dataclass(frozen=True, slots=True)
class LanPeer:
    """A peer that says that it listens on this network. ``maddrs``: without /p2p/."""

    peer_id: str
    maddrs: tuple[str, ...]


def service_type(tag: str) -> str:
    """The DNS-SD name of the swarm with this tag; "" is the unnamed one."""
    fingerprint = hashlib.sha256(b"swarm-node mdns 1\n" + tag.encode()).digest()[:16]
    return f"_p2p-{fingerprint.hex()}._udp.local."


def peer_name() -> str:
    """A fresh random name for a process, as the specification wants it."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(PEER_NAME_CHARS))


def txt_record(peer_id: str, maddrs: Sequence[str]) -> bytes:
    """The TXT record's data: strings of at most 255 bytes, each after its length."""
    strings = [_KEY + f"{maddr}/p2p/{peer_id}".encode() for maddr in maddrs[:MAX_MADDRS]]
    return b"".join(bytes([len(string)]) + string for string in strings if len(string) < 256)


def read_txt(records: Iterable[bytes], *, loopback: bool = False, own: Sequence[str] = ()) -> LanPeer | None:
    """The peer that TXT records of one name speak of; None if of none that could be dialled on a LAN.

    They may come from every machine on the network. Only addresses of private networks are taken, so that
    they cannot make us dial elsewhere. ``loopback``: those of this machine too; ``own``: and those of an IPv6
    link of these of ours.
    """
    peers: dict[str, list[str]] = {}
    for string in _strings(records):
        if not string.startswith(_KEY):
            continue
        try:
            address = PeerAddress.parse(string[len(_KEY) :].decode("ascii"))
        except (UsageError, UnicodeDecodeError):
            continue
        parsed = parse_socket_maddr(address.maddr)
        if parsed is None or parsed.kind != "tcp" or parsed.rest or not parsed.port:
            continue
        host = str(parsed.host)
        if is_lan(host) or is_near(host, own) or (loopback and parsed.host.is_loopback):
            peers.setdefault(address.peer_id, []).append(address.maddr)
    if len(peers) != 1:
        return None
    peer_id, maddrs = next(iter(peers.items()))
    if not is_peer_id(peer_id):
        return None
    return LanPeer(peer_id, tuple(dict.fromkeys(maddrs))[:MAX_MADDRS])


def _strings(records: Iterable[bytes]) -> Iterable[bytes]:
    left = MAX_STRINGS
    for record in records:
        place = 0
        while place < len(record) and left:
            size = record[place]
            yield record[place + 1 : place + 1 + size]
            place, left = place + 1 + size, left - 1
