"""How likely tokens were, in the two forms that the API has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...decoding.answer import TokenEvent
from ..answers.logprobs import TokenBytes, finite, text_of, token_logprobs


def chat_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> dict[str, Any]:
    """``logprobs`` of a chat choice."""
    return {"content": token_logprobs(events, token_bytes), "refusal": None}


def text_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes, offset: int) -> dict[str, Any]:
    """``logprobs`` of a text completion. ``offset``: characters before the first of ``events``."""
    tokens = [text_of(token_bytes(event.token)) for event in events]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [finite(event.logprob) for event in events],
        "top_logprobs": [_top(event, token_bytes) for event in events],
        "text_offset": offsets,
    }


def text_length(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> int:
    """The length by which ``text_offset`` moves on."""
    return sum(len(text_of(token_bytes(event.token))) for event in events)


def _top(event: TokenEvent, token_bytes: TokenBytes) -> dict[str, float]:
    """The most likely tokens and the chosen one. Of tokens that look alike the most likely counts."""
    found: dict[str, float] = {}
    for token, logprob in (*event.top, (event.token, event.logprob)):
        found.setdefault(text_of(token_bytes(token)), finite(logprob))
    return found
