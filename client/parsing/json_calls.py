"""Calls written as JSON: one object or a list of them, between tags or as the whole answer."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from .feed import Feed, Mismatch, Reading
from .json_text import ARGUMENTS, KEYS, NAMES, JsonText, loaded, written
from .pieces import ToolCall


def tagged(feed: Feed, names: AbstractSet[str], close: str) -> Reading[list[ToolCall]]:
    """What follows an opening tag; the end of all may take the closing one's place."""
    calls = yield from listed(feed, names)
    yield from feed.space()
    yield from feed.literal(close, at_end=True)
    return calls


def whole(feed: Feed, names: AbstractSet[str]) -> Reading[list[ToolCall]]:
    """An answer that is nothing but calls, up to its end. Llama puts semicolons or line
    breaks between several."""
    calls = yield from listed(feed, names)
    while True:
        yield from feed.space()
        if not feed.left:
            return calls
        if (yield from feed.is_next(";")):
            yield from feed.literal(";")
        calls += yield from listed(feed, names)


def arguments(feed: Feed) -> Reading[str]:
    """The arguments of a call that is named before them."""
    text = yield from feed.json(JsonText("object"))
    return written(_loaded(text))


def calls_of(text: str, names: AbstractSet[str]) -> list[ToolCall]:
    """The calls that ``text`` is. Raises Mismatch where it is anything else."""
    value = _loaded(text)
    return [_call(item, names) for item in (value if isinstance(value, list) else [value])]


def listed(feed: Feed, names: AbstractSet[str]) -> Reading[list[ToolCall]]:
    """One call, or a list of them."""
    return calls_of((yield from feed.json(JsonText("calls", names))), names)


def _call(value: Any, names: AbstractSet[str]) -> ToolCall:
    if not isinstance(value, dict) or value.keys() - KEYS:
        raise Mismatch
    name = next((value[key] for key in NAMES if key in value), None)
    given = [_object(value[key]) for key in ARGUMENTS if key in value]
    if not isinstance(name, str) or name not in names:
        raise Mismatch
    return ToolCall(name, written(given[-1] if given else {}))


def _object(arguments: Any) -> Any:
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if not isinstance(arguments, dict):
        raise Mismatch
    return arguments


def _loaded(text: str) -> Any:
    try:
        return loaded(text)
    except ValueError:
        raise Mismatch from None
