"""Who is next: keys in the order they came within an owner, owners in turn, however much each has waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class FairQueue(Generic[Key]):
    """Each key waits once. Changed by the calls below, never while ``in_turn`` is being iterated."""

    __slots__ = ("_owners", "_size")

    def __init__(self) -> None:
        self._owners: OrderedDict[str, OrderedDict[Key, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, owner: str, key: Key) -> None:
        """``key`` waits behind the owner's other keys, a new owner behind the other owners."""
        keys = self._owners.get(owner)
        if keys is None:
            keys = self._owners[owner] = OrderedDict()
        if key not in keys:
            keys[key] = None
            self._size += 1

    def discard(self, owner: str, key: Key) -> None:
        keys = self._owners.get(owner)
        if keys is not None and key in keys:
            del keys[key]
            self._size -= 1
            if not keys:
                del self._owners[owner]

    def rotate(self, owner: str) -> None:
        """``owner`` had its turn: the others come first now."""
        if owner in self._owners:
            self._owners.move_to_end(owner)

    def in_turn(self) -> Iterator[Key]:
        """Every key: the first of each owner, then the second of each, and so on."""
        if len(self._owners) == 1:
            yield from next(iter(self._owners.values()))
            return
        turns = [iter(keys) for keys in self._owners.values()]
        while turns:
            left = []
            for turn in turns:
                for key in turn:
                    yield key
                    left.append(turn)
                    break
            turns = left
