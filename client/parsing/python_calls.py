"""Calls as Python writes them: ``NAME(KEY=VALUE, …)``. The values may be JSON's, too."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Any

from . import json_calls, literals
from .feed import Feed, Mismatch, Reading
from .json_text import written
from .pieces import ToolCall

MAX_KEY = 256
"""Characters of an argument's name."""
_NO_KEY = re.compile(r"\W")


def lines(feed: Feed, names: AbstractSet[str], close: str) -> Reading[list[ToolCall]]:
    """Olmo 3's, after ``<function_calls>``: each on a line of its own."""
    calls = [(yield from _call(feed, names))]
    while True:
        if (yield from feed.is_next(close)):
            yield from feed.space()
            yield from feed.literal(close, at_end=True)
            return calls
        calls.append((yield from _call(feed, names)))


def tagged(feed: Feed, names: AbstractSet[str], close: str) -> Reading[list[ToolCall]]:
    """Llama 4's, after ``<|python_start|>``: as ``listed``, or in JSON."""
    start = feed.at
    if not (yield from feed.is_next("{")):
        yield from feed.space()
        yield from feed.literal("[")
        as_json = yield from feed.is_next("{")
        feed.at = start
        if not as_json:
            calls = yield from listed(feed, names)
            yield from feed.space()
            yield from feed.literal(close, at_end=True)
            return calls
    return (yield from json_calls.tagged(feed, names, close))


def whole(feed: Feed, names: AbstractSet[str]) -> Reading[list[ToolCall]]:
    """An answer that is nothing but a list of calls, up to its end."""
    calls = yield from listed(feed, names)
    yield from feed.end()
    return calls


def listed(feed: Feed, names: AbstractSet[str]) -> Reading[list[ToolCall]]:
    """``[NAME(…), NAME(…)]``."""
    yield from feed.space()
    yield from feed.literal("[")
    calls: list[ToolCall] = []
    while True:
        calls.append((yield from _call(feed, names)))
        yield from feed.space()
        if (yield from feed.literal(",", "]")) == "]":
            return calls


def _call(feed: Feed, names: AbstractSet[str]) -> Reading[ToolCall]:
    yield from feed.space()
    name = yield from feed.word(names, ("(",))
    yield from feed.literal("(")
    values: dict[str, Any] = {}
    if (yield from feed.is_next(")")):
        yield from feed.space()
        yield from feed.literal(")")
        return _made(name, values)
    while True:
        key = yield from _key(feed)
        values[key] = yield from literals.value(feed, literals.PYTHON_QUOTES)
        yield from feed.space()
        if (yield from feed.literal(",", ")")) == ")":
            return _made(name, values)


def _key(feed: Feed) -> Reading[str]:
    yield from feed.space()
    while True:
        place, found = feed.search_within(MAX_KEY, _NO_KEY)
        if found and not place:
            raise Mismatch
        if found:
            break
        yield from feed.more()
    key = feed.take(place)
    yield from feed.space()
    yield from feed.literal("=")
    return key


def _made(name: str, values: dict[str, Any]) -> ToolCall:
    return ToolCall(name, written(values))
