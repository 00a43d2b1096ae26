"""How much a session is used: tokens a second, of lately. A clock is brought by the caller."""

from __future__ import annotations

ACTIVE_TOKENS_PER_S = 0.5
"""From this speed on a session is in use: it is the slowest answer that a person reads along with."""


class Usage:
    """``add`` every computed token; call ``fold`` every few seconds, so that what is past counts less: half
    of it each time."""

    def __init__(self, now: float) -> None:
        self._tokens = 0
        self._seen = 0  # of these, folded into ``_before``
        self._before = 0.0  # tokens, within ``_seconds`` before ``_since``
        self._seconds = 0.0
        self._since = now

    @property
    def tokens(self) -> int:
        """All that were added."""
        return self._tokens

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def tokens_per_s(self, now: float) -> float:
        seconds = self._seconds + now - self._since
        return (self._before + self._tokens - self._seen) / max(1.0, seconds)

    def fold(self, now: float) -> None:
        self._before = (self._before + self._tokens - self._seen) / 2
        self._seconds = (self._seconds + now - self._since) / 2
        self._seen, self._since = self._tokens, now
