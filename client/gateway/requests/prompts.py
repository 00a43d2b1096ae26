"""From a request's messages or prompts to token ids that fit the model, and what to generate after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ....shards.chat.template_set import texts_of
from ....swarm.errors import PromptTooLongError, UsageError
from ...async_model import AsyncSwarmModel
from ...forgetting import forget_oldest
from ...http.errors import ApiError, refused, wrong
from ...params import GenerateOptions
from .request import ChatRequest, TextRequest
from .sampling import Sampling
from .thinking import thinking_variables

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WantedChoice:
    """One generation: a choice of the answer. Choices of the same prompt feed it once."""

    prompt: tuple[int, ...]
    options: GenerateOptions


async def chat_prompt(
    model: AsyncSwarmModel, request: ChatRequest, default_tokens: int
) -> tuple[tuple[int, ...], int]:
    """The prompt, and how many of the oldest messages are not in it. Raises ApiError, and UsageError where
    the template refuses the messages."""
    tokenizer = model.tokenizer
    if not tokenizer.has_chat_template:
        raise ApiError(
            400,
            f"{request.chat_field}: this model has no chat template; use /v1/completions, or /api/generate "
            "with raw: true",
            param=request.chat_field,
        )

    def read() -> tuple[list[int], int]:
        more = {**thinking_variables(request.thinking, tokenizer.chat_variables), **request.template}
        for name in request.template:
            if name not in tokenizer.chat_variables:
                raise refused(name, "this model's chat template does not know it")
        if request.tools.definitions:
            if "tools" not in tokenizer.chat_variables:
                raise refused("tools", "this model's chat template takes no tools")
            more["tools"] = list(request.tools.definitions)
        chat = request.chat
        if chat.continued:
            more["continue_final_message"] = True

        def rendered(messages: Sequence[Mapping[str, Any]]) -> list[int]:
            return tokenizer.apply_chat_template(messages, chat.turn, most=model.context, **more)

        counted: dict[int, list[int]] = {}  # prompts, by how many messages they are of

        def count(kept: Sequence[Mapping[str, Any]]) -> int:
            counted[len(kept)] = rendered(kept)
            return len(counted[len(kept)])

        messages: Sequence[Mapping[str, Any]] = chat.messages
        if _CHANNELS in texts_of(tokenizer.chat_template):
            messages = [_with_analysis(message) for message in messages]
        if request.forgets:
            messages = forget_oldest(
                messages,
                count,
                context=model.context,
                max_new_tokens=request.sampling.max_tokens or default_tokens,
            )
        ids = counted.get(len(messages)) or rendered(messages)
        if "tools" not in tokenizer.chat_variables:  # it may show calls nevertheless, as DeepSeek's do
            _check_calls_are_shown(request.chat_field, messages, ids, rendered)
        return ids, len(chat.messages) - len(messages)

    ids, forgotten = await aside(model, request.chat_field, read)
    return _checked(ids, model, request.chat_field), forgotten


_CHANNELS = "message.thinking"
"""How gpt-oss's template calls the thoughts of a message. It refuses those beside other text and calls."""


def _with_analysis(message: Mapping[str, Any]) -> Mapping[str, Any]:
    thoughts = message.get("reasoning_content")
    if not thoughts or (message.get("tool_calls") and message.get("content")):
        return message
    return {**message, "thinking": thoughts}


def _check_calls_are_shown(
    field: str,
    messages: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    rendered: Callable[[Any], Sequence[int]],
) -> None:
    """Raises ApiError where the prompt ``ids`` says nothing of the calls in the messages: without them, it
    would be the same."""
    calling = [number for number, message in enumerate(messages) if "tool_calls" in message]
    if not calling:
        return
    silent = [
        {**message, "tool_calls": None, "content": message["content"] or ""}
        if "tool_calls" in message
        else message
        for message in messages
    ]
    try:
        without = rendered(silent)
    except UsageError:
        return  # it asks for them
    if without == ids:
        raise refused(
            f"{field}[{calling[0]}].tool_calls",
            "this model's chat template shows no calls of tools; leave such messages out, or say as text "
            "what was called",
        )


async def text_prompts(model: AsyncSwarmModel, request: TextRequest) -> list[tuple[int, ...]]:
    """Token ids of each prompt. Raises ApiError."""
    found = []
    for number, prompt in enumerate(request.prompts):
        name = "prompt" if len(request.prompts) == 1 else f"prompt[{number}]"
        literal = [(0, len(prompt))] if request.all_text else []
        ids: Sequence[int] = (
            prompt if isinstance(prompt, tuple) else await _encoded(model, name, prompt, literal)
        )
        found.append(_checked(ids, model, name))
    return found


async def prompt_texts(
    model: AsyncSwarmModel, request: TextRequest, prompts: Sequence[Sequence[int]]
) -> list[str]:
    """The prompts as they are echoed."""
    texts = []
    for prompt, ids in zip(request.prompts, prompts, strict=True):
        text = prompt if isinstance(prompt, str) else await aside(model, "prompt", _decoder(model, ids))
        texts.append(text)
    return texts


def wanted(
    model: AsyncSwarmModel,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    extra: GenerateOptions,
    *,
    default_tokens: int,
) -> list[WantedChoice]:
    """``n`` generations for each prompt, in order. ``default_tokens``: at most as many, where neither the
    request nor its API says it. Raises ApiError where one does not fit the context, and need not."""
    for token in sampling.logit_bias:
        if token >= model.vocab_size:
            raise wrong("logit_bias", f"token ids are below {model.vocab_size}")
    for token in sampling.options.get("stop_token_ids", ()):
        if token >= model.vocab_size:
            raise wrong("stop_token_ids", f"token ids are below {model.vocab_size}")
    found = []
    for prompt in prompts:
        room = model.context - len(prompt)
        tokens = sampling.max_tokens
        if tokens is None or sampling.fits:
            tokens = min(tokens or sampling.default_tokens or default_tokens, room)
        if tokens > room:
            raise wrong(
                sampling.length_field,
                f"{tokens} new tokens and the prompt's {len(prompt)} are more than the {model.context} that "
                "the model's context holds",
                code="context_length_exceeded",
            )
        for number in range(sampling.n):
            seed = None if sampling.seed is None else sampling.seed + number
            options: GenerateOptions = {
                **(model.chat_sampling if sampling.advised else {}),
                **sampling.options,
                **extra,
                "max_new_tokens": tokens,
                "seed": seed,
                "logit_bias": sampling.logit_bias,
            }
            found.append(WantedChoice(prompt, options))
    return found


def _checked(ids: Sequence[int], model: AsyncSwarmModel, name: str) -> tuple[int, ...]:
    if not ids:
        raise wrong(name, "is empty")
    if len(ids) >= model.context:
        raise wrong(
            name,
            f"has {len(ids)} tokens, but the model's context holds {model.context}, answer included",
            code="context_length_exceeded",
        )
    if any(not 0 <= token < model.vocab_size for token in ids):
        raise wrong(name, f"holds token ids outside 0 to {model.vocab_size - 1}")
    return tuple(ids)


async def _encoded(
    model: AsyncSwarmModel, name: str, text: str, literal: Sequence[tuple[int, int]]
) -> list[int]:
    return await aside(model, name, lambda: model.tokenizer.encode(text, literal=literal, most=model.context))


def _decoder(model: AsyncSwarmModel, ids: Sequence[int]) -> Callable[[], str]:
    return lambda: model.tokenizer.decode(ids)


async def aside(model: AsyncSwarmModel, name: str, work: Callable[[], T]) -> T:
    """``work`` on the field ``name`` in the model's own thread: the event loop has others to serve."""
    try:
        return await model.reader.run(work)
    except PromptTooLongError as error:
        raise wrong(name, error.message, code="context_length_exceeded") from None
    except TimeoutError:
        raise ApiError(
            503,
            f"{name}: it was not read in time, since too many prompts of this model are being read",
            kind="server_error",
            code="overloaded",
            headers={"Retry-After": "5"},
        ) from None
