"""What this client found out about peers itself, which counts more than what they say of themselves.

A record costs its writer nothing, an answer costs an address with a program behind it, and work costs work.
So peers stand in three circles, and a route is looked for in the innermost first: those that have computed
for this client lately, those that have answered it, and all that the directory names. Where strangers must be
asked, they take fair turns: the peers that announce most are not asked first.

Pure: it has no clock, every call brings ``now`` (seconds on any monotonic clock).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import blake2b
from math import inf
from statistics import median_low

from ...swarm.fairness.recent import RecentMap
from ...swarm.routing.prediction import decode_seconds, prefill_seconds
from ...swarm.transport.address_groups import UNKNOWN, groups_of
from ...swarm.types import NodeInfo

PROVEN_S = 900.0
"""Work, or an answer, says something of a peer for this many seconds: as long as most clients and nodes
stay."""
CREDIT = 4.0
"""A peer that has not computed for this client is believed to be at most this many times faster than those
that have. It is their median that counts, which one peer that answers nonsense at once does not move.
Machines that serve one model mostly differ by less. A peer that passed a trial, and no more, is believed
to be as fast as those: it shares their work, and does not outbid them."""
PROMPT_GAIN = 1000.0
"""A token of a prompt costs at least a decoded token's time divided by this: weights are read once for many
tokens, but arithmetic remains. Real machines reach 10 to 300."""
HONEST = 2.0
"""A figure that was measured to be up to this many times worse counts as announced: load and noise do as
much."""
OWN_S = 60.0
"""Our own measure counts more than the peer's claim for this many seconds. They double each time that the
peer was left because its account did not explain its time."""
LONGEST_OWN_S = 3600.0
RETRY_S = 5.0
"""A peer that failed a trial has another one after this many seconds, doubled with each failure in a row."""
AGE_S = 600.0
"""Strangers are ordered by how long this client has known of them, in steps of this many seconds."""
MAX_PEERS = 4096
"""This many peers that were tried are remembered. Beyond it those not met for longest are forgotten."""
MAX_GROUPS = 4096
"""The turns of this many address groups are counted. Beyond it the count begins anew."""
MAX_SEEN = 16384
"""The first meetings of this many peers are remembered. Beyond it the oldest are forgotten."""


class Standing(IntEnum):
    """What a peer has done for this client lately."""

    STRANGER = 0
    ANSWERED = 1
    PROVEN = 2


@dataclass(slots=True)
class _Own:
    """What is known of one peer. ``failed``: times since it last answered. ``block_s``: seconds of a decoded
    token for each block, by this client's clock and without the link; 0: not measured."""

    answered_at: float = -inf
    proven_at: float = -inf
    failed: int = 0
    failed_at: float = -inf
    block_s: float = 0.0
    measured_at: float = -inf
    doubts: int = 0
    doubted_until: float = -inf
    has_served: bool = False

    def counts(self, now: float) -> bool:
        """Whether ``block_s`` comes before the claim."""
        return bool(self.block_s) and (now - self.measured_at < OWN_S or now < self.doubted_until)


class Evidence:
    """The ledger. Bounded; ``salt`` orders what nothing else tells apart. ``wary_until``: some peer is
    doubted until then."""

    def __init__(self, salt: str = "") -> None:
        self.wary_until = -inf
        self._salt = salt
        self._seen: RecentMap[str, float] = RecentMap(MAX_SEEN)  # by peer id: known since when
        self._peers: RecentMap[str, _Own] = RecentMap(MAX_PEERS)
        self._turns: Counter[str] = Counter()  # that address groups have had

    def saw(self, nodes: Sequence[NodeInfo], now: float) -> None:
        """The directory names them."""
        for node in nodes:
            if node.peer_id not in self._seen:
                self._seen[node.peer_id] = now

    def answered(self, peer_id: str, now: float) -> None:
        own = self._own(peer_id)
        own.answered_at, own.failed = now, 0

    def proved(self, peer_id: str, now: float) -> None:
        """It computed something. A peer that is doubted has to wait."""
        self.answered(peer_id, now)
        own = self._own(peer_id)
        if now >= own.doubted_until:
            own.proven_at = now

    def served(self, peer_id: str, now: float) -> None:
        """It computed a part of an answer."""
        self.proved(peer_id, now)
        self._own(peer_id).has_served = True

    def failed(self, peer_id: str, now: float) -> None:
        own = self._own(peer_id)
        own.failed, own.failed_at = own.failed + 1, now

    def measured(self, peer_id: str, block_s: float, now: float) -> None:
        """What a decoded token took at it, for each block, without the link."""
        own = self._own(peer_id)
        own.block_s, own.measured_at = block_s, now

    def doubted(self, peer_id: str, block_s: float, now: float) -> None:
        """It was left: it took ``block_s`` for each block, which it did not own up to. It has to prove itself
        anew, and its claims count less from now on."""
        self.measured(peer_id, block_s, now)
        own = self._own(peer_id)
        own.doubts, own.proven_at = own.doubts + 1, -inf
        own.doubted_until = now + min(LONGEST_OWN_S, OWN_S * 2.0 ** min(own.doubts, 16))
        self.wary_until = max(self.wary_until, own.doubted_until)

    def may_try(self, peer_id: str, now: float) -> bool:
        """Whether a trial makes sense: not of one that failed lately, or was left lately for time that it did
        not own up to."""
        own = self._peers.get(peer_id)
        if own is None:
            return True
        pause_s = RETRY_S * 2.0 ** min(own.failed, 10) if own.failed else 0.0
        return now - own.failed_at >= pause_s and now >= own.doubted_until

    def measured_within(self, peer_id: str, seconds: float, now: float) -> bool:
        own = self._peers.get(peer_id)
        return own is not None and now - own.measured_at <= seconds

    def standing(self, peer_id: str, now: float) -> Standing:
        own = self._peers.get(peer_id)
        if own is None or own.failed or now - own.answered_at > PROVEN_S:
            return Standing.STRANGER
        return Standing.PROVEN if now - own.proven_at <= PROVEN_S else Standing.ANSWERED

    def circles(self, nodes: Sequence[NodeInfo], now: float) -> Iterator[list[NodeInfo]]:
        """Where to look for a route: among the proven, then among those that answered too, then among all."""
        size = 0
        for least in reversed(Standing):
            circle = [node for node in nodes if self.standing(node.peer_id, now) >= least]
            if len(circle) > size or (not size and least is Standing.STRANGER):
                size = len(circle)
                yield circle

    def believed(self, nodes: Sequence[NodeInfo], now: float, *, own_only: bool = False) -> list[NodeInfo]:
        """The announcements with what counts of their speeds. ``own_only``: where this client has measured
        a peer, claims that are better count for nothing, even within the honest."""
        served = [
            (max(decode_seconds(node), own.block_s if own.counts(now) else 0.0), node.context_ms_per_block)
            for node in nodes
            if (own := self._peers.get(node.peer_id)) is not None and own.has_served
        ]
        usual_s, usual_growth_ms = map(median_low, zip(*served, strict=True)) if served else (0.0, 0.0)
        return [self._believed(node, usual_s, usual_growth_ms, now, own_only) for node in nodes]

    def _believed(
        self, node: NodeInfo, usual_s: float, usual_growth_ms: float, now: float, own_only: bool
    ) -> NodeInfo:
        claim_s = least_s = decode_seconds(node)
        own = self._peers.get(node.peer_id)
        if own is not None and own.counts(now) and own.block_s > (1.0 if own_only else HONEST) * claim_s:
            least_s = own.block_s
        growth_ms = node.context_ms_per_block
        if self.standing(node.peer_id, now) < Standing.PROVEN:
            least_s = max(least_s, usual_s / CREDIT)
            growth_ms = max(growth_ms, usual_growth_ms / CREDIT)
        elif not own_only and own is not None and not own.has_served:
            least_s = max(least_s, usual_s)
        prompt_s = max(prefill_seconds(node), least_s / PROMPT_GAIN)
        unchanged = least_s == claim_s and prompt_s == prefill_seconds(node)
        if unchanged and growth_ms == node.context_ms_per_block:
            return node
        return replace(
            node,
            decode_ms_per_block=least_s * 1000,
            prefill_tokens_per_s=1 / (prompt_s * len(node.span)),
            context_ms_per_block=growth_ms,
        )

    def asked(self, node: NodeInfo) -> None:
        """It has its turn, and its address group with it."""
        self._turns[_group(node)] += 1
        if len(self._turns) > MAX_GROUPS:
            self._turns.clear()

    def in_turn(self, nodes: Sequence[NodeInfo], now: float) -> list[NodeInfo]:
        """In the order in which to ask them: those that have worked or answered before, then those never
        tried, then those that failed; among alike the address groups that had fewest turns come first, and in
        a group those known for longest."""
        groups: dict[str, list[tuple[tuple[int, ...], int, bytes, NodeInfo]]] = {}
        for node in nodes:
            rank = self._tier(node.peer_id), self._age(node.peer_id, now), self._rank(node.peer_id), node
            groups.setdefault(_group(node), []).append(rank)
        turns: list[tuple[tuple[int, ...], int, bytes, NodeInfo]] = []
        for group, members in groups.items():
            members.sort(key=lambda member: member[:3])
            before: Counter[tuple[int, ...]] = Counter()
            for tier, _, _, node in members:
                turns.append((tier, self._turns[group] + before[tier], self._rank(group), node))
                before[tier] += 1
        return [turn[3] for turn in sorted(turns, key=lambda turn: turn[:3])]

    def _tier(self, peer_id: str) -> tuple[int, ...]:
        own = self._peers.get(peer_id)
        if own is None:
            return (1, 0)
        if own.proven_at > -inf:
            return (0, 0, own.failed)
        if own.answered_at > -inf:
            return (0, 1, own.failed)
        return (2 if own.failed else 1, own.failed)

    def _age(self, peer_id: str, now: float) -> int:
        """Smaller for those known for longer."""
        return -int((now - self._seen.get(peer_id, now)) // AGE_S)

    def _rank(self, name: str) -> bytes:
        return blake2b(f"{self._salt}\0{name}".encode(), digest_size=8).digest()

    def _own(self, peer_id: str) -> _Own:
        own = self._peers[peer_id] = self._peers.get(peer_id) or _Own()
        return own


def _group(node: NodeInfo) -> str:
    return min(groups_of(node.maddrs), default=UNKNOWN)
