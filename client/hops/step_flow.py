"""Short steps sent through a route ahead of their results.

They come out of the last hop in the order in which they were sent. Where hops are not chained, a task for
each such place carries what comes out of one segment to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from ...swarm.errors import BrokenError
from ...swarm.protocol.branches import rows_of
from ...swarm.protocol.field_types import Branches
from ...swarm.protocol.messages import Result, Want
from ...swarm.protocol.wire import Payload
from .segment import Segment


class StepFlow:
    """Steps over ``segments``, which are one after the other. ``tokens``: in steps without a result. ``stop``
    must be called."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.tokens = 0
        self._fault: Exception | None = None  # of this process
        self._certain = 0  # the step that was sent when nothing was under way
        self._forked: dict[int, tuple[int, Branches]] = {}  # rows of a step, if it has branches, and these
        self._segments = tuple(segments)
        self._carriers = [asyncio.create_task(self._carry(*pair)) for pair in pairwise(segments)]

    def post(self, step: int, payload: Payload, tokens: int, position: int, branches: Branches = ()) -> None:
        """Send a step whose rows are all wanted; ``tokens`` counts those of ``branches``. Never waits;
        ``receive`` raises for one that fails. What goes ahead of results can only be guessed: so only the
        first row of the first step is certain."""
        if not self.tokens:
            self._certain = step
        self.tokens += tokens - rows_of(branches)
        if branches:
            self._forked[step] = tokens, branches
        try:
            self._post(self._segments[0], step, payload, tokens, position, branches)
        except BrokenError:
            self._segments[-1].mark_broken()

    async def receive(self) -> tuple[Result, int]:
        """The result of the oldest step, and how many of its rows are those of the sequence: the others are
        its branches', all or none. Raises BrokenError, and what is wrong with this process."""
        try:
            result = await self._segments[-1].receive()
        except BrokenError:
            if self._fault is not None:
                raise self._fault from None
            raise
        own = result.tokens - rows_of(self._branches_in(result))
        self._forked.pop(result.step, None)
        self.tokens -= own
        return result, own

    def _branches_in(self, result: Result) -> Branches:
        tokens, branches = self._forked.get(result.step, (0, ()))
        return branches if result.tokens == tokens else ()

    def stop(self) -> None:
        """Carry nothing any more. Idempotent."""
        for carrier in self._carriers:
            carrier.cancel()

    async def _carry(self, source: Segment, target: Segment) -> None:
        try:
            while True:
                result = await source.receive()
                branches = self._branches_in(result)
                self._post(target, result.step, result.payload, result.tokens, result.position, branches)
        except BrokenError:
            self._segments[-1].mark_broken()
        except Exception as fault:  # noqa: BLE001 - raised where somebody waits for it
            self._fault = fault
            self._segments[-1].mark_broken()

    def _post(
        self,
        segment: Segment,
        step: int,
        payload: Payload,
        tokens: int,
        position: int,
        branches: Branches,
    ) -> None:
        guess = tokens - (step == self._certain)
        segment.post(
            *(step, payload, tokens, position, Want.ALL), decoding=True, guess=guess, branches=branches
        )
