"""What gpt-oss writes: messages, each with a header that names its channel and who it is for (OpenAI's
harmony)."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import json_calls
from .feed import BEGIN, END, Mismatch, Reading, control
from .pieces import ToolCall
from .reader import Reader, ending
from .typed import KnownTools

CHANNEL, MESSAGE = control("<|channel|>"), control("<|message|>")
_ENDS = [control(word) for word in ("<|end|>", "<|call|>", "<|return|>")]
_CONTROL = re.compile(f"{BEGIN}[^{END}]*{END}")
_THOUGHT = ending(_ENDS, [control("<|start|>"), CHANNEL])
_FUNCTION = "functions."
MAX_HEADER = 1024
"""Characters of a header; some ten are usual."""


class ChannelReader(Reader):
    """Messages of the channel analysis are thoughts, those to functions are calls, all others are text.

    ``continues``: the answer goes on with a message that the prompt began.
    """

    def __init__(
        self, call_id: Callable[[str, int], str], *, tools: KnownTools, continues: bool, parallel: bool
    ) -> None:
        super().__init__(call_id, parallel=parallel)
        self._tools = tools
        self._continues = continues

    def _read(self) -> Reading[None]:
        if self._continues or not (yield from self._feed.is_next(CHANNEL, "to=")):
            yield from self._words()
        while True:
            self._feed.forget()
            try:
                header = yield from self._header()
            except Mismatch:
                if self._feed.is_over and self._feed.left <= MAX_HEADER:
                    self._say(self._feed.take(self._feed.left))
                    return
                place, found = self._feed.search(_CONTROL)
                self._feed.take(len(found[0]) if found and not place else 0)
                yield from self._words()
            else:
                yield from self._message(header.split())

    def _header(self) -> Reading[str]:
        """Up to where the message begins, without control tokens. Raises Mismatch at the end, and for what is
        too long."""
        while (found := self._feed.find(MESSAGE)) < 0:
            if self._feed.left > MAX_HEADER:
                raise Mismatch
            yield from self._feed.more()
        if found > MAX_HEADER:
            raise Mismatch
        return _CONTROL.sub(" ", self._feed.take(found + len(MESSAGE)))

    def _message(self, header: list[str]) -> Reading[None]:
        to = next((word[3:] for word in header if word.startswith("to=")), "")
        name = to.removeprefix(_FUNCTION)
        if to.startswith(_FUNCTION) and name in self._tools.names:
            yield from self._call(name)
        elif "analysis" in header:
            yield from self._thoughts(_THOUGHT)
        else:
            yield from self._words()

    def _call(self, name: str) -> Reading[None]:
        start = self._feed.at
        try:
            arguments = yield from json_calls.arguments(self._feed)
        except Mismatch:
            self._say(self._feed.read_from(start))
            yield from self._words()
        else:
            self._called([ToolCall(name, arguments)])

    def _words(self) -> Reading[None]:
        """Text up to a control token, which is taken if it is an end, or to the end of all."""
        feed = self._feed
        while True:
            feed.forget()
            place, found = feed.search(_CONTROL)
            self._say(feed.take(place))
            if found:
                feed.take(len(found[0]) if found[0] in _ENDS else 0)
                return
            if feed.is_over:
                return
            yield
