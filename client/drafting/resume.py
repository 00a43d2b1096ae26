"""Guesses behind a word that was replaced in a copy: the copied text goes on there.

The text after the new word is often new itself, so that nothing of it is found. Whether a copy goes on is a
matter of the text: such guesses are only sent once others were right, which costs nothing to see.
"""

from __future__ import annotations

from collections.abc import Sequence

from .prompt_lookup import PromptLookup
from .source import Guess

SOURCE = "resume"
COPY_TOKENS = 8
"""A match of this many tokens is a copy."""
GAP_TOKENS = 8
"""Tokens in the place of others, after which a copy is over."""
SKIPPED_TOKENS = 8
"""So many tokens of the copied text may have been replaced."""
_GOING_ON = ((1, 0.8), (2, 0.85), (4, 0.9), (8, 0.95))
"""Tokens that came as copied since the gap → chance of the next, before any was tried."""


class Resume:
    """Follows copies in the text that ``lookup`` holds, which is told first what came."""

    def __init__(self, lookup: PromptLookup) -> None:
        self._lookup = lookup
        self._place: int | None = None  # where the copied text goes on; None: nothing is copied
        self._gap = 0  # tokens since the last that was as copied
        self._since = 0  # tokens as copied since the last gap

    def came(self, token: int) -> None:
        """The next token of the answer."""
        place, matched = self._lookup.match()
        if matched >= COPY_TOKENS:
            self._place, self._gap, self._since = place, 0, matched
        elif self._place is not None:
            self._follow(token, self._place)

    def _follow(self, token: int, place: int) -> None:
        ids = self._lookup.ids
        if place < len(ids) and ids[place] == token:
            self._place, self._since = place + 1, self._since + 1 if not self._gap else 1
            self._gap = 0
        elif self._gap and (found := self._found(token, place)):
            self._place, self._gap, self._since = found, 0, 1
        elif self._gap >= GAP_TOKENS:
            self._place = None
        else:
            self._place, self._gap, self._since = place + 1, self._gap + 1, 0

    def _found(self, token: int, place: int) -> int | None:
        """Where the copy goes on if ``token`` is of it: as near as may be to one token for each."""
        ids = self._lookup.ids
        first = place - self._gap
        near = sorted(range(first, min(place + SKIPPED_TOKENS, len(ids))), key=lambda at: abs(at - place))
        return next((at + 1 for at in near if ids[at] == token), None)

    def guesses(self, after: Sequence[int], most: int) -> list[Guess]:
        """At most ``most`` tokens behind the end and ``after``; none where no copy was interrupted."""
        if self._place is None or not (self._gap or self._since < COPY_TOKENS):
            return []
        ids, end = self._lookup.ids, len(self._lookup.ids)
        place = self._place + len(after)
        if list(after) != ids[self._place : min(place, end)]:
            return []
        since = self._since + len(after)
        return [
            Guess(token, *self._class(since + number))
            for number, token in enumerate(ids[place : place + most])
        ]

    def _class(self, since: int) -> tuple[float, tuple[str, int]]:
        if not since:
            return 0.0, (SOURCE, -self._gap)
        least, chance = next(pair for pair in reversed(_GOING_ON) if since >= pair[0])
        return chance, (SOURCE, least)
