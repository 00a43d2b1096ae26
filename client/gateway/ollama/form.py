"""How Ollama's API tells of errors, and what its streams are: JSON, a line each."""

from __future__ import annotations

from typing import Any

from ...http.body import to_json
from ...http.errors import ApiError
from ...http.form import ReplyForm


def _body(error: ApiError) -> dict[str, Any]:
    return {"error": error.message, **error.more}


def _failure(error: ApiError) -> str:
    return f"{to_json(_body(error))}\n"


OLLAMA = ReplyForm(
    error=_body,
    failure=_failure,
    stream_type="application/x-ndjson",
    # Its lines have no comments: this says nothing, of a chat and of a text.
    pulse='{"message":{"role":"assistant","content":""},"response":"","done":false}\n',
)
