"""Computes one batch: decode payloads, run the blocks, encode results. One session's fault stays its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter_ns

import torch
from torch import Tensor

from ..shards.span_model import SpanModel
from ..swarm import codecs
from ..swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ..swarm.messages import Want
from ..swarm.types import Span
from .attention import BatchAttention, Piece
from .jobs import Lane, StepDone, StepDropped, StepFailed, StepJob, StepOutcome
from .scheduler import Slice

log = logging.getLogger(__name__)

Finished = tuple[StepJob, StepOutcome]
_Work = tuple[StepJob, Slice[Lane]]


class BatchRunner:
    """Runs slices of steps through a span model. Used by the compute thread only, under inference mode."""

    def __init__(self, model: SpanModel) -> None:
        self._model = model
        self._hidden = model.config.hidden_size
        self._on_cpu = model.device.type == "cpu"
        self.tokens = 0
        self.batches = 0

    def run(self, batch: Sequence[Slice[Lane]]) -> list[Finished]:
        """Compute every slice; returns the steps that ended with it, by a result or a failure."""
        finished: list[Finished] = []
        groups: dict[Span, list[_Work]] = {}
        for piece in batch:
            lane = piece.key
            job = lane.steps.popleft() if piece.last else lane.steps[0]
            if job.finished:
                continue  # an earlier slice failed, and the sender knows
            if (failure := self._prepare(job, piece)) is not None:
                self._finish(job, failure, finished)
            else:
                groups.setdefault(lane.kv.span, []).append((job, piece))
        for span, work in groups.items():
            self._run_group(span, work, finished)
        return finished

    def _prepare(self, job: StepJob, piece: Slice[Lane]) -> StepOutcome | None:
        """Roll the cache back and decode the payload before a step's first slice; an outcome if it cannot
        run."""
        lane = job.lane
        if lane.closed:
            return StepDropped()
        if piece.offset:
            return None
        started = perf_counter_ns()
        if job.deadline_ns and started > job.deadline_ns:
            return StepFailed(ErrorCode.DEADLINE, "the step waited longer than its deadline", retriable=True)
        if job.position > lane.kv.length:
            return StepFailed(
                ErrorCode.BAD_STEP,
                f"step {job.step} starts at position {job.position}, but after a failed step the session "
                f"holds {lane.kv.length} tokens",
                hint="Send the failed step again under a new number.",
            )
        try:
            job.x = codecs.decode(
                lane.codec, job.payload, job.tokens, self._hidden, self._model.dtype, self._model.device
            )
        except RemoteProtocolError as error:
            return StepFailed(error.code, error.message, error.hint)
        job.payload = b""
        lane.kv.rollback(job.position)
        job.codec_ns += perf_counter_ns() - started
        return None

    def _run_group(self, span: Span, work: list[_Work], finished: list[Finished]) -> None:
        try:
            hidden, elapsed_ns = self._forward(span, work)
        except Exception as error:
            if len(work) > 1:
                # Find the one to blame: the others get their results, computed alone.
                log.warning("event=batch_failed sessions=%d error=%r", len(work), error)
                for item in work:
                    self._run_group(span, [item], finished)
                return
            log.exception("event=step_failed step=%d tokens=%d", work[0][0].step, work[0][1].count)
            self._fail(work[0][0], StepFailed(ErrorCode.INTERNAL, "the computation failed on this node",
                       retriable=True), finished)  # fmt: skip
            return
        row = 0
        for job, piece in work:
            job.compute_ns += elapsed_ns
            self._take_rows(job, piece, hidden[row : row + piece.count], len(work), finished)
            row += piece.count

    def _forward(self, span: Span, work: list[_Work]) -> tuple[Tensor, int]:
        """(T, hidden) of all slices packed in order, and the nanoseconds it took."""
        started = perf_counter_ns()
        pieces: list[Piece] = []
        inputs: list[Tensor] = []
        row = 0
        for job, piece in work:
            if job.x is None:
                raise LocalProtocolError("a step runs before its payload was decoded")
            pieces.append(Piece(job.lane.kv, row, job.position + piece.offset, piece.count))
            inputs.append(job.x[piece.offset : piece.offset + piece.count])
            row += piece.count
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        cos, sin = self._model.rope([(each.start, each.count) for each in pieces])
        attend = BatchAttention(pieces, self._model.dtype, self._model.device)
        hidden = self._model.forward(x, cos, sin, attend, span)
        for computed in pieces:
            computed.kv.length = computed.start + computed.count
        if not self._on_cpu:
            getattr(torch, self._model.device.type).synchronize()
        self.tokens += row
        self.batches += 1
        return hidden, perf_counter_ns() - started

    def _take_rows(
        self, job: StepJob, piece: Slice[Lane], rows: Tensor, batch: int, finished: list[Finished]
    ) -> None:
        """Keep what the client wants of ``rows`` (count, hidden); encode the result after the last slice."""
        if job.want is Want.ALL:
            job.outputs.append(rows)
        elif job.want is Want.LAST and piece.last:
            job.outputs.append(rows[-1:])
        if not piece.last:
            return
        started = perf_counter_ns()
        payload: bytes | memoryview = b""
        count = sum(len(output) for output in job.outputs)
        if count:
            output = job.outputs[0] if len(job.outputs) == 1 else torch.cat(job.outputs)
            try:
                payload = codecs.encode(job.lane.reply_codec, output)
            except LocalProtocolError as error:
                # Finite input that overflows in the blocks: this session's values only, rows are independent.
                self._fail(job, StepFailed(ErrorCode.BAD_TENSOR, error.message, error.hint), finished)
                return
        ended = perf_counter_ns()
        job.codec_ns += ended - started
        queue_ns = ended - job.arrived_ns - job.compute_ns - job.codec_ns
        self._finish(
            job,
            StepDone(
                payload=payload,
                rows=count,
                position=job.position + job.tokens - count,
                queue_us=max(0, queue_ns) // 1000,
                compute_us=job.compute_ns // 1000,
                codec_us=job.codec_ns // 1000,
                batch=batch,
            ),
            finished,
        )

    def _fail(self, job: StepJob, failure: StepFailed, finished: list[Finished]) -> None:
        """End a step that may have written keys and values: they count for nothing."""
        kv = job.lane.kv
        kv.rollback(min(kv.length, job.position))
        self._finish(job, failure, finished)

    def _finish(self, job: StepJob, outcome: StepOutcome, finished: list[Finished]) -> None:
        job.finished = True
        job.x = None
        job.outputs.clear()
        job.payload = b""
        finished.append((job, outcome))
