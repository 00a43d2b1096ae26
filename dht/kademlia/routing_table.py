"""The peers that a DHT node knows: they have answered it, and it knows more of those near to it.

A peer is in the table once it has answered, under the one id that its PeerID gives it, and leaves it with the
first question that it does not answer. Buckets are Kademlia's: one for each length of the prefix shared with
our own id. In a full bucket a peer of an address group that is rare there takes the place of one whose group
has most. So an attacker with one network gets a share of a bucket, with any number of identities.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...swarm.fairness.recent import RecentMap
from ...swarm.transport.address_groups import UNKNOWN
from .contacts import Contact

BUCKET_SIZE = 20
"""A bucket holds this many peers. Kademlia's k."""

WAITING = 8
"""At most this many peers that have answered wait for a place in a full bucket."""

NAMED_OF_GROUP = 1
"""At most this many peers of one address group are named as nearest to a key, while there are others. So an
attacker with one network is one of a key's replicas, with any number of identities near it."""

NAMED_OF_UNKNOWN = 4
"""The same for peers whose address is not known: some were connected a moment ago, and some hide it."""


class GroupCount:
    """Counts peers by address group, of which a bounded number is chosen. ``groups``: those to choose from;
    with only one, as on one machine, there is no bound."""

    __slots__ = ("_bounded", "_counted")

    def __init__(self, groups: Iterable[str]) -> None:
        self._bounded = len(set(groups) - {UNKNOWN}) > 1
        self._counted: Counter[str] = Counter()

    def fits(self, group: str) -> bool:
        """Whether one more of a group is within its bound; it counts in either case."""
        self._counted[group] += 1
        most = NAMED_OF_GROUP if group != UNKNOWN else NAMED_OF_UNKNOWN
        return not self._bounded or self._counted[group] <= most

    @property
    def is_bounded(self) -> bool:
        return self._bounded


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """``since``, ``answered_at``: seconds of the table's clock, of its first and its last answer.
    ``group``: its address group, "" if unknown."""

    contact: Contact
    group: str
    since: float
    answered_at: float


class _Bucket:
    __slots__ = ("members", "waiting")

    def __init__(self) -> None:
        self.members: OrderedDict[str, BucketEntry] = OrderedDict()  # the last to answer is last
        self.waiting: RecentMap[str, BucketEntry] = RecentMap(WAITING)


class RoutingTable:
    """``clock``: steady seconds."""

    def __init__(self, own_id: int, clock: Callable[[], float]) -> None:
        self._own_id = own_id
        self._clock = clock
        self._buckets: dict[int, _Bucket] = {}  # by the bit length of the distance

    def __len__(self) -> int:
        return sum(len(bucket.members) for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[BucketEntry]:
        for bucket in self._buckets.values():
            yield from bucket.members.values()

    def __contains__(self, contact: Contact) -> bool:
        bucket = self._buckets.get(self._index(contact))
        return bucket is not None and contact.peer_id in bucket.members

    def answered(self, contact: Contact, group: str = "") -> Contact | None:
        """A peer has answered us. If its bucket is full, returns the member to ask next, whose silence would
        make room."""
        if contact.node_id == self._own_id:
            return None
        bucket = self._buckets.setdefault(self._index(contact), _Bucket())
        peer_id, now = contact.peer_id, self._clock()
        before = bucket.members.get(peer_id) or bucket.waiting.get(peer_id)
        member = BucketEntry(contact, group, now if before is None else before.since, now)
        if peer_id in bucket.members or len(bucket.members) < BUCKET_SIZE:
            bucket.members[peer_id] = member
            bucket.members.move_to_end(peer_id)
            bucket.waiting.pop(peer_id, None)
            return None
        if (common := _of_commonest_group(bucket.members.values(), group)) is not None:
            del bucket.members[common.contact.peer_id]
            bucket.members[peer_id] = member
            bucket.waiting.pop(peer_id, None)
            member, peer_id = common, common.contact.peer_id
        bucket.waiting[peer_id] = member
        return next(iter(bucket.members.values())).contact

    def failed(self, contact: Contact) -> None:
        """A peer did not answer: one that waits takes its place."""
        bucket = self._buckets.get(self._index(contact))
        if bucket is None:
            return
        bucket.waiting.pop(contact.peer_id, None)
        if bucket.members.pop(contact.peer_id, None) is not None and bucket.waiting:
            peer_id, member = bucket.waiting.popitem()
            bucket.members[peer_id] = member
            bucket.members.move_to_end(peer_id, last=False)  # the next to be asked

    def nearest(self, key: int, count: int, exclude: Contact | None = None) -> list[Contact]:
        """The members nearest to ``key``, nearest first, NAMED_OF_GROUP of an address group at most while
        there are others."""
        ranked = sorted(self, key=lambda member: member.contact.node_id ^ key)
        count_of = GroupCount(member.group for member in ranked)
        chosen: list[Contact] = []
        passed: list[Contact] = []
        for member in ranked:
            if exclude is not None and member.contact.peer_id == exclude.peer_id:
                continue
            (chosen if count_of.fits(member.group) else passed).append(member.contact)
            if len(chosen) == count:
                return chosen
        enough = count // 2 if count_of.is_bounded else count
        chosen += passed[: max(0, enough - len(chosen))]
        return sorted(chosen, key=lambda contact: contact.node_id ^ key)

    def unheard(self, seconds: float, count: int) -> list[Contact]:
        """Members that have not answered for ``seconds``, those of the longest silence first."""
        until = self._clock() - seconds
        old = sorted((m for m in self if m.answered_at <= until), key=lambda member: member.answered_at)
        return [member.contact for member in old[:count]]

    def _index(self, contact: Contact) -> int:
        return (contact.node_id ^ self._own_id).bit_length()


def _of_commonest_group(members: Iterable[BucketEntry], newcomer: str) -> BucketEntry | None:
    """The member that makes room for a newcomer of this group: the last to come of the group with most
    members. None if the newcomer's group would then have as many."""
    ranked = list(members)
    groups = Counter(member.group for member in ranked)
    commonest, number = groups.most_common(1)[0]
    if groups[newcomer] + 1 >= number:
        return None
    return max((member for member in ranked if member.group == commonest), key=lambda member: member.since)
