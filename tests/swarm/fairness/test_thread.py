"""Work beside the event loop: askers take turns, and what nobody waits for is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from swarm_node.swarm.confined.asking import ASKING
from swarm_node.swarm.errors import StreamClosedError
from swarm_node.swarm.fairness.thread import ASKER, Asker, FairThread
from tests.doubles.fake_swarm import settle, until


async def run_as(thread: FairThread, name: str, work: Callable[[], object]) -> object:
    ASKER.set(Asker(name))
    return await thread.run(work)


async def test_askers_take_turns_however_much_one_asks() -> None:
    thread, go_on, done = FairThread("test"), threading.Event(), []
    tasks = [asyncio.create_task(run_as(thread, "first", go_on.wait))]
    await settle()
    for name, count in (("greedy", 5), ("modest", 2), ("late", 1)):
        for number in range(count):
            work = lambda name=name, number=number: done.append(f"{name} {number}")  # noqa: E731
            tasks.append(asyncio.create_task(run_as(thread, name, work)))
        await settle()
    go_on.set()
    await asyncio.gather(*tasks)
    assert done == [
        "greedy 0",
        "modest 0",
        "late 0",
        "greedy 1",
        "modest 1",
        "greedy 2",
        "greedy 3",
        "greedy 4",
    ]
    thread.close()


async def test_results_and_errors_come_back() -> None:
    thread = FairThread("test", stack_bytes=1 << 20)
    assert await thread.run(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(lambda: threading.current_thread().name) != threading.current_thread().name
    thread.close()
    thread.close()
    with pytest.raises(StreamClosedError):
        await thread.run(lambda: 5)


async def test_what_is_cancelled_is_given_up_and_keeps_the_thread_until_it_ends() -> None:
    thread, begun, go_on = FairThread("test"), threading.Event(), threading.Event()
    seen: list[bool] = []

    def work() -> None:
        begun.set()
        go_on.wait(20)
        seen.append(ASKING.get().is_given_up)

    running = asyncio.create_task(thread.run(work))
    await asyncio.to_thread(begun.wait, 20)
    waiting = [asyncio.create_task(thread.run(lambda: 7)) for _ in range(3)]
    await settle()
    for task in (running, waiting[0]):
        task.cancel()
    await settle()
    assert running.cancelled()
    assert waiting[0].cancelled()
    assert not waiting[1].done()
    go_on.set()
    assert await asyncio.gather(*waiting[1:]) == [7, 7]
    assert seen == [True]
    thread.close()


async def test_closing_ends_what_waits() -> None:
    thread, go_on = FairThread("test"), threading.Event()

    def work() -> bool:
        go_on.wait(20)
        return ASKING.get().is_given_up

    running = asyncio.create_task(thread.run(work))
    await settle()
    waiting = asyncio.create_task(thread.run(lambda: 7))
    await settle()
    thread.close()
    with pytest.raises(StreamClosedError):
        await waiting
    go_on.set()
    assert await running


async def test_a_turn_that_comes_when_its_asker_leaves_is_passed_on() -> None:
    thread, go_on = FairThread("test"), threading.Event()
    running = asyncio.create_task(thread.run(lambda: go_on.wait(20)))
    await settle()
    waiting = [asyncio.create_task(thread.run(lambda number=number: number)) for number in range(2)]
    await settle()
    go_on.set()
    await until(lambda: not len(thread._turns) or running.done())
    waiting[0].cancel()
    assert (await asyncio.gather(*waiting, return_exceptions=True))[1] == 1
    thread.close()
