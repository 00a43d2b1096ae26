"""How likely tokens were, in the two forms that the API has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...decoding.answer import TokenEvent

LEAST = -9999.0
"""The log-probability of an impossible token: JSON has no -inf."""

TokenBytes = Callable[[int], bytes]


def chat_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> dict[str, Any]:
    """``logprobs`` of a chat choice."""

    def named(token: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(token)
        return {"token": _text(data), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        {
            **named(event.token, event.logprob),
            "top_logprobs": [named(token, logprob) for token, logprob in event.top],
        }
        for event in events
    ]
    return {"content": content, "refusal": None}


def text_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes, offset: int) -> dict[str, Any]:
    """``logprobs`` of a text completion. ``offset``: characters before the first of ``events``."""
    tokens = [_text(token_bytes(event.token)) for event in events]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(event.logprob) for event in events],
        "top_logprobs": [_top(event, token_bytes) for event in events],
        "text_offset": offsets,
    }


def text_length(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> int:
    """The length by which ``text_offset`` moves on."""
    return sum(len(_text(token_bytes(event.token))) for event in events)


def _top(event: TokenEvent, token_bytes: TokenBytes) -> dict[str, float]:
    """The most likely tokens and the chosen one. Of tokens that look alike the most likely counts."""
    found: dict[str, float] = {}
    for token, logprob in (*event.top, (event.token, event.logprob)):
        found.setdefault(_text(token_bytes(token)), _finite(logprob))
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None or logprob < LEAST else logprob
