"""Which pages a session's tokens live in, and which it must get or copy before it writes. Plain ints.

Pages are appended as the session grows into them. After a rollback they stay, to be written again. A page
that others hold, or that the prefix cache names, is never written: the session gets one of its own first.

In blocks that see only so far back (``KvGroup``), the page that comes next takes the slots of the first one
that is held, once there are ``most``. Steps are computed in order, and no batch reads the one and writes the
other, so a step that waits still finds in its table what it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from .kv_layout import KvGroup, KvLayout
from .page_allocator import Page, PageAllocator
from .prefix_cache import Known, PrefixCache


@dataclass(frozen=True, slots=True)
class PageChange:
    """Entry ``index`` of a table's ``rows`` becomes ``slots``, after their content was copied from
    ``sources`` (empty: nothing in them is read before it is written)."""

    rows: slice | list[int]
    index: int
    slots: tuple[int, ...]
    sources: tuple[int, ...] = ()


def pages_for(tokens: int, page_tokens: int = PAGE_TOKENS) -> int:
    return -(-tokens // page_tokens)


class PageTable:
    """The pages of one session. All it may still need is reserved in the allocator.

    ``n_pages``: those that were let go included, also where no block needs any. ``lowest``: no step may start
    below it, as a block would see pages that were let go. Made by ``open`` or ``fork``; ``release`` ends it.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        cache: PrefixCache,
        layout: KvLayout,
        max_pages: int,
        groups: list[GroupPages],
    ) -> None:
        """Use ``open`` or ``fork``."""
        self._allocator = allocator
        self._cache = cache
        self._layout = layout
        self._page_tokens = layout.page_tokens
        self.max_pages = max_pages
        self.groups = groups
        self.n_pages = 0
        self.lowest = _lowest(groups)

    @classmethod
    def open(
        cls,
        allocator: PageAllocator,
        cache: PrefixCache,
        layout: KvLayout,
        max_tokens: int,
        known: Known | None = None,
    ) -> PageTable | None:
        """A table for ``max_tokens`` tokens that begins with the pages ``known``. None: no room."""
        max_pages = pages_for(max_tokens, layout.page_tokens)
        groups = [GroupPages(allocator, group, max_pages) for group in layout.groups]
        begun = known is None or all(
            each.begin(pages, known.count) for each, pages in zip(groups, known.pages, strict=True)
        )
        if not _promise(allocator, groups, begun):
            return None
        table = cls(allocator, cache, layout, max_pages, groups)
        table.n_pages = 0 if known is None else known.count
        return table

    def fork(
        self, tokens: int, length: int, max_tokens: int, *, seen_from: int | None = None
    ) -> PageTable | None:
        """A table that shares this one's first ``tokens`` tokens. None: no room.

        ``length``: tokens that this table's own session has. ``seen_from``: the first position that the fork
        will be fed from; None: ``tokens``.
        """
        seen_from = tokens if seen_from is None else seen_from
        page_tokens = self._page_tokens
        max_pages = pages_for(max_tokens, page_tokens)
        if not self.lowest <= seen_from <= tokens <= length or pages_for(tokens, page_tokens) > min(
            self.n_pages, max_pages
        ):
            raise LocalProtocolError(
                f"a fork of {tokens} tokens, of {self.lowest} to {length}, into {max_tokens} is not possible"
            )
        groups = [GroupPages(self._allocator, group, max_pages) for group in self._layout.groups]
        begun = all(
            new.begin_like(old, tokens, seen_from, length)
            for new, old in zip(groups, self.groups, strict=True)
        )
        if not _promise(self._allocator, groups, begun):
            return None
        table = PageTable(self._allocator, self._cache, self._layout, max_pages, groups)
        table.n_pages = pages_for(tokens, page_tokens)
        return table

    def at(self, index: int) -> list[tuple[KvGroup, Page]]:
        """Each group's page of that index, where it is held."""
        pages = [(each.group, each.pages[index]) for each in self.groups]
        return [(group, page) for group, page in pages if page is not None]

    def entries(self) -> Iterator[PageChange]:
        """What a table without entries lacks."""
        for each in self.groups:
            for index in range(each.first, len(each.pages)):
                yield PageChange(each.group.rows, index, each.held(index).slots)

    def begin_lower(self, known: Known) -> bool:
        """In blocks with a window, hold the ``known`` pages and nothing behind them; False, and nothing
        changed, where there is no room for that beside what is held. No step must be under way."""
        lower: list[GroupPages] = []
        begun = True
        for old, pages in zip(self.groups, known.pages, strict=True):
            if old.group.reach:
                lower.append(GroupPages(self._allocator, old.group, self.max_pages))
                begun = begun and lower[-1].begin(pages, known.count)
        if not _promise(self._allocator, lower, begun):
            return False
        whole = [each for each in self.groups if not each.group.reach]
        higher = [each for each in self.groups if each.group.reach]
        self._allocator.unreserve(sum(each.promised for each in higher))
        _let_go(higher)
        self.groups = whole + lower
        if not whole:
            self.n_pages = known.count
        self.lowest = _lowest(self.groups)
        return True

    def write(self, start: int, count: int, *, waiting: int | None) -> Sequence[PageChange] | None:
        """Make positions ``start`` to ``start + count`` writable: what must change in the table before, in
        order. None, and nothing changed, if that takes slots that were not reserved and are not there.

        ``waiting``: the first position that a step of the session which is under way reads or writes from;
        None: there is none, and what is about to be overwritten is not read.
        """
        page_tokens = self._page_tokens
        first, last = start // page_tokens, (start + count - 1) // page_tokens
        if first == last and first < self.n_pages:
            for each in self.groups:  # ``is_own``, written out: each token comes here
                if first >= len(each.pages) or first == each.claim:
                    break
                page = each.pages[first]
                if page is None or page.holders != 1 or page.key is not None:
                    break
            else:
                return ()
        if count < 1 or last >= self.max_pages or first > self.n_pages or start < self.lowest:
            raise LocalProtocolError(
                f"{count} tokens from {start} on do not fit a table of {self.n_pages} pages, seen from "
                f"{self.lowest} on"
            )
        room = self._allocator.available - sum(each.slots_for_copies(first, last) for each in self.groups)
        if room < 0:
            return None
        work = _Write(start, start if waiting is None else min(start, waiting), waiting is None, room)
        for each in self.groups:
            each.write(first, last, work, self._cache)
            self.lowest = max(self.lowest, each.lowest)
        self.n_pages = max(self.n_pages, last + 1)
        for page in reversed(work.let_go):  # only now: a source must not be evicted to become a target
            self._allocator.release(page)
        return work.changes

    def release(self) -> None:
        """Give everything back, the last page first: the prefix cache keeps beginnings longest."""
        self._allocator.unreserve(sum(each.promised for each in self.groups))
        _let_go(self.groups)
        self.groups = [GroupPages(self._allocator, each.group, 0) for each in self.groups]
        self.max_pages = self.n_pages = 0


class _Write:
    """One write while it is planned. ``seen_from``: the lowest position that is computed from then on."""

    def __init__(self, start: int, seen_from: int, quiet: bool, room: int) -> None:
        self.start = start
        self.seen_from = seen_from
        self.quiet = quiet
        self.room = room  # slots that nobody needs
        self.changes: list[PageChange] = []
        self.let_go: list[Page] = []


class GroupPages:
    """A session's pages in the blocks of one group. ``first``: those before it are not held any more, and are
    None in ``pages``.

    A page whose slots will be taken for a later one has the session's claim from the beginning, so that the
    later one is promised, whoever shares the first. So has ``claim``, the index of a last page that the
    session is going to write on in.
    """

    __slots__ = ("_allocator", "_max_pages", "claim", "first", "group", "pages")

    def __init__(self, allocator: PageAllocator, group: KvGroup, max_pages: int) -> None:
        self.group = group
        self.pages: list[Page | None] = []
        self.first = 0
        self.claim = -1
        self._allocator = allocator
        self._max_pages = max_pages

    @property
    def lowest(self) -> int:
        """The lowest position from which everything that is seen is held."""
        return self.first * self.group.page_tokens + self.group.reach - 1 if self.first else 0

    @property
    def promised(self) -> int:
        """Slots that the session may still need."""
        pages = min(self._max_pages, self.first + self.group.most) - len(self.pages)
        return max(0, pages) * self.group.blocks

    def begin(self, pages: Sequence[Page], count: int) -> bool:
        """Hold ``pages``, the last ones of ``count``; False: no room for all."""
        self.first = count - len(pages)
        self.pages = [None] * self.first
        for page in pages:
            if not self._allocator.share(page, claim=self._is_reused(len(self.pages))):
                return False
            self.pages.append(page)
        return True

    def begin_like(self, parent: GroupPages, tokens: int, seen_from: int, length: int) -> bool:
        """Share what positions ``seen_from`` to ``tokens`` see of ``parent``, whose session has ``length``
        tokens; False: no room for all."""
        whole, part = divmod(tokens, self.group.page_tokens)
        self.first = self.group.first_seen(seen_from)
        self.pages = [None] * self.first
        for index in range(self.first, whole + (part > 0)):
            page, last = parent.held(index), index == whole
            if last and length // self.group.page_tokens == index:
                parent._claim(index)  # its own next token goes there too
            if not self._allocator.share(page, claim=last or self._is_reused(index)):
                return False
            self.pages.append(page)
            if last:
                self.claim = index
        return True

    def is_own(self, index: int) -> bool:
        """Whether that page can be written as it is."""
        if index >= len(self.pages):
            return False
        page = self.pages[index]
        return page is not None and page.holders == 1 and page.key is None and index != self.claim

    def slots_for_copies(self, first: int, last: int) -> int:
        """Slots that copies of the pages ``first`` to ``last`` take and nobody promised."""
        pages = 0
        for index in range(first, min(last + 1, len(self.pages))):
            page = self.held(index)
            if page.holders > 1 and self._allocator.copies_without_promise(
                page, claim=self._is_claimed(index)
            ):
                pages += 1
        return pages * self.group.blocks

    def write(self, first: int, last: int, work: _Write, cache: PrefixCache) -> None:
        """Make the pages ``first`` to ``last`` the session's own, and append those that are not there."""
        for index in range(first, min(last + 1, len(self.pages))):
            if not self.is_own(index):
                read = index * self.group.page_tokens < work.start or not work.quiet
                self._own(index, work, cache, read)
        for index in range(len(self.pages), last + 1):
            if index == self.first + self.group.most:
                page = self._take_first(work, cache)
            else:
                page = self._allocator.allocate(self.group.blocks)
            self._append(page)
            work.changes.append(PageChange(self.group.rows, index, page.slots))

    def release(self, index: int) -> None:
        """Let a page go, if it is held."""
        if self.first <= index < len(self.pages):
            self._allocator.release(self.held(index), claim=self._is_claimed(index))

    def _own(self, index: int, work: _Write, cache: PrefixCache, read: bool) -> Page:
        """A page that nobody else has takes the place of one: with its content if that is still ``read``."""
        old, claimed = self.held(index), self._is_claimed(index)
        if index == self.claim:
            self.claim = -1
        if old.holders > 1:
            self._allocator.release(old, claim=claimed)
        else:
            if claimed:
                self._allocator.unclaim(old)
            if old.key is None or work.room < self.group.blocks:  # ours, or no room to keep it cached too
                if old.key is not None:
                    cache.unregister(old)
                return self._put(index, old)
            work.room -= self.group.blocks
            work.let_go.append(old)
        new = self._put(index, self._take())
        work.changes.append(PageChange(self.group.rows, index, new.slots, old.slots if read else ()))
        return new

    def _take_first(self, work: _Write, cache: PrefixCache) -> Page:
        """A page of the session's own for another index, in exchange for the first that it holds."""
        index, page = self.first, self.held(self.first)
        if index >= self.group.first_seen(work.seen_from) and not self.is_own(index):
            page = self._own(index, work, cache, read=True)  # a step that waits sees it
        self.pages[index] = None
        self.first += 1
        claimed = self._is_claimed(index)
        if page.holders == 1 and page.key is None:
            if claimed:
                self._allocator.unclaim(page)
        else:
            self._allocator.release(page, claim=claimed)
            page = self._take()
        if index == self.claim:
            self.claim = -1
        return page

    def _append(self, page: Page) -> None:
        self.pages.append(None)
        self._put(len(self.pages) - 1, page)

    def _put(self, index: int, page: Page) -> Page:
        """A page that the session alone holds."""
        self.pages[index] = page
        if self._is_reused(index):
            self._allocator.claim(page)
        return page

    def _take(self) -> Page:
        if not self._allocator.reserve(self.group.blocks):
            raise LocalProtocolError("a copy of a page was counted but is not there")
        return self._allocator.allocate(self.group.blocks)

    def _claim(self, index: int) -> None:
        if self.claim == -1 and not self._is_reused(index) and self._allocator.claim(self.held(index)):
            self.claim = index

    def _is_claimed(self, index: int) -> bool:
        return index == self.claim or self._is_reused(index)

    def _is_reused(self, index: int) -> bool:
        """Whether the page's slots are taken for a later one, if the session becomes as long as it may."""
        return index + self.group.most < self._max_pages

    def held(self, index: int) -> Page:
        page = self.pages[index]
        if page is None:
            raise LocalProtocolError(f"page {index} was let go, and is not the session's any more")
        return page


def _promise(allocator: PageAllocator, groups: Sequence[GroupPages], begun: bool) -> bool:
    """Reserve what the groups may still need; False, and they hold nothing, where they have not all
    ``begun`` or that is not there."""
    if begun and allocator.reserve(sum(each.promised for each in groups)):
        return True
    _let_go(groups)
    return False


def _lowest(groups: Sequence[GroupPages]) -> int:
    return max((each.lowest for each in groups), default=0)


def _let_go(groups: Sequence[GroupPages]) -> None:
    for index in range(max((len(each.pages) for each in groups), default=0) - 1, -1, -1):
        for each in groups:
            each.release(index)
