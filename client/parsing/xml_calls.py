"""Calls whose arguments are written as plain text between tags. The tool's schema says what they stand
for."""

from __future__ import annotations

from typing import Any

from .feed import Feed, Reading
from .json_text import written
from .pieces import ToolCall
from .typed import KnownTools


def function(feed: Feed, tools: KnownTools) -> Reading[ToolCall]:
    """Qwen3-Coder's, after ``<function=``: ``NAME><parameter=KEY>VALUE</parameter></function>``, values on
    lines of their own."""
    name = yield from feed.word(tools.names, (">",))
    yield from feed.literal(">")
    values: dict[str, Any] = {}
    more = ("<parameter=", "</function>")
    while True:
        yield from feed.space()
        if (yield from feed.literal(*more)) == "</function>":
            return _call(name, values)
        key = yield from feed.until(">")
        value = yield from feed.until("</parameter>", then=more)
        values[key] = tools.typed(name, key, value.removeprefix("\n").removesuffix("\n"))


def key_values(
    feed: Feed, tools: KnownTools, keys: tuple[str, str], texts: tuple[str, str], close: str
) -> Reading[list[ToolCall]]:
    """GLM's, after ``<tool_call>``: ``NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>``.
    ``keys`` and ``texts``: the tags around a key and a value."""
    name = yield from feed.word(tools.names, ("\n", " ", keys[0], close))
    values: dict[str, Any] = {}
    while True:
        yield from feed.space()
        if (yield from feed.literal(keys[0], close)) == close:
            return [_call(name, values)]
        key = yield from feed.until(keys[1])
        yield from feed.space()
        yield from feed.literal(texts[0])
        value = yield from feed.until(texts[1], then=(keys[0], close))
        values[key.strip()] = tools.typed(name, key.strip(), value)


def invocations(feed: Feed, tools: KnownTools, close: str) -> Reading[list[ToolCall]]:
    """MiniMax's, after ``<minimax:tool_call>``, as many as there are:
    ``<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>``."""
    calls: list[ToolCall] = []
    more = ('<parameter name="', "</invoke>")
    while True:
        yield from feed.space()
        if (yield from feed.literal('<invoke name="', close, at_end=bool(calls))) == close:
            return calls
        name = yield from feed.word(tools.names, ('">',))
        yield from feed.literal('">')
        values: dict[str, Any] = {}
        while True:
            yield from feed.space()
            if (yield from feed.literal(*more)) == "</invoke>":
                break
            key = yield from feed.until('">')
            value = yield from feed.until("</parameter>", then=more)
            values[key] = tools.typed(name, key, value)
        calls.append(_call(name, values))


def _call(name: str, values: dict[str, Any]) -> ToolCall:
    return ToolCall(name, written(values))
