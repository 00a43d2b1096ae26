"""What an answer sends: certain tokens and guesses that are worth it, in steps; and what those brought.

``Flight`` is what is under way. Here its steps are timed and its guesses counted, which the next choice is
made from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...swarm.routing.prediction import Prediction
from ..hops.trace import HopTimings, Repair
from .at_hand import FORCED, LEARNED_AS_THEY_COME
from .chances import ANY, Chances
from .flight import STEP_TOKENS, Came, Flight, Judged, Sent, Stream
from .price import price_on
from .source import Guess
from .tree import STEP_GUESSES, Branch, computed, is_second, second
from .worth import Choice, Worth

TOGETHER = 0.5
"""Steps were sent together if no more than this part of the time between their results was between them."""


class Session(Stream, Protocol):
    """What tokens go through: a ``SwarmSession``."""

    @property
    def most_ahead(self) -> int: ...

    @property
    def takes_branches(self) -> bool: ...

    @property
    def predicted(self) -> Prediction | None: ...

    @property
    def hops(self) -> Sequence[HopTimings]: ...

    @property
    def line_row_s(self) -> float: ...

    @property
    def repaired(self) -> Sequence[Repair]: ...

    async def look_around(self) -> None: ...


@dataclass(slots=True)
class _Step:
    """Under way. ``certain``: begins with a certain token. ``loaded``: guesses may hold that up."""

    sent_at: float
    rows: int
    certain: bool = False
    loaded: bool = False


class Sending:
    """For an answer of ``most_tokens`` at most, which ``session`` holds up to before its first tokens,
    ``tokens``. ``left``: how many guesses may follow these: an answer's last token is never fed.

    ``passes``: rounds begun, each with a certain token while nothing is under way. ``drafted``: guesses sent,
    of which ``accepted`` were right.
    """

    def __init__(
        self,
        session: Session,
        tokens: Sequence[int],
        most_tokens: int,
        chances: Chances,
        clock: Callable[[], float],
    ) -> None:
        self.session = session
        self.flight = Flight(session, tokens[-1])
        self.worth = Worth(session.predicted)
        self.chances = chances
        self.left = most_tokens - len(tokens) - 1
        self.passes = self.drafted = self.accepted = 0
        self._clock = clock
        self._steps: deque[_Step] = deque()
        self._in_round = 1  # tokens since a certain one was sent alone
        self._void = False  # wrong guesses may be before the next certain token
        self._repairs = len(session.repaired)
        self._received_at = self._counted_at = self._last_sent_at = 0.0

    # What is sent.

    def room(self, under_way: int) -> int:
        """How many guesses more may be under way."""
        most = min(self.left, self.session.most_ahead, under_way + self.worth.room(under_way))
        return most - under_way

    def worth_behind(self, guesses: Sequence[Guess]) -> int:
        """How many of a chain are worth rows behind what is under way."""
        if not guesses:
            return 0
        under_way = [sent.guess for sent in self.flight.guesses]
        chances = self.chances.along([*under_way, *guesses])[len(under_way) :]
        return min(self.worth.behind(chances), self.worth.room(self.flight.rows))

    def cut(self, guesses: Sequence[Guess], *, small: bool) -> list[int]:
        """How many guesses go in each step; few in a step that has branches."""
        return self.worth.cut(self.chances.along(guesses), STEP_GUESSES if small else STEP_TOKENS)

    def begin(self, x: np.ndarray | None, guesses: Sequence[Guess]) -> int:
        """Where nothing is under way: send the certain tokens, with and before what is worth it of
        ``guesses``. How many of these were sent."""
        flight = self.flight
        choice = self.worth.choose(self.chances.along(guesses)) if guesses else Choice()
        number = min(choice.first, STEP_TOKENS - flight.certain)
        sent = choice.first + choice.more
        rows = flight.certain + number
        self._steps.append(_Step(self._clock(), rows, True, self._void or rows > 1))
        flight.begin(x, guesses[:number])
        self.passes += 1
        self.drafted += number
        self._void = False
        self.extend(guesses[number:sent])
        return sent

    def extend(self, guesses: Sequence[Guess], branches: Sequence[Branch] = ()) -> None:
        """Send ``guesses`` behind those under way, with ``branches`` in their places."""
        if not guesses:
            return
        now, start = self._clock(), 0
        for rows in self.cut(guesses, small=bool(branches)):
            own = [replace(each, place=each.place - start) for each in branches]
            own = [each for each in own if 0 <= each.place < rows]
            self._steps.append(_Step(now, rows + computed(own)))
            self.flight.extend(guesses[start : start + rows], own)
            start += rows
        self.drafted += len(guesses) + sum(len(each.guesses) for each in branches)

    def give_up(self) -> None:
        """What is under way is of no use any more, but may hold up what comes."""
        self.flight.void()
        self._steps.clear()
        self._void = True

    # What it brings.

    def hear(self) -> None:
        """What the hops say that rows cost."""
        session, worth = self.session, self.worth
        hops = session.hops
        worth.told([hop.load.row_s for hop in hops], session.line_row_s, price_on(hops, worth.trip_s or 0.0))

    async def receive(self) -> Came | None:
        """As ``Flight.receive``."""
        came = await self.flight.receive()
        if came is not None:
            self._measure_gap()
        return came

    def _measure_gap(self) -> None:
        """How long after the last step the oldest one came, if they were sent together."""
        before, self._received_at = self._received_at, self._clock()
        step, last = self._steps[0], self._last_sent_at
        gap = self._received_at - before
        if not step.certain and step.sent_at - last <= TOGETHER * gap:
            self.worth.gap(gap, step.rows)
        self._last_sent_at = step.sent_at

    def judge(self, tokens: Sequence[int]) -> Judged:
        """As ``Flight.judge``."""
        self._account(self._steps.popleft(), len(tokens))
        judged = self.flight.judge(tokens)
        self.left -= len(tokens)
        if judged.guesses:
            self._learn(judged.guesses)
        return judged

    def _account(self, step: _Step, tokens: int) -> None:
        """What was gained and lost by the step whose rows ``tokens`` were chosen from."""
        now, repairs = self._clock(), len(self.session.repaired)
        undisturbed, self._repairs = repairs == self._repairs, repairs
        if step.certain:
            self.worth.over(self._in_round)
            self._in_round = 0
        self._in_round += tokens
        if undisturbed and step.certain:
            self.worth.trip(now - step.sent_at, tokens, loaded=step.loaded)
        elif undisturbed:
            self.worth.step(now - self._counted_at, tokens)

    def went_on(self) -> None:
        """What is next was sent: until now, time counts to the step before."""
        self._counted_at = self._clock()

    def _learn(self, judged: Sequence[tuple[Sent, int]]) -> None:
        rights = 0
        for sent, token in judged:
            guess, right = sent.guess, sent.guess.token == token
            rights += right
            self.chances.count(guess.kind[0], sent.depth, right)
            if (other := second(guess)) is not None:
                self.chances.judged(other.kind, other.token == token)
            if is_second(guess.kind) or guess.kind[0] in LEARNED_AS_THEY_COME:
                continue  # learned with the first, or before
            self.chances.judged(guess.kind, right)
            if guess.kind is not FORCED:
                self.chances.judged(ANY, right)
        self.accepted += rights
        self.worth.accepted(rights)
