"""From logits to the next token: greedy, or drawn, repeatable by seed.

Filters and their order are those of transformers' logits processors, and of vLLM where transformers has none:
logit bias, repetition penalty, frequency and presence penalty, the guide's mask, temperature, top-k, top-p,
min-p. One random number is drawn per token and nothing else enters, so a repaired route, which feeds the same
tokens again, does not change what comes next; neither does it matter whether logits came one row a pass or
several.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from ...swarm.errors import RemoteProtocolError, UsageError
from .checks import check_integer, check_number

MAX_LOGPROBS = 20
"""Most likely tokens that may be asked for beside each chosen one; OpenAI's limit."""
_ROUNDED_DOWN = 1 - 2.0**-20
"""Keeps a bound on float32 values below what it was before it was rounded."""
_RUN = 512
"""Weights are summed in runs of this many, and one by one only in the run that a random number points to:
ten to thirty times faster than a running sum over a vocabulary."""
_COLDEST = 1e-30
"""Temperature below which none is taken, so that it is a number in 32 bits."""
_LARGEST = float(np.finfo(np.float32).max)
TRIES_S = 0.5
"""A guide's copies may take this many seconds of an answer for guesses. Then no guess is let through: a guide
that is dear to move costs the answer no more than that."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy: always the most likely token.

    ``temperature``: 0 is greedy; 1 draws from the model's own distribution; lower is more conservative.
    ``top_k``: draw among the k most likely tokens only; 0 is off.
    ``top_p``: draw among the most likely tokens that together reach this probability; 1 is off.
    ``min_p``: draw among the tokens at least this fraction as likely as the most likely one; 0 is off.
    ``repetition_penalty``: above 1 makes every token of prompt and answer less likely to come again; 1 is
    off. ``frequency_penalty`` (-2 to 2): taken off a token's logit for each time that the answer has it.
    ``presence_penalty`` (-2 to 2): taken off once if it has it at all. ``logit_bias``: token id → what is
    added to its logit (-100 to 100, which in practice forbid and force it). ``seed``: the same seed, prompt
    and parameters give the same answer; None draws a new one each time. ``logprobs``: tell how likely each
    chosen token was, and this number of most likely ones (0 to 20); None is off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, math.inf, "0 (greedy) or more")
        check_integer("top_k", self.top_k, 0, None, "0 (off) or more")
        check_number("top_p", self.top_p, 0, 1, "above 0 and at most 1 (off)", above=True)
        check_number("min_p", self.min_p, 0, 1, "0 (off) to 1")
        penalty = self.repetition_penalty
        check_number("repetition_penalty", penalty, 0, math.inf, "above 0; 1 is off", above=True)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2, "-2 to 2; 0 is off")
        check_number("presence_penalty", self.presence_penalty, -2, 2, "-2 to 2; 0 is off")
        _check_bias(self.logit_bias)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # whatever becomes of the caller's
        if self.seed is not None:
            check_integer("seed", self.seed, None, None, "a whole number")
        if self.logprobs is not None:
            allowed = f"0 to {MAX_LOGPROBS}, or leave it out"
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, allowed)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UsageError for a bias of an id that is not a token."""
        for token in self.logit_bias:
            if token >= vocab_size:
                raise UsageError(
                    f"logit_bias names token {token}, but the vocabulary has {vocab_size}",
                    hint=f"Give token ids from 0 to {vocab_size - 1}.",
                )


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A chosen token. With ``SamplingParams.logprobs`` also its log-probability and, in ``top``, (token id,
    log-probability) of the most likely tokens, most likely first; natural logarithms, of the model's own
    distribution: before bias, penalties, guide, temperature and filters."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class TokenRule(Protocol):
    """What only lets certain tokens follow: ``guided.TokenGuide``."""

    @property
    def is_over(self) -> bool:
        """Nothing may follow: the answer is complete."""
        ...

    def allows(self, token: int) -> bool: ...

    def allowed(self) -> np.ndarray:
        """Ids (n,), ascending, of the tokens that may come next; at least one."""
        ...

    def accept(self, token: int) -> None: ...

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, as they are usually cut; none where there is a choice."""
        ...

    def copy(self) -> TokenRule:
        """Another of the same state, which goes its own way. Cheap: guesses are tried on copies."""
        ...


class Sampler:
    """Chooses one token after another of one sequence. ``prompt`` counts for the repetition penalty;
    ``guide`` is moved on by each token."""

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int] = (), guide: TokenRule | None = None
    ) -> None:
        self.params = params
        self._guide = guide
        self._tries_s = 0.0  # spent on what may follow guesses
        self._random = random.Random(params.seed)
        self._repeats = params.repetition_penalty != 1.0
        self._counts_answer = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self._counts: dict[int, int] = {}  # token of the answer → how often
        self._seen = set(prompt) if self._repeats else set()
        self._seen_ids = np.array(sorted(self._seen), dtype=np.int64)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._offsets: np.ndarray | None = None  # (vocab,) float32: what the answer's tokens are penalized
        self._adjusts = self._repeats or self._counts_answer or len(self._bias) > 0
        self._plain = not self._adjusts and guide is None

    @property
    def is_over(self) -> bool:
        """The guide lets nothing follow: the answer is complete."""
        return self._guide is not None and self._guide.is_over

    @property
    def forced(self) -> tuple[int, ...]:
        """What the guide leaves no choice about: a draft that is nearly always right."""
        return () if self._guide is None or self._guide.is_over else self._guide.forced()

    def fitting(self) -> Callable[[Sequence[int]], int]:
        """Tells how many of some guesses, from the first on, the guide lets come next, one after the other:
        as it is now, whatever is chosen later."""
        guide = None if self._guide is None else self._guide.copy()

        def fit(guesses: Sequence[int]) -> int:
            return len(guesses) if guide is None else self._try(guide.copy(), guesses)

        return fit

    def _try(self, guide: TokenRule, guesses: Sequence[int]) -> int:
        if self._tries_s > TRIES_S:
            return 0
        began, count = perf_counter(), 0
        for token in guesses:
            if guide.is_over or not guide.allows(token):
                break
            guide.accept(token)
            count += 1
        self._tries_s += perf_counter() - began
        return count

    def choose(self, logits: np.ndarray) -> ChosenToken:
        """The next token for ``logits`` (vocab,) float32.

        Of logits for several tokens of a draft, choose row by row: the sampler's state moves by what it
        chose, never by what was drafted. Raises RemoteProtocolError if they are not finite: then some hop
        computed nonsense.
        """
        params = self.params
        best = int(logits.argmax())  # the lowest index among equals
        top = float(logits[best])
        if not math.isfinite(top):  # argmax finds NaN first, and +inf
            raise RemoteProtocolError("the logits are not finite: some hop of the route computed nonsense")
        if self._plain:
            token = best if params.temperature == 0 else self._draw(logits, top)
        else:
            token = self._choose_among(logits, best)
        if params.logprobs is None:
            return ChosenToken(token)
        return _with_logprobs(token, logits, top, params.logprobs)

    def _choose_among(self, raw: np.ndarray, best: int) -> int:
        """As ``choose`` with bias, penalties or a guide; ``best`` is the most likely of ``raw`` (vocab,)."""
        scores, greedy, guide = raw, self.params.temperature == 0, self._guide
        if self._adjusts:
            scores = self._adjusted(raw)
            best = int(scores.argmax())
        ids = None
        if guide is not None and not (greedy and guide.allows(best)):
            ids = guide.allowed()
            scores = scores[ids]
            best = int(scores.argmax())
        token = best if greedy else self._draw(scores, float(scores[best]))
        token = token if ids is None else int(ids[token])
        self._accept(token, len(raw))
        return token

    def _adjusted(self, raw: np.ndarray) -> np.ndarray:
        """A copy of ``raw`` (vocab,) with bias and penalties."""
        scores = raw.copy()
        if len(self._bias):
            scores[self._bias_ids] += self._bias
        if len(self._seen_ids):
            penalize(scores, self._seen_ids, self.params.repetition_penalty)
        if self._offsets is not None:
            scores += self._offsets
        return scores

    def _draw(self, scores: np.ndarray, top: float) -> int:
        """Index of one of ``scores`` (n,), of which ``top`` is the largest."""
        params = self.params
        # Relative to the best, so that no temperature, however low, overflows.
        with np.errstate(over="ignore"):
            relative = (scores - top) / np.float32(max(params.temperature, _COLDEST))
        chance = self._random.random()
        if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
            return drawn(np.exp(relative, out=relative), chance)
        ids, probabilities = candidates(relative, params.top_k, params.top_p, params.min_p)
        return int(ids[drawn(probabilities, chance)])

    def _accept(self, token: int, vocab_size: int) -> None:
        params = self.params
        if self._repeats and token not in self._seen:
            self._seen.add(token)
            self._seen_ids = np.append(self._seen_ids, token)
        if self._counts_answer:
            if self._offsets is None:
                self._offsets = np.zeros(vocab_size, np.float32)
            count = self._counts[token] = self._counts.get(token, 0) + 1
            self._offsets[token] = -(params.frequency_penalty * count + params.presence_penalty)
        if self._guide is not None:
            self._guide.accept(token)


def _with_logprobs(token: int, raw: np.ndarray, top: float, count: int) -> ChosenToken:
    """``raw`` (vocab,): the model's logits, of which ``top`` is the largest; ``count``: most likely tokens to
    tell."""
    log_sum = top + math.log(np.exp(raw - top).sum(dtype=np.float64))
    ids = _largest(raw, count) if 0 < count < len(raw) else np.arange(len(raw) if count else 0)
    likely = sorted(((float(raw[index]), int(index)) for index in ids), key=lambda pair: (-pair[0], pair[1]))
    top_pairs = tuple((index, value - log_sum) for value, index in likely[:count])
    return ChosenToken(token, float(raw[token]) - log_sum, top_pairs)


def penalize(scores: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Divide scores of the ids ``seen`` by ``penalty`` where positive, multiply them where negative (CTRL
    paper), in place; ``scores`` (vocab,) float32, ``seen`` without repeats."""
    chosen = scores[seen]
    with np.errstate(over="ignore"):
        changed = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    scores[seen] = np.clip(changed, -_LARGEST, _LARGEST)


def candidates(
    scores: np.ndarray, top_k: int, top_p: float, min_p: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,), ascending, that survive top-k, top-p and min-p in this order, and their probabilities (n,),
    summing to 1.

    ``scores`` (vocab,) float32, relative to the largest. Of equal scores at the edge of top-k all survive, as
    in transformers.
    """
    ids = _largest(scores, top_k) if 0 < top_k < len(scores) else None  # None: all
    weights = np.exp(scores if ids is None else scores[ids])
    if top_p < 1:
        ids, weights = _only(_nucleus(weights, top_p), ids, weights)
    if min_p > 0:
        likely = np.flatnonzero(weights >= np.float32(min_p) * weights.max())
        ids, weights = _only(likely, ids, weights)
    return np.arange(len(weights)) if ids is None else ids, weights / weights.sum()


def drawn(weights: np.ndarray, chance: float) -> int:
    """Index of the one of ``weights`` (n,) float32, in proportion to which they are drawn, that ``chance``
    (0 to 1) points to. By ascending index, with sums in float64: steady under tiny changes."""
    whole = len(weights) // _RUN * _RUN
    sums = weights[:whole].reshape(-1, _RUN).sum(axis=1, dtype=np.float64)
    ends = np.append(sums, weights[whole:].sum(dtype=np.float64)).cumsum()  # of the runs
    point = chance * ends[-1]
    run = _passes(ends, point)
    if run:
        point -= ends[run - 1]
    start = run * _RUN
    return start + _passes(weights[start : start + _RUN].cumsum(dtype=np.float64), point)


def _passes(sums: np.ndarray, point: float) -> int:
    """Index of the first of ascending ``sums`` above ``point``, or of the first that is the largest, which
    ``point`` may reach by rounding: never of one that nothing was added for."""
    return min(int(sums.searchsorted(point, side="right")), int(sums.searchsorted(sums[-1])))


def _only(kept: np.ndarray, ids: np.ndarray | None, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries at the indices ``kept``."""
    return kept if ids is None else ids[kept], weights[kept]


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Ascending indices of the fewest largest entries that reach ``top_p`` of all together; the first ones
    where not all of some equals belong to them."""
    total = float(weights.sum(dtype=np.float64))
    # All entries below this come to less than 1 - top_p of the total: the others reach top_p without them.
    kept = np.flatnonzero(weights >= (1 - top_p) * total / len(weights) * _ROUNDED_DOWN)
    largest = np.sort(weights[kept])[::-1]
    # One more than do not reach it, however small it is.
    count = min(len(largest), 1 + int(largest.cumsum(dtype=np.float64).searchsorted(top_p * total)))
    least = largest[count - 1]
    kept = kept[weights[kept] >= least]
    if len(kept) > count:
        equal = np.flatnonzero(weights[kept] == least)
        kept = np.delete(kept, equal[count - len(kept) :])
    return kept


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the ``count`` largest of ``values`` (n,), and of all that equal the least of
    them."""
    place = len(values) - count
    return np.flatnonzero(values >= np.partition(values, place)[place])


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit_bias {bias!r} is not possible", hint="Give a mapping of token id to bias.")
    for token, value in bias.items():
        check_integer("the token id of logit_bias", token, 0, None, "token ids of the model's vocabulary")
        check_number(f"the logit_bias of token {token}", value, -100, 100, "-100 to 100")
