"""What a DHT node remembers of peers that did not do their part, for a while and in bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...swarm.fairness.recent import RecentMap

SILENT_S = 5.0
"""Seconds for which a peer that did not answer is not asked; doubled each further time."""
MAX_SILENT_S = 320.0
LIES_S = 300.0
"""Seconds for which the names that a liar tells are not used. What it stores and answers still counts:
entries are signed."""
DEAD_NAMES_S = 60.0
"""The same for one whose names did not answer: those may have been there a moment ago."""
MAX_NOTES = 4096
"""Peers remembered; of more, those noted longest ago are forgotten."""


@dataclass(slots=True)
class _Note:
    silences: int = 0
    silent_until: float = 0.0
    distrusted_until: float = 0.0


class PeerNotes:
    """``clock``: seconds, steady."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._notes: RecentMap[str, _Note] = RecentMap(MAX_NOTES)

    def silent(self, peer_id: str) -> None:
        """It did not answer."""
        note, now = self._note(peer_id), self._clock()
        if note.silent_until <= now:
            note.silent_until = now + min(MAX_SILENT_S, SILENT_S * 2**note.silences)
            note.silences = min(note.silences + 1, 16)

    def answered(self, peer_id: str) -> None:
        """It did; who is silent every other time is asked the less often for that."""
        if (note := self._notes.get(peer_id)) is not None:
            note.silences, note.silent_until = max(0, note.silences - 1), 0.0

    def lied(self, peer_id: str, seconds: float = LIES_S) -> None:
        """It named peers that are not what it says, or that nobody reaches."""
        note = self._note(peer_id)
        note.distrusted_until = max(note.distrusted_until, self._clock() + seconds)

    def is_silent(self, peer_id: str) -> bool:
        note = self._notes.get(peer_id)
        return note is not None and note.silent_until > self._clock()

    def is_distrusted(self, peer_id: str) -> bool:
        note = self._notes.get(peer_id)
        return note is not None and note.distrusted_until > self._clock()

    def forgive_silence(self) -> None:
        """It was our own fault that nobody answered."""
        for note in self._notes.values():
            note.silences, note.silent_until = 0, 0.0

    def _note(self, peer_id: str) -> _Note:
        note = self._notes[peer_id] = self._notes.get(peer_id) or _Note()
        return note
