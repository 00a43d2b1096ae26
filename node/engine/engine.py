"""The sole owner of the device: one compute thread that batches the steps that are ready. A quick step that
is alone is computed where it comes in.

The event loop keeps all records: which session holds which pages, what is cached, which steps are under way.
It hands a step over through one C queue, together with the page copies and table entries that must come
before it, and gets the results of a whole batch back in one callback: two thread hand-offs a batch, however
many sessions are in it, and no asyncio task per step. The order of the queue is the order of memory: a page
given up by one step may be given to the next one submitted, as the compute thread takes them in that order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter_ns, thread_time_ns
from typing import Any, TypeVar

import numpy as np

from ...shards.formats.values.bounds import MAX_CONTEXT
from ...shards.layers.rope import longest_short_context
from ...shards.models.backend import KvMemory, Memory, SpanBackend
from ...swarm.codecs.codec import Codec
from ...swarm.errors import LocalProtocolError, UsageError
from ...swarm.fairness.shares import Holder
from ...swarm.fidelity.row_sampler import RowSampler
from ...swarm.protocol.branches import computed_rows, too_many
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import Span
from ..figures.work import WorkDone
from .batch_runner import BatchReport, BatchRunner
from .batching.row_time import RowTime
from .batching.scheduler import Scheduler
from .beginnings import register
from .jobs import StepDone, StepDropped, StepJob, TokenSequence
from .load import EngineLoad, LoadMeter
from .memory.marks import Marks
from .memory.session_memory import SessionMemory
from .memory.span_memory import PoolSize
from .refusals import HOLE
from .run_delay import RunDelay
from .states import KeptRows, SequenceStates
from .step_plan import plan_step
from .thread_width import ThreadWidth

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_HERE_NS = 3_000_000
"""A step that takes longer is not computed in the event loop's thread: other peers wait for that."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """``max_batch_tokens`` and ``max_sessions_per_batch`` bound one forward pass. ``prefill_target_ms``: what
    a slice of one session's prompt may add to the others' time between tokens. ``prefix_cache`` keeps pages
    of closed sessions for those that begin alike."""

    max_batch_tokens: int = 512
    max_sessions_per_batch: int = 64
    prefill_target_ms: float = 25.0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if not self.prefill_target_ms > 0:
            raise UsageError(f"prefill_target_ms {self.prefill_target_ms} must be more than 0")


@dataclass(frozen=True, slots=True)
class _Call:
    """A function for the compute thread, and where its result goes."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Void:
    """The steps of ``sequence`` from ``first`` to ``last`` are void."""

    sequence: TokenSequence
    first: int
    last: int


_Item = list[StepJob] | TokenSequence | _Void | _Call | None
"""What the compute thread gets: steps, a sequence whose steps are dropped, void steps, a call; None: the
end."""


class Engine:
    """Computes steps in order of the scheduler. Create and use it in a running event loop; ``start`` before
    use. All calls are of the event loop.

    ``pool``: the KV memory, of which the engine is the only user. ``threads``: those that may compute one
    batch; with ``may_narrow`` fewer do while others want the cores. ``sampler`` keeps some of the rows that
    enter at the model's first block. ``work`` counts the batches. A process runs one engine.
    """

    def __init__(
        self,
        model: SpanBackend[Memory],
        pool: Memory,
        *,
        threads: int,
        may_narrow: bool = False,
        settings: EngineSettings | None = None,
        sampler: RowSampler | None = None,
        work: WorkDone | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        self.memory = SessionMemory(
            model.config.blocks,
            model.span,
            model.config.max_position_embeddings,
            settings.max_batch_tokens,
            PoolSize(pool.n_slots, pool.n_states),
        )
        self.model: SpanBackend[Any] = model
        self.pool: KvMemory = pool
        self.settings = settings
        self._threads = threads
        self._may_narrow = may_narrow and threads > 1
        self._width: ThreadWidth | None = None  # the compute thread's
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._together: list[StepJob] | None = None  # submitted, and not in the inbox yet
        self._row_time = RowTime()
        self._scheduler: Scheduler[TokenSequence] = Scheduler(
            settings.max_batch_tokens,
            max_sessions=settings.max_sessions_per_batch,
            prefill_target_us=max(1, int(settings.prefill_target_ms * 1000)),
            mixed=model.mixes,
            row_time=self._row_time,
        )
        self._runner = BatchRunner(model, pool, sampler)
        self._short_context = longest_short_context(model.config.blocks)
        self._meter = LoadMeter()
        self.work = work or WorkDone()
        self._sequences = 0
        self._hit_tokens = 0
        self._queued = 0
        self._calls = 0
        self._newest: TokenSequence | None = None  # whose step was submitted last
        self._lone_ns = LONGEST_HERE_NS + 1  # what the last step took that was alone
        self._device = threading.Lock()  # whoever holds it computes, with scheduler and runner
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="swarm-node-compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the compute thread after its current batch; steps that wait are dropped. Idempotent."""
        if self._thread.is_alive():
            self._stopping = True
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the compute thread, between batches and under inference mode."""
        if self._stopping:
            raise LocalProtocolError("the engine is stopping")
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls += 1
        try:
            self._inbox.put(_Call(function, future))
            return await future
        finally:
            self._calls -= 1

    # Load.

    @property
    def queued(self) -> int:
        """Steps submitted and not answered."""
        return self._queued

    @property
    def total_tokens(self) -> int:
        """Tokens of sessions over the whole span that the pool holds."""
        return self.memory.total_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that sessions over the whole span could still be opened for."""
        return self.memory.free_tokens(self.model.span)

    @property
    def row_us(self) -> int:
        """Microseconds that one row more in a batch of decode steps takes, as measured lately; 0: it is not
        known."""
        return round(self._row_time.row_us)

    def could_ever_fit(self, max_tokens: int, span: Span) -> bool:
        """Whether an empty cache would hold such a session; if not, waiting is in vain."""
        if max_tokens < 1 or not self.model.span.covers(span):
            return False
        return self.memory.could_ever_fit(max_tokens, span)

    def load(self) -> EngineLoad:
        now = perf_counter_ns()
        meter, pages, states = self._meter, self.memory.pages, self.memory.states
        return EngineLoad(
            queued=self._queued,
            running=meter.running,
            batch=meter.batch,
            tokens_per_s=meter.tokens_per_s(now),
            queue_ms=meter.queue_ms(now),
            free_tokens=self.free_tokens,
            total_tokens=self.total_tokens,
            cached_tokens=self.memory.cached_tokens,
            total_slots=pages.total,
            free_slots=pages.free,
            used_slots=pages.used,
            cached_slots=pages.cached,
            reserved_slots=pages.reserved,
            total_states=states.total,
            free_states=states.free,
            used_states=states.used,
            cached_states=states.cached,
            reserved_states=states.reserved,
            sequences=self._sequences,
            prefix_hit_tokens=self._hit_tokens,
            tokens=meter.tokens,
            batches=meter.batches,
            threads=self._threads if self._width is None else self._width.width,
        )

    # Sessions.

    def open_sequence(
        self,
        owner: str,
        span: Span,
        max_tokens: int,
        codec: Codec,
        reply_codec: Codec,
        *,
        prefix: tuple[bytes, ...] = (),
        parent: TokenSequence | None = None,
        parent_tokens: int = 0,
        group: str = "",
        on_released: Callable[[], None] | None = None,
    ) -> TokenSequence | None:
        """A session with room for ``max_tokens`` tokens; None if there is no room now.

        ``owner``: the peer that the session is for; it finds the pages of its own earlier sessions.
        ``prefix``: its names of the whole pages that it is going to feed, which is a promise: a peer that
        feeds other tokens without going back spoils its own cache. The longest beginning that the cache knows
        is there already, up to ``max_tokens - 1`` tokens, as ``sequence.length`` says. The first step may
        start below that, to feed those tokens again. ``group`` and ``on_released``: see ``TokenSequence``.
        ``parent``: a sequence over the same span whose first ``parent_tokens`` settled tokens are shared; a
        first step below them ends the names there.
        Raises LocalProtocolError for a session or a fork that can never be.
        """
        if max_tokens < 1 or not self.model.span.covers(span):
            raise LocalProtocolError(f"no session of {max_tokens} tokens over blocks {span} can be opened")
        names = tuple(prefix[: max_tokens // PAGE_TOKENS]) if self.settings.prefix_cache else ()
        long_context = max_tokens > self._short_context
        if parent is not None:
            held = 0 <= parent_tokens <= min(parent.settled, max_tokens)
            if (
                parent.closed
                or parent.span != span
                or not held
                or not parent.keeps(parent_tokens, max_tokens)
            ):
                raise LocalProtocolError(
                    f"a fork of {parent_tokens} tokens over blocks {span} does not fit its parent"
                )
            long_context = parent.long_context
            holdings = self.memory.fork(parent.holdings, span, parent_tokens, parent.length, max_tokens)
            length = parent_tokens
            names = names or parent.names[: parent_tokens // PAGE_TOKENS]
        else:
            known_names = names[: (max_tokens - 1) // PAGE_TOKENS]
            known = self.memory.find(owner, span, known_names, long_context=long_context)
            length = known.count * PAGE_TOKENS
            holdings = self.memory.open(span, max_tokens, known)
        if holdings is None:
            return None
        shape = len(span), holdings.pages.max_pages
        states = None
        try:
            table = np.empty(shape, np.int32)
            if holdings.states is not None:
                row_bytes = codec.row_bytes(self.model.config.row_width(span.start))
                old = None if parent is None else parent.states
                rows = KeptRows(row_bytes) if old is None else old.rows.upto(length)
                marks = Marks(self.memory.state_names, Holder(owner, group), span, holdings.states)
                states = SequenceStates(holdings.states, marks, rows, np.empty(shape, np.int32))
        except MemoryError as error:
            logger.warning("event=table_allocation_failed tokens=%d error=%r", max_tokens, str(error)[:200])
            holdings.release()
            return None
        if parent is None:
            self._hit_tokens += length
        self._sequences += 1
        sequence = TokenSequence(
            owner=owner,
            span=span,
            max_tokens=max_tokens,
            codec=codec,
            reply_codec=reply_codec,
            holdings=holdings,
            table=table,
            length=length,
            states=states,
            on_released=on_released,
            group=group,
            long_context=long_context,
            longest_fork=MAX_CONTEXT if long_context else self._short_context,
            names=names,
            foretold=parent is None,
            registered=length // PAGE_TOKENS,
            answered=length,
            computed=length,
        )
        sequence.fill_tables()
        return sequence

    def close_sequence(self, sequence: TokenSequence, prefix: tuple[bytes, ...] = ()) -> None:
        """End a session: what waits is dropped, its memory is given back as soon as nothing of it is being
        computed. Idempotent.

        ``prefix``: names of all whole pages that the session now holds, so that the cache keeps them; without
        them, those given when it was opened.
        """
        if sequence.closed:
            return
        sequence.closed = True
        self._newest = None
        if sequence.states is not None:
            sequence.states.marks.rollback(0)  # what has a mark has no name, and may get one now
        if prefix and self.settings.prefix_cache:
            sequence.names, sequence.registered = tuple(prefix[: sequence.holdings.pages.n_pages]), 0
        register(self.memory, sequence)
        sequence.names = ()
        if sequence.pending:
            self._inbox.put(sequence)
        else:
            self._release(sequence)

    def void(self, sequence: TokenSequence, first: int, last: int) -> None:
        """Drop the steps from ``first`` to ``last``, if nothing else of the sequence waits: what would be
        computed behind them might build on them. A step that is being computed is not dropped. The next step
        begins where the sequence holds tokens, or fails."""
        if sequence.pending and not sequence.closed:
            self._inbox.put(_Void(sequence, first, last))

    def submit(self, job: StepJob) -> None:
        """Queue a step; ``job.done`` is called in the event loop with its outcome, once: later, or before
        this returns.

        Raises LocalProtocolError if the engine stops, the sequence is closed, the step is too large for it or
        has too many branches.
        """
        sequence, position = job.sequence, job.position
        end = position + job.tokens
        if self._stopping:
            raise LocalProtocolError("the engine is stopping")
        if sequence.closed or position < 0 or job.tokens < 1 or end > sequence.max_tokens:
            raise LocalProtocolError(
                f"step {job.step} of {job.tokens} tokens at {position} does not fit its session"
            )
        if problem := too_many(job.tokens, job.branches):
            raise LocalProtocolError(f"step {job.step} has {problem}")
        if position > sequence.length:
            job.refusal = HOLE
        elif (
            refusal := plan_step(self.memory, job)
        ) is not None:  # in its turn, and the session goes back to there
            job.refusal, sequence.length = refusal, position
            if sequence.states is not None:
                sequence.states.is_there = False
        else:
            sequence.length = end
        sequence.begun, sequence.foretold = True, False
        sequence.pending.append(position)
        self._queued += 1
        if self._together is None:
            self._hand_over([job])
        else:
            self._together.append(job)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Steps submitted inside reach the compute thread at the end, at once: they wake it once, and no
        batch begins before all are there."""
        jobs = self._together = []
        try:
            yield
        finally:
            self._together = None
            if jobs:
                self._hand_over(jobs)

    def _hand_over(self, jobs: list[StepJob]) -> None:
        if len(jobs) > 1 or not self._compute_here(jobs[0]):
            self._inbox.put(jobs)

    def _compute_here(self, job: StepJob) -> bool:
        """Compute a step in the event loop's thread and deliver its result, where that is quick and nothing
        else is to be computed: the way to a thread and back takes 0.2 ms of a token over a network. False:
        it is for the compute thread."""
        newest, self._newest = self._newest, job.sequence
        if (
            job.tokens > 1
            or job.branches
            or job.sequence is not newest  # several sessions gain from batches
            or self._queued > 1
            or self._calls
            or self._lone_ns > LONGEST_HERE_NS
            or not self.model.any_thread
            or not self._device.acquire(blocking=False)
        ):
            return False
        try:
            began = perf_counter_ns()
            if job.changes:
                self._runner.admit(job)
            if (report := self._runner.run_lone(job, began)) is None:
                return False
            self._deliver(report)
            ended = perf_counter_ns()
            self._lone_ns = ended - began
            self._scheduler.computed_alone(job.sequence, began, ended)
        finally:
            self._device.release()
        return True

    def _release(self, sequence: TokenSequence) -> None:
        sequence.holdings.release()
        self._sequences -= 1
        if sequence.on_released is not None:
            try:
                sequence.on_released()
            except Exception:
                logger.exception("event=release_callback_failed owner=%s", sequence.owner)

    def _deliver(self, report: BatchReport) -> None:
        self._queued -= len(report.finished)
        for job, outcome in report.finished:
            sequence = job.sequence
            if job.scratch is not None:
                self.memory.scratch.give_back(job.scratch)
                job.scratch = None
            is_done = isinstance(outcome, StepDone)
            if isinstance(outcome, StepDropped):
                sequence.step_dropped(job.position)
            else:
                sequence.step_ended(job.position, job.tokens if is_done else 0)
            if is_done and (sequence.registered < len(sequence.names) or sequence.states is not None):
                register(self.memory, sequence)
            was_closed = sequence.closed  # if ``done`` closes it, close_sequence releases it
            try:
                job.done(job, outcome)
            except Exception:
                logger.exception("event=deliver_failed step=%d", job.step)
            if was_closed and not sequence.pending:
                self._release(sequence)
        if report.sessions:
            self.work.computed_batch(report.sessions)
            self._meter.on_batch(
                perf_counter_ns(), report.sessions, report.tokens, report.decode_steps, report.queue_ns
            )

    # The compute thread.

    def _run(self) -> None:
        if self._may_narrow:
            self._width = _thread_width(self._threads)
        while self._serve(self._inbox.get()):
            pass
        self._drop_all()

    def _serve(self, item: _Item) -> bool:
        """Compute until nothing waits; False: stop. A function of its own: its locals would keep closed
        sessions' memory while the thread waits."""
        with self._device:
            while self._take_in(item):
                if not self._scheduler:
                    return True
                self._compute()
                item = []
        return False

    def _compute(self) -> None:
        began, on_core = perf_counter_ns(), thread_time_ns()
        batch = self._scheduler.next_batch(began)
        report = self._runner.run(batch)
        for sequence in report.cut:
            self._scheduler.cut(sequence)
        if report.clean and report.tokens == batch.decode_rows + batch.prefill_tokens:
            self._scheduler.observe(batch.prefill_tokens, batch.decode_rows, report.elapsed_us)
        if not batch.prefill_tokens and report.computed == batch.decode_rows + batch.again:
            self._row_time.observe(report.computed, report.elapsed_us)
        self._post(self._deliver, report)
        ended = perf_counter_ns()
        if report.tokens == 1:
            self._lone_ns = ended - began
        self._scheduler.computed(began, ended)
        if self._width is not None:
            before, on_core_ns = self._width.width, thread_time_ns() - on_core
            if (width := self._width.computed(began, ended, on_core_ns)) != before:
                self.model.use_threads(width)

    def _take_in(self, item: _Item) -> bool:
        """Schedule ``item`` and everything in the inbox. False: stop."""
        try:
            while item is not None:
                if isinstance(item, list):
                    for job in item:
                        self._schedule(job)
                elif isinstance(item, TokenSequence):
                    self._drop(item)
                elif isinstance(item, _Void):
                    self._drop_void(item)
                else:
                    self._call(item)
                item = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _schedule(self, job: StepJob) -> None:
        sequence = job.sequence
        if job.changes:
            self._runner.admit(job)
        sequence.steps.append(job)
        tokens, again, branches = 1, 0, 0
        if job.refusal is None:
            tokens, branches = job.tokens, computed_rows(job.branches)
            again = 0 if job.plan is None else job.plan.again
        self._scheduler.add(
            *(sequence, sequence.owner, tokens, job.deadline_ns, sequence.group, again, job.certain, branches)
        )

    def _call(self, call: _Call) -> None:
        if self._width is not None:
            self.model.use_threads(self._threads)
        try:
            result = call.function()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            self._post(_set_exception, call.future, error)
        else:
            self._post(_set_result, call.future, result)
        if self._width is not None:
            self.model.use_threads(self._width.width)

    def _drop(self, sequence: TokenSequence) -> None:
        """Drop this sequence's steps: their answers are not wanted any more."""
        self._scheduler.remove(sequence)
        report = self._runner.drop(sequence)
        if report.finished:
            self._post(self._deliver, report)

    def _drop_void(self, void: _Void) -> None:
        steps = void.sequence.steps
        if steps and void.first <= steps[0].step and steps[-1].step <= void.last:
            self._drop(void.sequence)

    def _drop_all(self) -> None:
        while self._scheduler:
            batch = self._scheduler.next_batch()
            for piece in batch.slices:
                self._drop(piece.key)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            logger.debug("event=result_without_loop")


def _thread_width(threads: int) -> ThreadWidth:
    """For the calling thread and the native workers."""
    try:
        return ThreadWidth(threads, RunDelay())
    except OSError:
        return ThreadWidth(threads)


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
