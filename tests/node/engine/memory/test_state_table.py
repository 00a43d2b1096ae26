"""States of simulated sessions: a slot holds the tokens that its state was computed from."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from swarm_node.node.engine import states
from swarm_node.node.engine.memory import state_table
from swarm_node.node.engine.memory.kv_layout import KvLayout, StateGroup
from swarm_node.node.engine.memory.marks import Marks
from swarm_node.node.engine.memory.page_allocator import PageAllocator
from swarm_node.node.engine.memory.prefix_cache import PrefixCache
from swarm_node.node.engine.memory.state_table import StateTable
from swarm_node.node.engine.states import KeptRows, SequenceStates, StatePlan
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span

PAGE, BLOCKS, SPAN = 4, 2, Span(0, 3)
GROUP = StateGroup([0, 2], BLOCKS, PAGE)
TIMES = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 1
"""How many times the schedules of a usual run."""

Tokens = tuple[int, ...]


@dataclass
class Step:
    start: int
    tokens: Tokens
    plan: StatePlan
    done: int = 0


@dataclass(eq=False)
class Session:
    states: SequenceStates
    max_tokens: int
    names: list[Tokens]
    content: Tokens  # computed
    planned: Tokens
    registered: int = 0
    failed: bool = False  # some step
    steps: deque[Step] = field(default_factory=deque)

    @property
    def table(self) -> StateTable:
        return self.states.held

    @property
    def settled(self) -> int:
        return min([len(self.content), *(step.start for step in self.steps)])

    def slots(self, index: int) -> list[int]:
        return self.states.table[GROUP.rows, index].tolist()


class World:
    """Some sessions over one small pool."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.allocator = PageAllocator(rng.choice([8, 12, 16, 30, 80]))
        self.cache = PrefixCache(self.allocator)
        self.memory: dict[int, Tokens] = {}
        self.sessions: list[Session] = []
        self.prompts = [tuple(rng.randrange(9) for _ in range(150)) for _ in range(2)]
        self.found = self.replays = self.forks = self.resumed = 0

    def text(self) -> Tokens:
        prompt = self.rng.choice(self.prompts)
        return prompt[: self.rng.randint(1, 150)] + tuple(self.rng.randrange(9) for _ in range(5))

    def open(self) -> None:
        text, rng = self.text(), self.rng
        names = [text[: end * PAGE] for end in range(1, len(text) // PAGE + 1)]
        keys = [bytes(name) for name in names]
        ends = self.cache.ends("owner", SPAN, keys)
        max_tokens = len(text) + rng.randint(1, 60)
        shared = {max(ends) - 1: ends[max(ends)]} if ends else {}
        free = self.allocator.available
        table = StateTable.open(self.allocator, self.cache, GROUP, -(-max_tokens // PAGE), shared)
        room = min(4, -(-max_tokens // PAGE)) * BLOCKS
        assert (table is not None) == (room <= free)
        if table is not None:
            known = text[: (max(ends) if ends else 0) * PAGE]
            self.found += len(known) > 0
            self.add(table, KeptRows(1), max_tokens, names, known)

    def add(
        self, table: StateTable, rows: KeptRows, max_tokens: int, names: list[Tokens], known: Tokens
    ) -> None:
        slots = np.full((len(SPAN), -(-max_tokens // PAGE)), -1, np.int32)
        marks = Marks(self.cache, Holder("owner"), SPAN, table)
        states = SequenceStates(table, marks, rows, slots)
        states.apply([*table.entries()])
        self.sessions.append(Session(states, max_tokens, names, known, known, len(known) // PAGE))

    def write(self) -> None:
        session, rng = self.rng.choice(self.sessions), self.rng
        start = len(session.planned)
        if rng.random() < 0.4:
            start = max(0, start - rng.choice([1, 2, 3, rng.randint(0, start)]))
        count = min(session.max_tokens - start, rng.choice([1, 1, 1, 3, 5, rng.randint(1, 90)]))
        goes_on = start == len(session.planned) and session.states.is_there
        if count < 1 or not (goes_on or session.states.reaches(start, 0)):
            return
        if start < len(session.planned):
            session.names = session.names[: start // PAGE]
            session.registered = min(session.registered, start // PAGE)
        waiting = [step.start for step in session.steps]
        table, allocator = session.table, self.allocator
        before = (dict(table.pages), table.saved, allocator.available)
        whole = b"".join(map(bytes, session.names[-1:]))
        new = tuple(whole[start : start + count])
        new += tuple(rng.randrange(9) for _ in range(count - len(new)))
        plan = session.states.plan(start, count, bytes(new), waiting, goes_on=goes_on)
        if plan is None:
            assert waiting, "only a step that waits is in the way"
            assert (table.pages, table.saved, allocator.available) == before
            return
        session.planned = session.planned[:start] + new
        session.steps.append(Step(start, new, plan))

    def compute(self) -> None:
        session = self.rng.choice(self.sessions)
        if not session.steps:
            return None
        step, states = session.steps[0], session.states
        if not step.done:
            states.switch(step.plan, step.start)
            session.content = session.content[: step.start]
        begin = states.begin(step.plan, step.start, step.done)
        assert begin is not None
        start, again = step.start + step.done, begin.lead.rows
        first = start - again
        assert step.done or session.failed or again == step.plan.again
        assert tuple(begin.lead.payload) == session.content[first:start]
        if first:
            slots = session.slots((first - 1) // PAGE)
            if begin.saved is not None and not again:
                slots = begin.saved[GROUP.rows].tolist()
            assert all(self.memory[slot] == session.content[:first] for slot in slots)
        self.replays += again > 0
        self.resumed += again < start % PAGE and states.position != start
        count = self.rng.randint(1, len(step.tokens) - step.done)
        part = BatchSlice(states.table, 0, 0, first, again + count, False, states.table, begin.saved, again)
        states.position = -1
        if self.rng.random() < 0.05:
            if begin.saved is not None and again:
                self.memory |= dict.fromkeys(begin.saved[GROUP.rows].tolist(), (-1,))
            return self.fail(session)
        session.content += step.tokens[step.done : step.done + count]
        end = start + count
        for position in range(first + 1, end + 1):
            if position % PAGE == 0 or position == end:
                for slot in session.slots((position - 1) // PAGE):
                    self.memory[slot] = session.content[:position]
            if position == start and begin.saved is not None:
                for slot in begin.saved[GROUP.rows].tolist():
                    self.memory[slot] = session.content[:position]
        states.has_computed(part)
        step.done += count
        if step.done == len(step.tokens):
            session.steps.popleft()
            session.table.answered()
            self.register(session)
        return None

    def fail(self, session: Session) -> None:
        """It may have written anything to the slots from its first page on. What waits behind it starts where
        nothing is, and fails too, if it does not go back."""
        step, states, session.failed = session.steps.popleft(), session.states, True
        session.table.answered()
        start = step.start
        for index in range(start // PAGE, (start + len(step.tokens) - 1) // PAGE + 1):
            self.memory |= dict.fromkeys(session.slots(index), (-1,))
        session.content, states.position, states.is_there = session.content[:start], -1, False
        while session.steps and session.steps[0].start > start:
            follows = session.steps.popleft()
            session.table.answered()
            states.switch(follows.plan, follows.start)
            states.position = -1
        if not session.steps:
            session.planned = session.content

    def register(self, session: Session) -> None:
        while session.registered < min(len(session.names), session.settled // PAGE):
            index = session.registered
            page = session.table.to_name(index, last=index + 1 == len(session.names))
            if page is not None:
                name = session.names[index]
                self.cache.register(Holder("owner"), SPAN, None, bytes(name), page)
                session.table.named(index, [step.start for step in session.steps])
                if name == session.content[: len(name)]:
                    assert all(self.memory[slot] == name for slot in page.slots)
            session.registered += 1

    def fork(self) -> None:
        parent = self.rng.choice(self.sessions)
        tokens = max(0, parent.settled - self.rng.choice([0, 1, 6]))
        if not parent.states.reaches(tokens, 0):
            return
        max_tokens = tokens + self.rng.randint(1, 40)
        shared = parent.table.before(tokens)
        table = StateTable.open(self.allocator, self.cache, GROUP, -(-max_tokens // PAGE), shared)
        if table is not None:
            self.forks += 1
            self.add(table, parent.states.rows.upto(tokens), max_tokens, [], parent.content[:tokens])

    def close(self) -> None:
        session = self.rng.choice(self.sessions)
        if not session.steps:
            if self.rng.random() < 0.5:
                whole = len(session.content) // PAGE
                session.names = [session.content[: end * PAGE] for end in range(1, whole + 1)]
                session.registered = 0
                self.register(session)
            session.table.release()
            self.sessions.remove(session)

    def check(self) -> None:
        allocator = self.allocator
        held = [{*each.table.pages.values(), *each.table._spare} for each in self.sessions]
        beside = [page for each in self.sessions for page in each.table._beside.values()]
        beside += [page for each in self.sessions for _, page in each.table._spent]
        beside += [each.table.saved.page for each in self.sessions if each.table.saved is not None]
        assert all(each.steps or not each.table._spent for each in self.sessions)
        assert allocator.used == BLOCKS * len({*beside}.union(*held))
        for each, pages in zip(self.sessions, held, strict=True):
            assert len(pages) == len(each.table.pages) + len(each.table._spare) <= each.table._most
        promised = sum(each.table._most for each in self.sessions) * BLOCKS
        assert allocator.reserved == promised + BLOCKS * len({*beside}) - allocator.used
        assert allocator.available >= 0

    def run(self, steps: int) -> None:
        actions = [self.open, self.write, self.compute, self.fork, self.close]
        for _ in range(steps):
            action = self.rng.choices(actions, [2, 8, 12, 0.5, 1])[0]
            if self.sessions or action == self.open:
                action()
                self.check()
        for session in self.sessions:
            session.table.release()
        assert (self.allocator.used, self.allocator.reserved) == (0, 0)


def test_a_step_finds_the_state_that_it_begins_with(monkeypatch):
    monkeypatch.setattr(state_table, "NAMED_EVERY", 3)
    monkeypatch.setattr(states, "PAGE_TOKENS", PAGE)
    counts = np.zeros(4, int)
    for seed in range(60 * TIMES):
        world = World(random.Random(seed))
        world.run(300)
        counts += world.found, world.replays, world.forks, world.resumed
    assert min(counts) > 25, counts


def table_of(tokens: int, allocator: PageAllocator | None = None) -> StateTable:
    allocator = allocator or PageAllocator(40)
    table = StateTable.open(allocator, PrefixCache(allocator), GROUP, -(-tokens // PAGE), {})
    assert table is not None
    return table


def test_a_draft_can_be_taken_back_from_anywhere_in_a_page():
    """Of 32 guesses and a token, in pages of 32."""
    group = StateGroup([0], 1, 32)
    for length in range(1, 200):
        allocator = PageAllocator(4)
        table = StateTable.open(allocator, PrefixCache(allocator), group, 20, {})
        for position in range(length):
            assert table.write(position, 1) is not None
        assert table.write(length, 33) is not None
        assert all(table.begins_at(position) for position in range(length, length + 34))


def test_a_long_step_can_be_taken_back_to_its_beginning():
    table = table_of(400)
    table.write(0, 21)
    changes = table.write(21, 300)  # pages 5 to 80
    assert changes is not None
    assert sorted(table.pages) == [4, 78, 79, 80]
    own, beside = changes[:4], changes[4:]
    assert [(each.start, each.stop) for each in own] == [(78, 79), (79, 80), (80, 81), (5, 78)]
    assert [each.start for each in beside] == [15, 31, 47, 63]
    assert changes[3].slots == changes[0].slots
    assert [position for position in range(322) if table.begins_at(position)] == [
        *range(4),
        *range(20, 24),
        *range(316, 322),
    ]


def test_a_session_of_a_page_needs_one_state():
    allocator = PageAllocator(2)
    table = table_of(4, allocator)
    assert table.write(0, 4) is not None
    assert table.write(0, 2) == ()
    table.release()
    assert allocator.free == 2


def test_a_state_that_a_waiting_step_reads_is_not_given_up():
    allocator = PageAllocator(3 * BLOCKS + 1)
    cache = PrefixCache(allocator)
    first = StateTable.open(allocator, cache, GROUP, 3, {})
    first.write(0, 12)
    for index in range(3):
        cache.register(Holder("owner"), SPAN, None, bytes([index]), first.pages[index])
    first.release()
    assert allocator.cached == 3 * BLOCKS
    second = StateTable.open(allocator, cache, GROUP, 3, {0: cache.ends("owner", SPAN, [b"\0"])[1]})
    border = second.pages[0]
    second.write(4, 4)
    assert second.write(8, 4, waiting=[4]) is not None
    assert (second.pages[0], border.key is not None) == (border, True)  # it keeps its name, too
    assert second.write(0, 8, waiting=[4, 8]) is not None  # it goes back: the page is written in its turn
    assert border.key is None
    second.release()
    assert allocator.used == allocator.reserved == 0


def test_what_others_share_is_not_overwritten_while_a_step_waits_for_it():
    table = table_of(40, allocator := PageAllocator(40))
    table.write(0, 12)
    other = StateTable.open(allocator, PrefixCache(allocator), GROUP, 10, table.before(12))
    table.write(12, 1)
    assert table.write(8, 4, waiting=[12]) is None
    assert table.write(8, 4) is not None
    other.release()
    table.release()
    assert allocator.used == allocator.reserved == 0


@pytest.mark.parametrize(
    ("start", "count", "saved"),
    [(41, 2, True), (41, 33, True), (41, 34, False), (41, 1, False), (64, 2, False)],
)
def test_a_state_is_saved_before_a_draft_in_the_middle_of_a_page(start, count, saved):
    """Of 32 tokens."""
    group, allocator = StateGroup([0, 2], BLOCKS, 32), PageAllocator(20 * BLOCKS)
    table = StateTable.open(allocator, PrefixCache(allocator), group, 20, {})
    table.write(0, start)
    before = table.pages.get(start // 32)
    for _ in range(2):  # it may come again
        table.write(start, count)
        assert (table.saved is not None) == saved
    if saved:
        assert table.saved.page is before is not table.pages[1]
        table.write(start + 1, 1)  # a part was wrong
        assert table.pages[1] is before
        for at in range(start + 2, start + 65):  # of the same draft, or the next
            table.write(at, 1, waiting=[at - 1])
            assert table.saved.start == start + 1
        table.write(start + 65, 1, waiting=[start + 1])  # which may still begin there
        kept = len(table.pages) + len(table._spare)
        assert (table.saved, allocator.used) == (None, BLOCKS * (kept + 1))
        table.answered()
        assert allocator.used == BLOCKS * kept
        table.write(start + 66, 2)
        table.write(start + 68, 1)  # as plain decoding does
        assert (table.saved, allocator.used) == (None, BLOCKS * (len(table.pages) + len(table._spare)))
    table.release()
    assert allocator.used == allocator.reserved == 0


def test_a_named_state_is_not_saved_before_a_draft():
    """The page is given to the cache, and the step begins at the border."""
    table = table_of(400, allocator := PageAllocator(40 * BLOCKS))
    table.write(0, 12)
    named = table.pages[2]
    table._cache.register(Holder("owner"), SPAN, None, b"name", named)
    table.write(10, 2)
    assert (table.saved, table.pages[2] is named) == (None, False)
    table.release()
    assert (allocator.used, allocator.cached) == (0, BLOCKS)


def test_layouts_say_which_rows_keep_a_state():
    layout = KvLayout([None, 0, None], 8, states=[0, 2], page_tokens=PAGE)
    assert layout.states == GROUP


@pytest.mark.parametrize("free", [0, 5 * BLOCKS, 6 * BLOCKS])
def test_states_that_get_names_are_kept_where_there_is_room(free):
    """A prompt of 40 pages, of which a step of 30 pages passes by the 16th and the 32nd."""
    allocator = PageAllocator(4 * BLOCKS + free)
    table = table_of(400, allocator)
    table.write(0, 8)
    table.write(8, 120)
    assert (table.to_name(15, last=False) is not None) == (free > 5 * BLOCKS)
    assert table.to_name(16, last=False) is None
    table.named(15, [])
    table.release()
    assert allocator.free == allocator.total


def test_what_was_kept_for_a_name_goes_when_no_step_reads_it_any_more():
    """Of a session that always has a step that waits."""
    allocator = PageAllocator(40 * BLOCKS)
    table = table_of(1600, allocator)
    waiting = deque[int]()
    for start in range(0, 1600, 64):
        table.write(start, 64, waiting=waiting)
        waiting.append(start)
        if len(waiting) > 2:
            waiting.popleft()
            table.answered()
            for index in range(waiting[0] // PAGE - 16, waiting[0] // PAGE):
                table.named(index, waiting)
        assert allocator.available >= 32 * BLOCKS
    table.release()
    assert allocator.free == allocator.total
