"""The rows of a batch as the blocks get them.

Before those of a step, perhaps rows of its page that are fed again, as a state is only held for the page's
border, or saved for where a draft began. Behind them its branches, each a slice by itself: the step's first
rows once more, and its own, over pages that nobody keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ...shards.layers.kv_pool import BatchSlice
from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from .batching.scheduler import Slice
from .jobs import StepJob, TokenSequence
from .memory.scratch import pages_of

Work = list[tuple[StepJob, Slice[TokenSequence]]]


class BatchRows(NamedTuple):
    """``x`` (T, width) in ``slices``; ``steps`` are those of the steps themselves. ``kept``: which rows of
    the result are those that came, in their order; None: all."""

    x: np.ndarray
    slices: list[BatchSlice]
    steps: list[BatchSlice]
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


def rows_in(job: StepJob, part: Slice[TokenSequence]) -> int:
    """Rows that came for a slice of a step, those of branches included: a step with some is one slice."""
    return part.count + job.branch_rows


def can_begin(job: StepJob, offset: int) -> bool:
    """Whether all is there to compute a step from ``offset`` on."""
    states, plan = job.sequence.states, job.plan
    return states is None or (plan is not None and states.begin(plan, job.position, offset) is not None)


def lay_out(work: Work, x: np.ndarray, limit: float) -> BatchRows:
    """``x`` (T, width): the rows of ``work``, which can all begin, in its order and of one span. ``limit``:
    as the codec's. What the branches read is where it stays (``page_copies``, ``SequenceStates.save``)."""
    slices: list[BatchSlice] = []
    steps: list[BatchSlice] = []
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
        own = x[at : at + count]
        pieces.append(own)
        step = BatchSlice(
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
        slices.append(step)
        steps.append(step)
        kept.append(slice(row + before, row + before + count))
        row, at = row + before + count, at + count
        for branch, count in _branches(job, row):
            again = True
            pieces += [own[: branch.count - count], x[at : at + count]]
            slices.append(branch)
            row, at = row + branch.count, at + count
            kept.append(slice(row - count, row))
    return BatchRows(np.concatenate(pieces) if again else x, slices, steps, kept if again else None)


def _branches(job: StepJob, row: int) -> Iterator[tuple[BatchSlice, int]]:
    """The slice of each branch of a step, and how many rows it has of its own. ``row``: where the first
    begins in the batch."""
    if not job.branches:
        return
    sequence, position = job.sequence, job.position
    states = sequence.states
    saved = None if states is None else states.before(position)
    first = position // PAGE_TOKENS
    for (shared, count), (blocks, slots) in zip(job.branches, _scratch(job), strict=True):
        table = sequence.table[:, : first + len(slots)].copy()
        table[blocks, first:] = slots.T
        kept = None if states is None else np.full_like(table, -1)  # no state of a branch is
        first_block, long_context = sequence.span.start, sequence.long_context
        yield (
            BatchSlice(table, first_block, row, position, shared + count, long_context, kept, saved, again=0),
            count,
        )
        row += shared + count


def _scratch(job: StepJob) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each branch: the rows of its table that have keys and values, and the slots (pages, rows) that
    these have from the page of the step's position on."""
    blocks = np.flatnonzero(job.sequence.table[:, job.position // PAGE_TOKENS] >= 0)
    slots = np.array(() if job.scratch is None else job.scratch.slots, np.int32)
    used = 0
    for pages in pages_of(job.position, job.branches):
        size = pages * len(blocks)
        yield blocks, slots[used : used + size].reshape(pages, len(blocks))
        used += size


def page_copies(jobs: Iterable[StepJob]) -> tuple[list[int], list[int]]:
    """Slots of the pages that steps begin in the middle of, and where each of their branches has its own."""
    sources: list[int] = []
    targets: list[int] = []
    for job in jobs:
        page, row = divmod(job.position, PAGE_TOKENS)
        for blocks, slots in _scratch(job) if row else ():
            sources += job.sequence.table[blocks, page].tolist()
            targets += slots[0].tolist()
    return sources, targets


def lead_of(job: StepJob, width: int, limit: float) -> BatchRows | None:
    """The rows, of ``width`` values, that are fed again before a step so that the state before it is in the
    table; None: it is."""
    sequence, states = job.sequence, job.sequence.states
    begin = None if states is None or job.plan is None else states.begin(job.plan, job.position, 0)
    if states is None or begin is None:
        raise LocalProtocolError(f"step {job.step} is computed from where no state is")
    rows = begin.lead.rows
    if not rows:
        return None
    x = sequence.codec.decode(begin.lead.payload, rows, width, limit)
    part = BatchSlice(
        sequence.table,
        sequence.span.start,
        0,
        job.position - rows,
        rows,
        sequence.long_context,
        states.table,
    )
    return BatchRows(x, [part], [part], None)
