"""The messages of a chat request, as a chat template takes them."""

from __future__ import annotations

from typing import Any

from ...http.errors import wrong
from ...params import open_turn
from ..requests.fields import BodyFields
from ..requests.messages import MAX_CALLS, MAX_MESSAGES, MAX_TEXT, Chat, text_in, tool_call
from ..requests.tools import NAME_LENGTH
from .text_parts import part_reader

ROLES = ("system", "developer", "user", "assistant", "tool")
_part = part_reader("text", "input_text", "output_text")


def read_chat_messages(body: BodyFields) -> Chat:
    """``messages``, and what the fields beside it say of their end. Raises ApiError."""
    messages = [_message(item) for item in body.objects("messages", most=MAX_MESSAGES, required=True)]
    if not messages:
        raise body.wrong("messages", "must hold at least one message")
    turn, continued = body.flag("add_generation_prompt"), body.flag("continue_final_message")
    if turn and continued:
        raise body.wrong("continue_final_message", "cannot be given beside add_generation_prompt: true")
    if continued and not messages[-1].get("content"):
        raise body.wrong("continue_final_message", "needs a last message with text")
    if turn is None and continued is None:
        if messages[-1].get("tool_calls"):
            raise wrong(f"messages[{len(messages) - 1}].tool_calls", "no tool message answers them")
        chat, continued = open_turn(messages)
        return Chat(tuple(chat), continued, not continued)
    return Chat(tuple(messages), bool(continued), turn is not False and not continued)


def _message(item: BodyFields) -> dict[str, Any]:
    role = item.one_of("role", ROLES, required=True)
    item.refuse("function_call", why="is the old form; use tool_calls")
    item.refuse("audio")
    item.refuse("images", [], why="text is all that this gateway reads")
    # A template knows one role of those who set the rules.
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = text_in(item, "content", _part)
    if content is None and role == "assistant":  # it called tools, refused, or was stopped
        refusal = item.text("refusal", longest=MAX_TEXT)
        content = "" if refusal is None and not item.raw("tool_calls") else refusal
    if content is not None:
        message["content"] = content
    name = item.text("name", longest=NAME_LENGTH)
    if name is not None:
        message["name"] = name
    if role == "assistant":
        if calls := [_tool_call(call) for call in item.objects("tool_calls", most=MAX_CALLS)]:
            message["tool_calls"] = calls
            message["content"] = content  # templates ask whether it is none
        reasoning = item.text("reasoning_content", longest=MAX_TEXT)
        if reasoning is None and isinstance(item.raw("reasoning"), str):
            reasoning = item.text("reasoning", longest=MAX_TEXT)  # as vLLM calls it
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


def _tool_call(call: BodyFields) -> dict[str, Any]:
    call.one_of("type", ("function",))
    function = call.required_inner("function")
    name = function.required_text("name", longest=NAME_LENGTH)
    arguments = function.raw("arguments")
    if not isinstance(arguments, dict):
        arguments = function.text("arguments", longest=MAX_TEXT) or "{}"
    return tool_call(call.text("id", longest=NAME_LENGTH) or "", name, arguments)
