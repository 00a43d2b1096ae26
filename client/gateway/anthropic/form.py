"""How Anthropic's API tells of errors."""

from __future__ import annotations

from typing import Any

from ...http.body import to_json
from ...http.errors import ApiError
from ...http.form import ReplyForm

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""The ``type`` of an error by its status. Other faults of the caller are wrong requests, and of ours
``api_error``."""


def event(kind: str, **more: Any) -> str:
    """One event of a stream."""
    return f"event: {kind}\ndata: {to_json({'type': kind, **more})}\n\n"


def _body(error: ApiError) -> dict[str, Any]:
    """What the gateway knows beyond Anthropic's fields goes into ``details``."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    details = {"error_code": error.code, "param": error.param, **error.more}
    known = {name: value for name, value in details.items() if value is not None}
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message, **({"details": known} if known else {})},
    }


def _failure(error: ApiError) -> str:
    return f"event: error\ndata: {to_json(_body(error))}\n\n"


ANTHROPIC = ReplyForm(error=_body, failure=_failure, pulse=event("ping"))
