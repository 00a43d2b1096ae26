"""How much KV cache and how many places each peer may take, which must give some back, and when there will be
more.

No clock, no memory. While there is room, a peer may hold all of the cache (up to the node's
``kv_share_per_peer``) and as many sessions as the node gives one peer. Once a peer finds none, both are
divided: among the address groups of the peers that hold or want some, then among the peers of each group. For
WANT_SECONDS from then no peer may grow beyond its share, and a peer beyond it gives sessions back: idle ones
at once, the least used of what they hold first; those in use only to a peer that has waited, and a peer's
last only to another address group, and while its own stays beyond its share without it. Every peer may have
one session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...swarm.errors import UsageError
from ...swarm.fairness.shares import Holder

WANT_SECONDS = 30.0
"""How long a peer that found no room counts as waiting: it was told to be back before."""
PATIENCE_S = 3.0
"""Seconds that a peer in want waits before sessions in use are taken for it: many end by themselves."""
MAX_WANTING = 256
"""At most this many peers are remembered as waiting: identities cost nothing, so there must be a bound."""
MIN_RETRY_S, MAX_RETRY_S = 0.05, 30.0
"""Bounds of the advice in BUSY: a round trip of a far peer, and WANT_SECONDS."""
FIRST_LIFETIME_S = 2.0
"""How long sessions last before the first one has ended: a short answer."""
NO_BOUND = 2**62
"""More cells than there can be."""
MOST_OF_IDLE = 4
"""A peer without any session gets up to 1/MOST_OF_IDLE of the cache from idle ones of its group, even if each
of these is within its share: crowds of idle identities keep no peer out."""
_LIFETIME_WEIGHT = 0.2
"""The weight of the newest session in the mean lifetime: a change shows after some five sessions."""


class Holding(NamedTuple):
    """What a peer holds, or lacks: (token, block) pairs, and sessions."""

    cells: int
    places: int


@dataclass(frozen=True, slots=True)
class Reclaimable:
    """A session that could be taken: whose, its reservation, how much it is used lately, and when it was last
    used. ``active``: in use, or with a step under way."""

    holder: Holder
    kv_cells: int
    tokens_per_s: float
    last_used: float
    active: bool


class Admission:
    """Decides for one cache of ``total_cells`` (token, block) pairs and ``total_places`` sessions. Times are
    seconds of any one clock."""

    def __init__(self, total_cells: int, total_places: int, kv_share_per_peer: float = 1.0) -> None:
        if total_cells < 1 or total_places < 1 or not 0 < kv_share_per_peer <= 1:
            raise UsageError(
                f"{total_cells} cells, {total_places} places and a share of {kv_share_per_peer} cannot be "
                "divided"
            )
        self._total = Holding(total_cells, total_places)
        # Shared pages count for every session that has them: what is counted may exceed the whole cache.
        whole = kv_share_per_peer == 1
        self.most_cells = NO_BOUND if whole else max(1, int(total_cells * kv_share_per_peer))
        """What one peer may ever hold."""
        self._lifetime_s = FIRST_LIFETIME_S
        self._any_ended = False
        self._wanting: dict[Holder, tuple[float, float, int]] = {}  # since when, until when, cells

    def allowance(self, holder: Holder, held: Mapping[Holder, Holding], now: float) -> Holding:
        """What the peer may hold in all now; ``held`` has that of every peer that holds any."""
        self._forget_wanting(now)
        if not (self._wanting.keys() - {holder}) or holder not in held:
            return Holding(self.most_cells, NO_BOUND)
        cells, places = self._shares(held.keys(), holder).of(holder)
        return Holding(min(self.most_cells, int(cells)), max(1, int(places)))

    def want(self, holder: Holder, cells: int, now: float) -> None:
        """The peer found no room for ``cells``."""
        self._forget_wanting(now)
        since = self._wanting.pop(holder, (now, now, 0))[0]
        if len(self._wanting) >= MAX_WANTING:
            crowd = Counter(waiting.group for waiting in self._wanting).most_common(1)[0][0]
            del self._wanting[next(waiting for waiting in self._wanting if waiting.group == crowd)]
        self._wanting[holder] = since, now + WANT_SECONDS, cells

    def asked_just_now(self, holder: Holder, now: float) -> bool:
        """Whether the peer found no room a moment ago: looking again costs more than asking."""
        until = self._wanting.get(holder, (0.0, 0.0, 0))[1]
        return now - (until - WANT_SECONDS) < MIN_RETRY_S

    def satisfied(self, holder: Holder) -> None:
        """The peer got its room, or left."""
        self._wanting.pop(holder, None)

    def ended(self, seconds: float) -> None:
        """A session ended after ``seconds``."""
        weight = _LIFETIME_WEIGHT if self._any_ended else 1.0
        self._any_ended = True
        self._lifetime_s += weight * (max(0.0, seconds) - self._lifetime_s)

    def ahead_of(self, holder: Holder, now: float) -> int:
        """Cells that other peers wait for."""
        self._forget_wanting(now)
        return sum(cells for waiting, (_, _, cells) in self._wanting.items() if waiting != holder)

    def retry_after_s(self, missing: int, in_use: int) -> float:
        """When ``missing`` of the ``in_use`` cells (or sessions) should be free again.

        Sessions last their usual time, so ``in_use`` / lifetime of them become free a second.
        """
        expected = self._lifetime_s * missing / max(1, in_use)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, expected))

    def to_reclaim(
        self,
        holder: Holder,
        cells: int,
        missing: Holding,
        sessions: Sequence[Reclaimable],
        held: Mapping[Holder, Holding],
        now: float,
    ) -> list[int]:
        """Which of ``sessions`` to drop so that ``holder``, which wants ``cells`` in one session more, finds
        what is ``missing``: indices, in the order in which they are to go.

        They are only of peers beyond their share, and none falls below it except by its last drop. Empty if
        that would not be enough, or if the peer itself would be beyond its share.
        """
        shares = self._shares(held.keys(), holder)
        own = held.get(holder, Holding(0, 0))
        after = Holding(own.cells + cells, own.places + 1)
        of_group = _by_group(held)
        group = of_group.get(holder.group, Holding(0, 0))
        group_after = Holding(group.cells + cells, group.places + 1)
        first = own.places == 0
        waited = now - self._wanting.get(holder, (now, now, 0))[0] >= PATIENCE_S
        from_others = _within(group_after, shares.of_a_group, group.places == 0)
        from_own = _within(after, shares.of(holder), first)
        idle_of_own = first and waited and cells * MOST_OF_IDLE <= self._total.cells
        left, left_of_group = dict(held), dict(of_group)
        chosen: list[int] = []

        def order(index: int) -> tuple[bool, float, float, int]:
            each = sessions[index]
            return each.active, each.tokens_per_s / max(1, each.kv_cells), each.last_used, index

        def may_go(each: Reclaimable) -> bool:
            elsewhere = each.holder.group != holder.group
            if each.holder == holder:
                return False
            if each.active:
                # A crowd with one session in use each must not have more than the part of its network.
                rest = _less(left_of_group[each.holder.group], each)
                crowd = elsewhere and _beyond(rest, shares.of_a_group, missing)
                if not (waited and (crowd or left[each.holder].places > 1)):
                    return False
            beyond = _beyond(left[each.holder], shares.of(each.holder), missing)
            if elsewhere:
                over = _beyond(left_of_group[each.holder.group], shares.of_a_group, missing)
                return from_others and over and beyond
            return (from_own and beyond) or (idle_of_own and not each.active)

        for index in sorted(range(len(sessions)), key=order):
            if missing.cells <= 0 and missing.places <= 0:
                break
            each = sessions[index]
            if not may_go(each):
                continue
            left[each.holder] = _less(left[each.holder], each)
            left_of_group[each.holder.group] = _less(left_of_group[each.holder.group], each)
            missing = _less(missing, each)
            chosen.append(index)
        return chosen if missing.cells <= 0 and missing.places <= 0 else []

    def _shares(self, holders: Collection[Holder], holder: Holder) -> _Shares:
        return _Shares(self._total, self._wanting.keys() | set(holders) | {holder})

    def _forget_wanting(self, now: float) -> None:
        for holder in [each for each, (_, until, _) in self._wanting.items() if until <= now]:
            del self._wanting[holder]


class _Shares:
    """Equal parts of ``total`` for each address group, and for each peer of a group."""

    def __init__(self, total: Holding, holders: Iterable[Holder]) -> None:
        self._peers = Counter(holder.group for holder in holders)
        groups = len(self._peers)
        self.of_a_group = (total.cells / groups, total.places / groups)

    def of(self, holder: Holder) -> tuple[float, float]:
        cells, places = self.of_a_group
        peers = self._peers[holder.group]
        return cells / peers, places / peers


def _by_group(held: Mapping[Holder, Holding]) -> dict[str, Holding]:
    groups: dict[str, Holding] = {}
    for holder, (cells, places) in held.items():
        before = groups.get(holder.group, Holding(0, 0))
        groups[holder.group] = Holding(before.cells + cells, before.places + places)
    return groups


def _less(held: Holding, session: Reclaimable) -> Holding:
    return Holding(held.cells - session.kv_cells, held.places - 1)


def _within(after: Holding, share: tuple[float, float], first: bool) -> bool:
    """``first``: one session is never too many."""
    return after.cells <= share[0] and (first or after.places <= share[1])


def _beyond(held: Holding, share: tuple[float, float], missing: Holding) -> bool:
    """Whether more is held than the share, of what is missing."""
    return (missing.cells > 0 and held.cells > share[0]) or (missing.places > 0 and held.places > share[1])
