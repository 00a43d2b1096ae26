"""The state of an open hop: which tokens it lacks, and what is known against it.

A state is immutable. ``HopClient`` alone replaces its own, by one method of ``HopState`` for each event.
TRANSITIONS says which events are possible in which condition, what they lead to, and who causes them. What is
known against a hop stays in its state until a repair has used it: several faults at once are all seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from ...swarm.errors import ErrorCode, LocalProtocolError, SwarmError


class Condition(Enum):
    """What a hop is to this client, the best first."""

    WORKING = "working"  # it has all tokens, and nothing is known against it
    REPLAYING = "replaying"  # it lacks tokens that the others have computed: a replay is to bring them
    SUSPECTED = "suspected"  # a step failed here, or it lost a neighbour: perhaps through another's fault
    STALLED = "stalled"  # its chain answers nothing for too long, and it is not known whose fault that is
    LOST = "lost"  # its session is over; final


class Event(Enum):
    """What changes a hop's state."""

    LACKS = "lacks"
    FED = "fed"
    STEP_FAILED = "step failed"
    UPSTREAM_LOST = "upstream lost"
    DOWNSTREAM_LOST = "downstream lost"
    STALLED = "stalled"
    ATTACHED = "attached"
    REPLAYED = "replayed"
    CLEARED = "cleared"
    LOST = "lost"


W, R, S, T, L = Condition
_SUSPECT = {W: {S}, R: {S}, S: {S}, T: {T}, L: {L}}
_REWIRE = {W: {W}, R: {R}, S: {W, R, S}, T: {T}, L: {L}}
TRANSITIONS: dict[Event, dict[Condition, set[Condition]]] = {
    Event.LACKS: {W: {R}, S: {S}, T: {T}, L: {L}},  # a repair that opens it, or hears what it holds
    Event.FED: {R: {W}, S: {S}, T: {T}, L: {L}},  # the repair, after a replay
    Event.STEP_FAILED: _SUSPECT,  # its node's ERROR; a segment that checks its results
    Event.UPSTREAM_LOST: _SUSPECT,  # its node; the watch over the steps of a chain
    Event.DOWNSTREAM_LOST: _SUSPECT,  # its node
    Event.STALLED: {W: {T}, R: {T}, S: {T}, T: {T}, L: {L}},  # its link
    Event.ATTACHED: _REWIRE,  # ATTACHED: what it said of the hop before concerns another one now
    Event.REPLAYED: _REWIRE,  # REPLAYED, or a replay that failed: likewise for the hop after
    Event.CLEARED: {W: {W}, R: {R}, S: {W, R}, T: {W, R}, L: {L}},  # the repair, after its diagnosis
    Event.LOST: {W: {L}, R: {L}, S: {L}, T: {L}, L: {L}},  # its link; what is certain that it is to blame
}
"""Possible conditions after each event; an event that a condition lacks here is a bug of ours."""


@dataclass(frozen=True, slots=True)
class HopState:
    """``missing_from``: position from which the hop lacks what the others have computed; None: it lacks
    nothing. ``failure`` ended its session. ``step_error`` is about one step, with ``step_code``. ``stalled``:
    its chain answered nothing for too long. ``upstream_lost`` and ``downstream_lost`` are what it says of its
    neighbours; ``lost_session`` is the one that it sent its results to."""

    missing_from: int | None = None
    failure: SwarmError | None = None
    stalled: SwarmError | None = None
    step_error: SwarmError | None = None
    step_code: ErrorCode = ErrorCode.INTERNAL
    upstream_lost: SwarmError | None = None
    downstream_lost: SwarmError | None = None
    lost_session: bytes | None = None

    @property
    def condition(self) -> Condition:
        """The worst that applies."""
        if self.failure is not None:
            return Condition.LOST
        if self.stalled is not None:
            return Condition.STALLED
        if self.step_error or self.upstream_lost or self.downstream_lost:
            return Condition.SUSPECTED
        return Condition.WORKING if self.missing_from is None else Condition.REPLAYING

    @property
    def is_troubled(self) -> bool:
        """Something is known against the hop."""
        return self.condition in (Condition.SUSPECTED, Condition.STALLED, Condition.LOST)

    def lacks(self, position: int) -> HopState:
        return self._after(Event.LACKS, missing_from=position)

    def fed(self) -> HopState:
        return self._after(Event.FED, missing_from=None)

    def step_failed(self, error: SwarmError, code: ErrorCode) -> HopState:
        """The first error counts: later ones follow from it."""
        known = {} if self.step_error else {"step_error": error, "step_code": code}
        return self._after(Event.STEP_FAILED, **known)

    def upstream_is_lost(self, error: SwarmError) -> HopState:
        return self._after(Event.UPSTREAM_LOST, upstream_lost=error)

    def downstream_is_lost(self, error: SwarmError, session: bytes | None) -> HopState:
        return self._after(Event.DOWNSTREAM_LOST, downstream_lost=error, lost_session=session)

    def chain_stalled(self, error: SwarmError) -> HopState:
        return self._after(Event.STALLED, stalled=self.stalled or error)

    def attached(self) -> HopState:
        return self._after(Event.ATTACHED, upstream_lost=None)

    def replayed(self) -> HopState:
        return self._after(Event.REPLAYED, downstream_lost=None)

    def cleared(self) -> HopState:
        nothing = dict.fromkeys(("stalled", "step_error", "upstream_lost", "downstream_lost"))
        return self._after(Event.CLEARED, **nothing)

    def lost(self, error: SwarmError) -> HopState:
        return self._after(Event.LOST, failure=self.failure or error)

    def _after(self, event: Event, **known: Any) -> HopState:
        """Raises LocalProtocolError for an event that is not possible now."""
        if self.condition not in TRANSITIONS[event]:
            raise LocalProtocolError(f"a hop that is {self.condition.value} got the event {event.value!r}")
        return replace(self, **known)
