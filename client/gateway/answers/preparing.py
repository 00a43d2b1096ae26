"""From a request to what is ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...async_model import AsyncSwarmModel
from ...params import GenerateOptions
from ..requests.prompts import WantedChoice, aside, chat_prompt, prompt_texts, text_prompts, wanted
from ..requests.request import ChatRequest, Request, TextRequest
from .chat_reading import ChatReading
from .choice_reader import ChoiceReader


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to run. ``model_id``: the model's name here. ``wanted``: its choices, ``n`` for
    each prompt; ``echoes``: what each choice's text begins with. ``prompt_tokens``: of all prompts together.
    ``chat``: how the answer to a chat is read. ``forgotten``: how many of the oldest messages are in none."""

    request: Request
    model_id: str
    model: AsyncSwarmModel
    wanted: Sequence[WantedChoice]
    echoes: Sequence[str]
    prompt_tokens: int
    chat: ChatReading | None = None
    forgotten: int = 0

    @property
    def n(self) -> int:
        return self.request.sampling.n

    def readers(self) -> list[ChoiceReader]:
        """One for each choice."""
        chat = self.chat
        eos_ids = self.model.tokenizer.eos_ids.union(self.request.sampling.options.get("stop_token_ids", ()))
        with_tokens = self.request.logprobs is not None
        return [
            ChoiceReader(chat.reader() if chat is not None else None, eos_ids, with_tokens=with_tokens)
            for _ in self.wanted
        ]


async def prepared(
    request: ChatRequest | TextRequest,
    model_id: str,
    model: AsyncSwarmModel,
    *,
    default_tokens: int,
    speculate: Literal["auto", "off"],
) -> Prepared:
    """``default_tokens``: the longest answer, where neither the request nor its API says it. Raises ApiError,
    and UsageError where the template refuses the messages."""
    n, echoes, forgotten = request.sampling.n, list[str](), 0
    chat: ChatReading | None = None
    if isinstance(request, ChatRequest):
        prompt, forgotten = await chat_prompt(model, request, default_tokens)
        prompts = [prompt]
        chat = await aside(model, request.chat_field, lambda: ChatReading(model.tokenizer, request, prompt))
    else:
        prompts = await text_prompts(model, request)
        if request.echo:
            echoes = await prompt_texts(model, request, prompts)
    options: GenerateOptions = {
        "logprobs": request.logprobs,
        "guide": chat.guide if chat is not None else request.guide,
        "guide_start": chat.start if chat is not None else None,
        "speculate": speculate,
    }
    choices = wanted(model, prompts, request.sampling, options, default_tokens=default_tokens)
    return Prepared(
        request=request,
        model_id=model_id,
        model=model,
        wanted=choices,
        echoes=[echo for echo in echoes or [""] * len(prompts) for _ in range(n)],
        prompt_tokens=sum(map(len, prompts)),
        chat=chat,
        forgotten=forgotten,
    )
