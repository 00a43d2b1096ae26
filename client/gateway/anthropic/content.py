"""The messages of Anthropic's API, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...http.errors import refused
from ...params import open_turn
from ..requests.fields import BodyFields, text_of
from ..requests.messages import MAX_MESSAGES, MAX_PARTS, MAX_TEXT, Chat, text_in, tool_call, with_joined
from ..requests.tools import NAME_LENGTH

ROLES = ("user", "assistant", "system")
_FAILED = "The tool failed."
"""What the model is told of a tool that failed without a word."""


def read_chat(body: BodyFields) -> Chat:
    """``system`` and ``messages``. Raises ApiError."""
    turns = with_joined(_all_turns(body), ROLES)
    if not turns or turns[-1]["role"] == "system":
        raise body.wrong("messages", "must hold at least one message")
    if turns[-1].get("tool_calls"):
        raise body.wrong("messages", "end with a tool_use that no tool_result answers")
    chat, continued = open_turn(turns)
    return Chat(tuple(chat), continued, not continued)


def _all_turns(body: BodyFields) -> Iterator[dict[str, Any]]:
    if system := _text(body, "system"):
        yield {"role": "system", "content": system}
    names: dict[str, str] = {}
    for item in body.objects("messages", most=MAX_MESSAGES, required=True):
        yield from _turns(item, names)


def _turns(item: BodyFields, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What one message says. ``names``: those of the tools that were called, by the calls' ids."""
    role = item.one_of("role", ROLES, required=True)
    if isinstance(item.raw("content"), str):
        yield {"role": role, "content": text_of(item.raw("content"), item.name("content"), MAX_TEXT)}
        return
    blocks = item.objects("content", most=MAX_PARTS, required=True)
    if role == "assistant":
        yield _said(blocks, names)
        return
    texts: list[str] = []
    for block in blocks:
        if role == "user" and block.raw("type") == "tool_result":
            if texts:
                yield {"role": role, "content": "\n".join(texts)}
            texts = []
            yield _tool_result(block, names)
        else:
            texts.append(_text_block(block))
    if texts:
        yield {"role": role, "content": "\n".join(texts)}


def _said(blocks: Iterable[BodyFields], names: dict[str, str]) -> dict[str, Any]:
    """A message of the assistant."""
    texts, thoughts, calls = list[str](), list[str](), list[dict[str, Any]]()
    for block in blocks:
        match block.raw("type"):
            case "thinking":
                thoughts.append(block.required_text("thinking", longest=MAX_TEXT))
                block.text("signature", longest=MAX_TEXT)
            case "redacted_thinking":
                block.text("data", longest=MAX_TEXT)  # whoever wrote it can alone read it
            case "tool_use":
                call_id = block.required_text("id", longest=NAME_LENGTH)
                names[call_id] = block.required_text("name", longest=NAME_LENGTH)
                calls.append(tool_call(call_id, names[call_id], block.required_inner("input").raw_all()))
            case _:
                texts.append(_text_block(block))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None  # templates ask whether it is none
    return message


def _tool_result(block: BodyFields, names: dict[str, str]) -> dict[str, Any]:
    call_id = block.required_text("tool_use_id", longest=NAME_LENGTH)
    if call_id not in names:
        raise block.wrong("tool_use_id", "is of no tool_use before it")
    content = _text(block, "content")
    if block.flag("is_error") and not content:
        content = _FAILED
    return {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": content}


def _text(fields: BodyFields, name: str) -> str:
    """Empty where there is none."""
    return text_in(fields, name, _text_block) or ""


def _text_block(block: BodyFields) -> str:
    kind = block.required_text("type", longest=64)
    if kind != "text":
        raise refused(block.name("type"), f"a block of type {kind!r} is not possible here: text only")
    return block.required_text("text", longest=MAX_TEXT)
