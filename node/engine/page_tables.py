"""Which pages a session's tokens live in, and which it must get or copy before it writes. Plain ints.

Pages are appended as the session grows into them. After a rollback they stay, to be written again. A page
that others hold, or that the prefix cache names, is never written: the session gets one of its own first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from .page_allocator import Page, PageAllocator
from .prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class PageChange:
    """Entry ``index`` of a table becomes ``slots``, after their content was copied from ``sources`` (empty:
    nothing in them is read before it is written)."""

    index: int
    slots: tuple[int, ...]
    sources: tuple[int, ...] = ()


def pages_for(tokens: int, page_tokens: int = PAGE_TOKENS) -> int:
    return -(-tokens // page_tokens)


def slots_for(tokens: int, blocks: int, page_tokens: int = PAGE_TOKENS) -> int:
    """Slots of a pool that holds ``tokens`` tokens of ``blocks`` blocks, in whole pages."""
    return pages_for(tokens, page_tokens) * blocks


class PageTable:
    """The pages of one session over ``blocks`` blocks. All it may still need is reserved in the allocator.

    Made by ``open`` or ``fork``; ``release`` ends it.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        cache: PrefixCache,
        blocks: int,
        page_tokens: int,
        max_pages: int,
        pages: list[Page],
        claim: int = -1,
    ) -> None:
        self._allocator = allocator
        self._cache = cache
        self._blocks = blocks
        self._page_tokens = page_tokens
        self._claim = claim  # index of the page with our claim on it
        self.max_pages = max_pages
        self.pages = pages

    @classmethod
    def open(
        cls,
        allocator: PageAllocator,
        cache: PrefixCache,
        blocks: int,
        page_tokens: int,
        max_tokens: int,
        held: Sequence[Page] = (),
    ) -> PageTable | None:
        """A table for ``max_tokens`` tokens that begins with ``held`` pages, which it takes over in any case.
        None: no room."""
        max_pages = pages_for(max_tokens, page_tokens)
        if not allocator.reserve((max_pages - len(held)) * blocks):
            for page in reversed(held):
                allocator.release(page)
            return None
        return cls(allocator, cache, blocks, page_tokens, max_pages, list(held))

    def fork(self, tokens: int, length: int, max_tokens: int) -> PageTable | None:
        """A table that shares this one's first ``tokens`` tokens. None: no room.

        ``length``: tokens that this table's own session has.
        """
        whole, part = divmod(tokens, self._page_tokens)
        max_pages = pages_for(max_tokens, self._page_tokens)
        if tokens > length or pages_for(tokens, self._page_tokens) > min(len(self.pages), max_pages):
            raise LocalProtocolError(
                f"a fork of {tokens} tokens out of {length} into {max_tokens} is not possible"
            )
        allocator = self._allocator
        shared: list[Page] = []
        claimed = False
        for index in range(whole + (part > 0)):
            page, last = self.pages[index], index == whole
            if last and length // self._page_tokens == index and self._claim == -1 and allocator.claim(page):
                self._claim = index  # our own next token goes there too
            if not allocator.share(page, claim=last):
                break
            shared.append(page)
            claimed = last
        complete = len(shared) == whole + (part > 0)
        if complete and allocator.reserve((max_pages - len(shared)) * self._blocks):
            return PageTable(
                allocator,
                self._cache,
                self._blocks,
                self._page_tokens,
                max_pages,
                shared,
                whole if claimed else -1,
            )
        for page in reversed(shared):
            allocator.release(page, claim=claimed and page is shared[-1])
        return None

    def write(self, start: int, count: int, *, quiet: bool) -> Sequence[PageChange] | None:
        """Make positions ``start`` to ``start + count`` writable: what must change in the table before, in
        order. None, and nothing changed, if that takes slots that were not reserved and are not there.

        ``quiet``: no step of the session is under way, so that what is about to be overwritten is not read.
        """
        first, last = start // self._page_tokens, (start + count - 1) // self._page_tokens
        pages = self.pages
        if first == last and first < len(pages):
            page = pages[first]
            if page.holders == 1 and page.key is None and not page.claims:
                return ()
        if count < 1 or last >= self.max_pages or first > len(pages):
            raise LocalProtocolError(
                f"{count} tokens from {start} on do not fit a table of {len(pages)} pages"
            )
        spare = self._room_beside_copies(first, last)
        if spare < 0:
            return None
        changes: list[PageChange] = []
        let_go: list[Page] = []
        for index in range(first, min(last + 1, len(pages))):
            old, claimed = pages[index], index == self._claim
            if claimed:
                self._claim = -1
            if old.holders > 1:
                self._allocator.release(old, claim=claimed)
            else:
                if claimed:
                    self._allocator.unclaim(old)
                if old.key is None or spare < self._blocks:  # ours alone, or no room to keep it cached too
                    if old.key is not None:
                        self._cache.unregister(old)
                    continue
                spare -= self._blocks
                let_go.append(old)
            pages[index] = new = self._take()
            keep = index * self._page_tokens < start or not quiet
            changes.append(PageChange(index, new.slots, old.slots if keep else ()))
        while len(pages) <= last:
            page = self._allocator.allocate(self._blocks)
            changes.append(PageChange(len(pages), page.slots))
            pages.append(page)
        for page in reversed(let_go):  # only now: a source must not be evicted to become a target
            self._allocator.release(page)
        return changes

    def _room_beside_copies(self, first: int, last: int) -> int:
        """Available slots once every page shared with others was copied; negative: there are not enough."""
        room = self._allocator.available
        for index in range(first, min(last + 1, len(self.pages))):
            page = self.pages[index]
            if page.holders > 1 and self._allocator.copies_without_promise(page, claim=index == self._claim):
                room -= self._blocks
        return room

    def _take(self) -> Page:
        if not self._allocator.reserve(self._blocks):
            raise LocalProtocolError("a copy of a page was counted but is not there")
        return self._allocator.allocate(self._blocks)

    def release(self) -> None:
        """Give everything back, the last page first: the prefix cache keeps beginnings longest."""
        self._allocator.unreserve((self.max_pages - len(self.pages)) * self._blocks)
        for index in range(len(self.pages) - 1, -1, -1):
            self._allocator.release(self.pages[index], claim=index == self._claim)
        self.pages = []
        self.max_pages = 0
        self._claim = -1
