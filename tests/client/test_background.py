from __future__ import annotations

import asyncio
import threading

import pytest

from swarm_node.client.background import BackgroundLoop
from swarm_node.swarm.errors import UsageError


@pytest.fixture
def loop():  # type: ignore[no-untyped-def]
    loop = BackgroundLoop()
    yield loop
    loop.close()


def test_results_and_errors_come_back(loop: BackgroundLoop) -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise UsageError("no")

    assert loop.run(answer()) == 42
    with pytest.raises(UsageError, match="no"):
        loop.run(fail())


def test_stopping_a_job_waits_for_its_end(loop: BackgroundLoop) -> None:
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    job = loop.submit(work())
    assert began.wait(5)
    job.stop()
    assert ended.is_set()
    with pytest.raises(UsageError, match="stopped"):
        job.result()


def test_a_job_stopped_before_it_began_ends_too(loop: BackgroundLoop) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    job = loop.submit(work())
    job.stop()
    assert job.done


async def test_awaiting_from_another_loop_cancels_with_its_task(loop: BackgroundLoop) -> None:
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(loop.submit(work()).wait())
    await asyncio.to_thread(began.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 5)


def test_waiting_for_itself_is_refused(loop: BackgroundLoop) -> None:
    async def inner() -> None:
        pass

    async def outer() -> None:
        loop.run(inner())

    with pytest.raises(UsageError, match="itself"):
        loop.run(outer())


def test_closing_ends_what_runs_and_refuses_more() -> None:
    loop = BackgroundLoop()

    async def work() -> None:
        await asyncio.Event().wait()

    job = loop.submit(work())
    loop.close()
    loop.close()
    assert job.done
    assert loop.closed
    with pytest.raises(UsageError, match="closed"):
        loop.run(work())
