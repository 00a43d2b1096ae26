"""States far back in a session, which only the cache keeps: in room that is promised to nobody, until someone
needs it. They have names that nobody else knows, as the session alone goes back to them.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from ....swarm.fairness.shares import Holder
from ....swarm.types import Span
from .page_allocator import Page
from .prefix_cache import PrefixCache
from .state_table import StateTable

MOST_MARKS = 32
"""A session keeps the last 32 marks, which are 512 tokens apart. That is more than a client sends of a prompt
without waiting, and so more than the other hops go back when one dies meanwhile."""
_NAME_BYTES = 16


class Marks:
    """The marks of one session of ``owner`` over ``span``, whose states ``table`` has."""

    def __init__(self, cache: PrefixCache, owner: Holder, span: Span, table: StateTable) -> None:
        self._cache, self._owner, self._span, self._table = cache, owner, span, table
        self._names: dict[int, bytes] = {}  # by the number of the page, ascending
        self._seen = 0  # pages that were looked at

    def add(self, first: int, end: int, waiting: Collection[int]) -> None:
        """Mark states of pages ``first`` to ``end``, which are complete and answered. ``waiting``: where the
        session's steps that are under way start."""
        for index in range(max(first, self._seen), end):
            if (page := self._table.to_name(index, last=False)) is None:
                continue
            name = secrets.token_bytes(_NAME_BYTES)
            if self._cache.register(self._owner, self._span, None, name, page):
                self._names[index] = name
            self._table.named(index, waiting)
        self._seen = max(self._seen, end)
        while len(self._names) > MOST_MARKS:
            self._drop(next(iter(self._names)))

    def rollback(self, pages: int) -> None:
        """Forget the marks from page number ``pages`` on: these pages are going to be others."""
        self._seen = min(self._seen, pages)
        for index in [index for index in self._names if index >= pages]:
            self._drop(index)

    def ends(self) -> dict[int, Page]:
        """The states that are still there, by the number of pages up to their end."""
        found = {index + 1: self._page(name) for index, name in self._names.items()}
        return {count: page for count, page in found.items() if page is not None}

    def _drop(self, index: int) -> None:
        if (page := self._page(self._names.pop(index))) is not None:
            self._cache.unregister(page)

    def _page(self, name: bytes) -> Page | None:
        return self._cache.ends(self._owner.peer_id, self._span, [name]).get(1)
