"""A computed step on its way out: to the client as RESULT, or to the next hop as STEP."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...swarm.protocol.branches import rows_of
from ...swarm.protocol.field_types import MAX_CHAIN, Branches
from ...swarm.protocol.messages import Result, Spent, Step, Want
from ...swarm.protocol.wire import Payload


@dataclass(slots=True)
class StepResult:
    """``payload``: ``tokens`` rows in the session's reply codec, the first at ``position``; all rows of the
    step where it is chained or has a journal, else those that ``want`` asks for. The last of them are those
    of ``branches``, which may be fewer than the step had.

    ``spent``: what the hops before have spent; the four fields behind it are this one's, times in
    microseconds. ``void`` is the step's own, and ``guess`` too, without the rows of branches that it left
    out; ``row_us`` as in RESULT.
    """

    step: int
    position: int
    tokens: int
    want: Want
    deadline_ms: int
    payload: Payload
    spent: Spent
    queue_us: int
    compute_us: int
    codec_us: int
    batch: int
    void: int = 0
    guess: int = 0
    branches: Branches = ()
    row_us: int = 0

    def as_step(self, session: bytes) -> Step:
        """The STEP for the next hop, whose ``session`` that is."""
        spent = (*self.spent, (self.queue_us, self.compute_us, self.codec_us, self.batch))
        return Step(
            session,
            self.step,
            self.position,
            self.tokens,
            self.want,
            self.deadline_ms,
            False,
            spent[-MAX_CHAIN:],
            self.void,
            self.guess,
            self.branches,
            payload=self.payload,
        )

    def without_branches(self) -> StepResult:
        own = self.own_tokens
        guess = max(0, self.guess - (self.tokens - own))
        return replace(self, tokens=own, payload=self._rows(0, own), guess=guess, branches=())

    @property
    def own_tokens(self) -> int:
        """Rows before those of branches."""
        return self.tokens - rows_of(self.branches)

    def _rows(self, start: int, end: int) -> Payload:
        if end - start == self.tokens:
            return self.payload
        size = len(self.payload) // self.tokens
        return memoryview(self.payload)[start * size : end * size]

    def as_result(self, session: bytes) -> Result:
        """The RESULT for the client, with the rows it wants."""
        first, end = 0, self.tokens
        if self.want is not Want.ALL:
            end = self.own_tokens
            first = end - min(end, 1 if self.want is Want.LAST else 0)
        return Result(
            session,
            self.step,
            self.position + first,
            end - first,
            self._rows(first, end),
            self.queue_us,
            self.compute_us,
            self.codec_us,
            self.batch,
            self.spent,
            self.row_us,
        )
