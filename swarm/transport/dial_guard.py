"""Where this process dials when a stranger names the address: few places, and none that it should not reach.

The signer of a record chooses its addresses, and identities cost nothing. So an address from a record may
belong to a host that has nothing to do with the swarm, or lie in a network that its author cannot reach. A
node dials public addresses, and those of its own kind of network only where it has no public address: a
public node knows no private network that strangers may have it look into. What does not answer is left alone
for longer each time, and a host or an address group is not tried more than a few times a minute.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache

from ..fairness.recent import RecentEvents, RecentMap
from ..peer_health import PeerHealth
from .address_groups import host_group
from .addresses import SocketMaddr, parse_socket_maddr
from .direct_maddrs import is_direct

MAX_ADDRESSES = 6
"""At most this many addresses of one peer are tried: TCP and QUIC on a few networks."""
MAX_DIRECT = 3
"""And this many direct ones: these come first, and must not take the place of all others."""
MAX_HOSTS = 3
"""At most this many hosts of one peer are tried: a public address of each kind, and one on the LAN."""
FAILURES_PER_HOST = 30
FAILURES_PER_GROUP = 60
"""One host, or one address group, gets at most this many dials a minute that fail or are under way."""
CLIENT_FAILURES_PER_HOST = 512
CLIENT_FAILURES_PER_GROUP = 1024
"""The same for a client, which dials for itself. It is as many as one key of the directory holds, so that a
peer which writes a host into many records cannot keep a client from the real peer there."""
FAILURES_NEARBY = 120
"""The same for a host or group that is not public: on one machine many nodes may start and end in a
minute."""
MINUTE_S = 60.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
"""A place that did not answer is left alone for a time that doubles with each failure, up to this many
seconds."""
MAX_PLACES = 4096
"""At most this many places, hosts and groups are remembered."""

SPOKEN = ("", "/quic", "/quic-v1", "/direct")
"""A node dials addresses that go on like this after TCP or UDP. WebSockets are left out: a stranger's server
would get HTTP requests from us."""

_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_CARRIER = ipaddress.ip_network("100.64.0.0/10")


class Reach(StrEnum):
    """From where an address can be reached. OTHER: from no place that we know, such as addresses for
    documentation."""

    PUBLIC = "public"
    PRIVATE = "private"
    CARRIER = "carrier"
    LINK = "link"
    LOOPBACK = "loopback"
    OTHER = "other"


@lru_cache(maxsize=1024)
def reach_of(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Reach:
    """IPv4 addresses inside of IPv6 ones count as themselves, or as OTHER where a gateway translates them."""
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return reach_of(host.ipv4_mapped)
        if any(host in network for network in _TRANSLATED):
            return Reach.OTHER
    if host.is_loopback:
        return Reach.LOOPBACK
    if host.is_link_local:
        return Reach.LINK
    if any(host in network for network in _PRIVATE if network.version == host.version):
        return Reach.PRIVATE
    if host.version == 4 and host in _CARRIER:
        return Reach.CARRIER
    return Reach.PUBLIC if host.is_global and not host.is_multicast else Reach.OTHER


def socket_of(maddr: str) -> SocketMaddr | None:
    """The socket that a dial to ``maddr`` goes to: of an address through a relay, the relay's. None for a
    name, and for what has another form."""
    return parse_socket_maddr(maddr.partition("/p2p/")[0].partition("/ipfs/")[0])


def reaches(own: Iterable[str]) -> frozenset[Reach]:
    """What a node that announces these addresses dials for strangers.

    Public addresses always; private ones of its own kinds if it has no public address; loopback if it has
    nothing else. A node behind a relay has none of its own, and dials public ones.
    """
    direct = [socket_of(maddr) for maddr in own if "/p2p-circuit" not in maddr]
    kinds = {reach_of(socket.host) for socket in direct if socket is not None} - {Reach.OTHER}
    if Reach.PUBLIC in kinds:
        return frozenset({Reach.PUBLIC})
    if kinds != {Reach.LOOPBACK}:
        kinds.discard(Reach.LOOPBACK)
    return frozenset(kinds | {Reach.PUBLIC})


def choose(maddrs: Iterable[str], allowed: frozenset[Reach]) -> list[str]:
    """Of a peer's addresses those that are dialled, as a node does it: at ``allowed`` places, MAX_ADDRESSES
    on MAX_HOSTS. Look names up before the call: their owner may change the answer later."""
    chosen: list[str] = []
    hosts: set[object] = set()
    for maddr in dict.fromkeys(maddrs):
        socket = socket_of(maddr)
        if socket is None or socket.rest not in SPOKEN or reach_of(socket.host) not in allowed:
            continue
        if len(hosts | {socket.host}) <= MAX_HOSTS:
            chosen.append(maddr)
            hosts.add(socket.host)
    return _first(chosen)


def _first(maddrs: Sequence[str]) -> list[str]:
    """MAX_DIRECT of the direct ones, and of all together MAX_ADDRESSES."""
    direct = list(filter(is_direct, maddrs))[:MAX_DIRECT]
    others = [maddr for maddr in maddrs if not is_direct(maddr)]
    return [*direct, *others][:MAX_ADDRESSES]


def for_client(maddrs: Iterable[str]) -> list[str]:
    """The same for a process that dials for itself. It may dial its own networks, but a peer that also has
    another address cannot send it to its own machine."""
    known = list(dict.fromkeys(maddrs))
    elsewhere = [
        maddr
        for maddr in known
        if (at := socket_of(maddr)) is None or reach_of(at.host) is not Reach.LOOPBACK
    ]
    return _first(elsewhere or known)


def same_host(maddrs: Iterable[str], remote_maddr: str) -> tuple[str, ...]:
    """Those of a peer's addresses that are at the host which it speaks from; the others are not signed."""
    here = socket_of(remote_maddr)
    return tuple(
        maddr
        for maddr in dict.fromkeys(maddrs)
        if here is not None and (there := socket_of(maddr)) is not None and there.host == here.host
    )[:MAX_ADDRESSES]


def public_of(maddrs: Iterable[str]) -> list[str]:
    """Those of the addresses that are of the Internet at large."""
    sockets = ((maddr, socket_of(maddr)) for maddr in maddrs)
    return [maddr for maddr, at in sockets if at is not None and reach_of(at.host) is Reach.PUBLIC]


class DialGuard:
    """Spares places that do not answer. Pure: ``now`` in seconds.

    A record costs no other peer anything: a place is left alone only for the peer that was not found there. A
    peer that was found at its address is dialled there again, even if strangers name it falsely.
    """

    def __init__(self, *, for_client: bool = False) -> None:
        """``for_client``: it may try more often, and leaves places alone by rules of its own."""
        self._for_client = for_client
        self._silent = PeerHealth(
            first_ban_s=FIRST_PAUSE_S,
            longest_ban_s=LONGEST_PAUSE_S,
            forget_after_s=2 * LONGEST_PAUSE_S,
            max_peers=MAX_PLACES,
        )
        self._met: RecentMap[str, None] = RecentMap(MAX_PLACES)  # peers and places
        self._hosts = RecentEvents(MINUTE_S, MAX_PLACES)
        self._groups = RecentEvents(MINUTE_S, MAX_PLACES)

    def begin(self, peer_id: str, maddrs: Sequence[str], now: float) -> list[str]:
        """Those of a peer's addresses that may be dialled now. Each counts for a minute, unless the peer is
        or was found there."""
        free = []
        for maddr in maddrs:
            place, host, group = _counted(peer_id, maddr)
            if place not in self._met:
                per_host, per_group = self._limits(maddr)
                if (
                    self._silent.is_banned(place, now)
                    or self._hosts.count(host, now) >= per_host
                    or self._groups.count(group, now) >= per_group
                ):
                    continue
                self._hosts.add(host, now)
                self._groups.add(group, now)
            free.append(maddr)
        return free

    def met(self, peer_id: str, maddrs: Sequence[str], remote_maddr: str) -> None:
        """The peer answered from ``remote_maddr``: of the dialled places, only this one counts as
        answered."""
        there = socket_of(remote_maddr)
        for maddr in maddrs:
            place, host, group = _counted(peer_id, maddr)
            socket = socket_of(maddr)
            if there is None or socket is None or (socket.host, socket.port) != (there.host, there.port):
                continue
            self._silent.succeeded(place)
            if place not in self._met:
                self._hosts.take_back(host)
                self._groups.take_back(group)
            self._met[place] = None

    def failed(self, peer_id: str, maddrs: Sequence[str], now: float) -> None:
        """The peer is at none of them."""
        for maddr in maddrs:
            place = _counted(peer_id, maddr)[0]
            if not self._for_client:
                self._silent.failed(place, now)
            self._met.pop(place, None)

    def _limits(self, maddr: str) -> tuple[int, int]:
        """How many failed dials a minute its host, and its address group, may get."""
        if not public_of([maddr]):
            return FAILURES_NEARBY, FAILURES_NEARBY
        if self._for_client:
            return CLIENT_FAILURES_PER_HOST, CLIENT_FAILURES_PER_GROUP
        return FAILURES_PER_HOST, FAILURES_PER_GROUP

    def not_dialled(self, peer_id: str, maddrs: Sequence[str]) -> None:
        """No peer was dialled after all: our own end failed."""
        for maddr in maddrs:
            place, host, group = _counted(peer_id, maddr)
            if place not in self._met:
                self._hosts.take_back(host)
                self._groups.take_back(group)


def _counted(peer_id: str, maddr: str) -> tuple[str, str, str]:
    """Peer and place, host, and address group."""
    socket = socket_of(maddr)
    if socket is None:
        return f"{peer_id} {maddr}", maddr, maddr
    return f"{peer_id} {socket.host} {socket.kind} {socket.port}", str(socket.host), host_group(socket.host)
