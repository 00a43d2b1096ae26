"""Values written as in JSON, but with other quotes, keys that may have none, and Python's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .feed import Feed, Mismatch, Reading, without_controls
from .json_text import loaded

MAX_DEPTH = 64
"""Objects and lists in each other."""
MAX_SCALAR = 1024
"""A number or a word has at most this many characters: it is looked at anew whenever some come."""
PYTHON_QUOTES = ("'", '"')
WORDS = {"true": True, "false": False, "null": None, "none": None}
"""Words for values, in any case: JSON's, and Python's, which many models write."""
_END = re.compile(r"[,)}\]]")
_QUOTED = {quote: re.compile(rf"\\(?:.|\Z)|{quote}", re.DOTALL) for quote in PYTHON_QUOTES}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(\n)|([\\'\"nrtbf]))")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def value(feed: Feed, quotes: Sequence[str], depth: int = MAX_DEPTH) -> Reading[Any]:
    """The value that follows. ``quotes``: what stands on both sides of a text: ``PYTHON_QUOTES``, or a token
    that no text has, in which backslashes are themselves."""
    if not depth:
        raise Mismatch
    yield from feed.space()
    if (yield from feed.is_next(*quotes)):
        return (yield from _text(feed, quotes))
    if (yield from feed.is_next("{")):
        return dict((yield from _items(feed, quotes, depth, ("{", "}"))))
    if (yield from feed.is_next("[")):
        return [item for _, item in (yield from _items(feed, quotes, depth, ("[", "]")))]
    return (yield from _scalar(feed))


def read_value(text: str) -> Any:
    """The value that ``text`` is, as Python writes it. Raises Mismatch where it is none."""
    feed = Feed()
    feed.push(text)
    feed.is_over = True
    reading = value(feed, PYTHON_QUOTES)
    try:
        next(reading)
    except StopIteration as done:
        if feed.left:
            raise Mismatch from None
        return done.value
    raise Mismatch


def _items(
    feed: Feed, quotes: Sequence[str], depth: int, around: tuple[str, str]
) -> Reading[list[tuple[str, Any]]]:
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
        key = (yield from _key(feed, quotes)) if opens == "{" else ""
        items.append((key, (yield from value(feed, quotes, depth - 1))))
        yield from feed.space()
        if (yield from feed.literal(",", closes)) == closes:
            return items


def _key(feed: Feed, quotes: Sequence[str]) -> Reading[str]:
    if not (yield from feed.is_next(*quotes)):
        return (yield from feed.until(":")).strip()
    key = yield from _text(feed, quotes)
    yield from feed.space()
    yield from feed.literal(":")
    return key


def _text(feed: Feed, quotes: Sequence[str]) -> Reading[str]:
    quote = yield from feed.literal(*quotes)
    if quote not in _QUOTED:
        return (yield from feed.until(quote))
    start = feed.at
    while True:
        place, found = feed.search(_QUOTED[quote])
        feed.take(place)
        if found is None or found[0] == "\\":
            yield from feed.more()
        elif found[0] == quote:
            text = feed.read_from(start)
            feed.take(1)
            return _ESCAPE.sub(_unescaped, without_controls(text))
        else:
            feed.take(2)


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    if code:
        return chr(int(code, 16))
    return "" if escape[3] else _ESCAPED.get(escape[4], escape[4])


def _scalar(feed: Feed) -> Reading[Any]:
    while True:
        place, found = feed.search_within(MAX_SCALAR, _END)
        if found or feed.is_over:
            break
        yield from feed.more()
    word = feed.take(place).strip()
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    try:
        return loaded(word)
    except ValueError:
        raise Mismatch from None
