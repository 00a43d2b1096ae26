"""Finished pages by what they hold, so that a prompt that begins like an earlier one skips what is known.

A page belongs to its owner, the authenticated peer whose session computed it, and only this peer finds it: by
the span, and by the name that it gave the page, a keyed hash over all tokens up to the page's end. A page is
registered once the step that completed it was answered. The allocator decides which unheld pages go first
when memory is needed: those of the owner that has most (see ``owner_lru``), least recently let go first.
Sessions let their pages go from the last to the first, so that a sequence loses its end before its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...swarm.fairness.shares import Holder
from ...swarm.types import Span
from .page_allocator import Page, PageAllocator, PrefixKey


class PrefixCache:
    """Each owner has a cache of its own. At most one page a key, so all can never hold more than the pool."""

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self._pages: dict[PrefixKey, Page] = {}
        allocator.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._pages)

    def take(self, owner: str, span: Span, names: Sequence[bytes]) -> list[Page]:
        """The owner's pages of the longest known beginning of ``names``, each held once more."""
        taken: list[Page] = []
        for name in names:
            page = self._pages.get((owner, span.start, span.end, name))
            if page is None or not self._allocator.share(page):
                break
            taken.append(page)
        return taken

    def register(self, owner: Holder, span: Span, name: bytes, page: Page) -> bool:
        """Name a held page that will not change any more; False if the name or the page is taken."""
        key = (owner.peer_id, span.start, span.end, name)
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
