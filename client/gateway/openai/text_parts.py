"""Parts of messages in OpenAI's APIs, of which this gateway reads texts and refusals."""

from __future__ import annotations

from collections.abc import Callable

from ...http.errors import refused
from ..requests.fields import BodyFields
from ..requests.messages import MAX_TEXT


def part_reader(*kinds: str) -> Callable[[BodyFields], str]:
    """What reads the text of a part that is of one of these ``kinds``, or a refusal. It raises ApiError."""

    def read(part: BodyFields) -> str:
        kind = part.required_text("type", longest=64)
        if kind != "refusal" and kind not in kinds:
            raise refused(part.name("type"), f"parts of type {kind!r} are not possible: text only")
        return part.required_text("refusal" if kind == "refusal" else "text", longest=MAX_TEXT)

    return read
