"""Prompts that begin alike and come at the same time: what they share is fed once.

A hop keeps the pages that it computed for this client under the names that it was given (see
``routing.prefix``), as soon as it has answered for them. So a sequence that begins like one that is being fed
waits until the hops have what both share; then only the rest of it is fed. If the first one fails, the next
in line feeds in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from secrets import token_bytes

from ...swarm.protocol.field_types import PAGE_TOKENS
from ..routing.prefix import PageChain

LEAST_TOKENS = 4 * PAGE_TOKENS
"""Feeding a shorter beginning takes less time than waiting for it."""
STILL_S = 10.0
"""A feed without progress for this many seconds is not waited for any more."""


class Feed:
    """One sequence on its way through the hops, which have its first ``fed`` tokens. ``number``: feeds that
    began earlier have a lower one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fed = 0
        self.is_over = False
        self._next: asyncio.Future[None] | None = None  # done when something changes

    @property
    def is_awaited(self) -> bool:
        return self._next is not None

    def advance(self, tokens: int) -> None:
        """The hops have answered for the first ``tokens`` tokens."""
        if tokens > self.fed:
            self.fed = tokens
            self._wake()

    def end(self) -> None:
        """It is complete, or failed."""
        self.is_over = True
        self._wake()

    async def reached(self, tokens: int) -> bool:
        """Wait until the hops have the first ``tokens``, as long as there is progress. False: it ended
        before."""
        while self.fed < tokens and not self.is_over:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            done, _ = await asyncio.wait((self._next,), timeout=STILL_S)
            if not done:
                return True  # what it has reached must do
        return self.fed >= tokens

    def _wake(self) -> None:
        changed, self._next = self._next, None
        if changed is not None:
            changed.set_result(None)


class Beginnings:
    """What is being fed now, page by page. Never leaves the process."""

    def __init__(self) -> None:
        self._seed = token_bytes(32)  # hash collisions cannot be prepared
        self._feeds: dict[bytes, Feed] = {}  # by the digest of a page and all before it
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._feeds)

    @asynccontextmanager
    async def feeding(self, ids: Sequence[int]) -> AsyncIterator[Feed]:
        """Wait for the turn to feed ``ids``, and feed them inside. Never raises."""
        feed = Feed(self._numbers)
        self._numbers += 1
        pages = PageChain(self._seed).digests(ids) if len(ids) >= LEAST_TOKENS else ()
        try:
            while (found := self._claim(pages, feed)) is not None and not await found[0].reached(found[1]):
                pass  # it failed: another may have begun in its place, or this one does
            yield feed
        finally:
            feed.end()
            for page in pages:
                if self._feeds.get(page) is feed:
                    del self._feeds[page]

    def _claim(self, pages: Sequence[bytes], feed: Feed) -> tuple[Feed, int] | None:
        """The feed that has the most of these pages, and how many tokens they are; ``feed`` feeds the others.
        Only earlier feeds are waited for, so that no two wait for each other."""
        found = None
        for number, page in enumerate(pages, start=1):
            other = self._feeds.setdefault(page, feed)
            if other.number < feed.number and number * PAGE_TOKENS >= LEAST_TOKENS:
                found = other, number * PAGE_TOKENS
        return found
