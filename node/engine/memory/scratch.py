"""Slots in which the branches of a step are computed, and which nobody keeps. Plain ints.

They are of room that was promised to nobody, and go back as soon as the step has ended. All of them together
are a part of the pool at most, so that sessions find room however many branches wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from ....swarm.protocol.field_types import PAGE_TOKENS, Branches
from .page_allocator import Page, PageAllocator

MOST_PART = 4
"""Branches hold one in MOST_PART slots of a pool at most."""


def pages_of(position: int, branches: Branches) -> Iterable[int]:
    """Pages that each branch of a step at ``position`` writes to, that of ``position`` included."""
    first = position // PAGE_TOKENS
    return ((position + row + count - 1) // PAGE_TOKENS - first + 1 for row, count in branches)


class Scratch:
    """Of one pool."""

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self._held = 0

    def take(self, slots: int) -> Page | None:
        """``slots`` slots of undefined content; None: no room."""
        if self._held + slots > self._allocator.total // MOST_PART or not self._allocator.reserve(slots):
            return None
        self._held += slots
        return self._allocator.allocate(slots) if slots else Page(())

    def give_back(self, page: Page) -> None:
        self._held -= len(page.slots)
        self._allocator.release(page)
