"""Tool calls in what a model writes, while it writes it.

Two forms cover the templates in use: calls between ``<tool_call>`` and ``</tool_call>`` (Hermes, Qwen), text
around them or not; and an answer that is nothing but JSON, one call or a list of them (Llama 3, Mistral, and
what a guide makes). See ``call_text`` for what a call is.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NoReturn

from .call_text import KEYS, CallText

OPENS, CLOSES = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``arguments``: JSON text of an object."""

    name: str
    arguments: str


class ToolCallReader:
    """Takes text piece by piece; gives the text to show, and complete calls.

    ``names``: the tools; a call of any other is shown as text. ``forced``: the whole answer is one call, by
    its guide. ``parallel``: False lets the first call through alone. Nothing is held back that can no longer
    be a call.
    """

    def __init__(self, names: AbstractSet[str], *, forced: bool = False, parallel: bool = True) -> None:
        self._names = names
        self._forced = forced
        self._parallel = parallel
        self._held = ""
        self._whole: CallText | None = CallText(names)  # of the answer as a whole, while it may be one
        self._whole_read = 0  # characters of the held text that it knows
        self._tagged: CallText | None = None  # of what follows the tag that the held text begins with
        self._tagged_read = 0
        self._calls = 0
        self._shown = False
        self._after_call = False  # and nothing was shown since

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        self._held += text
        if self._forced or self._may_be_whole():
            return "", []
        begin = self._held.lstrip()
        # Space before and between calls is not part of the answer.
        if self._after_call or (not self._shown and (begin.startswith(OPENS) or OPENS.startswith(begin))):
            self._drop(len(self._held) - len(begin))
        shown, calls = self._split()
        self._shown = self._shown or bool(shown)
        return shown, calls

    def flush(self) -> tuple[str, list[ToolCall]]:
        """The answer is over."""
        held, self._held = self._held, ""
        if self._forced or self._whole is not None:
            if calls := self._read(held.strip().removeprefix(MISTRAL)):
                return "", self._counted(calls)
        elif held.startswith(OPENS) and (calls := self._read(held[len(OPENS) :])):
            return "", self._counted(calls)  # the end came before the closing tag
        return held, []

    def _may_be_whole(self) -> bool:
        """Whether the answer can still be nothing but JSON."""
        if self._whole is None:
            return False
        begin = self._held.lstrip()
        if MISTRAL.startswith(begin[: len(MISTRAL)]) and begin != "[":
            if len(begin) < len(MISTRAL):
                return True
            begin = begin[len(MISTRAL) :]
        if not all(map(self._whole.push, begin[self._whole_read :])):
            self._whole = None
            return False
        self._whole_read = len(begin)
        return True

    def _split(self) -> tuple[str, list[ToolCall]]:
        """The held text that is not a call, and the calls in it; text that may become one stays."""
        shown = ""
        calls: list[ToolCall] = []
        while True:
            start = self._held.find(OPENS)
            if start < 0:
                keep = _overlap(self._held, OPENS)
                return shown + self._let_go(len(self._held) - keep), calls
            shown += self._let_go(start)
            end = self._end_of_call()
            if end is None:
                return shown, calls
            found = self._read(self._held[len(OPENS) : end]) if end else []
            if found:
                self._drop(end + len(CLOSES))
                calls += self._counted(found)
                self._after_call = True
                self._drop(len(self._held) - len(self._held.lstrip()))
            else:
                shown += self._let_go(len(OPENS))

    def _end_of_call(self) -> int | None:
        """Where the closing tag of the call begins that the held text begins with; None where it has not
        come, and 0 where it cannot, since this is not a call."""
        if self._tagged is None:
            self._tagged, self._tagged_read = CallText(self._names), len(OPENS)
        for place in range(self._tagged_read, len(self._held)):
            character = self._held[place]
            if self._tagged.is_complete and not character.isspace():
                tag = self._held[place : place + len(CLOSES)]
                self._tagged_read = place
                return (place if tag == CLOSES else None) if CLOSES.startswith(tag) else 0
            if not self._tagged.push(character):
                return 0
        self._tagged_read = len(self._held)
        return None

    def _let_go(self, count: int) -> str:
        """The first ``count`` of the held characters, to be shown."""
        self._after_call = self._after_call and not count
        return self._drop(count)

    def _drop(self, count: int) -> str:
        """The first ``count`` of the held characters, which are held no longer."""
        dropped, self._held = self._held[:count], self._held[count:]
        if dropped:
            self._tagged = None
        return dropped

    def _read(self, text: str) -> list[ToolCall]:
        """The calls that ``text`` is; none where it is anything else."""
        try:
            value = json.loads(text, parse_constant=_no_number)
            calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call is not None] if all(calls) else []

    def _call(self, value: Any) -> ToolCall | None:
        """Raises ValueError and RecursionError for arguments that are not JSON."""
        if not isinstance(value, dict) or value.keys() - KEYS:
            return None
        name = value.get("name")
        given = [value[key] for key in ("parameters", "arguments") if key in value]
        if not isinstance(name, str) or name not in self._names:
            return None
        if not all(isinstance(arguments, dict) for arguments in given):
            return None
        arguments = given[-1] if given else {}
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))

    def _counted(self, calls: list[ToolCall]) -> list[ToolCall]:
        if not self._parallel:
            calls = calls[: max(0, 1 - self._calls)]
        self._calls += len(calls)
        return calls


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
