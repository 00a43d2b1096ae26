"""The table of a hop's states: nothing leaves it, all of it happens, and what is lost stays lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.hops.state import TRANSITIONS, Condition, Event, HopState
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, StreamClosedError, SwarmError

ERROR = StreamClosedError("first")
APPLY: dict[Event, Callable[[HopState, SwarmError], HopState]] = {
    Event.LACKS: lambda state, _: state.lacks(7),
    Event.FED: lambda state, _: state.fed(),
    Event.STEP_FAILED: lambda state, error: state.step_failed(error, ErrorCode.BAD_STEP),
    Event.UPSTREAM_LOST: lambda state, error: state.upstream_is_lost(error),
    Event.DOWNSTREAM_LOST: lambda state, error: state.downstream_is_lost(error, b"next"),
    Event.STALLED: lambda state, error: state.chain_stalled(error),
    Event.ATTACHED: lambda state, _: state.attached(),
    Event.REPLAYED: lambda state, _: state.replayed(),
    Event.CLEARED: lambda state, _: state.cleared(),
    Event.LOST: lambda state, error: state.lost(error),
}
events = st.lists(st.sampled_from(Event), max_size=12)


def possible(state: HopState, event: Event) -> bool:
    return state.condition in TRANSITIONS[event]


def after(sequence: list[Event]) -> HopState:
    """The state after a sequence, without those events that are not possible when they come."""
    state = HopState()
    for event in sequence:
        if possible(state, event):
            state = APPLY[event](state, ERROR)
    return state


def test_the_table_is_exactly_what_happens() -> None:
    """All states that any events lead to, one by one."""
    seen: dict[Event, dict[Condition, set[Condition]]] = {event: {} for event in Event}
    states, left = {HopState()}, [HopState()]
    while left:
        state = left.pop()
        for event in Event:
            if possible(state, event):
                new = APPLY[event](state, ERROR)
                seen[event].setdefault(state.condition, set()).add(new.condition)
                if new not in states:
                    states.add(new)
                    left.append(new)
    assert seen == TRANSITIONS
    assert {state.condition for state in states} == set(Condition)


@given(events, st.sampled_from(Event))
def test_every_sequence_of_events_stays_in_the_table(sequence: list[Event], event: Event) -> None:
    before = after(sequence)
    if possible(before, event):
        assert APPLY[event](before, ERROR).condition in TRANSITIONS[event][before.condition]
    else:
        with pytest.raises(LocalProtocolError, match=before.condition.value):
            APPLY[event](before, ERROR)


@given(events, events)
def test_lost_is_final_and_keeps_its_first_cause(sequence: list[Event], later: list[Event]) -> None:
    state = after(sequence).lost(ERROR)
    failure = state.failure
    for event in later:
        assert possible(state, event), "a session that is over must not make anything fail here"
        state = APPLY[event](state, StreamClosedError("later"))
        assert state.condition is Condition.LOST
        assert state.failure is failure


@given(events)
def test_what_is_cleared_leaves_no_trace_but_what_is_missing(sequence: list[Event]) -> None:
    state = after(sequence)
    cleared = state.cleared()
    assert cleared.missing_from == state.missing_from
    assert cleared.failure is state.failure
    assert cleared.is_troubled == (state.failure is not None)
    again = cleared.step_failed(StreamClosedError("again"), ErrorCode.BAD_TENSOR)
    assert str(again.step_error) == "again"


@given(events, st.sampled_from([Event.STEP_FAILED, Event.STALLED]))
def test_the_first_error_counts(sequence: list[Event], event: Event) -> None:
    first = APPLY[event](after(sequence), ERROR)
    assert APPLY[event](first, StreamClosedError("later")) == first


@given(events)
def test_troubles_hide_each_other_and_are_all_kept(sequence: list[Event]) -> None:
    state = after(sequence)
    known = [state.step_error, state.upstream_lost, state.downstream_lost, state.stalled, state.failure]
    assert state.is_troubled == any(known)
    assert (state.condition is Condition.REPLAYING) == (not any(known) and state.missing_from is not None)


def test_a_hop_learns_once_what_it_lacks_and_is_fed_what_it_lacks() -> None:
    with pytest.raises(LocalProtocolError, match="replaying"):
        HopState().lacks(3).lacks(4)
    with pytest.raises(LocalProtocolError, match="working"):
        HopState().fed()
    assert HopState().lacks(3).fed() == HopState()
