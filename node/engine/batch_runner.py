"""Computes one batch: decode payloads, run the blocks, encode results. One session's fault stays its own.

Rows of all sessions with one codec are decoded in one call: rows stand alone in every codec.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np

from ...shards.layers.kv_pool import BatchSlice
from ...shards.models.backend import Memory, SpanBackend
from ...swarm.errors import ErrorCode, RemoteProtocolError
from ...swarm.fidelity.row_sampler import RowSampler, is_sampled
from ...swarm.protocol.branches import rows_of
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.protocol.messages import Want
from ...swarm.types import Span
from .batch_slices import Work, can_begin, lay_out, lead_of, page_copies, rows_in
from .batching.scheduler import DECODE_TOKENS, Batch
from .jobs import StepDone, StepDropped, StepFailed, StepJob, StepOutcome, TokenSequence
from .results import BROKEN, ResultEncoder

logger = logging.getLogger(__name__)

Finished = tuple[StepJob, StepOutcome]

_LATE = StepFailed(ErrorCode.DEADLINE, "the step waited longer than its deadline", retriable=True)


@dataclass(slots=True)
class BatchReport:
    """``finished``: steps that ended with the batch, by a result or a failure. ``sessions`` and ``tokens``
    were computed; ``queue_ns`` is what its ``decode_steps`` had waited, all together. ``cut``: sequences
    whose step failed before its last slice. ``clean``: everything ran at the first try, so ``elapsed_us``
    says what such a batch costs. ``computed``: rows that went through the blocks, those that were fed again
    and those before branches included."""

    finished: list[Finished] = field(default_factory=list)
    cut: list[TokenSequence] = field(default_factory=list)
    sessions: int = 0
    tokens: int = 0
    computed: int = 0
    decode_steps: int = 0
    queue_ns: int = 0
    elapsed_us: int = 0
    clean: bool = True


class BatchRunner:
    """Runs slices of steps through a span model. Used by one thread at a time. ``sampler`` keeps some of the
    rows that it reads."""

    def __init__(self, model: SpanBackend[Memory], pool: Memory, sampler: RowSampler | None = None) -> None:
        self._model: SpanBackend[Any] = model
        self._pool = pool
        self._widths = model.config.boundaries.widths
        self._limit = model.limit
        self._sampler = sampler
        self._results = ResultEncoder()

    def admit(self, job: StepJob) -> None:
        """Bring the table of the step's sequence up to date, in the order in which steps were submitted.

        A page may have been given to another session the moment its change was queued: all that this session
        does to it comes later in the queue. Steps of the sequence that still wait find the same content in
        the copies.
        """
        sequence = job.sequence
        sources: list[int] = []
        targets: list[int] = []
        try:
            for change in job.changes:
                if change.sources:
                    sources += change.sources
                    targets += change.slots
            if sources:
                self._pool.copy_slots(sources, targets)
            for change in job.changes:
                sequence.table[change.rows, change.index] = change.slots
        except Exception:
            logger.exception("event=copy_failed step=%d slots=%d", job.step, len(targets))
            sequence.computed = 0  # what the copies should hold is lost
            job.refusal = BROKEN
        job.changes = ()

    def run(self, batch: Batch[TokenSequence]) -> BatchReport:
        """Compute every slice, and end the steps that the scheduler dropped for their deadline."""
        began = perf_counter_ns()
        report = BatchReport()
        for sequence in batch.expired:
            self._fail(sequence.steps.popleft(), _LATE, report)
        work: Work = []
        for part in batch.slices:
            steps = part.key.steps
            job = steps.popleft() if part.last else steps[0]
            if part.bare:
                job.leave_out_branches()
            work.append((job, part))
        try:
            self._run(work, began, report)
        except Exception:  # a bug of ours must not end the thread that all sessions need
            logger.exception("event=batch_broken sessions=%d", len(work))
            report.clean = False
            for job, _ in work:
                self._fail(job, BROKEN, report)
        for job, part in work:
            if job.finished and not part.last:
                job.sequence.steps.popleft()
                report.cut.append(job.sequence)
        report.elapsed_us = (perf_counter_ns() - began) // 1000
        return report

    def drop(self, sequence: TokenSequence) -> BatchReport:
        """End the steps of a sequence that wait: it holds what it held before the first of them."""
        report = BatchReport()
        while sequence.steps:
            job = sequence.steps.popleft()
            self._count_for_nothing(job)
            self._end(job, StepDropped(), report)
        return report

    def run_lone(self, job: StepJob, began: int) -> BatchReport | None:
        """As ``run``, of one step of one token whose row is wanted; None for what is not as usual, which
        ``run`` is to look at. ``began``: now."""
        sequence, position, codec = job.sequence, job.position, job.sequence.codec
        width = self._widths[sequence.span.start]
        if (
            job.refusal is not None
            or job.want is Want.NOTHING
            or position > sequence.computed
            or len(job.payload) != codec.row_bytes(width)
            or 0 < job.deadline_ns < began
            or sequence.written.wants(sequence.reply_codec, position, 1)
        ):
            return None
        sequence.computed = position
        states, table = sequence.states, None
        if states is not None:
            self._switch(job)
            if states.position != position and position % PAGE_TOKENS:
                return None
            states.position, table = -1, states.table
        slices = [
            BatchSlice(sequence.table, sequence.span.start, 0, position, 1, sequence.long_context, table)
        ]
        try:
            x = codec.decode(job.payload, 1, width, self._limit)
            decoded = perf_counter_ns()
            hidden = self._model.forward(x, slices, self._pool, sequence.span)
            computed = perf_counter_ns()
            payload = sequence.reply_codec.encode(hidden)
        except Exception:  # noqa: BLE001 - ``run`` meets it again, and tells whom it concerns
            return None
        ended = perf_counter_ns()
        sequence.computed = position + 1
        if states is not None:
            states.position = position + 1
        if (
            self._sampler is not None
            and is_sampled(position, 1)
            and sequence.span.start == self._model.span.start
        ):
            self._sampler.took(codec, job.payload, position, 1, sequence.group, sequence.owner)
        queue_ns, compute_ns = max(0, began - job.arrived_ns), computed - decoded
        outcome = StepDone(
            payload=payload,
            rows=1,
            position=position,
            queue_us=queue_ns // 1000,
            compute_us=compute_ns // 1000,
            codec_us=(ended - began - compute_ns) // 1000,
            batch=1,
        )
        report = BatchReport(sessions=1, tokens=1, decode_steps=1, queue_ns=queue_ns)
        self._end(job, outcome, report)
        return report

    def _run(self, work: Work, began: int, report: BatchReport) -> None:
        groups: dict[Span, Work] = {}
        for job, part in work:
            if not part.offset and (failure := self._begin(job)) is not None:
                self._fail(job, failure, report)
                continue
            if part.last and part.count <= DECODE_TOKENS and not part.offset:
                report.decode_steps += 1
                report.queue_ns += began - job.arrived_ns
            group = groups.get(part.key.span)
            if group is None:
                group = groups[part.key.span] = []
            group.append((job, part))
        for span, group in groups.items():
            self._run_group(span, group, report)

    def _begin(self, job: StepJob) -> StepFailed | None:
        """Roll the cache back before a step's first slice; a failure if it cannot run."""
        sequence = job.sequence
        self._switch(job)
        if job.refusal is not None:
            return job.refusal
        if job.position > sequence.computed:
            return StepFailed(
                ErrorCode.BAD_STEP,
                f"step {job.step} starts at position {job.position}, but after a failed step the session "
                f"holds {sequence.computed} tokens",
                hint="Send the failed step again under a new number.",
            )
        width = self._widths[sequence.span.start]
        rows = job.tokens + job.branch_rows
        expected, got = rows * sequence.codec.row_bytes(width), len(job.payload)
        if got != expected:
            return StepFailed(
                ErrorCode.BAD_TENSOR,
                f"{rows} tokens take {expected} bytes in codec {sequence.codec.name}, not {got}",
            )
        if not can_begin(job, 0):
            return BROKEN
        sequence.computed = job.position
        return None

    @staticmethod
    def _switch(job: StepJob) -> None:
        """From now on the sequence's states are where they were planned to be from this step on."""
        plan, states = job.plan, job.sequence.states
        if plan is not None and states is not None and (plan.changes or plan.saved != states.slots):
            states.switch(plan, job.position)
            job.plan = plan._replace(changes=())

    def _run_group(self, span: Span, work: Work, report: BatchReport) -> None:
        started = perf_counter_ns()
        if len({job.sequence.codec for job, _ in work}) > 1:
            work.sort(key=lambda item: item[0].sequence.codec.name)  # rows of one codec side by side
        work, x = self._decode(work, report)
        if x is None:
            return
        codec_ns = perf_counter_ns() - started
        for job, _ in work:
            job.codec_ns += codec_ns
        if self._sampler is not None and span.start == self._model.span.start:
            self._sample(self._sampler, work, x)
        self._compute(span, work, x, report)

    def _sample(self, sampler: RowSampler, work: Work, x: np.ndarray) -> None:
        """``x`` (T, width): the rows of ``work``, which enter at the model's first block, in its order."""
        row = 0
        for job, part in work:
            sequence, count = job.sequence, part.count
            size = sequence.codec.row_bytes(x.shape[1])
            payload = memoryview(job.payload)[part.offset * size : (part.offset + count) * size]
            position = job.position + part.offset
            sampler.took(sequence.codec, payload, position, count, sequence.group, sequence.owner)
            sequence.learned = sampler.learn(x[row : row + count], sequence.learned, sequence.group)
            row += rows_in(job, part)

    # Payloads in.

    def _decode(self, work: Work, report: BatchReport) -> tuple[Work, np.ndarray | None]:
        """The slices that are sound, and their rows (T, width) in that order; None without any."""
        try:
            return work, self._rows(work)
        except Exception as error:  # noqa: BLE001 - told to its sender
            if len(work) > 1:
                return self._decode_each(work, report)
            self._fail(work[0][0], _decode_failure(error), report)
            return [], None

    def _decode_each(self, work: Work, report: BatchReport) -> tuple[Work, np.ndarray | None]:
        sound: Work = []
        rows: list[np.ndarray] = []
        for item in work:
            try:
                rows.append(self._rows([item]))
                sound.append(item)
            except Exception as error:  # noqa: BLE001 - told to its sender
                self._fail(item[0], _decode_failure(error), report)
        return sound, np.concatenate(rows) if rows else None

    def _rows(self, work: Work) -> np.ndarray:
        """(T, width) of ``work``, which is of one span and sorted by codec. Raises RemoteProtocolError for
        bad values."""
        width = self._widths[work[0][0].sequence.span.start]
        parts: list[np.ndarray] = []
        payloads: list[bytes | bytearray | memoryview] = []
        tokens = 0
        last = len(work) - 1
        for i, (job, part) in enumerate(work):
            codec = job.sequence.codec
            if part.last and not part.offset:
                payloads.append(job.payload)
            else:
                size = codec.row_bytes(width)
                payloads.append(
                    memoryview(job.payload)[part.offset * size : (part.offset + part.count) * size]
                )
            tokens += rows_in(job, part)
            if i == last or work[i + 1][0].sequence.codec != codec:
                payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
                parts.append(codec.decode(payload, tokens, width, self._limit))
                payloads, tokens = [], 0
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    # The blocks.

    def _compute(self, span: Span, work: Work, x: np.ndarray, report: BatchReport) -> None:
        started = perf_counter_ns()
        try:
            self._prepare_branches(span, [job for job, _ in work if job.branches])
            rows = lay_out(work, x, self._limit)
            report.clean = report.clean and rows.kept is None
            for job, _ in work:
                if job.sequence.states is not None:
                    job.sequence.states.position = -1  # until the slots have what they should
            hidden = rows.own(self._model.forward(rows.x, rows.slices, self._pool, span))
        except Exception as error:
            report.clean = False
            if len(work) > 1:
                # Find the one to blame: the others get their results, computed alone.
                logger.warning("event=batch_failed sessions=%d error=%r", len(work), error)
                self._compute_each(span, work, x, report)
                return
            logger.exception("event=step_failed step=%d tokens=%d", work[0][0].step, work[0][1].count)
            self._fail(work[0][0], BROKEN, report)
            return
        for done, (job, _) in zip(rows.steps, work, strict=True):
            job.sequence.computed = done.start + done.count
            if job.sequence.states is not None:
                job.sequence.states.has_computed(done)
        report.sessions += len(work)
        report.tokens += len(x)
        report.computed += len(rows.x)
        ended = perf_counter_ns()
        for job, _ in work:
            job.compute_ns += ended - started
        for job, failure in self._results.encode(work, hidden, ended):
            self._fail(job, failure, report)
        self._finish(work, report)

    def _prepare_branches(self, span: Span, jobs: list[StepJob]) -> None:
        """What branches read, and the steps that they are of may write over, is put where it stays."""
        if not jobs:
            return
        sources, targets = page_copies(jobs)
        if sources:
            self._pool.copy_slots(sources, targets)
        for job in jobs:
            states = job.sequence.states
            if states is None or not job.position % PAGE_TOKENS or states.saved_at == job.position:
                continue
            if (lead := lead_of(job, self._widths[span.start], self._limit)) is not None:
                states.position = -1
                self._model.forward(lead.x, lead.slices, self._pool, span)
                states.has_computed(lead.slices[0])
            self._pool.copy_states(*states.save(job.position))

    def _compute_each(self, span: Span, work: Work, x: np.ndarray, report: BatchReport) -> None:
        row = 0
        for job, part in work:
            rows = rows_in(job, part)
            if can_begin(job, part.offset):
                self._compute(span, [(job, part)], x[row : row + rows], report)
            else:  # the batch that failed may have written to its state
                self._fail(job, BROKEN, report)
            row += rows

    # Results out.

    def _finish(self, work: Work, report: BatchReport) -> None:
        ended = perf_counter_ns()
        sessions = len(work)
        for job, part in work:
            if not part.last or job.finished:
                continue
            parts, rows = job.parts, job.rows
            branches = job.branches if job.want is Want.ALL else ()
            queue_ns = ended - job.arrived_ns - job.compute_ns - job.codec_ns
            outcome = StepDone(
                payload=b"" if not parts else parts[0] if len(parts) == 1 else b"".join(parts),
                rows=rows,
                position=job.position + job.tokens + rows_of(branches) - rows,
                queue_us=max(0, queue_ns) // 1000,
                compute_us=job.compute_ns // 1000,
                codec_us=job.codec_ns // 1000,
                batch=sessions,
                branches=branches,
            )
            self._end(job, outcome, report)

    def _fail(self, job: StepJob, failure: StepFailed, report: BatchReport) -> None:
        """End a step that may have written keys and values: they count for nothing."""
        if not job.finished:
            self._count_for_nothing(job)
            self._end(job, failure, report)

    def _count_for_nothing(self, job: StepJob) -> None:
        """A step ends without a result. What those behind it find in the slots of states is as planned, but
        not what it would have left there."""
        sequence = job.sequence
        sequence.computed = min(sequence.computed, job.position)
        self._switch(job)
        if sequence.states is not None:
            sequence.states.position = -1

    def _end(self, job: StepJob, outcome: StepOutcome, report: BatchReport) -> None:
        job.finished = True
        job.parts = []
        job.payload = b""
        report.finished.append((job, outcome))


def _decode_failure(error: Exception) -> StepFailed:
    if isinstance(error, RemoteProtocolError):
        return StepFailed(error.code, error.message, error.hint)
    logger.error("event=decode_failed error=%r", error)
    return BROKEN
