"""Things kept for their owners until the room is needed: who has most loses first.

Of an owner's things the one that was used least recently goes first. So nobody can push out what others have
left here by leaving more. Plain ints: no clock, no memory of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from ..swarm.errors import LocalProtocolError

T = TypeVar("T", bound=Hashable)

SPARE_RANKS = 64
"""Outdated entries that may lie in the queue of owners beside one for each of them, before it is tidied."""


class OwnerLru(Generic[T]):
    """``size``: of all things together, in the unit that they are counted in."""

    __slots__ = ("_counter", "_owned", "_ranks", "_sizes", "size")

    def __init__(self) -> None:
        self.size = 0
        self._owned: dict[str, OrderedDict[T, int]] = {}  # each owner's, last used at the end
        self._sizes: dict[str, int] = {}
        self._ranks: list[
            tuple[int, int, str]
        ] = []  # a heap: greatest owner first; some entries are outdated
        self._counter = count()

    def __len__(self) -> int:
        return sum(map(len, self._owned.values()))

    def size_of(self, owner: str) -> int:
        """Of all that one owner has."""
        return self._sizes.get(owner, 0)

    def add(self, owner: str, thing: T, size: int) -> None:
        """Keep a new thing, as used just now."""
        owned = self._owned.setdefault(owner, OrderedDict())
        if thing in owned:
            raise LocalProtocolError("what is kept already cannot be added")
        owned[thing] = size
        self._grow(owner, size)

    def use(self, owner: str, thing: T) -> None:
        """It was used just now."""
        self._owned[owner].move_to_end(thing)

    def remove(self, owner: str, thing: T) -> None:
        """Keep it no longer. Raises KeyError."""
        owned = self._owned[owner]
        size = owned.pop(thing)
        if not owned:
            del self._owned[owner]
        self._grow(owner, -size)

    def pop(self) -> T:
        """Give up the least recently used thing of the owner who has most. Raises LocalProtocolError."""
        while self._ranks:
            size, _, owner = self._ranks[0]
            if self._sizes.get(owner) == -size:
                thing = next(iter(self._owned[owner]))
                self.remove(owner, thing)
                return thing
            heappop(self._ranks)
        raise LocalProtocolError("nothing is kept that could be given up")

    def _grow(self, owner: str, size: int) -> None:
        self.size += size
        total = self._sizes.get(owner, 0) + size
        if owner not in self._owned:
            del self._sizes[owner]
            return
        self._sizes[owner] = total
        heappush(self._ranks, (-total, next(self._counter), owner))
        if len(self._ranks) > 2 * len(self._sizes) + SPARE_RANKS:
            self._ranks = [(-held, next(self._counter), each) for each, held in self._sizes.items()]
            heapify(self._ranks)
