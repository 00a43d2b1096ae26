"""Which hops should carry a session: a pure function of a directory snapshot and measured links.

The client is joined to every hop, so a step costs, per hop, one round trip, its activations both ways, the
wait in the node's queue and the blocks' compute. A route is the cheapest chain of hops, predicted over the
whole request (prefill plus decode); among equals the one of fewest hops, and then the one a ``salt`` picks,
so that many clients spread over equal peers. A node may be entered and left anywhere inside its span, but
carries one hop of a route at most: it reserves KV cache once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .errors import RouteError, UsageError
from .route_search import Offer, cheapest_chain
from .types import Hop, NodeInfo, NodeState, Route, Span

UNMEASURED_DECODE_MS_PER_BLOCK = 5.0
"""For a node that has not measured itself: slow enough that any measured one is preferred."""
UNMEASURED_PREFILL_TOKENS_PER_S = 100.0
DEFAULT_BYTES_PER_TOKEN = 4096
"""One token's activations on the wire, one way, when the caller does not say."""
MAX_QUEUE_MS = 60_000.0
"""A longer queue than this is no better known: bounds what an announcement can do to a route's price."""
_PEERS_IN_MESSAGE = 4
"""How many of the nodes seen an error names, so that it stays readable."""


@dataclass(frozen=True, slots=True)
class Link:
    """A measured connection between this client and a peer: round trip in seconds, bytes per second."""

    rtt_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_s < float("inf") or not self.bytes_per_s > 0:
            raise UsageError(f"a link of {self.rtt_s} s and {self.bytes_per_s} bytes/s cannot be")


UNMEASURED_LINK = Link(rtt_s=0.1, bytes_per_s=1.25e6)
"""A peer not met yet: a middling wide-area line of 100 ms and 10 Mbit/s."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What the route is for: blocks ``start`` to ``n_blocks``, and how much will flow through them.

    ``kv_tokens``: KV cache each hop must have free. ``bytes_per_token``: activations one way, encoded.
    ``banned``: peers to leave out. ``digest``: the model's; "" takes nodes of any.
    """

    n_blocks: int
    kv_tokens: int
    prompt_tokens: int = 1
    new_tokens: int = 1
    bytes_per_token: int = DEFAULT_BYTES_PER_TOKEN
    banned: frozenset[str] = frozenset()
    start: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        Span(self.start, self.n_blocks)  # raises for an impossible one
        if min(self.kv_tokens, self.prompt_tokens, self.new_tokens, self.bytes_per_token) < 0:
            raise UsageError("a route request counts tokens and bytes from 0 up")


class NoRouteError(RouteError):
    """No usable node for ``missing``; ``seen`` are all nodes of the snapshot, usable or not."""

    def __init__(
        self, message: str, *, hint: str, missing: tuple[Span, ...], seen: tuple[NodeInfo, ...]
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing
        self.seen = seen


def find_route(
    nodes: Sequence[NodeInfo], links: Mapping[str, Link], request: RouteRequest, *, salt: str = ""
) -> Route:
    """The cheapest route over usable nodes, the same for every order of ``nodes``.

    ``links`` holds what is measured, by peer id; others count as UNMEASURED_LINK. ``seconds_per_token`` of
    the answer predicts a decode step. Raises NoRouteError, which says which blocks are missing and why.
    """
    usable = (node for node in nodes if not why_unusable(node, request))
    by_peer = {node.peer_id: node for node in sorted(usable, key=_record_order)}
    missing = missing_blocks(list(by_peer.values()), request.n_blocks, start=request.start)
    if missing:
        raise _no_route(nodes, request, missing)
    offers = [
        _offer(node, links.get(node.peer_id, UNMEASURED_LINK), request, salt) for node in by_peer.values()
    ]
    hops = []
    seconds = 0.0
    for offer, span in cheapest_chain(offers, request.start, request.n_blocks):
        node = by_peer[offer.peer_id]
        hops.append(Hop(node.peer_id, span, node.maddrs))
        link = links.get(node.peer_id, UNMEASURED_LINK)
        seconds += _hop_seconds(link, request.bytes_per_token) + _queue_seconds(node)
        seconds += len(span) * _decode_seconds(node)
    return Route(tuple(hops), seconds_per_token=seconds)


def hop_cost_ns(node: NodeInfo, link: Link, request: RouteRequest) -> tuple[int, int]:
    """(for using the node at all, for each block on it), nanoseconds over the whole request."""
    queue = _queue_seconds(node)
    enter = request.new_tokens * (_hop_seconds(link, request.bytes_per_token) + queue)
    if request.prompt_tokens:
        enter += _hop_seconds(link, request.prompt_tokens * request.bytes_per_token) + queue
    prefill_rate = node.prefill_tokens_per_s or UNMEASURED_PREFILL_TOKENS_PER_S
    block = request.new_tokens * _decode_seconds(node) + request.prompt_tokens / prefill_rate / len(node.span)
    return max(0, round(enter * 1e9)), max(0, round(block * 1e9))


def missing_blocks(nodes: Sequence[NodeInfo], n_blocks: int, *, start: int = 0) -> tuple[Span, ...]:
    """The spans of blocks ``start`` to ``n_blocks`` that none of ``nodes`` serves, ascending."""
    missing = []
    reached = start
    for span in sorted(node.span for node in nodes):
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
    if node.peer_id in request.banned:
        return "failed lately"
    if node.state is not NodeState.ONLINE:
        return str(node.state)
    if node.free_kv_tokens < request.kv_tokens:
        return f"full, {node.free_kv_tokens} of {node.total_kv_tokens} tokens free"
    return ""


def _offer(node: NodeInfo, link: Link, request: RouteRequest, salt: str) -> Offer:
    enter, block = hop_cost_ns(node, link, request)
    rank = blake2b(f"{salt}\0{node.peer_id}".encode(), digest_size=8).digest()
    return Offer(node.peer_id, node.span, enter, block, rank)


def _record_order(node: NodeInfo) -> tuple[str, int, int, float]:
    """Of two announcements of one peer the later in this order is taken: the longer span first of all."""
    return (node.peer_id, len(node.span), node.span.start, node.decode_ms_per_block)


def _blocks(node: NodeInfo) -> range:
    return range(node.span.start, node.span.end)


def _decode_seconds(node: NodeInfo) -> float:
    return (node.decode_ms_per_block or UNMEASURED_DECODE_MS_PER_BLOCK) / 1000


def _queue_seconds(node: NodeInfo) -> float:
    return min(node.queue_ms, MAX_QUEUE_MS) / 1000


def _hop_seconds(link: Link, payload_bytes: int) -> float:
    """A round trip with the payload both ways."""
    return link.rtt_s + 2 * payload_bytes / link.bytes_per_s


def _no_route(nodes: Sequence[NodeInfo], request: RouteRequest, missing: tuple[Span, ...]) -> NoRouteError:
    blocks = ", ".join(str(span) for span in missing)
    holes = {block for span in missing for block in range(span.start, span.end)}
    seen = []
    # First those that would have served a missing block.
    for node in sorted(nodes, key=lambda n: (holes.isdisjoint(_blocks(n)), n.span, n.peer_id)):
        reason = why_unusable(node, request) or "online"
        seen.append(f"…{node.peer_id[-6:]} has {node.span} ({reason})")
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
        hint = f"Start a peer with: swarm-node serve --model … --blocks {missing[0]} --initial-peers …"
    return NoRouteError(message, hint=hint, missing=missing, seen=tuple(nodes))
