"""Tool calls in what a model writes, while it writes it.

Two forms cover the templates in use: calls between ``<tool_call>`` and ``</tool_call>`` (Hermes, Qwen), text
around them or not; and an answer that is nothing but JSON, one call or a list of them (Llama 3, Mistral, and
what a guide makes). A call is ``{"name": ..., "arguments": {...}}``; Llama says ``parameters``.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

OPENS, CLOSES = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``arguments``: JSON text of an object."""

    name: str
    arguments: str


class ToolCallReader:
    """Text in, piece by piece; out comes what is no call, to be shown, and complete calls.

    ``names``: the tools there are; what calls any other is shown as text. ``forced``: the whole answer is one
    call, by its guide. ``parallel``: False lets the first call through alone.
    """

    def __init__(self, names: AbstractSet[str], *, forced: bool = False, parallel: bool = True) -> None:
        self._names = names
        self._parallel = parallel
        self._held = ""
        self._whole = True if forced else None  # whether the answer is JSON as a whole; None: unknown yet
        self._calls = 0
        self._shown = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        self._held += text
        if self._whole is None and (begin := self._held.lstrip()):
            self._whole = begin[0] in "{["
        if self._whole is not False:
            return "", []
        return self._tagged()

    def flush(self) -> tuple[str, list[ToolCall]]:
        """The answer is over."""
        held, self._held = self._held, ""
        if self._whole is not False:
            if calls := self._read(held.strip().removeprefix(MISTRAL)):
                return "", self._counted(calls)
        elif held.startswith(OPENS) and (calls := self._read(held[len(OPENS) :])):
            return "", self._counted(calls)  # the end came before the closing tag
        return held, []

    def _tagged(self) -> tuple[str, list[ToolCall]]:
        begin = self._held.lstrip()
        if self._calls or (not self._shown and (begin.startswith(OPENS) or OPENS.startswith(begin))):
            self._held = begin  # space before and between calls is no text of the answer
        shown, calls = self._split()
        self._shown = self._shown or bool(shown)
        return shown, calls

    def _split(self) -> tuple[str, list[ToolCall]]:
        shown = ""
        calls: list[ToolCall] = []
        while True:
            start = self._held.find(OPENS)
            if start < 0:
                keep = _overlap(self._held, OPENS)
                shown += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return shown, calls
            end = self._held.find(CLOSES, start)
            shown += self._held[:start]
            self._held = self._held[start:]
            if end < 0:
                return shown, calls
            end -= start
            inside, self._held = self._held[len(OPENS) : end], self._held[end + len(CLOSES) :]
            found = self._read(inside)
            if found:
                calls += self._counted(found)
                self._held = self._held.lstrip()
            else:
                shown += OPENS + inside + CLOSES

    def _read(self, text: str) -> list[ToolCall]:
        """The calls that ``text`` is; none where it is anything else."""
        try:
            value = json.loads(text)
            calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call is not None] if all(calls) else []

    def _call(self, value: Any) -> ToolCall | None:
        """ValueError and RecursionError for arguments that are no JSON."""
        if not isinstance(value, dict):
            return None
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))

    def _counted(self, calls: list[ToolCall]) -> list[ToolCall]:
        if not self._parallel:
            calls = calls[: max(0, 1 - self._calls)]
        self._calls += len(calls)
        return calls


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
