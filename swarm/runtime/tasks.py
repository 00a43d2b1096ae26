"""The event loop, and tasks: run side by side, waited for, ended together, or left to themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any


async def all_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run all to their end, side by side. If one of them fails, its error is raised as it is and the others
    are cancelled.

    Not ``asyncio.TaskGroup``: before Python 3.13 one whose task fails leaves its parent counted as cancelled,
    and each later ``asyncio.timeout`` in that parent then raises CancelledError in place of TimeoutError.
    """
    if not coroutines:
        return
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await _ended(tasks)
    failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if failures:
        raise failures[0]


async def in_thread(function: Callable[[], object]) -> None:
    """Call a function that may block, in a thread of the loop's. While the interpreter ends, no thread can be
    started. The function is then called here, so that files and sockets can still be closed."""
    try:
        call = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:  # "cannot schedule new futures after shutdown"
        function()
    else:
        await call


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them and wait until they are over. What they end with, or had ended with, is of no interest."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
        task.add_done_callback(look_at)
    if tasks:
        await asyncio.wait(tasks)


def look_at(task: asyncio.Future[Any]) -> None:
    """For use as a task's done callback: it takes the error, so that asyncio does not report it as
    forgotten."""
    if not task.cancelled():
        task.exception()


async def _ended(tasks: list[asyncio.Task[object]]) -> None:
    """Wait until all are over, and only then pass on a cancellation that comes meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def first(*awaitables: Awaitable[object]) -> None:
    """Wait for the first to end, cancel the others; raises what the first raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # which looks at their errors
    for task in done:
        task.result()


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks, one after the other, and see each end."""
    for task in tasks:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is built for this platform, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
