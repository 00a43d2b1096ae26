"""How likely tokens were, as most APIs tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...decoding.answer import TokenEvent

LEAST = -9999.0
"""The log-probability of an impossible token: JSON has no -inf."""

TokenBytes = Callable[[int], bytes]


def token_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """Each token, and what else was likely in its place."""

    def named(token: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(token)
        return {"token": text_of(data), "logprob": finite(logprob), "bytes": list(data)}

    return [
        {
            **named(event.token, event.logprob),
            "top_logprobs": [named(token, logprob) for token, logprob in event.top],
        }
        for event in events
    ]


def text_of(data: bytes) -> str:
    """A token's text. It may be part of a character only."""
    return data.decode(errors="replace")


def finite(logprob: float | None) -> float:
    return LEAST if logprob is None or logprob < LEAST else logprob
