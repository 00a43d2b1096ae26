"""What a client learned of the network: its own links, pairs of nodes it chained, pairs that must not be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ...swarm.fairness.recent import RecentMap
from ...swarm.peer_health import PeerHealth
from ...swarm.routing.edges import UNMEASURED_LINK, Edges, Link, Pair
from ...swarm.types import NodeInfo

NEWEST_WEIGHT = 0.3
"""A new round trip has this weight in a link's moving average."""
MOST_GROWTH = 4.0
"""A round trip counts as at most this many times the known one: a pause on one side is no distance."""
LEAST_RTT_S = 0.0005
"""Growth is counted from this many seconds: round trips below them are as good as none."""
BANDWIDTHS = 8
"""This many measured bandwidths are kept of a link. Mostly something else than the line slows a transfer, so
the upper quartile of them counts, which a single lucky one does not move."""
LEAST_TRANSFER = 64 * 1024
"""A transfer of this many bytes says something about a line's bandwidth. In a smaller one round trips and
schedulers count for more."""
MAX_LINKS = 4096
MAX_PAIRS = 4096
PAIR_S = 600.0
"""What a chain has shown of a pair counts more than announcements for this many seconds."""
LEAST_LINK_S = 0.0001
"""A link counts as at least this many seconds when the time of a chain is shared out over its links."""
FIRST_DISTRUST_S = 15.0
"""A pair that could not be chained goes through the client for this many seconds, doubled with each failure
in a row."""
LONGEST_DISTRUST_S = 900.0


@dataclass(slots=True)
class _Measured:
    rtt_s: float
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=BANDWIDTHS))

    def link(self) -> Link:
        if not self.rates:
            return Link(self.rtt_s, UNMEASURED_LINK.bytes_per_s)
        ordered = sorted(self.rates)
        return Link(self.rtt_s, ordered[(3 * (len(ordered) - 1) + 3) // 4])


def transfer_rate(payload_bytes: int, wire_s: float, rtt_s: float) -> float | None:
    """Bytes per second of a payload that took ``wire_s`` to a peer and back, alone on its line. None where it
    was too small, or too fast, to tell."""
    transfer_s = wire_s - rtt_s
    if payload_bytes < LEAST_TRANSFER or transfer_s < max(0.001, rtt_s / 10):
        return None
    return payload_bytes / transfer_s


class LinkTable:
    """Measurements by peer and by pair. Bounded: those not met for longest are forgotten. Has no clock."""

    def __init__(self) -> None:
        self._peers: RecentMap[str, _Measured] = RecentMap(MAX_LINKS)
        self._pairs: RecentMap[Pair, tuple[Link, float]] = RecentMap(MAX_PAIRS)  # and since when
        self._seen: RecentMap[Pair, tuple[Link, float]] = RecentMap(MAX_PAIRS)  # by this client's clock alone
        self._distrust = PeerHealth(first_ban_s=FIRST_DISTRUST_S, longest_ban_s=LONGEST_DISTRUST_S)

    def measured(self, peer_id: str, round_trip_s: float, bytes_per_s: float | None = None) -> None:
        """A round trip to a peer without the node's own work, and what a large payload got of the line."""
        round_trip_s = max(0.0, round_trip_s)
        known = self._peers.get(peer_id)
        if known is None:
            known = _Measured(round_trip_s)
        else:
            newest = min(round_trip_s, MOST_GROWTH * max(known.rtt_s, LEAST_RTT_S))
            known.rtt_s += NEWEST_WEIGHT * (newest - known.rtt_s)
        if bytes_per_s is not None and bytes_per_s > 0:
            known.rates.append(bytes_per_s)
        self._peers[peer_id] = known

    def edge_worked(self, a: str, b: str, rtt_s: float | None, now: float) -> None:
        """``a`` reaches ``b``, by its own measurement in ``rtt_s`` seconds there and back."""
        self._distrust.succeeded(_name(a, b))
        if rtt_s is not None and rtt_s >= 0:
            self._pairs[a, b] = (Link(rtt_s, self._estimated_rate(a, b)), now)

    def chain_measured(
        self, peer_ids: Sequence[str], wire_s: float, payload_bytes: int, edges: Edges, now: float
    ) -> None:
        """What steps of ``payload_bytes`` took on all links of a chain together, from the client and back.

        Only the sum is known. What the client's own links do not account for is shared out over the links
        between the hops as ``edges`` expected it of them. From then on it counts more than what nodes say.
        """
        pairs = list(pairwise(peer_ids))
        if not pairs:
            return
        own_s = edges.one_way_s("", peer_ids[0], payload_bytes)
        own_s += edges.one_way_s(peer_ids[-1], "", payload_bytes)
        expected = [max(LEAST_LINK_S, edges.one_way_s(a, b, payload_bytes)) for a, b in pairs]
        scale = max(0.0, wire_s - own_s) / sum(expected)
        for pair, link_s in zip(pairs, expected, strict=True):
            rate = edges.between(*pair, payload_bytes).bytes_per_s
            rtt_s = 2 * max(0.0, scale * link_s - payload_bytes / rate)
            self._seen[pair] = (Link(rtt_s, rate), now)

    def edge_failed(self, a: str, b: str, now: float) -> None:
        """Do not chain ``a`` to ``b`` for some time, longer with each failure in a row."""
        if not self._distrust.is_banned(_name(a, b), now):  # sessions lose one edge together: one failure
            self._distrust.failed(_name(a, b), now)
        self._pairs.pop((a, b), None)
        self._seen.pop((a, b), None)

    def may_chain(self, a: str, b: str, now: float) -> bool:
        return not self._distrust.is_banned(_name(a, b), now)

    def edges(self, nodes: Iterable[NodeInfo], now: float) -> Edges:
        """The links as a search sees them."""
        unchained = {_pair(name) for name in self._distrust.banned(now)}
        links = {peer_id: measured.link() for peer_id, measured in self._peers.items()}
        known = {
            pair: link
            for table in (self._pairs, self._seen)  # the later comes before the earlier
            for pair, (link, at) in table.items()
            if now - at < PAIR_S
        }
        return Edges(nodes, links, known=known, unchained=unchained)

    def _estimated_rate(self, a: str, b: str) -> float:
        rates = [self._peers[peer].link().bytes_per_s for peer in (a, b) if peer in self._peers]
        return min(rates, default=UNMEASURED_LINK.bytes_per_s)


def _name(a: str, b: str) -> str:
    return f"{a} {b}"


def _pair(name: str) -> Pair:
    a, _, b = name.partition(" ")
    return a, b
