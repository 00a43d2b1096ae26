"""What can go wrong with a request, as HTTP status and OpenAI error body; every SwarmError has its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...swarm.errors import (
    BusyError,
    CodecRangeError,
    LocalProtocolError,
    ModelError,
    ModelMismatchError,
    NetworkError,
    PeerError,
    PromptTooLongError,
    RemoteProtocolError,
    RouteError,
    SwarmError,
    UsageError,
)
from ...swarm.routing.best_route import NoRouteError, serve_command

RETRY_S = 2
"""The seconds of ``Retry-After`` if no better time is known."""


class ApiError(Exception):
    """``kind`` and ``code`` are the error body's ``type`` and ``code``, ``param`` the field that is at fault;
    ``more`` are further keys of the body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**error, **self.more}}


def wrong(field: str, problem: str, *, code: str | None = None) -> ApiError:
    """400: a field of the request is not as it should be."""
    return ApiError(400, f"{field or 'the body'}: {problem}", param=field or None, code=code)


def refused(field: str, why: str = "is not supported by this gateway") -> ApiError:
    """400: a field that is known, and asks for what cannot be done."""
    return ApiError(400, f"{field}: {why}", param=field, code="unsupported_parameter")


def too_many(message: str, retry_after: float, *, code: str = "rate_limit_exceeded") -> ApiError:
    return ApiError(429, message, kind="rate_limit_error", code=code, headers=_retry(retry_after))


def internal() -> ApiError:
    """500: says nothing of what went wrong inside."""
    return ApiError(
        500,
        "the gateway failed at this request; its log says more",
        kind="server_error",
        code="internal_error",
    )


def serve_commands(blocks: Sequence[str], model: str, initial_peers: str) -> list[str]:
    """The commands that would fill blocks that no node serves."""
    through = f" --initial-peers {initial_peers}" if initial_peers else ""
    return [f"{serve_command(model or 'PATH_OR_NAME', span)}{through}" for span in blocks]


def said(error: SwarmError) -> str:
    """In one line: what is wrong, and what to do about it."""
    end = "" if not error.hint or error.message.endswith((".", "!", "?", ":")) else "."
    return f"{error.message}{end} {error.hint}".strip()


def from_swarm(error: SwarmError, model: str = "", initial_peers: str = "ADDR") -> ApiError:
    """How a SwarmError looks over HTTP. ``model`` and ``initial_peers`` are for the command that helps."""
    text = said(error)
    if isinstance(error, NoRouteError):
        blocks = [str(span) for span in error.missing]
        return ApiError(
            503,
            error.message if blocks else text,  # the commands are told apart
            kind="server_error",
            code="no_route",
            headers=_retry(RETRY_S),
            more={"missing_blocks": blocks, "serve_commands": serve_commands(blocks, model, initial_peers)},
        )
    if isinstance(error, BusyError):
        return too_many(text, error.retry_after, code="swarm_busy")
    if isinstance(error, PromptTooLongError):
        return ApiError(400, text, code="context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(400, text)
    if isinstance(error, RouteError | ModelMismatchError):
        return ApiError(503, text, kind="server_error", code="no_route", headers=_retry(RETRY_S))
    if isinstance(error, NetworkError):
        return ApiError(503, text, kind="server_error", code="network", headers=_retry(RETRY_S))
    if isinstance(error, RemoteProtocolError | PeerError):
        return ApiError(502, text, kind="server_error", code="peer_failed")
    if isinstance(error, CodecRangeError):
        return ApiError(500, text, kind="server_error", code="wire_codec")
    if isinstance(error, LocalProtocolError):
        return internal()
    if isinstance(error, ModelError):
        return ApiError(500, text, kind="server_error", code="model_error")
    return ApiError(500, text, kind="server_error", code="internal_error")


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(min(seconds, 3600.0))))}
