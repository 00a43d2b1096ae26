"""The rows of a batch's results, encoded for those who want them. Rows of all sessions with one codec are
encoded in one call: rows stand alone in every codec."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter_ns

import numpy as np

from ...swarm.codecs.codec import Codec
from ...swarm.errors import CodecRangeError, ErrorCode, LocalProtocolError, SwarmError
from ...swarm.protocol.messages import Want
from .batch_slices import Work, rows_in
from .jobs import StepFailed, StepJob, TokenSequence

logger = logging.getLogger(__name__)

BROKEN = StepFailed(ErrorCode.INTERNAL, "the computation failed on this node", retriable=True)
_HARMFUL = StepFailed(
    ErrorCode.UNSUPPORTED_CODEC,
    "the next reader's table of scales loses too much of what was computed",
    hint="Open the session again with another codec.",
)


class ResultEncoder:
    """Of one engine."""

    def __init__(self) -> None:
        self._is_sound = False  # whether a result was finite, or it was told that none is
        self._spoilt: TokenSequence | None = None  # the first one of which a result was not

    def encode(self, work: Work, hidden: np.ndarray, started: int) -> list[tuple[StepJob, StepFailed]]:
        """Add to each step's ``parts`` the rows of ``hidden`` (T, width) that its client wants, and the time
        since ``started`` to its codec's; which steps failed by that."""
        failed: list[tuple[StepJob, StepFailed]] = []
        wanted: dict[Codec, list[tuple[StepJob, int, int]]] = {}  # first row, rows
        row = 0
        for job, part in work:
            first, own = row, part.count
            row += rows_in(job, part)
            if job.want is Want.LAST and part.last:
                first, own = first + own - 1, 1
            elif job.want is not Want.ALL:
                continue
            position = job.position + part.offset + part.count - own
            if self._is_harmed(job.sequence, hidden[first : first + own], position):
                failed.append((job, _HARMFUL))
                continue
            count = row - first if job.want is Want.ALL else own
            wanted.setdefault(job.sequence.reply_codec, []).append((job, first, count))
        for codec, takes in wanted.items():
            try:
                self._encode_rows(codec, takes, hidden)
            except Exception:  # noqa: BLE001 - found and told below
                # Finite input that overflows in the blocks: that session's values only, rows are independent.
                for take in takes:
                    try:
                        self._encode_rows(codec, [take], hidden)
                    except LocalProtocolError as error:
                        fits = not isinstance(error, CodecRangeError)
                        if fits:
                            self._note_spoilt(take[0].sequence)
                        code = ErrorCode.BAD_TENSOR if fits else ErrorCode.UNSUPPORTED_CODEC
                        failed.append((take[0], StepFailed(code, error.message, error.hint)))
                    except Exception:
                        logger.exception("event=encode_failed step=%d", take[0].step)
                        failed.append((take[0], BROKEN))
        elapsed = perf_counter_ns() - started
        for job, _ in work:
            job.codec_ns += elapsed
        return failed

    @staticmethod
    def _is_harmed(sequence: TokenSequence, rows: np.ndarray, position: int) -> bool:
        """Whether the codec of ``rows`` (tokens, width), which go on, loses too much of the session's."""
        try:
            return sequence.written.harmed(sequence.reply_codec, rows, position)
        except SwarmError:
            return False  # rows that cannot be encoded are met again, and told to their sender

    def _note_spoilt(self, sequence: TokenSequence) -> None:
        """Say once where two sessions had no finite result, and none had any: one may have chosen its input
        for that."""
        if self._is_sound or sequence is self._spoilt:
            return
        if self._spoilt is not None:
            self._is_sound = True  # it is told once
            logger.error(
                "event=no_finite_result hint=%r",
                "The blocks of this node compute values that are not finite for every session: the model's "
                "file may be damaged. Download it again, or use another file.",
            )
        self._spoilt = sequence

    def _encode_rows(
        self, codec: Codec, takes: Sequence[tuple[StepJob, int, int]], hidden: np.ndarray
    ) -> None:
        total = sum(count for _, _, count in takes)
        if total == len(hidden):
            rows = hidden
        elif len(takes) == 1:
            rows = hidden[takes[0][1] : takes[0][1] + total]
        else:
            rows = np.concatenate([hidden[first : first + count] for _, first, count in takes])
        payload = codec.encode(rows)
        self._is_sound = True
        if len(takes) == 1:
            takes[0][0].parts.append(payload)
            takes[0][0].rows += total
            return
        view, size, at = memoryview(payload), codec.row_bytes(rows.shape[1]), 0
        for job, _, count in takes:
            # Bytes of its own: an answer that is kept must not keep all others.
            job.parts.append(bytes(view[at : at + count * size]))
            job.rows += count
            at += count * size
