"""Things kept for peers until the room is needed: the peer that has most loses first.

First loses the address group that has most, in it the peer that has most, and of its things the one that was
used least recently. So a network cannot push out what others have left here by leaving more, under any number
of names.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from ..errors import LocalProtocolError
from .shares import Holder, Ranking

T = TypeVar("T", bound=Hashable)


class OwnerLru(Generic[T]):
    """``size``: the sum over all things, in the unit that they are counted in."""

    def __init__(self) -> None:
        self.size = 0
        self._owners: dict[T, Holder] = {}
        self._owned: dict[Holder, OrderedDict[T, int]] = {}  # each owner's, last used at the end
        self._peers: Counter[Holder] = Counter()  # their sizes
        self._groups = Ranking()
        self._by_group: dict[str, Ranking] = {}  # peer ids of each group
        self._changed: set[Holder] = (
            set()
        )  # whose sizes the rankings do not know yet: only ``pop`` needs them

    def __len__(self) -> int:
        return len(self._owners)

    def size_of(self, owner: Holder) -> int:
        """The sum over all things of one owner."""
        return self._peers[owner]

    def oldest_of(self, owner: Holder) -> T:
        """The thing of this owner that was used least recently. Raises KeyError where it has none."""
        return next(iter(self._owned[owner]))

    def add(self, owner: Holder, thing: T, size: int) -> None:
        """Keep a new thing, as used just now."""
        if thing in self._owners:
            raise LocalProtocolError("an entry cannot be added twice")
        self._owners[thing] = owner
        self._owned.setdefault(owner, OrderedDict())[thing] = size
        self._count(owner, size)

    def use(self, thing: T) -> None:
        """Note that the thing is used now."""
        self._owned[self._owners[thing]].move_to_end(thing)

    def remove(self, thing: T) -> None:
        """Keep it no longer. Raises KeyError."""
        owner = self._owners.pop(thing)
        owned = self._owned[owner]
        size = owned.pop(thing)
        if not owned:
            del self._owned[owner]
        self._count(owner, -size)

    def pop(self) -> T:
        """Give up the least recently used thing of the owner that has most. Raises LocalProtocolError."""
        self._rank()
        group = self._groups.heaviest(_anybody)
        peer_id = None if group is None else self._by_group[group].heaviest(_anybody)
        if group is None or peer_id is None:
            raise LocalProtocolError("there is no entry to give up")
        thing = self.oldest_of(Holder(peer_id, group))
        self.remove(thing)
        return thing

    def _count(self, owner: Holder, size: int) -> None:
        self.size += size
        self._peers[owner] += size
        if owner not in self._owned:
            del self._peers[owner]
        self._changed.add(owner)

    def _rank(self) -> None:
        for owner in self._changed:
            peers = self._by_group.setdefault(owner.group, Ranking())
            size, before = self._peers[owner], peers.weight(owner.peer_id)
            peers.set(owner.peer_id, size)
            total = self._groups.weight(owner.group) + size - before
            self._groups.set(owner.group, total)
            if not total:
                del self._by_group[owner.group]
        self._changed.clear()


def _anybody(_: str) -> bool:
    return True
