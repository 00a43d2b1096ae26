"""Of a chat that is longer than the context, the oldest questions are forgotten, with what followed them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..swarm.errors import PromptTooLongError

M = TypeVar("M", bound=Mapping[str, Any])

ROOM_SHARE = 4
"""An answer gets at least 1/ROOM_SHARE of the context, unless fewer tokens are allowed for it."""


def forget_oldest(
    messages: Sequence[M], count: Callable[[Sequence[M]], int], *, context: int, max_new_tokens: int
) -> list[M]:
    """The messages that leave room for an answer. System messages at the beginning stay, and so does the last
    question with what follows it, even if there is no room then.

    ``count``: how many tokens messages have as a prompt; it may raise PromptTooLongError for far too many.
    """
    longest = context - max(1, min(max_new_tokens, context // ROOM_SHARE))
    begin = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    later = [at for at in range(begin + 1, len(messages)) if messages[at]["role"] == "user"]
    cuts = [begin, *later]

    def kept(cut: int) -> list[M]:
        return [*messages[:begin], *messages[cut:]]

    def fits(cut: int) -> bool:
        try:
            return count(kept(cut)) <= longest
        except PromptTooLongError:
            return False

    if len(cuts) == 1 or fits(begin):
        return list(messages)
    # Each later cut leaves less: few are counted, and the last one stays whatever it has.
    return kept(cuts[bisect_left(cuts, True, 1, len(cuts) - 1, key=fits)])
