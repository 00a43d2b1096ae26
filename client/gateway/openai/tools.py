"""Tools of a chat request: their definitions, and what ``tool_choice`` makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ....swarm.errors import UsageError
from ...guided.guide import Guide
from ...guided.json_schema import check_schema
from ...guided.schema_forms import plain, shape
from ...http.errors import said, wrong
from .fields import BodyFields

MAX_TOOLS = 128
NAME_LENGTH = 256
MAX_DESCRIPTION = 64 * 1024
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")

_NONE = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a tool that names none, as at OpenAI: it takes none."""

ToolChoice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tools:
    """``definitions``: as the request has them, for the chat template. ``forced``: lets an answer hold a call
    of one of the tools of which one must be called, and nothing else; None where the model may answer as it
    likes. ``parallel``: several calls may come."""

    definitions: tuple[Mapping[str, Any], ...] = ()
    names: frozenset[str] = frozenset()
    forced: Guide | None = None
    parallel: bool = True


def read_tools(body: BodyFields) -> Tools:
    """No tools where there are none, or ``tool_choice`` is "none"."""
    body.refuse("functions", [], why="is the old form; use tools")
    body.refuse("function_call", "none", "auto", why="is the old form; use tool_choice")
    functions: dict[str, BodyFields] = {}
    for tool in body.objects("tools", most=MAX_TOOLS):
        tool.one_of("type", ("function",), required=True)
        function = tool.required_inner("function")
        name = function.required_text("name", longest=NAME_LENGTH)
        if not _NAME.match(name):
            raise function.wrong("name", "must be 1 to 64 letters, digits, _, - or .")
        if name in functions:
            raise function.wrong("name", f"{name!r} is the name of an earlier tool")
        function.text("description", longest=MAX_DESCRIPTION)
        function.flag("strict")
        function.inner("parameters")
        function.raw_all()  # the template shows it as it came
        functions[name] = function
    choice, forced = _choice(body, functions)
    parallel = body.flag("parallel_tool_calls")
    if choice == "none" or not functions:
        return Tools()
    return Tools(
        definitions=tuple({"type": "function", "function": each.raw_all()} for each in functions.values()),
        names=frozenset(functions),
        forced=_guide({name: functions[name] for name in forced}) if forced else None,
        parallel=parallel is not False,
    )


def _guide(functions: Mapping[str, BodyFields]) -> Guide:
    """Raises ApiError, which names the tool, for a strict one whose schema asks for what cannot be kept to.
    Of the others the answer keeps to what it can."""
    schemas = {name: _arguments(function) for name, function in functions.items()}
    weak = {
        name: schema if function.flag("strict") else shape(schema)
        for (name, schema), function in zip(schemas.items(), functions.values(), strict=True)
    }
    try:
        weaker = Guide("json_schema", answer_schema(weak)) if weak != schemas else None
        return Guide("json_schema", answer_schema(schemas), weaker)
    except UsageError as error:
        raise wrong("tools", said(error)) from None


def _arguments(function: BodyFields) -> object:
    """The schema of a tool's arguments."""
    given = function.inner("parameters")
    try:
        schema = plain(given.raw_all() if given is not None else _NONE, lenient=not function.flag("strict"))
        check_schema(schema)
    except UsageError as error:
        raise function.wrong("parameters", said(error)) from None
    return schema


def _choice(body: BodyFields, parameters: Mapping[str, Any]) -> tuple[ToolChoice, tuple[str, ...]]:
    if not isinstance(body.raw("tool_choice"), dict):
        word = body.one_of("tool_choice", ("none", "auto", "required"))
        if word == "required" and not parameters:
            raise body.wrong("tool_choice", f"{word!r} needs tools")
        if word == "none":
            return "none", ()
        return ("required", tuple(parameters)) if word == "required" else ("auto", ())
    choice = body.required_inner("tool_choice")
    choice.refuse("type", "function", why="only 'function' is supported by this gateway")
    choice.one_of("type", ("function",), required=True)
    function = choice.required_inner("function")
    return "required", (_known(function, function.required_text("name", longest=NAME_LENGTH), parameters),)


def _known(function: BodyFields, name: str, parameters: Mapping[str, Any]) -> str:
    if name not in parameters:
        known = ", ".join(map(repr, sorted(parameters)))
        raise function.wrong("name", f"{name!r} is not one of the tools" + (f": {known}" if known else ""))
    return name


def answer_schema(calls: Mapping[str, object]) -> dict[str, Any]:
    """A call of one of the tools, given by name with their arguments' schemas. Those go under ``$defs``, and
    what refers to a place inside one then says that it is there."""
    definitions = {
        f"arguments{number}": _moved(schema, f"#/$defs/arguments{number}")
        for number, schema in enumerate(calls.values())
    }
    forms = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/arguments{number}", "type": "object"},
            },
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
