"""The fastest chain of nodes when some may take any span their memory allows: branch and bound over the order
in which nodes come.

For a sequence of nodes the cost of every border after them is a vector; one more node is a minimum over where
it was entered. What is left to do costs at least the fastest nodes' computing, filled up to their memory.
Exact if it ends within its limit, else the best that was found: likely nodes are tried first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..routing.best_route import Prices
from ..types import NodeInfo, Span
from .span_costs import times_until
from .swarm_view import Machine, SwarmView

STEPS = 1000
"""The search looks at up to this many sequences, which takes some tens of milliseconds."""
QUICK_STEPS = 400
"""The same for a serving node, which asks from time to time."""
MOST = 12
"""At most this many nodes are tried, the likeliest first."""

Costs = NDArray[np.float64]


def fastest_chain(
    machines: Sequence[Machine], fixed: Sequence[NodeInfo], view: SwarmView, within_s: float
) -> dict[str, Span] | None:
    """Spans of those ``machines`` that are in the chain, by peer id; None where no chain takes less than
    ``within_s`` seconds a token. ``fixed`` serve their spans. ``view`` gives the prices only."""
    search = _Search(machines, fixed, view)
    search.find(within_s)
    return search.spans


def may_be_faster(
    machines: Sequence[Machine], fixed: Sequence[NodeInfo], view: SwarmView, within_s: float
) -> bool | None:
    """Whether there is a chain that takes less than ``within_s``; None where that was not found out."""
    search = _Search(machines, fixed, view)
    search.steps = QUICK_STEPS
    search.find(within_s)
    if search.spans is not None:
        return True
    known = search.steps > 0 and search.n_nodes <= MOST
    return False if known else None


class _Search:
    def __init__(self, machines: Sequence[Machine], fixed: Sequence[NodeInfo], view: SwarmView) -> None:
        n = self.n = view.shape.n_blocks
        prices = Prices(view.edges, view.request)
        flexible = {machine.peer_id: machine.max_blocks for machine in machines}
        nodes = [*(machine.serving(Span(0, n), n) for machine in machines if machine.max_blocks > 0), *fixed]

        def likely(node: NodeInfo) -> tuple[float, str]:
            most = min(flexible.get(node.peer_id, len(node.span)), n)
            return prices.hop(node)[1] + prices.client_link(node.peer_id) / most, node.peer_id

        self.n_nodes = len(nodes)
        nodes = sorted(nodes, key=likely)[:MOST]
        self.peers = [node.peer_id for node in nodes]
        self.spans: dict[str, Span] | None = None
        self.best_ns = np.inf
        self._flexible = flexible
        self._nodes = nodes
        self.steps = STEPS
        self._most = [min(flexible.get(node.peer_id, len(node.span)), n) for node in nodes]
        self._until = times_until(view.shape)
        self._closed = view.shape.closed
        self._least_time = min(view.shape.times, default=1.0)
        self._enter = [float(prices.hop(node)[0]) for node in nodes]
        self._block = [float(prices.hop(node)[1]) for node in nodes]
        self._in = [float(prices.link("", peer_id)) for peer_id in self.peers]
        self._out = [float(prices.link(peer_id, "")) for peer_id in self.peers]
        self._links = [[float(prices.link(a, b)) if a != b else 0.0 for b in self.peers] for a in self.peers]
        self._fast_first = sorted(range(len(nodes)), key=self._block.__getitem__)
        self._home = min(self._out, default=0.0)
        between = (link for a, links in enumerate(self._links) for b, link in enumerate(links) if a != b)
        self._step = min(between, default=0.0)

    def find(self, within_s: float) -> None:
        self.best_ns = within_s * 1e9
        start = np.full(self.n + 1, np.inf)
        start[0] = 0.0
        self.extend(start, [], 0)

    def extend(self, costs: Costs, order: list[int], used: int) -> None:
        """Try every node after those of ``order``, whose chain costs ``costs`` [b] up to border b."""
        rest = self._rest(used)
        grown: list[tuple[float, int, Costs]] = []
        for place in range(len(self.peers)):
            if used >> place & 1 or self.steps <= 0:
                continue
            self.steps -= 1
            onward = self._with(costs, place, order[-1] if order else -1)
            done = onward[self.n] + self._out[place]
            if done < self.best_ns - 0.5:
                self.best_ns = float(done)
                self.spans = self._spans([*order, place])
            promise = float(np.min((onward + rest)[:-1], initial=np.inf)) + self._home
            if promise < self.best_ns:
                grown.append((promise, place, onward))
        for promise, place, onward in sorted(grown, key=lambda branch: branch[:2]):
            if promise < self.best_ns:
                self.extend(onward, [*order, place], used | 1 << place)

    def _with(self, costs: Costs, place: int, last: int) -> Costs:
        """Costs of the borders after ``place``, which came next."""
        link = self._in[place] if last < 0 else self._links[last][place]
        block, most, node = self._block[place], self._most[place], self._nodes[place]
        flexible = node.peer_id in self._flexible
        computed = (self._until if flexible else np.arange(self.n + 1)) * block
        entered = costs + link + self._enter[place] - computed
        if flexible:
            padded = np.concatenate([np.full(most, np.inf), entered[:-1]])
            least = np.lib.stride_tricks.sliding_window_view(padded, most).min(axis=1)
        else:
            entered[: node.span.start] = np.inf
            least = np.concatenate([[np.inf], np.minimum.accumulate(entered)[:-1]])
            least[node.span.end + 1 :] = np.inf
        reached = np.asarray(least + computed)
        reached[self._closed] = np.inf
        return reached

    def _rest(self, used: int) -> Costs:
        """[b]: what the blocks from ``b`` on cost at least on nodes that are not in ``used``: the fastest
        compute all they can, and the largest make as few links as can be."""
        free = [place for place in self._fast_first if not used >> place & 1]
        fill: list[float] = []
        for place in free:
            fill += [self._block[place] * self._least_time] * min(self._most[place], self.n - len(fill))
        fill += [np.inf] * (self.n - len(fill))
        links: list[float] = []
        for most in sorted((self._most[place] for place in free), reverse=True):
            links += [self._step, *([0.0] * (most - 1))]
        links += [0.0] * self.n
        return np.concatenate([[0.0], np.cumsum(np.array(fill) + links[: self.n])])[::-1]

    def _spans(self, order: Sequence[int]) -> dict[str, Span]:
        """The borders of the best chain in this order, from its end to its beginning."""
        start = np.full(self.n + 1, np.inf)
        start[0] = 0.0
        reached = [start]
        for place, last in zip(order, [-1, *order], strict=False):
            reached.append(self._with(reached[-1], place, last))
        spans: dict[str, Span] = {}
        end = self.n
        for number in reversed(range(len(order))):
            place, node = order[number], self._nodes[order[number]]
            flexible = node.peer_id in self._flexible
            first = max(0, end - self._most[place]) if flexible else node.span.start
            until = self._until if flexible else np.arange(self.n)
            entered = reached[number][first:end] - until[first:end] * self._block[place]
            begin = first + int(np.argmin(entered))
            if flexible:
                spans[node.peer_id] = Span(begin, end)
            end = begin
        return spans
