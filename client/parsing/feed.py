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
_SPACE = re.compile(r"\s*")
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
        self._absent: set[str] = set()  # what an ``until`` has looked for in vain, up to the end of all

    def push(self, text: str) -> None:
        self._text += text

    def forget(self) -> None:
        """What is read already is not needed any more."""
        if 2 * self.at > len(self._text):  # else cutting it off would take longer than reading it did
            self._text = self._text[self.at :]
            self.at = 0

    @property
    def left(self) -> int:
        """Characters that are here and not read."""
        return len(self._text) - self.at

    def find(self, text: str) -> int:
        """How many characters are before ``text``; -1 where it is not here."""
        found = self._text.find(text, self.at)
        return found - self.at if found >= 0 else -1

    def search(self, expression: re.Pattern[str]) -> tuple[int, re.Match[str] | None]:
        """How many characters are before what ``expression`` finds, or are left; and what it found."""
        found = expression.search(self._text, self.at)
        return (self.left, None) if found is None else (found.start() - self.at, found)

    def search_within(self, most: int, expression: re.Pattern[str]) -> tuple[int, re.Match[str] | None]:
        """As ``search``, of something before which at most ``most`` characters may stand. Raises Mismatch
        where there are more; no others are looked at, since much text may be held back."""
        found = expression.search(self._text, self.at, self.at + most + 1)
        if found is None and self.left > most:
            raise Mismatch
        return (self.left, None) if found is None else (found.start() - self.at, found)

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
            self.at = self._after_space()
            if self.left or self.is_over:
                return
            yield

    def end(self) -> Reading[None]:
        """Only space may follow, and nothing after it."""
        yield from self.space()
        if self.left:
            raise Mismatch

    def literal(self, *choices: str, at_end: bool = False) -> Reading[str]:
        """The one of ``choices`` that follows, which is taken. ``at_end``: the text may be over instead, or
        in the middle of one; then it is the last."""
        while True:
            for choice in choices:
                if self._text.startswith(choice, self.at):
                    self.at += len(choice)
                    return choice
            if not self._is_begun(choices, self.at):
                raise Mismatch
            if self.is_over and at_end:
                self.at = len(self._text)
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
            found = -1 if end in self._absent else self._text.find(end, self.at)
            while found < 0:
                if self.is_over:
                    self._absent.add(end)
                seen = max(self.at, len(self._text) - len(end) + 1)
                yield from self.more()
                found = self._text.find(end, seen)
            self.at = found + len(end)
            if not then or (yield from self.is_next(*then)):
                return without_controls(self._text[start:found])

    def is_next(self, *choices: str) -> Reading[bool]:
        """Whether one of them follows, space before it or not, or the end. Nothing is taken."""
        while True:
            at = self._after_space()
            if self._text.startswith(choices, at):
                return True
            if not self._is_begun(choices, at):
                return False
            if self.is_over:
                return True
            yield

    def _after_space(self) -> int:
        found = _SPACE.match(self._text, self.at)
        return found.end() if found else self.at

    def _is_begun(self, choices: Iterable[str], at: int) -> bool:
        """Whether the text from there on may become one of ``choices``."""
        if len(self._text) - at >= max(map(len, choices), default=0):
            return False
        rest = self._text[at:]
        return any(choice.startswith(rest) for choice in choices)

    def json(self, text: JsonText) -> Reading[str]:
        """The JSON that follows, which ``text`` expects."""
        start = self.at
        while True:
            while self.left:
                character = self._text[self.at]
                if character == BEGIN or not text.push(character):
                    raise Mismatch
                self.at += 1
                if text.is_complete:
                    return self.read_from(start)
            yield from self.more()
