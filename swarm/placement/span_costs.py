"""The spans that one machine could serve, and what the best route costs with each; all others stay.

Two dynamic programmes over the blocks, from the front and from the back, give the cheapest way to any border
and from it; the machine between them makes a route for every span at once. Only such a route may use a node
before and after the machine, which a real one must not: so the cheapest spans are looked at again, in order
of what they promise, until none can be better.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..routing.best_route import Prices
from ..types import Span
from .swarm_view import Machine, SwarmView
from .types import ModelShape

MOST_LOOKS = 48
"""At most this many routes are searched for one machine in a small swarm, where each takes a millisecond or
less."""
LARGE = 24
LOOKS_WHEN_LARGE = 4
"""The same limit with more nodes than LARGE in the view. There a search takes tens of milliseconds, and a
route that would come back to a node is rare."""

Costs = NDArray[np.float64]
_NONE = -1
_STAYS = -2


class SpanCosts:
    """Where ``machine`` could be entered and left beside the nodes of ``view``."""

    def __init__(self, view: SwarmView, machine: Machine) -> None:
        self.view = view
        self.machine = machine
        self._prices = Prices(view.edges, view.request)
        self._nodes = [node for node in view.priced if node.peer_id != machine.peer_id]
        n, count = view.shape.n_blocks, len(self._nodes)
        self._closed = view.shape.closed
        self._whole = machine.serving(Span(0, n), n)
        prices = [self._prices.hop(node) for node in self._nodes]
        self._enter: Costs = np.array([enter for enter, _ in prices], dtype=np.float64)
        self._block: Costs = np.array([block for _, block in prices], dtype=np.float64)
        self._client_links: Costs = np.array(
            [self._prices.client_link(node.peer_id) for node in self._nodes], dtype=np.float64
        )
        self._links = self._pair_links()
        self._active = np.zeros((n, count), dtype=bool)  # (blocks, nodes)
        for place, node in enumerate(self._nodes):
            self._active[node.span.start : node.span.end, place] = True
        self._front, self._front_from = self._from_front()
        self._back, self._back_to = self._from_back()
        self._promise()

    def best(self) -> list[tuple[float, Span]]:
        """(seconds per token, the blocks the machine would carry), cheapest first; one entry at least where
        the machine can hold a span that may be served. The first is exact, the others near enough to choose
        among."""
        found: list[tuple[float, Span]] = []
        looks = LOOKS_WHEN_LARGE if len(self._nodes) > LARGE else MOST_LOOKS
        for promised, span in islice(self._in_order(), looks):
            if found and promised >= min(found)[0]:
                break
            found.append((promised if self._is_simple(span) else self._look(span), span))
        return sorted(found, key=lambda spot: (spot[0], len(spot[1]), spot[1]))

    def through(self, span: Span) -> float:
        """Seconds per token of the best route that has the machine carry all of ``span``."""
        return float(self._total[span.start, span.end]) / 1e9

    def _in_order(self) -> Iterator[tuple[float, Span]]:
        flat = self._total.ravel()
        usable = int(np.count_nonzero(np.isfinite(flat)))
        first = min(256, usable)
        if first:
            part = np.argpartition(flat, first - 1)[:first]
            for index in part[np.lexsort((part, flat[part]))]:
                start, end = divmod(int(index), self._total.shape[1])
                yield float(flat[index]) / 1e9, Span(start, end)

    def _look(self, span: Span) -> float:
        n = self.view.shape.n_blocks
        return self.view.with_node(self.machine.serving(span, n)).cost_s

    def _pair_links(self) -> Costs:
        """What it costs to go from one node (row) to another (column); infinite to itself."""
        links = np.maximum.outer(self._client_links, self._client_links)
        places = {node.peer_id: place for place, node in enumerate(self._nodes)}
        for (a, b), price in self._prices.links(self._nodes).items():
            links[places[a], places[b]] = price
        np.fill_diagonal(links, np.inf)
        return links

    def _from_front(self) -> tuple[Costs, NDArray[np.int64]]:
        """[b, p]: nanoseconds until blocks before ``b`` are done, ``p`` being the last to work."""
        n, count = self._active.shape
        costs = np.full((n + 1, count), np.inf)
        origin = np.full((n + 1, count), _NONE)
        for block in range(n):
            if block == 0:
                arrive, via = self._client_links, np.full(count, _NONE)
            else:
                come = costs[block][:, None] + self._links
                via = come.argmin(axis=0) if count else np.zeros(0, dtype=np.int64)
                arrive = come[via, np.arange(count)] if block not in self._closed else np.full(count, np.inf)
            arrive = arrive + self._enter
            stays = costs[block] <= arrive
            reached = np.where(stays, costs[block], arrive) + self._block
            costs[block + 1] = np.where(self._active[block], reached, np.inf)
            origin[block + 1] = np.where(stays, _STAYS, via)
        return costs, origin

    def _from_back(self) -> tuple[Costs, NDArray[np.int64]]:
        """[b, q]: nanoseconds for blocks from ``b`` on, ``q`` being at work already, and the link back."""
        n, count = self._active.shape
        costs = np.full((n + 1, count), np.inf)
        onward = np.full((n + 1, count), _NONE)
        for block in reversed(range(n)):
            if block == n - 1:
                rest, to = self._client_links, np.full(count, _NONE)
            else:
                go = self._links + (self._enter + costs[block + 1])[None, :]
                to = go.argmin(axis=1) if count else np.zeros(0, dtype=np.int64)
                rest = go[np.arange(count), to]
                if block + 1 in self._closed:
                    rest = np.full(count, np.inf)
                stays = costs[block + 1] <= rest
                rest, to = np.where(stays, costs[block + 1], rest), np.where(stays, _STAYS, to)
            costs[block] = np.where(self._active[block], rest + self._block, np.inf)
            onward[block] = to
        return costs, onward

    def _promise(self) -> None:
        """``_total`` [i, j]: nanoseconds of the cheapest route in which the machine carries blocks i to j."""
        n, count = self._active.shape
        prices, own = self._prices, self.machine.peer_id
        enter, block = prices.hop(self._whole)
        client_link = float(prices.client_link(own))
        to = np.array([prices.link(node.peer_id, own) for node in self._nodes], dtype=np.float64)
        on = np.array([prices.link(own, node.peer_id) for node in self._nodes], dtype=np.float64)
        before, after = np.full(n + 1, client_link), np.full(n + 1, client_link)
        self._via = np.full(n + 1, _NONE)
        self._next = np.full(n + 1, _NONE)
        for border in range(1, n):
            before[border] = after[border] = np.inf
            if count:
                come, go = self._front[border] + to, on + self._enter + self._back[border]
                self._via[border], self._next[border] = come.argmin(), go.argmin()
                before[border], after[border] = come.min(), go.min()
        starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
        length = ends - starts
        total = before[:, None] + enter + _times(self.view.shape) * block + after[None, :]
        self._total: Costs = np.where((length >= 1) & (length <= self.machine.max_blocks), total, np.inf)
        self._total[self._closed] = self._total[:, self._closed] = np.inf

    def _is_simple(self, span: Span) -> bool:
        """Whether the cheapest route around ``span`` uses no node twice."""
        used: list[int] = []
        place, block = int(self._via[span.start]), span.start
        while place != _NONE and block > 0:
            if not used or used[-1] != place:
                used.append(place)
            origin = int(self._front_from[block, place])
            block -= 1
            place = place if origin == _STAYS else origin
        place, block = int(self._next[span.end]), span.end
        while place != _NONE and block < self.view.shape.n_blocks:
            used.append(place)
            while int(self._back_to[block, place]) == _STAYS:
                block += 1
            place = int(self._back_to[block, place])
            block += 1
        return len(set(used)) == len(used)


def _times(shape: ModelShape) -> Costs:
    """[i, j]: how long blocks i to j take, in those of the mean."""
    until = times_until(shape)
    return until[None, :] - until[:, None]


def times_until(shape: ModelShape) -> Costs:
    """[b]: how long the blocks before ``b`` take, in those of the mean."""
    return np.concatenate([[0.0], np.cumsum(shape.times or np.ones(shape.n_blocks))])
