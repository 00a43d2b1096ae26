"""How tokens are chosen, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...params import GenerateOptions

MAX_CHOICES = 32
"""Answers of one request, over all its prompts."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_SEED = 2**63
MAX_LENGTH = 2**31 - 1
LEAST_TOP_P = 1e-9
"""What a ``top_p`` of 0 means: as little as possible, which is the most likely token alone."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """``options``: for ``AsyncSwarmModel.stream``, without ``max_new_tokens`` and ``seed``, which depend on
    the prompt and on the number of the choice; ``advised``: where they say nothing, the model's makers do.
    ``n``: answers to each prompt. ``max_tokens``: None where the
    request names none; ``length_field``: how it calls it; ``fits``: one that the context has no room for is
    cut to that room, and not wrong. ``default_tokens``: what the API takes where none is named, None for what
    the gateway does."""

    options: GenerateOptions
    advised: bool = False
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    length_field: str = "max_tokens"
    fits: bool = False
    default_tokens: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
