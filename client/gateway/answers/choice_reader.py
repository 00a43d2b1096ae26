"""From a choice's tokens to its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...parsing.pieces import Piece, Thoughts, ToolCall, Words
from ...parsing.reader import Reader
from ...reply import with_controls
from .parts import Call, Finish, Part, Text, Thinking


class ChoiceReader:
    """``push`` what a generation makes, its result at last."""

    def __init__(self, reader: Reader | None, eos_ids: frozenset[int], *, with_tokens: bool) -> None:
        """``reader``: None where all is text. ``with_tokens``: parts tell of their tokens."""
        self._reader = reader
        self._with_tokens = with_tokens
        self._eos_ids = eos_ids
        self._tokens: list[TokenEvent] = []  # of which no part has told yet
        self._calls = False

    def push(self, item: TokenEvent | Generation) -> Sequence[Part]:
        if isinstance(item, Generation):
            return self._finish(item)
        if self._with_tokens and item.token not in self._eos_ids:  # such a one is no part of what is said
            self._tokens.append(item)
        if self._reader is not None:
            text = with_controls(item)
            return self._parts(self._reader.push(text)) if text else ()
        if not item.text:
            return ()
        return (Text(item.text, self._take()) if self._tokens else Text(item.text),)

    def _finish(self, result: Generation) -> Sequence[Part]:
        parts = self._parts(self._reader.flush()) if self._reader is not None else []
        reason = result.finish_reason
        finish = Finish("tool_calls" if self._calls and reason != "length" else reason, result, self._take())
        return (*parts, finish)

    def _parts(self, pieces: Iterable[Piece]) -> list[Part]:
        parts: list[Part] = []
        for piece in pieces:
            match piece:
                case Words(text):
                    parts.append(Text(text, self._take()))
                case Thoughts(text):
                    parts.append(Thinking(text, self._take()))
                case ToolCall():
                    self._calls = True
                    parts.append(Call(piece))
        return parts

    def _take(self) -> tuple[TokenEvent, ...]:
        if not self._tokens:
            return ()
        tokens, self._tokens = self._tokens, []
        return tuple(tokens)
