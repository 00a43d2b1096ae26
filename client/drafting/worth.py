"""Which guesses are worth sending: a pure decision, made of measurements.

A guess that is right saves its answer a trip through the route. A row costs its time at the slowest stage of
the route, and others there what the price says; in one step with a certain token it also holds that token up
at every stage. So a guess is sent if its chance is at least the price, and its own cost as a part of a trip.

What is at stake is bounded: all trips of an answer together may be behind plain decoding by LOSS_PART of its
time and by FIRST_STAKE trips at most. That also pays for trying again what did not help earlier. And no more
rows are under way than was tried before without a loss, twice as many each time.

No clock, no I/O: times are given in, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low

from ...swarm.routing.prediction import Prediction
from .flight import STEP_TOKENS

MOST_AHEAD = 128
"""At most this many guesses are under way."""
RECENT_TRIPS = 9
"""Trips whose lower third is what one takes: those that were held up by something do not matter."""
FEWEST_TRIPS = 3
"""Trips that are measured before anything is guessed, where none was predicted. A prediction counts until one
was measured: the first sends guesses behind its certain token, which do not hold that up."""
RECENT_GAPS = 15
"""Steps sent together, whose lower third tells how fast the slowest stage is."""
FEWEST_GAPS = 3
"""Of so many it is believed that steps are faster than was said."""
STALE_TRIPS = 16
"""Trips with guesses after which a plain one is made, unless they bring BRINGS_MUCH tokens each: what plain
trips take must stay known."""
BRINGS_MUCH = 1.5
NEWEST_WEIGHT = 0.2
"""Of a trip's tokens, in the moving average of them."""
LOSS_PART = 0.01
FIRST_STAKE = 0.25
MOST_CREDIT = 6.0
"""Trips' worth of old gains that may be lost again."""
DEAR_ROW = 0.1
"""The assumed cost of a row at a stage, as a part of a trip, where nothing is known."""
FIRST_PART = 0.25
"""At first so many rows are under way at most as should take this part of a trip at the slowest stage."""
FIRST_ROWS = (4, 32)
"""But at least and at most so many."""
MOST_OF_STEP = 0.65
"""No more of a step than this is taken for that of its one row, whatever was predicted: else the smallest
steps would look best, and longer ones were never measured."""
FAR_STEPS = 8
"""A stage waits for most of a trip that takes longer than so many steps there."""
LOST_PART = 0.25
"""A trip that is late by this part of one was held up by what was sent: less is tried next."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a step takes: ``step_s`` for itself and ``row_s`` for each row at the slowest stage, and
    ``all_rows_s`` for each row at all stages together."""

    step_s: float
    row_s: float
    all_rows_s: float

    @property
    def each_s(self) -> float:
        """A row's part of a full step at the slowest stage."""
        return self.row_s + self.step_s / STEP_TOKENS


@dataclass(frozen=True, slots=True)
class Choice:
    """Of a chain of guesses, ``first`` go in one step with the certain token, and ``more`` behind it."""

    first: int = 0
    more: int = 0


class Worth:
    """The decision for one answer. ``predicted``: what the route should cost. ``price``: the least chance of
    a guess that others on the same hops do not pay for."""

    def __init__(self, predicted: Prediction | None = None, most_ahead: int = MOST_AHEAD) -> None:
        self.price = 0.0
        self._predicted_s = None if predicted is None else predicted.token_s
        self._rows = _predicted_rows(predicted)
        self._most_ahead = most_ahead
        self._plain: deque[float] = deque(maxlen=RECENT_TRIPS)
        self._loaded: deque[float] = deque(maxlen=RECENT_TRIPS)
        self._full_gaps: deque[tuple[int, float]] = deque(maxlen=RECENT_GAPS)  # rows of a step, and seconds
        self._short_gaps: deque[tuple[int, float]] = deque(maxlen=RECENT_GAPS)  # of those that are not full
        self._since_plain = 0
        self._brought = 1.0  # tokens a trip
        self._credit_s = 0.0  # gained against plain decoding, as far as it may be staked
        self._window = 0.0  # rows that may be under way, as some were and were right
        self._first_part = FIRST_PART
        self._found: tuple[float | None, Rows] | None = None  # of all that was measured by now

    @property
    def trip_s(self) -> float | None:
        """Seconds of a plain trip; None: not known."""
        return self._by_now[0]

    @property
    def rows(self) -> Rows:
        """As predicted or told, or assumed, as far as that goes with how fast steps came that were sent
        together."""
        return self._by_now[1]

    @property
    def _by_now(self) -> tuple[float | None, Rows]:
        """Asked for many times with each guess, and found once for each measurement."""
        if self._found is None:
            trip_s = self._find_trip_s()
            self._found = trip_s, self._find_rows(trip_s)
        return self._found

    def _find_trip_s(self) -> float | None:
        plain, usual_s = self._plain, self._predicted_s
        if plain and (usual_s is not None or len(plain) >= FEWEST_TRIPS):
            usual_s = _lower_third(plain)
        return usual_s if usual_s is None or not self._loaded else min(usual_s, median_low(self._loaded))

    def _find_rows(self, trip_s: float | None) -> Rows:
        told = self._rows
        full_s = self._full_step_s(0.0 if told is None else told.step_s)
        if told is None and full_s:
            return Rows(full_s / 2, full_s / 2 / STEP_TOKENS, full_s / 2)
        if told is None:
            dear_s = DEAR_ROW * (trip_s or 0.0)
            rows = Rows(dear_s, dear_s, dear_s)
        else:
            part = self._part(told)
            rows = Rows(told.step_s * part, told.row_s * part, told.all_rows_s * part)
        row_s = max(rows.row_s, (full_s - rows.step_s) / STEP_TOKENS)
        step_s = max(rows.step_s, _lower_third([gap_s - count * row_s for count, gap_s in self._short_gaps]))
        return Rows(step_s, row_s, rows.all_rows_s + row_s - rows.row_s)

    def _full_step_s(self, step_s: float) -> float:
        """What a full step takes, by those that were sent together; with branches they have more rows than
        that. ``step_s``: what one takes for itself."""
        return _lower_third(
            [step_s + max(0.0, gap_s - step_s) * STEP_TOKENS / count for count, gap_s in self._full_gaps]
        )

    def _part(self, told: Rows) -> float:
        """Of what was predicted or ``told``, steps took so much that were sent together; 1 at most. In all,
        since a few that come at once were held up together before."""
        gaps = [*self._full_gaps, *self._short_gaps]
        told_s = sum(told.step_s + count * told.row_s for count, _ in gaps)
        if len(gaps) < FEWEST_GAPS or not told_s:
            return 1.0
        return min(1.0, sum(gap_s for _, gap_s in gaps) / told_s)

    def told(self, rows_s: Sequence[float], line_s: float, price: float) -> None:
        """What the hops say now: the seconds of a row at each of them, 0 where one does not know, and on the
        slowest line; and what a row costs others."""
        self.price = price
        rows = self._rows
        if rows is not None and rows_s and all(rows_s):
            lines_s = (len(rows_s) + 1) * line_s
            self._rows = Rows(rows.step_s, max(*rows_s, line_s), sum(rows_s) + lines_s)
            self._found = None

    @property
    def brought(self) -> float:
        """Tokens a trip, of late."""
        return max(1.0, self._brought)

    @property
    def least(self) -> float:
        """The least chance of a guess that is worth a row; 1 where nothing is known."""
        trip_s = self.trip_s
        if not trip_s:
            return 1.0
        return max(self.price, self.rows.each_s / trip_s)

    def room(self, under_way: int) -> int:
        """How many guesses more may be under way."""
        trip_s = self.trip_s
        if not trip_s:
            return 0
        each_s = self.rows.each_s
        staked = (self._credit_s + FIRST_STAKE * trip_s) / each_s if each_s > 0 else MOST_AHEAD
        most = min(self._most_ahead, int(max(0.0, min(staked, self._tried(trip_s)))))
        return max(0, most - under_way)

    def behind(self, chances: Sequence[float]) -> int:
        """How many of a chain are worth rows behind others that are under way; ``chances``: that each and all
        before it are right."""
        least = self.least
        worth = 0
        while worth < len(chances) and chances[worth] >= least:
            worth += 1
        return worth

    def choose(self, chances: Sequence[float]) -> Choice:
        """What of a chain to send with and behind a certain token, while nothing is under way."""
        worth = min(self.behind(chances), self.room(0))
        trip_s = self.trip_s
        if not worth or trip_s is None:
            return Choice()
        if self._since_plain >= STALE_TRIPS and self._brought < BRINGS_MUCH:
            return Choice()
        most = min(worth, STEP_TOKENS - 1) if self._plain else 0
        choices = [Choice(first, worth - first) for first in range(most + 1)]
        choices += [Choice(choice.first) for choice in choices if choice.more]
        return max(choices, key=lambda choice: self._gain_s(choice, chances, trip_s))

    def _gain_s(self, choice: Choice, chances: Sequence[float], trip_s: float) -> float:
        """What ``choice`` should save, in seconds."""
        rows, sent = self.rows, choice.first + choice.more
        together_s = choice.first * rows.all_rows_s  # the certain token is held up
        if not choice.more:
            return sum(chances[:sent]) * trip_s - together_s
        # What goes behind comes a step later, and each of its rows takes its time at each stage. Where the
        # route is short, the next certain token comes to stages that are still busy with it.
        behind = self.cut(chances[choice.first : choice.first + choice.more])[0]
        step_s = rows.step_s + (1 + choice.first) * rows.row_s
        behind_s = step_s + (behind - 1) * rows.all_rows_s
        busy_s = max(0.0, step_s + rows.step_s + behind * rows.row_s - trip_s)
        right = chances[choice.first]
        return sum(chances[:sent]) * trip_s - right * behind_s - (1 - right) * (together_s + busy_s)

    def cut(self, chances: Sequence[float], most: int = STEP_TOKENS) -> list[int]:
        """How many guesses of a chain go in each step, ``most`` at most. A step waits at every stage for all
        its rows; those that are less likely go in a step of their own, where that costs less."""
        rows, steps, begun = self.rows, [0], 1.0
        far = (self.trip_s or 0.0) > FAR_STEPS * rows.step_s
        for chance in chances:
            likely, left = chance / begun if begun else 0.0, most - steps[-1]
            waits = (1 - likely) * left * rows.all_rows_s > likely * rows.step_s
            if (far and steps[-1] and waits) or not left:
                steps.append(0)
                begun = chance
            steps[-1] += 1
        return steps if chances else []

    def trip(self, seconds: float, tokens: int, *, loaded: bool) -> None:
        """A certain token's result came after ``seconds``, with ``tokens`` chosen. ``loaded``: guesses went
        with it, or wrong ones may have been before it."""
        trip_s = self.trip_s
        (self._loaded if loaded else self._plain).append(seconds)
        self._found = None
        self._since_plain = self._since_plain + 1 if loaded else 0
        if trip_s is not None and (by_now_s := self.trip_s) is not None:
            trip_s = min(trip_s, by_now_s)  # a prediction that was too long is no gain
        self._won(trip_s, seconds, tokens, loaded)

    def step(self, seconds: float, tokens: int) -> None:
        """Another step's result came ``seconds`` after the one before, with ``tokens`` chosen."""
        self._won(self.trip_s, seconds, tokens, True)

    def gap(self, seconds: float, rows: int) -> None:
        """A step of ``rows`` came ``seconds`` after the one that was sent together with it."""
        self._found = None
        (self._full_gaps if rows >= STEP_TOKENS else self._short_gaps).append((rows, seconds))

    def over(self, tokens: int) -> None:
        """A round has ended, which brought so many tokens."""
        self._brought += NEWEST_WEIGHT * (tokens - self._brought)

    def accepted(self, guesses: int) -> None:
        """So many were right: as many more may be under way."""
        if (trip_s := self.trip_s) is not None:
            self._window = min(float(MOST_AHEAD), self._tried(trip_s) + guesses)

    def _won(self, trip_s: float | None, seconds: float, tokens: int, loaded: bool) -> None:
        if trip_s is None:
            return
        won_s = LOSS_PART * trip_s * tokens
        if loaded:  # a plain trip is no gain and no loss, however long it took
            won_s += tokens * trip_s - seconds
            if seconds - tokens * trip_s > LOST_PART * trip_s:
                self._window = self._tried(trip_s) / 2
                self._first_part /= 2
        self._credit_s = min(MOST_CREDIT * trip_s, self._credit_s + won_s)

    def _tried(self, trip_s: float) -> float:
        """Rows that were under way and brought something, and as many more; at first what a part of a trip is
        enough for, as that and rows are known by then."""
        each_s = self.rows.each_s
        rows = self._first_part * trip_s / each_s if each_s > 0 else FIRST_ROWS[1]
        return max(self._window, min(float(FIRST_ROWS[1]), max(float(FIRST_ROWS[0]), rows)))


def _lower_third(seconds: Collection[float]) -> float:
    """What is usual, where some were held up; 0 of none."""
    return sorted(seconds)[(len(seconds) - 1) // 3] if seconds else 0.0


def _predicted_rows(predicted: Prediction | None) -> Rows | None:
    """Hops compute rows more as they do a prompt's; but a step takes some for itself, too."""
    if predicted is None or not predicted.prompt_tokens:
        return None
    hops = predicted.hops
    each = [min(hop.prefill_s / predicted.prompt_tokens, MOST_OF_STEP * hop.compute_s) for hop in hops]
    alone = [hop.compute_s - row_s for hop, row_s in zip(hops, each, strict=True)]
    return Rows(max(alone), max(each), sum(each))
