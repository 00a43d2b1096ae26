"""The messages of a chat, as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....shards.formats.bounded_json import is_deeper
from ...http.body import MAX_DEPTH

MAX_MESSAGES = 4096
MAX_PARTS = 256
MAX_CALLS = 128
MAX_TEXT = 16 * 1024 * 1024
"""Characters of a text at most; the body's limit is usually reached first."""


@dataclass(frozen=True, slots=True)
class Chat:
    """``messages``: roles system, user, assistant and tool; texts as plain strings, and tool calls' arguments
    as objects where they are such. ``continued``: the answer goes on with the last of them; else ``turn``: it
    is a turn of its own."""

    messages: tuple[Mapping[str, Any], ...]
    continued: bool
    turn: bool


def tool_call(call_id: str, name: str, arguments: object) -> dict[str, Any]:
    """A call in an assistant's message. ``arguments``: an object, or the text of one."""
    if isinstance(arguments, str):
        arguments = _arguments(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def joined(turn: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two messages of one role as one: texts a line each, and the calls of both."""
    both = dict(turn)
    for name in ("content", "reasoning_content"):
        if texts := [text for text in (turn.get(name), more.get(name)) if text]:
            both[name] = "\n".join(texts)
    if calls := [*turn.get("tool_calls", ()), *more.get("tool_calls", ())]:
        both["tool_calls"] = calls
    return both


def _arguments(text: str) -> dict[str, Any] | str:
    """As an object, where it is one: templates write objects out themselves."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) and not is_deeper(arguments, MAX_DEPTH) else text
