"""The messages and tools of Ollama's API, as a chat template takes them."""

from __future__ import annotations

from typing import Any

from ...http.errors import wrong
from ...params import open_turn
from ..requests.fields import BodyFields
from ..requests.messages import MAX_CALLS, MAX_MESSAGES, MAX_TEXT, Chat, tool_call
from ..requests.tools import MAX_DESCRIPTION, MAX_TOOLS, NAME_LENGTH, Tool, Tools, check_names, tools_of

ROLES = ("system", "user", "assistant", "tool")
TEXT_ONLY = "text is all that this gateway reads"


class _Calls:
    """The calls of the newest message that has some, as far as they have no result yet. Ollama's need have no
    ids, and templates may ask for some: those that are made here have nine letters and digits, as Mistral's
    do."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[tuple[str, str]] = []  # id, name of the tool

    def of(self, message: BodyFields) -> list[dict[str, Any]]:
        """The calls of one message, as a chat template takes them."""
        calls = [self._call(item) for item in message.objects("tool_calls", most=MAX_CALLS)]
        if calls:
            self._open = [(call["id"], call["function"]["name"]) for call in calls]
        return calls

    def _call(self, item: BodyFields) -> dict[str, Any]:
        function = item.required_inner("function")
        name = function.required_text("name", longest=NAME_LENGTH)
        arguments = function.inner("arguments")
        self._made += 1
        call_id = item.text("id", longest=NAME_LENGTH) or f"call{self._made:05}"
        return tool_call(call_id, name, arguments.raw_all() if arguments is not None else {})

    def answered(self, call_id: str, name: str) -> tuple[str, str]:
        """Id and name of the call that a result is of: the first that fits what is said of it. The client may
        have left the call out."""
        for call in self._open:
            if call_id in ("", call[0]) and name in ("", call[1]):
                self._open.remove(call)
                return call
        return call_id, name


def read_chat(body: BodyFields) -> Chat:
    """Raises ApiError."""
    calls = _Calls()
    messages = [_message(item, calls) for item in body.objects("messages", most=MAX_MESSAGES, required=True)]
    if messages[-1].get("tool_calls"):
        raise wrong(f"messages[{len(messages) - 1}].tool_calls", "no tool message answers them")
    return chat_of(messages)


def chat_of(messages: list[dict[str, Any]]) -> Chat:
    """``messages``: one or more."""
    chat, continued = open_turn(messages)
    return Chat(tuple(chat), continued, not continued)


def _message(item: BodyFields, calls: _Calls) -> dict[str, Any]:
    role = item.one_of("role", ROLES, required=True)
    item.refuse("images", [], why=TEXT_ONLY)
    message: dict[str, Any] = {"role": role, "content": item.text("content", longest=MAX_TEXT) or ""}
    if role == "assistant":
        if thought := item.text("thinking", longest=MAX_TEXT):
            message["reasoning_content"] = thought
        if made := calls.of(item):
            message["tool_calls"] = made
            message["content"] = message["content"] or None  # templates ask whether it is none
    elif role == "tool":
        call_id = item.text("tool_call_id", longest=NAME_LENGTH)
        name = item.text("tool_name", longest=NAME_LENGTH) or item.text("name", longest=NAME_LENGTH)
        message["tool_call_id"], message["name"] = calls.answered(call_id or "", name or "")
    return message


def read_tools(body: BodyFields) -> Tools:
    """Raises ApiError."""
    tools = [_tool(item) for item in body.objects("tools", most=MAX_TOOLS)]
    check_names(tools)
    return tools_of(tools)


def _tool(item: BodyFields) -> Tool:
    item.one_of("type", ("function",))
    function = item.required_inner("function")
    definition: dict[str, Any] = {"name": function.required_text("name", longest=NAME_LENGTH)}
    if description := function.text("description", longest=MAX_DESCRIPTION):
        definition["description"] = description
    if (parameters := function.inner("parameters")) is not None:
        definition["parameters"] = parameters.raw_all()
    return Tool(definition, function.where, function.name("parameters"))
