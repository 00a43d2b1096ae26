"""Peers of a swarm that answered before, and where: kept on disk, so that a process that starts again, or
whose directory does not answer any more, need not rely on the addresses that it was given.

A book belongs to one way into a swarm: its tag and the initial peers, or ourselves where there are none. It
only says which addresses to dial: the transport then proves which peer answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..swarm.errors import SwarmError
from ..swarm.identity import Identity, is_peer_id
from ..swarm.membership.membership import Membership
from ..swarm.runtime.state_files import replace_file, set_aside, state_folder
from ..swarm.transport.address_groups import address_group
from ..swarm.transport.addresses import PeerAddress

MAX_PEERS = 64
"""A book holds at most this many peers."""
MAX_MADDRS = 4
"""A book keeps at most this many addresses of a peer."""
MAX_MADDR_CHARS = 512
MAX_AGE_S = 30 * 86_400.0
"""A peer that did not answer for this many seconds, a month, is dropped."""
STALE_S = 86_400.0
"""A peer that did not answer for this many seconds, a day, makes room first."""
MAX_FILE_BYTES = 262_144
MAX_BOOKS = 32
"""At most this many files are kept. Of more, those written longest ago are removed."""
_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """``maddrs``: without /p2p/. ``first``, ``last``: when it answered, seconds of Unix time."""

    peer_id: str
    maddrs: tuple[str, ...]
    first: float
    last: float

    @property
    def group(self) -> str:
        return address_group(self.maddrs[0]) if self.maddrs else ""


class AddressBook:
    """In memory only without ``path``. ``clock``: seconds of Unix time."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._peers = {} if path is None else self._read(path)
        self._changed = False

    def __len__(self) -> int:
        return len(self._peers)

    def peers(self) -> list[KnownPeer]:
        """The peers, those known for longest first."""
        return sorted(self._peers.values(), key=lambda peer: (peer.first, peer.peer_id))

    def answered(self, peer_id: str, maddrs: Sequence[str]) -> None:
        """Note that a peer which announces these addresses has answered. It is on the disk after ``save``."""
        now, before = self._clock(), self._peers.get(peer_id)
        kept = tuple(dict.fromkeys(_plain(maddr) for maddr in maddrs))[:MAX_MADDRS]
        peer = KnownPeer(
            peer_id, kept or (before.maddrs if before else ()), before.first if before else now, now
        )
        if peer.maddrs and _is_sound(peer):
            self._peers[peer_id] = peer
            self._changed = True
            self._bound()

    def save(self) -> None:
        """Write what changed, together with what other processes wrote. A disk that cannot be written is only
        logged."""
        if self._path is None or not self._changed:
            return
        for peer_id, other in (self._read(self._path) if self._path.exists() else {}).items():
            mine = self._peers.get(peer_id, other)
            newer = mine if mine.last >= other.last else other
            self._peers[peer_id] = replace(newer, first=min(mine.first, other.first))
        self._bound()
        peers = [
            {"peer_id": peer.peer_id, "maddrs": list(peer.maddrs), "first": peer.first, "last": peer.last}
            for peer in self.peers()
        ]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path, json.dumps({"version": _VERSION, "peers": peers}, indent=1))
            _remove_old_books(self._path.parent)
        except OSError as error:
            logger.warning("event=address_book_unwritable path=%s error=%r", self._path, str(error))
        self._changed = False

    def _read(self, path: Path) -> dict[str, KnownPeer]:
        """A file that is not an address book is put aside, with one line in the log."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("it is too large")
            peers = _parse(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("event=address_book_unreadable path=%s error=%r", path, str(error))
            set_aside(path)
            return {}
        oldest = self._clock() - MAX_AGE_S
        return {peer.peer_id: peer for peer in peers[:MAX_PEERS] if peer.last >= oldest}

    def _bound(self) -> None:
        """If there are too many peers, those go first that have not answered for STALE_S. Then the latest of
        the commonest address group go, so that a flood displaces only itself."""
        stale = self._clock() - STALE_S
        while len(self._peers) > MAX_PEERS:
            groups = Counter(peer.group for peer in self._peers.values())
            most = max(groups.values())
            crowded = [peer for peer in self._peers.values() if groups[peer.group] == most]
            last = max(crowded, key=lambda peer: (peer.last < stale, peer.first, peer.peer_id))
            del self._peers[last.peer_id]


def open_book(identity: Identity, initial_peers: Sequence[str], membership: Membership | None) -> AddressBook:
    """The book of this way into a swarm. Raises UsageError for malformed addresses."""
    tag = "" if membership is None else membership.tag
    return AddressBook(book_path(tag, initial_peers, identity.peer_id))


def book_path(tag: str, initial_peers: Iterable[str], own_id: str = "") -> Path:
    """Where the book of this way into a swarm lies. Raises UsageError for malformed addresses."""
    ids = sorted({PeerAddress.parse(text).peer_id for text in initial_peers}) or [f"from {own_id}"]
    name = hashlib.sha256("\n".join([tag, *ids]).encode()).hexdigest()[:24]
    return state_folder() / "peers" / f"{name}.json"


def _plain(maddr: str) -> str:
    head, found, last = maddr.rpartition("/p2p/")
    return head if found and "/" not in last else maddr


def _is_sound(peer: KnownPeer) -> bool:
    """Whether the addresses are of the form that others accept."""
    try:
        for maddr in peer.maddrs:
            PeerAddress.parse(f"{maddr}/p2p/{peer.peer_id}")
    except SwarmError:
        return False
    if not (math.isfinite(peer.first) and math.isfinite(peer.last)):
        return False
    return is_peer_id(peer.peer_id) and all(len(maddr) <= MAX_MADDR_CHARS for maddr in peer.maddrs)


def _parse(text: str) -> list[KnownPeer]:
    """Raises ValueError for a text that is not a book; a peer that is out of bounds is left out."""
    book = json.loads(text)
    if (
        not isinstance(book, dict)
        or book.get("version") != _VERSION
        or not isinstance(book.get("peers"), list)
    ):
        raise ValueError("it is not an address book of this version")
    peers = []
    for item in book["peers"]:
        match item:
            case {
                "peer_id": str(peer_id),
                "maddrs": [str(), *_] as maddrs,
                "first": float(),
                "last": float(),
            }:
                if all(isinstance(maddr, str) for maddr in maddrs):
                    peer = KnownPeer(peer_id, tuple(maddrs[:MAX_MADDRS]), item["first"], item["last"])
                    if _is_sound(peer):
                        peers.append(peer)
    return peers


def _remove_old_books(folder: Path) -> None:
    books = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in books[MAX_BOOKS:]:
        path.unlink(missing_ok=True)
