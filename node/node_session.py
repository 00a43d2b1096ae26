"""One open session on this node: its step numbers, its lane in the engine, its answers."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from ..swarm.errors import ErrorCode, RemoteProtocolError
from ..swarm.messages import ErrorMessage, Message, Open, Result, Step
from ..swarm.replies import error_message
from ..swarm.session import Duplicate, HopSession
from .engine import Engine
from .jobs import Lane, StepDone, StepDropped, StepJob, StepOutcome
from .quotas import Ledger, PeerAccount

MAX_KEPT_ANSWER = 256 * 1024
"""Bytes of the last result kept for a client that asks again: any decode step, not a whole prompt's rows."""


class NodeSession:
    """Owned by the event loop. ``post`` writes an answer to the client and may find nobody there.

    ``inflight``: steps given to the engine and not answered yet. ``last_used`` and ``opened_at`` are of the
    server's clock. ``kv_cells`` is what it holds of its peer's quota.
    """

    __slots__ = (
        "_closed",
        "_engine",
        "_last_answer",
        "_ledger",
        "_post",
        "account",
        "hop",
        "inflight",
        "kv_cells",
        "lane",
        "last_used",
        "opened_at",
        "request",
    )

    def __init__(
        self,
        request: Open,
        lane: Lane,
        hop: HopSession,
        engine: Engine,
        ledger: Ledger,
        account: PeerAccount,
        kv_cells: int,
        post: Callable[[Message], None],
        now: float,
    ) -> None:
        self.request = request
        self.lane = lane
        self.hop = hop
        self.account = account
        self.kv_cells = kv_cells
        self.inflight = 0
        self.last_used = self.opened_at = now
        self._engine = engine
        self._ledger = ledger
        self._post = post
        self._closed = False
        self._last_answer: Result | ErrorMessage | None = None

    @property
    def id(self) -> bytes:
        return self.request.session

    def on_step(self, step: Step, now: float) -> None:
        """Hand a step to the engine; its answer is posted when it comes. A wrong step is answered at once."""
        arrived = perf_counter_ns()
        try:
            verdict = self.hop.on_step(step.step, step.position, step.tokens)
        except RemoteProtocolError as error:
            self._post(error_message(error, step.session, step.step, retriable=False))
            return
        self.last_used = now
        if isinstance(verdict, Duplicate):
            self._repeat(step)
            return
        self._last_answer = None
        self.inflight += 1
        tokens, size = step.tokens, len(step.payload)
        self._ledger.queue(self.account, tokens, size)

        def done(job: StepJob, outcome: StepOutcome) -> None:
            self.inflight -= 1
            self._ledger.unqueue(self.account, tokens, size)
            if not self._closed:
                self._answer(job, outcome)

        self._engine.submit(
            StepJob(
                lane=self.lane,
                step=step.step,
                position=step.position,
                tokens=step.tokens,
                want=step.want,
                payload=step.payload,
                arrived_ns=arrived,
                done=done,
                deadline_ns=arrived + step.deadline_ms * 1_000_000 if step.deadline_ms else 0,
            )
        )

    def close(self, prefix: tuple[bytes, ...] = ()) -> None:
        """Free the KV cache: now, or as soon as the step being computed lets go of it."""
        self._closed = True
        self._engine.close_lane(self.lane, prefix)

    def _repeat(self, step: Step) -> None:
        if self._last_answer is not None:
            self._post(self._last_answer)
        elif not self.inflight:
            self._post(
                ErrorMessage(
                    step.session,
                    step.step,
                    ErrorCode.BAD_STEP,
                    f"the answer to step {step.step} is no longer kept",
                    True,
                    "Send the tokens again under a new step number.",
                )
            )
        # Else the first copy is still being computed, and its answer will do for both.

    def _answer(self, job: StepJob, outcome: StepOutcome) -> None:
        match outcome:
            case StepDone():
                answer: Result | ErrorMessage = Result(
                    session=self.id,
                    step=job.step,
                    position=outcome.position,
                    tokens=outcome.rows,
                    payload=outcome.payload,
                    queue_us=outcome.queue_us,
                    compute_us=outcome.compute_us,
                    codec_us=outcome.codec_us,
                    batch=outcome.batch,
                )
            case StepDropped():
                return
            case failed:
                answer = ErrorMessage(
                    self.id, job.step, failed.code, failed.message, failed.retriable, failed.hint
                )
        if job.step == self.hop.last_step:
            small = isinstance(answer, ErrorMessage) or len(answer.payload) <= MAX_KEPT_ANSWER
            self._last_answer = answer if small else None
        self._post(answer)
