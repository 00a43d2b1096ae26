"""From a choice's tokens to its parts."""

from __future__ import annotations

from collections.abc import Sequence

from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...parsing.tool_calls import ToolCall, ToolCallReader
from ..requests.tools import Tools
from .parts import Call, Finish, Part, Text


class ChoiceReader:
    """``push`` what a generation makes, its result at last."""

    def __init__(self, tools: Tools, eos_ids: frozenset[int], *, with_tokens: bool) -> None:
        """``with_tokens``: parts tell of their tokens."""
        self._with_tokens = with_tokens
        self._eos_ids = eos_ids
        self._tokens: list[TokenEvent] = []  # of which no part has told yet
        self._calls = False
        self._reader: ToolCallReader | None = None
        if tools.definitions:
            self._reader = ToolCallReader(
                tools.names, forced=tools.forced is not None, parallel=tools.parallel
            )

    def push(self, item: TokenEvent | Generation) -> Sequence[Part]:
        if isinstance(item, Generation):
            return self._finish(item)
        if self._with_tokens and item.token not in self._eos_ids:  # such a one is no part of what is said
            self._tokens.append(item)
        if not item.text:
            return ()
        if self._reader is not None:
            return self._read(*self._reader.push(item.text))
        return (Text(item.text, self._take()),)

    def _finish(self, result: Generation) -> Sequence[Part]:
        parts = self._read(*self._reader.flush()) if self._reader is not None else []
        reason = result.finish_reason
        finish = Finish("tool_calls" if self._calls and reason != "length" else reason, result, self._take())
        return (*parts, finish)

    def _read(self, text: str, calls: Sequence[ToolCall]) -> list[Part]:
        parts: list[Part] = [Text(text, self._take())] if text else []
        if calls:
            self._calls = True
            parts += [Call(call) for call in calls]
        return parts

    def _take(self) -> tuple[TokenEvent, ...]:
        if not self._tokens:
            return ()
        tokens, self._tokens = self._tokens, []
        return tuple(tokens)
