"""One session against an engine that answers when it is told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm_node.node.engine.batching.scheduler import Certain
from swarm_node.node.engine.jobs import StepDone, StepDropped, StepFailed, StepJob
from swarm_node.node.figures.work import WorkDone
from swarm_node.node.limits.quotas import Ledger, Limits
from swarm_node.node.sessions.journal import JournalBook
from swarm_node.node.sessions.session import MAX_KEPT_ANSWER, NodeSession
from swarm_node.node.sessions.step_result import StepResult
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.protocol.field_types import MAX_CHAIN, Downstream
from swarm_node.swarm.protocol.hop_session import HopSession
from swarm_node.swarm.protocol.messages import ErrorMessage, Message, Open, Result, Step, Want, encode
from swarm_node.swarm.types import Span

OPENING = Open(b"s" * 16, Span(0, 1), 64, "none", "none")


class SlowEngine:
    row_us = 400

    def __init__(self) -> None:
        self.jobs: list[StepJob] = []
        self.closed: list[tuple[object, tuple[bytes, ...]]] = []
        self.voided: list[tuple[int, int]] = []

    def void(self, sequence: object, first: int, last: int) -> None:
        self.voided.append((first, last))

    def submit(self, job: StepJob) -> None:
        self.jobs.append(job)

    def close_sequence(self, sequence: object, prefix: tuple[bytes, ...] = ()) -> None:
        self.closed.append((sequence, prefix))


class Stream:
    """Of a client, or of the hop before."""

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.max_step_tokens = 64
        self.takes_answers = True

    def post(self, message: Message) -> None:
        self.posted.append(message)

    async def drain(self) -> None:
        pass


class Bench:
    def __init__(self, opening: Open = OPENING, limits: Limits | None = None, journal=None) -> None:
        self.engine = SlowEngine()
        self.ledger = Ledger(limits or Limits())
        self.work = WorkDone()
        self.account = self.ledger.connect(Holder("peer"))
        self.stream, self.feeder = Stream(), Stream()
        self.posted = self.stream.posted
        self.session = NodeSession(
            opening,
            object(),
            HopSession(64),
            self.engine,
            self.ledger,
            self.work,
            self.account,
            64,
            self.stream,
            0.0,
            journal,
        )

    def step(self, number: int, position: int, tokens: int = 1, *, source=None, **more) -> None:
        more = {"want": Want.ALL, "payload": b"x" * 4 * tokens} | more
        step = Step(b"s" * 16, number, position, tokens, **more)
        self.session.on_step(step, float(number), source or self.stream)

    def finish(self, outcome) -> None:
        job = self.engine.jobs.pop(0)
        job.done(job, outcome)


def done(payload: bytes = b"rows", rows: int = 1, position: int = 0) -> StepDone:
    return StepDone(payload, rows, position, queue_us=1, compute_us=2, codec_us=3, batch=4)


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
    assert answer == Result(
        b"s" * 16, 1, 0, 1, b"rows", queue_us=1, compute_us=2, codec_us=3, batch=4, row_us=400
    )


@pytest.mark.parametrize("outcome", [done(), StepDropped(), StepFailed(ErrorCode.INTERNAL, "x")])
def test_what_a_closed_session_still_gets_is_told_to_nobody(bench, outcome):
    """Its id may belong to another session by now."""
    bench.step(1, 0)
    bench.session.close((b"h" * 32,))
    assert bench.engine.closed == [(bench.session.sequence, (b"h" * 32,))]
    bench.finish(outcome)
    assert bench.posted == []
    assert bench.account.queued_tokens == 0


@pytest.mark.parametrize(
    ("guess", "certain"), [(0, Certain.ALL), (2, Certain.SOME), (3, Certain.NONE)], ids=str
)
def test_guesses_are_told_to_the_engine_and_to_the_next_hop(bench, guess, certain):
    bench.step(1, 0, tokens=3, guess=guess)
    (job,) = bench.engine.jobs
    assert (job.guess, job.certain) == (guess, certain)
    sent = []
    bench.session.output.send = sent.append
    bench.finish(done(b"rowsrowsrows", rows=3))
    assert sent[0].as_step(b"n" * 16).guess == guess


def test_branches_are_guesses_whatever_they_are_called(bench):
    bench.step(1, 0, tokens=5, branches=((1, 2), (2, 1)))
    (job,) = bench.engine.jobs
    assert job.certain is Certain.SOME


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


# What a session sends on, keeps and holds.


class Hop:
    """Stands in for the output of a session that has a next hop."""

    is_client = False

    def __init__(self) -> None:
        self.sent: list[StepResult] = []

    def send(self, answer: StepResult) -> None:
        self.sent.append(answer)

    def drop_held(self, first: int, last: int) -> None:
        self.sent = [answer for answer in self.sent if not first <= answer.step <= last]


def test_a_chained_step_is_computed_whole_and_sent_on(bench):
    bench.session.output = hop = Hop()
    spent = ((9, 8, 7, 6),)
    bench.step(5, 0, tokens=2, want=Want.LAST, deadline_ms=30, spent=spent, void=3, guess=1)
    assert bench.engine.jobs[0].want is Want.ALL
    bench.finish(done(b"rows" * 2, 2))
    (answer,) = hop.sent
    assert answer.as_step(b"t" * 16) == Step(
        b"t" * 16, 5, 0, 2, Want.LAST, 30, False, (*spent, (1, 2, 3, 4)), 3, 1, payload=b"rows" * 2
    )
    assert bench.posted == []
    bench.step(5, 0, tokens=2, want=Want.LAST)  # nothing is said twice in a chain
    assert (len(hop.sent), bench.posted, bench.engine.jobs) == (1, [], [])


def test_a_chain_is_no_longer_than_a_header(bench):
    bench.session.output = hop = Hop()
    bench.step(1, 0, spent=((0, 0, 0, 0),) * MAX_CHAIN)
    bench.finish(done())
    step = hop.sent[0].as_step(b"t" * 16)
    assert len(step.spent) == MAX_CHAIN
    assert step.spent[-1] == (1, 2, 3, 4)
    encode(step)


@pytest.mark.parametrize(
    ("want", "rows", "position", "payload"),
    [(Want.ALL, 3, 0, b"aaaabbbbcccc"), (Want.LAST, 1, 2, b"cccc"), (Want.NOTHING, 0, 3, b"")],
)
def test_a_journal_gets_all_rows_and_the_client_those_it_wants(want, rows, position, payload):
    book = JournalBook(100)
    bench = Bench(journal=book.open(4, 0))
    bench.step(1, 0, tokens=3, want=want)
    assert bench.engine.jobs[0].want is Want.ALL
    bench.finish(done(b"aaaabbbbcccc", 3))
    (answer,) = bench.posted
    assert (answer.tokens, answer.position, bytes(answer.payload)) == (rows, position, payload)
    assert bench.session.journal.slice(0, 3) == b"aaaabbbbcccc"
    bench.step(2, 1, tokens=2)
    bench.finish(StepFailed(ErrorCode.INTERNAL, "x"))
    assert bench.session.journal.end == 1  # as the cache
    bench.session.close()
    assert book.statistics().used == 0


@pytest.mark.parametrize("chained", [False, True])
def test_a_held_step_is_answered_to_its_sender_only(bench, chained):
    if chained:
        bench.session.output = Hop()
    bench.step(1, 0, tokens=3, hold=True, source=bench.feeder)
    assert bench.engine.jobs[0].want is Want.NOTHING
    bench.finish(done(b"", 0, 3))
    assert bench.feeder.posted == [Result(b"s" * 16, 1, 3, 0, b"", 1, 2, 3, 4)]
    assert bench.posted == []
    bench.step(2, 3, hold=True, source=bench.feeder)
    bench.finish(StepFailed(ErrorCode.INTERNAL, "x"))
    failed = ErrorMessage(b"s" * 16, 2, ErrorCode.INTERNAL, "x", False)
    assert (bench.feeder.posted[1:], bench.posted) == ([failed], [failed])
    bench.step(3, 9, hold=True, source=bench.feeder)  # a hole: refused at once
    assert bench.feeder.posted[2:] == bench.posted[1:]
    assert bench.posted[1].code is ErrorCode.BAD_STEP


def test_failures_of_a_fed_step_are_the_clients(bench):
    bench.step(1, 0, source=bench.feeder)
    bench.finish(StepFailed(ErrorCode.DEADLINE, "late", retriable=True))
    assert (len(bench.posted), bench.feeder.posted) == (1, [])


def test_fed_steps_are_taken_beyond_the_limits_up_to_a_factor():
    bench = Bench(limits=Limits(queued_tokens_per_peer=10))
    for number in range(6):
        bench.step(number, 10 * number, tokens=10, source=bench.feeder)
    assert len(bench.engine.jobs) == 5  # 50 tokens: beyond 4 times 10, so the sixth is refused
    assert not bench.account.room.is_set()
    assert [message.code for message in bench.posted] == [ErrorCode.OVERLOADED]
    assert (bench.posted[0].step, bench.posted[0].retriable) == (5, True)
    bench.step(5, 50, source=bench.stream)  # its own stream is read only while there is room, so it is taken
    assert len(bench.engine.jobs) == 6
    bench.stream.takes_answers = False
    bench.step(6, 51, source=bench.feeder)
    assert bench.posted[1].code is ErrorCode.OVERLOADED


def test_who_may_feed_it():
    alone, fed = Bench(), Bench(replace(OPENING, upstream="before"))
    assert alone.session.takes_from(alone.stream, "peer")
    assert not alone.session.takes_from(alone.feeder, "peer")
    assert fed.session.takes_from(fed.feeder, "before")
    assert not fed.session.takes_from(fed.feeder, "peer")
    assert not fed.session.takes_from(fed.stream, "peer")


# Void steps.


def test_void_steps_are_dropped_as_they_come_and_not_answered(bench):
    bench.step(1, 0, tokens=8)
    bench.step(2, 8, tokens=8)
    bench.session.void(2, 3)
    assert bench.engine.voided == [(2, 3)]
    bench.finish(done(b"rows" * 8, 8))
    bench.finish(done(b"late" * 8, 8, 8))  # it was being computed
    bench.step(3, 16, tokens=8)  # it comes late
    assert (len(bench.engine.jobs), bench.session.inflight, bench.account.queued_tokens) == (0, 0, 0)
    bench.step(4, 3)
    bench.finish(done(position=3))
    assert [answer.step for answer in bench.posted] == [1, 4]


@pytest.mark.parametrize("outcome", [StepDropped(), StepFailed(ErrorCode.DEADLINE, "late")])
def test_of_a_void_step_that_was_not_computed_nobody_hears(bench, outcome):
    bench.step(1, 0)
    bench.session.void(1, 1)
    bench.finish(outcome)
    bench.step(1, 0)  # nor if it comes again
    assert bench.posted == []
    assert (bench.account.queued_tokens, bench.account.queued_bytes) == (0, 0)


def test_a_step_makes_those_before_it_void(bench):
    bench.step(1, 0)
    bench.step(2, 1)
    bench.step(3, 2, void=3)  # none
    assert bench.engine.voided == []
    bench.step(5, 1, void=2, source=bench.feeder)
    assert bench.engine.voided == [(2, 4)]
    bench.step(4, 3, source=bench.feeder)
    assert [job.step for job in bench.engine.jobs] == [1, 2, 3, 5]


def test_the_engine_is_asked_once_for_the_same_steps(bench):
    bench.session.void(1, 9)
    bench.step(11, 0)
    for _ in range(5):
        bench.session.void(11, 2**53 - 1)
    assert bench.engine.voided == [(11, 2**53 - 1)]


def test_what_a_replay_sent_is_never_void(bench):
    bench.step(1, 0, hold=True, source=bench.feeder)
    bench.step(2, 1, hold=True, source=bench.feeder)
    bench.session.void(1, 2)
    assert bench.engine.voided == []
    bench.finish(done(b""))
    bench.finish(StepFailed(ErrorCode.BAD_TENSOR, "bad"))
    assert [type(answer) for answer in bench.feeder.posted] == [Result, ErrorMessage]


def test_the_journal_is_what_the_cache_is(bench):
    book = JournalBook(100)
    bench = Bench(journal=book.open(4, 0))
    journal = bench.session.journal
    bench.step(1, 0, tokens=2)
    bench.step(2, 2, tokens=2)
    bench.step(3, 4, tokens=2)
    bench.finish(done(b"aaaabbbb", 2))
    bench.session.void(2, 3)
    bench.finish(done(b"ccccdddd", 2, 2))  # begun when it was void
    bench.finish(StepDropped())
    assert (journal.end, journal.slice(0, 2)) == (4, b"aaaabbbb")
    bench.step(4, 1, tokens=1)
    bench.finish(done(b"eeee", 1, 1))
    assert (journal.end, journal.slice(0, 2)) == (2, b"aaaaeeee")


def test_progress_does_not_know_void_steps(bench):
    """Who asks for one that somebody else made void finds that it has not come here."""
    bench.session.sequence = type("Sequence", (), {"computed": 0})()
    for number in (1, 2, 3):
        bench.step(number, number - 1)
    bench.finish(done())
    bench.session.void(2, 3)
    assert (bench.session.progress().received, bench.session.progress().done) == (1, 1)
    bench.finish(done())
    bench.finish(StepDropped())
    assert (bench.session.progress().received, bench.session.progress().done) == (1, 1)
    bench.step(4, 1)
    assert (bench.session.progress().received, bench.session.progress().done) == (4, 3)
    bench.finish(done(position=1))
    assert (bench.session.progress().received, bench.session.progress().done) == (4, 4)


class Sought(list):
    """Never read from one end to the other."""

    def __iter__(self):
        raise AssertionError("read as a whole")


async def test_many_results_that_are_held_are_not_all_looked_at_for_each_void():
    bench = Bench(replace(OPENING, downstream=Downstream("abc", b"t" * 16)))
    for number in range(60):
        bench.step(2 * number + 1, number)
        bench.finish(done())
    held = bench.session.output._held = Sought(bench.session.output._held)
    for first, last in ((0, 0), (2, 2), (118, 118), (120, 2**53 - 1), (40, 43)):
        bench.session.void(first, last)
    assert len(held) == 58
    assert bench.account.queued_bytes == 58 * 4
    bench.session.output._held = list.copy(held)
    bench.session.close()


async def test_results_that_are_held_go_when_they_are_void():
    bench = Bench(replace(OPENING, downstream=Downstream("abc", b"t" * 16)))
    for number in (1, 2, 3):
        bench.step(number, number - 1)
        bench.finish(done())
    assert bench.account.queued_bytes == 12
    bench.session.void(2, 3)
    assert [result.step for result in bench.session.output._held] == [1]
    assert bench.account.queued_bytes == 4
    bench.session.close()
    assert bench.account.queued_bytes == 0
