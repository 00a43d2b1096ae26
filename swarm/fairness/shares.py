"""A scarce thing divided among strangers, with a limit for all, for an address group and for a peer.

Counts are exact and kept as things are taken and given back; nothing is ever counted anew. While there is
room, anyone may take up to the limits. When it is full, the one that holds the most gives way: first the
address group that holds the most, in it the peer that holds the most. It gives way only to a peer that would
still hold less than that. So identities invented behind one network share what one network may have. Of
equals the one that came last gives way: names can be chosen, having been there cannot.

Every call costs O(log n), so that asking in vain is cheap to answer.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import LocalProtocolError, UsageError


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that takes: its authenticated peer id, and the address group that it comes from
    (``address_groups``)."""

    peer_id: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class ShareLimits:
    """Bounds in the unit of the thing itself: entries, bytes, sessions. ``math.inf``: none but ``total``."""

    total: float
    per_group: float = math.inf
    per_peer: float = math.inf

    def __post_init__(self) -> None:
        if not (self.total > 0 and self.per_group > 0 and self.per_peer > 0):
            raise UsageError(f"shares of {self.total}, {self.per_group}, {self.per_peer} are not possible")


class Shares:
    """The shares of one scarce thing by holder. A group or peer that holds nothing is forgotten."""

    def __init__(self, limits: ShareLimits) -> None:
        self.limits = limits
        self.held = 0.0
        self._groups: dict[str, dict[str, float]] = {}
        self._by_group = Ranking()
        self._peers: dict[str, Ranking] = {}  # by group; of those that were asked for a loser

    def __len__(self) -> int:
        """Peers that hold anything."""
        return sum(map(len, self._groups.values()))

    def of_peer(self, holder: Holder) -> float:
        """What the peer holds, as counted under this group."""
        return self._groups.get(holder.group, {}).get(holder.peer_id, 0.0)

    def of_group(self, group: str) -> float:
        """What all peers of the group hold together."""
        return self._by_group.weight(group)

    def refusal(self, holder: Holder, amount: float = 1) -> str:
        """Which limit ``amount`` more would be beyond, as a sentence for the asker; "" if it fits."""
        limits = self.limits
        if self.of_peer(holder) + amount > limits.per_peer:
            return f"one peer may hold {limits.per_peer:g}"
        if self.of_group(holder.group) + amount > limits.per_group:
            return f"the peers of one network may hold {limits.per_group:g} together"
        if self.held + amount > limits.total:
            return f"all peers may hold {limits.total:g} together"
        return ""

    def take(self, holder: Holder, amount: float = 1) -> str:
        """Count ``amount`` for the holder and return ""; or count nothing and return ``refusal``."""
        if why := self.refusal(holder, amount):
            return why
        self._set(holder, self.of_peer(holder) + amount)
        self.held += amount
        return ""

    def give_back(self, holder: Holder, amount: float = 1) -> None:
        """Raises LocalProtocolError if the holder holds less than ``amount``: our own bookkeeping is
        wrong."""
        left = self.of_peer(holder) - amount
        if left < 0:
            raise LocalProtocolError(f"{holder.peer_id} gives back {amount:g}, more than it holds")
        self.held -= amount
        self._set(holder, left)

    def loser(
        self, newcomer: Holder, amount: float = 1, may_lose: Callable[[Holder], bool] | None = None
    ) -> Holder | None:
        """The holder that must give ``amount`` back so that the newcomer can take it. None: the newcomer has
        to wait.

        The heaviest group loses if the newcomer's group would hold less than it even afterwards; within one
        group, the heaviest peer. Of equals the one that came last. ``may_lose``: whether a holder has
        anything that can be taken from it; None: everybody has.
        """
        group, needed = newcomer.group, self.of_peer(newcomer) + amount
        heaviest = self._by_group.heaviest(lambda each: each != newcomer.group)
        if heaviest is not None and self.of_group(heaviest) - amount >= self.of_group(group) + amount:
            group, needed = heaviest, 0.0

        def accepts(peer_id: str) -> bool:
            holder = Holder(peer_id, group)
            return holder != newcomer and (may_lose is None or may_lose(holder))

        peer_id = self._ranking(group).heaviest(accepts)
        loser = None if peer_id is None else Holder(peer_id, group)
        return loser if loser is not None and self.of_peer(loser) - amount >= needed else None

    def _set(self, holder: Holder, amount: float) -> None:
        group, peer_id = holder.group, holder.peer_id
        peers = self._groups.setdefault(group, {})
        self._by_group.set(group, self.of_group(group) + amount - peers.get(peer_id, 0.0))
        if amount:
            peers[peer_id] = amount
        else:
            peers.pop(peer_id, None)
        if group in self._peers:
            self._peers[group].set(peer_id, amount)
        if not peers:
            del self._groups[group]
            self._by_group.set(group, 0.0)  # floats need not come back to nothing by themselves
            self._peers.pop(group, None)

    def _ranking(self, group: str) -> Ranking:
        ranking = self._peers.get(group)
        if ranking is None:
            ranking = Ranking()
            for peer_id, held in self._groups.get(group, {}).items():
                ranking.set(peer_id, held)
            if group in self._groups:
                self._peers[group] = ranking
        return ranking


class Ranking:
    """Names by their weight, the heaviest first; of equals the one that came last."""

    def __init__(self) -> None:
        self._weights: dict[str, tuple[float, int]] = {}  # with the number of its arrival
        self._arrivals = 0
        self._heap: list[_Item] | None = None  # former weights are still in it; made at the first question

    def weight(self, name: str) -> float:
        """0 of a name that is not known."""
        return self._weights.get(name, (0.0, 0))[0]

    def set(self, name: str, weight: float) -> None:
        """``weight`` 0: it is forgotten."""
        if not weight:
            self._weights.pop(name, None)
            return
        known = self._weights.get(name)
        if known is None:
            self._arrivals += 1
        self._weights[name] = weight, known[1] if known else self._arrivals
        if self._heap is not None:
            heapq.heappush(self._heap, self._item(name))
            if len(self._heap) > 2 * len(self._weights) + _FORMER:
                self._heap = None

    def heaviest(self, accepts: Callable[[str], bool]) -> str | None:
        """The first that ``accepts`` takes."""
        if self._heap is None:
            self._heap = [self._item(name) for name in self._weights]
            heapq.heapify(self._heap)
        passed: list[_Item] = []
        while self._heap:
            item = self._heap[0]
            if item == self._item(item[2]) and item not in passed[-1:]:
                if accepts(item[2]):
                    break
                passed.append(item)
            heapq.heappop(self._heap)
        found = self._heap[0][2] if self._heap else None
        for item in passed:
            heapq.heappush(self._heap, item)
        return found

    def _item(self, name: str) -> _Item:
        weight, arrival = self._weights.get(name, (0.0, 0))
        return -weight, -arrival, name


_Item = tuple[float, int, str]
"""Negative weight, negative arrival, name: so that the least is the heaviest, and the last to come."""

_FORMER = 32
"""A ranking is made anew when it has more items than twice its names and this number: old weights stay in
it."""
