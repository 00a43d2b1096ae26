"""Answers as JSON: a choice while it is made and when it is complete, and what is around it."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...http.body import to_json
from .logprobs import TokenBytes, chat_logprobs, text_length, text_logprobs
from .tool_calls import ToolCall, ToolCallReader
from .tools import Tools

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length"}


class ChoiceShape(ABC):
    """One choice. Every event is pushed, then ``finish`` is called; each returns entries of a chunk's
    ``choices`` as JSON. ``whole`` afterwards is its entry in an answer of one piece."""

    def __init__(self, index: int, token_bytes: TokenBytes | None, eos_ids: frozenset[int]) -> None:
        """``token_bytes``: None where no logprobs are asked for."""
        self.index = index
        self._token_bytes = token_bytes
        self._eos_ids = eos_ids
        self._events: list[TokenEvent] = []  # whose logprobs were not told yet
        self._before, _, self._after = to_json(self._text_entry(_TEXT)).partition(to_json(_TEXT))

    @abstractmethod
    def begin(self) -> list[str]: ...

    @abstractmethod
    def push(self, event: TokenEvent) -> list[str]: ...

    @abstractmethod
    def finish(self, result: Generation) -> list[str]: ...

    @abstractmethod
    def whole(self, result: Generation) -> dict[str, Any]: ...

    @abstractmethod
    def _text_entry(self, text: str) -> dict[str, Any]:
        """The entry that shows ``text``, with the logprobs that are there."""

    def _show(self, text: str) -> str:
        """``_text_entry`` as JSON. Where only the text differs from token to token, only it is written."""
        if self._events:
            return to_json(self._text_entry(text))
        return f"{self._before}{_quoted(text)}{self._after}"

    def _keep(self, event: TokenEvent) -> None:
        """An end-of-text token is not part of what is said."""
        if self._token_bytes is not None and event.token not in self._eos_ids:
            self._events.append(event)

    def _take(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events


class ChatChoice(ChoiceShape):
    def __init__(
        self, index: int, token_bytes: TokenBytes | None, eos_ids: frozenset[int], tools: Tools
    ) -> None:
        self._all: list[TokenEvent] = []
        super().__init__(index, token_bytes, eos_ids)
        self._reader: ToolCallReader | None = None
        if tools.definitions:
            self._reader = ToolCallReader(
                tools.names, forced=tools.forced is not None, parallel=tools.parallel
            )
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def begin(self) -> list[str]:
        return [to_json(self._entry({"role": "assistant", "content": ""}))]

    def push(self, event: TokenEvent) -> list[str]:
        self._keep(event)
        if self._reader is None:
            return self._shown(event.text, [])
        return self._shown(*self._reader.push(event.text)) if event.text else []

    def finish(self, result: Generation) -> list[str]:
        entries = self._shown(*self._reader.flush()) if self._reader is not None else []
        return [*entries, to_json(self._entry({}, self._reason(result)))]

    def whole(self, result: Generation) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._calls:
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} for call in self._calls
            ]
        return {
            "index": self.index,
            "message": message,
            "logprobs": self._logprobs(self._all),
            "finish_reason": self._reason(result),
        }

    def _shown(self, text: str, calls: Sequence[ToolCall]) -> list[str]:
        entries = []
        if text:
            self._text.append(text)
            entries.append(self._show(text))
        for call in calls:
            self._calls.append(
                {
                    "index": len(self._calls),
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
            )
            entries.append(to_json(self._entry({"tool_calls": [self._calls[-1]]})))
        return entries

    def _text_entry(self, text: str) -> dict[str, Any]:
        return self._entry({"content": text})

    def _entry(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        logprobs = None
        if self._events and (delta.get("content") or reason is not None):
            events = self._take()
            self._all += events
            logprobs = self._logprobs(events)
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
        return None if self._token_bytes is None else chat_logprobs(events, self._token_bytes)

    def _reason(self, result: Generation) -> str:
        if self._calls and result.finish_reason != "length":
            return "tool_calls"
        return _REASONS[result.finish_reason]


class TextChoice(ChoiceShape):
    """``echo``: the prompt's text, shown before the answer; "" for none."""

    def __init__(
        self, index: int, token_bytes: TokenBytes | None, eos_ids: frozenset[int], echo: str = ""
    ) -> None:
        super().__init__(index, token_bytes, eos_ids)
        self._echo = echo
        self._offset = 0
        self._all: list[TokenEvent] = []

    def begin(self) -> list[str]:
        return [self._show(self._echo)] if self._echo else []

    def push(self, event: TokenEvent) -> list[str]:
        self._keep(event)
        return [self._show(event.text)] if event.text else []

    def finish(self, result: Generation) -> list[str]:
        return [to_json(self._text_entry("", _REASONS[result.finish_reason]))]

    def whole(self, result: Generation) -> dict[str, Any]:
        logprobs = None
        if self._token_bytes is not None:
            logprobs = text_logprobs(self._all, self._token_bytes, 0)
        return {
            "index": self.index,
            "text": self._echo + result.text,
            "logprobs": logprobs,
            "finish_reason": _REASONS[result.finish_reason],
        }

    def _text_entry(self, text: str, reason: str | None = None) -> dict[str, Any]:
        logprobs = None
        if self._token_bytes is not None and self._events:
            events = self._take()
            self._all += events
            logprobs = text_logprobs(events, self._token_bytes, self._offset)
            self._offset += text_length(events, self._token_bytes)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class Envelope:
    """What is the same in every chunk of an answer, and in an answer of one piece."""

    def __init__(self, kind: str, prefix: str, model: str, digest: str) -> None:
        """``kind``: the ``object`` of an answer of one piece, such as ``chat.completion``."""
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"swarm-{digest[:12]}",
        }
        # A text completion's chunks are called what it is itself called.
        chunk = "chat.completion.chunk" if kind == "chat.completion" else kind
        self._begin = to_json({**self._head, "object": chunk})[:-1] + ',"choices":['

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> str:
        return to_json({**self._head, "choices": list(choices), "usage": usage})

    def chunk(self, entry: str, usage: str) -> str:
        """One event of a stream, empty line included. ``entry``: of ``choices``, as JSON, or "" for none.
        ``usage``: JSON, or "" for no such key."""
        end = f'],"usage":{usage}}}' if usage else "]}"
        return f"data: {self._begin}{entry}{end}\n\n"


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return usage


_quoted = json.encoder.encode_basestring_ascii  # what to_json does with a string, without its detour
_TEXT = "text to come"
