"""Requests for a chat's or a text's answer, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...guided.guide import Guide
from ...params import GenerateOptions
from ..requests.fields import BodyFields, kind_of
from ..requests.guides import made, schema_guide
from ..requests.messages import MAX_TEXT
from ..requests.request import MAX_MODEL_NAME, ChatRequest, TextRequest
from ..requests.sampling import (
    LEAST_TOP_P,
    MAX_LENGTH,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Sampling,
)
from ..requests.thinking import Thinking
from ..requests.unknown_fields import passed_over
from .messages import TEXT_ONLY, chat_of, read_chat, read_tools

LATEST = ":latest"
"""The tag that Ollama and its clients add to a name that has none."""
EFFORTS = ("low", "medium", "high", "max")
HARMLESS = frozenset(
    ("keep_alive", "shift")
    + ("numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "low_vram", "f16_kv")
    + ("use_mmap", "use_mlock", "vocab_only", "logits_all", "embedding_only", "penalize_newline")
    + ("mirostat_tau", "mirostat_eta")
)
"""These concern the machine that computes, which peers choose, and samplers that are off."""
_OFF: dict[str, tuple[object, ...]] = {"mirostat": (0,), "tfs_z": (1, 1.0), "typical_p": (1, 1.0)}
"""Samplers that are not here, and the values that ask for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaChat(ChatRequest):
    """``name``: the model as the client calls it."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaText(TextRequest):
    """``name``: the model as the client calls it. ``loads``: no text is asked for, only that the model be
    there, or, where it is False, that it be let go."""

    name: str
    loads: bool = True


def read_model(body: BodyFields) -> tuple[str, str]:
    """The model as the client calls it, and its name here. Raises ApiError."""
    name = body.required_text("model", longest=MAX_MODEL_NAME)
    return name, name.removesuffix(LATEST)


def read_ollama_chat(value: object) -> OllamaChat | OllamaText:
    """Raises ApiError, which names the field."""
    body = BodyFields(value)
    if body.raw("messages") in (None, []):
        return _load(body)
    chat, tools = read_chat(body), read_tools(body)
    thinking, forgets = _thinking(body), body.flag("truncate") is not False
    return OllamaChat(chat=chat, tools=tools, thinking=thinking, forgets=forgets, **_answer(body))


def read_ollama_text(value: object) -> OllamaChat | OllamaText:
    """A text is a message to the model, unless it is ``raw``. Raises ApiError, which names the field."""
    body = BodyFields(value)
    prompt, system = body.text("prompt", longest=MAX_TEXT), body.text("system", longest=MAX_TEXT)
    if not prompt:
        return _load(body)
    body.refuse("images", [], why=TEXT_ONLY)
    body.refuse("suffix", "")
    body.refuse("template", "", why="the model's own is used; with raw: true, a prompt is taken as it is")
    body.refuse("context", [], why="is not kept here; send what was said as messages to /api/chat")
    raw, thinking = body.flag("raw"), _thinking(body)
    if raw:
        body.refuse("system", "", why="is of no use to a raw prompt: write it there")
        return OllamaText(prompts=(prompt,), **_answer(body))
    turns = [{"role": "system", "content": system}] if system else []
    chat = chat_of([*turns, {"role": "user", "content": prompt}])
    return OllamaChat(chat=chat, chat_field="prompt", thinking=thinking, **_answer(body))


def _load(body: BodyFields) -> OllamaText:
    name, model = read_model(body)
    loads = body.raw("keep_alive") not in (0, "0")
    return OllamaText(name=name, model=model, prompts=(), sampling=Sampling({}), loads=loads)


def _answer(body: BodyFields) -> dict[str, Any]:
    """What all requests for an answer share. Comes last: it looks for fields that nobody has read."""
    name, model = read_model(body)
    guide, field = _format(body)
    wanted, top = body.flag("logprobs"), body.integer("top_logprobs", 0, MAX_LOGPROBS)
    return {
        "name": name,
        "model": model,
        "sampling": _sampling(body.inner("options") or BodyFields({})),
        "stream": body.flag("stream") is not False,
        "logprobs": (top or 0) if wanted else None,
        "guide": guide,
        "guide_field": field,
        "ignored": passed_over(body, HARMLESS),
    }


def _format(body: BodyFields) -> tuple[Guide | None, str]:
    """The guide, and the field that asks for it."""
    form = body.raw("format")
    if form in (None, ""):
        return None, ""
    if form == "json":
        return Guide("json_object", ""), "format"
    if not isinstance(form, dict):
        raise body.wrong(
            "format", f"must be 'json' or a JSON schema, which is an object, not {kind_of(form)}"
        )
    return made("format", lambda: schema_guide(form, strict=False)), "format"


def _thinking(body: BodyFields) -> Thinking:
    if isinstance(body.raw("think"), str):
        return body.one_of("think", EFFORTS)
    return body.flag("think")


def _sampling(options: BodyFields) -> Sampling:
    """Options that are not given follow the model, as they do there."""
    for name, neutral in _OFF.items():
        options.refuse(name, *neutral)
    penalties = {name: options.number(name, -2, 2) for name in ("frequency_penalty", "presence_penalty")}
    repeat = options.number("repeat_penalty", 0.01, 100)
    if repeat not in (None, 1.0) or any(penalties.values()):
        options.refuse("repeat_last_n", -1, why="penalties count the whole text here, which -1 asks for")
    options.raw("repeat_last_n")
    chosen: GenerateOptions = {
        "repetition_penalty": repeat or 1.0,
        "frequency_penalty": penalties["frequency_penalty"] or 0.0,
        "presence_penalty": penalties["presence_penalty"] or 0.0,
        "stop": tuple(filter(None, options.texts("stop", most=MAX_STOPS, longest=MAX_STOP_LENGTH))),
    }
    if (temperature := options.number("temperature", 0, 2)) is not None:
        chosen["temperature"] = temperature
    if (top_p := options.number("top_p", 0, 1)) is not None:
        chosen["top_p"] = top_p or LEAST_TOP_P
    if (top_k := options.integer("top_k", -1, MAX_LENGTH)) is not None:
        chosen["top_k"] = max(0, top_k)
    if (min_p := options.number("min_p", 0, 1)) is not None:
        chosen["min_p"] = min_p
    length = options.raw("num_predict")
    return Sampling(
        chosen,
        advised=True,
        seed=options.integer("seed", -MAX_SEED, MAX_SEED - 1),
        # Less than 1 is no limit: the answer is as long as the gateway lets one be that names none.
        max_tokens=None if length in (-1, -2) else options.integer("num_predict", 1, MAX_LENGTH),
        length_field="options.num_predict",
        fits=True,
    )
