"""The tools of a chat, and what it takes that one of them must be called."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....swarm.errors import UsageError
from ...guided.guide import Guide
from ...guided.json_schema import check_schema
from ...guided.schema_forms import plain, shape
from ...http.errors import said, wrong

MAX_TOOLS = 128
NAME_LENGTH = 256
MAX_DESCRIPTION = 64 * 1024
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")

_NONE = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a tool that names none, as at OpenAI: it takes none."""


@dataclass(frozen=True, slots=True)
class Tool:
    """``definition``: the function as chat templates take it, with name, description and parameters.
    ``field``: how the request calls it, ``parameters_field`` its schema. ``strict``: a forced call keeps to
    all of the schema."""

    definition: Mapping[str, Any]
    field: str
    parameters_field: str
    strict: bool = False

    @property
    def name(self) -> str:
        return self.definition["name"]


@dataclass(frozen=True, slots=True)
class Tools:
    """``definitions``: for the chat template. ``schemas``: of their arguments, by name. ``forced``: lets an
    answer hold a call of one of the tools of which one must be called, and nothing else; None where the model
    may answer as it likes. ``parallel``: several calls may come."""

    definitions: tuple[Mapping[str, Any], ...] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)
    forced: Guide | None = None
    parallel: bool = True

    @property
    def names(self) -> Collection[str]:
        return self.schemas.keys()


def check_names(tools: Iterable[Tool]) -> None:
    """Raises ApiError, which names the tool."""
    seen = set[str]()
    for tool in tools:
        if not _NAME.match(tool.name):
            raise wrong(f"{tool.field}.name", "must be 1 to 64 letters, digits, _, - or .")
        if tool.name in seen:
            raise wrong(f"{tool.field}.name", f"{tool.name!r} is the name of an earlier tool")
        seen.add(tool.name)


def tools_of(tools: Sequence[Tool], forced: Collection[str] = (), *, parallel: bool = True) -> Tools:
    """``forced``: names of those of which one must be called. Raises ApiError, which names the tool."""
    return Tools(
        definitions=tuple({"type": "function", "function": tool.definition} for tool in tools),
        schemas={tool.name: tool.definition.get("parameters") for tool in tools},
        forced=_guide([tool for tool in tools if tool.name in forced]) if forced else None,
        parallel=parallel,
    )


def _guide(tools: Sequence[Tool]) -> Guide:
    """Raises ApiError, which names the tool, for a strict one whose schema asks for what cannot be kept to.
    Of the others the answer keeps to what it can."""
    schemas = {tool.name: _arguments(tool) for tool in tools}
    weak = {tool.name: schemas[tool.name] if tool.strict else shape(schemas[tool.name]) for tool in tools}
    try:
        weaker = Guide("json_schema", answer_schema(weak)) if weak != schemas else None
        return Guide("json_schema", answer_schema(schemas), weaker)
    except UsageError as error:
        raise wrong("tools", said(error)) from None


def _arguments(tool: Tool) -> Any:
    """The schema of a tool's arguments."""
    given = tool.definition.get("parameters")
    try:
        schema = plain(_NONE if given is None else given, lenient=not tool.strict)
        check_schema(schema)
    except UsageError as error:
        raise wrong(tool.parameters_field, said(error)) from None
    return schema


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


def format_or_call(guide: Guide, tools: Tools) -> Guide:
    """What lets an answer be as ``guide`` says, which is for JSON, or a call of one of ``tools`` in JSON.
    Their arguments keep to their schemas as far as types go. Raises UsageError for what is too
    large."""
    form = json.loads(guide.text) if guide.text else {"type": "object"}
    calls = answer_schema({name: shape(_lenient(schema)) for name, schema in tools.schemas.items()})
    definitions = calls.pop("$defs")
    definitions["answer"] = _moved(form, "#/$defs/answer")
    choices = [{"$ref": "#/$defs/answer"}, *calls.get("anyOf", [calls])]
    weaker = format_or_call(guide.weaker, tools) if guide.weaker is not None else None
    return Guide("json_schema", {"$defs": definitions, "anyOf": choices}, weaker)


def _lenient(schema: Any) -> Any:
    return plain(_NONE if schema is None else schema, lenient=True)


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
