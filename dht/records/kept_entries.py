"""What one DHT node keeps for others, and which entry gives way when there is no room left.

Anyone may invent identities, so room is divided among the networks that entries come from (address groups,
``swarm.fairness.shares``) before it is divided among their owners. While there is room, every owner gets it.
When a key or everything is full, a newcomer takes the place of the heaviest group's heaviest owner, and only
if its own group holds less: so a newcomer from another network always finds room, and a network of few is
never pushed out by one of many. Of equals the last to come gives way, and an owner that is in may stay and
refresh.

In the index of models many owners say the same. It is enough that INDEX_SPEAKERS do, from as many networks as
there are. The keeper bounds that, and owners need not leave it to each other.

Pure: no hivemind, a clock that is given. Counts are exact and nothing is ever counted anew: a store, a
refusal and an expiry cost O(log n) each.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ...swarm.fairness.shares import Holder, ShareLimits, Shares
from .keys import INDEX_SPEAKERS, MAX_ENTRIES, MAX_KEYS_OF_OWNER, MAX_TOTAL_ENTRIES

_DEAD = 1024  # expirations of entries that are gone: so many, and as many as there are entries, may wait


@dataclass(slots=True, eq=False)
class Kept:
    """``group``: the network that it came from. ``saying``: of an entry of the index, what it says."""

    key: bytes
    owner: str
    value: bytes
    expiration: float
    group: str
    saying: str = ""
    is_live: bool = True

    @property
    def holder(self) -> Holder:
        return Holder(self.owner, self.group)


class _Key:
    """The entries of one key, and how they are divided."""

    __slots__ = ("entries", "sayings", "shares", "speakers")

    def __init__(self, max_entries: int) -> None:
        self.entries: dict[str, Kept] = {}
        self.shares = Shares(ShareLimits(max_entries))
        self.speakers: dict[str, Shares] = {}  # of what is said in the index, by saying
        self.sayings = Shares(ShareLimits(max_entries))  # the same entries, divided among what they say


class KeptEntries:
    """Entries by key and owner; whether they are signed is for their bringer to check before ``put``.

    ``index``: keys (20 bytes) where entries that say the same are bounded. ``clock``: Unix time in seconds.
    """

    def __init__(
        self,
        index: Collection[bytes] = (),
        *,
        max_entries: int = MAX_ENTRIES,
        max_total: int = MAX_TOTAL_ENTRIES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._index = frozenset(index)
        self._max_entries = max_entries
        self._clock = clock
        self._keys: dict[bytes, _Key] = {}
        self._of_owner: dict[str, dict[bytes, Kept]] = {}
        self._all = Shares(ShareLimits(max_total))
        self._expirations: list[tuple[float, int, Kept]] = []
        self._stored = 0

    def __len__(self) -> int:
        self._expire()
        return int(self._all.held)

    def entries(self, key: bytes) -> Mapping[str, Kept]:
        """The live entries of a key, by owner; not to be changed, nor kept."""
        self._expire()
        return self._keys[key].entries if key in self._keys else {}

    def answer(
        self, key: bytes, owner: str, value: bytes, expiration: float, group: str, body: bytes
    ) -> bool | None:
        """What ``put`` would say even if the entry is signed; None: it would keep it, so it must be checked.

        Asked first, it spares the check of signatures of those that have no chance.
        """
        self._expire()
        old = self._of_owner.get(owner, {}).get(key)
        if old is not None:
            same = expiration == old.expiration and value == old.value
            return None if same or expiration > old.expiration else False
        if expiration <= self._clock():
            return False
        way = self._way_in(self._made(key, owner, value, expiration, group, body))
        return None if way.is_open else way.is_said

    def has_room(self, key: bytes, owner: str, group: str) -> bool:
        """Whether an entry of ``owner`` is there, or would find room."""
        self._expire()
        if key in self._of_owner.get(owner, {}):
            return True
        return self._way_in(Kept(key, owner, b"", self._clock(), group)).is_open

    def put(
        self,
        key: bytes,
        owner: str,
        value: bytes,
        expiration: float,
        group: str,
        body: bytes,
        *,
        by_owner: bool,
    ) -> bool:
        """Keep an entry. ``group``: where it came from, ``by_owner``: from its owner, not through another.

        True if it is kept, or enough others say the same; False if there is a newer one or no room.
        """
        self._expire()
        new = self._made(key, owner, value, expiration, group, body)
        old = self._of_owner.get(owner, {}).get(key)
        if old is None:
            return expiration > self._clock() and self._let_in(new)
        if old.expiration > expiration or (old.expiration == expiration and old.value != value):
            return False
        if not by_owner and self._all.of_group(group) >= self._all.of_group(old.group):
            new.group = old.group  # an entry does not weigh more because another brings it
        if old.saying != new.saying:
            self._remove(old)
            self._let_in(new)
            return True  # or it is dropped: what it said is not said any more, and the rest others say
        if old.group != new.group:
            self._count(old, -1)
            old.group = new.group
            self._count(old, +1)
        old.value, old.expiration = value, expiration  # its place in the heap is found out when it comes up
        return True

    def _made(self, key: bytes, owner: str, value: bytes, expiration: float, group: str, body: bytes) -> Kept:
        saying = hashlib.sha256(body).hexdigest() if key in self._index else ""
        return Kept(key, owner, value, expiration, group, saying)

    def _let_in(self, new: Kept) -> bool:
        way = self._way_in(new)
        if not way.is_open:
            return way.is_said
        if way.loser is not None:
            self._remove(way.loser)
        self._keys.setdefault(new.key, _Key(self._max_entries)).entries[new.owner] = new
        self._of_owner.setdefault(new.owner, {})[new.key] = new
        self._count(new, +1)
        self._stored += 1
        heapq.heappush(self._expirations, (new.expiration, self._stored, new))
        return True

    def _way_in(self, new: Kept) -> _Way:
        """The narrowest bound that is reached decides: the entry that gives way there makes room in the wider
        ones."""
        holder, key = new.holder, self._keys.get(new.key)
        if len(self._of_owner.get(new.owner, ())) >= MAX_KEYS_OF_OWNER:
            return _NO_WAY
        if key is not None:
            said = key.speakers.get(new.saying)
            if said is not None and said.refusal(holder):
                loser = said.loser(holder)
                return _ENOUGH if loser is None else _Way(True, key.entries[loser.peer_id])
            if key.shares.refusal(holder):
                loser = key.shares.loser(holder)
                if loser is None and new.saying:
                    loser = key.sayings.loser(Holder(new.owner, new.saying))
                return _NO_WAY if loser is None else _Way(True, key.entries[loser.peer_id])
        if self._all.refusal(holder):
            loser = self._all.loser(holder)
            return _NO_WAY if loser is None else _Way(True, self._last_of(loser))
        return _OPEN

    def _last_of(self, holder: Holder) -> Kept:
        entries = reversed(self._of_owner[holder.peer_id].values())
        return next(entry for entry in entries if entry.group == holder.group)

    def _count(self, entry: Kept, amount: int) -> None:
        key, holder = self._keys[entry.key], entry.holder
        pools = [(self._all, holder), (key.shares, holder)]
        if entry.saying:
            said = key.speakers.setdefault(entry.saying, Shares(ShareLimits(INDEX_SPEAKERS)))
            pools += [(said, holder), (key.sayings, Holder(entry.owner, entry.saying))]
        for shares, who in pools:
            if amount > 0:
                shares.take(who)
            else:
                shares.give_back(who)
        if entry.saying and not key.speakers[entry.saying].held:
            del key.speakers[entry.saying]

    def _remove(self, entry: Kept) -> None:
        entry.is_live = False
        self._count(entry, -1)
        entries, keys = self._keys[entry.key].entries, self._of_owner[entry.owner]
        del entries[entry.owner], keys[entry.key]
        if not entries:
            del self._keys[entry.key]
        if not keys:
            del self._of_owner[entry.owner]

    def _expire(self) -> None:
        now, heap = self._clock(), self._expirations
        while heap and (heap[0][0] <= now or not heap[0][2].is_live):
            _, number, entry = heapq.heappop(heap)
            if not entry.is_live:
                continue
            if entry.expiration > now:
                heapq.heappush(heap, (entry.expiration, number, entry))  # it was refreshed meanwhile
            else:
                self._remove(entry)
        if len(heap) > 2 * self._all.held + _DEAD:
            self._expirations = [item for item in heap if item[2].is_live]
            heapq.heapify(self._expirations)


@dataclass(frozen=True, slots=True)
class _Way:
    """``loser``: the owner whose entry has to go for it. ``is_said``: it has no place because others say the
    same."""

    is_open: bool
    loser: Kept | None = None
    is_said: bool = False


_OPEN, _NO_WAY, _ENOUGH = _Way(True), _Way(False), _Way(False, is_said=True)
