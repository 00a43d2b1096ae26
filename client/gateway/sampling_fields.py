"""Fields that chat and text completions share: sampling, length, streaming. All that OpenAI and vLLM know is
either honoured or refused by name; what nobody knows is ignored, as they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..params import GenerateOptions
from .fields import Fields, integer_of

MAX_CHOICES = 32
"""Answers of one request, over all its prompts."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024
MAX_LOGPROBS = 20
_SEED = 2**63
_UNLIMITED = 2**31 - 1

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # Values that ask for nothing; any other is refused by name.
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": (),
    "documents": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "priority": (0,),
    "prompt_logprobs": (0, False),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
_WHY = {
    "guided_choice": "use structured_outputs.choice",
    "guided_grammar": "use structured_outputs.grammar",
    "guided_json": "use response_format, or structured_outputs.json",
    "guided_regex": "use structured_outputs.regex",
    "store": "this gateway keeps no answers",
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """``usage``: a last chunk tells it; ``continuous``: every chunk does."""

    usage: bool = False
    continuous: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """``options``: for ``AsyncSwarmModel.stream``, without ``max_new_tokens`` and ``seed``, which depend on
    the prompt and on the number of the choice. ``max_tokens``: None where the request names none.
    ``streaming``: None for one answer in one piece."""

    options: GenerateOptions
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    streaming: Streaming | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


def read_sampling(body: Fields, length_fields: tuple[str, ...]) -> Sampling:
    """``length_fields``: the names of ``max_tokens`` there; two that differ are wrong."""
    for name, neutral in _NEUTRAL.items():
        body.refuse(name, *neutral, why=_WHY.get(name, "is not supported by this gateway"))
    for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        body.text(name, longest=4096)  # they concern whoever bills and caches, and change no answer
    body.inner("metadata")
    options: GenerateOptions = {
        "temperature": _or(body.number("temperature", 0, 2), 1.0),
        # 0 means as little as possible there: the most likely token alone
        "top_p": _or(body.number("top_p", 0, 1), 1.0) or 1e-9,
        "top_k": max(0, body.integer("top_k", -1, _UNLIMITED) or 0),
        "min_p": _or(body.number("min_p", 0, 1), 0.0),
        "frequency_penalty": _or(body.number("frequency_penalty", -2, 2), 0.0),
        "presence_penalty": _or(body.number("presence_penalty", -2, 2), 0.0),
        "repetition_penalty": _or(body.number("repetition_penalty", 0.01, 100), 1.0),
        "stop": body.texts("stop", most=MAX_STOPS, longest=MAX_STOP_LENGTH) if body.raw("stop") != "" else (),
        "ignore_eos": body.flag("ignore_eos") or False,
    }
    if "" in options["stop"]:
        raise body.wrong("stop", "holds an empty text")
    lengths = {
        name: length for name in length_fields if (length := body.integer(name, 1, _UNLIMITED)) is not None
    }
    if len(set(lengths.values())) > 1:
        raise body.wrong(length_fields[0], f"differs from {length_fields[1]}; give one of them")
    return Sampling(
        options,
        n=body.integer("n", 1, MAX_CHOICES) or 1,
        seed=body.integer("seed", -_SEED, _SEED - 1),
        max_tokens=next(iter(lengths.values()), None),
        streaming=_streaming(body),
        logit_bias=_logit_bias(body),
    )


def _streaming(body: Fields) -> Streaming | None:
    on = body.flag("stream") or False
    options = body.inner("stream_options")
    if options is None:
        return Streaming() if on else None
    if not on:
        raise body.wrong("stream_options", "is only possible with stream: true")
    options.flag("include_obfuscation")  # padding against onlookers who count bytes: optional by its meaning
    usage = options.flag("include_usage") or False
    continuous = options.flag("continuous_usage_stats") or False
    return Streaming(usage=usage, continuous=usage and continuous)


def _logit_bias(body: Fields) -> dict[int, float]:
    biases = body.inner("logit_bias")
    if biases is None:
        return {}
    found: dict[int, float] = {}
    words = biases.raw_all()
    if len(words) > MAX_BIASES:
        raise body.wrong("logit_bias", f"has {len(words)} entries, {MAX_BIASES} are possible")
    for word in words:
        if not word.isascii() or not word.isdecimal() or len(word) > 9:
            raise body.wrong("logit_bias", "its keys must be token ids")
        bias = biases.number(word, -100, 100)
        if bias is not None:
            found[integer_of(int(word), "logit_bias", 0, 10**9)] = bias
    return found


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
