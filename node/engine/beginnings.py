"""Where a session can begin: what the cache is told of its pages and states, and what it finds there of them
when it goes back. The event loop's."""

from __future__ import annotations

from dataclasses import replace

from ...swarm.fairness.shares import Holder
from ...swarm.protocol.field_types import PAGE_TOKENS
from .jobs import StepFailed, TokenSequence
from .memory.page_allocator import Page
from .memory.session_memory import SessionMemory
from .memory.state_table import NAMED_EVERY
from .refusals import GO_BACK, LET_GO, NO_STATE


def register(memory: SessionMemory, sequence: TokenSequence) -> None:
    """Tell the cache of every page that is complete and will stay as it is."""
    known = min(len(sequence.names), sequence.settled // PAGE_TOKENS)
    owner = Holder(sequence.owner, sequence.group)
    while sequence.registered < known:
        memory.register(
            owner,
            sequence.span,
            sequence.names,
            sequence.registered,
            sequence.holdings,
            sequence.pending,
            long_context=sequence.long_context,
        )
        sequence.registered += 1
    if (states := sequence.states) is not None and not sequence.closed:
        states.marks.add(len(sequence.names), sequence.settled // PAGE_TOKENS, sequence.pending)


def begin_lower(memory: SessionMemory, sequence: TokenSequence, position: int) -> bool:
    """A session begins below its known prefix, as another hop knows less, or goes back to where it holds no
    state, and the cache does: whether it holds what ``position`` sees now."""
    if position % PAGE_TOKENS or sequence.pending:
        return False
    if sequence.begun:
        state = _named_states(memory, sequence, position).get(position)
        if state is None or sequence.states is None:
            return False
        sequence.states.begin_lower(position, state)
    else:
        names = sequence.names[: position // PAGE_TOKENS]
        known = memory.find(sequence.owner, sequence.span, names, long_context=sequence.long_context)
        if known.count * PAGE_TOKENS != position or not memory.begin_lower(sequence.holdings, known):
            return False
    sequence.fill_tables()
    return True


def why_lost(memory: SessionMemory, sequence: TokenSequence, position: int) -> StepFailed:
    """Why a step cannot begin at ``position``, and where one can."""
    lowest, states = sequence.holdings.pages.lowest, sequence.states
    if position < lowest or states is None:
        return LET_GO
    ends = [*_named_states(memory, sequence, position), states.held.last_border(position, lowest)]
    holds = max((end for end in ends if end is not None), default=None)
    return NO_STATE if holds is None else replace(NO_STATE, hint=GO_BACK, holds=holds)


def _named_states(memory: SessionMemory, sequence: TokenSequence, position: int) -> dict[int, Page]:
    """Those that the cache has of a session's tokens up to ``position``, by where they are, as far back as
    its pages reach. Any step may ask, and a session has a thousand names: only those are looked up that most
    states have."""
    lowest, names = sequence.holdings.pages.lowest, sequence.names[: position // PAGE_TOKENS]
    counts = sorted({*range(NAMED_EVERY, len(names), NAMED_EVERY), len(names)} - {0})
    named = [names[count - 1] for count in counts]
    found = memory.state_names.ends(sequence.owner, sequence.span, named, long_context=sequence.long_context)
    ends = {counts[number - 1] * PAGE_TOKENS: page for number, page in found.items()}
    if sequence.states is not None:
        ends |= {count * PAGE_TOKENS: page for count, page in sequence.states.marks.ends().items()}
    return {end: page for end, page in ends.items() if lowest <= end <= position}
