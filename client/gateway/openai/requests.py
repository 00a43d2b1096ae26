"""Chat and text completion requests, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...http.errors import wrong
from ..requests.fields import BodyFields
from ..requests.request import MAX_MODEL_NAME, ChatRequest, TextRequest
from ..requests.sampling import MAX_CHOICES, MAX_LOGPROBS
from ..requests.texts import read_texts
from ..requests.tools import Tools
from .chat_messages import read_chat_messages
from .formats import read_format
from .known_fields import passed_over
from .sampling_fields import Streaming, read_sampling, read_streaming
from .tools import read_tools

_OF_CHATS = (
    *("messages", "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"),
    *("top_logprobs", "reasoning_effort", "verbosity", "chat_template_kwargs", "max_completion_tokens"),
    *("add_generation_prompt", "continue_final_message", "enable_thinking", "truncation"),
)
"""Fields of chats, which a text completion does not take."""
MAX_PROMPTS = 32
COMPLETION_TOKENS = 16
"""``max_tokens`` of a text completion that names none, as at OpenAI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIChat(ChatRequest):
    streaming: Streaming


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAICompletion(TextRequest):
    streaming: Streaming


def read_chat(value: object) -> OpenAIChat:
    """Raises ApiError, which names the field."""
    body = BodyFields(value)
    model = body.text("model", longest=MAX_MODEL_NAME)
    chat = read_chat_messages(body)
    body.refuse("prompt", why="is for /v1/completions; this takes messages")
    body.refuse("suffix", "", why="is for /v1/completions")
    body.refuse("echo", False, why="is for /v1/completions")
    body.refuse("split_special_tokens", True, why="is for /v1/completions; in chats they always are split")
    body.refuse("best_of", 1, why="is not supported by this gateway; n is")
    tools = read_tools(body)
    guide, guide_field = read_format(body, tools)
    template = _template_variables(body)
    wanted = body.flag("logprobs") or False
    top = body.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top and not wanted:
        raise body.wrong("top_logprobs", "is only possible with logprobs: true")
    forgets = body.one_of("truncation", ("disabled", "auto")) == "auto"
    sampling = read_sampling(body, ("max_completion_tokens", "max_tokens"), fits=forgets)
    if tools.definitions and not sampling.options.get("skip_special_tokens", True):
        raise body.wrong("skip_special_tokens", "cannot be false beside tools: their calls would be text")
    streaming = read_streaming(body)
    return OpenAIChat(
        model=model,
        chat=chat,
        forgets=forgets,
        sampling=sampling,
        stream=streaming is not None,
        streaming=streaming or Streaming(),
        swarm_events=streaming is not None and streaming.swarm_events,
        tools=tools,
        logprobs=(top or 0) if wanted else None,
        guide=guide,
        guide_field=guide_field,
        template=template,
        ignored=passed_over(body),
    )


def read_completion(value: object) -> OpenAICompletion:
    """Raises ApiError, which names the field."""
    body = BodyFields(value)
    model = body.text("model", longest=MAX_MODEL_NAME)
    body.refuse("best_of", 1, why="is not supported by this gateway; n is")
    body.refuse("suffix", "")
    guide, guide_field = read_format(body, Tools())
    echo = body.flag("echo") or False
    logprobs = body.integer("logprobs", 0, MAX_LOGPROBS)
    if echo and logprobs is not None:
        raise body.wrong("logprobs", "cannot be given beside echo: the prompt's are not computed")
    sampling = read_sampling(body, ("max_tokens",), default_tokens=COMPLETION_TOKENS)
    streaming = read_streaming(body)
    prompts = read_texts(body, "prompt", most=MAX_PROMPTS)
    if len(prompts) * sampling.n > MAX_CHOICES:
        raise body.wrong("n", f"times the prompts are more than {MAX_CHOICES} answers")
    all_text = body.flag("split_special_tokens") or False
    for field in _OF_CHATS:
        body.refuse(field, "none", "auto", [], {}, False, why="is for /v1/chat/completions")
    return OpenAICompletion(
        model=model,
        prompts=prompts,
        sampling=sampling,
        stream=streaming is not None,
        streaming=streaming or Streaming(),
        swarm_events=streaming is not None and streaming.swarm_events,
        echo=echo,
        logprobs=logprobs,
        guide=guide,
        guide_field=guide_field,
        all_text=all_text,
        ignored=passed_over(body),
    )


def _template_variables(body: BodyFields) -> dict[str, Any]:
    variables = body.inner("chat_template_kwargs")
    found = dict(variables.raw_all()) if variables is not None else {}
    for field in ("messages", "tools", "add_generation_prompt", "continue_final_message"):
        if field in found:
            raise wrong(f"chat_template_kwargs.{field}", "has a field of its own")
    for field in ("self", "most"):
        if field in found:
            raise wrong(f"chat_template_kwargs.{field}", "is not a variable of chat templates")
    for field in ("reasoning_effort", "verbosity"):
        word = body.text(field, longest=64)
        if word is not None:
            found[field] = word
    if (thinking := body.flag("enable_thinking")) is not None:
        found["enable_thinking"] = thinking
    return found
