"""Fields that chat and text completions share: sampling, length, streaming."""

from __future__ import annotations

from dataclasses import dataclass

from ...params import GenerateOptions
from ..requests.fields import BodyFields, integer_of
from ..requests.sampling import (
    LEAST_TOP_P,
    MAX_BIASES,
    MAX_CHOICES,
    MAX_LENGTH,
    MAX_SEED,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Sampling,
)
from .known_fields import check_known, passed_over

_LENGTHS = ("n_predict", "num_predict", "max_new_tokens")
"""The names of ``max_tokens`` in llama.cpp, Ollama and transformers."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """``usage``: a last chunk tells it; ``continuous``: every chunk does. ``swarm_events``: further chunks
    tell what happens in the swarm."""

    usage: bool = False
    continuous: bool = False
    swarm_events: bool = False


def read_sampling(
    body: BodyFields,
    length_fields: tuple[str, ...],
    *,
    default_tokens: int | None = None,
    fits: bool = False,
) -> Sampling:
    """``length_fields``: the names of ``max_tokens`` there; two that differ are wrong. The rest is as in
    ``Sampling``."""
    check_known(body)
    options: GenerateOptions = {
        "temperature": _or(body.number("temperature", 0, 2), 1.0),
        "top_p": _or(body.number("top_p", 0, 1), 1.0) or LEAST_TOP_P,
        "top_k": max(0, body.integer("top_k", -1, MAX_LENGTH) or 0),
        "min_p": _or(body.number("min_p", 0, 1), 0.0),
        "frequency_penalty": _or(body.number("frequency_penalty", -2, 2), 0.0),
        "presence_penalty": _or(body.number("presence_penalty", -2, 2), 0.0),
        "repetition_penalty": _or(_either(body, "repetition_penalty", "repeat_penalty"), 1.0),
        "stop": body.texts("stop", most=MAX_STOPS, longest=MAX_STOP_LENGTH) if body.raw("stop") != "" else (),
        "ignore_eos": body.flag("ignore_eos") or False,
        "stop_token_ids": _token_ids(body, "stop_token_ids"),
        "skip_special_tokens": body.flag("skip_special_tokens") is not False,
    }
    if "" in options["stop"]:
        raise body.wrong("stop", "holds an empty text")
    lengths = {name: length for name in (*length_fields, *_LENGTHS) if (length := _length(body, name))}
    if len(set(lengths.values())) > 1:
        first, second = list(lengths)[:2]
        raise body.wrong(first, f"differs from {second}; give one of them")
    length_field = next(iter(lengths), "max_tokens")
    return Sampling(
        options,
        n=body.integer("n", 1, MAX_CHOICES) or 1,
        seed=body.integer("seed", -MAX_SEED, MAX_SEED - 1),
        max_tokens=lengths.get(length_field),
        length_field=length_field,
        fits=fits,
        default_tokens=default_tokens,
        logit_bias=_logit_bias(body),
    )


def _length(body: BodyFields, name: str) -> int | None:
    """-1 names none, as in llama.cpp's server and LM Studio, under the names that those know."""
    named = body.raw(name) != -1 or name == "max_completion_tokens"
    return body.integer(name, 1, MAX_LENGTH) if named else None


def _either(body: BodyFields, name: str, other: str) -> float | None:
    """A factor by one of its names."""
    values = [value for each in (name, other) if (value := body.number(each, 0.01, 100)) is not None]
    if len(set(values)) > 1:
        raise body.wrong(name, f"differs from {other}; give one of them")
    return values[0] if values else None


def read_streaming(body: BodyFields) -> Streaming | None:
    on = body.flag("stream") or False
    options = body.inner("stream_options")
    if options is None:
        return Streaming() if on else None
    options.flag("include_obfuscation")  # padding against onlookers who count bytes: optional by its meaning
    usage = options.flag("include_usage") or False
    continuous = options.flag("continuous_usage_stats") or False
    swarm_events = options.flag("swarm_events") or False
    passed_over(options)
    if not on:
        return None  # an answer in one piece always tells its usage
    return Streaming(usage=usage, continuous=usage and continuous, swarm_events=swarm_events)


def _token_ids(body: BodyFields, name: str) -> tuple[int, ...]:
    ids = body.items(name, most=MAX_STOPS) or []
    return tuple(
        integer_of(token, body.name(f"{name}[{number}]"), 0, 10**9) for number, token in enumerate(ids)
    )


def _logit_bias(body: BodyFields) -> dict[int, float]:
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
