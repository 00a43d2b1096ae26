"""What a step needs of the memory, found as it is submitted. The event loop's."""

from __future__ import annotations

from ...swarm.protocol.branches import reach_of
from ...swarm.protocol.field_types import PAGE_TOKENS
from .beginnings import begin_lower, why_lost
from .jobs import StepFailed, StepJob
from .memory.scratch import pages_of
from .memory.session_memory import SessionMemory
from .refusals import NO_PAGE, STATE_IN_USE


def plan_step(memory: SessionMemory, job: StepJob) -> StepFailed | None:
    """Find room for what a step writes, and note in the job what changes for it; why there is none, or no
    place to begin at. Branches without room are left out."""
    sequence, position = job.sequence, job.position
    if not sequence.reaches(position) and not begin_lower(memory, sequence, position):
        return why_lost(memory, sequence, position)
    if position < sequence.length and sequence.names:
        sequence.cut_names(position)
    waiting = min(sequence.pending, default=None)
    if sequence.states is not None:
        if not _plan_states(job):
            return STATE_IN_USE
        waiting = min([position, *sequence.pending])
        waiting -= waiting % PAGE_TOKENS  # it may begin there, with rows that were kept
    changes = sequence.holdings.pages.write(position, job.tokens, waiting=waiting)
    if changes is None:
        return NO_PAGE
    job.changes = changes
    if job.branches and not _has_room_for_branches(memory, job):
        job.leave_out_branches()
    return None


def _plan_states(job: StepJob) -> bool:
    """The same for the states of a session that keeps some; False: another step reads what it would
    overwrite."""
    sequence, position, states = job.sequence, job.position, job.sequence.states
    if states is None:
        return True
    states.marks.rollback(position // PAGE_TOKENS)
    job.plan = states.plan(
        position,
        job.tokens,
        job.own_payload,
        sequence.pending,
        goes_on=sequence.goes_on(position),
        save=bool(job.branches),
    )
    return job.plan is not None


def _has_room_for_branches(memory: SessionMemory, job: StepJob) -> bool:
    """Whether the session may become as long as they reach, the state before the step stays, where its blocks
    keep one, and there are slots for the branches' pages: these are the job's then."""
    sequence, position, plan = job.sequence, job.position, job.plan
    if position + reach_of(job.branches) > sequence.max_tokens:
        return False
    if plan is not None and plan.saved is None and position % PAGE_TOKENS:
        return False
    blocks = memory.layout(sequence.span).blocks
    job.scratch = memory.scratch.take(blocks * sum(pages_of(position, job.branches)))
    return job.scratch is not None
