"""What a model writes, read while it writes it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from .feed import BEGIN, Feed, Mismatch, Reading, without_controls
from .forms import Form, Read
from .pieces import Piece, Thoughts, ToolCall, Words
from .typed import KnownTools

MAX_SPACE = 256
"""At most this much space is held back to see whether thoughts end after it."""


class Reader(ABC):
    """``push`` text, control tokens in it as ``control`` has them; it gives what is certain by then.
    ``flush`` at the end gives the rest. How the text was cut makes no difference to all of it together.

    ``call_id``: of a call that has none, by its name and its number. ``parallel``: False lets the first call
    through alone.
    """

    def __init__(self, call_id: Callable[[str, int], str], *, parallel: bool) -> None:
        self._call_id = call_id
        self._parallel = parallel
        self._calls = 0
        self._feed = Feed()
        self._out: list[Piece] = []
        self._reading = self._read()

    def push(self, text: str) -> list[Piece]:
        self._feed.push(text)
        return self._go_on()

    def flush(self) -> list[Piece]:
        self._feed.is_over = True
        return self._go_on()

    @abstractmethod
    def _read(self) -> Reading[None]:
        """Read the feed to its end."""

    def _go_on(self) -> list[Piece]:
        for _ in self._reading:
            break
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        if BEGIN in text:
            text = without_controls(text)
        if text:
            self._out.append(Words(text))

    def _think(self, text: str) -> None:
        if text := without_controls(text):
            self._out.append(Thoughts(text))

    def _called(self, calls: Iterable[ToolCall]) -> None:
        for call in calls:
            if self._parallel or not self._calls:
                self._out.append(replace(call, id=call.id or self._call_id(call.name, self._calls)))
            self._calls += 1

    def _thoughts(self, end: re.Pattern[str]) -> Reading[None]:
        """Thoughts, up to what ``end`` (of ``ending``) finds; an end is taken. Space around them is none of
        them."""
        feed = self._feed
        yield from feed.space()
        while True:
            feed.forget()
            place, found = feed.search(end)
            self._think(feed.take(place))
            if found and found["end"] is not None:
                feed.take(len(found[0]))
                return
            if found and found["before"] is not None:
                return
            if feed.is_over:
                self._think(feed.take(feed.left).rstrip())
                return
            yield


def ending(ends: Iterable[str], before: Iterable[str] = ()) -> re.Pattern[str]:
    """What ends thoughts, space before it included: one of ``ends``, or what comes ``before`` something else;
    or the beginning of one at the text's end, or nothing there."""
    ends, before = list(ends), list(before)
    begun = [word[:size] for word in (*ends, *before) for size in range(len(word) - 1, 0, -1)]
    found = rf"(?P<end>{_any(ends)})|(?P<before>(?={_any(before)}))|(?:{_any(['', *begun])})\Z"
    return re.compile(rf"\s{{0,{MAX_SPACE}}}(?:{found})")


def opening(words: Iterable[str]) -> re.Pattern[str]:
    """One of the words, or the beginning of one at the text's end."""
    words = list(words)
    begun = (word[:size] for word in words for size in range(len(word) - 1, 0, -1))
    return re.compile(rf"{_any(words)}|(?:{_any(dict.fromkeys(begun))})\Z")


def _any(words: Iterable[str]) -> str:
    """Longer ones first."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"


class AnswerReader(Reader):
    """Reads thoughts at the beginning of an answer, calls between tags, and answers that are nothing but
    calls.

    ``thinks``: the tags around thoughts. ``thinking``: the end of what the prompt has opened, or "".
    ``wholes``: forms of answers that are nothing but calls. ``tools``: calls of any other are shown as text.
    ``forced``: the answer is one call by its guide. Nothing is held back that can no longer be a call.
    """

    def __init__(
        self,
        call_id: Callable[[str, int], str],
        *,
        thinks: Mapping[str, str],
        thinking: str,
        forms: Iterable[Form],
        wholes: Iterable[Read],
        tools: KnownTools,
        forced: bool,
        parallel: bool,
    ) -> None:
        super().__init__(call_id, parallel=parallel)
        self._thinks = thinks
        self._thinking = thinking
        self._forms = {form.opens: form for form in forms} if tools.names else {}
        # A text may speak of <think>; it cannot write a control token.
        self._opens = [*self._forms, *(opens for opens in thinks if opens.startswith(BEGIN))]
        self._wholes = wholes
        self._tools = tools
        self._forced = forced

    def _read(self) -> Reading[None]:
        thought = bool(self._thinking)
        if thought:
            yield from self._thoughts(self._ending(self._thinking))
        else:
            thought = yield from self._begin()
        if thought:
            yield from self._feed.space()
        if self._forced or self._tools.names:
            yield from self._whole()
        yield from self._rest()

    def _ending(self, close: str) -> re.Pattern[str]:
        """Calls that begin with a control token end thoughts, too."""
        return ending([close], [opens for opens in self._forms if opens.startswith(BEGIN)])

    def _begin(self) -> Reading[bool]:
        """Whether thoughts came, which then are read."""
        start = self._feed.at
        try:
            yield from self._feed.space()
            opened = yield from self._feed.literal(*self._thinks)
        except Mismatch:
            self._feed.at = start
            return False
        yield from self._thoughts(self._ending(self._thinks[opened]))
        return True

    def _whole(self) -> Reading[None]:
        """An answer that is nothing but calls; nothing is read where it is not."""
        start = self._feed.at
        for read in self._wholes:
            try:
                self._called((yield from read(self._feed, self._tools)))
                return
            except Mismatch:
                self._feed.at = start
        if self._forced:
            while not self._feed.is_over:
                yield

    def _rest(self) -> Reading[None]:
        """Text, with calls in it. Space before the first of them, and after each, is no text."""
        feed = self._feed
        start = feed.at
        yield from feed.space()
        if not (yield from self._block(start)):
            feed.at = start
        opens = opening(self._opens)
        while True:
            feed.forget()
            place, found = feed.search(opens)
            self._say(feed.take(place))
            if found and not (yield from self._block(feed.at)):
                self._say(feed.take(1))  # it only looked like a beginning
            elif not found and feed.is_over:
                return
            elif not found:
                yield

    def _block(self, start: int) -> Reading[bool]:
        """Whether something begins here that is no text, or seems to. ``start``: of what is text, if it only
        seems to."""
        feed = self._feed
        try:
            opened = yield from feed.literal(*self._opens)
        except Mismatch:
            return False
        try:
            if opened in self._forms:
                self._called((yield from self._forms[opened].read(feed, self._tools)))
            else:
                yield from self._thoughts(self._ending(self._thinks[opened]))
            yield from feed.space()
        except Mismatch:
            self._say(feed.read_from(start))
        return True
