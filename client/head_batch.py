"""Norm, head, sampling and embedding for all generations of a client: those that wait together share a call.

The head is the largest matrix of a small model, and reading it costs nearly the same for eight rows as for
one; what is released together also arrives together at the hops, which batch it in turn. So generations are
kept in a few cohorts: hidden states that arrive while a call runs form the next one, and a short one waits a
moment. (Measured with eight streams over two hops: a quarter less processor time a token, all processes
counted, than without waiting.) Calls run in one thread of their own: the kernels let go of the interpreter,
and the event loop moves the other generations meanwhile. A generation that is alone does without the thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ..swarm.errors import LocalProtocolError, StreamClosedError, SwarmError
from .sampling import Sampler

MAX_ROWS = 16
"""Rows of one call. Above it a refined head takes another, slower way, and latency grows."""

COHORTS = 2
"""Groups of generations: while the head works for one, the hops work for another. In more and smaller groups
all weights, here and at every hop, would be read for fewer tokens each."""
PATIENCE = 3.0
"""Usual times of a call that an incomplete cohort is waited for."""
LONGEST_INLINE_S = 0.005
"""Usual time of a call up to which a lone generation computes it in the event loop; the thread's detour costs
some 0.03 ms, and a loop that is blocked for longer serves its other users badly."""
NEWEST_WEIGHT = 0.1
"""Of a new call in the moving average of their times."""


class Head(Protocol):
    """The part of ``shards.client_model.ClientModel`` that ends a step and begins the next."""

    def logits(self, hidden: Tensor) -> Tensor: ...  # (tokens, hidden) -> (tokens, vocab) float32

    def embed(self, ids: Sequence[int]) -> Tensor: ...  # (tokens, hidden)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and what to feed for it: ``x`` (1, hidden)."""

    token: int
    x: Tensor


@dataclass(slots=True)
class _Row:
    """One generation's wish for its next token. ``failure``: why there is none."""

    hidden: Tensor  # (1, hidden)
    sampler: Sampler
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Chosen]
    token: int = -1
    x: Tensor | None = None
    failure: Exception | None = None


class HeadBatcher:
    """``choose`` may be called by any number of tasks of one event loop. ``calls`` and ``rows`` count."""

    def __init__(self, head: Head, *, max_rows: int = MAX_ROWS) -> None:
        self.calls = 0
        self.rows = 0
        self._head = head
        self._max_rows = max_rows
        self._generations = 0
        self._usual_s = 0.0  # that a call takes
        self._in_thread = 0  # rows handed over and not delivered yet
        self._rows: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self) -> None:
        """A generation has its first hidden state: how many there are decides how they are grouped."""
        self._generations += 1

    def end(self) -> None:
        self._generations -= 1

    async def choose(self, hidden: Tensor, sampler: Sampler) -> Chosen:
        """The next token after ``hidden`` (1, hidden). ``sampler`` is not to be touched until this returns.

        Raises RemoteProtocolError for logits that are not finite, StreamClosedError after ``close``.
        """
        if self._closed:
            raise StreamClosedError("the client is closed")
        if self._generations <= 1 and not self._in_thread and self._usual_s < LONGEST_INLINE_S:
            with torch.inference_mode():
                token = sampler.next(self._logits(hidden)[0])
                return Chosen(token, self._head.embed((token,)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="swarm-head", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Chosen] = loop.create_future()
        self._in_thread += 1
        self._rows.put(_Row(hidden, sampler, loop, future))
        return await future

    async def close(self) -> None:
        """Let the call that runs end, refuse what waits, stop the thread. May be called again."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._rows.put(None)
            await asyncio.to_thread(thread.join)

    def _serve(self) -> None:
        with torch.inference_mode():
            while (rows := self._gather()) is not None:
                self._compute([row for row in rows if not row.future.done()])  # those were cancelled
                self._hand_back(rows)

    def _gather(self) -> list[_Row] | None:
        """What waits, and with little patience what is about to come; None at the end."""
        first = self._rows.get()
        if first is None:
            return None
        rows = [first]
        generations = self._generations
        wished = generations // COHORTS
        most = min(self._max_rows, max(1, -(-generations // COHORTS)))
        until = perf_counter() + self._usual_s * PATIENCE
        while len(rows) < most:
            left = until - perf_counter() if len(rows) < wished else 0.0
            try:
                row = self._rows.get(timeout=left) if left > 0 else self._rows.get_nowait()
            except queue.Empty:
                break
            if row is None:
                self._rows.put(None)  # the end, after these
                break
            rows.append(row)
        return rows

    def _compute(self, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        try:
            if self._closed:
                raise StreamClosedError("the client is closed")
            logits = self._logits(torch.cat([row.hidden for row in rows]))  # (rows, vocab)
            for row, scores in zip(rows, logits, strict=True):
                try:
                    row.token = row.sampler.next(scores)
                except SwarmError as error:
                    row.failure = error
            good = [row for row in rows if row.failure is None]
            if good:
                embedded = self._head.embed([row.token for row in good])  # (rows, hidden)
                for row, x in zip(good, embedded.split(1), strict=True):
                    row.x = x
        except Exception as error:  # noqa: BLE001 - it is raised where the tokens are waited for
            for row in rows:
                row.failure = row.failure or error

    def _logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) → (rows, vocab), counted and timed."""
        self.calls += 1
        self.rows += len(hidden)
        began = perf_counter()
        logits = self._head.logits(hidden)
        self._usual_s += NEWEST_WEIGHT * (perf_counter() - began - self._usual_s)
        return logits

    def _hand_back(self, rows: Sequence[_Row]) -> None:
        try:
            rows[0].loop.call_soon_threadsafe(self._deliver, rows)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _deliver(self, rows: Sequence[_Row]) -> None:
        self._in_thread -= len(rows)
        for row in rows:
            if row.future.done():
                continue  # its generation was cancelled
            if row.x is None:
                row.future.set_exception(row.failure or LocalProtocolError("the head computed nothing"))
            else:
                row.future.set_result(Chosen(row.token, row.x))
