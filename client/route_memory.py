"""Where the beginnings of sequences are held: the route of each finished session, found again by its tokens.

Only a preference: what the nodes still hold, they say themselves when a session opens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_bytes

from ..swarm.messages import PAGE_TOKENS
from ..swarm.types import Route
from .prefix import PageChain

MAX_PAGES = 16384
"""Pages remembered, 32 tokens each: some megabytes. Beyond it those not met for longest are forgotten."""


@dataclass(frozen=True, slots=True)
class Held:
    """A route whose hops probably hold the first ``tokens`` of a sequence."""

    route: Route
    tokens: int


class RouteMemory:
    """Token ids to routes, page by page. Never leaves the process."""

    def __init__(self, max_pages: int = MAX_PAGES) -> None:
        self._max_pages = max_pages
        self._seed = token_bytes(32)  # hash collisions cannot be prepared
        self._routes: OrderedDict[bytes, Route] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def remember(self, ids: Sequence[int], route: Route) -> None:
        """The hops of ``route`` were fed ``ids``."""
        for page in PageChain(self._seed).hashes(ids):
            self._routes[page] = route
            self._routes.move_to_end(page)
        while len(self._routes) > self._max_pages:
            self._routes.popitem(last=False)

    def recall(self, ids: Sequence[int]) -> Held | None:
        """The route that was fed the longest beginning of ``ids`` that is known."""
        pages = PageChain(self._seed).hashes(ids)
        for number in range(len(pages), 0, -1):
            route = self._routes.get(pages[number - 1])
            if route is not None:
                return Held(route, number * PAGE_TOKENS)
        return None
