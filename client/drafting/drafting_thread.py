"""The thread in which a model on this machine guesses, for all answers one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class DraftingThread:
    """``name``: for people who look at threads."""

    def __init__(self, name: str) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` after what was asked for before. Raises RuntimeError where this is closed."""
        return self._worker.submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives. Raises RuntimeError where this is closed before."""
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                raise RuntimeError("the model that drafts is closed") from None  # not the caller's task
            raise

    def close(self) -> None:
        """Waits for what is computed now. Idempotent."""
        self._worker.shutdown(cancel_futures=True)
