"""How many drafted tokens to send along with the next one: a pure decision, made of measurements.

A pass through the route costs a round trip and each hop's queue however many tokens it carries, and some
more compute for each of them. Of a draft the tokens up to the first wrong one are gained. So the best length
is the one with the most expected tokens a second, given how often drafts of their kind were right, and what
passes of that size have taken. Where nothing is gained it is 0, and the next pass is plain decoding.

What is at stake is bounded: all passes of an answer together may be behind plain decoding by LOSS_PART of its
time and by FIRST_STAKE passes at most. That also pays for trying again what did not help earlier.

No clock, no I/O: times are given in, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from .source import Kind

MAX_DRAFT = 32
"""A draft has at most this many tokens; with the one before them it goes through the route in one step."""
FORGET = 0.96
"""Weight of a trial after the next one of its kind: the last 25 or so count, since texts change."""
PRIOR_TRIALS = 3.0
"""Trials that a kind's first estimate weighs as much as."""
RECENT_PASSES = 9
"""Passes whose lower third is what one takes: those that were held up by something do not matter."""
RECENT_LONGER = 24
"""Passes of several tokens that tell what a token more takes."""
GUESS_WEIGHT = 2.0
"""The weight of a first guess of that, in tokens measured."""
UNLIKE_SIZE = 0.4
"""Weight of passes of half or twice the size."""
FEWEST_PASSES = 3
"""Plain passes that are measured before anything is drafted, where what they take was not predicted."""
UNSURE_PASSES = 5
"""Plain passes: until this many were measured, only what promises UNSURE_GAIN is drafted."""
UNSURE_GAIN = 1.5
STALE_PASSES = 16
"""Passes with drafts after which a plain pass is made instead of a draft that promises less than UNSURE_GAIN:
the time of plain passes must stay known."""
LEAST_GAIN = 1.05
"""A draft must promise this many times plain decoding's tokens a second, since estimates are not exact."""
LOSS_PART = 0.02
FIRST_STAKE = 0.5
MOST_CREDIT = 6.0
"""Passes' worth of old gains that may be lost again."""
PROBE_PASSES = 12
"""Plain passes between two tries of a draft that does not seem to pay."""
FIRST_DRAFT = 3
"""A draft has at most this many tokens before any pass of several was measured."""
DEAR_TOKEN = 0.1
"""The assumed cost of one token more, as a part of a plain pass, before it was measured."""


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """``length`` tokens of the draft are worth sending; ``rate``: tokens a second then expected."""

    length: int
    rate: float


class Acceptance:
    """How often drafted tokens of each kind were right, those before them being right."""

    def __init__(self) -> None:
        self._hits: dict[Kind, float] = {}
        self._trials: dict[Kind, float] = {}

    def chance(self, kind: Kind, prior: float) -> float:
        trials = self._trials.get(kind, 0.0)
        return (self._hits.get(kind, 0.0) + prior * PRIOR_TRIALS) / (trials + PRIOR_TRIALS)

    def tried(self, kind: Kind, right: bool) -> None:
        self._hits[kind] = self._hits.get(kind, 0.0) * FORGET + right
        self._trials[kind] = self._trials.get(kind, 0.0) * FORGET + 1


class PassTimes:
    """What a pass takes by its number of tokens: a plain pass, and a time for each token more, which may
    depend on how many they are (kernels take the first few for nearly nothing)."""

    def __init__(self, plain_s: float | None = None, token_s: float | None = None) -> None:
        self._plain: deque[float] = deque(maxlen=RECENT_PASSES)
        self._longer: deque[tuple[int, float]] = deque(maxlen=RECENT_LONGER)  # tokens more; seconds for each
        self._longer_s: deque[float] = deque(maxlen=RECENT_PASSES)
        self._plain_guess = plain_s
        self._token_guess = token_s

    @property
    def plain_passes(self) -> int:
        """Measured, of the recent ones."""
        return len(self._plain)

    @property
    def known(self) -> bool:
        """Whether anything may be built on it: one pass may have been held up."""
        return self._plain_guess is not None or len(self._plain) >= FEWEST_PASSES

    @property
    def longest(self) -> int:
        """Tokens that are not too many for what is known."""
        return 1 + (MAX_DRAFT if self._longer else FIRST_DRAFT)

    @property
    def plain_s(self) -> float | None:
        """None: nothing is known."""
        if not self._plain:
            return self._plain_guess
        usual_s = sorted(self._plain)[(len(self._plain) - 1) // 3]
        if self._longer:  # nothing that carries more takes less
            usual_s = min(usual_s, median_low(self._longer_s))
        return usual_s

    def took(self, tokens: int, seconds: float) -> None:
        if tokens == 1:
            self._plain.append(seconds)
        elif (plain_s := self.plain_s) is not None:
            # Where plain passes have become slower since they were measured, this blames the tokens. Then
            # drafts stop to pay, and plain passes are measured anew.
            self._longer.append((tokens - 1, (seconds - plain_s) / (tokens - 1)))
            self._longer_s.append(seconds)

    def expected(self, tokens: int) -> float:
        """Seconds; 0 where nothing is known."""
        plain_s = self.plain_s
        if plain_s is None:
            return 0.0
        return plain_s if tokens == 1 else plain_s + (tokens - 1) * self._token_s(tokens - 1, plain_s)

    def _token_s(self, more: int, plain_s: float) -> float:
        """The time of each token but the first: the weighted median of what passes took. A pass of many
        tokens counts more than one of few, in which a short delay looks like expensive tokens. A pass of
        another size counts less."""
        guess_s = DEAR_TOKEN * plain_s if self._token_guess is None else self._token_guess
        samples = [(guess_s, GUESS_WEIGHT)]
        for other, each_s in self._longer:
            apart = abs(more.bit_length() - other.bit_length())
            samples.append((each_s, other * UNLIKE_SIZE**apart))
        samples.sort()
        half, reached = sum(weight for _, weight in samples) / 2, 0.0
        for each_s, weight in samples:
            reached += weight
            if reached >= half:
                return max(0.0, each_s)
        return guess_s


class Speculation:
    """The decision for one answer. ``plain_s`` and ``token_s``: guesses of what a plain pass takes, and each
    token more in one."""

    def __init__(self, plain_s: float | None = None, token_s: float | None = None) -> None:
        self.times = PassTimes(plain_s, token_s)
        self.acceptance = Acceptance()
        self._credit_s = 0.0  # gained against plain decoding, as far as it may be staked
        self._since_draft = self._since_plain = 0  # passes

    def plan(self, draft: Sequence[tuple[Kind, float]], costs: Sequence[float] = ()) -> DraftPlan:
        """How much to send of a draft whose tokens are given as kind and first guess of their chance.
        ``costs``: seconds to come by each of its tokens, where they are not there yet."""
        times = self.times
        plain_s = times.plain_s
        if plain_s is None or plain_s <= 0 or not times.known:
            return DraftPlan(0, 0.0)
        plain_rate = 1 / plain_s
        unsure = times.plain_passes < UNSURE_PASSES or self._since_plain >= STALE_PASSES
        least = plain_rate * (UNSURE_GAIN if unsure else LEAST_GAIN)
        stake_s = self._stake_s(plain_s)
        best = DraftPlan(0, plain_rate)
        chance, tokens, cost_s = 1.0, 1.0, 0.0
        for number, (kind, prior) in enumerate(draft[: times.longest - 1], start=1):
            chance *= self.acceptance.chance(kind, prior)
            tokens += chance
            cost_s += costs[number - 1] if costs else 0.0
            seconds = times.expected(1 + number) + cost_s
            if seconds - plain_s > stake_s:
                break
            rate = tokens / seconds
            if rate > max(best.rate, least):
                best = DraftPlan(number, rate)
        if not best.length and self._is_time_to_probe(draft, costs, plain_s, stake_s):
            return DraftPlan(1, plain_rate)
        return best

    def passed(self, tokens: int, gained: int, seconds: float, draft_s: float = 0.0) -> None:
        """A pass of ``tokens`` has brought ``gained``; ``seconds`` from feeding to choosing, ``draft_s``
        before that."""
        plain_s = self.times.plain_s
        self.times.took(tokens, seconds)
        self._since_draft = 0 if tokens > 1 else self._since_draft + 1
        self._since_plain = 0 if tokens == 1 else self._since_plain + 1
        if plain_s is not None:
            won_s = LOSS_PART * plain_s * gained - draft_s
            if tokens > 1:  # a plain pass is no gain and no loss, however long it took
                won_s += gained * plain_s - seconds
            self._credit_s = min(MOST_CREDIT * plain_s, self._credit_s + won_s)

    def judged(self, kinds: Sequence[Kind], accepted: int) -> None:
        """Of drafted tokens ``accepted`` were right; the one behind them, if there is one, was not."""
        for kind in kinds[:accepted]:
            self.acceptance.tried(kind, True)
        if accepted < len(kinds):
            self.acceptance.tried(kinds[accepted], False)

    def _stake_s(self, plain_s: float) -> float:
        """What the next pass may take longer than a plain one."""
        return self._credit_s + FIRST_STAKE * plain_s

    def _is_time_to_probe(
        self, draft: Sequence[object], costs: Sequence[float], plain_s: float, stake_s: float
    ) -> bool:
        if not draft or self._since_draft < PROBE_PASSES:
            return False
        return self.times.expected(2) + (costs[0] if costs else 0.0) - plain_s <= min(stake_s, plain_s)


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that probably come next, in one chain: ``tokens``, the ``kinds`` that their chances are measured
    by, and first guesses of them, ``priors``.

    A chain, not a tree: a hop's KV cache and journal are lines of positions, and a rolled back line is all
    that a repair has to know. What a tree adds is the second guess at each place; with a round trip that is
    long against a token's compute, the same rows are better spent on a longer chain.
    """

    tokens: tuple[int, ...]
    kinds: tuple[Kind, ...]
    priors: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, length: int) -> Draft:
        return Draft(self.tokens[:length], self.kinds[:length], self.priors[:length])

    def before(self, stop_ids: frozenset[int]) -> Draft:
        """The part before the first of ``stop_ids``: nothing that comes after it would be used."""
        ends = (number for number, token in enumerate(self.tokens) if token in stop_ids)
        return self.first(next(ends, len(self)))


NO_DRAFT = Draft((), (), ())
