"""Tools of a chat request: their definitions, and what ``tool_choice`` makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .fields import Fields

MAX_TOOLS = 128
NAME_LENGTH = 256
MAX_DESCRIPTION = 64 * 1024
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")

Choice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tools:
    """``definitions``: as the request has them, for the chat template. ``forced``: the tools of which one
    must be called; none where the model may answer as it likes. ``parallel``: several calls may come."""

    definitions: tuple[Mapping[str, Any], ...] = ()
    parameters: Mapping[str, Mapping[str, Any]] | None = None
    forced: tuple[str, ...] = ()
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.parameters or ())

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """JSON schema of the call that must come; None where none must."""
        if not self.forced or self.parameters is None:
            return None
        return _answer_schema({name: self.parameters[name] for name in self.forced})


def read_tools(body: Fields) -> Tools:
    """No tools where there are none, or ``tool_choice`` is "none"."""
    body.refuse("functions", why="is the old form; use tools")
    body.refuse("function_call", "none", "auto", why="is the old form; use tool_choice")
    definitions: list[dict[str, Any]] = []
    parameters: dict[str, Mapping[str, Any]] = {}
    for tool in body.objects("tools", most=MAX_TOOLS):
        tool.one_of("type", ("function",), required=True)
        function = tool.required_inner("function")
        name = function.required_text("name", longest=NAME_LENGTH)
        if not _NAME.match(name):
            raise function.wrong("name", "must be 1 to 64 letters, digits, _, - or .")
        if name in parameters:
            raise function.wrong("name", f"{name!r} is the name of an earlier tool")
        function.text("description", longest=MAX_DESCRIPTION)
        function.flag("strict")
        schema = function.inner("parameters")
        parameters[name] = schema.raw_all() if schema is not None else {"type": "object", "properties": {}}
        definitions.append({"type": "function", "function": function.raw_all()})
    choice, forced = _choice(body, parameters)
    parallel = body.flag("parallel_tool_calls")
    if choice == "none" or not definitions:
        return Tools()
    return Tools(tuple(definitions), parameters, forced, parallel is not False)


def _choice(body: Fields, parameters: Mapping[str, Any]) -> tuple[Choice, tuple[str, ...]]:
    if not isinstance(body.raw("tool_choice"), dict):
        word = body.one_of("tool_choice", ("none", "auto", "required"))
        if word in ("auto", "required") and not parameters:
            raise body.wrong("tool_choice", f"{word!r} needs tools")
        if word == "none":
            return "none", ()
        return ("required", tuple(parameters)) if word == "required" else ("auto", ())
    choice = body.required_inner("tool_choice")
    choice.refuse("type", "function", why="only 'function' is supported by this gateway")
    choice.one_of("type", ("function",), required=True)
    function = choice.required_inner("function")
    return "required", (_known(function, function.required_text("name", longest=NAME_LENGTH), parameters),)


def _known(function: Fields, name: str, parameters: Mapping[str, Any]) -> str:
    if name not in parameters:
        known = ", ".join(map(repr, sorted(parameters)))
        raise function.wrong("name", f"{name!r} is none of the tools" + (f": {known}" if known else ""))
    return name


def _answer_schema(calls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A call of one of the tools, given by name with their arguments' schemas. Those go under ``$defs``, and
    what refers to a place inside one then says that it is there."""
    definitions = {
        f"arguments{number}": _moved(schema, f"#/$defs/arguments{number}")
        for number, schema in enumerate(calls.values())
    }
    forms = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/arguments{number}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, name in enumerate(calls)
    ]
    return {"$defs": definitions, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _moved(schema: Any, place: str) -> Any:
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + item[1:]
        if key == "$ref" and isinstance(item, str) and (item == "#" or item.startswith("#/"))
        else _moved(item, place)
        for key, item in schema.items()
    }
