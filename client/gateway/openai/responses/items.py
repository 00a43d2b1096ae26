"""Input of OpenAI's responses API, as a chat template takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....http.errors import refused
from ...requests.fields import BodyFields, text_of
from ...requests.messages import MAX_MESSAGES, MAX_TEXT, text_in, tool_call, with_joined
from ...requests.tools import NAME_LENGTH
from ..text_parts import part_reader

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""And what they are to chat templates, which know one role of those who set the rules."""
_part = part_reader("input_text", "output_text", "text", "summary_text", "reasoning_text")
Messages = Sequence[Mapping[str, Any]]


def read_input(body: BodyFields, before: Messages) -> Messages:
    """The messages ``before`` and those of ``input``. Raises ApiError."""
    if isinstance(body.raw("input"), str):
        text = text_of(body.raw("input"), "input", MAX_TEXT)
        return [*before, {"role": "user", "content": text}]
    names = {call["id"]: call["function"]["name"] for each in before for call in each.get("tool_calls") or ()}
    items = body.objects("input", most=MAX_MESSAGES, required=True)
    own = with_joined((_message(item, names) for item in items), ("assistant",))
    messages = [*before, *own]  # what was said before stays as it is
    if not messages:
        raise body.wrong("input", "is empty")
    answered = {each["tool_call_id"] for each in messages if each["role"] == "tool"}
    if waiting := names.keys() - answered:
        raise body.wrong("input", f"has no function_call_output for the call {min(waiting)[:100]!r}")
    return messages


def _message(item: BodyFields, names: dict[str, str]) -> dict[str, Any]:
    """``names``: of the functions that were called, by the calls' ids."""
    kind = item.text("type", longest=64) or "message"
    item.text("id", longest=NAME_LENGTH)
    item.text("status", longest=64)
    match kind:
        case "message":
            role = item.one_of("role", tuple(ROLES), required=True)
            return {"role": ROLES[role or ""], "content": _text(item, "content")}
        case "reasoning":
            item.text("encrypted_content", longest=MAX_TEXT)  # this gateway encrypts nothing
            thought = _text(item, "content") or _text(item, "summary")
            return {"role": "assistant", "content": "", "reasoning_content": thought}
        case "function_call":
            call_id, name = (item.required_text(field, longest=NAME_LENGTH) for field in ("call_id", "name"))
            names[call_id] = name
            call = tool_call(call_id, name, item.text("arguments", longest=MAX_TEXT) or "{}")
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            call_id = item.required_text("call_id", longest=NAME_LENGTH)
            if call_id not in names:
                raise item.wrong("call_id", "is of no function_call before it")
            content = _text(item, "output")
            return {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": content}
    raise refused(item.name("type"), f"items of type {kind!r} are not possible: text and functions only")


def _text(item: BodyFields, field: str) -> str:
    """Empty where there is none."""
    return text_in(item, field, _part) or ""
