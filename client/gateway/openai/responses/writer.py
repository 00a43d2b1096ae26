"""Answers as OpenAI's responses: items, and events that build them up."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from .....swarm.fairness.thread import ASKER
from ....decoding.answer import TokenEvent
from ....http.body import to_json
from ....http.errors import ApiError
from ....parsing.pieces import ToolCall
from ...answers.frame import quoted
from ...answers.logprobs import token_logprobs
from ...answers.parts import Call, Finish, Part, Said, Text, Thinking, Usage
from ...answers.preparing import Prepared
from ...answers.writer import Writer
from ...requests.messages import joined, tool_call
from .requests import ResponseRequest
from .stored import StoredResponses

_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""The items that are made of text, and of which part."""


class ResponseWriter(Writer):
    """``items``: those that are complete. One more may be open, whose texts and tokens are kept."""

    def __init__(self, stored: StoredResponses, request: ResponseRequest, job: Prepared) -> None:
        self.items: list[dict[str, Any]] = []
        self._stored = stored
        self._request = request
        self._caller = ASKER.get().name
        self._token_bytes = job.model.tokenizer.token_bytes
        self._head = _head(request, job.model_id)
        self._kind, self._id = "", ""  # of the open item
        self._texts: list[str] = []
        self._tokens: list[TokenEvent] = []
        self._sent = 0  # events
        self._finish: Finish | None = None

    def begin(self, index: int, usage: Usage) -> str:
        response = {**self._head, "status": "in_progress", "output": []}
        return self._event("created", response=response) + self._event("in_progress", response=response)

    def part(self, index: int, part: Part, usage: Usage) -> str:
        match part:
            case Text(text, tokens):
                return self._into("message") + self._delta(text, tokens)
            case Thinking(text, tokens):
                return self._into("reasoning") + self._delta(text, tokens)
            case Call(call):
                return self._close() + self._call(call)
            case Finish(_, _, tokens):
                self._tokens += tokens
                self._finish = part
                return self._close(self._status())

    def end(self, usage: Usage) -> str:
        body = self._body(usage)
        kind = f"response.{self._status()}"
        told = f'{{"type":"{kind}","sequence_number":{self._sent},"response":{body}}}'
        return f"event: {kind}\ndata: {told}\n\n"

    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        (said,) = choices
        if said.thoughts:
            self.part(0, Thinking(said.thinking), usage)
        if said.texts:
            self.part(0, Text(said.text, tuple(said.text_tokens)), usage)
        for call in said.calls:
            self.part(0, Call(call), usage)
        self.part(0, said.finish, usage)
        return self._body(usage)

    def _into(self, kind: str) -> str:
        """Events after which an item of that kind is open."""
        if self._kind == kind:
            return ""
        closed = self._close()
        self._kind, self._id = kind, _id("msg" if kind == "message" else "rs")
        item = {"id": self._id, "type": kind, "status": "in_progress", **_content(kind, [])}
        added = self._event("output_item.added", output_index=len(self.items), item=item)
        return closed + added + self._of_part("content_part.added", part=self._part())

    def _delta(self, text: str, tokens: Sequence[TokenEvent]) -> str:
        self._texts.append(text)
        self._tokens += tokens
        if not self._request.stream:
            return ""
        name = _PARTS[self._kind]
        if tokens:
            logprobs = token_logprobs(tokens, self._token_bytes)
            return self._of_part(f"{name}.delta", delta=text, logprobs=logprobs)
        number, self._sent = self._sent, self._sent + 1
        kind = f"response.{name}.delta"
        # Most parts of most answers are written without a detour.
        return (
            f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number},"item_id":"{self._id}",'
            f'"output_index":{len(self.items)},"content_index":0,"delta":{quoted(text)},"logprobs":[]}}\n\n'
        )

    def _close(self, status: str = "completed") -> str:
        if not self._kind:
            return ""
        kind, part = self._kind, self._part()
        item = {"id": self._id, "type": kind, "status": status, **_content(kind, [part])}
        done = self._of_part(f"{_PARTS[kind]}.done", text=part["text"], logprobs=part.get("logprobs", []))
        done += self._of_part("content_part.done", part=part)
        done += self._event("output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._kind, self._texts, self._tokens = "", [], []
        return done

    def _part(self) -> dict[str, Any]:
        """The part of the open item, as far as it is said."""
        part: dict[str, Any] = {"type": _PARTS[self._kind], "text": "".join(self._texts)}
        if self._kind == "message":
            part |= {"annotations": [], "logprobs": token_logprobs(self._tokens, self._token_bytes)}
        return part

    def _call(self, call: ToolCall) -> str:
        place = {"output_index": len(self.items)}
        item = {"id": _id("fc"), "type": "function_call", "call_id": call.id, "name": call.name}
        self.items.append({**item, "arguments": call.arguments, "status": "completed"})
        of_item = {"item_id": item["id"], **place}
        return (
            self._event("output_item.added", item={**item, "arguments": "", "status": "in_progress"}, **place)
            + self._event("function_call_arguments.delta", delta=call.arguments, **of_item)
            + self._event("function_call_arguments.done", name=call.name, arguments=call.arguments, **of_item)
            + self._event("output_item.done", item=self.items[-1], **place)
        )

    def _of_part(self, event: str, **more: Any) -> str:
        """An event of the open item's part."""
        return self._event(event, item_id=self._id, output_index=len(self.items), content_index=0, **more)

    def _event(self, event: str, /, **more: Any) -> str:
        """Nothing where the answer comes in one piece: of that, only the items are told."""
        if not self._request.stream:
            return ""
        kind = f"response.{event}"
        told = {"type": kind, "sequence_number": self._sent, **more}
        self._sent += 1
        return f"event: {kind}\ndata: {to_json(told)}\n\n"

    def _status(self) -> str:
        is_cut = self._finish is not None and self._finish.reason == "length"
        return "incomplete" if is_cut else "completed"

    def _body(self, usage: Usage) -> str:
        """The whole response, as JSON; it is stored, where that is asked for."""
        status = self._status()
        response = {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "completed_at": int(time.time()),
            "output": self.items,
            "usage": _usage(usage),
        }
        body = to_json(response)
        if self._request.store:
            turn = to_json([*self._request.said, _message(self.items)])
            self._stored.put(self._caller, self._head["id"], body, (*self._request.turns, turn))
        return body

    def failure(self, error: ApiError) -> str:
        """That it failed, as those want it who follow its state, and an error that nobody passes over."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = {"code": code, "message": error.message}
        response = {**self._head, "status": "failed", "error": failed, "output": self.items}
        told = self._event("failed", response=response)
        event = {
            "type": "error",
            "sequence_number": self._sent,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            **error.body(),
        }
        return f"{told}event: error\ndata: {to_json(event)}\n\n"


def response_writer(stored: StoredResponses) -> Callable[[ResponseRequest, Prepared], ResponseWriter]:
    """What writes answers to requests that may want them stored."""
    return lambda request, job: ResponseWriter(stored, request, job)


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


def _content(kind: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """An item's, made of these parts."""
    return {"role": "assistant", "content": parts} if kind == "message" else {"summary": [], "content": parts}


def _head(request: ResponseRequest, model_id: str) -> dict[str, Any]:
    """What a response is from its beginning on, but for what it says."""
    asked = request.echoed
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "model": model_id,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **asked,
        "store": request.store,
        "metadata": asked["metadata"] or {},
        "parallel_tool_calls": asked["parallel_tool_calls"] is not False,
        "temperature": request.sampling.options["temperature"],
        "text": asked["text"] or {"format": {"type": "text"}},
        "tool_choice": asked["tool_choice"] or "auto",
        "tools": asked["tools"] or [],
        "top_p": asked["top_p"] if asked["top_p"] is not None else 1.0,
        "truncation": asked["truncation"] or "disabled",
    }


def _message(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was said, as a chat template takes it."""
    return joined([{"role": "assistant", "content": ""}, *map(_said, items)])


def _said(item: dict[str, Any]) -> dict[str, Any]:
    """What one item adds to the message."""
    match item["type"]:
        case "message":
            return {"content": item["content"][0]["text"]}
        case "reasoning":
            return {"reasoning_content": item["content"][0]["text"]}
    return {"tool_calls": [tool_call(item["call_id"], item["name"], item["arguments"])]}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thinking},
        "total_tokens": usage.prompt + usage.completion,
    }


def counted(tokens: int) -> dict[str, Any]:
    """The body that tells how many tokens an input has."""
    return {"object": "response.input_tokens", "input_tokens": tokens}
