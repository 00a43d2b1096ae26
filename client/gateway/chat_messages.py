"""The messages of a chat request, as a chat template takes them."""

from __future__ import annotations

import json
from typing import Any

from ...shards.bounded_json import is_deeper
from .body import MAX_DEPTH
from .errors import refused, wrong
from .fields import Fields, kind_of, text_of
from .tools import NAME_LENGTH

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 4096
MAX_PARTS = 256
MAX_CALLS = 128
MAX_TEXT = 16 * 1024 * 1024
"""Characters; the body's limit comes first."""


def read_messages(body: Fields) -> list[dict[str, Any]]:
    """``messages`` with texts as plain strings, and tool calls' arguments as objects where they are such."""
    messages = [_message(item) for item in body.objects("messages", most=MAX_MESSAGES, required=True)]
    if not messages:
        raise body.wrong("messages", "must hold at least one message")
    return messages


def _message(item: Fields) -> dict[str, Any]:
    role = item.one_of("role", ROLES, required=True)
    item.refuse("function_call", why="is the old form; use tool_calls")
    item.refuse("audio")
    # A template knows one role of those who set the rules.
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = _content(item)
    if content is not None:
        message["content"] = content
    name = item.text("name", longest=NAME_LENGTH)
    if name is not None:
        message["name"] = name
    if role == "assistant":
        if calls := [_tool_call(call) for call in item.objects("tool_calls", most=MAX_CALLS)]:
            message["tool_calls"] = calls
            message.setdefault("content", "")
        reasoning = item.text("reasoning_content", longest=MAX_TEXT)
        if reasoning is not None:
            message["reasoning_content"] = reasoning
    elif item.has("tool_calls"):
        raise item.wrong("tool_calls", "only assistant messages have some")
    if role == "tool":
        call_id = item.required_text("tool_call_id", longest=NAME_LENGTH)
        message["tool_call_id"] = call_id
    if "content" not in message:
        raise item.wrong("content", "is required")
    return message


def _content(item: Fields) -> str | None:
    """The texts of a list of parts become one, a line each."""
    value = item.raw("content")
    if value is None:
        return None
    name = item.name("content")
    if isinstance(value, str):
        return text_of(value, name, MAX_TEXT)
    if not isinstance(value, list):
        raise wrong(name, f"must be a text or a list of parts, not {kind_of(value)}")
    texts = []
    for part in item.objects("content", most=MAX_PARTS):
        kind = part.required_text("type", longest=64)
        if kind == "refusal":
            texts.append(part.required_text("refusal", longest=MAX_TEXT))
        elif kind in ("text", "input_text", "output_text"):
            texts.append(part.required_text("text", longest=MAX_TEXT))
        else:
            raise refused(part.name("type"), f"parts of type {kind!r} are not possible: text only")
    return "\n".join(texts)


def _tool_call(call: Fields) -> dict[str, Any]:
    call.one_of("type", ("function",))
    function = call.required_inner("function")
    name = function.required_text("name", longest=NAME_LENGTH)
    text = function.required_text("arguments", longest=MAX_TEXT)
    return {
        "id": call.text("id", longest=NAME_LENGTH) or "",
        "type": "function",
        "function": {"name": name, "arguments": _arguments(text)},
    }


def _arguments(text: str) -> dict[str, Any] | str:
    """As an object, where it is one: templates write objects out themselves."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) and not is_deeper(arguments, MAX_DEPTH) else text
