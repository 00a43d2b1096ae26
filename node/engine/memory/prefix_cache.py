"""Finished pages by what they hold, so that a prompt that begins like an earlier one skips what is known.

A page belongs to its owner, the authenticated peer whose session computed it, and only this peer finds it: by
the span, and by the name that it gave the page, a keyed hash over all tokens up to the page's end. A page is
registered once the step that completed it was answered. The allocator decides which unheld pages go first
when memory is needed: those of the owner that has most (see ``owner_lru``), least recently let go first.
Sessions let their pages go from the last to the first, so that a sequence loses its end before its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....swarm.fairness.shares import Holder
from ....swarm.types import Span
from .kv_layout import KvGroup, KvLayout
from .page_allocator import Page, PageAllocator, PrefixKey


@dataclass(frozen=True, slots=True)
class Known:
    """The first ``count`` pages of a sequence. ``pages``: of each group, the last of them: those that their
    last token sees, which a client may feed again. ``state``: that after them, of blocks that keep one."""

    count: int
    pages: tuple[list[Page], ...]
    state: Page | None = None


class PrefixCache:
    """Each owner has a cache of its own. At most one page a key, so all can never hold more than the pool.
    States have a cache beside that of pages, since their allocator is another one."""

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self._pages: dict[PrefixKey, Page] = {}
        allocator.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._pages)

    def find(
        self,
        owner: str,
        span: Span,
        layout: KvLayout,
        names: Sequence[bytes],
        *,
        long_context: bool = False,
        states: Mapping[int, Page] | None = None,
    ) -> Known:
        """The owner's pages of the longest beginning of ``names`` that a session can go on from. Nobody holds
        them yet. ``states``: those that are known, by the number of pages before them; None: blocks keep
        none."""
        count = len(names)
        found: list[list[Page | None]] = []
        runs: list[list[int]] = []  # pages that are there one after another, up to each
        for group in layout.groups:
            pages: list[Page | None] = []
            run: list[int] = []
            for name in names[:count]:
                key = PrefixKey(owner, span.start, span.end, long_context, group.reach, name)
                page = self._pages.get(key)
                if page is None and not group.reach:
                    break
                pages.append(page)
                run.append(0 if page is None else run[-1] + 1 if run else 1)
            count = len(pages)
            found.append(pages)
            runs.append(run)
        while count and not (
            (states is None or count in states)
            and all(
                run[count - 1] >= count - first
                for run, first in zip(runs, _firsts(layout, count), strict=True)
            )
        ):
            count -= 1
        firsts = _firsts(layout, count)
        seen = zip(found, firsts, strict=True)
        pages_seen = tuple([page for page in pages[first:count] if page] for pages, first in seen)
        return Known(count, pages_seen, states.get(count) if states else None)

    def ends(
        self, owner: str, span: Span, names: Sequence[bytes], *, long_context: bool = False
    ) -> dict[int, Page]:
        """The owner's states after pages of that name, by the number of pages up to their end."""
        found: dict[int, Page] = {}
        for count, name in enumerate(names, 1):
            page = self._pages.get(PrefixKey(owner, span.start, span.end, long_context, 0, name))
            if page is not None:
                found[count] = page
        return found

    def register(
        self,
        owner: Holder,
        span: Span,
        group: KvGroup | None,
        name: bytes,
        page: Page,
        *,
        long_context: bool = False,
    ) -> bool:
        """Name a held page that will not change any more; False if the name or the page is taken. ``group``:
        None in a cache of states."""
        reach = group.reach if group else 0
        key = PrefixKey(owner.peer_id, span.start, span.end, long_context, reach, name)
        if page.key is not None or key in self._pages:
            return False
        page.key, page.owner = key, owner
        self._pages[key] = page
        return True

    def unregister(self, page: Page) -> None:
        """Take a page's name away: a session is about to write to it."""
        self._forget(page)
        self._allocator.drop_key(page)

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            self._pages.pop(page.key, None)


def _firsts(layout: KvLayout, count: int) -> list[int]:
    """The first page of each group that the last token of ``count`` pages sees."""
    return [group.first_seen(count * layout.page_tokens - 1) for group in layout.groups]
