"""Drafts from the text itself: what followed the last time that the latest tokens were there.

Answers that edit code, quote or summarise repeat long parts of their prompt, and of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from .draft_length import NO_DRAFT, Draft

SOURCE = "lookup"
LONGEST_MATCH = 32
"""At most this many tokens are compared; longer matches are not better."""
CANDIDATES = 32
"""Latest places of the last two tokens that are compared."""
_PRIORS = ((1, 0.15), (2, 0.35), (3, 0.5), (5, 0.65), (8, 0.8), (16, 0.9))
"""Match length → chance that the next token is right, before any was tried."""


class PromptLookup:
    """An index of one sequence, which grows at its end. A token costs one dictionary entry."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._last: dict[int, int] = {}  # token → where the token after its last occurrence is
        self._pairs: dict[tuple[int, int], list[int]] = {}  # two tokens → where those after them are
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """The end itself is not indexed: it would only find itself."""
        known = self._ids
        for token in ids:
            if known:
                place = len(known)
                self._last[known[-1]] = place
                if place > 1:
                    self._pairs.setdefault((known[-2], known[-1]), []).append(place)
            known.append(token)

    def draft(self, length: int) -> Draft:
        """At most ``length`` tokens after the end; none where its last token is new.

        The longest match counts, of equally long ones the latest. Where the draft reaches the end of the text
        it goes on with itself, as in a list that repeats.
        """
        place, matched = self._match()
        if not matched:
            return NO_DRAFT
        ids = self._ids
        tokens: list[int] = []
        for number in range(place, place + length):
            tokens.append(ids[number] if number < len(ids) else tokens[number - len(ids)])
        classes = [_class(matched + number) for number in range(length)]
        return Draft(
            tuple(tokens),
            tuple((SOURCE, match) for match, _ in classes),
            tuple(prior for _, prior in classes),
        )

    def _match(self) -> tuple[int, int]:
        """Where the longest match goes on, and how long it is; 0 if there is none."""
        ids = self._ids
        end = len(ids)
        if end < 2:
            return 0, 0
        best, longest = 0, 0
        for place in reversed(self._pairs.get((ids[-2], ids[-1]), ())[-CANDIDATES:]):
            most = min(LONGEST_MATCH, place)
            matched = 2
            while matched < most and ids[place - 1 - matched] == ids[end - 1 - matched]:
                matched += 1
            if matched > longest:
                best, longest = place, matched
                if longest == LONGEST_MATCH:
                    break
        if not longest and (last := self._last.get(ids[-1])) is not None:
            return last, 1
        return best, longest


def _class(matched: int) -> tuple[int, float]:
    """Least match length of those that count as one, and its prior."""
    return next(pair for pair in reversed(_PRIORS) if matched >= pair[0])
