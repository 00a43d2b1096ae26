"""Work for strangers at a bounded rate: a peer that asks more than its share waits, and others do not.

Each peer has a rate, and all have one together. While all together ask less than that, only a peer's own rate
holds it back. When they ask more, address groups go in turn and in a group its peers, so that one network
waits for itself, with any number of identities. Waiting places are few and divided the same way (``shares``):
when they are full, the group and peer with most of them lose one.

An asker that waits is not answered, which slows down one that asks again when it is answered.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .buckets import Bucket, Buckets
from .queue import FairQueue
from .shares import Holder, ShareLimits, Shares

MAX_PEERS = 4096
"""The rates of this many peers are remembered. With more peers, those that asked longest ago begin anew."""
_LEAST_WAIT_S = 0.002
"""Seconds between two looks at who may go in, as a timer is not finer."""


class Timer(Protocol):
    """asyncio.TimerHandle."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


class TurnedAwayError(Exception):
    """There is no waiting place left for the asker, or it has waited for ``patience_s``."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Rates in units of work a second; ``..._at_once``: after a rest. ``waiting...``: places. ``patience_s``:
    an asker that has waited this long is turned away."""

    rate: float
    at_once: float
    rate_of_peer: float
    at_once_of_peer: float
    waiting: int = 1024
    waiting_of_peer: int = 64
    patience_s: float = 2.0


@dataclass(eq=False, slots=True)
class _Asker:
    """A peer whose ``queue`` is not empty: in its group's turn, or resting until its rate allows more."""

    holder: Holder
    queue: deque[_Waiting]


@dataclass(eq=False, slots=True)
class _Waiting:
    cost: float
    turn: asyncio.Future[None]


class FairGate:
    """``enter`` returns when it is the asker's turn. ``clock`` in seconds; ``call_later`` on it, None: the
    running event loop's."""

    def __init__(
        self,
        limits: GateLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._call_later = call_later
        self._all = Bucket(limits.rate, limits.at_once, clock())
        self._buckets = Buckets(limits.rate_of_peer, limits.at_once_of_peer, MAX_PEERS)
        self._askers: dict[str, _Asker] = {}
        self._turns: FairQueue[_Asker] = FairQueue()
        self._resting: list[tuple[float, int, _Asker]] = []  # until when
        self._rests = 0
        self._places = Shares(ShareLimits(limits.waiting, per_peer=limits.waiting_of_peer))
        self._timer: Timer | None = None
        self.turned_away = 0  # since the start

    async def enter(self, holder: Holder, cost: float) -> None:
        """Wait for the turn to cause ``cost`` units of work. Raises TurnedAwayError."""
        now, bucket = self._clock(), self._bucket(holder.peer_id)
        waits = holder.peer_id in self._askers or bool(self._turns)
        if not (waits or self._all.wait_s(cost, now) or bucket.wait_s(cost, now)):
            self._all.owe(cost)
            bucket.owe(cost)
            return
        holder = self._find_place(holder)
        waiting = _Waiting(cost, asyncio.get_running_loop().create_future())
        asker = self._askers.setdefault(holder.peer_id, _Asker(holder, deque()))
        asker.queue.append(waiting)
        if len(asker.queue) == 1:
            self._line_up(asker, now)
            self._set_timer(now)
        try:
            async with asyncio.timeout(self._limits.patience_s):
                await waiting.turn
        except TimeoutError:
            self.turned_away += 1
            raise TurnedAwayError(
                f"it was not the asker's turn within {self._limits.patience_s:g} s"
            ) from None
        finally:
            if waiting in asker.queue:
                self._leave(asker, waiting)

    def owe(self, holder: Holder, cost: float) -> None:
        """Count ``cost`` units more, which turned out to be needed."""
        self._bucket(holder.peer_id).owe(cost)
        self._all.owe(cost)

    def _release(self) -> None:
        """Let in the askers whose turn it is."""
        now, self._timer = self._clock(), None
        while self._resting and self._resting[0][0] <= now:
            _, _, rested = heapq.heappop(self._resting)
            if rested.queue:
                self._line_up(rested, now)
        while (asker := self._turns.first()) is not None:
            waiting = asker.queue[0]
            if self._all.wait_s(waiting.cost, now):
                break
            self._all.owe(waiting.cost)
            self._bucket(asker.holder.peer_id).owe(waiting.cost)
            self._turns.rotate(asker.holder.peer_id, asker.holder.group)
            self._step_out(asker)
            self._leave(asker, waiting)
            if asker.queue:
                self._line_up(asker, now)
            if not waiting.turn.done():  # else it is on its way out
                waiting.turn.set_result(None)
        self._set_timer(now)

    def _line_up(self, asker: _Asker, now: float) -> None:
        """Behind the others of its group if its rate allows what it asks for next; else it rests."""
        holder = asker.holder
        if wait_s := self._bucket(holder.peer_id).wait_s(asker.queue[0].cost, now):
            self._rests += 1
            heapq.heappush(self._resting, (now + max(wait_s, _LEAST_WAIT_S), self._rests, asker))
        else:
            self._turns.push(holder.peer_id, asker, holder.group)

    def _step_out(self, asker: _Asker) -> None:
        self._turns.discard(asker.holder.peer_id, asker, asker.holder.group)

    def _set_timer(self, now: float) -> None:
        waits = [at - now for at, _, _ in self._resting[:1]]
        if (asker := self._turns.first()) is not None:
            waits.append(self._all.wait_s(asker.queue[0].cost, now))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if waits:
            wait_s = max(_LEAST_WAIT_S, min(waits))
            call_later = self._call_later or asyncio.get_running_loop().call_later
            self._timer = call_later(wait_s, self._release)

    def _find_place(self, holder: Holder) -> Holder:
        """The holder that it waits as: with the group that it waits under already, if it does."""
        if (asker := self._askers.get(holder.peer_id)) is not None:
            holder = asker.holder
        why = self._places.take(holder)
        is_full = self._places.held >= self._limits.waiting
        if why and is_full and (loser := self._places.loser(holder)) is not None:
            asker = self._askers[loser.peer_id]
            last = asker.queue[-1]
            self._leave(asker, last)
            if not last.turn.done():
                last.turn.set_exception(TurnedAwayError(why))
            self.turned_away += 1
            why = self._places.take(holder)
        if why:
            self.turned_away += 1
            raise TurnedAwayError(why)
        return holder

    def _leave(self, asker: _Asker, waiting: _Waiting) -> None:
        asker.queue.remove(waiting)
        self._places.give_back(asker.holder)
        if not asker.queue:
            self._step_out(asker)
            self._askers.pop(asker.holder.peer_id, None)

    def _bucket(self, peer_id: str) -> Bucket:
        return self._buckets.of(peer_id, self._clock())
