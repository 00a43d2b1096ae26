"""What OpenAI's streams end with, also where they fail."""

from __future__ import annotations

from ...http.body import to_json
from ...http.errors import ApiError
from ...http.form import ReplyForm

DONE = "data: [DONE]\n\n"


def _failure(error: ApiError) -> str:
    return f"data: {to_json(error.body())}\n\n{DONE}"


OPENAI = ReplyForm(failure=_failure)
