"""How an API tells of errors, which may happen wherever its paths are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .body import to_json
from .errors import ApiError


def _event(error: ApiError) -> str:
    return f"data: {to_json(error.body())}\n\n"


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """``error``: the body of a reply that says what is wrong. ``failure``: what ends a stream that failed.
    ``stream_type``: what a stream is. ``pulse``: what a stream says while there is nothing to say, so that no
    proxy takes it for dead; readers pass over it."""

    error: Callable[[ApiError], dict[str, Any]] = ApiError.body
    failure: Callable[[ApiError], str] = _event
    stream_type: str = "text/event-stream; charset=utf-8"
    pulse: str = ": waiting\n\n"
