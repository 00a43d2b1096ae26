"""The messages of a chat, as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from ....shards.formats.bounded_json import is_deeper
from ...http.body import MAX_DEPTH
from .fields import BodyFields, kind_of, text_of

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


def text_in(fields: BodyFields, name: str, read_part: Callable[[BodyFields], str]) -> str | None:
    """A text, or parts of one, of which each begins a line; None where there is none. Raises ApiError."""
    value = fields.raw(name)
    if value is None:
        return None
    if isinstance(value, str):
        return text_of(value, fields.name(name), MAX_TEXT)
    if not isinstance(value, list):
        raise fields.wrong(name, f"must be a text or a list of parts, not {kind_of(value)}")
    return "\n".join([read_part(part) for part in fields.objects(name, most=MAX_PARTS)])


def tool_call(call_id: str, name: str, arguments: object) -> dict[str, Any]:
    """A call in an assistant's message. ``arguments``: an object, or the text of one."""
    if isinstance(arguments, str):
        arguments = _arguments(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def joined(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Messages of one role as one: texts a line each, and the calls of all."""
    one = dict(messages[0])
    for name in ("content", "reasoning_content"):
        if texts := [text for message in messages if (text := message.get(name))]:
            one[name] = "\n".join(texts)
    if calls := [call for message in messages for call in message.get("tool_calls", ())]:
        one["tool_calls"] = calls
    return one


def with_joined(messages: Iterable[Mapping[str, Any]], roles: Container[str]) -> list[Mapping[str, Any]]:
    """The messages; of each of these ``roles``, those that follow each other have become one."""
    found: list[Mapping[str, Any]] = []
    for role, group in groupby(messages, key=itemgetter("role")):
        turn = list(group)
        found += [joined(turn)] if role in roles else turn
    return found


def _arguments(text: str) -> dict[str, Any] | str:
    """As an object, where it is one: templates write objects out themselves."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) and not is_deeper(arguments, MAX_DEPTH) else text
