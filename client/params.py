"""What a caller may ask of a generation, and prompts in the forms they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from ..swarm.errors import PromptTooLongError, UsageError
from .decoding.checks import check_integer, impossible
from .decoding.sampling import SamplingParams
from .decoding.stopping import StopStrings
from .guided.guide import Guide
from .guided.guide_start import GuideStart
from .routing.route_wait import OnWaiting

if TYPE_CHECKING:
    from ..shards.formats.advice.sampling import SamplingAdvice
    from ..shards.tokenizer.tokenizer import Tokenizer

DEFAULT_MAX_NEW_TOKENS = 256
SPECULATE = ("auto", "off")
_CHAT_SAMPLING = {"temperature": 0.7, "top_p": 0.95}
"""Of a chat whose user says nothing, for a model whose makers advise nothing: as in most chats."""

Message = Mapping[str, Any]
"""A chat message, such as ``{"role": "user", "content": "Hello"}``."""
Prompt = str | Sequence[Message] | Sequence[int]
"""A text, a chat as a list of messages, or token ids."""
Raw = bool | Literal["text"]
"""Whether a text goes without the chat template; "text": and control tokens spelled out in it are text."""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of every ``generate`` and ``stream`` method; see ``SwarmModel``."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    stop_token_ids: Sequence[int]
    skip_special_tokens: bool
    raw: Raw
    logprobs: int | None
    guide: Guide | None
    guide_start: GuideStart | None
    speculate: Literal["auto", "off"]
    on_wait: OnWaiting | None


def chat_sampling(advice: SamplingAdvice) -> GenerateOptions:
    """How a chat samples where its user says nothing, in a terminal and on a page alike: the same question
    then gets another answer when it is asked again."""
    return cast(GenerateOptions, {**_CHAT_SAMPLING, **advice.given()})


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """GenerateOptions, checked. Raises UsageError for a value that cannot be."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    guide: Guide | None = None
    guide_start: GuideStart | None = None
    speculate: Literal["auto", "off"] = "auto"
    on_wait: OnWaiting | None = None

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, None, "1 or more")
        StopStrings(self.stop)
        _check_flag("ignore_eos", self.ignore_eos)
        _check_flag("skip_special_tokens", self.skip_special_tokens)
        for token in self.stop_token_ids:
            check_integer("stop_token_ids", token, 0, None, "token ids, 0 or more")
        if self.guide is not None and not isinstance(self.guide, Guide):
            raise impossible("guide", self.guide, 'a Guide, such as Guide("json_object")')
        if self.speculate not in SPECULATE:
            raise impossible("speculate", self.speculate, " or ".join(map(repr, SPECULATE)))
        if self.on_wait is not None and not callable(self.on_wait):
            raise impossible("on_wait", self.on_wait, "a function")

    def limited_to(self, max_new_tokens: int) -> GenerationParams:
        return replace(self, max_new_tokens=min(self.max_new_tokens, max_new_tokens))

    @classmethod
    def of(cls, options: GenerateOptions, *, vocab_size: int) -> GenerationParams:
        """``vocab_size``: token ids are below it. ``raw`` concerns the prompt: it is checked and passed
        over."""
        unknown = sorted(set(options) - set(GenerateOptions.__annotations__))
        if unknown:
            raise UsageError(
                f"generate has no option {unknown[0]!r}",
                hint=f"Options: {', '.join(GenerateOptions.__annotations__)}.",
            )
        given = cast(dict[str, Any], dict(options))
        if given.get("raw") != "text":
            _check_flag("raw", given.get("raw", False))
        given.pop("raw", None)
        sampling = {name: given.pop(name) for name in _SAMPLING & given.keys()}
        given["stop"] = _stop_strings(given.get("stop"))
        given["stop_token_ids"] = tuple(given.get("stop_token_ids") or ())
        params = cls(sampling=SamplingParams(**sampling), **given)
        params.sampling.check_vocabulary(vocab_size)
        return params


_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_LARGEST_VOCABULARY = 2**31


def check_options(options: GenerateOptions) -> None:
    """Raises UsageError for what no model can take, before there is one."""
    GenerationParams.of(options, vocab_size=_LARGEST_VOCABULARY)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise impossible(name, value, "True or False")


def _stop_strings(stop: object) -> tuple[str, ...]:
    """``StopStrings`` looks at what is in it."""
    if stop is None or isinstance(stop, str):
        return (stop,) if stop else ()
    if not isinstance(stop, Sequence):
        raise impossible("stop", stop, "a text, or a list of texts")
    return tuple(stop)


def prompt_ids(
    tokenizer: Tokenizer, prompt: Prompt, *, raw: Raw, vocab_size: int, most: int | None = None
) -> list[int]:
    """The token ids of a prompt. Blocks for as long as template and tokenizer take.

    A text becomes one user message of the model's chat template, where it has one and ``raw`` is not set;
    otherwise it is taken as it is, after the begin-of-text token where the model wants one. A list of
    messages goes through the chat template; one that ends with words of the assistant is gone on with there.
    Token ids are taken as they are. A text of far more than ``most`` tokens is refused before all of it is
    tokenized. Raises UsageError.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("the prompt is empty", hint="Give some text.")
        if tokenizer.has_chat_template and not raw:
            return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], most=most)
        literal = [(0, len(prompt))] if raw == "text" else []
        ids = tokenizer.encode(prompt, literal=literal, most=most)
    else:
        items: list[Any] = list(prompt)
        if all(isinstance(item, Mapping) for item in items) and items:
            if raw:
                raise UsageError("raw takes a text, not chat messages", hint="Leave raw out, or join them.")
            chat, continued = open_turn(items)
            more = {"continue_final_message": True} if continued else {}
            return tokenizer.apply_chat_template(chat, not continued, most=most, **more)
        if any(type(item) is not int or not 0 <= item < vocab_size for item in items):
            raise UsageError(
                "the prompt is neither a text, nor a list of chat messages, nor one of token ids",
                hint=f"Token ids are whole numbers from 0 to {vocab_size - 1}; "
                'a message is {"role": "user", "content": "..."}.',
            )
        ids = items
    if not ids:
        raise UsageError("the prompt is empty", hint="Give some text.")
    return ids


def open_turn(messages: Sequence[Message]) -> tuple[Sequence[Message], bool]:
    """A chat as it is shown to the model, and whether its last message is gone on with: words of the
    assistant at its end are the beginning of the answer. None at all begin nothing."""
    last = messages[-1]
    content = last.get("content") or ""
    if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(content, str):
        return messages, False
    return (messages, True) if content else (messages[:-1] or messages, False)


def fit_context(n_prompt: int, max_new_tokens: int, context: int) -> int:
    """How many new tokens may be made: as asked for, or as many as the context holds after the prompt.

    Raises PromptTooLongError, with the numbers, for a prompt that leaves room for none.
    """
    if n_prompt >= context:
        raise PromptTooLongError(
            f"the prompt has {n_prompt} tokens, but the model's context holds {context}, answer included",
            hint=f"Shorten the prompt by at least {n_prompt - context + 1} tokens.",
        )
    return min(max_new_tokens, context - n_prompt)
