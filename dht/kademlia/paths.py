"""A look-up along disjoint paths, as S/Kademlia (Baumgart, Mies 2007) has it: whom to ask next, and when
there is nobody left to ask.

Sans-IO: the driver (look_up.py) asks whom ``ready`` names and tells what came of it. What one path learns
stays in it, and nobody is asked twice, so a liar spoils the path that he is on and no other. On each path:

- Who is named answers for who named him. A peer whose names do not answer, or are all of one address group,
  has no more of them asked: made-up names cost a few questions, however many there are.
- An address group counts once (NAMED_OF_GROUP) as nearest to the key, while there are several groups:
  up to ``width`` others of it are asked besides.
- Who has not answered for HEDGE_S is waited for no longer: the next is asked beside him.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .contacts import Contact
from .routing_table import GroupCount

PATHS = 3
"""Disjoint paths of a look-up."""
AT_ONCE = 3
"""Questions under way on a path that are not late. Kademlia's alpha."""
MAX_AT_ONCE = 12
"""The same with the late ones."""
MAX_ASKED = 40
"""Peers that one path may ask."""
HEDGE_S = 0.3
"""Seconds after which a question is late: some round trips between continents."""
CREDIT = 4
"""Names of one peer that may fail before another of his proves good."""
LIE_NAMES = 4
"""Names that must have failed, and none have answered, before who told them is a liar."""


class _State(Enum):
    ASKED = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True)
class _Peer:
    """Somebody who was asked. ``at``: when."""

    contact: Contact
    at: float
    state: _State = _State.ASKED
    group: str = ""


@dataclass(slots=True)
class _Sponsor:
    """What came of the names that a peer told."""

    credit: int = CREDIT
    good: int = 0
    bad: int = 0


class _Path:
    __slots__ = ("anchors", "asked", "known", "order")

    def __init__(self) -> None:
        self.anchors: list[Contact] = []  # to be asked first, however far they are
        self.order: list[tuple[int, Contact]] = []  # by distance
        self.known: dict[str, set[str]] = {}  # peer id -> who named it; nobody: we knew it
        self.asked: set[str] = set()


class Paths:
    """``key``: the DHT id looked for. ``seeds``: whom we know near it, nearest first, each on one path;
    ``anchors``: who is asked in any case. ``own_id``: our PeerID. ``width``: how many of the nearest are
    asked. ``patience_s``: how long a question is waited for; once ``enough`` have answered, for HEDGE_S."""

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
        """Whom to ask now; they count as asked."""
        chosen: list[Contact] = []
        progress = True
        while progress:  # in turn, so that no path takes everybody
            progress = False
            for path in self._paths:
                if (contact := self._next(path, now)) is not None:
                    self._peers[contact.peer_id] = _Peer(contact, now)
                    path.asked.add(contact.peer_id)
                    chosen.append(contact)
                    progress = True
        return chosen

    def answered(self, contact: Contact, names: Iterable[Contact], group: str = "") -> None:
        """``names``: whom it named, those left out that are known to be useless. ``group``: its address
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
        """Whether there is nobody to ask or to wait for. Those that are under way may be dropped then."""
        answers = sum(peer.state is _State.ANSWERED for peer in self._peers.values())
        patience_s = HEDGE_S if answers >= self._enough else self._patience_s
        return not any(
            peer.state is _State.ASKED and now - peer.at < patience_s for peer in self._peers.values()
        )

    def next_look(self, now: float) -> float:
        """Seconds until something is late that is not yet: when to ask ``ready`` and ``is_over`` again."""
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
        """Those who answered, nearest first; of an address group that has more, the rest come at the end."""
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
        """Peers that named only such as did not answer."""
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
        """Whom this path asks next, if anybody: the nearest that it has not asked, unless ``width`` nearer
        ones answered or may yet do so."""
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
        """Let those who named a peer answer for what came of it."""
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
            return  # nobody answers for whom we knew
        if sponsor is not None:
            self._sponsors.setdefault(sponsor, _Sponsor())
            path.known[contact.peer_id].add(sponsor)

    # Address groups.

    def _group_count(self) -> GroupCount:
        return GroupCount(self._groups())

    def _groups(self) -> list[str]:
        """Of those who have answered."""
        return [peer.group for peer in self._peers.values() if peer.state is _State.ANSWERED]

    def _is_crowded(self, group: str) -> bool:
        """Whether the one that has just answered is one too many of its group."""
        groups = self._groups()
        counted = GroupCount(groups)
        return not [counted.fits(each) for each in groups if each == group][-1]
