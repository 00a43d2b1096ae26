"""Norm, head, sampling and embedding for all generations of a client: those that wait together share a call.

The head is the largest matrix of a small model, and reading it costs nearly the same for eight rows as for
one; what is released together also arrives together at the hops, which batch it in turn. So generations are
kept in a few cohorts: hidden states that arrive while a call runs form the next one, and a short one waits a
moment. (Measured with eight streams over two hops: a quarter less processor time a token, all processes
counted, than without waiting.) Calls run in one thread of their own: the kernels let go of the interpreter,
and the event loop moves the other generations meanwhile. A generation that is alone does without the thread.

A drafted continuation brings a row a token. They are chosen in order, by one sampler, until one differs from
the draft: what comes out is what would have come one by one. Rows behind a difference are mostly not looked
at, since a long draft goes through the head a few rows at a time. Where the draft is wrong, another guess of
the same place may be right: then its branch's rows are chosen from, as the chain's were.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import LocalProtocolError, StreamClosedError, SwarmError
from ...swarm.runtime.tasks import in_thread
from .sampling import ChosenToken, Sampler

if TYPE_CHECKING:
    from ...shards.models.client_part import ClientModel

MAX_ROWS = 16
"""One call has at most this many rows: with more, all of its requests wait longer."""

ROWS_AT_ONCE = 8
"""Rows of one draft in a call: a few cost hardly more than one, and behind a wrong one they are wasted."""

COHORTS = 2
"""Groups of generations: while the head works for one, the hops work for another. In more and smaller groups
all weights, here and at every hop, would be read for fewer tokens each."""
PATIENCE = 3.0
"""Usual times of a call that an incomplete cohort is waited for."""
LONGEST_INLINE_S = 0.005
"""Usual time of a call up to which a lone generation computes it in the event loop; the thread's detour costs
some 0.03 ms, and a loop that is blocked for longer serves its other users badly."""
MOST_INLINE = 1
"""Generations up to which the event loop computes for itself: only several gain from sharing calls."""
NEWEST_WEIGHT = 0.1
"""The weight of a new call in the moving average of their times."""

Branches = Sequence[tuple[int, Sequence[int]]]
"""(row, tokens) of each branch of a step: ``tokens``, at least one, were fed as if they came behind its first
``row`` rows, at least one, in place of what the chain has there."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens in order, all but the last as drafted (the last may be), in the chain or a branch; and what to
    feed for the last: ``x`` (1, hidden)."""

    choices: tuple[ChosenToken, ...]
    x: np.ndarray


class _Request:
    """One generation's request for its next tokens. ``x``: set when they are chosen; ``failure``: why there
    are none."""

    def __init__(
        self, hidden: np.ndarray, sampler: Sampler, draft: Sequence[int], branches: Branches = ()
    ) -> None:
        self.choices: list[ChosenToken] = []
        self.x: np.ndarray | None = None
        self.failure: Exception | None = None
        chain = len(hidden) - sum(len(tokens) for _, tokens in branches)
        if not 0 <= chain - len(draft) <= 1:
            raise LocalProtocolError(f"{chain} hidden states for a draft of {len(draft)} tokens")
        self._sampler = sampler
        self._left = hidden[
            :chain
        ]  # rows (n, hidden) that may be chosen from, each if those before it are right
        self._following = draft  # the tokens behind those rows
        self._branches: list[tuple[int, Sequence[int], np.ndarray]] = []  # with their rows
        for row, tokens in branches:
            self._branches.append((row, tokens, hidden[chain : chain + len(tokens)]))
            chain += len(tokens)
        self._fork = 0  # the row that the chain was left at; 0: it was not
        self._path: tuple[int, ...] = ()  # the tokens from there on

    def rows(self) -> np.ndarray:
        """The hidden states that are looked at next."""
        return self._left[:ROWS_AT_ONCE]

    def choose(self, logits: np.ndarray) -> bool:
        """Choose from ``logits`` (rows, vocab) of ``rows``; whether more are to be looked at."""
        for scores in logits:
            choice = self._sampler.choose(scores)
            self.choices.append(choice)
            if self._sampler.is_over:
                return False
            if self._fork:
                self._path += (choice.token,)
            if not self._following or choice.token != self._following[0]:
                return self._turn(choice.token)
            self._left, self._following = self._left[1:], self._following[1:]
        return len(self._left) > 0

    def _turn(self, token: int) -> bool:
        """``token`` is not what was drafted here: go on with the branch that has it, if there is one."""
        if not self._fork:
            self._fork, self._path = len(self.choices), (token,)
        depth = len(self._path)
        for row, tokens, hidden in self._branches:
            if row == self._fork and tuple(tokens[:depth]) == self._path:
                self._left, self._following = hidden[depth - 1 :], tokens[depth:]
                return True
        return False

    def chosen(self) -> Chosen:
        if self.x is None:
            raise self.failure or LocalProtocolError("the head computed nothing")
        return Chosen(tuple(self.choices), self.x)


@dataclass(slots=True)
class _Waiting:
    """A request that the thread computes, and the future that waits for it."""

    request: _Request
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Chosen]


class HeadBatcher:
    """``choose`` may be called by any number of tasks of one event loop. ``calls`` and ``rows`` count."""

    def __init__(self, head: ClientModel, *, max_rows: int = MAX_ROWS) -> None:
        self.calls = 0
        self.rows = 0
        self._head = head
        self._max_rows = max_rows
        self._generations = 0
        self._usual_s = 0.0  # that a call takes
        self._in_thread = 0  # rows handed over and not delivered yet
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self) -> None:
        """A generation has its first hidden state: how many there are decides how they are grouped."""
        self._generations += 1

    def end(self) -> None:
        self._generations -= 1

    async def choose(
        self, hidden: np.ndarray, sampler: Sampler, draft: Sequence[int] = (), branches: Branches = ()
    ) -> Chosen:
        """The tokens after ``hidden`` (rows, hidden): the next one, and while it is as drafted the one after
        it. ``draft``: what was fed behind each row, or behind all but the last. ``branches``: other tokens
        that were fed behind some of the rows; theirs are the last of ``hidden``. ``sampler`` is not to be
        touched until this returns.

        Raises RemoteProtocolError for logits that are not finite, StreamClosedError after ``close``.
        """
        if self._closed:
            raise StreamClosedError("the client is closed")
        request = _Request(hidden, sampler, draft, branches)
        alone = self._generations <= MOST_INLINE and not self._in_thread
        if alone and self._usual_s < LONGEST_INLINE_S:
            self._compute([request])
            return request.chosen()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="swarm-head", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Chosen] = loop.create_future()
        self._in_thread += 1
        self._queue.put(_Waiting(request, loop, future))
        return await future

    async def close(self) -> None:
        """Let the call that runs end, refuse what waits, stop the thread. Idempotent."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await in_thread(thread.join)

    def _serve(self) -> None:
        while (batch := self._gather()) is not None:
            self._compute([waiting.request for waiting in batch if not waiting.future.done()])
            self._hand_back(batch)

    def _gather(self) -> list[_Waiting] | None:
        """What waits, and with little patience what is about to come; None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        generations = self._generations
        wished = generations // COHORTS
        most = min(self._max_rows, max(1, -(-generations // COHORTS)))
        until = perf_counter() + self._usual_s * PATIENCE
        while len(batch) < most:
            left = until - perf_counter() if len(batch) < wished else 0.0
            try:
                waiting = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)  # the end, after these
                break
            batch.append(waiting)
        return batch

    def _compute(self, requests: Sequence[_Request]) -> None:
        """Choose all their tokens. A failure is raised where the choice is awaited."""
        open_ = list(requests)
        try:
            while open_:
                if self._closed:
                    raise StreamClosedError("the client is closed")
                open_ = self._look(open_)
            good = [request for request in requests if request.failure is None]
            if good:
                embedded = self._head.embed([request.choices[-1].token for request in good])  # (n, hidden)
                for row, request in enumerate(good):
                    request.x = embedded[row : row + 1]
        except Exception as error:  # noqa: BLE001 - it is raised where the tokens are waited for
            for request in requests:
                request.failure = request.failure or error

    def _look(self, requests: Sequence[_Request]) -> list[_Request]:
        """One go through the head; those that are to be looked at again."""
        rows = [request.rows() for request in requests]
        logits = self._logits(rows[0] if len(rows) == 1 else np.concatenate(rows))  # (all rows, vocab)
        again = []
        end = 0
        for request, part in zip(requests, rows, strict=True):
            start, end = end, end + len(part)
            try:
                if request.choose(logits[start:end]):
                    again.append(request)
            except SwarmError as error:
                request.failure = error
        return again

    def _logits(self, hidden: np.ndarray) -> np.ndarray:
        """(rows, hidden) → (rows, vocab), counted and timed."""
        logits = []
        for start in range(0, len(hidden), self._max_rows):
            rows = hidden[start : start + self._max_rows]
            self.calls += 1
            self.rows += len(rows)
            began = perf_counter()
            logits.append(self._head.logits(rows))
            self._usual_s += NEWEST_WEIGHT * (perf_counter() - began - self._usual_s)
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _hand_back(self, batch: Sequence[_Waiting]) -> None:
        try:
            batch[0].loop.call_soon_threadsafe(self._deliver, batch)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _deliver(self, batch: Sequence[_Waiting]) -> None:
        self._in_thread -= len(batch)
        for waiting in batch:
            if waiting.future.done():
                continue  # its generation was cancelled
            try:
                waiting.future.set_result(waiting.request.chosen())
            except Exception as error:  # noqa: BLE001 - it is raised where the tokens are waited for
                waiting.future.set_exception(error)
