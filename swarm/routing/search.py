"""The cheapest chain of hops over a range of blocks: exact, deterministic, in whole nanoseconds.

It knows only offers and links. An offer serves a span, at a price for using it at all and a price per block;
the link from one to the next has a price too. Costs are ints, so that chains found in another order compare
the same.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ..types import MAX_BLOCKS, Span

WORK_LIMIT = 150_000
"""The most that the search for a chain that uses no peer twice may look at, in offers times their blocks. It
takes about a quarter of a second. Then the best chain found so far is the answer."""

LinkPrices = Mapping[tuple[str, str], int]
"""Prices in ns of the links between pairs of peers; any other pair's is the higher of their two
``client_link_ns``."""

_Chain = tuple[int, int, tuple[int, ...]]
"""What decides between two chains, smaller first: cost in ns, hops, and the offer and block of each entry as
place in the order of offers * MAX_BLOCKS + block."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A peer's price for carrying blocks of ``span``. ``rank`` decides between equals, smaller first.

    ``first_ns``: the link to it, where the chain begins with it; ``last_ns``: the link on, where it ends.
    """

    peer_id: str
    span: Span
    enter_ns: int
    block_ns: int
    rank: bytes = b""
    client_link_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0


def cheapest_chain(
    offers: Sequence[Offer],
    start: int,
    end: int,
    links: LinkPrices | None = None,
    cuts: Collection[int] = (),
) -> list[tuple[Offer, Span]]:
    """The best chain over blocks ``start`` to ``end`` that uses no peer twice, as (offer, its blocks).

    ``cuts``: where a chain may go from one offer to the next, and where offers begin and end; none: anywhere.
    ``offers`` must cover every block and name each peer once. Branch and bound: the best chain that may use
    peers twice bounds the answer from below, and nearly always is it. Where a peer does come twice, with a
    block g between, each allowed chain has it before g only, after g only, or at g.
    """
    search = _Search(offers, start, end, links or {}, frozenset(cuts or range(start, end)))
    everybody = dict(enumerate(search.offers))
    best: _Chain | None = None
    work = 0
    branches: list[tuple[Mapping[int, Offer], dict[int, int]]] = [(everybody, {})]
    while branches and work < WORK_LIMIT:
        candidates, forced = branches.pop()
        work += search.work
        chain = search.relaxed(candidates, forced)
        if chain is None or (best is not None and chain >= best):
            continue
        repeat = search.first_repeat(chain)
        if repeat is None:
            best = chain
            continue
        if not forced and candidates is everybody:
            best = search.relaxed(everybody, {}, once=True)
        place, gap = repeat
        branches.append((_narrowed(candidates, place, start, gap), forced))
        branches.append((_narrowed(candidates, place, gap + 1, end), forced))
        branches.append((candidates, {**forced, gap: place}))
    return search.hops(best) if best is not None else _farthest_first(offers, start, end)


class _Search:
    """What all branches share: the offers in the order of their ranks, and the links between their places."""

    def __init__(
        self, offers: Sequence[Offer], start: int, end: int, links: LinkPrices, cuts: frozenset[int]
    ) -> None:
        self._cuts = cuts
        self.offers = sorted(offers, key=lambda offer: (offer.rank, offer.peer_id))
        self.start, self.end = start, end
        self.work = 1 + sum(
            max(0, min(end, offer.span.end) - max(start, offer.span.start)) for offer in offers
        )
        places = {offer.peer_id: place for place, offer in enumerate(self.offers)}
        self._links: list[dict[int, int]] = [{} for _ in self.offers]  # [to][from]
        for (a, b), price in links.items():
            if a in places and b in places:
                self._links[places[b]][places[a]] = price

    def relaxed(
        self, offers: Mapping[int, Offer], forced: Mapping[int, int], *, once: bool = False
    ) -> _Chain | None:
        """The best chain that may use peers twice. ``offers`` by place; ``forced``: a block's only place.

        A dynamic programme over blocks: the best chain that ends in each peer, and the best of those. None
        when the offers leave a hole. ``once``: leave chains out that would come to a peer again; what is
        found then is usable, and need not be the best.
        """
        begins: dict[int, list[int]] = {}
        for place, offer in offers.items():
            if offer.span.end > self.start and offer.span.start < self.end:
                begins.setdefault(max(self.start, offer.span.start), []).append(place)
        active: list[int] = []
        inside: dict[int, _Chain] = {}
        for block in range(self.start, self.end):
            active = [place for place in active if offers[place].span.end > block]
            for place in begins.get(block, ()):
                insort(active, place)
            only = forced.get(block)
            arrivals = sorted((chain, place) for place, chain in inside.items())
            onward: dict[int, _Chain] = {}
            for place in active:
                if only is not None and only != place:
                    continue
                offer = offers[place]
                stays = inside.get(place)
                enters: _Chain | None = None
                if block == self.start:
                    enters = (offer.first_ns, 0, ())
                elif block in self._cuts:
                    enters = self._best_entry(place, arrivals, inside, stays, once)
                chain = stays
                if enters is not None:
                    cost, hops = enters[0] + offer.enter_ns, enters[1] + 1
                    if stays is None or (cost, hops) <= stays[:2]:
                        entered = (cost, hops, (*enters[2], place * MAX_BLOCKS + block))
                        if stays is None or entered < stays:
                            chain = entered
                if chain is not None:
                    onward[place] = (chain[0] + offer.block_ns, chain[1], chain[2])
            inside = onward
        arrived = [
            (chain[0] + self.offers[place].last_ns, chain[1], chain[2]) for place, chain in inside.items()
        ]
        return min(arrived, default=None)

    def _best_entry(
        self,
        place: int,
        arrivals: Sequence[tuple[_Chain, int]],
        inside: Mapping[int, _Chain],
        stays: _Chain | None,
        once: bool,
    ) -> _Chain | None:
        """The best chain that has come to the offer at ``place`` from another."""
        links, client_link, enter = (
            self._links[place],
            self.offers[place].client_link_ns,
            self.offers[place].enter_ns,
        )
        best: _Chain | None = None
        bound = stays[0] - enter if stays is not None else None  # entering for more than staying is no use
        for known, price in links.items():
            chain = inside.get(known)
            if chain is None or (once and _uses(chain, place)):
                continue
            come = (chain[0] + price, chain[1], chain[2])
            if best is None or come < best:
                best = come
        if best is not None and (bound is None or best[0] < bound):
            bound = best[0]
        for chain, origin in arrivals:
            if bound is not None and chain[0] + client_link > bound:
                break  # no later arrival can be cheaper
            if origin == place or origin in links or (once and _uses(chain, place)):
                continue
            theirs = self.offers[origin].client_link_ns
            come = (chain[0] + max(client_link, theirs), chain[1], chain[2])
            if best is None or come < best:
                best = come
                if bound is None or best[0] < bound:
                    bound = best[0]
            if theirs <= client_link:
                break  # arrivals are in order: later ones cost as much or more, over no shorter link
        return best

    def first_repeat(self, chain: _Chain) -> tuple[int, int] | None:
        """The place of an offer that the chain uses twice, and a block between its two hops."""
        ends: dict[int, int] = {}
        for place, span in self._hops(chain):
            if place in ends:
                return place, ends[place]
            ends[place] = span.end
        return None

    def hops(self, chain: _Chain) -> list[tuple[Offer, Span]]:
        return [(self.offers[place], span) for place, span in self._hops(chain)]

    def _hops(self, chain: _Chain) -> list[tuple[int, Span]]:
        entries = [divmod(entry, MAX_BLOCKS) for entry in chain[2]]
        ends = [block for _, block in entries[1:]] + [self.end]
        return [(place, Span(block, end)) for (place, block), end in zip(entries, ends, strict=True)]


def _uses(chain: _Chain, place: int) -> bool:
    return any(entry // MAX_BLOCKS == place for entry in chain[2])


def _farthest_first(offers: Sequence[Offer], start: int, end: int) -> list[tuple[Offer, Span]]:
    """The chain that always takes the offer that goes farthest. It uses no peer twice, at any cost."""
    hops: list[tuple[Offer, Span]] = []
    while start < end:
        here = [offer for offer in offers if start in offer.span]
        offer = min(here, key=lambda offer: (-offer.span.end, offer.rank, offer.peer_id))
        hops.append((offer, Span(start, min(end, offer.span.end))))
        start = offer.span.end
    return hops


def _narrowed(offers: Mapping[int, Offer], place: int, start: int, end: int) -> dict[int, Offer]:
    """The offers, the one at ``place`` only for its blocks from ``start`` to ``end``."""
    narrowed = dict(offers)
    offer = narrowed.pop(place, None)
    if offer is not None:
        first, last = max(start, offer.span.start), min(end, offer.span.end)
        if first < last:
            narrowed[place] = replace(offer, span=Span(first, last))
    return narrowed
