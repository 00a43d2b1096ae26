"""Text that comes in pieces, read by generators: they yield where they need more of it.

So a grammar is written from its beginning to its end, and still reads one token after another. Whatever
cannot be what it expects raises Mismatch, as soon as that is certain.

Control tokens are in the text too, each between two characters that no text of a model has, since they are
not valid Unicode: a token that is a control token and a text that spells one are never the same.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

from .json_text import JsonText

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Yields where it needs more text; T at last."""

BEGIN, END = "\ud800", "\ud801"
"""Around a control token."""
_CONTROL = re.compile(f"{BEGIN}[^{END}]*{END}?")


class Mismatch(Exception):  # noqa: N818 - it is no error
    """The text is not what was expected."""


def control(spelling: str) -> str:
    """A control token as a feed has it."""
    return f"{BEGIN}{spelling}{END}"


def without_controls(text: str) -> str:
    return _CONTROL.sub("", text) if BEGIN in text else text


class Spelling:
    """Texts as a feed has them, of a model with the control tokens ``special``."""

    def __init__(self, special: Iterable[str]) -> None:
        self._special = frozenset(special)

    def __call__(self, text: str) -> str:
        return control(text) if text in self._special else text


class Feed:
    """``at``: what is before is read. ``is_over``: no more text will come."""

    def __init__(self) -> None:
        self.at = 0
        self.is_over = False
        self._text = ""

    def push(self, text: str) -> None:
        self._text += text

    def forget(self) -> None:
        """What is read already is not needed any more."""
        if self.at:
            self._text = self._text[self.at :]
            self.at = 0

    @property
    def rest(self) -> str:
        return self._text[self.at :]

    def read_from(self, start: int) -> str:
        """What was read since ``at`` was ``start``."""
        return self._text[start : self.at]

    def take(self, count: int) -> str:
        """The next ``count`` characters, which are here."""
        self.at += count
        return self._text[self.at - count : self.at]

    def more(self) -> Reading[None]:
        """Wait for text. Raises Mismatch at its end."""
        if self.is_over:
            raise Mismatch
        yield

    def space(self) -> Reading[None]:
        """Pass over space, up to what is none or to the end."""
        while True:
            rest = self.rest
            self.at += len(rest) - len(rest.lstrip())
            if self.at < len(self._text) or self.is_over:
                return
            yield

    def end(self) -> Reading[None]:
        """Only space may follow, and nothing after it."""
        yield from self.space()
        if self.at < len(self._text):
            raise Mismatch

    def literal(self, *choices: str, at_end: bool = False) -> Reading[str]:
        """The one of ``choices`` that follows, which is taken. ``at_end``: the text may be over instead, or
        in the middle of one; then it is the last."""
        while True:
            rest = self.rest
            for choice in choices:
                if rest.startswith(choice):
                    self.at += len(choice)
                    return choice
            if not any(choice.startswith(rest) for choice in choices):
                raise Mismatch
            if self.is_over and at_end:
                self.at += len(rest)
                return choices[-1]
            yield from self.more()

    def word(self, words: Iterable[str], ends: Iterable[str]) -> Reading[str]:
        """The one of ``words`` that follows, up to the one of ``ends`` that must follow it."""
        ends = tuple(ends)
        found = yield from self.literal(*(word + end for word in words for end in ends))
        end = max((end for end in ends if found.endswith(end)), key=len)
        self.at -= len(end)
        return found.removesuffix(end)

    def until(self, end: str, *, then: tuple[str, ...] = ()) -> Reading[str]:
        """The text before ``end``, which is taken too. An ``end`` is part of the text if neither one of
        ``then`` follows it, space before that or not, nor the end of all."""
        start = self.at
        while True:
            found = self._text.find(end, self.at)
            while found < 0:
                seen = max(self.at, len(self._text) - len(end) + 1)
                yield from self.more()
                found = self._text.find(end, seen)
            self.at = found + len(end)
            if not then or (yield from self.is_next(*then)):
                return without_controls(self._text[start:found])

    def is_next(self, *choices: str) -> Reading[bool]:
        """Whether one of them follows, space before it or not, or the end. Nothing is taken."""
        while True:
            rest = self.rest.lstrip()
            if rest.startswith(choices):
                return True
            if rest and not any(choice.startswith(rest) for choice in choices):
                return False
            if self.is_over:
                return True
            yield

    def json(self, text: JsonText) -> Reading[str]:
        """The JSON that follows, which ``text`` expects."""
        start = self.at
        while True:
            for character in self.rest:
                if character == BEGIN or not text.push(character):
                    raise Mismatch
                self.at += 1
                if text.is_complete:
                    return self.read_from(start)
            yield from self.more()
