"""When a peer that others reach through relays has to be started anew to be reached again.

p2pd reserves a place at its relays when it starts, keeps it as long as the connection to the relay lives, and
does not ask a relay again that it lost. This was seen for up to 90 s, connected to the relay again or not.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

GRACE_S = 10.0
"""Seconds that a new daemon has to connect to its relays."""
RETRY_S = 5.0
"""Seconds between tries to connect to lost relays. p2pd does not dial a failed address sooner."""


class RelayState(Enum):
    FINE = "a relay holds a place for us, or may soon"
    LOST = "none does: try to connect to them"
    BACK = "none does, but one is there: a new daemon will get a place"


class RelayWatch:
    """What became of our relays, peers by id in bytes. Times are seconds of any one clock."""

    def __init__(self, relays: Collection[bytes]) -> None:
        self._relays = frozenset(relays)
        self.began(0.0)

    def began(self, now: float) -> None:
        """Another daemon has started."""
        self._since = now
        self._met: set[bytes] = set()
        self._lost: set[bytes] = set()
        self._tried_at: float | None = None

    def ended(self, relay: bytes) -> None:
        """A connection to the relay ended, perhaps for such a short time that no look noticed it."""
        self._lost.add(relay)

    def look(self, connected: Collection[bytes], now: float) -> RelayState:
        """``connected``: the peers that our daemon is connected to."""
        present = self._relays & set(connected)
        starting = now - self._since < GRACE_S
        self._lost |= (self._met if starting else self._relays) - present
        self._met |= present
        if (self._relays if starting else present) - self._lost:
            return RelayState.FINE
        if present:
            return RelayState.BACK
        if self._tried_at is not None and now - self._tried_at < RETRY_S:
            return RelayState.FINE
        self._tried_at = now
        return RelayState.LOST
