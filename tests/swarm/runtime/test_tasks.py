from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from swarm_node.swarm.runtime.tasks import all_of, cancel_all, in_thread, look_at
from tests.doubles.virtual_time import VirtualLoop
from tests.swarm.runtime.complaints import Complaints


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_all_run_to_their_end() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    await all_of()
    await all_of(*map(work, range(3)))
    assert done == [0, 1, 2]


async def test_the_first_failure_ends_the_others_and_is_raised_as_it_is() -> None:
    over = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what a task does while it ends is waited for
            over.set()

    with pytest.raises(ValueError, match="the first"):
        await all_of(wait(), fail(ValueError("the first")))
    assert over.is_set()


async def test_a_time_limit_after_a_failure_is_still_a_time_limit() -> None:
    with pytest.raises(ValueError):
        await all_of(fail(ValueError()), asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_who_is_cancelled_ends_its_tasks_first() -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            over.set()

    waiting = asyncio.create_task(all_of(wait(), asyncio.Event().wait()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert over.is_set()


async def test_tasks_that_are_cancelled_are_over() -> None:
    ended = []

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    async def failed() -> None:
        raise ValueError

    tasks = [asyncio.create_task(slow_to_end()), asyncio.create_task(failed())]
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert ended == [1]
    assert all(task.done() for task in tasks)
    await cancel_all([])
    for task in tasks:
        look_at(task)  # neither raises


async def test_what_fails_while_it_is_cancelled_is_not_reported_as_forgotten() -> None:
    complaints = Complaints()

    async def failed() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    task = asyncio.create_task(failed())
    await asyncio.sleep(0)
    await cancel_all([task])
    del task
    assert complaints.heard() == []


async def test_what_blocks_is_called_in_a_thread_and_its_error_is_raised() -> None:
    threads: list[int] = []
    await in_thread(lambda: threads.append(threading.get_ident()))
    assert threads
    assert threads[0] != threading.get_ident()

    def fail() -> None:
        threads.append(0)
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        await in_thread(fail)
    assert threads.count(0) == 1  # not once more here


def test_what_closes_at_the_interpreters_end_needs_no_thread() -> None:
    code = (
        "import asyncio, atexit\n"
        "from swarm_node.swarm.runtime.tasks import in_thread\n"
        "atexit.register(lambda: asyncio.run(in_thread(lambda: print('saved'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_where_time_is_virtual_the_end_waits_for_threads() -> None:
    let_go, done = threading.Event(), threading.Event()

    async def work() -> None:
        asyncio.get_running_loop().run_in_executor(None, lambda: (let_go.wait(60), done.set()))
        threading.Timer(0.05, let_go.set).start()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())
    assert done.is_set()
