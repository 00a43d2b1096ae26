"""Which key is next: keys in the order they came within an owner, owners in turn in a group, and groups in
turn, independent of how many wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class FairQueue(Generic[Key]):
    """Each key waits once. Changed by the calls below, never while ``in_turn`` is being iterated. An owner
    belongs to one ``group``."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, OrderedDict[str, OrderedDict[Key, None]]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, owner: str, key: Key, group: str = "") -> None:
        """``key`` waits behind the owner's other keys, a new owner behind the other owners of its group, a
        new group behind the others."""
        owners = self._groups.get(group)
        if owners is None:
            owners = self._groups[group] = OrderedDict()
        keys = owners.get(owner)
        if keys is None:
            keys = owners[owner] = OrderedDict()
        if key not in keys:
            keys[key] = None
            self._size += 1

    def discard(self, owner: str, key: Key, group: str = "") -> None:
        owners = self._groups.get(group)
        keys = owners.get(owner) if owners is not None else None
        if owners is not None and keys is not None and key in keys:
            del keys[key]
            self._size -= 1
            if not keys:
                del owners[owner]
                if not owners:
                    del self._groups[group]

    def rotate(self, owner: str, group: str = "") -> None:
        """``owner`` had its turn, and its group: the others come first now."""
        owners = self._groups.get(group)
        if owners is not None and owner in owners:
            owners.move_to_end(owner)
        if owners is not None:
            self._groups.move_to_end(group)

    def first(self) -> Key | None:
        """The key whose turn it is; None while no key waits."""
        for owners in self._groups.values():
            for keys in owners.values():
                return next(iter(keys))
        return None

    def in_turn(self) -> Iterator[Key]:
        """Every key: the first of each group, then the second of each, and so on; within a group likewise the
        first of each owner."""
        return _in_turn([_in_turn([iter(keys) for keys in each.values()]) for each in self._groups.values()])


def _in_turn(turns: list[Iterator[Key]]) -> Iterator[Key]:
    return turns[0] if len(turns) == 1 else _taken_in_turn(turns)


def _taken_in_turn(turns: Iterable[Iterator[Key]]) -> Iterator[Key]:
    while turns:
        left = []
        for turn in turns:
            for key in turn:
                yield key
                left.append(turn)
                break
        turns = left
