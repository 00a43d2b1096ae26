"""The swarm as the planner sees it: spans that are served, what the best route over them costs, where it is
short of copies.

Routes are priced by ``routing`` and ``prediction``, for one decoded token and no waiting: load comes and goes
faster than blocks can move. The client is an average one: as far from each node as other nodes are from it
(the median of what it announces). So all nodes that see one snapshot compute the same view.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import median_low

from ..routing.best_route import RouteRequest, find_route, missing_blocks
from ..routing.edges import Edges, Link
from ..routing.prediction import decode_seconds
from ..types import ModelRef, NodeInfo, NodeState, PeerLink, Route, Span
from .throughput import throughput
from .types import ModelShape, NodeOffer

HOME_LINK = Link(rtt_s=0.002, bytes_per_s=1.25e7)
"""The link assumed where none is announced: 2 ms and 100 Mbit/s, as in a home. It is the same for all, so it
only weighs hops against compute."""
HOLE_S = 1e4
"""A missing block counts as this many seconds. That is more than a node may announce of a real one, so that
holes are closed first."""
KEPT_PER_BLOCK = 6
"""In a large swarm only this many nodes of a block may be in the best route: the fastest, and the fastest
with a hop's link shared out over the span."""
KEEP_ALL = 24
"""In a swarm of up to this many nodes all are looked at."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node that may be given any span of up to ``max_blocks``. ``decode_ms_per_block``: of the mean block
    of a model of that ``shape``."""

    peer_id: str
    max_blocks: int
    decode_ms_per_block: float
    links: tuple[PeerLink, ...] = ()
    shape: ModelShape | None = None

    def serving(self, span: Span, n_blocks: int) -> NodeInfo:
        """The announcement that it would make."""
        mean = self.shape.mean_time(span) if self.shape else 1.0
        return NodeInfo(
            self.peer_id,
            (),
            ModelRef("", "", n_blocks),
            span,
            NodeState.ONLINE,
            decode_ms_per_block=self.decode_ms_per_block * mean,
            links=self.links,
            max_blocks=self.max_blocks,
        )

    @classmethod
    def offering(cls, offer: NodeOffer, shape: ModelShape) -> Machine:
        memory = shape.max_blocks(offer.memory_bytes)
        return cls(offer.peer_id, memory, offer.decode_ms_per_block, offer.links, shape)

    @classmethod
    def announced(cls, node: NodeInfo, shape: ModelShape) -> Machine:
        most = min(node.max_blocks, node.model.n_blocks)
        mean_ms = node.decode_ms_per_block / shape.mean_time(node.span)
        return cls(node.peer_id, most, mean_ms, node.links, shape)


class MeasuredLinks:
    """What ``speakers`` announce of the links between them."""

    def __init__(self, speakers: Iterable[NodeInfo | Machine]) -> None:
        self._links = {speaker.peer_id: speaker.links for speaker in speakers}
        self.client_links: dict[str, Link] = {}
        for peer_id, links in self._links.items():
            if links:
                self.client_links[peer_id] = _middle([(link.rtt_s, link.bytes_per_s) for link in links])
        usual = (
            _middle(
                [(client_link.rtt_s, client_link.bytes_per_s) for client_link in self.client_links.values()]
            )
            if self.client_links
            else HOME_LINK
        )
        for peer_id in self._links:
            self.client_links.setdefault(peer_id, usual)

    def edges(self, peer_ids: Iterable[str]) -> Edges:
        """The links between a few of them."""
        one = Span(0, 1)
        few = [Machine(peer_id, 1, 0.0, self._links[peer_id]).serving(one, 1) for peer_id in peer_ids]
        return Edges(few, self.client_links)


class SwarmView:
    """``nodes`` serve their spans; of each peer one announcement counts. Their states do not matter here.

    ``machines``: those that will be looked at beside them.
    """

    def __init__(
        self, nodes: Iterable[NodeInfo], shape: ModelShape, links: MeasuredLinks, machines: Iterable[str] = ()
    ) -> None:
        self.shape = shape
        self.links = links
        n = shape.n_blocks
        self.request = RouteRequest(
            n,
            kv_tokens=0,
            prompt_tokens=0,
            new_tokens=1,
            bytes_per_token=shape.activation_bytes,
            row_bytes=shape.row_bytes,
            cuts=shape.cuts,
        )
        self.nodes = {node.peer_id: node for node in sorted(nodes, key=_by_peer) if node.span.end <= n}
        self.copies = [0] * n
        """How many nodes serve each block."""
        self.density = [0.0] * n
        """Tokens per second that each block gets when every node spreads its work evenly over its span."""
        self._rates: dict[tuple[int, int], float] = {}
        for node in self.nodes.values():
            self._count(node)
        self._likely = [_priced(node, n) for node in self._candidates()]
        self.edges = links.edges(dict.fromkeys([*(node.peer_id for node in self._likely), *machines]))
        self._finish()

    def _finish(self) -> None:
        n = self.shape.n_blocks
        self.missing = missing_blocks(self._likely, n, cuts=self.shape.cuts)
        self.n_missing = sum(map(len, self.missing))
        self.priced = [*self._likely, *(_hole(span, n) for span in self.missing)]
        """The nodes that may be in the best route, and one for each missing span, at HOLE_S a block."""
        self._cost_s: float | None = None
        self._tokens_per_s: float | None = None
        self._shortage: float | None = None

    @property
    def cost_s(self) -> float:
        """Seconds per token of the best route; a missing block counts as HOLE_S."""
        if self._cost_s is None:
            self._cost_s = self.best_route().seconds_per_token
        return self._cost_s

    def best_route(self) -> Route:
        """Over those that serve, and over holes as if they were nodes."""
        return find_route(self.priced, self.edges, self.request)

    @property
    def token_s(self) -> float | None:
        """Seconds per token of the best route; None where blocks are missing."""
        return None if self.missing else self.cost_s

    @property
    def tokens_per_s(self) -> float:
        """What all nodes together compute; 0 where blocks are missing."""
        if self._tokens_per_s is None:
            self._tokens_per_s = throughput(self._rates, self.shape.n_blocks)
        return self._tokens_per_s

    def reaches(self, tokens_per_s: float) -> bool:
        """Whether all nodes together reach ``tokens_per_s``, which is computed faster than the exact
        number."""
        if self._tokens_per_s is None:
            found = throughput(self._rates, self.shape.n_blocks, at_least=tokens_per_s)
            if not found:
                return False
            self._tokens_per_s = found
        return self._tokens_per_s >= tokens_per_s

    @property
    def shortage(self) -> float:
        """Mean seconds per token of a block, each node's work spread evenly; infinite where one is missing.

        Falls with every copy, most where there are few: it tells good places apart where the throughput,
        which the scarcest blocks decide, does not.
        """
        if self._shortage is None:
            whole = all(self.copies)
            self._shortage = sum(1 / each for each in self.density) / len(self.density) if whole else inf
        return self._shortage

    @property
    def singles(self) -> int:
        """Blocks that one node alone serves."""
        return self.copies.count(1)

    def with_node(self, node: NodeInfo) -> SwarmView:
        """This view with ``node`` added, whose peer is not in this view but among its ``machines``."""
        other = object.__new__(SwarmView)
        other.shape, other.links, other.request, other.edges = (
            self.shape,
            self.links,
            self.request,
            self.edges,
        )
        other.nodes = {**self.nodes, node.peer_id: node}
        other.copies, other.density = self.copies.copy(), self.density.copy()
        other._rates = self._rates.copy()
        other._count(node)
        other._likely = [*self._likely, _priced(node, self.shape.n_blocks)]
        other._finish()
        return other

    def keeps_route_of(self, other: SwarmView) -> None:
        """The best route is that of ``other``: spares the search for it."""
        self._cost_s = other.cost_s

    def without(self, peer_id: str, machines: Iterable[str] = ()) -> SwarmView:
        left = (node for node in self.nodes.values() if node.peer_id != peer_id)
        return SwarmView(left, self.shape, self.links, [peer_id, *machines])

    @staticmethod
    def covered(nodes: Sequence[NodeInfo], n_blocks: int) -> bool:
        """Whether ``nodes`` serve every block."""
        return not missing_blocks(nodes, n_blocks)

    def _count(self, node: NodeInfo) -> None:
        start, end = node.span.start, node.span.end
        rate = block_rate(node)
        for block in range(start, end):
            self.copies[block] += 1
            self.density[block] += rate / (end - start)
        self._rates[start, end] = self._rates.get((start, end), 0.0) + rate

    def _candidates(self) -> list[NodeInfo]:
        """The nodes that may be in the best route."""
        nodes = list(self.nodes.values())
        if len(nodes) <= KEEP_ALL:
            return nodes
        client_links, size = self.links.client_links, self.shape.activation_bytes
        speeds = [
            (decode_seconds(node), client_links[node.peer_id].one_way_s(size) / len(node.span))
            for node in nodes
        ]
        likely: set[int] = set()
        for shared in (0, 1):  # a hop's link counts, or does not
            prices = [block_s + shared * way_s for block_s, way_s in speeds]
            left = [min(KEPT_PER_BLOCK, copies) for copies in self.copies]
            wanted = sum(left)
            for place in sorted(range(len(nodes)), key=prices.__getitem__):
                if not wanted:
                    break
                span = nodes[place].span
                for block in range(span.start, span.end):
                    if left[block]:
                        left[block] -= 1
                        wanted -= 1
                        likely.add(place)
        return [nodes[place] for place in sorted(likely)]


def block_rate(node: NodeInfo) -> float:
    """Blocks per second."""
    return 1 / decode_seconds(node)


def _by_peer(node: NodeInfo) -> str:
    return node.peer_id


def _priced(node: NodeInfo, n_blocks: int) -> NodeInfo:
    """Idle, open to sessions, and of a model with as many blocks as the plan is for."""
    if node.state is NodeState.ONLINE and not node.queue_ms and node.model.n_blocks == n_blocks:
        return node
    model = ModelRef(node.model.name, node.model.digest, n_blocks)
    return replace(node, state=NodeState.ONLINE, queue_ms=0.0, model=model)


def _hole(span: Span, n_blocks: int) -> NodeInfo:
    return Machine(f"\0hole {span.start}", 0, HOLE_S * 1000).serving(span, n_blocks)


def _middle(figures: Sequence[tuple[float, float]]) -> Link:
    rates = [rate for _, rate in figures if rate > 0]
    rtt_s = median_low(rtt for rtt, _ in figures)
    return Link(rtt_s, median_low(rates) if rates else HOME_LINK.bytes_per_s)
