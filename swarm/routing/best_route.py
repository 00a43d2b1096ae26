"""Which hops should carry a session: a pure function of a directory snapshot and measured links.

A step goes from the client to the first hop, from hop to hop and from the last one back, and through the
client where two neighbours must not be chained. It costs these one-way trips with its activations, and per
hop the wait in the node's queue and the blocks' compute. A route is the cheapest chain of hops, predicted
over the whole request (prefill plus decode); among equals the one of fewest hops, and then the one a ``salt``
picks, so that many sessions spread over equal peers. A node may be entered and left anywhere inside its span,
but carries one hop of a route at most: it reserves KV cache once.
Where a model may not be cut at every boundary, hops begin and end at its cuts. Where rows are wider at some
boundaries, the search reckons with the mean for the links between hops, and a prediction with each one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from shlex import quote

from ..boundaries import may_serve, span_inside
from ..errors import RouteError, UsageError
from ..types import Hop, NodeInfo, NodeState, Route, Span, short_peer_id
from .edges import Edges, Link
from .load_spread import Pick, spread_out
from .prediction import Prediction, decode_seconds, predict, prefill_seconds, queue_seconds
from .same_borders import WORTH, cheapest_with_borders
from .search import Offer, cheapest_chain

DEFAULT_BYTES_PER_TOKEN = 4096
"""Bytes of one token's activations on the wire, one way, where the caller gives none."""
_PEERS_IN_MESSAGE = 4
"""An error names at most this many of the nodes seen, so that it stays readable."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What the route is for: blocks ``start`` to ``end`` (None: to the last), and how much will flow through.

    ``kv_tokens``: KV cache each hop must have free. ``bytes_per_token``: activations one way, encoded;
    ``row_bytes``: these at each boundary of the model, where they differ (the former is then their mean).
    ``cuts``: the boundaries where hops may begin and end, as in ``swarm.boundaries``.
    ``banned``: peers to leave out; ``used``: others, which are in the route already or are to leave it.
    ``digest``: the model's; "" takes nodes of any. ``before`` and ``after``: the peers that the route's ends
    are joined to, "" for the client. ``borders``: those between hops that the route should have inside, and
    no others, where that costs little more; None: any will do. ``fed``: tokens that the hops hold already
    and that are not fed to them.
    """

    n_blocks: int
    kv_tokens: int
    prompt_tokens: int = 1
    new_tokens: int = 1
    bytes_per_token: int = DEFAULT_BYTES_PER_TOKEN
    banned: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    start: int = 0
    end: int | None = None
    digest: str = ""
    before: str = ""
    after: str = ""
    borders: tuple[int, ...] | None = None
    row_bytes: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    fed: int = 0

    def __post_init__(self) -> None:
        if self.span.end > self.n_blocks:  # the span itself raises for an impossible one
            raise UsageError(f"blocks {self.span} are outside a model of {self.n_blocks}")
        if not may_serve(self.span, self.cuts):
            raise UsageError(f"blocks {self.span} cannot be cut out of the model")
        if self.row_bytes and len(self.row_bytes) != self.n_blocks + 1:
            raise UsageError(f"bytes of {len(self.row_bytes)} boundaries of {self.n_blocks} blocks")
        if min(self.kv_tokens, self.prompt_tokens, self.new_tokens, self.bytes_per_token, self.fed) < 0:
            raise UsageError("tokens and bytes of a route request must be 0 or more")

    @property
    def context(self) -> float:
        """Tokens before a decoded one, in the mean of all of them."""
        return self.fed + self.prompt_tokens + self.new_tokens / 2

    def bytes_at(self, boundary: int) -> int:
        """Of a token's activations there."""
        return self.row_bytes[boundary] if self.row_bytes else self.bytes_per_token

    @property
    def wanted_spans(self) -> list[Span]:
        """The hops' spans that ``borders`` ask for; those outside the route's blocks ask for nothing."""
        inside = sorted({each for each in self.borders or () if self.span.start < each < self.span.end})
        return [Span(a, b) for a, b in pairwise([self.span.start, *inside, self.span.end])]

    @property
    def span(self) -> Span:
        return Span(self.start, self.n_blocks if self.end is None else self.end)


class NoRouteError(RouteError):
    """No usable node for ``missing``; ``seen`` are all nodes of the snapshot, usable or not. ``gone``: ids of
    peers that failed a moment ago."""

    gone: frozenset[str] = frozenset()

    def __init__(
        self, message: str, *, hint: str, missing: tuple[Span, ...], seen: tuple[NodeInfo, ...]
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing
        self.seen = seen


def serve_command(model: str, blocks: Span | str) -> str:
    """What serves these blocks of ``model``, as the swarm calls it or as a path."""
    return f"swarm-node serve --model {quote(model)} --blocks {blocks}"


def start_a_peer(blocks: Span, model: str = "NAME") -> str:
    """The hint where nobody serves these blocks of ``model``, as the swarm calls it, if that is known."""
    return f"Start a peer with: `{serve_command(model, blocks)}`"


class Prices:
    """What hops and links cost for one request, in whole nanoseconds over all of its tokens."""

    def __init__(self, edges: Edges, request: RouteRequest) -> None:
        self._edges = edges
        self._request = request
        self._client_links: dict[str, int] = {}
        self._ends: dict[int, Prices] = {}  # with rows of other sizes, at the ends of a route

    def hop(self, node: NodeInfo) -> tuple[int, int]:
        """(for using the node at all, for each block on it)."""
        request = self._request
        enter = (request.new_tokens + (request.prompt_tokens > 0)) * queue_seconds(node)
        decode_s = request.new_tokens * decode_seconds(node, request.context)
        block = decode_s + request.prompt_tokens * prefill_seconds(node)
        return round(enter * 1e9), round(block * 1e9)

    def client_link(self, peer_id: str) -> int:
        """All that is sent to a hop, on the client's own link."""
        price = self._client_links.get(peer_id)
        if price is None:
            price = self._client_links[peer_id] = self._sent(
                self._edges.client_link(peer_id), self._request.prompt_tokens
            )
        return price

    def first(self, before: str, peer_id: str) -> int:
        """The price of all that is sent to a route's first hop."""
        return self._at_end(before, peer_id, self._request.span.start)

    def last(self, peer_id: str, after: str) -> int:
        """The price of all that is sent from a route's last hop."""
        return self._at_end(peer_id, after, self._request.span.end)

    def _at_end(self, a: str, b: str, boundary: int) -> int:
        size = self._request.bytes_at(boundary)
        if size == self._request.bytes_per_token:
            return self.link(a, b)
        if size not in self._ends:
            self._ends[size] = Prices(self._edges, replace(self._request, bytes_per_token=size, row_bytes=()))
        return self._ends[size].link(a, b)

    def link(self, a: str, b: str) -> int:
        """The price of all that is sent from ``a`` to ``b``; "" is the client, to which only one row of a
        prompt is sent."""
        if not a:
            return self.client_link(b)
        if not b:
            return self._sent(self._edges.client_link(a), 1 if self._request.prompt_tokens else 0)
        return min(self._direct(a, b), self.client_link(a) + self.client_link(b))

    def links(self, nodes: Sequence[NodeInfo]) -> dict[tuple[str, str], int]:
        """The links between ``nodes`` of which more is known than the client's own links tell."""
        spans = {node.peer_id: node.span for node in nodes}
        links: dict[tuple[str, str], int] = {}
        for pairs in (self._edges.told, self._edges.unchained):
            for a, b in pairs:
                if a in spans and b in spans and _may_follow(spans[a], spans[b]):
                    alike = self._edges.may_chain(a, b) and self._edges.may_chain(b, a)
                    back = links.get((b, a)) if alike else None
                    links[a, b] = self.link(a, b) if back is None else back
        return links

    def route(self, picks: Sequence[Pick]) -> int:
        """A whole route, from ``before`` to ``after``."""
        peers = [self._request.before, *(node.peer_id for node, _ in picks), self._request.after]
        first, *inside, last = pairwise(peers)
        total = self.first(*first) + sum(self.link(a, b) for a, b in inside) + self.last(*last)
        for node, span in picks:
            enter, block = self.hop(node)
            total += enter + len(span) * block
        return total

    def _direct(self, a: str, b: str) -> int:
        edges, request = self._edges, self._request
        if not edges.may_chain(a, b):
            return self.client_link(a) + self.client_link(b)
        if not edges.is_measured(a, b):
            return max(self.client_link(a), self.client_link(b))  # as ``Edges.estimate``
        return self._sent(edges.between(a, b, request.bytes_per_token), request.prompt_tokens)

    def _sent(self, link: Link, prompt_tokens: int) -> int:
        request = self._request
        seconds = request.new_tokens * link.one_way_s(request.bytes_per_token)
        if prompt_tokens:
            seconds += link.one_way_s(prompt_tokens * request.bytes_per_token)
        return round(seconds * 1e9)


def find_route(
    nodes: Sequence[NodeInfo], edges: Edges, request: RouteRequest, *, salt: str = "", spread: float = 0.0
) -> Route:
    """The cheapest route over usable nodes, the same for every order of ``nodes``.

    ``spread``: by which part a route may cost more than the cheapest, so that sessions of different ``salt``
    do not all take the same one. ``seconds_per_token`` of the answer predicts a decode step. Raises
    NoRouteError, which says which blocks are missing and why.
    """
    usable = (node for node in nodes if not why_unusable(node, request))
    by_peer = {node.peer_id: node for node in sorted(usable, key=_record_order)}
    missing = missing_blocks(list(by_peer.values()), request.span.end, start=request.start, cuts=request.cuts)
    if missing:
        raise _no_route(nodes, request, missing)
    candidates = [node for node in by_peer.values() if _overlap(node.span, request.span)]
    prices = Prices(edges, request)
    offers = [
        _offer(node, span, prices, request, salt, spread)
        for node in candidates
        if (span := span_inside(node.span, request.cuts)) is not None
    ]
    chain = cheapest_chain(
        offers, request.span.start, request.span.end, prices.links(candidates), request.cuts
    )
    picks = [(by_peer[offer.peer_id], span) for offer, span in chain]
    ends = {"before": request.before, "after": request.after}
    if request.borders is not None and [span for _, span in picks] != request.wanted_spans:
        same = cheapest_with_borders(
            candidates, request.wanted_spans, prices, lambda peer_id: _rank(salt, peer_id), **ends
        )
        if same is not None and prices.route(same) <= WORTH * prices.route(picks):
            picks = same
    if spread > 0:
        picks = spread_out(
            picks,
            candidates,
            prices,
            lambda peer_id: _fraction(_rank(f"{salt}/drawn", peer_id)),
            spread,
            **ends,
        )
    hops = tuple(Hop(node.peer_id, span, node.dial_maddrs, node.record, node.name) for node, span in picks)
    return price_route(hops, by_peer, edges, request)


def price_route(
    hops: Sequence[Hop], nodes: Mapping[str, NodeInfo], edges: Edges, request: RouteRequest
) -> Route:
    """A route over ``hops``, with its prediction for a decode step."""
    prediction = predict_route(hops, nodes, edges, request)
    return Route(tuple(hops), seconds_per_token=prediction.token_s)


def predict_route(
    hops: Sequence[Hop], nodes: Mapping[str, NodeInfo], edges: Edges, request: RouteRequest
) -> Prediction:
    """What ``request`` costs on ``hops``, whose announcements ``nodes`` holds by peer id."""
    return predict(
        hops,
        [nodes[hop.peer_id] for hop in hops],
        edges,
        prompt_tokens=request.prompt_tokens,
        bytes_at=request.bytes_at,
        context=request.context,
        before=request.before,
        after=request.after,
    )


def route_price_ns(picks: Sequence[Pick], edges: Edges, request: RouteRequest) -> int:
    """What the search minimises: the nanoseconds of the whole request, stages one after another."""
    return Prices(edges, request).route(picks)


def missing_blocks(
    nodes: Sequence[NodeInfo], n_blocks: int, *, start: int = 0, cuts: Sequence[int] = ()
) -> tuple[Span, ...]:
    """The spans of blocks ``start`` to ``n_blocks`` that none of ``nodes`` serves, ascending. Of a node whose
    span does not end at ``cuts`` counts what lies between cuts."""
    missing = []
    reached = start
    spans = (span_inside(node.span, cuts) for node in nodes)
    for span in sorted(span for span in spans if span is not None):
        if span.start >= n_blocks:
            break
        if span.start > reached:
            missing.append(Span(reached, span.start))
        reached = max(reached, span.end)
    if reached < n_blocks:
        missing.append(Span(reached, n_blocks))
    return tuple(missing)


def why_unusable(node: NodeInfo, request: RouteRequest) -> str:
    """Why the node cannot take the request, in a few words; "" when it can."""
    if node.model.n_blocks != request.n_blocks or node.span.end > request.n_blocks:
        return "another model"
    if request.digest and node.model.digest != request.digest:
        return "another model"
    if node.state is not NodeState.ONLINE:
        return str(node.state)
    if node.peer_id in request.banned:
        return "failed lately"
    if node.peer_id in request.used:
        return "in use"
    if node.free_kv_tokens < request.kv_tokens:
        return f"full, {node.free_kv_tokens} of {node.total_kv_tokens} tokens free"
    if request.kv_tokens and node.total_states and not node.free_states:
        return f"full, no room for the states of another session beside {node.total_states}"
    return ""


def _offer(
    node: NodeInfo, span: Span, prices: Prices, request: RouteRequest, salt: str, spread: float
) -> Offer:
    enter, block = prices.hop(node)
    client_link = prices.client_link(node.peer_id)
    first, last = prices.first(request.before, node.peer_id), prices.last(node.peer_id, request.after)
    rank = _rank(salt, node.peer_id)
    if spread > 0:
        more = 1 + spread * _fraction(rank)
        enter, block, client_link, first, last = (
            round(price * more) for price in (enter, block, client_link, first, last)
        )
    return Offer(node.peer_id, span, enter, block, rank, client_link, first, last)


def _rank(salt: str, peer_id: str) -> bytes:
    return blake2b(f"{salt}\0{peer_id}".encode(), digest_size=8).digest()


def _fraction(rank: bytes) -> float:
    """Above 0, at most 1."""
    return (int.from_bytes(rank) + 1) / 2**64


def _may_follow(a: Span, b: Span) -> bool:
    """Whether a route may go from inside ``a`` to ``b``."""
    return b.start <= a.end and b.end > a.start + 1


def _overlap(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end


def _record_order(node: NodeInfo) -> tuple[str, int, int, float]:
    """Of two announcements of one peer the later in this order is taken: the longer span first of all."""
    return (node.peer_id, len(node.span), node.span.start, node.decode_ms_per_block)


def _blocks(node: NodeInfo) -> range:
    return range(node.span.start, node.span.end)


def _no_route(nodes: Sequence[NodeInfo], request: RouteRequest, missing: tuple[Span, ...]) -> NoRouteError:
    blocks = ", ".join(str(span) for span in missing)
    holes = {block for span in missing for block in range(span.start, span.end)}
    seen = []
    # First those that would have served a missing block.
    for node in sorted(nodes, key=lambda n: (holes.isdisjoint(_blocks(n)), n.span, n.peer_id)):
        reason = why_unusable(node, request) or "online"
        seen.append(f"{short_peer_id(node.peer_id)} has {node.span} ({reason})")
    more = len(seen) - _PEERS_IN_MESSAGE
    listed = "; ".join(seen[:_PEERS_IN_MESSAGE]) + (f"; and {more} more" if more > 0 else "")
    message = f"no peer can serve blocks {blocks} of {request.n_blocks} now. " + (
        f"Seen: {listed}." if seen else "No peer of this model was seen at all."
    )
    if any(why_unusable(node, request).startswith("full") for node in nodes):
        hint = (
            f"Ask for fewer tokens than {request.kv_tokens}, or let another peer serve --blocks {missing[0]}."
        )
    else:
        hint = start_a_peer(missing[0], *(node.model.name for node in nodes[:1]))
    return NoRouteError(message, hint=hint, missing=missing, seen=tuple(nodes))
