"""Answers as Anthropic's messages: content blocks, and events that build them up."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from ...http.body import to_json
from ...parsing.pieces import ToolCall
from ..answers.frame import quoted
from ..answers.parts import Call, Finish, Part, Said, Text, Thinking, Usage
from ..answers.preparing import Prepared
from ..answers.writer import Writer
from .form import event
from .requests import MessageRequest

_REASONS = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


class MessageWriter(Writer):
    def __init__(self, request: MessageRequest, job: Prepared) -> None:
        self._hides_thinking = request.hides_thinking
        self._asked = request.sampling.max_tokens
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": job.model_id,
        }
        self._index = -1  # of the newest block
        self._open = ""  # what it is, while it is open

    def begin(self, index: int, usage: Usage) -> str:
        message = {**self._head, "content": [], **_stopped(None), "usage": _usage(usage)}
        return event("message_start", message=message) + event("ping")

    def part(self, index: int, part: Part, usage: Usage) -> str:
        match part:
            case Text(text):
                return self._into("text", {"type": "text", "text": ""}) + self._delta(
                    f'{{"type":"text_delta","text":{quoted(text)}}}'
                )
            case Thinking(text):
                opening = self._into("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                if self._hides_thinking:
                    return opening
                return opening + self._delta(f'{{"type":"thinking_delta","thinking":{quoted(text)}}}')
            case Call(call):
                block = {**_tool_use(call), "input": {}}
                arguments = f'{{"type":"input_json_delta","partial_json":{quoted(call.arguments)}}}'
                return self._close() + self._begin("tool_use", block) + self._delta(arguments) + self._close()
            case Finish():
                delta = _stopped(part, self._asked)
                return self._close() + event("message_delta", delta=delta, usage=_usage(usage))

    def end(self, usage: Usage) -> str:
        return event("message_stop")

    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        said = choices[0]
        content: list[dict[str, Any]] = []
        if said.thoughts:
            thought = "" if self._hides_thinking else said.thinking
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if said.texts:
            content.append({"type": "text", "text": said.text})
        content += [_tool_use(call) for call in said.calls]
        stopped = _stopped(said.finish, self._asked)
        return to_json({**self._head, "content": content, **stopped, "usage": _usage(usage)})

    def _into(self, kind: str, block: dict[str, Any]) -> str:
        """Events after which a block of that kind is open."""
        return "" if self._open == kind else self._close() + self._begin(kind, block)

    def _begin(self, kind: str, block: dict[str, Any]) -> str:
        self._index += 1
        self._open = kind
        return event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: str) -> str:
        """``delta``: JSON."""
        return (
            "event: content_block_delta\n"
            f'data: {{"type":"content_block_delta","index":{self._index},"delta":{delta}}}\n\n'
        )

    def _close(self) -> str:
        if not self._open:
            return ""
        self._open = ""
        return event("content_block_stop", index=self._index)


def counted(tokens: int) -> dict[str, Any]:
    """The body that tells how many tokens a prompt has."""
    return {"input_tokens": tokens}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": json.loads(call.arguments),
    }


def _stopped(finish: Finish | None, asked: int | None = None) -> dict[str, Any]:
    """Why, where it is over. ``asked``: the longest answer that was asked for."""
    if finish is None:
        return {"stop_reason": None, "stop_sequence": None}
    reason = _REASONS[finish.reason]
    if finish.reason == "length" and asked is not None and len(finish.result.token_ids) < asked:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": finish.result.stop_string}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens of the prompt that peers held from before are not counted twice."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
