"""Finished pages by what they hold, so that a prompt that begins like an earlier one skips what is known.

The key of a page is the client's salted hash over all tokens up to the page's end, and the span it was
computed for. A page is registered once the step that completed it was answered. Which unheld pages go first
when memory is needed is the allocator's business: least recently let go first, and sessions let their pages
go from the last to the first, so that a chain loses its end before its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..swarm.types import Span
from .page_allocator import Page, PageAllocator, PrefixKey


class PrefixCache:
    """At most one page a key, so it can never hold more than the pool."""

    __slots__ = ("_allocator", "_pages")

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self._pages: dict[PrefixKey, Page] = {}
        allocator.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._pages)

    def take(self, span: Span, chain: Sequence[bytes]) -> list[Page]:
        """The pages of the longest known beginning of ``chain``, each held once more."""
        taken: list[Page] = []
        for digest in chain:
            page = self._pages.get((span.start, span.end, digest))
            if page is None or not self._allocator.share(page):
                break
            taken.append(page)
        return taken

    def register(self, span: Span, digest: bytes, page: Page) -> bool:
        """Name a held page that will not change any more; False if the name or the page is taken."""
        key = (span.start, span.end, digest)
        if page.key is not None or key in self._pages:
            return False
        page.key = key
        self._pages[key] = page
        return True

    def unregister(self, page: Page) -> None:
        """Take a page's name away: somebody is about to write to it."""
        self._forget(page)
        self._allocator.drop_key(page)

    def clear(self) -> None:
        """Forget everything."""
        for page in list(self._pages.values()):
            self.unregister(page)

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            self._pages.pop(page.key, None)
