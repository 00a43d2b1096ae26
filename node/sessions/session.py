"""One open session on this node: its step numbers, its sequence in the engine, its journal, its output."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import Protocol

from ...swarm.errors import ErrorCode, RemoteProtocolError
from ...swarm.protocol.branches import computed_rows, rows_of, too_many
from ...swarm.protocol.error_frames import error_message
from ...swarm.protocol.field_types import Progress
from ...swarm.protocol.hop_session import Duplicate, HopSession
from ...swarm.protocol.messages import Attach, ErrorMessage, Message, Open, Replay, Result, Step, Want
from ...swarm.types import short_peer_id
from ..engine.batching.scheduler import DECODE_TOKENS
from ..engine.engine import Engine
from ..engine.jobs import StepDone, StepFailed, StepJob, StepOutcome, TokenSequence
from ..figures.work import SessionEnd, WorkDone
from ..limits.quotas import Ledger, PeerAccount
from ..limits.usage import ACTIVE_TOKENS_PER_S, Usage
from .journal import Journal
from .next_hops import NextHops
from .output import Client, Output
from .step_result import StepResult

MAX_KEPT_ANSWER = 256 * 1024
"""At most this many bytes of the last result are kept for a client that asks again: any decode step, not a
whole prompt's rows."""
FED_TURNS = 2
"""How many times over another hop's steps may fill a session before they are computed: what is sent, and sent
again after a repair. More would use up its client's quota, and the client's own stream would go unread."""

_OVERLOADED = (
    "more of your steps wait here than this node takes",
    "Send fewer steps ahead, read the results, or use another peer.",
)


class StepSource(Protocol):
    """A stream that steps come from. ``post`` may fail if its peer has gone."""

    def post(self, message: Message) -> None: ...


class Feeder(StepSource, Protocol):
    """One that is not the owner's."""

    def stop_feeding(self, session: NodeSession) -> None:
        """The session ends, or is fed by another from now on."""


class SessionOwner(StepSource, Client, Protocol):
    """The stream that opened the session: what the session has to say goes there."""

    @property
    def takes_answers(self) -> bool:
        """Whether it reads what it is told."""

    def expire(self, session: NodeSession, why: SessionEnd, reason: str) -> None:
        """Close a session that the client did not close, and tell it."""


class NodeSession:
    """Owned by the event loop.

    ``output`` says where results go. Steps come from the peer ``upstream``, or on the owner's stream ("");
    ``fed_by`` is the other stream that the last one came on. ``inflight``: steps given to the engine and not
    answered yet; ``last_done``: the last one that was. ``last_used`` and ``opened_at`` are of the server's
    clock. ``kv_cells`` is what it holds of its peer's quota.
    """

    def __init__(
        self,
        request: Open,
        sequence: TokenSequence,
        hop: HopSession,
        engine: Engine,
        ledger: Ledger,
        work: WorkDone,
        account: PeerAccount,
        kv_cells: int,
        owner: SessionOwner,
        now: float,
        journal: Journal | None = None,
    ) -> None:
        self.request = request
        self.sequence = sequence
        self.hop = hop
        self.account = account
        self.kv_cells = kv_cells
        self.owner = owner
        self.journal = journal
        self.upstream = request.upstream
        self.fed_by: Feeder | None = None
        self.inflight = 0
        self.last_done = 0
        self.queued_tokens = 0
        self._last_held = 0  # the number of the last step that a replay sent
        self._voided_at: int | None = None  # the last step that had come when some were made void
        self._dropped_upto = 0  # the engine was told which of the steps up to this one are void
        self.last_used = self.opened_at = now
        self.usage = Usage(now)
        self._engine = engine
        self._ledger = ledger
        self._work = work
        self.closed = False
        self._last_answer: StepResult | Result | ErrorMessage | None = None
        chained = request.downstream is not None
        self.output = Output(request.session, account, ledger, owner, chained=chained)

    @property
    def id(self) -> bytes:
        return self.request.session

    def progress(self) -> Progress:
        """Where its requests are, for a peer that waits for them."""
        return Progress(
            self.id,
            received=self.hop.received,
            done=min(self.last_done, self.hop.received),
            work=self.sequence.computed + self.output.work,
            busy=self.output.is_busy,
        )

    def is_active(self, now: float, rest_s: float) -> bool:
        """Whether it is in use, has a step under way, or was opened less than ``rest_s`` ago."""
        return (
            self.inflight > 0
            or now - self.opened_at < rest_s
            or self.usage.tokens_per_s(now) >= ACTIVE_TOKENS_PER_S
        )

    def use(self, now: float) -> None:
        """It does not rest: something is done for it."""
        self.last_used = now

    # Where its steps come from.

    def takes_from(self, source: StepSource, peer_id: str) -> bool:
        """Whether that stream, of that peer, may feed it."""
        return self.upstream == peer_id if self.upstream else source is self.owner

    def feed_from(self, feeder: Feeder) -> None:
        """Its steps come on this stream from now on."""
        self.forget_feeder()
        self.fed_by = feeder

    def forget_feeder(self) -> None:
        """Nobody has sent steps for it yet, as far as its upstream goes."""
        feeder, self.fed_by = self.fed_by, None
        if feeder is not None:
            feeder.stop_feeding(self)

    def lose_feeder(self, peer_id: str, why: str) -> None:
        """Nothing more comes on the stream that fed it: tell the client."""
        self.fed_by = None
        self.owner.post(
            ErrorMessage(
                self.id,
                None,
                ErrorCode.UPSTREAM_LOST,
                f"peer {short_peer_id(peer_id)}, which sends this session's steps, is lost: {why}",
                True,
                "The session is open: name another upstream by ATTACH.",
            )
        )

    def attach(self, request: Attach) -> None:
        """Take steps from the upstream that the client names. ``unnamed``: others compute its input from now
        on, so no page that is not settled has its name any more."""
        self.forget_feeder()
        self.upstream = request.upstream
        self.hop.forget_void()
        if request.unnamed:
            self.sequence.end_names()

    # Its steps.

    def on_step(self, step: Step, now: float, source: StepSource) -> None:
        """Hand a step to the engine; its answer goes where it should when it comes. A wrong step is answered
        at once."""
        arrived = perf_counter_ns()
        hold, branches = step.hold, step.branches
        tokens, size = step.tokens - rows_of(branches), len(step.payload)
        cost = tokens + computed_rows(branches)
        if step.void:
            self.void(step.void, step.step - 1)
        if not hold and self.hop.is_void(step.step):
            return  # it was sent before that was known
        if source is not self.owner and (
            self._ledger.is_beyond(self.account)
            or not self.owner.takes_answers
            or self.queued_tokens + cost > FED_TURNS * self.request.max_tokens
        ):
            text, hint = _OVERLOADED
            self._refuse(
                ErrorMessage(self.id, step.step, ErrorCode.OVERLOADED, text, True, hint), hold, source
            )
            return
        try:
            if problem := too_many(tokens, branches):
                raise RemoteProtocolError(f"step {step.step} has {problem}", code=ErrorCode.BAD_STEP)
            verdict = self.hop.on_step(step.step, step.position, tokens)
        except RemoteProtocolError as error:
            self._refuse(error_message(error, self.id, step.step, retriable=False), hold, source)
            return
        self.use(now)
        if isinstance(verdict, Duplicate):
            if source is self.owner and self.output.is_client:
                self._repeat(step)
            return  # in a chain nothing is said twice: hops that a client put in a circle would never stop
        self._last_answer = None
        self.inflight += 1
        if hold:
            self._last_held = step.step
        self.queued_tokens += cost
        self._ledger.queue(self.account, cost, size)

        def done(job: StepJob, outcome: StepOutcome) -> None:
            self.inflight -= 1
            self.last_done = job.step
            self.queued_tokens -= cost
            self._ledger.unqueue(self.account, cost, size)
            if self.closed:
                return
            if isinstance(outcome, StepDone):
                self.usage.add(tokens)
                self._work.stepped(tokens, outcome.queue_us * 1e-6, decoding=tokens <= DECODE_TOKENS)
                if self.journal is not None:
                    self._journal(job, outcome)
                if hold:
                    self._acknowledge(job, outcome, source)
                elif not self.hop.is_void(job.step):
                    self._answer(job, outcome, step)
                return
            if self.journal is not None:
                self.journal.rollback(job.position)
            if isinstance(outcome, StepFailed) and (hold or not self.hop.is_void(job.step)):
                code, text, hint = outcome.code, outcome.message, outcome.hint
                failed = ErrorMessage(self.id, job.step, code, text, outcome.retriable, hint, outcome.holds)
                if job.step == self.hop.last_step:
                    self._last_answer = failed
                self._refuse(failed, hold, source)

        if self.journal is not None or not (self.output.is_client or hold):
            want_here = Want.ALL
        else:
            want_here = Want.NOTHING if hold else step.want
        self._engine.submit(
            StepJob(
                sequence=self.sequence,
                step=step.step,
                position=step.position,
                tokens=tokens,
                want=want_here,
                payload=step.payload,
                arrived_ns=arrived,
                done=done,
                deadline_ns=arrived + step.deadline_ms * 1_000_000 if step.deadline_ms else 0,
                branches=branches,
                guess=step.guess,
            )
        )

    def void(self, first: int, last: int) -> None:
        """The steps from ``first`` to ``last`` are void: what waits of them is dropped, now and as it comes,
        and what was begun is not answered. What a replay sent is never void."""
        if first > last:
            return
        self._voided_at = self.hop.last_step
        self.hop.void(first, last)
        self.output.drop_held(first, last)
        newest = self.hop.last_step or 0
        if self.inflight and newest > self._dropped_upto and first > self._last_held:
            self._dropped_upto = newest
            self._engine.void(self.sequence, first, last)

    @property
    def has_new_steps(self) -> bool:
        """Whether one was accepted since some were made void."""
        return self.hop.last_step != self._voided_at

    def close(self, prefix: tuple[bytes, ...] = ()) -> None:
        """Free the KV cache: now, or as soon as the step being computed lets go of it."""
        self.closed = True
        self.output.close()
        if self.journal is not None:
            self.journal.close()
        self._engine.close_sequence(self.sequence, prefix)

    def replay(self, request: Replay, hops: NextHops) -> asyncio.Task[None]:
        """See ``Output.replay``."""
        return self.output.replay(request, self.journal, hops, lambda: self.use(hops.now()))

    # Answers.

    def _journal(self, job: StepJob, outcome: StepDone) -> None:
        rows = outcome.rows - rows_of(outcome.branches)
        if rows == job.tokens and self.journal is not None:
            size = len(outcome.payload) // outcome.rows
            self.journal.write(job.position, memoryview(outcome.payload)[: size * rows])
            self.output.journal_grown()

    def _acknowledge(self, job: StepJob, outcome: StepDone, source: StepSource) -> None:
        """A step that was held is answered, without rows, on the stream it came from."""
        answer = Result(
            self.id,
            job.step,
            job.position + job.tokens,
            0,
            b"",
            outcome.queue_us,
            outcome.compute_us,
            outcome.codec_us,
            outcome.batch,
        )
        if job.step == self.hop.last_step:
            self._last_answer = answer
        source.post(answer)

    def _answer(self, job: StepJob, outcome: StepDone, step: Step) -> None:
        left_out = rows_of(step.branches) - rows_of(outcome.branches)
        result = StepResult(
            job.step,
            outcome.position,
            outcome.rows,
            step.want,
            step.deadline_ms,
            outcome.payload,
            step.spent,
            outcome.queue_us,
            outcome.compute_us,
            outcome.codec_us,
            outcome.batch,
            step.void,
            max(0, step.guess - left_out),
            outcome.branches,
            self._engine.row_us,
        )
        if job.step == self.hop.last_step:
            self._last_answer = result if len(outcome.payload) <= MAX_KEPT_ANSWER else None
        self.output.send(result)

    def _refuse(self, error: ErrorMessage, hold: bool, source: StepSource) -> None:
        """Tell the client that a step failed, and the peer that waits for it if that is another."""
        self.owner.post(error)
        if hold and source is not self.owner:
            source.post(error)

    def _repeat(self, step: Step) -> None:
        match self._last_answer:
            case StepResult() as result:
                self.output.send(result)
            case Result() | ErrorMessage() as message:
                self.owner.post(message)
            case None if not self.inflight:
                text = f"the answer to step {step.step} is no longer kept"
                hint = "Send the tokens again under a new step number."
                self.owner.post(ErrorMessage(self.id, step.step, ErrorCode.BAD_STEP, text, True, hint))
            case _:
                pass  # the first copy is still being computed, and its answer will do for both
