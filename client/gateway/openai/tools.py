"""Tools of a chat request: their definitions, and what ``tool_choice`` makes of them."""

from __future__ import annotations

from collections.abc import Collection

from ..requests.fields import BodyFields
from ..requests.tools import MAX_DESCRIPTION, MAX_TOOLS, NAME_LENGTH, Tool, Tools, check_names, tools_of


def read_tools(body: BodyFields) -> Tools:
    """No tools where there are none, or ``tool_choice`` is "none"."""
    body.refuse("functions", [], why="is the old form; use tools")
    body.refuse("function_call", "none", "auto", why="is the old form; use tool_choice")
    tools = [_tool(tool) for tool in body.objects("tools", most=MAX_TOOLS)]
    check_names(tools)
    forced = _forced(body, [tool.name for tool in tools])
    parallel = body.flag("parallel_tool_calls")
    if forced is None or not tools:
        return Tools()
    return tools_of(tools, forced, parallel=parallel is not False)


def _tool(tool: BodyFields) -> Tool:
    tool.one_of("type", ("function",), required=True)
    function = tool.required_inner("function")
    function.required_text("name", longest=NAME_LENGTH)
    function.text("description", longest=MAX_DESCRIPTION)
    strict = function.flag("strict") or False
    function.inner("parameters")
    # The template shows it as it came.
    return Tool(function.raw_all(), function.where, function.name("parameters"), strict)


def _forced(body: BodyFields, names: Collection[str]) -> Collection[str] | None:
    """Those of which one must be called; None for a chat without tools."""
    if not isinstance(body.raw("tool_choice"), dict):
        word = body.one_of("tool_choice", ("none", "auto", "required"))
        if word == "required" and not names:
            raise body.wrong("tool_choice", f"{word!r} needs tools")
        if word == "none":
            return None
        return names if word == "required" else ()
    choice = body.required_inner("tool_choice")
    choice.refuse("type", "function", why="only 'function' is supported by this gateway")
    choice.one_of("type", ("function",), required=True)
    function = choice.required_inner("function")
    name = function.required_text("name", longest=NAME_LENGTH)
    if name not in names:
        known = ", ".join(map(repr, sorted(names)))
        raise function.wrong("name", f"{name!r} is not one of the tools" + (f": {known}" if known else ""))
    return (name,)
