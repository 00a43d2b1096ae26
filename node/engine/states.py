"""The states of one session on both sides of the queue: what the event loop plans, and where the compute
thread finds them.

A state cannot go back by a token. So a session begins again at the border of a page, where it has the state,
with the rows that came since, which the event loop keeps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...shards.layers.kv_pool import BatchSlice
from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from .memory.marks import Marks
from .memory.page_allocator import Page
from .memory.state_table import StateChange, StateTable


class Lead(NamedTuple):
    """``rows`` rows before a step, from the border of its page on, as they came: the first ``parts`` of
    ``payloads``, a list that may grow."""

    rows: int
    payloads: list[bytes]
    parts: int

    @property
    def payload(self) -> bytes:
        return b"".join(self.payloads[: self.parts])

    def last(self, rows: int) -> Lead:
        whole = self.payload
        return Lead(rows, [whole[-rows * len(whole) // self.rows :]], 1)


class StatePlan(NamedTuple):
    """What a step needs of states: the rows before it in its page, None if they are not kept; what changes in
    the table as it begins; the slots of the state that is saved from then on, None: none is; how many rows
    are fed again, if no step before it fails."""

    lead: Lead | None
    changes: Sequence[StateChange]
    saved: tuple[int, ...] | None
    again: int


class Begin(NamedTuple):
    """How a step can begin: with the rows of ``lead``, and ``saved`` as in ``BatchSlice``."""

    lead: Lead
    saved: np.ndarray | None


class _Page(NamedTuple):
    """What came of a page: ``payloads``, and how many rows there are up to the end of each."""

    payloads: list[bytes]
    ends: list[int]


class KeptRows:
    """Rows of ``row_bytes`` bytes as they came, in the pages that a session may begin in again: a few, those
    whose border is held. What a ``Lead`` shares is appended to, and never changed otherwise."""

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._pages: dict[int, _Page] = {}

    def lead(self, position: int) -> Lead | None:
        """The rows from the border before ``position`` up to it; None if they are not all there."""
        number, rows = divmod(position, PAGE_TOKENS)
        if not rows:
            return Lead(0, [], 0)
        page = self._pages.get(number)
        if page is not None and page.ends[-1] != rows:
            page = self._part(page, rows)
        return None if page is None else Lead(rows, page.payloads, len(page.payloads))

    def upto(self, position: int) -> KeptRows:
        """A copy for a session that begins with what came before ``position``."""
        kept, page = KeptRows(self._row_bytes), self._pages.get(position // PAGE_TOKENS)
        if page is not None and (part := self._part(page, position % PAGE_TOKENS)) is not None:
            kept._pages[position // PAGE_TOKENS] = part
        return kept

    def write(
        self, position: int, tokens: int, payload: bytes | bytearray | memoryview, held: Collection[int]
    ) -> None:
        """A step's rows take the place of all from ``position`` on. ``held``: pages whose end is held."""
        number, row = divmod(position, PAGE_TOKENS)
        page, size = self._pages.get(number), self._row_bytes
        if tokens == 1 and page is not None and page.ends[-1] == row and len(payload) == size:
            page.payloads.append(bytes(payload))
            page.ends.append(row + 1)
            return
        begun = None if page is None else self._part(page, row)
        self._pages = {
            each: rows
            for each, rows in self._pages.items()
            if each < number and (not each or each - 1 in held)
        }
        if begun is not None:
            self._pages[number] = begun
        if len(payload) != tokens * size:
            return  # it will be refused
        view, end = memoryview(payload), position + tokens
        for each in range(number, (end - 1) // PAGE_TOKENS + 1):
            first, last = max(position, each * PAGE_TOKENS), min(end, (each + 1) * PAGE_TOKENS)
            page = self._pages.get(each) or _Page([], [])
            if (each and each - 1 not in held) or (page.ends[-1:] or [0]) != [first % PAGE_TOKENS]:
                self._pages.pop(each, None)
                continue
            page.payloads.append(bytes(view[(first - position) * size : (last - position) * size]))
            page.ends.append(last - each * PAGE_TOKENS)
            self._pages[each] = page

    def _part(self, page: _Page, rows: int) -> _Page | None:
        """The first ``rows`` of it, in lists of their own; None where there are none or fewer."""
        whole = bisect_left(page.ends, rows)
        if not rows or whole == len(page.ends):
            return None
        first = page.ends[whole - 1] if whole else 0
        last = page.payloads[whole][: (rows - first) * self._row_bytes]
        return _Page([*page.payloads[:whole], last], [*page.ends[:whole], rows])


@dataclass(eq=False, slots=True)
class SequenceStates:
    """The event loop writes ``held``, ``marks``, ``rows`` and ``is_there``. The compute thread writes the
    others, and ``table`` (blocks, max_pages), slots of states or -1; the event loop only does while no step
    is under way.

    ``is_there``: a step that starts where the last one ends will find its state. ``position``: how many
    tokens came before the state that a step in the middle of a page finds in the table; ``saved_at``: before
    that in the ``slots`` which are saved, in ``saved`` as (blocks,); -1: there is none.
    """

    held: StateTable
    marks: Marks
    rows: KeptRows
    table: np.ndarray
    is_there: bool = False
    position: int = -1
    slots: tuple[int, ...] | None = None
    saved: np.ndarray | None = None
    saved_at: int = -1

    # The event loop's.

    def reaches(self, position: int, lowest: int) -> bool:
        """Whether a session can begin at ``position`` again. ``lowest``: as that of its pages."""
        return (
            self.held.begins_at(position)
            and position - position % PAGE_TOKENS >= lowest
            and self.rows.lead(position) is not None
        )

    def plan(
        self,
        position: int,
        tokens: int,
        payload: bytes | bytearray | memoryview,
        waiting: Collection[int],
        *,
        goes_on: bool,
        save: bool = False,
    ) -> StatePlan | None:
        """For a step that may begin; None where a step that waits reads what it would overwrite. ``waiting``:
        where steps under way start. ``goes_on``: it starts where the one before it ends. ``save``: as in
        ``StateTable.write``."""
        lead, before = self.rows.lead(position), self.held.saved
        changes = self.held.write(position, tokens, waiting=waiting, save=save)
        if changes is None:
            return None
        self.rows.write(position, tokens, payload, self.held.pages)
        self.is_there = True
        saved, again = self.held.saved, 0 if goes_on or lead is None else lead.rows
        if again and before is not None and saved is not None and position - again < before.start <= position:
            again = position - before.start
        return StatePlan(lead, changes, None if saved is None else saved.page.slots, again)

    def begin_lower(self, position: int, state: Page) -> None:
        """Begin at ``position``, the end of a page whose ``state`` the cache has. No step must be under
        way."""
        self.held.begin_lower(self.held.border(position), state)
        self.position = -1

    # The compute thread's.

    def apply(self, changes: Collection[StateChange]) -> None:
        for change in changes:
            slots = np.array(change.slots, np.int32)[:, None]
            self.table[change.rows, change.start : change.stop] = slots

    def switch(self, plan: StatePlan, position: int) -> None:
        """From now on the states are where they were planned to be from the step at ``position`` on.
        Idempotent."""
        self.apply(plan.changes)
        if plan.saved == self.slots:
            return
        if plan.saved is None:
            self.saved, self.saved_at = None, -1
        else:  # the slots of the step's page and those that are saved have changed places
            goes_on = self.position == position
            self.position, self.saved_at = self.saved_at, position if goes_on else -1
            self.saved = np.full(len(self.table), -1, np.int32)
            self.saved[self.held.rows] = plan.saved
        self.slots = plan.saved

    def begin(self, plan: StatePlan, position: int, offset: int) -> Begin | None:
        """How to compute a step at ``position`` from its ``offset`` on; None: what it needs is not there."""
        start = position + offset
        border = start - start % PAGE_TOKENS
        if self.position == start or (not offset and start == border):
            return _AT_ONCE
        if offset:
            return None
        if self.saved_at == start:
            return Begin(_NOTHING, self.saved)
        lead = plan.lead
        if lead is not None and border < self.position < start:
            lead = lead.last(start - self.position)
        return None if lead is None else Begin(lead, self.saved)

    def save(self, position: int) -> tuple[list[int], list[int]]:
        """The state before ``position``, in the middle of a page, is in the table, and is to be copied to be
        the saved one: from which slots to which."""
        if self.position != position or self.saved is None:
            raise LocalProtocolError(
                f"there is no state before position {position} to save, or no room for it"
            )
        self.saved_at = position
        page = position // PAGE_TOKENS
        return self.table[self.held.rows, page].tolist(), self.saved[self.held.rows].tolist()

    def before(self, position: int) -> np.ndarray | None:
        """Slots (blocks,) of the state before a step at ``position`` that the step does not write to; None at
        the beginning."""
        if not position:
            return None
        if not position % PAGE_TOKENS:
            return self.table[:, position // PAGE_TOKENS - 1].copy()
        if self.saved_at != position:
            raise LocalProtocolError(f"the state before position {position} is not saved")
        return self.saved

    def has_computed(self, part: BatchSlice) -> None:
        self.position = part.start + part.count
        if part.saved is not None:
            self.saved_at = part.start + part.again


_NOTHING = Lead(0, [], 0)
_AT_ONCE = Begin(_NOTHING, None)
