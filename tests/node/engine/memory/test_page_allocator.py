from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_node.node.engine.memory.page_allocator import Page, PageAllocator
from swarm_node.swarm.errors import LocalProtocolError, UsageError

TOTAL = 12


class NaivePage:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.blocks = len(page.slots)
        self.holders = 1
        self.claims = 0
        self.key = None

    @property
    def due(self) -> int:
        return min(self.claims, max(0, self.holders - 1))


class Allocator(RuleBasedStateMachine):
    """The allocator beside a list of pages and what they must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[Page] = []
        self.allocator = PageAllocator(TOTAL, self.evicted.append)
        self.pages: list[NaivePage] = []
        self.cached: list[NaivePage] = []  # let go, oldest first
        self.promised = 0
        self.next_key = 0

    @property
    def available(self) -> int:
        held = sum(p.blocks for p in self.pages if p.holders)
        return TOTAL - held - self.promised - sum(p.due * p.blocks for p in self.pages)

    @property
    def held(self) -> list[NaivePage]:
        return [p for p in self.pages if p.holders]

    @rule(slots=st.integers(0, TOTAL + 1))
    def reserve(self, slots: int) -> None:
        fits = slots <= self.available
        assert self.allocator.reserve(slots) is fits
        self.promised += slots if fits else 0

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def unreserve(self, data: st.DataObject) -> None:
        slots = data.draw(st.integers(0, self.promised))
        self.allocator.unreserve(slots)
        self.promised -= slots

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        blocks = data.draw(st.integers(1, min(4, self.promised)))
        self.evicted.clear()
        free = TOTAL - sum(p.blocks for p in self.pages)
        expected = []
        while free < blocks:  # exactly as many as needed, least recently let go first
            expected.append(self.cached.pop(0))
            free += expected[-1].blocks
        page = self.allocator.allocate(blocks)
        assert [p.page for p in expected] == self.evicted
        assert all(p.page.key is None for p in expected)
        self.pages = [p for p in self.pages if p not in expected]
        self.promised -= blocks
        assert len(page.slots) == blocks
        self.pages.append(NaivePage(page))

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), claim=st.booleans())
    def share(self, data: st.DataObject, claim: bool) -> None:
        naive = data.draw(st.sampled_from(self.pages))
        before, room = naive.due, self.available
        naive.holders += 1
        naive.claims += claim
        cost = (naive.due - before + (naive.holders == 1)) * naive.blocks
        assert self.allocator.share(naive.page, claim=claim) is (cost <= room)
        if cost > room:
            naive.holders -= 1
            naive.claims -= claim
        elif naive in self.cached:
            self.cached.remove(naive)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        naive = data.draw(st.sampled_from(self.held))
        if naive.claims == naive.holders:
            return
        before, room = naive.due, self.available
        naive.claims += 1
        fits = (naive.due - before) * naive.blocks <= room
        assert self.allocator.claim(naive.page) is fits
        naive.claims -= not fits

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        naive = data.draw(st.sampled_from(self.held))
        claim = naive.claims == naive.holders or (naive.claims > 0 and data.draw(st.booleans()))
        self.allocator.release(naive.page, claim=claim)
        naive.holders -= 1
        naive.claims -= claim
        if not naive.holders:
            if naive.key is None:
                self.pages.remove(naive)
            else:
                self.cached.append(naive)

    @precondition(lambda self: any(p.claims for p in self.pages))
    @rule(data=st.data())
    def unclaim(self, data: st.DataObject) -> None:
        naive = data.draw(st.sampled_from([p for p in self.pages if p.claims]))
        self.allocator.unclaim(naive.page)
        naive.claims -= 1

    @precondition(lambda self: any(p.key is None for p in self.held))
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        naive = data.draw(st.sampled_from([p for p in self.held if p.key is None]))
        self.next_key += 1
        naive.key = naive.page.key = ("", 0, 1, bytes([self.next_key % 256]))

    @precondition(lambda self: any(p.key for p in self.pages))
    @rule(data=st.data())
    def drop_key(self, data: st.DataObject) -> None:
        naive = data.draw(st.sampled_from([p for p in self.pages if p.key]))
        self.allocator.drop_key(naive.page)
        naive.key = None
        if naive in self.cached:
            self.cached.remove(naive)
            self.pages.remove(naive)

    @precondition(lambda self: self.promised or True)
    @rule(extra=st.integers(1, 5))
    def too_much_is_refused(self, extra: int) -> None:
        reserved = self.allocator.reserved
        with pytest.raises(LocalProtocolError):
            self.allocator.unreserve(reserved + extra)
        with pytest.raises(LocalProtocolError):
            self.allocator.allocate(reserved + extra)

    @invariant()
    def nothing_is_lost_or_given_twice(self) -> None:
        allocator = self.allocator
        assert allocator.free + allocator.used + allocator.cached == TOTAL
        assert allocator.used == sum(p.blocks for p in self.held)
        assert allocator.cached == sum(p.blocks for p in self.cached)
        assert allocator.available == self.available >= 0
        assert allocator.reserved <= allocator.free + allocator.cached
        slots = [slot for p in self.pages for slot in p.page.slots]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(range(TOTAL))
        for p in self.pages:
            assert (p.page.holders, p.page.claims, p.page.key) == (p.holders, p.claims, p.key)


TestAllocator = pytest.mark.slow(Allocator.TestCase)


def test_a_double_free_is_a_bug():
    allocator = PageAllocator(4)
    assert allocator.reserve(2)
    page = allocator.allocate(2)
    allocator.release(page)
    with pytest.raises(LocalProtocolError):
        allocator.release(page)
    with pytest.raises(LocalProtocolError):
        allocator.unclaim(page)
    assert (allocator.free, allocator.used, allocator.cached) == (4, 0, 0)


def test_impossible_numbers_are_refused():
    with pytest.raises(UsageError):
        PageAllocator(-1)
    with pytest.raises(LocalProtocolError):
        PageAllocator(4).reserve(-1)
