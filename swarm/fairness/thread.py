"""One thread for work that would hold up the event loop: askers take turns, however much each has waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TypeVar

from ..confined.asking import ASKING, Asking
from ..errors import StreamClosedError
from ..runtime.tasks import look_at
from .queue import FairQueue


@dataclass(frozen=True, slots=True)
class Asker:
    """``name``: whose turn the work takes; equal for all that one client asks. ``nbytes``: of its request."""

    name: str = ""
    nbytes: int = 0


ITSELF = Asker()
"""The asker of a program that works for itself alone."""
ASKER: ContextVar[Asker] = ContextVar("asker", default=ITSELF)
"""The client that a task works for, in a program with several clients, such as a gateway. It is a variable of
the task's context, so that all code that divides work fairly knows it."""


T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Turn:
    owner: str
    begin: asyncio.Future[None]


class FairThread:
    """Belongs to one event loop. ``stack_bytes``: the thread's stack; 0 takes the system's default."""

    def __init__(self, name: str, *, stack_bytes: int = 0) -> None:
        self._name = name
        self._stack_bytes = stack_bytes
        self._executor: ThreadPoolExecutor | None = None
        self._turns: FairQueue[_Turn] = FairQueue()
        self._is_busy = False
        self._asking = Asking()  # of what runs
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, in the turn of the current ``ASKER``.

        If it is cancelled while ``work`` runs, the processes that ``work`` waits for are ended (``asking``).
        Raises StreamClosedError after ``close``.
        """
        loop = asyncio.get_running_loop()
        if self._is_busy:
            await self._turn(_Turn(ASKER.get().name, loop.create_future()))
        if self._is_closed:
            raise StreamClosedError("the client is closed", hint="Connect again.")
        self._is_busy = True
        self._asking = asking = Asking()
        context = copy_context()
        context.run(ASKING.set, asking)
        job = self._thread().submit(context.run, work)

        def over(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._next)

        job.add_done_callback(over)
        result = asyncio.wrap_future(job)
        result.add_done_callback(look_at)  # nobody may wait for it by then
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            asking.give_up()
            raise

    def close(self) -> None:
        """Drop what waits and give up what runs. Idempotent."""
        self._is_closed = True
        self._asking.give_up()
        for turn in list(self._turns.in_turn()):
            if not turn.begin.done():
                turn.begin.set_result(None)
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, turn: _Turn) -> None:
        self._turns.push(turn.owner, turn)
        try:
            await turn.begin
        except asyncio.CancelledError:
            self._turns.discard(turn.owner, turn)
            if turn.begin.done() and not turn.begin.cancelled():
                self._next()  # it was its turn
            raise

    def _next(self) -> None:
        turn = self._turns.first()
        self._is_busy = turn is not None
        if turn is not None:
            self._turns.rotate(turn.owner)
            self._turns.discard(turn.owner, turn)
            if turn.begin.done():  # on its way out
                self._next()
            else:
                turn.begin.set_result(None)

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)
            if self._stack_bytes:
                before = threading.stack_size(self._stack_bytes)  # of threads that start from now on
                try:
                    self._executor.submit(int).result()
                finally:
                    threading.stack_size(before)
        return self._executor
