"""The rows of a batch as the blocks get them: before those of a step, perhaps rows of its page that are fed
again, as a state is only held for the page's border, or saved for where a draft began."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...shards.layers.kv_pool import BatchSlice
from ...swarm.errors import LocalProtocolError
from .batching.scheduler import Slice
from .jobs import StepJob, TokenSequence

Work = list[tuple[StepJob, Slice[TokenSequence]]]


class BatchRows(NamedTuple):
    """``x`` (T, width) in ``slices``. ``kept``: which rows of the result are the steps' own; None: all."""

    x: np.ndarray
    slices: list[BatchSlice]
    kept: list[slice] | None

    def own(self, hidden: np.ndarray) -> np.ndarray:
        """Of ``hidden`` (T, width), what is not the result of rows that were fed again."""
        if self.kept is None:
            return hidden
        return (
            hidden[self.kept[0]]
            if len(self.kept) == 1
            else np.concatenate([hidden[each] for each in self.kept])
        )


def can_begin(job: StepJob, offset: int) -> bool:
    """Whether all is there to compute a step from ``offset`` on."""
    states, plan = job.sequence.states, job.plan
    return states is None or (plan is not None and states.begin(plan, job.position, offset) is not None)


def lay_out(work: Work, x: np.ndarray, limit: float) -> BatchRows:
    """``x`` (T, width): the rows of ``work``, which can all begin, in its order and of one span. ``limit``:
    as the codec's."""
    slices: list[BatchSlice] = []
    pieces: list[np.ndarray] = []
    kept: list[slice] = []
    row = at = 0
    again = False
    for job, part in work:
        sequence, start, count = job.sequence, job.position + part.offset, part.count
        states, before, saved = sequence.states, 0, None
        if states is not None and job.plan is not None:
            begin = states.begin(job.plan, job.position, part.offset)
            if begin is None:
                raise LocalProtocolError(f"step {job.step} is computed from where no state is")
            lead, saved = begin
            if lead.rows:
                before, again = lead.rows, True
                pieces.append(sequence.codec.decode(lead.payload, before, x.shape[1], limit))
        pieces.append(x[at : at + count])
        slices.append(
            BatchSlice(
                sequence.table,
                sequence.span.start,
                row,
                start - before,
                before + count,
                sequence.long_context,
                None if states is None else states.table,
                saved,
                before,
            )
        )
        kept.append(slice(row + before, row + before + count))
        row, at = row + before + count, at + count
    return BatchRows(np.concatenate(pieces), slices, kept) if again else BatchRows(x, slices, None)
