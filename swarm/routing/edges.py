"""What the link between two nodes costs, seen by a client that measured only its own links.

Three sources, best first: what the client learned when it chained the two, what the nodes announce of each
other, and an estimate from the client's own links. The triangle of client and two nodes bounds all of them:
a link between nodes is never shorter than the difference of the client's links to them, and never costs more
than the path through the client, which is open in any case. So no announcement can make a pair of nodes look
nearer to each other than the client's measurements allow.

A peer that the client has not met is at most as far away as the path over one that it has met, if that one
and the peer tell of a link between them. A peer that lies about that is tried once, and is then measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf

from ..errors import UsageError
from ..types import NodeInfo

MAX_BYTES_PER_S = 1.25e8
"""An announced bandwidth counts at most as 1 Gbit/s. Above it activations cost little beside compute, and the
client's measurements cannot check it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two peers: round trip in seconds, bytes per second."""

    rtt_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_s < float("inf") or not self.bytes_per_s > 0:
            raise UsageError(f"a link of {self.rtt_s} s and {self.bytes_per_s} bytes/s is not possible")

    def one_way_s(self, payload_bytes: float) -> float:
        """Seconds until ``payload_bytes`` have arrived at the other end."""
        return self.rtt_s / 2 + payload_bytes / self.bytes_per_s


UNMEASURED_LINK = Link(rtt_s=0.1, bytes_per_s=1.25e6)
"""The link assumed to a peer not met yet: a middling wide-area line of 100 ms and 10 Mbit/s."""

_NO_LIMITS = (inf, inf)

Pair = tuple[str, str]
"""Peer ids of two nodes, in the order in which activations go from one to the other."""


class Edges:
    """What the client knows of all links of a swarm.

    ``links``: the client's own, by peer id. ``known``: what it learned of pairs that it chained.
    ``unchained``: pairs that must not be chained, whose activations the client carries itself.
    """

    def __init__(
        self,
        nodes: Iterable[NodeInfo],
        links: Mapping[str, Link],
        *,
        known: Mapping[Pair, Link] | None = None,
        unchained: AbstractSet[Pair] = frozenset(),
    ) -> None:
        self._links = links
        self.unchained = unchained
        nodes = list(nodes)
        present = {node.peer_id for node in nodes}
        self._told: dict[Pair, tuple[float, float]] = {}  # (rtt, bytes per second or 0), both orders
        for node in sorted(nodes, key=lambda node: node.peer_id):
            for link in node.links:
                if link.peer_id in present and link.peer_id != node.peer_id:
                    self._hear(node.peer_id, link.peer_id, link.rtt_s, link.bytes_per_s)
        for (a, b), measured in (known or {}).items():
            if a in present and b in present:
                self._told[a, b] = self._told[b, a] = (measured.rtt_s, measured.bytes_per_s)
        self._lines = {  # what people limit some nodes' lines to: up, down
            node.peer_id: (node.up_bytes_per_s or inf, node.down_bytes_per_s or inf)
            for node in nodes
            if node.up_bytes_per_s or node.down_bytes_per_s
        }
        self._guessed: dict[str, Link] = {}  # the client's links to peers that it has not met
        for (a, b), (rtt_s, bytes_per_s) in self._told.items():
            if a in links and b not in links:
                over = Link(links[a].rtt_s + rtt_s, min(links[a].bytes_per_s, bytes_per_s or MAX_BYTES_PER_S))
                if over.rtt_s < self.client_link(b).rtt_s:
                    self._guessed[b] = over

    @property
    def told(self) -> Iterable[Pair]:
        """Pairs of which more is known than the client's links tell, each in both orders."""
        return self._told

    def client_link(self, peer_id: str) -> Link:
        """The client's own link to a peer, as far as it is known. It is used in both directions, so that the
        narrower bound of the peer's line counts."""
        link = self._links.get(peer_id) or self._guessed.get(peer_id, UNMEASURED_LINK)
        return _within(min(self._lines[peer_id]), link) if peer_id in self._lines else link

    def may_chain(self, a: str, b: str) -> bool:
        return (a, b) not in self.unchained

    def is_measured(self, a: str, b: str) -> bool:
        """Whether the link from ``a`` to ``b`` ("": the client) was measured by any peer."""
        if a and b:
            return (a, b) in self._told
        return (a or b) in self._links

    def estimate(self, a: str, b: str, payload_bytes: float) -> Link:
        """The link between two nodes of which nothing is told: as costly as the costlier of the client's two
        links, which is the middle of what the triangle allows."""
        client_links = self.client_link(a), self.client_link(b)
        return max(client_links, key=lambda client_link: client_link.one_way_s(payload_bytes))

    def between(self, a: str, b: str, payload_bytes: float) -> Link:
        """The direct link from ``a`` to ``b``. ``payload_bytes``: what one step sends, for an estimate."""
        told = self._told.get((a, b))
        if told is None:
            return self.estimate(a, b, payload_bytes)
        one, other = self.client_link(a).rtt_s, self.client_link(b).rtt_s
        rtt_s = min(max(told[0], abs(one - other)), one + other)
        rate = min(told[1], MAX_BYTES_PER_S)
        link = Link(rtt_s, rate if rate > 0 else self.estimate(a, b, payload_bytes).bytes_per_s)
        if self._lines:
            most = min(self._lines.get(a, _NO_LIMITS)[0], self._lines.get(b, _NO_LIMITS)[1])
            return _within(most, link)
        return link

    def one_way_s(self, a: str, b: str, payload_bytes: float) -> float:
        """Seconds from ``a`` to ``b``; "" is the client."""
        if not a or not b:
            return self.client_link(a or b).one_way_s(payload_bytes)
        through_client = self.client_link(a).one_way_s(payload_bytes) + self.client_link(b).one_way_s(
            payload_bytes
        )
        if not self.may_chain(a, b):
            return through_client
        return min(self.between(a, b, payload_bytes).one_way_s(payload_bytes), through_client)

    def _hear(self, a: str, b: str, rtt_s: float, bytes_per_s: float) -> None:
        """If two nodes announce their link differently, the worse figures count."""
        if (a, b) in self._told:
            earlier = self._told[a, b]
            rtt_s = max(rtt_s, earlier[0])
            rates = [rate for rate in (bytes_per_s, earlier[1]) if rate > 0]
            bytes_per_s = min(rates, default=0.0)
        self._told[a, b] = self._told[b, a] = (rtt_s, bytes_per_s)


def _within(most_bytes_per_s: float, link: Link) -> Link:
    return link if link.bytes_per_s <= most_bytes_per_s else Link(link.rtt_s, most_bytes_per_s)
