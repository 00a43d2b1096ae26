"""Tools of OpenAI's responses API, and what ``tool_choice`` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....http.errors import refused
from ...requests.fields import BodyFields
from ...requests.tools import MAX_DESCRIPTION, MAX_TOOLS, NAME_LENGTH, Tool, Tools, check_names, tools_of


def read_tools(body: BodyFields) -> Tools:
    """No tools where there are none, or ``tool_choice`` is "none". Raises ApiError."""
    tools = [_tool(item) for item in body.objects("tools", most=MAX_TOOLS)]
    check_names(tools)
    parallel = body.flag("parallel_tool_calls") is not False
    if not isinstance(body.raw("tool_choice"), dict):
        mode, names = body.one_of("tool_choice", ("none", "auto", "required")), [tool.name for tool in tools]
    else:
        mode, names = _chosen(body.required_inner("tool_choice"), tools)
        tools = [tool for tool in tools if tool.name in names]
    if mode == "required" and not tools:
        raise body.wrong("tool_choice", f"{mode!r} needs tools")
    if mode == "none":
        return Tools()
    return tools_of(tools, names if mode == "required" else (), parallel=parallel)


def _chosen(choice: BodyFields, tools: Sequence[Tool]) -> tuple[str | None, list[str]]:
    """Whether a call must come, and the tools that may be called."""
    kind = choice.one_of("type", ("function", "allowed_tools"), required=True)
    given = [choice] if kind == "function" else list(choice.objects("tools", most=MAX_TOOLS, required=True))
    mode = "required" if kind == "function" else choice.one_of("mode", ("auto", "required"), required=True)
    names = []
    for each in given:
        each.one_of("type", ("function",), required=True)
        name = each.required_text("name", longest=NAME_LENGTH)
        if name not in [tool.name for tool in tools]:
            raise each.wrong("name", f"{name!r} is not one of the tools")
        names.append(name)
    return mode, names


def _tool(item: BodyFields) -> Tool:
    kind = item.text("type", longest=64)
    if kind != "function":
        raise refused(item.name("type"), f"{kind!r} is a tool of OpenAI's own; give tools of type 'function'")
    item.refuse("defer_loading", False, why="there is no tool search here; give the tools that are needed")
    definition: dict[str, Any] = {"name": item.required_text("name", longest=NAME_LENGTH)}
    if description := item.text("description", longest=MAX_DESCRIPTION):
        definition["description"] = description
    if (parameters := item.inner("parameters")) is not None:
        definition["parameters"] = parameters.raw_all()
    return Tool(definition, item.where, item.name("parameters"), strict=item.flag("strict") or False)
