"""An event loop in a thread of its own, for callers without one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from ..swarm.errors import UsageError
from ..swarm.runtime.tasks import new_event_loop

T = TypeVar("T")

CLOSE_S = 15.0
"""Seconds that what runs on the loop gets to end when it is closed."""


class Job(Generic[T]):
    """A coroutine on a background loop. Its ``future`` is done only when the coroutine has really ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()  # only the coroutine ends it
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, coroutine)

    @property
    def done(self) -> bool:
        return self.future.done()

    def cancel(self) -> None:
        """Ask the coroutine to end; returns at once. From any thread."""
        if not self.done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def result(self) -> T:
        """Wait for its result. If the wait is interrupted (Ctrl-C), the task is cancelled and ends first.

        Raises UsageError if it was cancelled from elsewhere.
        """
        try:
            return self.future.result()
        except BaseException:
            if not self.done:
                self.stop()
            raise

    def stop(self) -> None:
        """Cancel it and wait until it has ended."""
        self.cancel()
        concurrent.futures.wait([self.future], CLOSE_S)

    async def wait(self) -> T:
        """Its result, awaited on another loop; cancelling the waiting cancels it."""
        try:
            return await asyncio.wrap_future(self.future)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(UsageError("the answer was stopped before it was complete"))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class BackgroundLoop:
    """Runs coroutines on its own loop (uvloop where there is one), for callers in other threads."""

    def __init__(self, name: str = "swarm-client") -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed() or not self._thread.is_alive()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        """Start it. Raises UsageError once closed, and in the loop's own thread, which would wait for
        itself."""
        if self.closed or threading.current_thread() is self._thread:
            coroutine.close()
            if self.closed:
                raise UsageError("the client is closed", hint="Connect again.")
            raise UsageError("this would wait for itself", hint="Use the async twin of the method.")
        return Job(self._loop, coroutine)

    def post(self, callback: Callable[[], object]) -> None:
        """Call it on the loop, soon; nothing once closed. From any thread, finalizers included."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is closed

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Start it and wait for its result, as ``Job.result`` does."""
        return self.submit(coroutine).result()

    def close(self) -> None:
        """Cancel what still runs, wait for it, stop the thread. Idempotent."""
        if self.closed or threading.current_thread() is self._thread:
            return
        cancelling = Job(self._loop, _cancel_all())
        concurrent.futures.wait([cancelling.future], CLOSE_S)  # what is left then refuses to be cancelled
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
