"""A scarce thing divided among strangers: so much in all, so much an address group, so much a peer.

Counts are exact and kept as things are taken and given back; nothing is ever counted anew. While there is
room, anyone may take up to the limits. When it is full, who holds the most gives way: first the address group
that holds the most, in it the peer that holds the most, and only to somebody who would still hold less than
that. So identities invented behind one network share what one network may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import LocalProtocolError, UsageError


@dataclass(frozen=True, slots=True)
class Holder:
    """Who takes: an authenticated peer id, and the address group that it comes from (``address_groups``)."""

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
            raise UsageError(f"shares of {self.total}, {self.per_group}, {self.per_peer} cannot be divided")


class Shares:
    """Who holds how much of one scarce thing. A group or peer that holds nothing is forgotten."""

    __slots__ = ("_groups", "held", "limits")

    def __init__(self, limits: ShareLimits) -> None:
        self.limits = limits
        self.held = 0.0
        self._groups: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        """Peers that hold anything."""
        return sum(map(len, self._groups.values()))

    def of_peer(self, holder: Holder) -> float:
        """What the peer holds, as counted under this group."""
        return self._groups.get(holder.group, {}).get(holder.peer_id, 0.0)

    def of_group(self, group: str) -> float:
        """What all peers of the group hold together."""
        return sum(self._groups.get(group, {}).values())

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
        peers = self._groups.setdefault(holder.group, {})
        peers[holder.peer_id] = peers.get(holder.peer_id, 0.0) + amount
        self.held += amount
        return ""

    def give_back(self, holder: Holder, amount: float = 1) -> None:
        """Raises LocalProtocolError if the holder does not hold so much: our own bookkeeping is wrong."""
        peers = self._groups.get(holder.group, {})
        left = peers.get(holder.peer_id, 0.0) - amount
        if left < 0:
            raise LocalProtocolError(f"{amount:g} given back that {holder.peer_id} does not hold")
        self.held -= amount
        if left:
            peers[holder.peer_id] = left
            return
        peers.pop(holder.peer_id, None)
        if not peers:
            self._groups.pop(holder.group, None)

    def loser(
        self, newcomer: Holder, amount: float = 1, may_lose: Callable[[Holder], bool] = lambda _: True
    ) -> Holder | None:
        """Who must give ``amount`` back so that the newcomer can take it; None: the newcomer has to wait.

        The heaviest group loses if the newcomer's group would hold less than it even afterwards; within one
        group, the heaviest peer. Of equals the one whose id sorts last, so that every caller agrees.
        ``may_lose``: whether a holder has anything that can be taken from it.
        """
        ours = self.of_group(newcomer.group) + amount
        heaviest = max(
            (group for group in self._groups if group != newcomer.group),
            key=lambda group: (self.of_group(group), group),
            default=None,
        )
        group = newcomer.group
        if heaviest is not None and self.of_group(heaviest) - amount >= ours:
            group = heaviest
        needed = 0.0 if group != newcomer.group else self.of_peer(newcomer) + amount
        candidates = (
            Holder(peer_id, group)
            for peer_id, held in self._groups.get(group, {}).items()
            if held - amount >= needed and (group, peer_id) != (newcomer.group, newcomer.peer_id)
        )
        return max(
            filter(may_lose, candidates),
            key=lambda holder: (self.of_peer(holder), holder.peer_id),
            default=None,
        )
