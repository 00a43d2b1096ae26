"""Guesses from the text itself: what followed the last time that the latest tokens were there.

Answers that edit code, quote or summarise repeat long parts of their prompt, and of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .source import Guess

SOURCE = "text"
LONGEST_MATCH = 32
"""At most this many tokens are compared; longer matches are not better."""
CANDIDATES = 32
"""Latest places of the last two tokens that are compared."""
_PRIORS = ((1, 0.15), (2, 0.35), (3, 0.5), (5, 0.65), (8, 0.8), (16, 0.9))
"""Match length → chance that the next token is right, before any was tried."""


class PromptLookup:
    """An index of one sequence, ``ids``, which grows at its end. A token costs one dictionary entry."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self._last: dict[int, int] = {}  # token → where the token after its last occurrence is
        self._pairs: dict[tuple[int, int], list[int]] = {}  # two tokens → where those after them are
        self.came(ids)

    def came(self, tokens: Iterable[int]) -> None:
        """The end itself is not indexed: it would only find itself."""
        known = self.ids
        for token in tokens:
            if known:
                place = len(known)
                self._last[known[-1]] = place
                if place > 1:
                    self._pairs.setdefault((known[-2], known[-1]), []).append(place)
            known.append(token)

    def guesses(self, after: Sequence[int], most: int) -> list[Guess]:
        """At most ``most`` tokens behind the end and ``after``; none where the last of them is new.

        The longest match counts, of equally long ones the latest. Where it reaches the end of the text it
        goes on with itself, as in a list that repeats.
        """
        place, matched = self.match(after)
        if not matched:
            return []
        ids, end, behind = self.ids, len(self.ids), list(after)
        for number in range(place, place + most):
            behind.append(ids[number] if number < end else behind[number - end])
        guesses = []
        for number, token in enumerate(behind[len(after) :]):
            least, chance = _class(matched + number)
            guesses.append(Guess(token, chance, (SOURCE, least)))
        return guesses

    def match(self, after: Sequence[int] = ()) -> tuple[int, int]:
        """Where the longest match of the end goes on, and how long it is; 0 if there is none."""
        ids = self.ids
        tail = [*ids[-LONGEST_MATCH:], *after][-LONGEST_MATCH:]
        if not tail:
            return 0, 0
        best, longest = 0, 0
        for place in reversed(self._pairs.get((tail[-2], tail[-1]), ())[-CANDIDATES:] if tail[1:] else ()):
            most = min(len(tail), place)
            matched = 2
            while matched < most and ids[place - 1 - matched] == tail[-1 - matched]:
                matched += 1
            if matched > longest:
                best, longest = place, matched
                if longest == LONGEST_MATCH:
                    break
        if not longest and (last := self._last.get(tail[-1])) is not None:
            return last, 1
        return best, longest


def _class(matched: int) -> tuple[int, float]:
    """Least match length of those that count as one, and its prior."""
    return next(pair for pair in reversed(_PRIORS) if matched >= pair[0])
