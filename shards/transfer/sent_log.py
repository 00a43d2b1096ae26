"""Which piece went to which peer: what a peer that has the whole model tells others that ask for the same.
Pure."""

from __future__ import annotations

from ...swarm.fairness.recent import RecentMap

REMEMBER_S = 300.0
"""A peer that got a piece this many seconds ago may have gone."""
MAX_REMEMBERED = 1 << 18
"""(piece, peer) pairs: two whole models of the most pieces."""


class SentLog:
    """The last peer that each piece of one model went to, of those that serve it in turn."""

    def __init__(self) -> None:
        self._sent: RecentMap[int, tuple[str, float]] = RecentMap(MAX_REMEMBERED)
        self._told: set[tuple[str, int]] = set()

    def sent(self, piece: int, peer: str, now: float) -> None:
        """The piece goes to ``peer``, which serves what it gets."""
        self._sent[piece] = (peer, now)

    def elsewhere(self, piece: int, asker: str, now: float) -> str | None:
        """The other peer that has the piece; None if there is none, or if ``asker`` was told already and asks
        again."""
        found = self._sent.get(piece)
        if found is None or found[0] == asker or now - found[1] > REMEMBER_S:
            return None
        if (asker, piece) in self._told:
            return None
        if len(self._told) >= MAX_REMEMBERED:
            self._told.clear()
        self._told.add((asker, piece))
        return found[0]

    def failed(self, piece: int, peer: str) -> None:
        """The piece did not get to ``peer`` after all."""
        if self._sent.get(piece, ("", 0.0))[0] == peer:
            del self._sent[piece]
