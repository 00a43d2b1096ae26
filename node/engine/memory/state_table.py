"""Of which positions a session holds the states of blocks that keep one. Plain ints.

A page's state is that after its last token, or after the session's last one where that comes earlier. It
takes one slot in each of these blocks (``StateGroup``). The page before a step's first one is its *border*:
the state there never changes while the step is under way, so that the step can begin there again with the
rows that came since. A step of many pages has states of its own for its last ones; those before, and the
first of the last ones, have one in turn: so a batch that ends in between finds it, but no step can begin
there later.

Each NAMED_EVERY pages, states are kept *beside*, in room that was promised to nobody, until they have a name
and the cache keeps them: so what begins alike and then differs, or goes back, computes 512 tokens again at
most. Nobody's quota counts them. So they are kept only while half of all room is free for sessions, and no
longer than the steps that read or write them wait.

A short step in the middle of a page may be a draft that is partly wrong. Where there is such room, the state
before it is *saved*: its slot becomes the saved one, and the page gets another. So a step that begins a few
rows later needs those rows alone, and not all from the border on. Of short steps that go on from each other,
which may be one draft, the state before the first one stays saved: a draft mostly errs near its beginning.

What a step changes in the table of slots takes place when the step begins, not when it was planned: steps
before it, which wait, still use the same slots as they were. So nothing is ever copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ....swarm.errors import LocalProtocolError
from ....swarm.figures import MOST_AHEAD_OF_STATES
from .kv_layout import Rows, StateGroup
from .page_allocator import Page, PageAllocator
from .prefix_cache import PrefixCache

NAMED_EVERY = 16
"""States get names at the end of each 16th page, and at the end of what was named."""
LONGEST_DRAFT = 33
"""Tokens of a step before which a state is saved, at most: one that is sure, and 32 guesses."""


class SavedState(NamedTuple):
    """That before a step at position ``start``, in the middle of a page."""

    start: int
    page: Page


@dataclass(frozen=True, slots=True)
class StateChange:
    """Entries ``start`` to ``stop`` of a table's ``rows`` become ``slots``, one for each of the rows."""

    rows: Rows
    start: int
    stop: int
    slots: tuple[int, ...]


class StateTable:
    """The states of one session, for which ``most`` pages are reserved, shared ones included: whoever has a
    page counts it, so that each of them may let it go, and take another one.

    ``pages``: pages by their number. Those behind the end of what the session holds are to be written again.
    ``saved``: of the last step, if it is; its slots, and those of the page where it began, change places with
    each such step. Made by ``open``; ``release`` ends it.
    """

    def __init__(
        self, allocator: PageAllocator, cache: PrefixCache, group: StateGroup, max_pages: int
    ) -> None:
        """Use ``open``."""
        self._allocator = allocator
        self._cache = cache
        self._group = group
        self._most = min(group.most, max_pages)
        self._page_tokens = group.page_tokens
        self.pages: dict[int, Page] = {}
        self.saved: SavedState | None = None
        self._end = 0  # of the step after which something was saved
        self._beside: dict[int, Page] = {}
        self._spent: list[tuple[int, Page]] = []  # were beside: let go when so many steps were answered
        self._spare: list[Page] = []  # our own, and of no use: steps that wait may still write to them

    @classmethod
    def open(
        cls,
        allocator: PageAllocator,
        cache: PrefixCache,
        group: StateGroup,
        max_pages: int,
        shared: Mapping[int, Page],
    ) -> StateTable | None:
        """For a session that begins with some complete pages that others hold, or held. None: no room."""
        table = cls(allocator, cache, group, max_pages)
        if not allocator.reserve(table._most * group.blocks):
            return None
        for index in sorted(shared)[-table._most :]:
            table._share(index, shared[index])
        return table

    @property
    def rows(self) -> Rows:
        """Of a table: those of blocks that keep a state."""
        return self._group.rows

    def before(self, position: int) -> dict[int, Page]:
        """The complete pages before ``position``."""
        return {index: page for index, page in self.pages.items() if index < position // self._page_tokens}

    def begins_at(self, position: int) -> bool:
        """Whether the border before ``position`` is held."""
        border = self.border(position)
        return border < 0 or border in self.pages

    def border(self, position: int) -> int:
        """The page whose end is the last one that is not behind ``position``; -1: it is the beginning."""
        return position // self._page_tokens - 1

    def last_border(self, position: int, lowest: int) -> int | None:
        """The last position up to ``position``, and from ``lowest`` on, at which a session can begin without
        rows before it; None: there is none."""
        ends = ((index + 1) * self._page_tokens for index in self.pages)
        return max((end for end in (0, *ends) if lowest <= end <= position), default=None)

    def entries(self) -> Iterator[StateChange]:
        """What a table without entries lacks."""
        return (self._change(index, index + 1, page) for index, page in self.pages.items())

    def begin_lower(self, index: int, page: Page | None) -> None:
        """Hold nothing but ``page``, which is complete. No step must be under way."""
        self._let_go_all()
        if page is not None:
            self._share(index, page)

    def write(
        self, start: int, count: int, *, waiting: Collection[int] = (), save: bool = False
    ) -> Sequence[StateChange] | None:
        """Make positions ``start`` to ``start + count`` writable: what changes in the table when the step
        begins. None, and nothing changed, where a step that waits reads what would be overwritten.

        ``waiting``: where the session's steps that are under way start. ``save``: also the state before a
        single token.
        """
        if count == 1 and self.saved is None and not save:
            return self._write(start, count, waiting)
        page = self.pages.get(start // self._page_tokens)
        changes = self._write(start, count, waiting)
        if changes is None:
            return None
        saved = self._save(start, count, page, waiting, save=save)
        return [*changes, *saved] if saved else changes

    def to_name(self, index: int, *, last: bool) -> Page | None:
        """The page of that index, if it is to get a name now. ``last``: no later one has a name."""
        if not last and not _is_marked(index):
            return None
        return self.pages.get(index) or self._beside.get(index)

    def named(self, index: int, waiting: Collection[int]) -> None:
        """The page is complete and has the name that it will have: let it go, if it was kept for that.
        ``waiting``: as in ``write``, in their order."""
        page = self._beside.pop(index, None)
        if page is None:
            return
        readers = [number for number, position in enumerate(waiting, 1) if self.border(position) == index]
        if readers:
            self._spent.append((readers[-1], page))
        else:
            self._give_up(page)

    def answered(self) -> None:
        """The oldest of the session's steps does not wait any more."""
        if not self._spent:
            return
        spent, self._spent = self._spent, []
        for steps, page in spent:
            if steps > 1:
                self._spent.append((steps - 1, page))
            else:
                self._give_up(page)

    def release(self) -> None:
        """Give everything back."""
        self._let_go_all()
        self._allocator.unreserve(self._most * self._group.blocks)
        self._most = 0

    def _write(self, start: int, count: int, waiting: Collection[int]) -> Sequence[StateChange] | None:
        """``write`` without what is saved."""
        first, last = start // self._page_tokens, (start + count - 1) // self._page_tokens
        if first == last and (page := self.pages.get(first)) is not None and _is_own(page):
            return ()
        read = {self.border(position) for position in waiting}
        shared = {index for index in read if index in self.pages and not _is_own(self.pages[index])}
        kept = {index for index in shared if not first <= index <= last} | (self.pages.keys() & {first - 1})
        own = min(last - first + 1, self._most - len(kept), self._group.most - 1)
        if own < 1 or any(self.pages[index].holders > 1 for index in shared - kept):
            return None
        for index in shared - kept:
            self._cache.unregister(self.pages[index])  # else it may be evicted before it is read
        self._spent += [
            (len(waiting), self._beside.pop(index)) for index in [*self._beside] if index >= first
        ]
        if not waiting:
            self._let_go_beside()  # what was answered has its name
        new = range(last - own + 1, last + 1)
        if (begun := self._pick_up(first, kept)) is not None:
            self.pages[new.start] = begun
        for index in reversed(new):
            if index not in self.pages:
                self.pages[index] = self._take(kept, new)
        changes = [self._change(index, index + 1, self.pages[index]) for index in new]
        if first < new.start:
            changes.append(self._change(first, new.start, self.pages[new.start]))
        whole = -(-start // self._page_tokens)  # the step may begin with what is in the page before
        for index in range(whole, new.start):
            if _is_marked(index) and self._reserve_beside():
                page = self._beside[index] = self._allocator.allocate(self._group.blocks)
                changes.append(self._change(index, index + 1, page))
        return changes

    def _save(
        self, start: int, count: int, page: Page | None, waiting: Collection[int], *, save: bool
    ) -> Sequence[StateChange]:
        """Save the state before a step that was planned, that of ``page`` if the session goes on. One token
        that goes on, when none waits, is no draft: plain decoding pays nothing."""
        first, saved = start // self._page_tokens, self.saved
        goes_on, self._end = start == self._end, start + count
        is_draft = count > 1 or waiting or not goes_on
        if saved is not None and goes_on and is_draft and start - saved.start < MOST_AHEAD_OF_STATES:
            return ()
        stays = start % self._page_tokens and self.pages.get(first) is page
        if page is None or not stays or count > LONGEST_DRAFT or (count == 1 and goes_on and not save):
            self._end_saved(waiting)
            return ()
        if saved is not None and saved.start == start:
            return ()  # it is there: the same step again
        if saved is None and not self._reserve_beside():
            return ()
        other = self._allocator.allocate(self._group.blocks) if saved is None else saved.page
        self.pages[first], self.saved = other, SavedState(start, page)
        return [self._change(first, first + 1, other)]

    def _end_saved(self, waiting: Collection[int]) -> None:
        saved, self.saved = self.saved, None
        if saved is not None and waiting:
            self._spent.append((len(waiting), saved.page))
        elif saved is not None:
            self._give_up(saved.page)

    def _pick_up(self, first: int, kept: set[int]) -> Page | None:
        """Free the slots of all pages from ``first`` on, but that of the first one, which may hold what a
        step begins with: it is returned if it can be written."""
        begun: Page | None = None
        for index in [index for index in self.pages if index >= first and index not in kept]:
            page = self.pages.pop(index)
            if not _is_own(page):
                self._give_back(page)
            elif index == first:
                begun = page
            else:
                self._spare.append(page)
        return begun

    def _take(self, kept: set[int], new: range) -> Page:
        """A page to write: one that is spare, or a further one, or one that was kept to go back to."""
        if self._spare:
            return self._spare.pop()
        if len(self.pages) >= self._most:
            index = min(self.pages.keys() - kept - {*new})
            page = self.pages.pop(index)
            if not _is_own(page):
                self._give_back(page)
            elif _is_marked(index) and self._reserve_beside():
                self._beside[index] = page
            else:
                return page
        return self._allocator.allocate(self._group.blocks)

    def _share(self, index: int, page: Page) -> None:
        if not page.holders:
            self._allocator.unreserve(self._group.blocks)  # it is one of those that were promised
        if not self._allocator.share(page):
            raise LocalProtocolError("a state was promised but is not there")
        self.pages[index] = page

    def _reserve_beside(self) -> bool:
        """Room for a state that was promised to nobody, if half of all is free for sessions then."""
        blocks, allocator = self._group.blocks, self._allocator
        return 2 * (allocator.available - blocks) >= allocator.total and allocator.reserve(blocks)

    def _let_go_beside(self) -> None:
        for page in (*self._beside.values(), *(page for _, page in self._spent)):
            self._give_up(page)
        self._beside.clear()
        self._spent.clear()

    def _let_go_all(self) -> None:
        self._end_saved(())
        self._let_go_beside()
        while self._spare:
            self._give_back(self._spare.pop())
        for index in sorted(self.pages, reverse=True):  # the cache keeps beginnings longest
            self._give_back(self.pages.pop(index))

    def _give_back(self, page: Page) -> None:
        self._allocator.release(page)
        if not page.holders and not self._allocator.reserve(self._group.blocks):
            raise LocalProtocolError("a state that was let go is not there")

    def _give_up(self, page: Page) -> None:
        """One that is not among those promised."""
        self._allocator.release(page)
        if page.holders:
            self._allocator.unreserve(self._group.blocks)  # another session's promise holds it now

    def _change(self, start: int, stop: int, page: Page) -> StateChange:
        return StateChange(self._group.rows, start, stop, page.slots)


def _is_marked(index: int) -> bool:
    return (index + 1) % NAMED_EVERY == 0


def _is_own(page: Page) -> bool:
    """Whether the page can be written as it is."""
    return page.holders == 1 and page.key is None
