from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_node.node.engine.page_allocator import PageAllocator
from swarm_node.node.engine.page_tables import PageChange, PageTable, pages_for, slots_for
from swarm_node.node.engine.prefix_cache import PrefixCache
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span

PAGE, TOTAL = 4, 40
SPANS = [Span(0, 2), Span(1, 2)]


@dataclass(eq=False)
class Session:
    span: Span
    max_tokens: int
    table: PageTable
    slots: list[tuple[int, ...]]  # the table as the compute thread has it
    tokens: list[int] = field(default_factory=list)  # what it should hold
    behind_others: bool = False  # it went back into what others share


class Tables(RuleBasedStateMachine):
    """Sessions that write, roll back, fork, end and begin anew, in a pool whose every slot is simulated.

    After each step every session must read back exactly its own tokens, whoever shared what with whom.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(TOTAL)
        self.cache = PrefixCache(self.allocator)
        self.memory = [[-1] * PAGE for _ in range(TOTAL)]
        self.sessions: list[Session] = []
        self.next_token = 0

    def apply(self, session: Session, changes) -> None:
        targets = [slot for change in changes for slot in change.slots if change.sources]
        sources = [slot for change in changes for slot in change.sources]
        assert not set(sources) & set(targets)
        for change in changes:
            for source, target in zip(change.sources, change.slots, strict=bool(change.sources)):
                self.memory[target] = list(self.memory[source])
            if not change.sources:
                for slot in change.slots:
                    self.memory[slot] = [-2] * PAGE  # nothing may rely on it
            session.slots[change.index : change.index + 1] = [change.slots]

    def read(self, session: Session, block: int) -> list[int]:
        return [self.memory[session.slots[i // PAGE][block]][i % PAGE] for i in range(len(session.tokens))]

    @rule(span=st.sampled_from(SPANS), max_tokens=st.integers(1, 24), path=st.lists(st.integers(0, 1)))
    def open(self, span: Span, max_tokens: int, path: list[int]) -> None:
        chain = [bytes(path[: i + 1]) for i in range(len(path))][: (max_tokens - 1) // PAGE]
        before = self.allocator.available
        due = {page: page.copies_due for session in self.sessions for page in session.table.pages}
        held = self.cache.take("owner", span, chain)
        # A page that others have costs nothing, unless one of them was going to write to it in place.
        shared = sum((page.holders > 1) - (page.copies_due - due.get(page, 0)) for page in held)
        table = PageTable.open(self.allocator, self.cache, len(span), PAGE, max_tokens, held)
        cost = slots_for(max_tokens, len(span), PAGE) - shared * len(span)
        assert (table is not None) is (cost <= before)
        if table is None:
            assert self.allocator.available == before
            return
        assert self.allocator.available == before - cost
        slots = [page.slots for page in table.pages]
        tokens = [token for row in slots for token in self.memory[row[0]]]
        # A page's name tells what it holds: here, its path and its place.
        for i in range(len(held)):
            assert tokens[i * PAGE] == content(span, chain[i])
        self.sessions.append(Session(span, max_tokens, table, slots, tokens))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.sessions))
        # Mostly at the end or a little before it: counted backwards, as hypothesis likes small numbers.
        latest = min(len(session.tokens), session.max_tokens - 1)
        start = latest - data.draw(st.integers(0, latest))
        count = data.draw(st.integers(1, min(session.max_tokens - start, 9)))
        quiet = data.draw(st.booleans())
        before = [page.slots for page in session.table.pages]
        changes = session.table.write(start, count, quiet=quiet)
        if changes is None:
            # Only one that goes back into shared pages may find no room.
            assert start < len(session.tokens)
            assert before == [page.slots for page in session.table.pages]
            return
        if not quiet:
            read = [self.read(session, block) for block in range(len(session.span))]
        self.apply(session, changes)
        if not quiet:  # steps that wait still find what they read
            assert read == [self.read(session, block) for block in range(len(session.span))]
        new = list(range(self.next_token, self.next_token + count))
        self.next_token += count
        for i, token in zip(range(start, start + count), new, strict=True):
            for slot in session.slots[i // PAGE]:
                self.memory[slot][i % PAGE] = token
        session.tokens[start:] = new
        assert session.slots == [page.slots for page in session.table.pages]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """A session that only goes on never runs out, whatever the others do."""
        session = data.draw(st.sampled_from(self.sessions))
        start = len(session.tokens)
        if start == session.max_tokens:
            return
        shared_here = start < len(session.table.pages) * PAGE and session.behind_others
        changes = session.table.write(start, 1, quiet=True)
        assert changes is not None or shared_here
        if changes is None:
            return
        self.apply(session, changes)
        for slot in session.slots[start // PAGE]:
            self.memory[slot][start % PAGE] = self.next_token
        session.tokens.append(self.next_token)
        self.next_token += 1

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """As after a failed step: nothing is written."""
        session = data.draw(st.sampled_from(self.sessions))
        del session.tokens[data.draw(st.integers(0, len(session.tokens))) :]
        session.behind_others = True

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), more=st.integers(0, 6), back=st.integers(0, 9))
    def fork(self, data: st.DataObject, more: int, back: int) -> None:
        parent = data.draw(st.sampled_from([s for s in self.sessions if s.tokens] or self.sessions))
        tokens = max(0, len(parent.tokens) - back)
        max_tokens = max(1, tokens + more)
        before = self.allocator.available
        table = parent.table.fork(tokens, len(parent.tokens), max_tokens)
        if table is None:
            whole = tokens // PAGE
            assert before < slots_for(max_tokens, len(parent.span), PAGE) - whole * len(parent.span) + 2
            return
        slots = [page.slots for page in table.pages]
        child = Session(parent.span, max_tokens, table, slots, parent.tokens[:tokens])
        if tokens < len(parent.tokens):
            child.behind_others = parent.behind_others
        self.sessions.append(child)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), path=st.lists(st.integers(0, 1)))
    def close(self, data: st.DataObject, path: list[int]) -> None:
        """End a session; some of its whole pages get names, if their content is what the names say."""
        session = data.draw(st.sampled_from(self.sessions))
        for i in range(min(len(path), len(session.tokens) // PAGE)):
            name = bytes(path[: i + 1])
            page = session.table.pages[i]
            if page.key is None and page.holders == 1:
                for slot in page.slots:  # nobody else reads it: give it the content of its name
                    self.memory[slot] = [content(session.span, name)] * PAGE
                self.cache.register(Holder("owner"), session.span, name, page)
        session.table.release()
        self.sessions.remove(session)

    @invariant()
    def everybody_reads_their_own(self) -> None:
        for session in self.sessions:
            for block in range(len(session.span)):
                assert self.read(session, block) == session.tokens

    @invariant()
    def books_are_balanced(self) -> None:
        allocator = self.allocator
        assert allocator.free + allocator.used + allocator.cached == TOTAL
        pages = {page for session in self.sessions for page in session.table.pages}
        assert allocator.used == sum(len(page.slots) for page in pages)
        for page in pages:
            assert page.holders == sum(page in session.table.pages for session in self.sessions)
            assert page.claims == sum(
                0 <= session.table._claim < len(session.table.pages)
                and session.table.pages[session.table._claim] is page
                for session in self.sessions
            )
        owed = sum((s.table.max_pages - len(s.table.pages)) * len(s.span) for s in self.sessions)
        assert allocator.reserved == owed + sum(page.copies_due * len(page.slots) for page in pages)
        assert allocator.available >= 0

    def teardown(self) -> None:
        for session in self.sessions:
            session.table.release()
        assert self.allocator.used == self.allocator.reserved == 0


def content(span: Span, name: bytes) -> int:
    return -1000 - crc32(bytes([span.start, span.end]) + name)


TestTables = pytest.mark.slow(Tables.TestCase)
TestTables.settings = settings(max_examples=100, stateful_step_count=50)


def table_for(max_tokens: int, allocator: PageAllocator | None = None) -> PageTable:
    allocator = allocator or PageAllocator(100)
    table = PageTable.open(allocator, PrefixCache(allocator), 1, PAGE, max_tokens)
    assert table is not None
    return table


def test_pages_come_as_tokens_do():
    table = table_for(12)
    assert table.write(0, 1, quiet=True) == [PageChange(0, (0,))]
    assert table.write(1, 3, quiet=True) == ()
    assert table.write(4, 8, quiet=True) == [PageChange(1, (1,)), PageChange(2, (2,))]
    assert table.write(2, 9, quiet=True) == []
    table.release()


def test_every_beam_gets_its_own_page_and_the_last_writes_in_place():
    allocator = PageAllocator(20)
    parent = table_for(8, allocator)
    parent.write(0, 6, quiet=True)
    beams = [parent.fork(6, 6, 8) for _ in range(3)]
    assert allocator.used == 2
    assert allocator.reserved == 3  # one copy for each more than one that will write
    changes = [table.write(6, 1, quiet=True) for table in [parent, *beams]]
    assert [bool(change) for change in changes] == [True, True, True, False]
    assert all(change[0].sources == (1,) for change in changes[:3])
    assert (allocator.used, allocator.reserved) == (5, 0)
    for table in [parent, *beams]:
        table.release()
    assert allocator.free == 20


def test_a_fork_costs_only_what_it_may_add():
    allocator = PageAllocator(6)
    parent = table_for(16, allocator)  # 4 pages
    parent.write(0, 12, quiet=True)
    assert parent.fork(12, 12, 24) is None  # 3 more pages, 2 are left
    child = parent.fork(12, 12, 20)
    assert allocator.available == 0
    assert parent.write(12, 4, quiet=True)
    assert child.write(12, 8, quiet=True)
    child.release()
    parent.release()
    assert allocator.free == 6


def test_going_back_into_shared_pages_may_find_no_room_and_then_changes_nothing():
    allocator = PageAllocator(4)
    parent = table_for(8, allocator)
    parent.write(0, 8, quiet=True)
    child = parent.fork(8, 8, 16)  # 2 shared, 2 promised
    assert child.write(2, 4, quiet=True) is None
    assert [page.slots for page in child.pages] == [(0,), (1,)]
    assert allocator.reserved == 2
    parent.release()
    assert child.write(2, 4, quiet=True) == []


def test_a_cached_page_is_copied_while_there_is_room_and_overwritten_when_not():
    allocator = PageAllocator(3)
    cache = PrefixCache(allocator)
    table = PageTable.open(allocator, cache, 1, PAGE, 8)
    table.write(0, 8, quiet=True)
    for name, page in zip([b"a", b"b"], table.pages, strict=True):
        cache.register(Holder("owner"), Span(0, 1), name, page)
    assert table.write(2, 4, quiet=False) == [PageChange(0, (2,), (0,))]  # room for one copy
    assert [page.key for page in table.pages] == [None, None]
    assert (allocator.used, allocator.cached, len(cache)) == (2, 1, 1)
    assert allocator.reserve(1)  # the cached page is there for others
    assert allocator.allocate(1).slots == (0,)


def test_what_nobody_reads_is_not_copied():
    allocator = PageAllocator(10)
    parent = table_for(8, allocator)
    parent.write(0, 8, quiet=True)
    child = parent.fork(8, 8, 12)
    assert [bool(change.sources) for change in child.write(2, 6, quiet=True)] == [True, False]
    other = parent.fork(8, 8, 12)
    assert [bool(change.sources) for change in other.write(2, 6, quiet=False)] == [True, True]


def test_impossible_calls_are_bugs():
    table = table_for(8)
    with pytest.raises(LocalProtocolError):
        table.write(0, 9, quiet=True)
    with pytest.raises(LocalProtocolError):
        table.write(4, 1, quiet=True)  # a hole
    table.write(0, 4, quiet=True)
    with pytest.raises(LocalProtocolError):
        table.fork(5, 4, 8)
    with pytest.raises(LocalProtocolError):
        table.fork(8, 8, 8)


def test_rounding():
    assert [pages_for(n) for n in (0, 1, 32, 33)] == [0, 1, 1, 2]
    assert slots_for(33, 3) == 6
