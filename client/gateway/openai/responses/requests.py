"""Requests for a response, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .....swarm.fairness.thread import ASKER
from ....guided.guide import Guide
from ....http.errors import refused
from ....params import GenerateOptions
from ...requests.fields import BodyFields
from ...requests.guides import made, schema_guide
from ...requests.messages import MAX_TEXT, Chat
from ...requests.request import MAX_MODEL_NAME, ChatRequest
from ...requests.sampling import LEAST_TOP_P, MAX_LENGTH, MAX_LOGPROBS, Sampling
from ...requests.thinking import EFFORTS, Thinking
from ...requests.tools import MAX_DESCRIPTION, NAME_LENGTH, Tools
from ...requests.unknown_fields import passed_over
from .items import Messages, read_input
from .stored import StoredResponses
from .tools import read_tools

HARMLESS = frozenset(
    ("user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention", "service_tier")
    + ("prompt_cache_options", "prompt_cache_breakpoint", "stream_options", "max_tool_calls")
    + ("client_metadata", "phase", "caller", "namespace", "output_schema")
)
"""These concern billing, caching, tracing and tools of OpenAI's own, and do not change an answer."""
_LOGPROBS = "message.output_text.logprobs"
_ECHOED = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "previous_response_id"),
    *("reasoning", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation"),
    "user",
)
"""What a response repeats of its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRequest(ChatRequest):
    """``turns``: the chat before, as it is stored; ``said``: what this request adds. ``echoed``: what the
    response repeats of the request. ``store``: keep it."""

    turns: tuple[str, ...]
    said: Messages
    echoed: Mapping[str, Any]
    store: bool


def response_reader(stored: StoredResponses) -> Callable[[object], ResponseRequest]:
    """What reads requests, which may go on with a response that is stored for the current ``ASKER``. It
    raises ApiError, which names the field."""

    def read(value: object) -> ResponseRequest:
        return _read(BodyFields(value), stored)

    return read


def _read(body: BodyFields, stored: StoredResponses) -> ResponseRequest:
    model = body.text("model", longest=MAX_MODEL_NAME)
    body.refuse("background", False, why="responses are made while their clients wait")
    body.refuse("conversation", why="is not kept here; use previous_response_id, or send the whole chat")
    body.refuse("prompt", why="is not kept here; write it as instructions")
    for field in ("context_management", "moderation", "image", "access_programs"):
        body.refuse(field, [])
    turns: tuple[str, ...] = ()
    before: list[Mapping[str, Any]] = []
    if previous := body.text("previous_response_id", longest=NAME_LENGTH):
        earlier = stored.get(ASKER.get().name, previous)
        turns, before = earlier.turns, earlier.messages()
    messages = read_input(body, before)
    instructions = body.text("instructions", longest=MAX_TEXT)
    shown = [{"role": "system", "content": instructions}, *messages] if instructions else messages
    forgets = body.one_of("truncation", ("auto", "disabled")) == "auto"
    tools = read_tools(body)
    guide, field = _format(body, tools)
    return ResponseRequest(
        model=model,
        chat=Chat(tuple(shown), continued=False, turn=True),
        chat_field="input",
        forgets=forgets,
        sampling=_sampling(body, fits=forgets),
        stream=body.flag("stream") or False,
        tools=tools,
        logprobs=_logprobs(body),
        guide=guide,
        guide_field=field,
        thinking=_thinking(body),
        turns=turns,
        said=messages[len(before) :],
        echoed={name: body.raw(name) for name in _ECHOED},
        store=body.flag("store") is not False,
        ignored=passed_over(body, HARMLESS),
    )


def _sampling(body: BodyFields, *, fits: bool) -> Sampling:
    temperature, top_p = body.number("temperature", 0, 2), body.number("top_p", 0, 1)
    options: GenerateOptions = {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p or LEAST_TOP_P,
    }
    length = body.integer("max_output_tokens", 1, MAX_LENGTH)
    return Sampling(options, max_tokens=length, length_field="max_output_tokens", fits=fits)


def _logprobs(body: BodyFields) -> int | None:
    included = body.texts("include", most=64, longest=64)
    top = body.integer("top_logprobs", 0, MAX_LOGPROBS)
    return (top or 0) if top or _LOGPROBS in included else None


def _thinking(body: BodyFields) -> Thinking:
    reasoning = body.inner("reasoning")
    if reasoning is None:
        return None
    for name in ("summary", "generate_summary", "context", "mode"):
        reasoning.text(name, longest=64)  # all of what a model thinks is shown, and shown to it again
    effort = reasoning.one_of("effort", ("none", *EFFORTS))
    return False if effort == "none" else effort


def _format(body: BodyFields, tools: Tools) -> tuple[Guide | None, str]:
    """The guide, and the field that asks for it. A required tool call is one too."""
    text = body.inner("text")
    form = text.inner("format") if text is not None else None
    guide, field = _guide(form) if form is not None else (None, "")
    if text is not None and text.one_of("verbosity", ("low", "medium", "high")) in ("low", "high"):
        raise refused("text.verbosity", "is nothing that a model can be told here; say it in instructions")
    return (tools.forced, "tools") if tools.forced is not None else (guide, field)


def _guide(form: BodyFields) -> tuple[Guide | None, str]:
    kind = form.one_of("type", ("text", "json_object", "json_schema"), required=True)
    if kind == "text":
        return None, ""
    if kind == "json_object":
        return Guide("json_object", ""), form.where
    form.text("name", longest=NAME_LENGTH)
    form.text("description", longest=MAX_DESCRIPTION)
    schema, strict = form.required_inner("schema").raw_all(), form.flag("strict") or False
    return made(form.name("schema"), lambda: schema_guide(schema, strict=strict)), form.name("schema")
