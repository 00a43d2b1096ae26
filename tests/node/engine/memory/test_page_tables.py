from __future__ import annotations

import os
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from zlib import crc32

import pytest

from swarm_node.node.engine.memory.kv_layout import KvLayout
from swarm_node.node.engine.memory.page_allocator import Page, PageAllocator
from swarm_node.node.engine.memory.page_tables import PageChange, PageTable, pages_for
from swarm_node.node.engine.memory.prefix_cache import PrefixCache
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span

PAGE, TOTAL, BATCH, ROLLBACK = 4, 60, 4, 3
TIMES = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 5
REACHES = {Span(0, 2): [0, 0], Span(1, 2): [0], Span(2, 5): [6, 0, 6], Span(3, 6): [0, 6, 3], Span(5, 6): [6]}


def layout_of(reaches: list[int]) -> KvLayout:
    return KvLayout(reaches, BATCH, page_tokens=PAGE, rollback_tokens=ROLLBACK)


LAYOUTS = {span: layout_of(reaches) for span, reaches in REACHES.items()}


@dataclass(eq=False)
class Session:
    span: Span
    max_tokens: int
    table: PageTable
    slots: list[dict[int, int]]  # of each block, as the compute thread has them
    tokens: list[int]  # what it should hold once all is computed
    content: list[int]  # what is computed of it
    pending: deque[tuple[int, list[int]]] = field(default_factory=deque)
    behind_others: bool = False  # it went back into what others share

    @property
    def settled(self) -> int:
        return min([len(self.content), *(start for start, _ in self.pending)])

    def apply(self, change: PageChange) -> None:
        rows = range(len(self.span))[change.rows] if isinstance(change.rows, slice) else change.rows
        for row, slot in zip(rows, change.slots, strict=True):
            self.slots[row][change.index] = slot


class Tables:
    """Sessions that write, roll back, fork, end and begin anew, in a pool whose every slot is simulated, over
    blocks that see all tokens or a few. Steps are computed later, in parts, each session's in their order.

    What a step computes must see exactly its own session's tokens, whoever shared what with whom.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.allocator = PageAllocator(TOTAL)
        self.cache = PrefixCache(self.allocator)
        self.memory = [[-1] * PAGE for _ in range(TOTAL)]
        self.sessions: list[Session] = []
        self.next_token = 0

    def begin(self, span: Span, max_tokens: int, table: PageTable, tokens: list[int]) -> Session:
        session = Session(span, max_tokens, table, [{} for _ in REACHES[span]], list(tokens), list(tokens))
        for entry in table.entries():
            session.apply(entry)
        self.sessions.append(session)
        return session

    def change(self, session: Session, changes) -> None:
        targets = [slot for change in changes for slot in change.slots if change.sources]
        sources = [slot for change in changes for slot in change.sources]
        assert not set(sources) & set(targets)
        assert len(set(targets)) == len(targets)
        copies = [list(self.memory[slot]) for slot in sources]
        for change in changes:
            session.apply(change)
        for target, values in zip(targets, copies, strict=True):
            self.memory[target] = values

    def check_seen(self, session: Session, position: int) -> None:
        """What a step at ``position`` sees."""
        for row, reach in enumerate(REACHES[session.span]):
            for seen in range(max(0, position - reach + 1) if reach else 0, position):
                slot = session.slots[row][seen // PAGE]
                assert self.memory[slot][seen % PAGE] == session.content[seen]

    def any(self) -> Session:
        return self.rng.choice(self.sessions)

    def path(self) -> list[int]:
        return [int(self.rng.random() < 0.05) for _ in range(self.rng.randint(0, 12))]

    def open(self) -> None:
        span, max_tokens, path = self.rng.choice([*REACHES]), self.rng.randint(1, 56), self.path()
        chain = [bytes(path[: i + 1]) for i in range(len(path))][: (max_tokens - 1) // PAGE]
        before, layout = self.allocator.available, LAYOUTS[span]
        known = self.cache.find("owner", span, layout, chain)
        max_pages = pages_for(max_tokens, PAGE)
        cost = 0
        for group, pages in zip(layout.groups, known.pages, strict=True):
            first = known.count - len(pages)
            assert first == group.first_seen(known.count * PAGE - 1)
            cost += (min(max_pages, first + group.most) - known.count) * group.blocks
            for index, page in enumerate(pages, first):
                claims = page.claims + (index + group.most < max_pages)
                # A page that others have costs nothing, unless one of them, or this, is to have another.
                due = min(claims, page.holders) - page.copies_due
                cost += group.blocks * (due if page.holders else 1)
        table = PageTable.open(self.allocator, self.cache, layout, max_tokens, known)
        assert (table is not None) is (cost <= before)
        if table is None:
            assert self.allocator.available == before
            return
        assert self.allocator.available == before - cost
        # A page's name tells what it holds: here, its path and its place.
        names = chain[: known.count]
        session = self.begin(
            span, max_tokens, table, [content(span, name) for name in names for _ in range(PAGE)]
        )
        fewer = known.count - self.rng.randint(0, 3)
        if 0 <= fewer < known.count and session.table.lowest > fewer * PAGE:
            less = self.cache.find("owner", span, layout, chain[:fewer])
            if less.count == fewer and table.begin_lower(less):
                assert table.lowest <= fewer * PAGE
                self.sessions.remove(session)
                self.begin(span, max_tokens, table, session.tokens[: fewer * PAGE])

    def write(self) -> None:
        session, rng = self.any(), self.rng
        latest = min(len(session.tokens), session.max_tokens - 1)
        if latest < session.table.lowest:
            return  # a step failed, and took with it what the one before saw
        start = latest - rng.choice([0, 0, 0, rng.randint(0, latest - session.table.lowest)])
        count = rng.randint(1, min(session.max_tokens - start, rng.choice([3, 12, 60, 60])))
        if not session.pending:
            del session.content[len(session.tokens) :]
        session.behind_others = session.behind_others or start < len(session.tokens)
        entries, free = list(session.table.entries()), self.allocator.available
        lowest = max(session.table.lowest, start + count - BATCH - ROLLBACK)
        waiting = min((start for start, _ in session.pending), default=None)
        changes = session.table.write(start, count, waiting=waiting)
        if changes is None:
            # Only one that goes back into shared pages may find no room.
            assert session.behind_others
            assert (list(session.table.entries()), self.allocator.available) == (entries, free)
            return
        assert session.table.lowest <= lowest
        self.change(session, changes)
        new = list(range(self.next_token, self.next_token + count))
        self.next_token += count
        session.tokens[start:] = new
        session.pending.append((start, new))

    def compute(self) -> None:
        """A part of a session's next step: as many tokens as a batch may have, or fewer."""
        session = self.any()
        if not session.pending:
            return
        start, tokens = session.pending.popleft()
        part = tokens[: self.rng.randint(1, BATCH)]
        if len(part) < len(tokens):
            session.pending.appendleft((start + len(part), tokens[len(part) :]))
        del session.content[start:]
        # All tokens of a part are written before its first one looks.
        for position, token in enumerate(part, start):
            for row in range(len(session.span)):
                self.memory[session.slots[row][position // PAGE]][position % PAGE] = token
        self.check_seen(session, start)
        session.content += part

    def grow(self) -> None:
        """A session that only goes on never runs out, whatever the others do."""
        session = self.any()
        start = len(session.tokens)
        if start >= session.max_tokens or start < session.table.lowest or session.behind_others:
            return
        waiting = min((start for start, _ in session.pending), default=None)
        changes = session.table.write(start, 1, waiting=waiting)
        assert changes is not None
        self.change(session, changes)
        session.tokens.append(self.next_token)
        session.pending.append((start, [self.next_token]))
        self.next_token += 1

    def roll_back(self) -> None:
        """As after a failed step: nothing is written."""
        session = self.any()
        if not session.pending:
            del session.tokens[self.rng.randint(0, len(session.tokens)) :]
            del session.content[len(session.tokens) :]
            session.behind_others = True

    def fork(self) -> None:
        parent, rng = self.any(), self.rng
        if parent.settled < parent.table.lowest:
            return
        tokens = max(parent.table.lowest, parent.settled - rng.choice([0, 0, rng.randint(0, 9)]))
        max_tokens = max(1, tokens + rng.randint(0, 30))
        before = self.allocator.available
        table = parent.table.fork(tokens, len(parent.tokens), max_tokens)
        if table is None:
            assert before < LAYOUTS[parent.span].slots_of(max_tokens) + len(parent.span)
            return
        child = self.begin(parent.span, max_tokens, table, parent.content[:tokens])
        if tokens < len(parent.tokens):
            child.behind_others = parent.behind_others

    def close(self) -> None:
        """End a session; some of its whole pages get names, if their content is what the names say."""
        session, path = self.any(), self.path()
        if session.pending:
            return
        for i in range(min(len(path), len(session.content) // PAGE)):
            name = bytes(path[: i + 1])
            for group, page in session.table.at(i):
                if page.key is None and page.holders == 1:
                    for slot in page.slots:  # nobody else reads it: give it the content of its name
                        self.memory[slot] = [content(session.span, name)] * PAGE
                    self.cache.register(Holder("owner"), session.span, group, name, page)
        session.table.release()
        self.sessions.remove(session)

    def everybody_sees_their_own(self) -> None:
        for session in self.sessions:
            if not session.pending:
                for position in range(session.table.lowest, len(session.content) + 1):
                    self.check_seen(session, position)

    def books_are_balanced(self) -> None:
        allocator = self.allocator
        assert allocator.free + allocator.used + allocator.cached == TOTAL
        held: Counter[Page] = Counter()
        claims: Counter[Page] = Counter()
        for session in self.sessions:
            for group in session.table.groups:
                assert len(group.pages) - group.first <= group.group.most
                for index in range(group.first, len(group.pages)):
                    held[group.held(index)] += 1
                    claims[group.held(index)] += group._is_claimed(index)
        assert allocator.used == sum(len(page.slots) for page in held)
        for page, holders in held.items():
            assert (page.holders, page.claims) == (holders, claims[page])
        slots = [slot for page in held for slot in page.slots]
        assert len(set(slots)) == len(slots)
        owed = sum(group.promised for session in self.sessions for group in session.table.groups)
        assert allocator.reserved == owed + sum(page.copies_due * len(page.slots) for page in held)
        assert allocator.available >= 0

    def run(self, steps: int) -> None:
        computes = self.rng.choice([8, 20])
        for _ in range(steps):
            actions = [self.write, self.compute, self.grow, self.roll_back, self.fork, self.close]
            action = self.rng.choices([self.open, *actions], [3, 6, computes, 3, 0.3, 2, 2])[0]
            if self.sessions or action == self.open:
                action()
                self.check()
        for session in self.sessions:
            session.table.release()
        assert self.allocator.used == self.allocator.reserved == 0

    def check(self) -> None:
        self.everybody_sees_their_own()
        self.books_are_balanced()


def content(span: Span, name: bytes) -> int:
    return -1000 - crc32(bytes([span.start, span.end]) + name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_sessions_see_their_own_tokens_and_no_others(seed):
    for number in range(seed * TIMES, (seed + 1) * TIMES):
        Tables(random.Random(number)).run(400)


WHOLE = layout_of([0])
ALL = slice(None)


def table_for(max_tokens: int, allocator: PageAllocator | None = None) -> PageTable:
    allocator = allocator or PageAllocator(100)
    table = PageTable.open(allocator, PrefixCache(allocator), WHOLE, max_tokens)
    assert table is not None
    return table


def pages_of(table: PageTable) -> list[Page]:
    return [page for index in range(table.n_pages) for _, page in table.at(index)]


def test_pages_come_as_tokens_do():
    table = table_for(12)
    assert table.write(0, 1, waiting=None) == [PageChange(ALL, 0, (0,))]
    assert table.write(1, 3, waiting=None) == ()
    assert table.write(4, 8, waiting=None) == [PageChange(ALL, 1, (1,)), PageChange(ALL, 2, (2,))]
    assert table.write(2, 9, waiting=None) == []
    table.release()


def test_every_beam_gets_its_own_page_and_the_last_writes_in_place():
    allocator = PageAllocator(20)
    parent = table_for(8, allocator)
    parent.write(0, 6, waiting=None)
    beams = [parent.fork(6, 6, 8) for _ in range(3)]
    assert allocator.used == 2
    assert allocator.reserved == 3  # one copy for each more than one that will write
    changes = [table.write(6, 1, waiting=None) for table in [parent, *beams]]
    assert [bool(change) for change in changes] == [True, True, True, False]
    assert all(change[0].sources == (1,) for change in changes[:3])
    assert (allocator.used, allocator.reserved) == (5, 0)
    for table in [parent, *beams]:
        table.release()
    assert allocator.free == 20


def test_a_fork_costs_only_what_it_may_add():
    allocator = PageAllocator(6)
    parent = table_for(16, allocator)  # 4 pages
    parent.write(0, 12, waiting=None)
    assert parent.fork(12, 12, 24) is None  # 3 more pages, 2 are left
    child = parent.fork(12, 12, 20)
    assert allocator.available == 0
    assert parent.write(12, 4, waiting=None)
    assert child.write(12, 8, waiting=None)
    child.release()
    parent.release()
    assert allocator.free == 6


def test_going_back_into_shared_pages_may_find_no_room_and_then_changes_nothing():
    allocator = PageAllocator(4)
    parent = table_for(8, allocator)
    parent.write(0, 8, waiting=None)
    child = parent.fork(8, 8, 16)  # 2 shared, 2 promised
    assert child.write(2, 4, waiting=None) is None
    assert [page.slots for page in pages_of(child)] == [(0,), (1,)]
    assert allocator.reserved == 2
    parent.release()
    assert child.write(2, 4, waiting=None) == []


def test_a_cached_page_is_copied_while_there_is_room_and_overwritten_when_not():
    allocator = PageAllocator(3)
    cache = PrefixCache(allocator)
    table = PageTable.open(allocator, cache, WHOLE, 8)
    table.write(0, 8, waiting=None)
    for name, page in zip([b"a", b"b"], pages_of(table), strict=True):
        cache.register(Holder("owner"), Span(0, 1), WHOLE.groups[0], name, page)
    assert table.write(2, 4, waiting=8) == [PageChange(ALL, 0, (2,), (0,))]  # room for one copy
    assert [page.key for page in pages_of(table)] == [None, None]
    assert (allocator.used, allocator.cached, len(cache)) == (2, 1, 1)
    assert allocator.reserve(1)  # the cached page is there for others
    assert allocator.allocate(1).slots == (0,)


def test_what_nobody_reads_is_not_copied():
    allocator = PageAllocator(10)
    parent = table_for(8, allocator)
    parent.write(0, 8, waiting=None)
    child = parent.fork(8, 8, 12)
    assert [bool(change.sources) for change in child.write(2, 6, waiting=None)] == [True, False]
    other = parent.fork(8, 8, 12)
    assert [bool(change.sources) for change in other.write(2, 6, waiting=8)] == [True, True]


def test_impossible_calls_are_bugs():
    table = table_for(8)
    with pytest.raises(LocalProtocolError):
        table.write(0, 9, waiting=None)
    with pytest.raises(LocalProtocolError):
        table.write(4, 1, waiting=None)  # a hole
    table.write(0, 4, waiting=None)
    with pytest.raises(LocalProtocolError):
        table.fork(5, 4, 8)
    with pytest.raises(LocalProtocolError):
        table.fork(8, 8, 8)


def test_rounding():
    assert [pages_for(n) for n in (0, 1, 32, 33)] == [0, 1, 1, 2]
    assert layout_of([0, 0, 0]).slots_of(5) == 6
