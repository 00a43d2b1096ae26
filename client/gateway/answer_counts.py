"""Answers of one kind, of one model: how long they took, and how many tokens they had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...swarm.runtime.histogram import Distribution, Histogram
from ..generation import Generation

# The buckets of OpenTelemetry's conventions for generative AI.
REQUEST_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
USAGE_BOUNDS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


@dataclass(frozen=True, slots=True)
class AnswerTotals:
    """Answers of one kind, of one model. ``seconds``: of each, by its error's code, "" for none. Tokens and
    times are of answers that began, also if they failed then. ``prompt``: tokens of each prompt, of which the
    peers held ``cached_tokens`` from before; ``answer``: of each answer. ``drafted`` tokens were fed before
    they were chosen, of which ``accepted`` were right."""

    seconds: Mapping[str, Distribution]
    first_token_s: Distribution
    token_s: Distribution
    prompt: Distribution
    answer: Distribution
    cached_tokens: int
    drafted: int
    accepted: int


class AnswerCounts:
    """AnswerTotals in the making."""

    def __init__(self) -> None:
        self._seconds: dict[str, Histogram] = {}
        self._first_token_s = Histogram(FIRST_TOKEN_BOUNDS_S)
        self._token_s = Histogram(TOKEN_BOUNDS_S)
        self._prompt = Histogram(USAGE_BOUNDS)
        self._answer = Histogram(USAGE_BOUNDS)
        self._cached_tokens = self._drafted = self._accepted = 0

    def ended(self, seconds: float, error: str) -> None:
        self._seconds.setdefault(error, Histogram(REQUEST_BOUNDS_S)).add(seconds)

    def began(self, first_token_s: float, prompt_tokens: int) -> None:
        self._first_token_s.add(first_token_s)
        self._prompt.add(prompt_tokens)

    def made(self, result: Generation) -> None:
        tokens, timings = len(result.token_ids), result.timings
        self._answer.add(tokens)
        self._cached_tokens += result.cached_tokens
        self._drafted += result.speculated.drafted
        self._accepted += result.speculated.accepted
        if tokens > 1:
            self._token_s.add(timings.decode_s / (tokens - 1))

    def totals(self) -> AnswerTotals:
        return AnswerTotals(
            {error: histogram.totals() for error, histogram in self._seconds.items()},
            self._first_token_s.totals(),
            self._token_s.totals(),
            self._prompt.totals(),
            self._answer.totals(),
            self._cached_tokens,
            self._drafted,
            self._accepted,
        )
