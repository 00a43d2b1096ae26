"""A look-up along disjoint paths, as in S/Kademlia (Baumgart, Mies 2007): which peer to ask next, and when no
peer is left to ask.

Sans-IO: the driver (look_up.py) asks the peers that ``ready`` names and tells the results. What one path
learns stays in it, and no peer is asked twice. So a liar spoils its own path and no other. On each path:

- A peer answers for the peers that it named. If its names do not answer, or are all of one address group, no
  more of them are asked: made-up names cost only a few questions, however many there are.
- An address group counts once (NAMED_OF_GROUP) as nearest to the key, while there are several groups:
  up to ``width`` others of it are asked besides.
- A peer that has not answered for HEDGE_S is waited for no longer: the next is asked beside it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .contacts import Contact
from .routing_table import GroupCount

PATHS = 3
"""A look-up has this many disjoint paths."""
AT_ONCE = 3
"""A path has at most this many questions under way that are not late. Kademlia's alpha."""
MAX_AT_ONCE = 12
"""The same, late ones included."""
MAX_ASKED = 40
"""One path may ask this many peers."""
HEDGE_S = 0.3
"""A question is late after this many seconds: some round trips between continents."""
CREDIT = 4
"""This many names of one peer may fail before another of its names proves good."""
LIE_NAMES = 4
"""A peer is a liar if this many of its names failed and none answered."""


class _State(Enum):
    ASKED = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True)
class _Peer:
    """A peer that was asked. ``at``: when."""

    contact: Contact
    at: float
    state: _State = _State.ASKED
    group: str = ""


@dataclass(slots=True)
class _Sponsor:
    """The results of the names that a peer told."""

    credit: int = CREDIT
    good: int = 0
    bad: int = 0


class _Path:
    __slots__ = ("anchors", "asked", "known", "order")

    def __init__(self) -> None:
        self.anchors: list[Contact] = []  # to be asked first, however far they are
        self.order: list[tuple[int, Contact]] = []  # by distance
        self.known: dict[str, set[str]] = {}  # peer id -> the peers that named it; empty: we knew it
        self.asked: set[str] = set()


class Paths:
    """``key``: the DHT id looked for. ``seeds``: the peers that we know near it, nearest first, each on one
    path; ``anchors``: peers that are asked in any case. ``own_id``: our PeerID. ``width``: how many of the
    nearest are asked. ``patience_s``: how long a question is waited for; once ``enough`` have answered, for
    HEDGE_S."""

    def __init__(
        self,
        key: int,
        seeds: Sequence[Contact],
        anchors: Sequence[Contact] = (),
        *,
        own_id: str,
        width: int,
        enough: int,
        patience_s: float,
    ) -> None:
        self._key = key
        self._own_id = own_id
        self._width = width
        self._enough = enough
        self._patience_s = patience_s
        self._peers: dict[str, _Peer] = {}
        self._sponsors: dict[str, _Sponsor] = {}
        self._paths = [_Path() for _ in range(PATHS)]
        for group in (anchors, seeds):
            for number, contact in enumerate(group):
                self._add(self._paths[number % PATHS], contact, None)
        for number, contact in enumerate(anchors):
            self._paths[number % PATHS].anchors.append(contact)

    # What the driver does.

    def ready(self, now: float) -> list[Contact]:
        """The peers to ask now; they count as asked."""
        chosen: list[Contact] = []
        progress = True
        while progress:  # in turn, so that no path takes all
            progress = False
            for path in self._paths:
                if (contact := self._next(path, now)) is not None:
                    self._peers[contact.peer_id] = _Peer(contact, now)
                    path.asked.add(contact.peer_id)
                    chosen.append(contact)
                    progress = True
        return chosen

    def answered(self, contact: Contact, names: Iterable[Contact], group: str = "") -> None:
        """``names``: the peers that it named, without those known to be useless. ``group``: its address
        group."""
        peer = self._peers[contact.peer_id]
        peer.state, peer.group = _State.ANSWERED, group
        useful = not self._is_crowded(group)
        for path in self._paths:
            if contact.peer_id in path.asked:
                self._settle(path, contact, useful)
                for name in names:
                    self._add(path, name, contact.peer_id)

    def failed(self, contact: Contact) -> None:
        """It did not answer, or not in a way that can be used."""
        self._peers[contact.peer_id].state = _State.FAILED
        for path in self._paths:
            if contact.peer_id in path.asked:
                self._settle(path, contact, False)

    def is_over(self, now: float) -> bool:
        """True if there is no peer to ask or to wait for. Questions under way may be dropped then."""
        answers = sum(peer.state is _State.ANSWERED for peer in self._peers.values())
        patience_s = HEDGE_S if answers >= self._enough else self._patience_s
        return not any(
            peer.state is _State.ASKED and now - peer.at < patience_s for peer in self._peers.values()
        )

    def next_look(self, now: float) -> float:
        """Seconds until the next question is late. Call ``ready`` and ``is_over`` again then."""
        waits = [
            limit - (now - peer.at)
            for peer in self._peers.values()
            if peer.state is _State.ASKED
            for limit in (HEDGE_S, self._patience_s)
            if now - peer.at < limit
        ]
        return min(waits, default=0.0)

    # What it comes to.

    def nearest(self) -> list[Contact]:
        """The peers that answered, nearest first. Those of an address group that is over its bound come at
        the end."""
        ranked = sorted(
            (peer for peer in self._peers.values() if peer.state is _State.ANSWERED),
            key=lambda peer: peer.contact.node_id ^ self._key,
        )
        counted = self._group_count()
        chosen: list[Contact] = []
        rest: list[Contact] = []
        for peer in ranked:
            (chosen if counted.fits(peer.group) else rest).append(peer.contact)
        return chosen + rest

    def liars(self) -> list[str]:
        """Peers whose names all failed to answer."""
        return [
            peer_id
            for peer_id, sponsor in self._sponsors.items()
            if sponsor.bad >= LIE_NAMES and sponsor.good == 0
        ]

    @property
    def asked(self) -> int:
        return len(self._peers)

    # One path.

    def _next(self, path: _Path, now: float) -> Contact | None:
        """The peer that this path asks next, if any: the nearest that it has not asked, unless ``width``
        nearer ones answered or may still answer."""
        if len(path.asked) >= MAX_ASKED:
            return None
        mine = [self._peers[peer_id] for peer_id in path.asked]
        asking = [now - peer.at for peer in mine if peer.state is _State.ASKED]
        fresh = sum(age < HEDGE_S for age in asking)
        if fresh >= AT_ONCE or len(asking) >= MAX_AT_ONCE:
            return None
        while path.anchors:
            if (anchor := path.anchors.pop(0)).peer_id not in self._peers and anchor.peer_id != self._own_id:
                return anchor
        counted = self._group_count()
        places = spare = self._width
        for _, contact in path.order:
            peer = self._peers.get(contact.peer_id)
            if peer is None:
                if self._may_be_asked(path, contact.peer_id):
                    return contact
            elif peer.state is _State.ANSWERED:
                if counted.fits(peer.group) or spare <= 0:
                    places -= 1
                else:
                    spare -= 1
            elif peer.state is _State.ASKED and now - peer.at < HEDGE_S:
                places -= 1
            if places <= 0:
                return None
        return None

    def _may_be_asked(self, path: _Path, peer_id: str) -> bool:
        sponsors = path.known[peer_id]
        return not sponsors or any(self._sponsors[sponsor].credit > 0 for sponsor in sponsors)

    def _settle(self, path: _Path, contact: Contact, useful: bool) -> None:
        """Count a peer's result for the peers that named it."""
        failed = self._peers[contact.peer_id].state is _State.FAILED
        for sponsor_id in path.known[contact.peer_id]:
            sponsor = self._sponsors[sponsor_id]
            sponsor.credit += 1 if useful else -1
            sponsor.good += not failed
            sponsor.bad += failed

    def _add(self, path: _Path, contact: Contact, sponsor: str | None) -> None:
        if contact.peer_id == self._own_id:
            return
        if contact.peer_id not in path.known:
            path.known[contact.peer_id] = set()
            insort(path.order, (contact.node_id ^ self._key, contact), key=lambda item: item[0])
        elif not path.known[contact.peer_id]:
            return  # no peer answers for those that we knew
        if sponsor is not None:
            self._sponsors.setdefault(sponsor, _Sponsor())
            path.known[contact.peer_id].add(sponsor)

    # Address groups.

    def _group_count(self) -> GroupCount:
        return GroupCount(self._groups())

    def _groups(self) -> list[str]:
        """The address groups of the peers that have answered."""
        return [peer.group for peer in self._peers.values() if peer.state is _State.ANSWERED]

    def _is_crowded(self, group: str) -> bool:
        """True if the peer that has just answered is one too many of its group."""
        groups = self._groups()
        counted = GroupCount(groups)
        return not [counted.fits(each) for each in groups if each == group][-1]
