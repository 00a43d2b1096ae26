"""Calls between control tokens, each with a name and the JSON of its arguments."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from . import json_calls
from .feed import Feed, Mismatch, Reading
from .pieces import ToolCall


def mistral(feed: Feed, names: AbstractSet[str], call_id: str, args: str) -> Reading[list[ToolCall]]:
    """After ``[TOOL_CALLS]``: a list in JSON, or ``NAME[ARGS]{…}`` with ``[CALL_ID]ID`` between them or not.
    Several calls each have a mark of their own."""
    yield from feed.space()
    if (yield from feed.is_next("[", "{")):
        return (yield from json_calls.listed(feed, names))
    name = yield from feed.word(names, (args, call_id, "{", " "))
    yield from feed.space()
    told = ""
    if (yield from feed.literal(args, call_id, "{")) == call_id:
        told = yield from feed.until(args)
    elif feed.read_from(feed.at - 1) == "{":
        feed.at -= 1
    arguments = yield from json_calls.arguments(feed)
    return [ToolCall(name, arguments, told)]


def named(feed: Feed, names: AbstractSet[str], again: str, close: str) -> Reading[list[ToolCall]]:
    """An answer that is nothing but GLM-4's calls: ``NAME``, and the arguments on the next line. ``again``:
    the token between several; ``close``: after the last, or the end."""
    calls: list[ToolCall] = []
    while True:
        yield from feed.space()
        name = yield from feed.word(names, ("\n",))
        calls.append(ToolCall(name, (yield from json_calls.arguments(feed))))
        yield from feed.space()
        if not feed.left or (yield from feed.literal(again, close)) == close:
            yield from feed.end()
            return calls


def deepseek(
    feed: Feed, names: AbstractSet[str], call: tuple[str, str], sep: str, close: str
) -> Reading[list[ToolCall]]:
    """After ``<｜tool▁calls▁begin｜>``. ``call``: around each. V3.1: ``NAME<｜tool▁sep｜>{…}``; before that
    ``function<｜tool▁sep｜>NAME`` and the JSON in a block of code."""
    calls: list[ToolCall] = []
    while True:
        yield from feed.space()
        if (yield from feed.literal(call[0], close, at_end=bool(calls))) == close:
            return calls
        name = yield from feed.word({*names, "function"}, (sep,))
        yield from feed.literal(sep)
        if name == "function" and not (yield from feed.is_next("{")):
            name = yield from feed.word(names, ("\n",))
            yield from feed.space()
            yield from feed.literal("```json")
            arguments = yield from json_calls.arguments(feed)
            yield from feed.space()
            yield from feed.literal("```")
        else:
            arguments = yield from json_calls.arguments(feed)
        if name not in names:
            raise Mismatch
        calls.append(ToolCall(name, arguments))
        yield from feed.space()
        yield from feed.literal(call[1], at_end=True)


def kimi(
    feed: Feed, names: AbstractSet[str], call: tuple[str, str], sep: str, close: str
) -> Reading[list[ToolCall]]:
    """After ``<|tool_calls_section_begin|>``. ``call``: around each ``functions.NAME:NUMBER``, ``sep`` and
    the arguments. What names it is the call's id, as which the template shows it again."""
    calls: list[ToolCall] = []
    while True:
        yield from feed.space()
        if (yield from feed.literal(call[0], close, at_end=bool(calls))) == close:
            return calls
        told = (yield from feed.until(sep)).strip()
        name = told.removeprefix("functions.").rpartition(":")[0]
        if name not in names:
            raise Mismatch
        calls.append(ToolCall(name, (yield from json_calls.arguments(feed)), told))
        yield from feed.space()
        yield from feed.literal(call[1], at_end=True)
