"""Whom to ask for entries, and in which order: the peers that we were told of, found, or know by their
announcements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...swarm.transport.address_groups import address_group
from ...swarm.transport.addresses import PeerAddress
from ...swarm.transport.dial_guard import for_client
from ...swarm.transport.direct.addresses import by_others_alone
from ...swarm.transport.direct_maddrs import is_direct
from ...swarm.types import NodeInfo
from ..address_book import AddressBook

MUTE_S = 120.0
"""A peer that gave no good answer is left alone for this many seconds, as long as others answer."""
MAX_SOURCES = 64
"""This many nodes are kept to be asked, besides the initial peers."""
FROM_BOOK = 3
"""So many peers of the address book are asked at the start beside the initial ones, which may all be gone, or
all belong to one owner."""
MOST_AT_START = 16
"""At most this many peers are asked at the start."""


class Sources:
    """``clock``: seconds. Raises UsageError for malformed addresses."""

    def __init__(
        self,
        own_id: str,
        initial_peers: Iterable[str],
        book: AddressBook,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._own_id = own_id
        self._book = book
        self._clock = clock
        self._rng = rng
        self._initial: dict[str, list[str]] = {}  # peer id -> its addresses
        self.add(initial_peers)
        # Nodes that announce themselves or did before, and where.
        self._others: dict[str, Sequence[str]] = {
            peer.peer_id: peer.maddrs for peer in book.peers() if peer.peer_id not in self._initial
        }
        self._announced: set[str] = set()  # those of the others whose addresses are their own word
        self._mute: dict[str, float] = {}  # peers without a good answer, and until when others are asked

    def add(self, addresses: Iterable[str]) -> None:
        """Ask these too from now on: multiaddresses that end in /p2p/PEER. Raises UsageError."""
        for text in addresses:
            peer = PeerAddress.parse(text)
            known = self._initial.setdefault(peer.peer_id, [])
            if peer.peer_id == self._own_id:
                del self._initial[peer.peer_id]
            elif str(peer) not in known:
                known.append(str(peer))

    def put(self, peer_id: str, maddrs: Sequence[str]) -> None:
        """A peer that was found. ``maddrs``: without /p2p/."""
        self._initial[peer_id] = [f"{maddr}/p2p/{peer_id}" for maddr in maddrs]

    def remove(self, peer_id: str) -> None:
        self._initial.pop(peer_id, None)

    def learn(self, nodes: Iterable[NodeInfo]) -> None:
        """Remember further nodes. In place of those that answered nothing, if there are too many."""
        for info in nodes:
            if info.peer_id in self._initial or info.peer_id == self._own_id:
                self._others.pop(info.peer_id, None)
                self._announced.discard(info.peer_id)
                continue
            if info.peer_id not in self._others and len(self._others) >= MAX_SOURCES:
                mute = next((peer_id for peer_id in self._others if peer_id in self._mute), None)
                if mute is None:
                    continue
                del self._others[mute]
                self._announced.discard(mute)
            self._others[info.peer_id] = info.dial_maddrs
            self._announced.add(info.peer_id)

    def is_announced(self, peer_id: str) -> bool:
        """Whether nobody but the peer itself says where it is."""
        return peer_id in self._announced and peer_id not in self._initial

    def maddrs(self, peer_id: str) -> Sequence[str]:
        return self._initial.get(peer_id) or self._others.get(peer_id, ())

    def needs_daemon(self, peer_id: str) -> bool:
        """Whether nobody but p2pd can dial a peer that announces itself."""
        return self.is_announced(peer_id) and not without_daemon(peer_id, for_client(self.maddrs(peer_id)))

    def answered(self, peer_id: str) -> None:
        self._mute.pop(peer_id, None)
        known = [maddr for maddr in self.maddrs(peer_id) if not is_direct(maddr)]  # a daemon may read it, too
        self._book.answered(peer_id, for_client(known) if self.is_announced(peer_id) else known)

    def failed(self, peer_id: str) -> None:
        """It gave no good answer, or none yet."""
        self._mute[peer_id] = self._clock() + MUTE_S

    def at_start(self) -> list[str]:
        """All initial peers and a few of the book, to be asked at once."""
        initial, others = self._shuffled(self._initial), self._shuffled(self._others)
        return [*initial, *self._spread(others)[:FROM_BOOK]][:MOST_AT_START]

    def in_turn(self, answered: bool) -> list[str]:
        """The peers in the order to ask them: an initial peer, then others by chance, each of another address
        group than those before as far as that goes. A peer that gave no good answer lately is asked only
        while no other has ``answered``. Without those of ``by_daemon``."""
        now = self._clock()
        self._mute = {peer_id: until for peer_id, until in self._mute.items() if until > now}
        initial = self._shuffled(self._initial)
        others = [peer_id for peer_id in self._shuffled(self._others) if not self.needs_daemon(peer_id)]
        known = [peer_id for peer_id in (*initial[:1], *others, *initial[1:]) if peer_id not in self._mute]
        if known or answered:
            return self._spread(known)
        return [*initial, *others]

    def by_daemon(self) -> list[str]:
        """Those that are asked only where nobody else answers: a question alone is not worth the start of a
        daemon, for which any announcement would do."""
        return [peer_id for peer_id in self._shuffled(self._others) if self.needs_daemon(peer_id)]

    @property
    def addresses(self) -> list[str]:
        """Of the initial peers, each with /p2p/."""
        return [maddr for maddrs in self._initial.values() for maddr in maddrs]

    def __len__(self) -> int:
        return len(self._initial) + len(self._others)

    def _shuffled(self, peers: Mapping[str, object]) -> list[str]:
        """In an order of chance, those that are mute last."""
        names = list(peers)
        self._rng.shuffle(names)
        return sorted(names, key=self._mute.__contains__)

    def _spread(self, peers: Sequence[str]) -> list[str]:
        """The first of each address group before the others."""
        firsts: dict[str, str] = {}
        for peer_id in peers:
            firsts.setdefault(address_group(next(iter(self.maddrs(peer_id)), "")), peer_id)
        chosen = set(firsts.values())
        return [*firsts.values(), *(peer_id for peer_id in peers if peer_id not in chosen)]


def without_daemon(peer_id: str, maddrs: Iterable[str]) -> list[str]:
    """Those of a peer's addresses that this process dials itself."""
    return [maddr for maddr in maddrs if is_direct(maddr) or not by_others_alone(peer_id, [maddr])]
