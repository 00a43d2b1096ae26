"""Turns at work for strangers, on a clock that is set by hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from swarm_node.swarm.fairness.gate import FairGate, GateLimits, TurnedAwayError
from swarm_node.swarm.fairness.shares import Holder


@dataclass(eq=False)
class Timer:
    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Time:
    now: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, callback))
        return self.timers[-1]

    async def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            due = [timer for timer in self.timers if timer.at <= end and not timer.cancelled]
            if not due:
                break
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.callback()
        self.now = end


class Askers:
    """Peers that ask as often as they are let in."""

    def __init__(self, limits: GateLimits) -> None:
        self.time = Time()
        self.gate = FairGate(limits, clock=self.time, call_later=self.time.call_later)
        self.served: Counter[str] = Counter()
        self.tasks: list[asyncio.Task[None]] = []

    def ask_for_ever(self, holder: Holder, at_once: int = 1) -> None:
        async def go_on() -> None:
            while True:
                await self.gate.enter(holder, 1)
                self.served[holder.peer_id] += 1

        self.tasks += [asyncio.create_task(go_on()) for _ in range(at_once)]

    async def run(self, seconds: float) -> Counter[str]:
        """Who was served how often meanwhile."""
        before = self.served.copy()
        await self.time.run(seconds)
        return self.served - before

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


LIMITS = GateLimits(rate=100, at_once=100, rate_of_peer=20, at_once_of_peer=20, patience_s=60)


async def test_one_peer_gets_its_rate_and_another_is_not_kept_waiting_by_it() -> None:
    askers = Askers(LIMITS)
    askers.ask_for_ever(Holder("greedy", "net 1"), 10)
    await askers.run(5)
    served = await askers.run(10)
    assert 190 <= served["greedy"] <= 210
    began = askers.time.now
    await askers.gate.enter(Holder("modest", "net 1"), 1)
    assert askers.time.now == began
    await askers.stop()


async def test_networks_go_in_turn_where_all_ask_for_more_than_there_is() -> None:
    askers = Askers(LIMITS)
    for number in range(30):
        askers.ask_for_ever(Holder(f"sybil {number}", "net 1"), 3)
    askers.ask_for_ever(Holder("honest", "net 2"), 3)
    await askers.run(5)
    served = await askers.run(10)
    assert served.total() <= 1050
    assert served["honest"] >= 190  # its own rate: as if it were alone
    assert max(served[f"sybil {number}"] for number in range(30)) <= 40  # the rest, evenly
    await askers.stop()


async def test_waiting_places_are_divided_like_everything_else() -> None:
    limits = GateLimits(
        rate=10, at_once=1, rate_of_peer=10, at_once_of_peer=1, waiting=20, waiting_of_peer=8, patience_s=60
    )
    askers = Askers(limits)
    flood = [
        asyncio.create_task(askers.gate.enter(Holder(f"sybil {number % 5}", "net 1"), 1))
        for number in range(60)
    ]
    await asyncio.sleep(0)
    turned_away = askers.gate.turned_away
    assert turned_away == 60 - 20 - 1
    honest = asyncio.create_task(askers.gate.enter(Holder("honest", "net 2"), 1))
    await askers.run(0.5)
    assert honest.done()
    assert honest.exception() is None
    assert askers.gate.turned_away == turned_away + 1  # of the flood
    await askers.run(60)
    results = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(result, TurnedAwayError) for result in results) == turned_away + 1


async def test_who_waits_for_too_long_is_turned_away_and_leaves_no_trace() -> None:
    gate = FairGate(GateLimits(1e-6, 1, 1e-6, 1, patience_s=0.01))
    await gate.enter(Holder("a"), 1)
    with pytest.raises(TurnedAwayError):
        await gate.enter(Holder("a"), 1)
    waiting = asyncio.create_task(gate.enter(Holder("b"), 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not gate._askers
    assert not gate._places.held
    assert not gate._turns


async def test_what_costs_more_than_was_expected_is_owed() -> None:
    askers = Askers(LIMITS)
    holder = Holder("a", "net 1")
    await askers.gate.enter(holder, 1)
    askers.gate.owe(holder, 59)  # two seconds of its rate beyond what it had
    waiting = asyncio.create_task(askers.gate.enter(holder, 1))
    await askers.run(1.9)
    assert not waiting.done()
    await askers.run(0.3)
    assert waiting.done()
