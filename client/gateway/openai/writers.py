"""Answers as OpenAI's JSON: chunks while they are made, and bodies when they are complete."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...decoding.answer import TokenEvent
from ...http.body import to_json
from ...parsing.pieces import ToolCall
from ..answers.frame import TEXT, TextFrame
from ..answers.logprobs import TokenBytes
from ..answers.parts import Call, Finish, Part, Said, Text, Thinking, Usage
from ..answers.preparing import Prepared
from ..answers.writer import Writer
from .form import DONE
from .logprobs import chat_logprobs, text_length, text_logprobs
from .requests import OpenAIChat, OpenAICompletion
from .sampling_fields import Streaming

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "tool_calls": "tool_calls"}


class ChatWriter(Writer):
    def __init__(self, request: OpenAIChat, job: Prepared) -> None:
        self._envelope = Envelope("chat.completion", "chatcmpl", job, request.streaming)
        self._token_bytes = _token_bytes(job)
        self._calls = [0] * len(job.wanted)  # of each choice, so far
        indices = range(len(job.wanted))
        self._frames = [TextFrame(self._entry(index, {"content": TEXT})) for index in indices]
        self._thinking = [TextFrame(self._entry(index, {"reasoning_content": TEXT})) for index in indices]

    def begin(self, index: int, usage: Usage) -> str:
        entry = self._entry(index, {"role": "assistant", "content": ""})
        return self._envelope.chunk(to_json(entry), usage)

    def part(self, index: int, part: Part, usage: Usage) -> str:
        if type(part) is Text and not part.tokens:  # most parts of most answers
            return self._envelope.chunk(self._frames[index].around(part.text), usage)
        match part:
            case Thinking(text, ()):
                entry = self._thinking[index].around(text)
            case Thinking(text, tokens):
                entry = to_json(self._entry(index, {"reasoning_content": text}, tokens))
            case Text(text, tokens):
                entry = to_json(self._entry(index, {"content": text}, tokens))
            case Call(call):
                told = {"index": self._calls[index], **_call(call)}
                self._calls[index] += 1
                entry = to_json(self._entry(index, {"tool_calls": [told]}))
            case Finish(reason, _, tokens):
                entry = to_json(self._entry(index, {}, tokens, _REASONS[reason]))
        return self._envelope.chunk(entry, usage)

    def swarm(self, news: Mapping[str, Any]) -> str:
        return self._envelope.swarm(news)

    def end(self, usage: Usage) -> str:
        return self._envelope.end(usage)

    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        return self._envelope.whole([self._choice(*numbered) for numbered in enumerate(choices)], usage)

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.text if said.texts or not said.calls else None,
            "refusal": None,
        }
        if said.thoughts:
            message["reasoning_content"] = said.thinking
        if said.calls:
            message["tool_calls"] = [_call(call) for call in said.calls]
        logprobs = None if self._token_bytes is None else chat_logprobs(said.tokens, self._token_bytes)
        reason = _REASONS[said.finish.reason]
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _entry(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[TokenEvent] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        logprobs = None
        if tokens and self._token_bytes is not None:
            logprobs = chat_logprobs(tokens, self._token_bytes)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionWriter(Writer):
    def __init__(self, request: OpenAICompletion, job: Prepared) -> None:
        self._envelope = Envelope("text_completion", "cmpl", job, request.streaming)
        self._token_bytes = _token_bytes(job)
        self._echoes = job.echoes
        self._offsets = [0] * len(job.wanted)
        self._frames = [TextFrame(self._entry(index, TEXT)) for index in range(len(job.wanted))]

    def begin(self, index: int, usage: Usage) -> str:
        echo = self._echoes[index]
        return self._envelope.chunk(self._frames[index].around(echo), usage) if echo else ""

    def part(self, index: int, part: Part, usage: Usage) -> str:
        if type(part) is Text and not part.tokens:
            return self._envelope.chunk(self._frames[index].around(part.text), usage)
        match part:
            case Text(text, tokens):
                return self._envelope.chunk(to_json(self._entry(index, text, tokens)), usage)
            case Finish(reason, _, tokens):
                entry = self._entry(index, "", tokens, _REASONS[reason])
                return self._envelope.chunk(to_json(entry), usage)
        raise ValueError(f"a text completion has no {part}")

    def swarm(self, news: Mapping[str, Any]) -> str:
        return self._envelope.swarm(news)

    def end(self, usage: Usage) -> str:
        return self._envelope.end(usage)

    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        entries = []
        for index, said in enumerate(choices):
            logprobs = None
            if self._token_bytes is not None:
                logprobs = text_logprobs(said.tokens, self._token_bytes, 0)
            entries.append(
                {
                    "index": index,
                    "text": self._echoes[index] + said.text,
                    "logprobs": logprobs,
                    "finish_reason": _REASONS[said.finish.reason],
                }
            )
        return self._envelope.whole(entries, usage)

    def _entry(
        self, index: int, text: str, tokens: Sequence[TokenEvent] = (), reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if tokens and self._token_bytes is not None:
            logprobs = text_logprobs(tokens, self._token_bytes, self._offsets[index])
            self._offsets[index] += text_length(tokens, self._token_bytes)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class Envelope:
    """What is the same in every chunk of an answer, and in an answer of one piece."""

    def __init__(self, kind: str, prefix: str, job: Prepared, streaming: Streaming) -> None:
        """``kind``: the ``object`` of an answer of one piece, such as ``chat.completion``."""
        self._streaming = streaming
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": job.model_id,
            "system_fingerprint": f"swarm-{job.model.model.digest[:12]}",
        }
        # A text completion's chunks are called what it is itself called.
        chunk = "chat.completion.chunk" if kind == "chat.completion" else kind
        self._begin = f'data: {to_json({**self._head, "object": chunk})[:-1]},"choices":['
        self._end = '],"usage":null}\n\n' if streaming.usage else "]}\n\n"

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> str:
        return to_json({**self._head, "choices": list(choices), "usage": _usage(usage, cached=True)})

    def chunk(self, entry: str, usage: Usage) -> str:
        """One event of a stream, empty line included. ``entry``: of ``choices``, as JSON."""
        if self._streaming.continuous:
            return f'{self._begin}{entry}],"usage":{to_json(_usage(usage))}}}\n\n'
        return f"{self._begin}{entry}{self._end}"

    def swarm(self, news: Mapping[str, Any]) -> str:
        """A chunk without choices, as those know that read OpenAI's streams."""
        return f'{self._begin}],"usage":null,"swarm":{to_json(news)}}}\n\n'

    def end(self, usage: Usage) -> str:
        """The last events of a stream."""
        if not self._streaming.usage:
            return DONE
        return f'{self._begin}],"usage":{to_json(_usage(usage, cached=True))}}}\n\n{DONE}'


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _token_bytes(job: Prepared) -> TokenBytes | None:
    """None where no logprobs are asked for."""
    return None if job.request.logprobs is None else job.model.tokenizer.token_bytes


def _usage(usage: Usage, *, cached: bool = False) -> dict[str, Any]:
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if cached:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    return told
