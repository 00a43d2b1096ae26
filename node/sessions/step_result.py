"""A computed step on its way out: to the client as RESULT, or to the next hop as STEP."""

from __future__ import annotations

from dataclasses import dataclass

from ...swarm.protocol.field_types import MAX_CHAIN
from ...swarm.protocol.messages import Result, Spent, Step, Want
from ...swarm.protocol.wire import Payload


@dataclass(slots=True)
class StepResult:
    """``payload``: ``tokens`` rows in the session's reply codec, the first at ``position``; all rows of the
    step where it is chained or has a journal, else those that ``want`` asks for.

    ``spent``: what the hops before have spent; the five fields behind it are this one's, times in
    microseconds. ``void`` and ``guess`` are the step's own.
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
            payload=self.payload,
        )

    def as_result(self, session: bytes) -> Result:
        """The RESULT for the client, with the rows it wants."""
        rows = self.tokens
        if self.want is not Want.ALL:
            rows = min(rows, 1 if self.want is Want.LAST else 0)
        payload = self.payload
        if rows < self.tokens:
            payload = memoryview(payload)[len(payload) - len(payload) // self.tokens * rows :]
        return Result(
            session,
            self.step,
            self.position + self.tokens - rows,
            rows,
            payload,
            self.queue_us,
            self.compute_us,
            self.codec_us,
            self.batch,
            self.spent,
        )
