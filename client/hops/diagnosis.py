"""What is wrong with a route: which hops are lost, which edges between living hops, and which hop sends
nonsense.

What a hop says of its neighbour is only a hint. The client's own link to that neighbour tells whether it
lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...swarm.errors import (
    EdgeFailedError,
    ErrorCode,
    HopFailedError,
    PeerError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from .hop import HopClient

REFUSED_INPUT = frozenset(
    {
        ErrorCode.BAD_TENSOR,
        ErrorCode.BAD_STEP,
        ErrorCode.CONTEXT_EXCEEDED,
        ErrorCode.OVERLOADED,  # the hop before it may send more than was asked for
        ErrorCode.DEADLINE,  # and say that it is urgent
    }
)
"""A step that is refused with one of these codes may be the fault of its sender."""
MISCOUNTED = frozenset({ErrorCode.BAD_STEP, ErrorCode.CONTEXT_EXCEEDED})
"""Of those codes, these may follow from steps that were sent before."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A hop can go on at position ``holds``, and not where it was to."""

    cause: PeerError
    holds: int


@dataclass(slots=True)
class Diagnosis:
    """By place in the route: hops that are lost, hops whose sessions are of no use any more, edges (named by
    the hop they lead to) that are lost, and hops that can go on at an earlier position."""

    lost: dict[int, SwarmError] = field(default_factory=dict)
    spoilt: dict[int, SwarmError] = field(default_factory=dict)
    edges: dict[int, SwarmError] = field(default_factory=dict)
    behind: dict[int, Behind] = field(default_factory=dict)

    def worst(self, hops: Sequence[HopClient]) -> HopFailedError | EdgeFailedError:
        """Nonsense before loss, loss before edges."""
        by_gravity = sorted(
            self.lost, key=lambda number: not isinstance(self.lost[number], RemoteProtocolError)
        )
        if by_gravity:
            return HopFailedError(hops[by_gravity[0]].peer_id, self.lost[by_gravity[0]])
        for number, cause in self.edges.items():
            return EdgeFailedError(number, cause)
        return HopFailedError(hops[0].peer_id, StreamClosedError("the route ended without giving a reason"))


async def diagnose(hops: Sequence[HopClient]) -> Diagnosis:
    """Look at every hop; where they say that a neighbour is lost, ask that neighbour itself."""
    found = Diagnosis()
    suspects: set[int] = set()
    for number, hop in enumerate(hops):
        state = hop.state
        if state.upstream_lost is not None and number and hop.upstream == hops[number - 1].peer_id:
            found.edges[number] = state.upstream_lost
            suspects |= {number - 1, number}
        if (why := _loss_after(hops, number)) is not None:
            found.edges[number + 1] = why
            suspects |= {number, number + 1}
        if state.stalled is not None:
            for edge in range(1, len(hops)):
                if hops[edge].listener is hop.listener is hops[edge - 1].listener:
                    found.edges[edge] = state.stalled
        if state.step_error is not None:
            _judge(hops, number, found)
    asked = [hops[number].link.check() for number in sorted(suspects) if hops[number].failure is None]
    await asyncio.gather(*asked)
    for number, hop in enumerate(hops):
        if hop.failure is not None:
            found.lost[number] = hop.failure
            found.behind.pop(number, None)
    for number in list(found.edges):
        if number in found.lost or number - 1 in found.lost:
            del found.edges[number]
        elif (why := _loss_after(hops, number - 1)) is not None:
            # Who sends knows why it ended the stream, and has said so before it answered the check. Who
            # receives saw only the end.
            found.edges[number] = why
    return found


def _loss_after(hops: Sequence[HopClient], number: int) -> SwarmError | None:
    """What a hop says of the one after it: why that is lost."""
    state = hops[number].state
    after = hops[number + 1] if number + 1 < len(hops) else None
    return state.downstream_lost if after is not None and state.lost_session == after.session else None


def _judge(hops: Sequence[HopClient], number: int, found: Diagnosis) -> None:
    """A hop could not take a step. If the step came from another hop, that one may be to blame. Where the
    client carried the step, its bytes tell; elsewhere the client has to carry it to see. A session that
    another hop has fed counts tokens as that hop made it count: a new session will show which of them is to
    blame."""
    hop = hops[number]
    error, code = hop.state.step_error, hop.state.step_code
    if error is None:
        return
    if isinstance(error, PeerError) and code is ErrorCode.CACHE_LOST and error.holds is not None:
        found.behind[number] = Behind(error, error.holds)
        return
    if number and code in REFUSED_INPUT:
        if hop.upstream:
            found.edges[number] = error
            return
        if code is ErrorCode.BAD_TENSOR:
            try:
                for payload, tokens in () if hop.listener is None else hop.listener.awaited_payloads:
                    hop.codec.decode(payload, tokens, hop.width)
            except RemoteProtocolError as damaged:
                found.lost[number - 1] = damaged
                return
        elif hop.was_fed and code in MISCOUNTED:
            found.spoilt[number] = error
            return
    found.lost[number] = error
