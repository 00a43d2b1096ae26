"""The task that asks a source which takes a while, a model, token by token while results come. Each of its
guesses is sent as soon as it is there, or waits for the next certain token.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import log

import numpy as np

from .at_hand import AtHand
from .flight import STEP_TOKENS
from .sending import Sending
from .source import Guess, Source
from .tree import MOST_NODES, Branch, Soil, grow, second
from .worth import MOST_AHEAD

logger = logging.getLogger(__name__)

AWAY_GUESSES = 2.0
"""A guess behind a second one takes a source the time of so many: it goes back to the chain afterwards."""
RECENT_GUESSES = 9
"""Guesses whose lower third is what one takes; the first wait for others, or read what came meanwhile."""


class Asking:
    """Asks ``source`` for guesses behind what ``sending`` has under way. ``waiting``: those that were not
    sent yet. ``seconds``: that the source took."""

    def __init__(self, source: Source, sending: Sending, at_hand: AtHand, clock: Callable[[], float]) -> None:
        self.waiting: list[Guess] = []
        self.seconds = 0.0
        self._source: Source | None = source
        self._sending = sending
        self._at_hand = at_hand
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._growing = False  # branches of what waits are asked for
        self._line = 0  # changes where the source would have to guess something else
        self._guess_times: deque[float] = deque(maxlen=RECENT_GUESSES)

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        """As ``Source.came``."""
        if self._source is not None:
            self._source.came(tokens, hidden)

    def new_line(self) -> None:
        """What is under way has changed, not by the guesses of this source: those that wait are of no use."""
        self._line += 1
        self.waiting = []

    def promises_more(self, guesses: Sequence[Guess]) -> bool:
        """Whether the source, as long as there is one, promises more than a chain of ``guesses``."""
        if self._source is None:
            return False
        chances = self._sending.chances
        chance = chances.of_next
        return chance >= 1 or chances.promised(guesses) < chance / (1 - chance)

    def go_on(self) -> None:
        """Ask, if that may be worth it. Raises what the task raised, if it has ended."""
        self.check()
        if self._source is not None and self._task is None and self._wants_more():
            self._task = asyncio.create_task(self._guess_on(self._source), name="drafting")

    def check(self) -> None:
        """Raises what the task raised, if it has ended."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()

    def close(self) -> None:
        """Ask for nothing any more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._end()

    def _end(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    # The task.

    async def _guess_on(self, source: Source) -> None:
        """Token by token, for as long as the next one may be worth a row."""
        sent_at = self._clock()
        try:
            while self._wants_more():
                line, began = self._line, self._clock()
                guess = await source.guess(self._ahead)
                seconds = self._clock() - began
                self.seconds += seconds
                if line != self._line:
                    continue
                if guess is None or not (possible := self._either(guess)):
                    break
                self._guess_times.append(seconds)
                self.waiting += possible
                if len(self.waiting) >= STEP_TOKENS or self._clock() - sent_at >= self._step_s:
                    await self._send_grown(source)
                    sent_at = self._clock()
            await self._send_grown(source)
        except (RuntimeError, MemoryError) as error:  # the answer can do without
            logger.warning("event=draft_source_failed error=%r", str(error))
            self._end()
            self.send_waiting()

    async def _send_grown(self, source: Source) -> None:
        """Send what waits, with branches."""
        line, self._growing = self._line, True
        try:
            grown = await self._grow(source)
        finally:
            self._growing = False
        if line == self._line:
            self.send_waiting(grown)

    def send_waiting(self, grown: Sequence[Branch] = ()) -> None:
        """Send what is worth it of what waits, with the branches that have ``grown``."""
        sending = self._sending
        flight = sending.flight
        if not self.waiting or self._growing or flight.is_over or flight.has_turned:
            return  # where nothing is under way they go with the next certain token
        worth = sending.worth_behind(self.waiting)
        guesses, self.waiting = self.waiting[:worth], self.waiting[worth:]
        sending.extend(guesses, [each for each in grown if each.place < worth])

    async def _grow(self, source: Source) -> tuple[Branch, ...]:
        """Branches in the places of what waits."""
        sending, line = self._sending, self._line
        flight, worth, chances = sending.flight, sending.worth, sending.chances
        if flight.is_over or not sending.session.takes_branches:
            return ()
        chain = self.waiting[: sending.worth_behind(self.waiting)]
        if not any(map(second, chain)):
            return ()

        async def ask(behind: Sequence[int]) -> Guess | None:
            return await source.guess([*flight.tokens, *behind]) if line == self._line else None

        token_s = self._token_s
        reach = [1.0, *chances.along([*(sent.guess for sent in flight.guesses), *chain])]
        soil = Soil(
            reach=reach[-1 - len(chain)],
            chance=lambda guess: chances.of(guess.kind, guess.chance),
            least=max(worth.price, worth.rows.row_s / token_s),
            least_asked=AWAY_GUESSES * self._guess_s / token_s,
            room=sending.left - len(flight.guesses),
            held_up=worth.rows.all_rows_s / token_s,
            rows=worth.room(flight.rows + len(chain) + self._more(reach[-1])),
            ask=ask,
            allows=lambda behind: self._at_hand.allows([*flight.tokens, *behind]),
            most=MOST_NODES - flight.nodes,
        )
        return await grow(chain, sending.cut(chain, small=True), soil)

    def _either(self, guess: Guess) -> list[Guess]:
        """``guess``, or the other of its place if that alone may come next; none if neither may."""
        possible, both = self._at_hand.possible, (guess, second(guess))
        return next((found for each in both if each and (found := possible(self._ahead, [each]))), [])

    @property
    def _ahead(self) -> list[int]:
        """Tokens guessed behind the answer so far."""
        return [*self._sending.flight.tokens, *(guess.token for guess in self.waiting)]

    # Whether to ask.

    def _wants_more(self) -> bool:
        """Whether a guess behind all there are is worth asking for."""
        sending = self._sending
        worth, flight, chances = sending.worth, sending.flight, sending.chances
        ahead = [*(sent.guess for sent in flight.guesses), *self.waiting]
        if (
            self._source is None
            or flight.has_turned
            or sending.room(len(ahead)) <= 0
            or self._guess_s >= (worth.trip_s or 0.0)
        ):
            return False
        along = chances.along(ahead)
        return (along[-1] if along else 1.0) * chances.of_next >= worth.least

    def _more(self, reach: float) -> int:
        """How many guesses of the source should follow, of a chain that is right up to there with the chance
        ``reach``. They have more right to rows than second guesses: each is likelier, or they are few."""
        chance, least = self._sending.chances.of_next, self._sending.worth.least
        if not least < reach or not 0 < least < 1:
            return 0
        return MOST_AHEAD if chance >= 1 else min(MOST_AHEAD, int(log(least / reach) / log(chance)))

    @property
    def _token_s(self) -> float:
        """What a token more of a trip saves: the answer's time for one."""
        worth, missed = self._sending.worth, 1 - self._sending.chances.of_next
        return (worth.trip_s or 0.0) * min(1 / worth.brought, missed)

    @property
    def _step_s(self) -> float:
        """What a step of one row keeps the slowest stage busy: more of them would only wait."""
        rows = self._sending.worth.rows
        return rows.step_s + rows.row_s

    @property
    def _guess_s(self) -> float:
        """What a guess of the source takes; 0 before a few were made."""
        times = sorted(self._guess_times)
        return times[(len(times) - 1) // 3] if len(times) >= 3 else 0.0
