"""The sole owner of the device: one compute thread that batches whatever steps are ready.

The event loop hands steps over through one C queue and gets the results of a whole batch back in one
callback: two thread hand-offs a batch, however many sessions are in it, and no asyncio task per step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

from ..shards.span_model import SpanModel
from ..swarm.errors import LocalProtocolError
from ..swarm.types import Span
from .batch_runner import BatchRunner, Finished
from .jobs import Lane, StepDropped, StepJob
from .kv_cache import SessionKv
from .scheduler import Scheduler

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Since the start: ``tokens`` computed in ``batches`` forward passes. ``queued`` steps have no result
    yet."""

    tokens: int
    batches: int
    queued: int


@dataclass(frozen=True, slots=True)
class _Call:
    """A function for the compute thread, and where its result goes."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]


class Engine:
    """Computes steps in order of the scheduler. Create and use it in a running event loop; ``start`` before
    use.

    ``threads``: what torch may use for one operation. A process runs one engine.
    """

    def __init__(self, model: SpanModel, *, threads: int, max_batch_tokens: int = 512) -> None:
        self.model = model
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[StepJob | _Call | None] = SimpleQueue()
        self._scheduler: Scheduler[Lane] = Scheduler(max_batch_tokens)
        self._runner = BatchRunner(model)
        self._queued = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="swarm-node-compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the compute thread after its current batch; steps that wait are dropped. May be called
        again."""
        if self._thread.is_alive():
            self._stopping = True
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(self._runner.tokens, self._runner.batches, self._queued)

    @property
    def queued(self) -> int:
        """Steps submitted and not answered."""
        return self._queued

    def open_lane(self, span: Span, max_tokens: int, codec: str, reply_codec: str) -> Lane:
        """Memory for one session. Raises MemoryError where the device has none left."""
        config = self.model.config
        try:
            kv = SessionKv(
                span, max_tokens, config.n_kv_heads, config.head_dim, self.model.dtype, self.model.device
            )
        except RuntimeError as error:  # torch's allocators raise it and its subclass OutOfMemoryError
            raise MemoryError(str(error)) from error
        return Lane(kv, codec, reply_codec)

    def submit(self, job: StepJob) -> None:
        """Queue a step; ``job.done`` is called in the event loop with its outcome."""
        if self._stopping:
            raise LocalProtocolError("the engine is stopping")
        self._queued += 1
        self._inbox.put(job)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the compute thread, between batches and under inference mode."""
        if self._stopping:
            raise LocalProtocolError("the engine is stopping")
        future: asyncio.Future[T] = self._loop.create_future()
        self._inbox.put(_Call(function, future))
        return await future

    # The compute thread.

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._take_in():
                self._compute()
        self._drop_all()

    def _compute(self) -> None:
        # A function of its own: its locals would keep closed sessions' memory while the thread waits.
        if self._scheduler:
            finished = self._runner.run(self._scheduler.next_batch())
            if finished:
                self._post(self._deliver, finished)

    def _take_in(self) -> bool:
        """Schedule everything in the inbox, waiting for something if nothing is scheduled. False: stop."""
        try:
            item = self._inbox.get(block=not self._scheduler)
            while item is not None:
                if isinstance(item, _Call):
                    self._call(item)
                else:
                    item.lane.steps.append(item)
                    self._scheduler.add(item.lane, item.tokens)
                item = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _call(self, call: _Call) -> None:
        try:
            result = call.function()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            self._post(_set_exception, call.future, error)
        else:
            self._post(_set_result, call.future, result)

    def _drop_all(self) -> None:
        dropped: list[Finished] = []
        while self._scheduler:
            dropped += [
                (piece.key.steps.popleft(), StepDropped())
                for piece in self._scheduler.next_batch()
                if piece.last
            ]
        if dropped:
            self._post(self._deliver, dropped)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            log.debug("event=result_without_loop")

    # The event loop.

    def _deliver(self, finished: list[Finished]) -> None:
        self._queued -= len(finished)
        for job, outcome in finished:
            try:
                job.done(job, outcome)
            except Exception:
                log.exception("event=deliver_failed step=%d", job.step)


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
