"""Control tokens spelled out in what people wrote, told apart from those that a chat template writes.

A template makes one text of a chat, and there every ``<|im_end|>`` ends a message. So before it renders, each
such token in the chat is put between two characters that occur nowhere in it; what stands between them
afterwards is text. Templates still find the tokens that they look for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...swarm.errors import UsageError

_PRIVATE = range(0xF8FF, 0xDFFF, -1)
"""Characters without a meaning. A chat or template that gives one a meaning keeps it."""
_OWN_WORDS = ("content", "reasoning_content", "reasoning", "thinking")
"""The fields of an assistant's message that the model itself has written."""


class ControlTokens:
    """``special`` steer the model and are left out of answers; ``shown`` steer it too and are shown, such as
    ``<think>``. In what an assistant says those are the model's own, and remain what they are."""

    def __init__(self, special: Iterable[str], shown: Iterable[str] = ()) -> None:
        hidden = set(special) - {""}
        self._hidden = _any_of(hidden)
        self._all = _any_of(hidden | (set(shown) - {""}))

    def mark(
        self, chat: Sequence[Mapping[str, Any]], more: Mapping[str, Any], source: str
    ) -> MarkedChat | None:
        """``chat`` and ``more``, all else that the template ``source`` gets, are plain JSON. None where there
        is nothing to mark."""
        if not any(self._all.search(text) for text in _texts([chat, more])):
            return None
        begin, end = tuple(free_characters(2, source, [chat, more]))

        def marked(value: Any, tokens: re.Pattern[str] = self._all) -> Any:
            return _changed(value, lambda text: tokens.sub(lambda found: begin + found[0] + end, text))

        messages = []
        for message in chat:
            own = _OWN_WORDS if message.get("role") == "assistant" else ()
            messages.append(
                {
                    marked(key): marked(value, self._hidden if key in own else self._all)
                    for key, value in message.items()
                }
            )
        return MarkedChat(messages, marked(more), (begin, end), self._all)


def free_characters(count: int, source: str, values: Any) -> str:
    """``count`` characters without a meaning that are neither in ``source`` nor in any text of ``values``."""
    used = set(source).union(*_texts(values))
    free = [chr(code) for code in _PRIVATE if chr(code) not in used]
    if len(free) < count:
        raise UsageError("the chat uses all private characters of Unicode", hint="Leave some of them out.")
    return "".join(free[:count])


class MarkedChat:
    """``messages`` and ``more`` are what the template gets."""

    def __init__(
        self, messages: list[Any], more: dict[str, Any], marks: tuple[str, str], tokens: re.Pattern[str]
    ) -> None:
        self.messages = messages
        self.more = more
        self._tokens = tokens
        begin, end = (f"{mark}|{re.escape(json.dumps(mark)[1:-1])}" for mark in marks)
        self._marks = re.compile(f"(?P<begin>{begin})|{end}")

    def found(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """What the template wrote, without marks, and the ranges (start, end) of it that are text."""
        pieces: list[str] = []
        literal: list[tuple[int, int]] = []
        length = at = 0
        begun = False  # of a token that the template has cut, one mark may be left
        for mark in self._marks.finditer(text):
            piece = text[at : mark.start()]
            if begun and not mark["begin"] and self._is_token(piece):
                literal.append((length, length + len(piece)))
            pieces.append(piece)
            length += len(piece)
            at, begun = mark.end(), bool(mark["begin"])
        return "".join([*pieces, text[at:]]), literal

    def _is_token(self, piece: str) -> bool:
        if self._tokens.fullmatch(piece):
            return True
        try:
            return bool(self._tokens.fullmatch(json.loads(f'"{piece}"')))  # as a template writes it into JSON
        except ValueError:
            return False


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """An expression for the tokens; of two that begin alike it takes the longer. Vocabularies have up to some
    thousand, so they are tried only where the first two characters fit."""
    by_begin: dict[str, list[str]] = {}
    for token in sorted(tokens, key=len, reverse=True):
        by_begin.setdefault(token[:2], []).append(re.escape(token[2:]))
    groups = sorted(by_begin.items(), key=lambda group: len(group[0]), reverse=True)
    return re.compile("|".join(f"{re.escape(begin)}(?:{'|'.join(ends)})" for begin, ends in groups) or "(?!)")


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    return [_changed(item, change) for item in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterable[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
