"""One answer's drafts: where guesses come from, and when they are sent.

The text itself is looked into always (``at_hand.py``). A source that takes a while is asked by a task
(``asking.py``). What is worth it is sent (``sending.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from ...swarm.errors import LocalProtocolError
from ..hops.trace import Speculated
from .asking import Asking
from .at_hand import AtHand, Rules
from .chances import Chances
from .flight import STEP_TOKENS, Came
from .sending import Sending, Session
from .source import Guess, Source


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
        self._prompt = prompt
        self._most_tokens = most_tokens
        self._clock = clock
        self._chances = Chances()
        self._at_hand = AtHand(self._chances, stop_ids) if speculate else None
        self._source = source  # before the answer begins
        self._begun: Sending | None = None
        self._asking: Asking | None = None

    @property
    def speculated(self) -> Speculated:
        if (sending := self._begun) is None:
            return Speculated()
        return Speculated(
            sending.passes,
            sending.drafted,
            sending.accepted,
            0.0 if self._asking is None else self._asking.seconds,
            trip_s=sending.worth.trip_s or 0.0,
            row_s=sending.worth.rows.each_s,
            price=sending.worth.price,
            kinds=self._chances.counts,
        )

    async def read(self) -> None:
        """Index the prompt, before anything else is asked; a long one in parts, as others wait meanwhile."""
        if self._at_hand is not None:
            await self._at_hand.read(self._prompt)

    async def receive(self) -> Came:
        """The rows of the oldest step under way, to choose from."""
        if self._asking is not None:
            self._asking.check()
        sending = self._sending
        while (came := await sending.receive()) is None:  # hops had no room for the branch that was right
            sending.give_up()
            await sending.session.look_around()
            self._begin_round(None, [])
        return came

    def chosen(self, session: Session, tokens: Sequence[int], came: Came, *, ended: bool) -> None:
        """From what ``came`` ``tokens`` were chosen; at first from the last row of the prompt, which
        ``session`` holds. ``ended``: with them the answer is."""
        sending = self._begun
        if sending is None:
            self._begin(session, tokens)
            self._came(tokens, came.hidden)
            if ended:
                self.close()
            return
        judged, flight = sending.judge(tokens), sending.flight
        self._came(tokens, judged.rows)
        if ended:
            self.close()
            return
        if judged.missed and not flight.has_turned:
            sending.give_up()
        if flight.has_turned or flight.is_over:
            self._new_line()

    async def go_on(self, x: np.ndarray, rules: Rules | None = None) -> None:
        """Send what is next: where nothing is under way the answer's last tokens, the embedding of the last
        being ``x`` (1, hidden), and guesses, as ``rules`` let them follow."""
        sending, at_hand, asking = self._sending, self._at_hand, self._asking
        flight = sending.flight
        if at_hand is not None:
            at_hand.follow(rules)
        if flight.is_over:
            await sending.session.look_around()
            self._begin_round(x, at_hand.chain((), sending.room(0)) if at_hand is not None else [])
        elif at_hand is not None and not flight.has_turned:
            under_way = flight.tokens
            self._send_behind(at_hand.chain(under_way, sending.room(len(under_way))))
            if asking is not None:
                asking.send_waiting()
        sending.went_on()
        if asking is not None:
            asking.go_on()

    def close(self) -> None:
        """Ask for nothing any more. Idempotent."""
        if self._asking is not None:
            self._asking.close()
        if self._source is not None:
            self._source.close()
            self._source = None

    def _begin(self, session: Session, tokens: Sequence[int]) -> None:
        sending = self._begun = Sending(session, tokens, self._most_tokens, self._chances, self._clock)
        if self._source is not None and self._at_hand is not None:
            self._asking = Asking(self._source, sending, self._at_hand, self._clock)
            self._source = None

    def _came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        if self._at_hand is not None:
            self._at_hand.came(tokens)
        if self._asking is not None:
            self._asking.came(tokens, hidden)

    def _begin_round(self, x: np.ndarray | None, guesses: Sequence[Guess]) -> None:
        """With ``guesses``, or those of the source if it promises more."""
        sending, asking = self._sending, self._asking
        if asking is not None and asking.promises_more(guesses):
            sending.hear()
            sent = sending.begin(x, asking.waiting)
            asking.waiting = asking.waiting[sent:]  # the source goes on behind them
            return
        if guesses:
            self._new_line()
            sending.hear()
        sending.begin(x, guesses)

    def _send_behind(self, guesses: Sequence[Guess]) -> None:
        """What is worth it of ``guesses``, which follow those under way. Not a few at a time behind many: a
        step costs something by itself, and such results would bring further such steps."""
        sending = self._sending
        worth = sending.worth_behind(guesses)
        if worth and worth >= min(STEP_TOKENS, len(sending.flight.guesses)):
            self._new_line()
            sending.extend(guesses[:worth])

    def _new_line(self) -> None:
        if self._asking is not None:
            self._asking.new_line()

    @property
    def _sending(self) -> Sending:
        if self._begun is None:
            raise LocalProtocolError("nothing was begun")
        return self._begun
