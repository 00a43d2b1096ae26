"""States far back in a session: the last of them, for this session alone, while nobody needs the room."""

from __future__ import annotations

from swarm_node.node.engine.memory.kv_layout import StateGroup
from swarm_node.node.engine.memory.marks import MOST_MARKS, Marks
from swarm_node.node.engine.memory.page_allocator import PageAllocator
from swarm_node.node.engine.memory.prefix_cache import PrefixCache
from swarm_node.node.engine.memory.state_table import NAMED_EVERY, StateTable
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span

PAGE, SPAN = 4, Span(0, 1)


class Session:
    """Of ``pages`` pages, in a pool of ``total`` slots."""

    def __init__(self, total: int, pages: int) -> None:
        self.allocator = PageAllocator(total)
        self.cache = PrefixCache(self.allocator)
        table = StateTable.open(self.allocator, self.cache, StateGroup(slice(None), 1, PAGE), pages, {})
        assert table is not None
        self.table, self.pages = table, 0
        self.marks = Marks(self.cache, Holder("peer"), SPAN, table)

    def feed(self, pages: int) -> None:
        assert self.table.write(self.pages * PAGE, pages * PAGE) is not None
        self.pages += pages
        self.marks.add(0, self.pages, ())

    def go_back(self, pages: int) -> None:
        self.pages = pages
        self.marks.rollback(pages)

    @property
    def marked(self) -> list[int]:
        return sorted(self.marks.ends())


def test_the_last_ones_are_kept_and_go_with_the_session() -> None:
    session = Session(200, 10_000)
    for _ in range(MOST_MARKS + 10):
        session.feed(NAMED_EVERY)
    assert session.marked == [NAMED_EVERY * count for count in range(11, MOST_MARKS + 11)]
    session.marks.rollback(0)
    session.table.release()
    assert (session.allocator.used, session.allocator.cached, session.allocator.reserved) == (0, 0, 0)


def test_what_was_taken_back_is_not_found_again() -> None:
    session = Session(200, 10_000)
    session.feed(5 * NAMED_EVERY + 3)
    assert session.marked == [NAMED_EVERY * count for count in range(1, 6)]
    session.go_back(3 * NAMED_EVERY + 1)
    assert session.marked == [NAMED_EVERY * count for count in range(1, 4)]
    session.feed(NAMED_EVERY)
    assert session.marked == [NAMED_EVERY * count for count in range(1, 5)]


def test_they_give_way_to_what_was_promised() -> None:
    session = Session(12, 10_000)
    session.feed(6 * NAMED_EVERY)
    others = session.allocator.available
    assert session.allocator.reserve(others)
    pages = [session.allocator.allocate(1) for _ in range(others)]
    assert len(session.marked) < 6
    assert len({page.slots for page in pages}) == others


def test_nobody_else_finds_them() -> None:
    session = Session(200, 10_000)
    session.feed(2 * NAMED_EVERY)
    other = Marks(session.cache, Holder("peer"), SPAN, session.table)
    assert (session.marked, other.ends()) == ([NAMED_EVERY, 2 * NAMED_EVERY], {})
