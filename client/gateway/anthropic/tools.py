"""Tools of Anthropic's API, and what ``tool_choice`` makes of them."""

from __future__ import annotations

from typing import Any

from ...http.errors import refused
from ..requests.fields import BodyFields
from ..requests.tools import MAX_DESCRIPTION, MAX_TOOLS, NAME_LENGTH, Tool, Tools, check_names, tools_of


def read_tools(body: BodyFields) -> Tools:
    """No tools where there are none, or ``tool_choice`` is "none". Raises ApiError."""
    tools = [_tool(item) for item in body.objects("tools", most=MAX_TOOLS)]
    check_names(tools)
    names = [tool.name for tool in tools]
    choice = body.inner("tool_choice")
    if choice is None:
        return tools_of(tools)
    kind = choice.one_of("type", ("auto", "any", "tool", "none"), required=True)
    parallel = not choice.flag("disable_parallel_tool_use")
    if kind == "none":
        return Tools()
    if kind == "auto":
        return tools_of(tools, parallel=parallel)
    if not tools:
        raise choice.wrong("type", f"{kind!r} needs tools")
    if kind == "tool":
        name = choice.required_text("name", longest=NAME_LENGTH)
        if name not in names:
            raise choice.wrong("name", f"{name!r} is not one of the tools: {', '.join(map(repr, names))}")
        names = [name]
    return tools_of(tools, names, parallel=parallel)


def _tool(item: BodyFields) -> Tool:
    kind = item.text("type", longest=64)
    if kind not in (None, "custom"):
        raise refused(item.name("type"), f"{kind!r} is a tool of Anthropic's own; give tools by input_schema")
    item.refuse("defer_loading", False, why="there is no tool search here; give the tools that are needed")
    definition: dict[str, Any] = {"name": item.required_text("name", longest=NAME_LENGTH)}
    if description := item.text("description", longest=MAX_DESCRIPTION):
        definition["description"] = description
    definition["parameters"] = item.required_inner("input_schema").raw_all()
    return Tool(definition, item.where, item.name("input_schema"), strict=item.flag("strict") or False)
