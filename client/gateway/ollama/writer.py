"""Answers as Ollama's lines of JSON: pieces of a message or of a text, and what they cost at the end."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ...decoding.answer import TokenEvent
from ...http.body import to_json
from ...parsing.pieces import ToolCall
from ..answers.frame import TEXT, TextFrame, quoted
from ..answers.logprobs import token_logprobs
from ..answers.offered import rfc3339
from ..answers.parts import Call, Finish, Part, Said, Text, Thinking, Usage
from ..answers.preparing import Prepared
from ..answers.writer import Writer
from .requests import OllamaChat, OllamaText


class _OllamaWriter(Writer):
    def __init__(self, request: OllamaChat | OllamaText, job: Prepared) -> None:
        self._began = time.perf_counter()
        self._request = request
        self._model = request.name
        self._begin = f'{{"model":{quoted(request.name)},"created_at":"'
        self._frame = TextFrame(self._said(TEXT))
        self._token_bytes = job.model.tokenizer.token_bytes
        self._calls = 0

    @abstractmethod
    def _said(self, text: str, thought: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """What a line says of the answer."""

    def part(self, index: int, part: Part, usage: Usage) -> str:
        if type(part) is Text and not part.tokens:  # most parts of most answers
            said = self._frame.around(part.text)
            return f'{self._begin}{rfc3339(time.time())}","done":false,{said[1:]}\n'
        match part:
            case Text(text, tokens):
                return self._line({**self._said(text), **self._logprobs(tokens)})
            case Thinking(text):
                return self._line(self._said("", text))
            case Call(call):
                return self._line(self._said("", calls=[self._call(call)]))
            case Finish(_, _, tokens):
                return self._line({**self._said(""), **self._logprobs(tokens)}, self._finish(part, usage))

    def end(self, usage: Usage) -> str:
        return ""

    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        if not choices:  # only whether the model is there was asked
            loads = isinstance(self._request, OllamaText) and self._request.loads
            return self._line(self._said(""), {"done_reason": "load" if loads else "unload"})
        (said,) = choices
        content = self._said(said.text, said.thinking, [self._call(call) for call in said.calls])
        return self._line({**content, **self._logprobs(said.tokens)}, self._finish(said.finish, usage))

    def _line(self, content: dict[str, Any], end: dict[str, Any] | None = None) -> str:
        head = {"model": self._model, "created_at": rfc3339(time.time())}
        return f"{to_json({**head, **content, 'done': end is not None, **(end or {})})}\n"

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"index": self._calls, "name": call.name, "arguments": json.loads(call.arguments)}
        self._calls += 1
        return {"id": call.id, "function": function}

    def _logprobs(self, tokens: Sequence[TokenEvent]) -> dict[str, Any]:
        return {"logprobs": token_logprobs(tokens, self._token_bytes)} if tokens else {}

    def _finish(self, finish: Finish, usage: Usage) -> dict[str, Any]:
        timings = finish.result.timings
        return {
            "done_reason": "length" if finish.reason == "length" else "stop",
            "total_duration": _ns(time.perf_counter() - self._began),
            "load_duration": _ns(timings.route_s),
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": _ns(timings.prefill_s),
            "eval_count": usage.completion,
            "eval_duration": _ns(timings.decode_s),
        }


class OllamaChatWriter(_OllamaWriter):
    def _said(self, text: str, thought: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = list(calls)
        return {"message": message}


class OllamaTextWriter(_OllamaWriter):
    def _said(self, text: str, thought: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return {"response": text, **({"thinking": thought} if thought else {})}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
