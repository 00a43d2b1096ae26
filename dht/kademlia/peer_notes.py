"""What a DHT node remembers of peers that were silent or lied, for some time and in bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...swarm.fairness.recent import RecentMap

SILENT_S = 5.0
"""A peer that did not answer is not asked for this many seconds, doubled each further time."""
MAX_SILENT_S = 320.0
LIES_S = 300.0
"""The names that a liar tells are not used for this many seconds. Its entries still count, as they are
signed."""
DEAD_NAMES_S = 60.0
"""The same for a peer whose names did not answer: they may have been there a moment ago."""
MAX_NOTES = 4096
"""At most this many peers are remembered. Of more, those noted longest ago are forgotten."""


@dataclass(slots=True)
class _Note:
    silences: int = 0
    silent_until: float = 0.0
    distrusted_until: float = 0.0


class PeerNotes:
    """``clock``: steady seconds."""

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
        """The peer answered. One that is silent every other time is still asked less often."""
        if (note := self._notes.get(peer_id)) is not None:
            note.silences, note.silent_until = max(0, note.silences - 1), 0.0

    def lied(self, peer_id: str, seconds: float = LIES_S) -> None:
        """The peer named peers that are not what it says, or that cannot be reached."""
        note = self._note(peer_id)
        note.distrusted_until = max(note.distrusted_until, self._clock() + seconds)

    def is_silent(self, peer_id: str) -> bool:
        note = self._notes.get(peer_id)
        return note is not None and note.silent_until > self._clock()

    def is_distrusted(self, peer_id: str) -> bool:
        note = self._notes.get(peer_id)
        return note is not None and note.distrusted_until > self._clock()

    def forgive_silence(self) -> None:
        """Forget all silences: our own network was the reason."""
        for note in self._notes.values():
            note.silences, note.silent_until = 0, 0.0

    def _note(self, peer_id: str) -> _Note:
        note = self._notes[peer_id] = self._notes.get(peer_id) or _Note()
        return note
