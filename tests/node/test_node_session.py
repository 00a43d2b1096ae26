"""One session against an engine that answers when it is told to."""

from __future__ import annotations

import pytest

from swarm_node.node.jobs import StepDone, StepDropped, StepFailed, StepJob
from swarm_node.node.node_session import MAX_KEPT_ANSWER, NodeSession
from swarm_node.node.quotas import Ledger, Limits
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.messages import ErrorMessage, Message, Open, Result, Step, Want
from swarm_node.swarm.session import HopSession
from swarm_node.swarm.types import Span

OPENING = Open(b"s" * 16, Span(0, 1), 64, "none", "none")


class SlowEngine:
    def __init__(self) -> None:
        self.jobs: list[StepJob] = []
        self.closed: list[tuple[object, tuple[bytes, ...]]] = []

    def submit(self, job: StepJob) -> None:
        self.jobs.append(job)

    def close_lane(self, lane: object, prefix: tuple[bytes, ...] = ()) -> None:
        self.closed.append((lane, prefix))


class Bench:
    def __init__(self) -> None:
        self.engine = SlowEngine()
        self.ledger = Ledger(Limits())
        self.account = self.ledger.connect("peer")
        self.posted: list[Message] = []
        post, hop = self.posted.append, HopSession(64)
        self.session = NodeSession(
            OPENING, object(), hop, self.engine, self.ledger, self.account, 64, post, 0.0
        )

    def step(self, number: int, position: int, tokens: int = 1, deadline_ms: int = 0) -> None:
        step = Step(b"s" * 16, number, position, tokens, Want.ALL, deadline_ms, b"x" * 4 * tokens)
        self.session.on_step(step, float(number))

    def finish(self, outcome) -> None:
        job = self.engine.jobs.pop(0)
        job.done(job, outcome)


def done(payload: bytes = b"rows") -> StepDone:
    return StepDone(payload, rows=1, position=0, queue_us=1, compute_us=2, codec_us=3, batch=4)


@pytest.fixture
def bench():
    return Bench()


def test_a_step_is_counted_until_it_is_answered(bench):
    bench.step(1, 0, tokens=3)
    assert (bench.session.inflight, bench.account.queued_tokens, bench.account.queued_bytes) == (1, 3, 12)
    assert bench.session.last_used == 1.0
    bench.finish(done())
    assert (bench.session.inflight, bench.account.queued_tokens, bench.account.queued_bytes) == (0, 0, 0)
    (answer,) = bench.posted
    assert answer == Result(b"s" * 16, 1, 0, 1, b"rows", queue_us=1, compute_us=2, codec_us=3, batch=4)


@pytest.mark.parametrize("outcome", [done(), StepDropped(), StepFailed(ErrorCode.INTERNAL, "x")])
def test_what_a_closed_session_still_gets_is_told_to_nobody(bench, outcome):
    """Its id may belong to another session by now."""
    bench.step(1, 0)
    bench.session.close((b"h" * 32,))
    assert bench.engine.closed == [(bench.session.lane, (b"h" * 32,))]
    bench.finish(outcome)
    assert bench.posted == []
    assert bench.account.queued_tokens == 0


def test_a_deadline_counts_from_the_arrival(bench):
    bench.step(1, 0, deadline_ms=250)
    (job,) = bench.engine.jobs
    assert job.deadline_ns - job.arrived_ns == 250_000_000
    bench.step(2, 1)
    assert bench.engine.jobs[1].deadline_ns == 0


def test_a_step_that_comes_again_is_computed_once(bench):
    bench.step(1, 0)
    bench.step(1, 0)
    assert len(bench.engine.jobs) == 1
    bench.finish(done())
    bench.step(1, 0)
    assert bench.posted == [bench.posted[0]] * 2
    assert bench.engine.jobs == []


def test_a_large_answer_is_not_kept_and_the_client_is_told(bench):
    bench.step(1, 0)
    bench.finish(done(bytes(MAX_KEPT_ANSWER + 1)))
    bench.step(1, 0)
    answer = bench.posted[1]
    assert isinstance(answer, ErrorMessage)
    assert (answer.code, answer.retriable) == (ErrorCode.BAD_STEP, True)


def test_only_the_last_steps_answer_is_kept(bench):
    bench.step(1, 0)
    bench.step(2, 1)
    bench.finish(done(b"first"))
    bench.step(2, 1)
    assert [answer.payload for answer in bench.posted] == [b"first"]  # the second is under way
    bench.finish(StepFailed(ErrorCode.OVERLOADED, "no page", "again", retriable=True))
    bench.step(2, 1)
    assert (
        bench.posted[1:] == [ErrorMessage(b"s" * 16, 2, ErrorCode.OVERLOADED, "no page", True, "again")] * 2
    )
