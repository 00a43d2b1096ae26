"""Calls as Gemma 4 writes them: ``call:NAME{KEY:VALUE,…}``, texts between control tokens, lists and objects
as in JSON, but for their keys, which have no quotes."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from . import literals
from .feed import Feed, Reading
from .json_text import written
from .pieces import ToolCall


def call(feed: Feed, names: AbstractSet[str], quote: str, close: str) -> Reading[list[ToolCall]]:
    """After ``<|tool_call>``. ``quote``: the token on both sides of a text."""
    yield from feed.literal("call:")
    name = yield from feed.word(names, ("{",))
    arguments = yield from literals.value(feed, (quote,))
    yield from feed.space()
    yield from feed.literal(close, at_end=True)
    return [ToolCall(name, written(arguments))]
