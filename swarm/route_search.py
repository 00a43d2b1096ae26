"""The cheapest chain of hops over a range of blocks: exact, deterministic, in whole nanoseconds.

It knows offers only: somebody serves a span, at a price for using it at all and a price per block. Costs
are ints, so that chains found in another order compare the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .types import Span

MAX_BRANCHES = 512
"""Bounds the search for a chain that uses no peer twice; then the best one found so far is the answer."""

Order = tuple[int, int, tuple[tuple[bytes, str, int], ...]]
"""What decides between two chains, smaller first: cost in ns, hops, and who is entered at which block."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A peer's price for carrying blocks of ``span``. ``rank`` decides between equals, smaller first."""

    peer_id: str
    span: Span
    enter_ns: int
    block_ns: int
    rank: bytes = b""


@dataclass(slots=True)
class _Chain:
    """Hops that cover the blocks up to ``end``; the last is ``offer``, entered at block ``entered``."""

    order: Order
    entered: int
    end: int
    offer: Offer | None = None
    before: _Chain | None = None

    def legs(self) -> list[tuple[Offer, Span]]:
        legs = []
        chain: _Chain | None = self
        while chain is not None and chain.offer is not None:
            legs.append((chain.offer, Span(chain.entered, chain.end)))
            chain = chain.before
        return legs[::-1]


def cheapest_chain(offers: Sequence[Offer], start: int, end: int) -> list[tuple[Offer, Span]]:
    """The best chain over blocks ``start`` to ``end`` that uses no peer twice, as (offer, its blocks).

    ``offers`` must cover every block and name each peer once. Branch and bound: the best chain that may use
    peers twice bounds the answer from below, and nearly always is it. Where a peer does come twice, with a
    block g between, each allowed chain has it before g only, after g only, or at g.
    """
    best: _Chain | None = None
    branches: list[tuple[Sequence[Offer], dict[int, str]]] = [(offers, {})]
    for _ in range(MAX_BRANCHES):
        if not branches:
            break
        candidates, forced = branches.pop()
        chain = _relaxed(candidates, forced, start, end)
        if chain is None or (best is not None and chain.order >= best.order):
            continue
        repeat = _first_repeat(chain)
        if repeat is None:
            best = chain
            continue
        peer_id, gap = repeat
        branches.append((_narrowed(candidates, peer_id, start, gap), forced))
        branches.append((_narrowed(candidates, peer_id, gap + 1, end), forced))
        branches.append((candidates, {**forced, gap: peer_id}))
    return best.legs() if best is not None else _farthest_first(offers, start, end)


def _relaxed(offers: Sequence[Offer], forced: Mapping[int, str], start: int, end: int) -> _Chain | None:
    """The best chain that may use peers twice. ``forced``: the only peer allowed for a block.

    A dynamic programme over blocks: the best chain that ends in each peer, and the best of those. None when
    the offers leave a hole.
    """
    arrived: _Chain | None = _Chain((0, 0, ()), start, start)
    inside: dict[str, _Chain] = {}
    for block in range(start, end):
        only = forced.get(block)
        onward: dict[str, _Chain] = {}
        for offer in offers:
            if block not in offer.span or (only is not None and only != offer.peer_id):
                continue
            chain = inside.get(offer.peer_id)
            if arrived is not None:
                cost, hops, path = arrived.order
                cost, hops = cost + offer.enter_ns, hops + 1
                if chain is None or (cost, hops) <= chain.order[:2]:
                    order = (cost, hops, (*path, (offer.rank, offer.peer_id, block)))
                    if chain is None or order < chain.order:
                        chain = _Chain(order, block, block, offer, arrived)
            if chain is not None:
                cost, hops, path = chain.order
                order = (cost + offer.block_ns, hops, path)
                onward[offer.peer_id] = _Chain(order, chain.entered, block + 1, offer, chain.before)
        inside = onward
        arrived = min(inside.values(), key=_order, default=None)
    return arrived


def _farthest_first(offers: Sequence[Offer], start: int, end: int) -> list[tuple[Offer, Span]]:
    """The chain that always takes who goes farthest: uses nobody twice, whatever it costs."""
    legs: list[tuple[Offer, Span]] = []
    while start < end:
        here = [offer for offer in offers if start in offer.span]
        offer = min(here, key=lambda offer: (-offer.span.end, offer.rank, offer.peer_id))
        legs.append((offer, Span(start, min(end, offer.span.end))))
        start = offer.span.end
    return legs


def _first_repeat(chain: _Chain) -> tuple[str, int] | None:
    """A peer that the chain uses twice, and a block between its two hops."""
    ends: dict[str, int] = {}
    for offer, span in chain.legs():
        if offer.peer_id in ends:
            return offer.peer_id, ends[offer.peer_id]
        ends[offer.peer_id] = span.end
    return None


def _narrowed(offers: Sequence[Offer], peer_id: str, start: int, end: int) -> list[Offer]:
    """The offers, that of ``peer_id`` only for its blocks from ``start`` to ``end``."""
    narrowed = []
    for offer in offers:
        if offer.peer_id != peer_id:
            narrowed.append(offer)
            continue
        first, last = max(start, offer.span.start), min(end, offer.span.end)
        if first < last:
            narrowed.append(replace(offer, span=Span(first, last)))
    return narrowed


def _order(chain: _Chain) -> Order:
    return chain.order
