"""Calls as Gemma 4 writes them: ``call:NAME{KEY:VALUE,…}``, texts between control tokens, lists and objects
as in JSON, but for their keys, which have no quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from typing import Any

from .feed import Feed, Mismatch, Reading
from .json_text import loaded
from .pieces import ToolCall

MAX_DEPTH = 64
"""Objects and lists in each other."""
_END = re.compile(r"[,}\]]")


def call(feed: Feed, names: AbstractSet[str], quote: str, close: str) -> Reading[list[ToolCall]]:
    """After ``<|tool_call>``. ``quote``: the token on both sides of a text."""
    yield from feed.literal("call:")
    name = yield from feed.word(names, ("{",))
    arguments = yield from _value(feed, quote, MAX_DEPTH)
    yield from feed.space()
    yield from feed.literal(close, at_end=True)
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False))]


def _value(feed: Feed, quote: str, depth: int) -> Reading[Any]:
    if not depth:
        raise Mismatch
    yield from feed.space()
    if (yield from feed.is_next(quote)):
        yield from feed.literal(quote)
        return (yield from feed.until(quote))
    if (yield from feed.is_next("{")):
        return dict((yield from _items(feed, quote, depth, ("{", "}"))))
    if (yield from feed.is_next("[")):
        return [value for _, value in (yield from _items(feed, quote, depth, ("[", "]")))]
    return (yield from _scalar(feed))


def _items(feed: Feed, quote: str, depth: int, around: tuple[str, str]) -> Reading[list[tuple[str, Any]]]:
    """What is in an object, or in a list, where it has no keys."""
    opens, closes = around
    yield from feed.literal(opens)
    items: list[tuple[str, Any]] = []
    yield from feed.space()
    if (yield from feed.is_next(closes)):
        yield from feed.literal(closes)
        return items
    while True:
        yield from feed.space()
        key = (yield from feed.until(":")).strip() if opens == "{" else ""
        items.append((key, (yield from _value(feed, quote, depth - 1))))
        yield from feed.space()
        if (yield from feed.literal(",", closes)) == closes:
            return items


def _scalar(feed: Feed) -> Reading[Any]:
    while True:
        place, found = feed.search(_END)
        if found:
            break
        yield from feed.more()
    try:
        return loaded(feed.take(place))
    except ValueError:
        raise Mismatch from None
