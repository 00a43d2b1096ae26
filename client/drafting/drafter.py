"""One answer's drafts: where guesses come from, which of them are sent, and what became of them.

The text itself is looked into always: its guesses are compared with the tokens that come even when they were
not sent, so that their chances are learned for nothing. A source that takes a while (a model) is asked by a
task, token by token, while results come; each of its guesses is sent as soon as it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from time import perf_counter
from typing import Protocol

import numpy as np

from ...swarm.errors import LocalProtocolError
from ...swarm.routing.prediction import Prediction
from ..hops.trace import HopTimings, Repair, Speculated
from .chances import Chances
from .flight import STEP_TOKENS, Came, Flight, Sent, Stream
from .price import price_on
from .prompt_lookup import SOURCE as TEXT
from .prompt_lookup import PromptLookup
from .resume import SOURCE as RESUME
from .resume import Resume
from .source import Guess, Kind, Source
from .tree import MOST_NODES, STEP_GUESSES, Branch, Soil, computed, grow, is_second, second
from .worth import MOST_AHEAD, Choice, Worth

logger = logging.getLogger(__name__)

ANY: Kind = ("any", 0)
"""A token that the source has not guessed yet."""
ANY_CHANCE = 0.6
FORCED: Kind = ("guide", 0)
FORCED_CHANCE = 0.97
"""A text may be cut into other tokens than the guide would cut it into."""
READ_AT_ONCE = 4096
"""This many tokens of a prompt are read at once, which takes a millisecond of the event loop."""
LEARNED_AS_THEY_COME = (TEXT, RESUME)
TOGETHER = 0.5
"""Steps were sent together if no more than this part of the time between their results was between them."""
AWAY_GUESSES = 2.0
"""A guess behind a second one takes a source the time of so many: it goes back to the chain afterwards."""
RECENT_GUESSES = 9
"""Guesses whose lower third is what one takes; the first wait for others, or read what came meanwhile."""


class Session(Stream, Protocol):
    """What a draft's tokens go through: a ``SwarmSession``."""

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


class Rules(Protocol):
    """What may follow: a ``Sampler``."""

    @property
    def forced(self) -> Sequence[int]: ...

    def fitting(self) -> Callable[[Sequence[int]], int]: ...


@dataclass(slots=True)
class _Step:
    """Under way. ``certain``: begins with a certain token. ``loaded``: guesses may hold that up."""

    sent_at: float
    rows: int
    certain: bool = False
    loaded: bool = False


class Drafter:
    """``prompt`` is what was fed so far; the answer has ``most_tokens`` at most, and ends with one of
    ``stop_ids``. ``source``: guesses by a model; this closes it. ``speculate``: False for plain decoding."""

    def __init__(
        self,
        prompt: Sequence[int],
        most_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        source: Source | None = None,
        *,
        speculate: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.chances = Chances()
        self.worth = Worth()
        self._prompt = prompt
        self._most_tokens = most_tokens
        self._stop_ids = stop_ids
        self._source = source
        self._speculate = speculate
        self._clock = clock
        self._lookup = PromptLookup()
        self._resume = Resume(self._lookup)
        self._session: Session | None = None
        self._flight: Flight | None = None
        self._steps: deque[_Step] = deque()
        self._waiting: list[Guess] = []  # of the source, not sent yet
        self._task: asyncio.Task[None] | None = None
        self._allowed: Callable[[Sequence[int]], int] = len  # how many of some guesses may come next
        self._since: list[int] = []  # tokens of the answer that were chosen since that was asked for
        self._growing = False  # branches of what waits are asked for
        self._line = 0  # changes where the source would have to guess something else
        self._guess_times: deque[float] = deque(maxlen=RECENT_GUESSES)
        self._chosen = 0  # tokens of the answer
        self._token = 0  # the last of them
        self._in_round = 1  # tokens since a certain one was sent alone
        self._void = False  # wrong guesses may be before the next certain token
        self._repairs = 0
        self._received_at = self._counted_at = self._last_sent_at = 0.0
        self._passes = self._drafted = self._accepted = 0
        self._draft_s = 0.0

    @property
    def speculated(self) -> Speculated:
        worth = self.worth
        return Speculated(
            self._passes,
            self._drafted,
            self._accepted,
            self._draft_s,
            trip_s=worth.trip_s or 0.0,
            row_s=worth.rows.each_s,
            price=worth.price,
            kinds=self.chances.counts,
        )

    async def read(self) -> None:
        """Index the prompt, before anything else is asked; a long one in parts, as others wait meanwhile."""
        if not self._speculate:
            return
        for start in range(0, len(self._prompt), READ_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._lookup.came(self._prompt[start : start + READ_AT_ONCE])

    async def receive(self) -> Came:
        """The rows of the oldest step under way, to choose from."""
        self._check_task()
        flight = self._flight_now
        while (came := await flight.receive()) is None:  # hops had no room for the branch that was right
            self._give_up(flight)
            await self._session_now.look_around()
            self._begin_round(flight, None, [])
        before, self._received_at = self._received_at, self._clock()
        self._measure_gap(before)
        return came

    def chosen(self, session: Session, tokens: Sequence[int], came: Came, *, ended: bool) -> None:
        """From what ``came`` ``tokens`` were chosen; at first from the last row of the prompt, which
        ``session`` holds. ``ended``: with them the answer is."""
        flight = self._flight
        if flight is None:
            self._begin(session, tokens, came)
            if ended:
                self.close()
            return
        self._account(self._steps.popleft(), len(tokens))
        judged = flight.judge(tokens)
        self._learn(judged.guesses)
        self._came(tokens, judged.rows)
        if ended:
            self.close()
            return
        if flight.has_turned:
            self._new_line()
        elif judged.missed:
            self._give_up(flight)
        if flight.is_over:
            self._new_line()

    async def go_on(self, x: np.ndarray, rules: Rules | None = None) -> None:
        """Send what is next: where nothing is under way the answer's last tokens, the embedding of the last
        being ``x`` (1, hidden), and guesses, as ``rules`` let them follow."""
        flight, session = self._flight_now, self._session_now
        if self._speculate and rules is not None:
            self._allowed, self._since = rules.fitting(), []
        if flight.is_over:
            await session.look_around()
            guesses = self._at_hand((), rules) if self._speculate else []
            self._begin_round(flight, x, guesses)
        elif self._speculate and not flight.has_turned:
            self._send_behind(flight, self._at_hand(flight.tokens, rules))
            self._send_waiting()
        self._counted_at = self._clock()
        self._ask()

    def close(self) -> None:
        """Ask for nothing any more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._source is not None:
            self._source.close()
            self._source = None

    # What is sent.

    def _begin(self, session: Session, tokens: Sequence[int], came: Came) -> None:
        self._session, self._flight = session, Flight(session, tokens[-1])
        self.worth = Worth(session.predicted)
        self._repairs = len(session.repaired)
        self._came(tokens, came.hidden)

    def _give_up(self, flight: Flight) -> None:
        """What is under way is of no use any more, but may hold up what comes."""
        flight.void()
        self._steps.clear()
        self._void = True

    def _begin_round(self, flight: Flight, x: np.ndarray | None, guesses: Sequence[Guess]) -> None:
        waits = self._source is not None and not self._is_better(guesses)
        if waits:
            guesses = self._waiting
        elif guesses:
            self._new_line()
        choice = Choice()
        if guesses or self._source is not None:
            self._hear()
        if guesses:
            choice = self.worth.choose(self.chances.along(guesses))
        number = min(choice.first, STEP_TOKENS - flight.certain)
        sent = choice.first + choice.more
        first, more = guesses[:number], guesses[number:sent]
        if waits:
            self._waiting = self._waiting[sent:]  # the source goes on behind them
        rows = flight.certain + number
        self._steps.append(_Step(self._clock(), rows, True, self._void or rows > 1))
        flight.begin(x, first)
        self._passes += 1
        self._drafted += number
        self._void = False
        self._extend(flight, more)

    def _hear(self) -> None:
        """What the hops say that rows cost."""
        session, worth = self._session_now, self.worth
        hops = session.hops
        worth.told([hop.load.row_s for hop in hops], session.line_row_s, price_on(hops, worth.trip_s or 0.0))

    def _send_behind(self, flight: Flight, guesses: Sequence[Guess]) -> None:
        """What is worth it of ``guesses``, which follow those under way. Not a few at a time behind many: a
        step costs something by itself, and such results would bring further such steps."""
        worth = self._worth_behind(flight, guesses)
        if worth and worth >= min(STEP_TOKENS, len(flight.guesses)):
            self._new_line()
            self._extend(flight, guesses[:worth])

    def _worth_behind(self, flight: Flight, guesses: Sequence[Guess]) -> int:
        if not guesses:
            return 0
        under_way = [sent.guess for sent in flight.guesses]
        chances = self.chances.along([*under_way, *guesses])[len(under_way) :]
        return min(self.worth.behind(chances), self.worth.room(flight.rows))

    def _extend(self, flight: Flight, guesses: Sequence[Guess], branches: Sequence[Branch] = ()) -> None:
        now, start = self._clock(), 0
        for rows in self._cut(guesses, small=bool(branches)):
            own = [replace(each, place=each.place - start) for each in branches]
            own = [each for each in own if 0 <= each.place < rows]
            self._steps.append(_Step(now, rows + computed(own)))
            flight.extend(guesses[start : start + rows], own)
            start += rows
        self._drafted += len(guesses) + sum(len(each.guesses) for each in branches)

    def _cut(self, guesses: Sequence[Guess], *, small: bool) -> list[int]:
        """How many guesses go in each step; few in a step that has branches."""
        return self.worth.cut(self.chances.along(guesses), STEP_GUESSES if small else STEP_TOKENS)

    # Guesses that are at hand: they cost nothing.

    def _at_hand(self, after: Sequence[int], rules: Rules | None) -> list[Guess]:
        """The chain behind the answer so far and ``after`` that promises the most tokens."""
        most = self._room(len(after))
        if most <= 0:
            return []
        forced = _behind(after, rules.forced) if rules is not None else ()
        chain = [Guess(token, FORCED_CHANCE, FORCED) for token in forced[:most]]
        behind = [*after, *(guess.token for guess in chain)]
        others = [source.guesses(behind, most - len(chain)) for source in (self._lookup, self._resume)]
        return self._possible(after, chain + max(others, key=self._promise))

    def _room(self, under_way: int) -> int:
        """How many guesses more may be under way: the last token of an answer is never fed."""
        session = self._session_now
        left = self._most_tokens - self._chosen - 1
        return min(left, session.most_ahead, under_way + self.worth.room(under_way)) - under_way

    def _promise(self, guesses: Sequence[Guess]) -> float:
        """How many of a chain should be right."""
        return sum(self.chances.along(guesses))

    def _possible(self, after: Sequence[int], guesses: list[Guess]) -> list[Guess]:
        """Those that may follow ``after``. Nothing that comes after an answer's end would be used."""
        ends = (number for number, guess in enumerate(guesses) if guess.token in self._stop_ids)
        guesses = guesses[: next(ends, len(guesses))]
        return guesses[: max(0, self._fits([*after, *(guess.token for guess in guesses)]) - len(after))]

    def _fits(self, guesses: Sequence[int]) -> int:
        """How many of ``guesses`` may follow the answer so far, one after the other."""
        return self._allowed([*self._since, *guesses]) - len(self._since)

    # The source, which is asked by a task.

    def _is_better(self, guesses: Sequence[Guess]) -> bool:
        """Whether ``guesses`` promise more than the source does."""
        chance = self.chances.of(ANY, ANY_CHANCE)
        return self._promise(guesses) >= chance / (1 - chance) if chance < 1 else False

    def _new_line(self) -> None:
        self._line += 1
        self._waiting = []

    def _ask(self) -> None:
        self._check_task()
        if self._source is not None and self._task is None and self._wants_more():
            self._task = asyncio.create_task(self._guess_on(self._source), name="drafting")

    def _check_task(self) -> None:
        """Raises what the task raised, if it has ended."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()

    async def _guess_on(self, source: Source) -> None:
        """Token by token, for as long as the next one may be worth a row."""
        sent_at = self._clock()
        try:
            while self._wants_more():
                line, began = self._line, self._clock()
                guess = await source.guess(self._ahead)
                seconds = self._clock() - began
                self._draft_s += seconds
                if line != self._line:
                    continue
                if guess is None or not (possible := self._either(guess)):
                    break
                self._guess_times.append(seconds)
                self._waiting += possible
                if len(self._waiting) >= STEP_TOKENS or self._clock() - sent_at >= self._step_s:
                    await self._send_grown(source)
                    sent_at = self._clock()
            await self._send_grown(source)
        except (RuntimeError, MemoryError) as error:  # the answer can do without
            logger.warning("event=draft_source_failed error=%r", str(error))
            source.close()
            self._source = None
            self._send_waiting()

    async def _send_grown(self, source: Source) -> None:
        """Send what waits, with branches."""
        line, self._growing = self._line, True
        try:
            grown = await self._grow(source)
        finally:
            self._growing = False
        if line == self._line:
            self._send_waiting(grown)

    async def _grow(self, source: Source) -> tuple[Branch, ...]:
        """Branches in the places of what waits."""
        flight, line = self._flight_now, self._line
        if flight.is_over or not self._session_now.takes_branches:
            return ()
        chain = self._waiting[: self._worth_behind(flight, self._waiting)]
        if not any(map(second, chain)):
            return ()

        async def ask(behind: Sequence[int]) -> Guess | None:
            return await source.guess([*flight.tokens, *behind]) if line == self._line else None

        def allows(behind: Sequence[int]) -> bool:
            whole = [*flight.tokens, *behind]
            return behind[-1] not in self._stop_ids and self._fits(whole) == len(whole)

        worth, token_s = self.worth, self._token_s
        reach = [1.0, *self.chances.along([*(sent.guess for sent in flight.guesses), *chain])]
        soil = Soil(
            reach=reach[-1 - len(chain)],
            chance=lambda guess: self.chances.of(guess.kind, guess.chance),
            least=max(worth.price, worth.rows.row_s / token_s),
            least_asked=AWAY_GUESSES * self._guess_s / token_s,
            room=self._most_tokens - self._chosen - 1 - len(flight.guesses),
            held_up=worth.rows.all_rows_s / token_s,
            rows=worth.room(flight.rows + len(chain) + self._more(reach[-1])),
            ask=ask,
            allows=allows,
            most=MOST_NODES - flight.nodes,
        )
        return await grow(chain, self._cut(chain, small=True), soil)

    @property
    def _token_s(self) -> float:
        """What a token more of a trip saves: the answer's time for one."""
        missed = 1 - self.chances.of(ANY, ANY_CHANCE)
        return (self.worth.trip_s or 0.0) * min(1 / self.worth.brought, missed)

    def _more(self, reach: float) -> int:
        """How many guesses of the source should follow, of a chain that is right up to there with the chance
        ``reach``. They have more right to rows than second guesses: each is likelier, or they are few."""
        chance, least = self.chances.of(ANY, ANY_CHANCE), self.worth.least
        if not least < reach or not 0 < least < 1:
            return 0
        return MOST_AHEAD if chance >= 1 else min(MOST_AHEAD, int(log(least / reach) / log(chance)))

    def _either(self, guess: Guess) -> list[Guess]:
        """``guess``, or the other of its place if that alone may come next; none if neither may."""
        both = (guess, second(guess))
        return next((found for each in both if each and (found := self._possible(self._ahead, [each]))), [])

    @property
    def _ahead(self) -> list[int]:
        """Tokens guessed behind the answer so far."""
        return [*self._flight_now.tokens, *(guess.token for guess in self._waiting)]

    @property
    def _step_s(self) -> float:
        """What a step of one row keeps the slowest stage busy: more of them would only wait."""
        return self.worth.rows.step_s + self.worth.rows.row_s

    @property
    def _guess_s(self) -> float:
        """What a guess of the source takes; 0 before a few were made."""
        times = sorted(self._guess_times)
        return times[(len(times) - 1) // 3] if len(times) >= 3 else 0.0

    def _wants_more(self) -> bool:
        """Whether a guess behind all there are is worth asking for."""
        worth, flight = self.worth, self._flight_now
        ahead = [*(sent.guess for sent in flight.guesses), *self._waiting]
        if (
            self._source is None
            or flight.has_turned
            or self._room(len(ahead)) <= 0
            or self._guess_s >= (worth.trip_s or 0.0)
        ):
            return False
        chances = self.chances.along(ahead)
        return (chances[-1] if chances else 1.0) * self.chances.of(ANY, ANY_CHANCE) >= worth.least

    def _send_waiting(self, grown: Sequence[Branch] = ()) -> None:
        flight = self._flight_now
        if not self._waiting or self._growing or flight.is_over or flight.has_turned:
            return  # where nothing is under way they go with the next certain token
        worth = self._worth_behind(flight, self._waiting)
        guesses, self._waiting = self._waiting[:worth], self._waiting[worth:]
        self._extend(flight, guesses, [each for each in grown if each.place < worth])

    # What is learned.

    def _came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._chosen += len(tokens)
        self._token = tokens[-1]
        if not self._speculate:
            return
        self._since += tokens
        for token in tokens:
            for source in (self._lookup, self._resume):
                for guess in source.guesses((), 1):
                    self.chances.judged(guess.kind, guess.token == token)
            self._lookup.came((token,))
            self._resume.came(token)
        if self._source is not None:
            self._source.came(tokens, hidden)

    def _learn(self, judged: Sequence[tuple[Sent, int]]) -> None:
        rights = 0
        for sent, token in judged:
            kind, right = sent.guess.kind, sent.guess.token == token
            rights += right
            if (other := second(sent.guess)) is not None:
                self.chances.judged(other.kind, other.token == token)
            if is_second(kind):  # learned with the first
                self.chances.count(kind[0], sent.depth, right)
                continue
            self.chances.count(kind[0], sent.depth, right)
            if kind[0] not in LEARNED_AS_THEY_COME:
                self.chances.judged(kind, right)
                if kind is not FORCED:
                    self.chances.judged(ANY, right)
        self._accepted += rights
        self.worth.accepted(rights)

    def _account(self, step: _Step, tokens: int) -> None:
        """What was gained and lost by the step whose rows ``tokens`` were chosen from."""
        now, repairs = self._clock(), len(self._session_now.repaired)
        undisturbed, self._repairs = repairs == self._repairs, repairs
        if step.certain:
            self.worth.over(self._in_round)
            self._in_round = 0
        self._in_round += tokens
        if undisturbed and step.certain:
            self.worth.trip(now - step.sent_at, tokens, loaded=step.loaded)
        elif undisturbed:
            self.worth.step(now - self._counted_at, tokens)

    def _measure_gap(self, before: float) -> None:
        """How long after the last step the oldest one came, if they were sent together."""
        step, last = self._steps[0], self._last_sent_at
        gap = self._received_at - before
        if not step.certain and step.sent_at - last <= TOGETHER * gap:
            self.worth.gap(gap, step.rows)
        self._last_sent_at = step.sent_at

    @property
    def _flight_now(self) -> Flight:
        if self._flight is None:
            raise LocalProtocolError("nothing was begun")
        return self._flight

    @property
    def _session_now(self) -> Session:
        if self._session is None:
            raise LocalProtocolError("nothing was begun")
        return self._session


def _behind(after: Sequence[int], forced: Sequence[int]) -> Sequence[int]:
    """What is left of ``forced`` behind ``after``, if that begins so."""
    return forced[len(after) :] if list(forced[: len(after)]) == list(after) else ()
